"""Depthwise convolutions, where their windows lie, and the blocks around them."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxdet.nn.backbones import inverted_residual
from jaxdet.nn.backbones.inverted_residual import DepthwiseConv, InvertedResidual
from jaxdet.nn.layers import Norm
from tests.nn import drawn


@pytest.mark.parametrize(
    ("extents", "kernel", "stride", "padding"),
    [
        ((7, 8), 3, 1, "same"),
        ((7, 8), 3, 2, "same"),
        ((8, 9), 5, 2, "same"),
        ((7, 8), 5, 1, "centered"),
        ((7, 8), 3, 2, "centered"),
        ((2, 1), 5, 2, "same"),
    ],
)
def test_agrees_with_flax(rng, extents, kernel, stride, padding):
    x = jnp.asarray(rng.normal(size=(2, *extents, 5)), jnp.float32)
    ours = DepthwiseConv(kernel, stride, padding)
    around = "SAME" if padding == "same" else [(kernel // 2, kernel // 2)] * 2
    flax = nn.Conv(
        5,
        (kernel, kernel),
        (stride, stride),
        padding=around,
        feature_group_count=5,
        use_bias=False,
    )
    variables = drawn.variables(rng, ours, x)

    def answer_and_gradients(module):
        return jax.jit(
            jax.value_and_grad(lambda v, x: jnp.sum(module.apply(v, x) ** 2), (0, 1))
        )(variables, x)

    chex.assert_trees_all_close(
        answer_and_gradients(ours), answer_and_gradients(flax), rtol=1e-4, atol=1e-4
    )


def test_each_image_is_padded_by_its_own_extents():
    x = jnp.arange(1.0, 7.0)[None, :, None, None] * jnp.ones((2, 1, 1, 1))
    x = x.at[1, 5].set(0.0)  # 6 rows are image, and 5
    sizes = jnp.array([[12, 2], [10, 2]])  # in pixels, two a cell
    padded = inverted_residual.pad(x, 3, 2, "same", sizes, 2)
    assert padded.shape[1] == 8
    np.testing.assert_array_equal(padded[0, :, 1, 0], [1, 2, 3, 4, 5, 6, 0, 0])
    np.testing.assert_array_equal(padded[1, :, 1, 0], [0, 1, 2, 3, 4, 5, 0, 0])
    # One column, which is odd.
    np.testing.assert_array_equal(padded[0, 0, :, 0], [0, 1, 0])
    centered = inverted_residual.pad(x, 3, 2, "centered", sizes, 2)
    np.testing.assert_array_equal(centered[0, :, 1, 0], [0, 1, 2, 3, 4, 5, 6, 0])
    alone = inverted_residual.pad(x[:1], 3, 2, "same")
    np.testing.assert_array_equal(alone[0, :, 1, 0], [1, 2, 3, 4, 5, 6, 0])


def block(**options):
    norm = partial(Norm, "none")
    return InvertedResidual(between=6, features=3, level=1, norm=norm, **options)


def test_a_block_by_hand(rng):
    x = jnp.asarray(rng.normal(size=(1, 4, 6, 3)), jnp.float32)
    variables = drawn.variables(rng, block(), x)
    kernels = {
        name: layer["kernel"]
        for name, layer in variables["params"].items()
        if name.endswith("_conv")
    }
    y, wide = jax.jit(block().apply)(variables, x)
    expanded = np.clip(x @ kernels["expand_conv"][0, 0], 0, 6)
    chex.assert_trees_all_close(wide, expanded, atol=1e-5)
    around = np.pad(expanded, ((0, 0), (1, 1), (1, 1), (0, 0)))
    looked = sum(
        around[:, i : i + 4, j : j + 6] * kernels["depthwise_conv"][i, j, 0]
        for i in range(3)
        for j in range(3)
    )
    narrow = np.clip(looked, 0, 6) @ kernels["project_conv"][0, 0]
    chex.assert_trees_all_close(y, x + narrow, atol=1e-4)
    activated, _ = jax.jit(block(linear=False).apply)(variables, x)
    chex.assert_trees_all_close(activated, x + np.clip(narrow, 0, 6), atol=1e-4)
    # No shortcut where the shapes differ.
    halved, _ = jax.jit(block(stride=2).apply)(variables, x)
    chex.assert_trees_all_close(halved, narrow[:, ::2, ::2], atol=1e-4)


def test_a_block_that_widens_nothing(rng):
    network = InvertedResidual(None, 4, level=1, norm=partial(Norm, "group"))
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 4, 6, 3)))
    layers = {"depthwise_conv", "depthwise_norm", "project_conv", "project_norm"}
    assert shapes["params"].keys() == layers


def test_arithmetic_in_bfloat16_keeps_float32_parameters():
    x = jnp.ones((1, 4, 4, 3))
    init = DepthwiseConv(dtype=jnp.bfloat16).init_with_output
    answer, variables = jax.eval_shape(init, jax.random.key(0), x)
    chex.assert_type(answer, jnp.bfloat16)
    chex.assert_type(jax.tree.leaves(variables), jnp.float32)
