"""Weights of torchvision, and what happens when they are of something else."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet import weights
from jaxdet.nn.alexnet import AlexNet
from jaxdet.nn.conv import max_pool
from jaxdet.nn.heads import FCHead
from jaxdet.nn.resnet import ResNet, ResNetHead
from jaxdet.nn.vgg import VGG16
from jaxdet.ops import images
from tests.conftest import GOLDEN
from tests.golden import replay

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvisions_features(depth):
    state, golden, _ = replay.load(GOLDEN / f"resnet{depth}_s0.npz")
    variables = weights.resnet_from_torchvision(state)
    pixels = images.normalise(golden["in/image"], jnp.array([96, 128]), **IMAGENET)
    stages = jax.jit(ResNet(depth).apply)(variables, pixels[None])
    for level, features in stages.items():
        features = features[..., ::8]
        expected = golden[f"out/layer{level - 1}[:, ::8] (NCHW)"].transpose(0, 2, 3, 1)
        scale = np.abs(expected).max()
        chex.assert_trees_all_close(features / scale, expected / scale, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "network", "read", "window"),
    [
        ("alexnet", AlexNet(centred=False), weights.alexnet_from_torchvision, 3),
        ("vgg16", VGG16(), weights.vgg16_from_torchvision, 2),
    ],
)
def test_torchvisions_pooled_features(name, network, read, window):
    state, golden, _ = replay.load(GOLDEN / f"{name}_s0.npz", part="features.")
    pixels = images.normalise(golden["in/image"], jnp.array([96, 128]), **IMAGENET)
    features = jax.jit(network.apply)(read(state), pixels[None])[4]
    features = max_pool(features, window, (0, 0))[..., ::8]
    expected = golden["out/features[:, ::8] (NCHW)"].transpose(0, 2, 3, 1)
    scale = np.abs(expected).max()
    chex.assert_trees_all_close(features / scale, expected / scale, atol=1e-5)


def test_torchvisions_region_head():
    state, golden, _ = replay.load(GOLDEN / "alexnet_s0.npz")
    pixels = images.normalise(golden["in/image"], jnp.array([96, 128]), **IMAGENET)
    backbone = weights.alexnet_from_torchvision(state)
    features = jax.jit(AlexNet(centred=False).apply)(backbone, pixels[None])[4]
    # 2x3 cells become 6x6 by repetition, which is what its adaptive pooling does.
    features = max_pool(features, 3, (0, 0)).repeat(3, axis=1).repeat(2, axis=2)
    head = weights.alexnet_head_from_torchvision(state)
    fc7 = jax.jit(FCHead(4096).apply)(head, features)
    logits = fc7 @ state["classifier.6.weight"].T + state["classifier.6.bias"][None]
    scale = np.abs(golden["out/logits"]).max()
    expected = golden["out/logits"] / scale
    chex.assert_trees_all_close(logits / scale, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("read", "channels", "first", "second"),
    [
        (weights.alexnet_head_from_torchvision, 256, 1, 4),
        (weights.vgg16_head_from_torchvision, 512, 0, 3),
    ],
)
def test_inputs_of_a_region_head_are_reordered(rng, read, channels, first, second):
    regions = rng.normal(size=(2, 2, 2, channels)).astype(np.float32)
    fc6 = rng.normal(size=(3, 4 * channels)).astype(np.float32)
    state = {
        f"classifier.{first}.weight": fc6,
        f"classifier.{first}.bias": np.arange(3.0),
        f"classifier.{second}.weight": np.eye(3),
        f"classifier.{second}.bias": np.zeros(3),
        "classifier.6.weight": np.ones((5, 3)),
        "features.0.weight": np.ones((1, 3, 3, 3)),
    }
    answer = FCHead(3).apply(read(state), regions)
    flat = regions.transpose(0, 3, 1, 2).reshape(2, -1)
    expected = np.maximum(flat @ fc6.T + np.arange(3.0), 0)
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(weights.WeightsError, match=r"no fc6 .*features\.0\.weight"):
        read({"features.0.weight": state["features.0.weight"]})


def test_a_resnet_is_divided():
    state, *_ = replay.load(GOLDEN / "resnet18_s0.npz")
    whole = weights.resnet_from_torchvision(state)
    head = weights.submodules(whole, r"stage5_.*")
    shapes = jax.eval_shape(
        ResNetHead(18).init, jax.random.key(0), jnp.zeros((1, 4, 4, 256))
    )
    chex.assert_trees_all_equal_shapes(head, shapes)
    rest = weights.submodules(whole, r"stem_.*|stage[2-4]_.*")
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
    part = weights.resnet_from_torchvision(state)
    variables = weights.put_into("backbone", part)(fresh())
    chex.assert_trees_all_equal(variables["params"]["backbone"], part["params"])
    chex.assert_trees_all_equal(variables["constants"]["backbone"], part["constants"])
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], np.ones(3))


def test_nothing_is_silently_left_as_it_was():
    state, *_ = replay.load(GOLDEN / "resnet18_s0.npz")
    replace = weights.put_into("backbone", weights.resnet_from_torchvision(state))
    with pytest.raises(
        weights.WeightsError, match=r"144 tensors of constants/backbone"
    ):
        replace(fresh(depth=50))
    del state["layer1.0.bn2.running_var"]
    replace = weights.put_into("backbone", weights.resnet_from_torchvision(state))
    with pytest.raises(weights.WeightsError, match=r"norm2/frozen/var: absent given"):
        replace(fresh())


@pytest.mark.parametrize(
    ("read", "name", "shape"),
    [
        (weights.resnet_from_torchvision, "features.0.weight", (64, 3, 11, 11)),
        (weights.alexnet_from_torchvision, "layer1.0.conv1.weight", (8, 8, 3, 3)),
        (weights.alexnet_from_torchvision, "bn1.weight", (8,)),
        (weights.alexnet_from_torchvision, "features.2.weight", (64, 64, 3, 3)),
        (weights.vgg16_from_torchvision, "features.3.weight", (192, 64, 5, 5)),
        (weights.vgg16_from_torchvision, "features.0.weight", (64,)),
        (weights.vgg16_head_from_torchvision, "classifier.1.weight", (8, 8)),
        (weights.alexnet_head_from_torchvision, "classifier.0.weight", (8, 8)),
    ],
)
def test_tensors_of_something_else(read, name, shape):
    with pytest.raises(weights.WeightsError, match=re.escape(name)):
        read({name: np.zeros(shape)})


def test_npz_files_hold_state_dicts(tmp_path):
    np.savez(tmp_path / "some.npz", **{"conv1.weight": np.ones(3)})
    state = weights.read_state_dict(tmp_path / "some.npz")
    np.testing.assert_array_equal(state["conv1.weight"], np.ones(3))


@pytest.mark.parametrize("name", ["missing.npz", "broken.npz", "weights.txt"])
def test_files_that_hold_none(tmp_path, name):
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no archive")
    (tmp_path / "weights.txt").write_text("none")
    with pytest.raises(weights.WeightsError, match=name):
        weights.read_state_dict(tmp_path / name)
