"""Recipes: they fit their data and their weights, and train."""

import dataclasses
import functools
import json
import pathlib
import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments import evaluate, pretrained, train
from experiments import recipe as recipes
from experiments.data_option import DataOption, ValidationOption
from jaxdet.config import ConfigError
from jaxdet.data import batching
from jaxdet.data.dataset import DataError
from jaxdet.data.formats import digits
from jaxdet.detectors.retinanet import RetinaNetConfig
from jaxdet.inference.load import load_detector
from jaxdet.nn.backbones.efficientnet import EfficientNetLite0
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.training import optimizer
from jaxdet.training.run_folder import load_run
from jaxdet.training.step import create_state
from jaxdet.weights import backbones, detectors, published, transfer
from jaxdet.weights.transfer import Weights

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
NAMES = tuple(recipes.summaries())
DIGITS = [name for name in NAMES if name.endswith("_digits")]
SMALL = [name for name in NAMES if name.endswith("_small")]
TRAINED = {*DIGITS, *SMALL, "retinanet_efficientnet"}
TRAINED -= {"fast_rcnn_digits", "sppnet_digits"}  # trained together, below
# One is trained by a notebook's test, one is a part of mask_rcnn_small.
TRAINED -= {"retinanet_small", "faster_rcnn_small"}
FINE_TUNED = [name for name in NAMES if recipes.load(name).weights in detectors.MODELS]
SHORT = {
    "steps": 2,
    "batch_size": 4,
    "warmup_steps": 1,
    "checkpoint_every": 1,
    "evaluate_every": 0,
    "log_every": 1,
}


@pytest.fixture
def data_of(voc_folder, coco_folder, few_digits, monkeypatch):
    """The options that name the data of a recipe, as its command takes them."""
    monkeypatch.setenv("JAXDET_CACHE", str(voc_folder / "cache"))
    monkeypatch.setattr(digits, "load", few_digits)

    def data(name):
        if name.endswith("_digits"):
            return {}
        if name.endswith(("_voc", "_coco")):
            folder = voc_folder if name.endswith("_voc") else coco_folder
            return {"source": DataOption((str(folder),))}
        files = coco_folder / "annotations"
        test = str(files / "instances_val2017.json")
        return {
            "source": DataOption(
                (str(files / "instances_train2017.json"),),
                (coco_folder / "train2017",),
            ),
            "validation": ValidationOption((test,), (coco_folder / "val2017",)),
        }

    return data


@pytest.fixture
def asked(monkeypatch, data_of):
    """What the command of a recipe asks `train` for."""

    def ask(name, **options):
        calls = []
        monkeypatch.setattr(
            train, "train", lambda *parts, **more: calls.append((parts, more))
        )
        train.command(name)(**data_of(name) | options)
        ((parts, more),) = calls
        return (*parts, more)

    return ask


def shapes(detector, data_set, training):
    """A batch, and a state whose arrays are shapes alone."""
    alone = dataclasses.replace(training.input, workers=0)
    batches = batching.training_batches(
        data_set, alone, batch_size=1, seed=0, start=0, stop=1
    )
    (batch,) = batches
    make = functools.partial(create_state, detector, training)
    return batch, jax.eval_shape(make, batch)


def trace(detector, data_set, training):
    """Finds what does not fit together, without computing anything."""
    batch, state = shapes(detector, data_set, training)
    loss = functools.partial(detector.loss, key=jax.random.key(0))
    total, _ = jax.eval_shape(loss, state.variables, batch)
    assert total.shape == ()
    return state


def dtypes(detector):
    """Those of all parts of a detector."""
    return set(re.findall(r'"dtype": "(\w+)"', json.dumps(detector.recipe)))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in FINE_TUNED))
        for name in NAMES
        if "sppnet" not in name
    ],
)
def test_recipes_fit_their_data(name, asked):
    detector, data_set, training, options = asked(
        name, weights="scratch", precision="bfloat16"
    )
    assert training.frozen == () and options["weights"] is None
    assert detector.num_classes in (len(data_set.class_names), None)
    assert dtypes(detector) == {"bfloat16"}
    assert options["workdir"] == pathlib.Path("runs", name)
    assert (options["metrics"] is evaluate.METRICS["voc07"]) == name.endswith("_voc")
    for part in (data_set, options["validation"]):
        batching.check(part, training.input, batch_size=training.batch_size)
    trace(detector, data_set, training)


@pytest.mark.parametrize(
    ("name", "network", "replaced", "frozen"),
    [
        ("rcnn_voc", "alexnet", {"backbone", "box_head"}, 0),
        pytest.param(
            *("sppnet_voc", "vgg16", {"backbone"}, 13), marks=pytest.mark.slow
        ),
        ("fast_rcnn_voc", "vgg16", {"backbone", "box_head"}, 4),
        ("faster_rcnn_voc", "vgg16", {"backbone", "box_head"}, 4),
        ("faster_rcnn_c4_voc", "resnet50", {"backbone", "box_head"}, 2),
        ("ssd300_voc", "vgg16", {"backbone"}, 0),
        ("retinanet_coco", "resnet50", {"backbone"}, 2),
        ("ssd_mobilenet_v2", "mobilenet_v2", {"backbone"}, 2),
        ("mask_rcnn_coco", "resnet50", {"backbone"}, 2),
    ],
)
def test_torchvisions_weights_fit(
    name, network, replaced, frozen, asked, monkeypatch, tmp_path
):
    about = json.loads((GOLDEN / f"{network}_s0.json").read_text())
    state = {
        # Zeros that take no memory until somebody orders them otherwise.
        weight: np.broadcast_to(np.float32(0), values["shape"])
        for weight, values in about["weights"].items()
    }
    monkeypatch.setattr(pretrained, "read_state_dict", lambda file: state)
    file = tmp_path / "a.pth"
    file.touch()
    detector, data_set, training, options = asked(name, weights=str(file))
    before = shapes(detector, data_set, training)[1].variables
    if name == "sppnet_voc":  # others are traced without weights
        trace(detector, data_set, training)
    started = transfer.compare(options["weights"], before, data_set.class_names)
    new = {path.split("/")[1] for path in started.new}
    # SSD's backbones go on with layers of their own.
    assert before["params"].keys() - new == replaced - ({"backbone"} & new)
    assert len(training.frozen) == frozen


def test_ssd_keeps_a_part_of_the_fully_connected_layers(monkeypatch):
    # Of 2 channels to 8, then of 8 to 8; numbers tell which row and column they are of.
    fc6 = np.zeros((7, 7, 2, 8)) + np.arange(0, 700, 100)[:, None, None, None]
    fc6 += np.arange(0, 70, 10)[:, None, None] + np.arange(8)
    head = {
        "fc0": {"kernel": fc6.reshape(-1, 8), "bias": np.arange(8)},
        "fc1": {"kernel": np.arange(64).reshape(8, 8), "bias": np.arange(8)},
    }
    convs = {"conv5_3": {"bias": np.ones(2)}}
    parts = {"vgg16": {"params": convs}, "vgg16_head": {"params": head}}
    monkeypatch.setattr(backbones, "load", lambda state, name: parts[name])
    vgg16 = {
        "conv5_3": {"bias": np.zeros(2)},
        "conv6": {"kernel": np.zeros((3, 3, 2, 2)), "bias": np.zeros(2)},
        "conv7": {"kernel": np.zeros((1, 1, 2, 2)), "bias": np.zeros(2)},
        "unit4_3": {"scale": np.full(2, 20.0)},
    }
    fresh = {"params": {"backbone": {"backbone": vgg16, "level5_conv1": {}}}}
    weights = Weights(pretrained._below("backbone", pretrained._for_ssd({})), "", "")
    params = transfer.apply(weights, fresh, ())["params"]["backbone"]
    after = params["backbone"]
    kept = np.array([[0, 30, 60], [300, 330, 360], [600, 630, 660]])
    for channel in (0, 1):
        for output, place in enumerate((0, 4)):
            kernel = after["conv6"]["kernel"][:, :, channel, output]
            np.testing.assert_array_equal(kernel, kept + place)
    np.testing.assert_array_equal(after["conv6"]["bias"], [0, 4])
    np.testing.assert_array_equal(after["conv7"]["kernel"], [[[[0, 4], [32, 36]]]])
    np.testing.assert_array_equal(after["conv7"]["bias"], [0, 4])
    np.testing.assert_array_equal(after["conv5_3"]["bias"], [1, 1])
    np.testing.assert_array_equal(after["unit4_3"]["scale"], [20, 20])


@pytest.mark.parametrize(
    ("names", "option", "expected"),
    [
        (("cat",), "by-name", ("cat",)),
        (("cat",), "fresh", (None,)),
        ((), "by-name", ()),
        ((), "fresh", (None,) * 10),  # as many as the data has
    ],
)
def test_what_weights_know_of_classes_may_be_left_out(
    names, option, expected, asked, monkeypatch
):
    weights = Weights({}, "a.npz", "0" * 64, names)
    monkeypatch.setattr(pretrained, "load", lambda recipe, source: weights)
    options = asked("retinanet_small", weights="a.npz", weights_classes=option)[-1]
    assert options["weights"].class_names == expected


@pytest.fixture
def no_efficientnet(monkeypatch, tmp_path):
    """EfficientNet-Lite0's published weights are zeros."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    init = functools.partial(EfficientNetLite0().init, jax.random.key(0))
    zeros = jax.tree.map(lambda x: np.zeros(x.shape), jax.eval_shape(init, image))
    file = tmp_path / "efficientnet.pth"
    file.touch()
    monkeypatch.setattr(published, "weights_file", lambda name: file)
    monkeypatch.setattr(published, "efficientnet_lite0", lambda: zeros)


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("retinanet_efficientnet", "backbone"),
        ("ssd_efficientnet", "backbone/backbone"),
    ],
)
def test_fine_tuning_replaces_the_backbone_and_freezes_its_first_stages(
    name, backbone, no_efficientnet, asked
):
    detector, data_set, training, options = asked(name)
    fresh = shapes(detector, data_set, training)[1].variables
    started = transfer.compare(options["weights"], fresh, data_set.class_names)
    published = re.compile(rf"(params/|constants/)?{backbone}/(stem|stage)")
    assert not any(map(published.match, started.new))
    paths = {f"params/{path}" for path in flatten_dict(fresh["params"], sep="/")}
    assert all(map(published.match, paths - set(started.new)))
    trainable, frozen = optimizer.partition(fresh["params"], training.frozen)
    first = re.compile(rf"{backbone}/(stem|stage[12])_")
    assert all(map(first.match, frozen)) and not any(map(first.match, trainable))


@pytest.mark.parametrize("name", FINE_TUNED)
def test_the_layers_that_others_freeze_are_frozen(name):
    """Those of its defaults; all batch norms are constants."""
    recipe = recipes.load(name)
    paths = {
        tensor.ours.removeprefix("params/"): tensor.theirs
        for tensor in detectors.MODELS[recipe.weights].network.tensors
        if tensor.ours.startswith("params/")
    }
    resnet = r"(body|conv_encoder\.model)\.(conv1|layer1)"
    first = re.compile(rf"(model\.)?backbone\.({resnet}|features\.[02])\.")
    trainable, frozen = optimizer.partition(
        unflatten_dict(paths, sep="/"), recipe.frozen
    )
    assert all(map(first.match, frozen.values()))
    assert not any(map(first.match, trainable.values()))


@pytest.mark.parametrize(
    "name", ["retinanet_coco", "faster_rcnn_c4_voc", "retinanet_efficientnet"]
)
def test_nothing_can_be_frozen_from_scratch(name, asked):
    numbers = dataclasses.replace(recipes.load(name).training, frozen=("fpn/.*",))
    with pytest.raises(ConfigError, match=r"fpn.*without pretrained weights"):
        asked(name, training=numbers, weights="scratch")


def test_an_sppnet_needs_weights(asked):
    with pytest.raises(ConfigError, match="SPP-net never trains its convolutions"):
        asked("sppnet_voc")


def test_the_number_of_classes_follows_the_data(few_digits):
    data_set = few_digits("validation")
    recipe = RetinaNetConfig(num_classes=80)
    adapt = functools.partial(recipes.with_classes_of, data_set, recipe=recipe)
    assert adapt(recipe).num_classes == 10
    asked = dataclasses.replace(recipe, num_classes=10, channels=8)
    assert adapt(asked) == asked
    with pytest.raises(ConfigError, match=r"num-classes is 7.*has 10 classes"):
        adapt(dataclasses.replace(recipe, num_classes=7))
    masks = recipes.load("mask_rcnn_coco").detector
    assert adapt(masks, recipe=masks).faster_rcnn.num_classes == 10
    boxes = dataclasses.replace(masks.faster_rcnn, num_classes=7)
    seven = dataclasses.replace(masks, faster_rcnn=boxes)
    with pytest.raises(ConfigError, match=r"--detector\.faster-rcnn\.num-classes is 7"):
        adapt(seven, recipe=masks)


def test_backbones_can_be_computed_again(asked):
    for remat in (False, True):
        detector, *_ = asked("faster_rcnn_coco", remat=remat)
        assert f'"remat": {json.dumps(remat)}' in json.dumps(detector.recipe)


def test_data_is_checked_before_weights_are_read(asked, monkeypatch, tmp_path):
    def read(*_):
        raise AssertionError("weights are read too early")

    monkeypatch.setattr(pretrained, "load", read)
    nowhere = DataOption((str(tmp_path / "nowhere"),))
    with pytest.raises(DataError, match="not there"):
        asked("retinanet_coco", source=nowhere, weights="some.pth")
    with pytest.raises(DataError, match="--data is missing"):
        asked("retinanet_coco", source=DataOption(), weights="some.pth")
    seven = dataclasses.replace(recipes.load("ssd300_voc").detector, num_classes=7)
    with pytest.raises(ConfigError, match="num-classes is 7"):
        asked("ssd300_voc", detector=seven, weights="some.pth")
    with pytest.raises(DataError, match=r"proposals p\.npz; the detector takes none"):
        asked("ssd300_voc", proposal_files=(pathlib.Path("p.npz"),))


@pytest.fixture
def trained(data_of, tmp_path, monkeypatch):
    """Trains a recipe for two steps with a narrow backbone; returns its log."""
    load = recipes.load

    def narrow(name):
        recipe = load(name)
        if not isinstance(recipe.backbone, ResNet):
            return recipe
        backbone = recipe.backbone.clone(depth=10, width=8)
        return dataclasses.replace(recipe, backbone=backbone)

    def run(name):
        recipe = recipes.load(name)
        small = {} if name in DIGITS else {"canvases": ((64, 64),)}
        inputs = dataclasses.replace(recipe.training.input, **small)
        more = {"frozen": recipe.frozen, "input": inputs}
        training = dataclasses.replace(recipe.training, **SHORT, **more)
        train.command(name)(training=training, **data_of(name))
        return pathlib.Path("runs", name, "log.txt").read_text()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipes, "load", narrow)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TRAINED))
def test_recipes_train(name, trained, no_efficientnet):
    assert "evaluation at step 2" in trained(name)


@pytest.mark.slow
def test_sppnet_takes_the_convolutions_of_a_fast_rcnn(trained, voc_folder):
    parts = []
    for name in ("fast_rcnn_digits", "sppnet_digits"):
        assert "evaluation at step 2" in trained(name)
        variables = load_detector(f"runs/{name}", step="latest").variables
        parts.append(variables["params"]["backbone"])
    jax.tree.map(np.testing.assert_array_equal, *parts)
    assert list((voc_folder / "cache" / "proposals").iterdir())
    run = load_run("runs/sppnet_digits")
    assert run.weights.class_names == run.class_names
    hints = [
        pretrained.load(recipes.load("sppnet_digits"), f"runs/{name}").hint
        for name in ("fast_rcnn_digits", "sppnet_digits")
    ]
    assert "fast_rcnn_digits was trained from scratch" in hints[0] and not hints[1]
