"""VGG-16: size, padding, frozen layers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxdet.nn.backbones.vgg import VGG16, VGG16SSD, L2Norm
from tests.nn import drawn


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
