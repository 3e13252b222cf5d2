"""Backbones with weights of torchvision give its features."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdet.nn.backbones.alexnet import AlexNet
from jaxdet.nn.backbones.efficientnet import EfficientNetLite0
from jaxdet.nn.backbones.mobilenet import MobileNetV2
from jaxdet.nn.backbones.resnet import ResNet, ResNetHead
from jaxdet.nn.backbones.vgg import VGG16
from jaxdet.nn.heads import FCHead
from jaxdet.nn.layers import max_pool
from jaxdet.ops import images
from jaxdet.weights import backbones, mapping
from jaxdet.weights.state_dict import WeightsError, read_state_dict
from tests.conftest import GOLDEN
from tests.golden import replay
from tests.weights import torch_files

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def _pixels(golden):
    return images.normalize(golden["in/image"], jnp.array([96, 128]), **IMAGENET)[None]


def _assert_close(ours, theirs):
    scale = np.abs(theirs).max()
    chex.assert_trees_all_close(ours / scale, theirs / scale, atol=1e-5)


@pytest.mark.parametrize("depth", [18, pytest.param(50, marks=pytest.mark.slow)])
def test_features_of_resnets(depth):
    state, golden, _ = replay.load(GOLDEN / f"resnet{depth}_s0.npz")
    variables = backbones.load(state, f"resnet{depth}")
    stages = jax.jit(ResNet(depth).apply)(variables, _pixels(golden))
    for level, features in stages.items():
        expected = golden[f"out/layer{level - 1}[:, ::8] (NCHW)"].transpose(0, 2, 3, 1)
        _assert_close(features[..., ::8], expected)


@pytest.mark.parametrize(
    ("name", "network", "window"),
    [("alexnet", AlexNet(centered=False), 3), ("vgg16", VGG16(), 2)],
)
def test_pooled_features(name, network, window):
    state, golden, _ = replay.load(GOLDEN / f"{name}_s0.npz", part="features.")
    variables = backbones.load(state, name)
    features = jax.jit(network.apply)(variables, _pixels(golden))[4]
    features = max_pool(features, window, (0, 0))[..., ::8]
    _assert_close(features, golden["out/features[:, ::8] (NCHW)"].transpose(0, 2, 3, 1))


@pytest.mark.slow
def test_features_of_mobilenet():
    """On a canvas that is larger than the image.

    In float64: in 52 layers of drawn weights rounding grows so much that torchvision's
    own results in float32 are 2e-4 away.
    """
    state, given, _ = replay.load(GOLDEN / "mobilenet_v2_s0.npz")
    golden = np.load(GOLDEN / "float64.npz")
    sizes = jnp.array([[96, 128]])
    pixels = np.zeros((1, 128, 160, 3))
    mean, std = (np.array(values)[None, None] for values in IMAGENET.values())
    pixels[0, :96, :128] = (given["in/image"] / 255 - mean) / std
    variables = backbones.load(state, "mobilenet_v2_wide")
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


@pytest.mark.slow
def test_logits_of_alexnets_head():
    state, golden, _ = replay.load(GOLDEN / "alexnet_s0.npz")
    variables = backbones.load(state, "alexnet")
    features = jax.jit(AlexNet(centered=False).apply)(variables, _pixels(golden))[4]
    # 2x3 cells become 6x6 by repetition, which is what its adaptive pooling does.
    features = max_pool(features, 3, (0, 0)).repeat(3, axis=1).repeat(2, axis=2)
    head = backbones.load(state, "alexnet_head")
    fc7 = jax.jit(FCHead(4096).apply)(head, features)
    logits = fc7 @ state["classifier.6.weight"].T + state["classifier.6.bias"][None]
    _assert_close(logits, golden["out/logits"])


@pytest.mark.parametrize(
    ("name", "channels", "size", "first", "second"),
    [("alexnet_head", 256, 6, 1, 4), ("vgg16_head", 512, 7, 0, 3)],
)
def test_inputs_of_a_box_head_are_reordered(rng, name, channels, size, first, second):
    regions = rng.normal(size=(2, size, size, channels)).astype(np.float32)
    fc6 = rng.normal(size=(3, size * size * channels)).astype(np.float32)
    state = {
        f"classifier.{first}.weight": fc6,
        f"classifier.{first}.bias": np.arange(3.0),
        f"classifier.{second}.weight": np.eye(3),
        f"classifier.{second}.bias": np.zeros(3),
    }
    others = {"classifier.6.weight": np.ones(5), "features.0.weight": np.ones(1)}
    variables = backbones.load(state | others, name)
    hidden = FCHead(3).apply(variables, regions)
    flat = regions.transpose(0, 3, 1, 2).reshape(2, -1)
    expected = np.maximum(flat @ fc6.T + np.arange(3.0), 0)
    np.testing.assert_allclose(hidden, expected, rtol=1e-4, atol=1e-3)
    chex.assert_trees_all_equal(backbones.export(variables, name), state)


NETWORKS = {f"resnet{depth}": ResNet(depth) for depth in (18, 34, 50, 101, 152)}
NETWORKS |= {"alexnet": AlexNet(), "vgg16": VGG16(), "mobilenet_v2": MobileNetV2()}
NETWORKS |= {"mobilenet_v2_wide": MobileNetV2(wide=True)}
NETWORKS |= {"efficientnet_lite0": EfficientNetLite0()}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_variable_there_and_back(name):
    """Zeros of the right shapes; a network has no other tensors than its golden one."""
    pixels = jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(NETWORKS[name].init, jax.random.key(0), pixels)
    blank = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)
    state = backbones.export(blank, name)
    assert len(state) == len(jax.tree.leaves(shapes))
    chex.assert_trees_all_equal_shapes(backbones.load(state, name), shapes)
    golden = GOLDEN / f"{name.removesuffix('_wide')}_s0.json"
    if golden.exists():
        weights = json.loads(golden.read_text())["weights"]
        for key, tensor in state.items():
            assert tensor.shape == tuple(weights[key]["shape"])
        chex.assert_trees_all_equal_shapes(
            backbones.load({k: np.zeros(w["shape"]) for k, w in weights.items()}, name),
            shapes,
        )


@pytest.mark.parametrize(
    ("suffix", "write"), [(".safetensors", save_file), (".pth", torch_files.write)]
)
def test_files_of_whole_networks(tmp_path, suffix, write):
    """timm's ResNets, in `.safetensors`, have torchvision's names."""
    state, *_ = replay.load(GOLDEN / "resnet18_s0.npz")
    write(state, tmp_path / f"some{suffix}")
    read = read_state_dict(tmp_path / f"some{suffix}")
    variables = backbones.load(read, "resnet18")
    chex.assert_trees_all_equal(variables, backbones.load(state, "resnet18"))


def test_a_resnet_is_divided():
    pixels = jnp.zeros((1, 64, 64, 3))
    whole = jax.eval_shape(ResNet(18).init, jax.random.key(0), pixels)
    head = jax.eval_shape(
        ResNetHead(18).init, jax.random.key(0), jnp.zeros((1, 4, 4, 256))
    )
    stage5 = mapping.select_submodules(whole, r"stage5_.*")
    chex.assert_trees_all_equal_shapes(stage5, head)


def test_unknown_networks_and_tensors_of_others():
    with pytest.raises(WeightsError, match="no network 'vgg11'; allowed: alexnet, "):
        backbones.load({}, "vgg11")
    tensor = "layer1.0.conv1.weight"
    with pytest.raises(WeightsError, match=rf"(?s) alexnet:.* {tensor} is left over"):
        backbones.load({tensor: np.zeros((8, 8))}, "alexnet")
