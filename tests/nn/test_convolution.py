"""Convolutions against Flax's, each computed as on every platform."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from jaxdet.nn.convolution import Conv, convolve_in_eights
from jaxdet.nn.cpu_convolution import convolve
from tests.nn import drawn


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("extents", [(15, 18), (16, 17)])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "padding"),
    [
        (1, 1, 1, None),
        (1, 2, 1, None),
        (3, 1, 1, None),
        (3, 2, 1, None),
        (7, 1, 1, None),
        (7, 2, 1, None),
        (3, 1, 6, None),
        # AlexNet's first layer, with its own padding and enough for ceil(x / 4) cells.
        (11, 4, 1, (2, 2)),
        (11, 4, 1, (2, 8)),
    ],
)
def test_agrees_with_flax(rng, extents, kernel, stride, dilation, padding):
    x = jnp.asarray(rng.normal(size=(2, *extents, 5)), jnp.float32)
    given = {"padding": padding} if padding else {}
    ours = Conv(7, kernel, stride, dilation=dilation, **given)
    margin = padding or (dilation * (kernel // 2),) * 2
    flax = nn.Conv(
        7, (kernel,) * 2, stride, padding=[margin] * 2, kernel_dilation=dilation
    )
    variables = drawn.variables(rng, flax, x)
    expected = jax.eval_shape(ours.init, jax.random.key(0), x)
    chex.assert_trees_all_equal_shapes(variables, expected)

    def answer_and_gradient(module):
        def total(variables, x):
            return jnp.sum(module.apply(variables, x) ** 2)

        return jax.jit(jax.value_and_grad(total, (0, 1)))(variables, x)

    chex.assert_trees_all_close(
        answer_and_gradient(ours), answer_and_gradient(flax), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("channels", "features"), [(3, 5), (8, 1), (12, 16)])
def test_more_channels_change_nothing(rng, channels, features):
    def answer_and_gradients(convolution):
        answer, pull = jax.vjp(convolution, x, kernel)
        return answer, *pull(jnp.sin(answer))

    x = jnp.asarray(rng.normal(size=(2, 6, 7, channels)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, channels, features)), jnp.float32)
    plain = partial(convolve, margins=(1, 1))
    ours = jax.jit(partial(answer_and_gradients, partial(convolve_in_eights, plain)))
    expected = jax.jit(partial(answer_and_gradients, plain))()
    chex.assert_trees_all_close(ours(), expected, rtol=1e-5, atol=1e-5)


def test_arithmetic_in_bfloat16_keeps_float32_parameters():
    x = jnp.ones((1, 4, 4, 3))
    init = Conv(2, dtype=jnp.bfloat16).init_with_output
    answer, variables = jax.eval_shape(init, jax.random.key(0), x)
    chex.assert_type(answer, jnp.bfloat16)
    chex.assert_type(jax.tree.leaves(variables), jnp.float32)
