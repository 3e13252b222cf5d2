"""VGG-16: size, padding, frozen layers."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from jaxdet.nn.backbones.vgg import VGG16, VGG16SSD, L2Norm, first_convs, layers
from tests.nn import drawn


def test_parameter_count():
    # torchvision's documented total, less the classifier.
    shapes = jax.eval_shape(VGG16().init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 14_714_688


@pytest.mark.parametrize(
    ("norm", "size"), [("none", (64, 48)), ("none", (75, 49)), ("group", (75, 49))]
)
def test_padding_changes_nothing(rng, norm, size):
    height, width = size
    network = VGG16(width=2, norm=norm)
    image = jnp.asarray(rng.normal(size=(1, height, width, 3)), jnp.float32)
    canvas = jnp.zeros((1, 96, 96, 3)).at[:, :height, :width].set(image)
    variables = drawn.variables(rng, network, image)
    alone = jax.jit(network.apply)(variables, image)[4]
    padded = jax.jit(network.apply)(variables, canvas, jnp.array([size]))[4]
    rows, columns = -(-height // 16), -(-width // 16)
    assert alone.shape[1:3] == (rows, columns)
    assert padded.shape[1:3] == (6, 6)
    chex.assert_trees_all_close(
        padded[:, :rows, :columns] / alone.max(), alone / alone.max(), atol=1e-5
    )
    assert not np.any(padded[:, rows:]) and not np.any(padded[:, :, columns:])


def test_first_convs():
    assert first_convs(0) == ()
    shapes = jax.eval_shape(
        VGG16(width=2, norm="group").init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
    )
    names = flatten_dict(shapes["params"], sep="/")
    patterns = first_convs(4, backbone="vgg")
    frozen = {
        name.split("/")[0]
        for name in names
        if any(re.fullmatch(pattern, f"vgg/{name}") for pattern in patterns)
    }
    assert frozen == {
        f"{kind}{name}"
        for kind in ("conv", "norm")
        for name in ("1_1", "1_2", "2_1", "2_2")
    }
    everything = first_convs(13)
    assert all(
        any(re.fullmatch(pattern, f"backbone/{name}") for pattern in everything)
        for name in names
    )
    with pytest.raises(ValueError, match="first 14"):
        first_convs(14)


def test_layers():
    conv, pool = (3, 1, 1), (2, 2, 0)
    two, three = (conv,) * 2, (conv,) * 3
    assert layers() == (*two, pool, *two, pool, *three, pool, *three, pool, *three)


@pytest.fixture(scope="module")
def ssd():
    """Variables of a narrow VGG16SSD, and its function."""
    network = VGG16SSD(width=2)
    rng = np.random.default_rng(0)
    variables = drawn.variables(rng, network, jnp.zeros((1, 64, 64, 3)))
    return variables, jax.jit(network.apply)


def test_ssd_ends_as_published(rng, ssd):
    variables, apply = ssd
    pixels = jnp.asarray(rng.normal(size=(1, 107, 49, 3)), jnp.float32)
    stages = apply(variables, pixels)
    assert stages[3].shape == (1, 14, 7, 16) and stages[4].shape == (1, 7, 4, 32)
    # From conv5_3 on, by flax: a 3x3 pooling that keeps the extents, conv6 whose taps
    # lie 6 cells apart, a 1x1 conv7.
    conv6 = nn.Conv(32, (3, 3), kernel_dilation=6, padding=[(6, 6)] * 2)
    conv7 = nn.Conv(32, (1, 1))

    @jax.jit
    def by_flax(variables, pixels):
        x = VGG16(width=2).apply({"params": _of_vgg16(variables)}, pixels)[4]
        x = nn.max_pool(x, (3, 3), padding="SAME")
        x = nn.relu(conv6.apply({"params": variables["params"]["conv6"]}, x))
        return nn.relu(conv7.apply({"params": variables["params"]["conv7"]}, x))

    expected = by_flax(variables, pixels)
    chex.assert_trees_all_close(stages[4], expected, rtol=1e-4, atol=1e-5)


def test_ssd_padding_changes_nothing(rng, ssd):
    variables, apply = ssd
    image = jnp.asarray(rng.normal(size=(1, 107, 49, 3)), jnp.float32)
    canvas = jnp.zeros((1, 144, 96, 3)).at[:, :107, :49].set(image)
    alone = apply(variables, image)
    padded = apply(variables, canvas, jnp.array([(107, 49)]))
    for level in (3, 4):
        _, rows, columns, _ = alone[level].shape
        inside = padded[level][:, :rows, :columns]
        scale = alone[level].max()
        chex.assert_trees_all_close(inside / scale, alone[level] / scale, atol=1e-5)
        assert not np.any(padded[level][:, rows:])
        assert not np.any(padded[level][:, :, columns:])


def test_first_convs_are_those_of_ssd_too(ssd):
    variables, _ = ssd
    trained = [
        name
        for name in flatten_dict(variables["params"], sep="/")
        if not any(re.fullmatch(p, f"backbone/{name}") for p in first_convs(13))
    ]
    assert {name.split("/")[0] for name in trained} == {"unit4_3", "conv6", "conv7"}


def test_unit_length_by_hand():
    x = jnp.array([[[[3.0, 4.0], [0.0, 0.0]]]])
    answer, variables = L2Norm().init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(answer[0, 0, 0], [12, 16], rtol=1e-5)  # 20 long
    np.testing.assert_array_equal(answer[0, 0, 1], [0, 0])
    scaled = {"params": {"scale": jnp.array([1.0, 10.0])}}
    answer = L2Norm().apply(scaled, x)
    np.testing.assert_allclose(answer[0, 0, 0], [0.6, 8], rtol=1e-5)
    gradient = jax.grad(lambda x: jnp.sum(L2Norm().apply(variables, x)))(x)
    assert np.all(np.isfinite(gradient))


def _of_vgg16(variables):
    names = ("unit4_3", "conv6", "conv7")
    return {name: v for name, v in variables["params"].items() if name not in names}
