"""Depthwise convolutions by loops, as on CPUs, against XLA's grouped convolution."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxdet.nn import depthwise


def grouped(x, kernel, stride, extents):
    output = lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (stride, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )
    return output[:, : extents[0], : extents[1]]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("spare", [0, 1], ids=["exact", "spare"])
@pytest.mark.parametrize(("side", "stride"), [(3, 1), (5, 1), (3, 2), (5, 2)])
@pytest.mark.parametrize("way", ["by_loops", "_unrolled"])
@jax.enable_x64(True)
def test_both_ways_agree_with_grouped_convolution(rng, way, side, stride, spare, dtype):
    extents = (5, 4)
    height, width = (stride * (extent - 1) + side + spare for extent in extents)

    def drawn(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    x, kernel = drawn(2, height, width, 3), drawn(side, side, 3)

    def with_gradients(function):
        output, gradients = jax.vjp(function, x, kernel)
        return output, gradients(jnp.sin(output))

    ours = with_gradients(partial(getattr(depthwise, way), stride, extents))
    expected = with_gradients(partial(grouped, stride=stride, extents=extents))
    chex.assert_trees_all_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", [depthwise.by_loops, depthwise._unrolled])
def test_products_of_halves_are_not_rounded(rng, way):
    x = jnp.asarray(rng.normal(size=(2, 9, 9, 3)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3)), jnp.bfloat16)
    ours = way(1, (7, 7), x, kernel)
    x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
    expected = grouped(x, kernel, 1, (7, 7))
    chex.assert_trees_all_close(ours, expected, rtol=1e-5, atol=1e-5)
