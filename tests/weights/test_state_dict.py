"""Weights of torchvision, and what happens when they are of something else."""

import json
import re
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from tensorboardX.proto import graph_pb2, types_pb2

from jaxdet.detectors.ssd import ssd
from jaxdet.nn.backbones.alexnet import AlexNet
from jaxdet.nn.backbones.mobilenet import MobileNetV2
from jaxdet.nn.backbones.resnet import ResNet, ResNetHead
from jaxdet.nn.backbones.vgg import VGG16
from jaxdet.nn.heads import FCHead
from jaxdet.nn.layers import max_pool
from jaxdet.ops import images
from jaxdet.weights import published, state_dict
from jaxdet.weights.state_dict import WeightsError
from tests import optional
from tests.conftest import GOLDEN
from tests.detectors import scenes
from tests.golden import replay

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvisions_features(depth):
    state, golden, _ = replay.load(GOLDEN / f"resnet{depth}_s0.npz")
    variables = state_dict.resnet_from_torchvision(state)
    pixels = images.normalize(golden["in/image"], jnp.array([96, 128]), **IMAGENET)
    stages = jax.jit(ResNet(depth).apply)(variables, pixels[None])
    for level, features in stages.items():
        features = features[..., ::8]
        expected = golden[f"out/layer{level - 1}[:, ::8] (NCHW)"].transpose(0, 2, 3, 1)
        scale = np.abs(expected).max()
        chex.assert_trees_all_close(features / scale, expected / scale, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "network", "read", "window"),
    [
        ("alexnet", AlexNet(centered=False), state_dict.alexnet_from_torchvision, 3),
        ("vgg16", VGG16(), state_dict.vgg16_from_torchvision, 2),
    ],
)
def test_torchvisions_pooled_features(name, network, read, window):
    state, golden, _ = replay.load(GOLDEN / f"{name}_s0.npz", part="features.")
    pixels = images.normalize(golden["in/image"], jnp.array([96, 128]), **IMAGENET)
    features = jax.jit(network.apply)(read(state), pixels[None])[4]
    features = max_pool(features, window, (0, 0))[..., ::8]
    expected = golden["out/features[:, ::8] (NCHW)"].transpose(0, 2, 3, 1)
    scale = np.abs(expected).max()
    chex.assert_trees_all_close(features / scale, expected / scale, atol=1e-5)


def test_torchvisions_mobilenet():
    """On a canvas that is larger than the image.

    In float64: in 52 layers of drawn weights rounding grows so much that torchvision's
    own answers in float32 are 2e-4 away.
    """
    state, given, _ = replay.load(GOLDEN / "mobilenet_v2_s0.npz")
    golden = np.load(GOLDEN / "float64.npz")
    sizes = jnp.array([[96, 128]])
    pixels = np.zeros((1, 128, 160, 3))
    mean, std = (np.array(values)[None, None] for values in IMAGENET.values())
    pixels[0, :96, :128] = (given["in/image"] / 255 - mean) / std
    variables = state_dict.mobilenet_v2_from_torchvision(state, wide=True)
    with jax.enable_x64(True):
        network = MobileNetV2(wide=True, dtype=jnp.float64)
        variables = jax.tree.map(np.float64, variables)
        stages = jax.jit(network.apply)(variables, pixels, sizes)
        features = np.asarray(stages[5][:, :3, :4])
    logits = features.mean((1, 2)) @ state["classifier.1.weight"].T
    logits += state["classifier.1.bias"]
    for ours, key in (
        (features[..., ::8].transpose(0, 3, 1, 2), "out/features[:, ::8] (NCHW)"),
        (logits, "out/logits"),
    ):
        expected = golden[f"mobilenet_v2/{key}"]
        np.testing.assert_allclose(ours, expected, atol=1e-6 * np.abs(expected).max())
    narrow = state_dict.mobilenet_v2_from_torchvision(state)
    shapes = jax.eval_shape(MobileNetV2().init, jax.random.key(0), pixels)
    chex.assert_trees_all_equal_shapes(narrow, shapes)


def test_torchvisions_box_head():
    state, golden, _ = replay.load(GOLDEN / "alexnet_s0.npz")
    pixels = images.normalize(golden["in/image"], jnp.array([96, 128]), **IMAGENET)
    backbone = state_dict.alexnet_from_torchvision(state)
    features = jax.jit(AlexNet(centered=False).apply)(backbone, pixels[None])[4]
    # 2x3 cells become 6x6 by repetition, which is what its adaptive pooling does.
    features = max_pool(features, 3, (0, 0)).repeat(3, axis=1).repeat(2, axis=2)
    head = state_dict.alexnet_head_from_torchvision(state)
    fc7 = jax.jit(FCHead(4096).apply)(head, features)
    logits = fc7 @ state["classifier.6.weight"].T + state["classifier.6.bias"][None]
    scale = np.abs(golden["out/logits"]).max()
    expected = golden["out/logits"] / scale
    chex.assert_trees_all_close(logits / scale, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "read", "channels", "side", "first", "second"),
    [
        ("alexnet", state_dict.alexnet_head_from_torchvision, 256, 6, 1, 4),
        ("vgg16", state_dict.vgg16_head_from_torchvision, 512, 7, 0, 3),
    ],
)
def test_inputs_of_a_box_head_are_reordered(
    rng, name, read, channels, side, first, second
):
    regions = rng.normal(size=(2, side, side, channels)).astype(np.float32)
    fc6 = rng.normal(size=(3, side * side * channels)).astype(np.float32)
    state = {
        f"classifier.{first}.weight": fc6,
        f"classifier.{first}.bias": np.arange(3.0),
        f"classifier.{second}.weight": np.eye(3),
        f"classifier.{second}.bias": np.zeros(3),
    }
    others = {"classifier.6.weight": np.ones(5), "features.0.weight": np.ones(1)}
    variables = read(state | others)
    answer = FCHead(3).apply(variables, regions)
    flat = regions.transpose(0, 3, 1, 2).reshape(2, -1)
    expected = np.maximum(flat @ fc6.T + np.arange(3.0), 0)
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-3)
    back = state_dict.box_head_to_torchvision(variables, name)
    chex.assert_trees_all_equal(back, state)
    with pytest.raises(
        state_dict.WeightsError, match=rf"(?s)4 .* head .*\.{first}\.weight is m"
    ):
        read(others)


SMALL = {"resnet18": ResNet(18), "alexnet": AlexNet(), "vgg16": VGG16()}
SMALL |= {"resnet50": ResNet(50), "mobilenet_v2": MobileNetV2(wide=True)}
LARGE = {f"resnet{depth}": ResNet(depth) for depth in (34, 101, 152)}


@pytest.mark.parametrize(
    ("name", "network"),
    [
        *SMALL.items(),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in LARGE.items()),
    ],
)
def test_there_and_back(rng, name, network):
    pixels = jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), pixels)
    variables = jax.tree.map(lambda x: rng.random(x.shape, np.float32), shapes)
    state = state_dict.backbone_to_torchvision(variables, name)
    if name in SMALL:
        about = json.loads((GOLDEN / f"{name}_s0.json").read_text())["weights"]
        unused = r"(classifier|fc)\..*|.*\.num_batches_tracked"
        theirs = {key for key in about if not re.fullmatch(unused, key)}
        assert state.keys() == theirs
        for key, tensor in state.items():
            assert tensor.shape == tuple(about[key]["shape"])
            assert tensor.flags.c_contiguous  # other packages write only such ones
    beside = {"classifier.6.weight": np.ones(1), "bn1.num_batches_tracked": np.ones(())}
    family = "resnet" if name.startswith("resnet") else name
    wide = {"wide": True} if name.startswith("mobile") else {}
    read = getattr(state_dict, f"{family}_from_torchvision")
    chex.assert_trees_all_equal(read(state | beside, **wide), variables)


def test_variables_of_another_network():
    variables = {"params": {"conv1": {"kernel": np.zeros((3, 3, 3, 8))}}}
    with pytest.raises(
        state_dict.WeightsError,
        match=r"27 variables do not fit vgg16: .'params/conv1/k",
    ):
        state_dict.backbone_to_torchvision(variables, "vgg16")
    with pytest.raises(
        state_dict.WeightsError, match="no network 'vgg11'; allowed: alex"
    ):
        state_dict.backbone_to_torchvision(variables, "vgg11")


def test_a_resnet_is_divided():
    state, *_ = replay.load(GOLDEN / "resnet18_s0.npz")
    whole = state_dict.resnet_from_torchvision(state)
    head = state_dict.submodules(whole, r"stage5_.*")
    shapes = jax.eval_shape(
        ResNetHead(18).init, jax.random.key(0), jnp.zeros((1, 4, 4, 256))
    )
    chex.assert_trees_all_equal_shapes(head, shapes)
    rest = state_dict.submodules(whole, r"stem_.*|stage[2-4]_.*")
    for collection, trees in whole.items():
        assert {**head[collection], **rest[collection]} == trees


def fresh(depth=18):
    network = ResNet(depth, norm="frozen")
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    backbone = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    params = {"backbone": backbone["params"], "head": {"kernel": np.ones(3)}}
    return {"params": params, "constants": {"backbone": backbone["constants"]}}


def test_a_part_is_replaced_and_the_rest_left():
    state, *_ = replay.load(GOLDEN / "resnet18_s0.npz")
    part = state_dict.resnet_from_torchvision(state)
    variables = state_dict.put_into("backbone", part)(fresh())
    chex.assert_trees_all_equal(variables["params"]["backbone"], part["params"])
    chex.assert_trees_all_equal(variables["constants"]["backbone"], part["constants"])
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], np.ones(3))


def test_nothing_is_silently_left_as_it_was():
    state, *_ = replay.load(GOLDEN / "resnet18_s0.npz")
    replace = state_dict.put_into("backbone", state_dict.resnet_from_torchvision(state))
    with pytest.raises(
        state_dict.WeightsError, match=r"144 tensors of constants/backbone"
    ):
        replace(fresh(depth=50))
    del state["layer1.0.bn2.running_var"]
    with pytest.raises(
        state_dict.WeightsError,
        match=r"1 .* resnet18:\n  layer1\.0\.bn2\.running_var is m",
    ):
        state_dict.resnet_from_torchvision(state)
    part = state_dict.resnet_from_torchvision(
        state | {"layer1.0.bn2.running_var": np.ones(64)}
    )
    del part["constants"]["stage2_block0"]["norm2"]["frozen"]["var"]
    replace = state_dict.put_into("backbone", part)
    with pytest.raises(
        state_dict.WeightsError, match=r"norm2/frozen/var: absent given"
    ):
        replace(fresh())


@pytest.mark.parametrize(
    ("read", "name", "shape"),
    [
        (state_dict.resnet_from_torchvision, "features.0.weight", (64, 3, 11, 11)),
        (state_dict.alexnet_from_torchvision, "layer1.0.conv1.weight", (8, 8, 3, 3)),
        (state_dict.alexnet_from_torchvision, "bn1.weight", (8,)),
        (state_dict.alexnet_from_torchvision, "features.2.weight", (64, 64, 3, 3)),
        (state_dict.vgg16_from_torchvision, "features.3.weight", (192, 64, 5, 5)),
        (state_dict.vgg16_head_from_torchvision, "classifier.1.weight", (8, 8)),
        (state_dict.alexnet_head_from_torchvision, "classifier.0.weight", (8, 8)),
        (
            state_dict.mobilenet_v2_from_torchvision,
            "layer1.0.conv1.weight",
            (8, 8, 3, 3),
        ),
        (
            state_dict.mobilenet_v2_from_torchvision,
            "features.19.0.weight",
            (8, 8, 1, 1),
        ),
        (state_dict.efficientnet_lite0_from_torch, "_conv_stem.weight", (8,)),
        (state_dict.efficientnet_lite0_from_torch, "features.0.weight", (8, 3, 3, 3)),
    ],
)
def test_tensors_of_something_else(read, name, shape):
    with pytest.raises(WeightsError, match=re.escape(name)):
        read({name: np.zeros(shape)})


def test_npz_files_hold_state_dicts(tmp_path):
    np.savez(tmp_path / "some.npz", **{"conv1.weight": np.ones(3)})
    state = state_dict.read_state_dict(tmp_path / "some.npz")
    np.testing.assert_array_equal(state["conv1.weight"], np.ones(3))


@pytest.mark.parametrize(
    ("part", "read", "name", "shape"),
    [
        ("features.", state_dict.vgg16_from_torchvision, "features.0.weight", (64,)),
        (
            "classifier.",
            state_dict.vgg16_head_from_torchvision,
            "classifier.0.weight",
            (8, 9),
        ),
    ],
)
def test_tensors_of_other_shapes(part, read, name, shape):
    about = json.loads((GOLDEN / "vgg16_s0.json").read_text())["weights"]
    state = {
        key: np.broadcast_to(np.float32(0), weight["shape"])
        for key, weight in about.items()
    }
    state[name] = np.zeros(shape)
    message = (
        rf"1 tensors .* vgg16:\n  {re.escape(name)} has shape {re.escape(str(shape))}"
    )
    with pytest.raises(WeightsError, match=message):
        read(state)


def test_safetensors_hold_state_dicts(rng, tmp_path):
    state = {"conv1.weight": rng.random((2, 3), np.float32), "bn1.bias": np.ones(3)}
    save_file(state, tmp_path / "some.safetensors")
    chex.assert_trees_all_equal(
        state_dict.read_state_dict(tmp_path / "some.safetensors"), state
    )
    (tmp_path / "some.safetensors").write_bytes(b"none")
    with pytest.raises(
        state_dict.WeightsError, match=r"some\.safetensors: cannot be read"
    ):
        state_dict.read_state_dict(tmp_path / "some.safetensors")


@pytest.mark.optional
def test_pth_files_hold_state_dicts(rng, tmp_path):
    optional.need("torch", optional.TORCH)
    import torch

    state = {"conv1.weight": rng.random((2, 3), np.float32), "bn1.bias": np.ones(3)}
    tensors = {name: torch.tensor(tensor) for name, tensor in state.items()}
    torch.save(tensors, tmp_path / "some.pth")
    chex.assert_trees_all_equal(
        state_dict.read_state_dict(tmp_path / "some.pth"), state
    )


def test_what_reading_needs_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(
        state_dict.WeightsError, match=r"needs torch: pip install torch -"
    ):
        state_dict.read_state_dict(tmp_path / "some.pth")
    with pytest.raises(
        state_dict.WeightsError, match=r"needs safetensors.*: pip install"
    ):
        state_dict.read_state_dict(tmp_path / "some.safetensors")


@pytest.mark.parametrize("name", ["missing.npz", "broken.npz", "weights.txt"])
def test_files_that_hold_none(tmp_path, name):
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no archive")
    (tmp_path / "weights.txt").write_text("none")
    with pytest.raises(WeightsError, match=name):
        state_dict.read_state_dict(tmp_path / name)


def layers_of_a_graph():
    """Constants of SSD-MobileNetV2 by the names of their nodes, and their shapes."""
    root = "FeatureExtractor/MobilenetV2"
    shapes = {}

    def conv(name, before, after, *, kernel=1, depthwise=False):
        kind, last = ("depthwise_weights", 1) if depthwise else ("weights", after)
        shapes[f"{root}/{name}/{kind}"] = (kernel, kernel, before, last)
        for part in ("gamma", "beta", "moving_mean", "moving_variance"):
            shapes[f"{root}/{name}/BatchNorm/{part}"] = (after,)

    conv("Conv", 3, 32, kernel=3)
    channels, index = 32, 0
    plan = [(1, 16), (2, 24), (3, 32), (4, 64), (3, 96), (3, 160), (1, 320)]
    for count, after in plan:
        for _ in range(count):
            place = "expanded_conv" + (f"_{index}" if index else "")
            between = 6 * channels if index else channels
            if index:
                conv(f"{place}/expand", channels, between)
            conv(f"{place}/depthwise", between, between, kernel=3, depthwise=True)
            conv(f"{place}/project", between, after)
            channels, index = after, index + 1
    conv("Conv_1", 320, 1280)
    channels, looked_at = 1280, [(576, 3), (1280, 6)]
    extra = ((256, 512), (128, 256), (128, 256), (64, 128))
    for number, (between, after) in enumerate(extra, start=2):
        last = f"layer_19_2_Conv2d_{number}_3x3_s2_{after}"
        conv(f"layer_19_1_Conv2d_{number}_1x1_{between}", channels, between)
        conv(f"{last}_depthwise", between, between, kernel=3, depthwise=True)
        conv(last, between, after)
        channels = after
        looked_at.append((after, 6))
    for index, (before, count) in enumerate(looked_at):
        for name, outputs in (("Class", 91), ("BoxEncoding", 4)):
            place = f"BoxPredictor_{index}/{name}Predictor"
            shapes[f"{place}/weights"] = (3, 3, before, count * outputs)
            shapes[f"{place}/biases"] = (count * outputs,)
    return shapes


def test_every_constant_of_a_graph_has_its_place():
    """By its shape, and none is missing: the detector needs as many."""
    constants = {
        name: np.broadcast_to(np.float32(0), shape)
        for name, shape in layers_of_a_graph().items()
    }
    constants["MultipleGridAnchorGenerator/mul_55/x"] = np.zeros(6, np.float32)
    ours = state_dict.ssd_mobilenet_v2_from_tensorflow(
        constants, published.CATEGORY_IDS
    )
    detector = ssd(
        published.SSD_MOBILENET_V2_CONFIG, published.SSD_MOBILENET_V2_BACKBONE
    )
    shapes = jax.eval_shape(detector.init, jax.random.key(0), scenes.batch())
    chex.assert_trees_all_equal_shapes(ours, shapes)
    del constants["FeatureExtractor/MobilenetV2/expanded_conv_3/project/weights"]
    ours = state_dict.ssd_mobilenet_v2_from_tensorflow(
        constants, published.CATEGORY_IDS
    )
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal_shapes(ours, shapes)


def test_columns_of_a_graphs_heads_are_reordered():
    """Two boxes a cell, each with a background and four categories; y, x, h, w."""
    classes = np.array([0, 1, 2, 3, 4, 10, 11, 12, 13, 14], np.float32)
    deltas = np.array([1, 2, 3, 4, 11, 12, 13, 14], np.float32)
    kernel = np.ones((3, 3, 5, 1), np.float32)
    depthwise = np.arange(6, dtype=np.float32).reshape(1, 1, 6, 1)
    ours = state_dict.ssd_mobilenet_v2_from_tensorflow(
        {
            "BoxPredictor_0/ClassPredictor/weights": kernel * classes,
            "BoxPredictor_0/ClassPredictor/biases": classes,
            "BoxPredictor_0/BoxEncodingPredictor/weights": kernel * deltas,
            "BoxPredictor_0/BoxEncodingPredictor/biases": deltas,
            "FeatureExtractor/MobilenetV2/expanded_conv/depthwise/depthwise_weights": (
                depthwise
            ),
            "Postprocessor/iou_threshold": np.ones(1),
        },
        category_ids=(1, 4),
    )["params"]
    np.testing.assert_array_equal(ours["classes4"]["bias"], [1, 4, 11, 14])
    np.testing.assert_array_equal(ours["deltas4"]["bias"], [2, 1, 4, 3, 12, 11, 14, 13])
    for head in (ours["classes4"], ours["deltas4"]):
        np.testing.assert_array_equal(head["kernel"], kernel * head["bias"])
    looked = ours["backbone"]["stage1_block0"]["depthwise_conv"]["kernel"]
    np.testing.assert_array_equal(looked, depthwise.reshape(1, 1, 1, 6))


def test_a_graph_of_something_else():
    with pytest.raises(WeightsError, match=r"no SSD-MobileNetV2: .'Conv/x'"):
        state_dict.ssd_mobilenet_v2_from_tensorflow({"Conv/x": np.ones(1)}, (1,))
    strange = "FeatureExtractor/MobilenetV2/expanded_conv_17/project/biases"
    with pytest.raises(WeightsError, match=strange):
        state_dict.ssd_mobilenet_v2_from_tensorflow({strange: np.ones(1)}, (1,))


def test_constants_of_a_graph(tmp_path):
    graph = graph_pb2.GraphDef()
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    for name, data_type in (("whole", "DT_FLOAT"), ("integer", "DT_INT32")):
        node = graph.node.add(name=name, op="Const")
        node.attr["dtype"].type = types_pb2.DataType.Value(data_type)
        tensor = node.attr["value"].tensor
        tensor.tensor_content = values.tobytes()
        for side in values.shape:
            tensor.tensor_shape.dim.add(size=side)
    for name, listed, shape in (("scalar", [0.5], ()), ("filled", [2.0], (2, 2))):
        node = graph.node.add(name=name, op="Const")
        node.attr["dtype"].type = types_pb2.DT_FLOAT
        node.attr["value"].tensor.float_val.extend(listed)
        for side in shape:
            node.attr["value"].tensor.tensor_shape.dim.add(size=side)
    graph.node.add(name="sum", op="Add")
    file = tmp_path / "graph.pb"
    file.write_bytes(graph.SerializeToString())
    constants = state_dict.read_frozen_graph(file)
    assert constants.keys() == {"whole", "scalar", "filled"}
    np.testing.assert_array_equal(constants["whole"], values)
    np.testing.assert_array_equal(constants["scalar"], [0.5])
    np.testing.assert_array_equal(constants["filled"], [[2, 2], [2, 2]])


@pytest.mark.parametrize("content", [None, b"\x0a\xff no graph", "cut"])
def test_files_that_are_no_graph(tmp_path, content):
    file = tmp_path / "graph.pb"
    if content == "cut":
        graph = graph_pb2.GraphDef()
        graph.node.add(name="sum" * 100, op="Add")
        content = graph.SerializeToString()[:-20]
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"graph\.pb: cannot be read"):
        state_dict.read_frozen_graph(file)
