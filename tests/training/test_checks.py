"""What cannot be trained is refused before anything is compiled or written."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxdet import parallel
from jaxdet.config import ConfigError
from jaxdet.data.dataset import DataError
from jaxdet.ops.coverage import Coverage
from jaxdet.training.train import train
from tests.training import toy

CONFIG = toy.config()


def test_a_batch_that_the_devices_cannot_share_is_refused_at_once(tmp_path):
    def init(key, batch):
        raise AssertionError("the detector was touched")

    detector = toy.toy()._replace(init=init)
    with pytest.raises(DataError, match=r"batch size 6 .* 4 devices"):
        train(detector, toy.data_set(), toy.config(batch_size=6), workdir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_a_loss_misses_is_told_before_anything_is_written(tmp_path):
    toy_loss = toy.toy().loss

    def loss(variables, batch, key, axis_name=None):
        if batch.regions is None:
            raise ValueError("this detector needs batch.regions")
        return toy_loss(variables, batch, key, axis_name=axis_name)

    detector = toy.toy()._replace(loss=loss)
    with pytest.raises(ConfigError, match=r"^this detector needs batch\.regions$"):
        train(detector, toy.data_set(), toy.config(), workdir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_no_answer_can_be_given_on_is_told_before_anything_is_written(tmp_path):
    toy_predict = toy.toy().predict

    def predict(variables, batch):
        if batch.images.shape[1] == 24:
            raise ValueError("no answers on canvases of 24 pixels")
        return toy_predict(variables, batch)

    canvases = dataclasses.replace(CONFIG.input, canvases=(toy.CANVAS, (24, 8)))
    config = dataclasses.replace(CONFIG, input=canvases)
    with pytest.raises(ConfigError, match=r"^no answers on canvases of 24 pixels$"):
        train(
            toy.toy()._replace(predict=predict),
            toy.data_set(),
            config,
            workdir=tmp_path,
        )
    assert not list(tmp_path.iterdir())


def test_anchors_without_an_object_are_refused_before_anything_is_written(tmp_path):
    def coverage(canvas, boxes, sizes):
        return Coverage(np.zeros(len(boxes)), 0.4, 0.5, "IoU with the best anchor")

    detector = toy.toy()._replace(coverage=coverage)
    with pytest.raises(ConfigError, match="12 of 12 objects of 'toy' are out of"):
        train(detector, toy.data_set(), toy.config(), workdir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_classes_must_be_those_of_the_detector_and_of_the_validation_set(tmp_path):
    data, config = toy.data_set(), toy.config()
    two = toy.toy()._replace(num_classes=2)
    with pytest.raises(DataError, match=r"detector has 2 classes, but .* has 1: "):
        train(two, data, config, workdir=tmp_path)
    other = dataclasses.replace(data, class_names=("another",))
    with pytest.raises(DataError, match=r"validation set .*'another'.* be the same"):
        train(toy.toy(), data, config, workdir=tmp_path, validation=other)
    assert not list(tmp_path.iterdir())


def test_parts_must_be_as_large_as_each_other(tmp_path):
    config = toy.config(batch_size=12, accumulation_steps=2)
    with pytest.raises(
        ConfigError, match=r"accumulation_steps is 2; .* the 3 images of each"
    ):
        train(toy.toy(), toy.data_set(), config, workdir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("seed", lambda seed: seed + 1),
        ("sizes", lambda sizes: 2 * sizes),
        ("image_ids", lambda ids: ids[::-1]),
        ("objects", lambda objects: objects[::-1]),
    ],
)
def test_hosts_must_train_the_same(tmp_path, monkeypatch, what, change):
    data, config = toy.data_set(), toy.config()
    threads = dataclasses.replace(config.input, workers=1)  # each host has its own
    their_data, theirs = data, dataclasses.replace(config, input=threads)
    if what == "seed":
        theirs = dataclasses.replace(theirs, seed=change(config.seed))
    else:
        their_data = dataclasses.replace(data, **{what: change(getattr(data, what))})
    theirs = checks._fingerprints(toy.toy(), their_data, theirs, None)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(parallel, "gather", lambda value: [value, theirs])
    with pytest.raises(ConfigError) as error:
        train(toy.toy(), data, config, workdir=tmp_path)
    (line,) = str(error.value).splitlines()[1:]
    assert what.replace("_", " ") in line and "on host 1" in line
    assert not list(tmp_path.iterdir())
