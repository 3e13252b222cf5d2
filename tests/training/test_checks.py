"""What cannot be trained is refused before anything is compiled or written."""

import dataclasses

import jax
import pytest

from jaxdet import parallel
from jaxdet.config import Anchors, ConfigError
from jaxdet.data.dataset import DataError
from jaxdet.detectors.retinanet import RetinaNetConfig, retinanet
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.training import checks
from jaxdet.training.train import train
from tests.training import toy

DATA, CONFIG = toy.data_set(), toy.config()


def test_a_batch_that_the_devices_cannot_share_is_refused_at_once(tmp_path):
    def init(key, batch):
        raise AssertionError("the detector was touched")

    detector = toy.toy()._replace(init=init)
    with pytest.raises(DataError, match=r"batch size 6 .* 4 devices"):
        train(detector, DATA, toy.config(batch_size=6), workdir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("function", ["loss", "predict"])
def test_a_canvas_that_the_detector_refuses_is_named_before_anything_is_written(
    tmp_path, function
):
    original = getattr(toy.toy(), function)

    def refuse(variables, batch, *arguments, **options):
        if batch.images.shape[1] == 24:
            raise ValueError("canvases of 24 pixels do not fit")
        return original(variables, batch, *arguments, **options)

    canvases = dataclasses.replace(CONFIG.input, canvases=(toy.CANVAS, (24, 8)))
    config = dataclasses.replace(CONFIG, input=canvases)
    detector = toy.toy()._replace(**{function: refuse})
    with pytest.raises(ConfigError, match=r"^canvases of 24 pixels do not fit$"):
        train(detector, DATA, config, workdir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_anchors_without_an_object_are_refused():
    large = RetinaNetConfig(levels=(5,), anchors=Anchors(((999.0,),)))
    detector = toy.toy()._replace(recipe=retinanet(large, ResNet()).recipe)
    with pytest.raises(ConfigError, match="12 of 12 objects of 'toy' match no"):
        checks.check_run(detector, DATA, CONFIG, None)


def test_patience_without_validation_data_is_refused():
    config = dataclasses.replace(CONFIG, patience=3, evaluate_every=2)
    with pytest.raises(ConfigError, match="patience is 3; it must be 0 without valid"):
        checks.check_run(toy.toy(), DATA, config, None)
    checks.check_run(toy.toy(), DATA, config, DATA)


def test_broken_masks_to_validate_on_are_refused():
    truth = DATA.ground_truth()
    for annotation in truth["annotations"]:
        annotation["segmentation"] = [[1, 2, 3, 4]]
    broken = dataclasses.replace(DATA, ground_truth=lambda: truth)
    checks.check_run(toy.toy(), DATA, CONFIG, broken)
    with pytest.raises(DataError, match="has the segmentation"):
        checks.check_run(toy.toy()._replace(has_masks=True), DATA, CONFIG, broken)


def test_classes_must_be_those_of_the_detector_and_of_the_validation_set():
    two = toy.toy()._replace(num_classes=2)
    with pytest.raises(DataError, match=r"detector has 2 classes, but .* has 1: "):
        checks.check_run(two, DATA, CONFIG, None)
    other = dataclasses.replace(DATA, class_names=("another",))
    with pytest.raises(DataError, match=r"validation set .*'another'.* be the same"):
        checks.check_run(toy.toy(), DATA, CONFIG, other)


def test_accumulation_must_divide_the_images_of_a_device():
    config = toy.config(batch_size=12, accumulation_steps=2)
    with pytest.raises(ConfigError, match=r"steps is 2; .* the 3 images of each"):
        checks.check_run(toy.toy(), DATA, config, None)


@pytest.mark.parametrize(
    ("what", "change", "named"),
    [
        ("seed", lambda seed: seed + 1, "training/seed"),
        ("sizes", lambda sizes: 2 * sizes, "data_digests/sizes"),
        ("image_ids", lambda ids: ids[::-1], "data_digests/image_ids"),
        ("objects", lambda objects: objects[::-1], "data_digests/boxes"),
    ],
)
def test_hosts_must_train_the_same(monkeypatch, what, change, named):
    threads = dataclasses.replace(CONFIG.input, workers=1)  # each host has its own
    their_data, theirs = DATA, dataclasses.replace(CONFIG, input=threads)
    if what == "seed":
        theirs = dataclasses.replace(theirs, seed=change(CONFIG.seed))
    else:
        their_data = dataclasses.replace(DATA, **{what: change(getattr(DATA, what))})
    theirs = checks._fingerprints(toy.toy(), their_data, theirs, None)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(parallel, "gather", lambda value: [value, theirs])
    with pytest.raises(ConfigError) as error:
        checks.check_run(toy.toy(), DATA, CONFIG, None)
    (line,) = str(error.value).splitlines()[1:]
    assert named in line and "on host 1" in line
