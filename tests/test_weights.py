"""Weights of torchvision, and what happens when they are of something else."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet import weights
from jaxdet.nn.resnet import ResNet
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


def test_tensors_of_something_else():
    state = {"features.0.weight": np.zeros((64, 3, 11, 11))}
    with pytest.raises(weights.WeightsError, match=r"features\.0\.weight"):
        weights.resnet_from_torchvision(state)


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
