"""What `--weights` names, and a detector of torchvision that learns other classes."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

import jaxdet
from experiments import pretrained, train
from experiments import recipe as recipes
from experiments.data_option import DataOption
from jaxdet.detectors.detr import detr
from jaxdet.inference.load import load_detector
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.extra_stages import ExtraStages
from jaxdet.structs import Batch
from jaxdet.training.run_folder import RunError, load_run, save_run
from jaxdet.weights import detectors, transfer, transformers_maps
from jaxdet.weights.mapping import NetworkMap
from jaxdet.weights.state_dict import WeightsError
from jaxdet.weights.transfer import Transfer
from tests.conftest import GOLDEN
from tests.golden import replay
from tests.training import toy
from tests.weights.test_transformers_maps import config_of


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """Makes a file of one of torchvision's detectors, whose tensors are zeros."""

    def make(name, changed=None):
        about = json.loads((GOLDEN / f"{name}_s0.json").read_text())
        state = {
            weight: np.broadcast_to(np.float32(0), values["shape"])
            for weight, values in about["weights"].items()
        } | (changed or {})
        monkeypatch.setattr(pretrained, "read_state_dict", lambda file: state)
        file = tmp_path / f"{name}.pth"
        file.touch()
        return str(file)

    return make


@pytest.mark.parametrize(
    ("name", "outputs", "person", "options", "recipe"),
    [
        ("retinanet_resnet50_fpn", 91, 1, {"epsilon": 0.0}, "retinanet"),
        ("fcos_resnet50_fpn", 91, 1, {"epsilon": 1e-5}, "fcos"),
        ("fasterrcnn_resnet50_fpn", 90, 0, {"epsilon": 0.0}, "faster_rcnn"),
        ("ssd300_vgg16", 90, 0, {}, "ssd"),
    ],
)
def test_torchvisions_detectors_are_recognized(
    name, outputs, person, options, recipe, checkpoint
):
    weights = pretrained.load(recipes.load("faster_rcnn"), checkpoint(name))
    names = weights.class_names
    assert len(names) == outputs and names.index("person") == person
    # COCO leaves out the ids 12, 26 and others, and ends with the toothbrush, 90.
    assert names[person + 11] is None and names[-1] == "toothbrush"
    assert weights.options == options and weights.hint.endswith(f"the recipe {recipe}")
    # SHA-256 of nothing, as of an empty file.
    assert weights.sha256.startswith("e3b0c44298fc1c14")


def test_a_file_that_torchvision_has_fine_tuned(checkpoint):
    """As in its tutorial: `FastRCNNPredictor(1024, 3)`, background first."""
    changed = {
        f"roi_heads.box_predictor.{layer}": values
        for layer, values in {
            "cls_score.weight": np.zeros((3, 1024)),
            "cls_score.bias": np.arange(3),
            "bbox_pred.weight": np.zeros((12, 1024)),
            "bbox_pred.bias": np.arange(12),
        }.items()
    }
    recipe = recipes.load("faster_rcnn")
    file = checkpoint("fasterrcnn_resnet50_fpn", changed)
    weights = pretrained.load(recipe, file)
    assert weights.class_names == ()
    predictor = weights.variables["params"]["box_predictor"]
    np.testing.assert_array_equal(predictor["classes"]["bias"], [1, 2, 0])
    np.testing.assert_array_equal(predictor["deltas"]["bias"], range(4, 12))
    blank = Batch(np.zeros((1, 128, 128, 3), np.uint8), None, None, None)
    for known, names, new in (
        ((), "ab", 0),  # its own classes, it seems
        ((None, None), "ab", 4),  # --weights-classes fresh
        ((), "abc", 4),
    ):
        config = dataclasses.replace(recipe.detector, num_classes=len(names))
        detector = recipes.build(dataclasses.replace(recipe, detector=config))
        shapes = jax.eval_shape(detector.init, jax.random.key(0), blank)
        started = transfer.compare(weights._replace(class_names=known), shapes, names)
        assert len(started.new) == new and started.class_names == ()


def test_what_a_name_may_be_is_listed(tmp_path):
    with pytest.raises(WeightsError, match=r"lost\.pth: no such .*scratch.*resnet50"):
        pretrained.load(recipes.load("retinanet"), str(tmp_path / "lost.pth"))


def test_what_a_backbone_of_a_run_needs_is_known():
    recipe = recipes.with_options(recipes.load("faster_rcnn"), epsilon=0.5)
    assert pretrained._options(recipes.build(recipe)) == {"epsilon": 0.5}


def test_a_classifier_lies_below_the_stages_that_a_recipe_adds(checkpoint):
    backbone = ExtraStages(ResNet(18), channels=((8, 8),))
    recipe = dataclasses.replace(recipes.load("ssd"), backbone=backbone)
    weights = pretrained.load(recipe, checkpoint("resnet18"))
    layers = weights.variables["params"]["backbone"]["backbone"]
    assert layers["stem_conv"]["kernel"].shape == (7, 7, 3, 64)


@pytest.mark.parametrize(
    ("recipe", "name", "problem"),
    [
        ("faster_rcnn", "resnet18", "tensors do not fit resnet50"),
        ("faster_rcnn", "fcos_resnet50_fpn", "the nearest is fcos_resnet50_fpn"),
        ("ssd_efficientnet", "resnet18", "no file .* for a EfficientNetLite0"),
    ],
)
def test_files_of_other_networks_are_named(recipe, name, problem, checkpoint):
    file = checkpoint(name, {"head.weight": np.zeros(1)})
    with pytest.raises(WeightsError, match=rf"--weights .*/{name}\.pth: .*{problem}"):
        pretrained.load(recipes.load(recipe), file)


@pytest.mark.parametrize(
    ("recipe", "name"),
    [("ssd", "ssd300_vgg16"), ("retinanet", "retinanet_resnet50_fpn")],
)
def test_other_pixels_than_the_weights_take_are_warned_of(
    recipe, name, checkpoint, caplog
):
    recipe = recipes.load(recipe)
    weights = pretrained.load(recipe, checkpoint(name))
    pretrained.warn_of_other_pixels(recipe, weights)
    assert not caplog.records
    std = (0.125, 0.25, 0.5)
    other = dataclasses.replace(recipe.detector.preprocessing, std=std)
    detector = dataclasses.replace(recipe.detector, preprocessing=other)
    pretrained.warn_of_other_pixels(
        dataclasses.replace(recipe, detector=detector), weights
    )
    assert f"the recipe has {other.mean} and {std}: set" in caplog.text


def test_a_run_that_goes_on_reads_no_weights(tmp_path, monkeypatch):
    recipe = recipes.load("faster_rcnn")
    before = Transfer(recipe.weights, "0" * 64, 3, (), options={"epsilon": 0.5})
    save_run(tmp_path, toy.toy(), toy.data_set(), toy.config(), weights=before)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    monkeypatch.setattr(pretrained, "load", None)
    as_before, weights = train._first_weights(recipe, tmp_path)
    assert weights is None and as_before.backbone.epsilon == 0.5
    scratch = dataclasses.replace(recipe, weights=None)
    with pytest.raises(RunError, match=r"started from fasterrcnn_.*not from scratch"):
        train._first_weights(scratch, tmp_path)


@pytest.fixture
def photographs(tmp_path, rng):
    """A COCO json with four images of a cat and a widget each."""
    images = [
        {"id": i, "file_name": f"{i}.png", "height": 96, "width": 128} for i in range(4)
    ]
    boxes = [
        (label, image["id"], box)
        for image in images
        for label, box in ((1, [10, 10, 60, 50]), (2, [70, 30, 40, 60]))
    ]
    annotations = [
        {"id": i, "image_id": image, "category_id": label, "bbox": box, "iscrowd": 0}
        for i, (label, image, box) in enumerate(boxes, start=1)
    ]
    for image in images:
        pixels = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / image["file_name"])
    categories = [{"id": 1, "name": "widget"}, {"id": 2, "name": "Cat"}]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "all.json").write_text(json.dumps(truth))
    return tmp_path


@pytest.mark.slow
def test_a_detector_of_torchvision_learns_other_classes(photographs):
    state, _, _ = replay.load(GOLDEN / "ssd300_vgg16_s0.npz")
    file, workdir = photographs / "drawn.npz", photographs / "run"
    np.savez(file, **state)
    training = dataclasses.replace(
        recipes.load("ssd").training,
        steps=2,
        batch_size=4,
        learning_rate=1e-9,
        warmup_steps=0,
        pictures=0,
        frozen=("backbone/.*",),  # less is compiled
    )
    train.command("ssd")(
        source=DataOption((str(photographs / "all.json"),)),
        validation=dataclasses.replace(train.VALIDATION, validation_share=0.0),
        training=training,
        weights=str(file),
        workdir=workdir,
    )
    started = load_run(workdir).weights
    of_classes = {
        f"params/classes{level}/{part}"
        for level in range(3, 9)
        for part in ("kernel", "bias")
    }
    assert set(started.new) == of_classes and started.class_names == ("Cat",)
    before = flatten_dict(detectors.load(state), sep="/")
    after = flatten_dict(load_detector(workdir).variables, sep="/")
    for path in after.keys() - of_classes:
        np.testing.assert_allclose(after[path], before[path], atol=1e-6)
    # Of each of four boxes; torchvision's 17 is a cat, and 0 the background, our last.
    bias = after["params/classes3/bias"].reshape(4, 3)
    theirs = state["head.classification_head.module_list.0.bias"].reshape(4, 91)
    np.testing.assert_allclose(bias[:, 1:], theirs[:, [17, 0]], atol=1e-6)
    image = np.asarray(Image.open(photographs / "0.png"))
    names = jaxdet.load(workdir)(image).names
    assert names and set(names) <= {"widget", "Cat"}


@pytest.mark.slow
def test_a_detr_of_transformers_learns_other_classes(photographs, monkeypatch):
    """A small one, in the place of the published, with its 92 outputs."""
    state, _, _ = replay.load(GOLDEN / "detr_s0.npz")
    rng = np.random.default_rng(0)
    state["class_labels_classifier.weight"] = rng.normal(size=(92, 32)).astype("f4")
    state["class_labels_classifier.bias"] = np.arange(92, dtype=np.float32)
    file, workdir = photographs / "drawn.npz", photographs / "run"
    np.savez(file, **state)
    config = config_of("detr")
    tensors = tuple(transformers_maps.detr(resnet=18, depths=(2, 2), heads=4))
    small = detectors.MODELS["detr_resnet50"]._replace(
        make=functools.partial(detr, dataclasses.replace(config, num_classes=91)),
        backbone=ResNet(18),
        network=NetworkMap("detr_resnet50", tensors),
    )
    monkeypatch.setitem(detectors.MODELS, "detr_resnet50", small)
    published = recipes.load("detr")
    inputs = dataclasses.replace(published.training.input, canvases=((64, 96),))
    numbers = {"steps": 2, "batch_size": 4, "learning_rate": 1e-9, "pictures": 0}
    training = dataclasses.replace(published.training, **numbers, input=inputs)
    recipe = dataclasses.replace(
        published, detector=config, backbone=ResNet(18), training=training
    )
    monkeypatch.setattr(recipes, "load", lambda name: recipe)
    train.command("detr")(
        source=DataOption((str(photographs / "all.json"),)),
        validation=dataclasses.replace(train.VALIDATION, validation_share=0.0),
        training=dataclasses.replace(training, frozen=("(backbone|encoder).*",)),
        weights=str(file),
        workdir=workdir,
    )
    started = load_run(workdir).weights
    assert set(started.new) == {f"params/class_head/{x}" for x in ("kernel", "bias")}
    assert started.class_names == ("Cat",)
    before = flatten_dict(detectors.load(state), sep="/")
    after = flatten_dict(load_detector(workdir).variables, sep="/")
    for path in after.keys() - set(started.new):
        np.testing.assert_allclose(after[path], before[path], atol=1e-6)
    # COCO's 17 is a cat; the last output is that of no object.
    for part in ("kernel", "bias"):
        ours, theirs = (x[f"params/class_head/{part}"] for x in (after, before))
        np.testing.assert_allclose(ours[..., 1:], theirs[..., [17, 91]], atol=1e-6)
    image = np.asarray(Image.open(photographs / "0.png"))
    names = jaxdet.load(workdir)(image).names
    assert names and set(names) <= {"widget", "Cat"}
