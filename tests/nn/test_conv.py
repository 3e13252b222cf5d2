"""The convolution against JAX's own."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from jaxdet.nn.conv import Conv, max_pool
from tests.nn import drawn


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_agrees_with_flax(rng, kernel, stride):
    x = jnp.asarray(rng.normal(size=(2, 9, 12, 5)), jnp.float32)
    ours = Conv(7, kernel, stride)
    margin = [(kernel // 2, kernel // 2)] * 2
    flax = nn.Conv(7, (kernel, kernel), (stride, stride), padding=margin)
    variables = drawn.variables(rng, flax, x)
    expected = jax.eval_shape(ours.init, jax.random.key(0), x)
    chex.assert_trees_all_equal_shapes(variables, expected)

    def answer_and_gradient(module):
        def total(variables, x):
            return jnp.sum(module.apply(variables, x) ** 2)

        return jax.jit(jax.value_and_grad(total))(variables, x)

    chex.assert_trees_all_close(
        answer_and_gradient(ours), answer_and_gradient(flax), rtol=1e-4, atol=1e-4
    )


# AlexNet's first layer, with its own padding and enough for ceil(extent / 4) cells.
@pytest.mark.parametrize("padding", [(2, 2), (2, 8)])
@pytest.mark.parametrize("extents", [(32, 35), (33, 30)])
def test_padding_of_ones_own_agrees_with_flax(rng, extents, padding):
    x = jnp.asarray(rng.normal(size=(2, *extents, 3)), jnp.float32)
    ours = Conv(5, 11, 4, padding=padding)
    flax = nn.Conv(5, (11, 11), (4, 4), padding=[padding] * 2)
    variables = drawn.variables(rng, ours, x)
    expected = jax.jit(flax.apply)(variables, x)
    answer = jax.jit(ours.apply)(variables, x)
    chex.assert_trees_all_close(answer, expected, atol=1e-5)
    if padding == (2, 8):
        assert expected.shape[1:3] == tuple(-(-extent // 4) for extent in extents)


def test_max_pool_at_every_cell_agrees_with_flax(rng):
    x = jnp.asarray(rng.uniform(size=(1, 7, 8, 3)), jnp.float32)
    expected = jax.jit(partial(nn.max_pool, window_shape=(3, 3), padding="SAME"))(x)
    chex.assert_trees_all_equal(jax.jit(partial(max_pool, stride=1))(x), expected)


def test_dilation_agrees_with_flax(rng):
    x = jnp.asarray(rng.normal(size=(1, 15, 14, 3)), jnp.float32)
    ours = Conv(5, dilation=6)
    flax = nn.Conv(5, (3, 3), kernel_dilation=6, padding=[(6, 6)] * 2)
    variables = drawn.variables(rng, ours, x)
    expected = jax.jit(flax.apply)(variables, x)
    assert expected.shape == (1, 15, 14, 5)
    answer = jax.jit(ours.apply)(variables, x)
    chex.assert_trees_all_close(answer, expected, atol=1e-5)


@pytest.mark.parametrize("extents", [(8, 10), (7, 9)])
@pytest.mark.parametrize(
    ("window", "padding"), [(3, (1, 1)), (3, (0, 2)), (3, (0, 0)), (2, (0, 1))]
)
def test_max_pool_agrees_with_flax(rng, extents, window, padding):
    x = jnp.asarray(rng.uniform(size=(2, *extents, 3)), jnp.float32)

    @partial(jax.jit, static_argnums=0)
    def answer_total_and_gradient(pool, x):
        def total(x):
            answer = pool(x)
            return jnp.sum(answer**2), answer

        (total, answer), gradient = jax.value_and_grad(total, has_aux=True)(x)
        return answer, total, gradient

    ours = partial(max_pool, window=window, padding=padding)
    expected = partial(
        nn.max_pool,
        window_shape=(window, window),
        strides=(2, 2),
        padding=(padding, padding),
    )
    ours, expected = (answer_total_and_gradient(pool, x) for pool in (ours, expected))
    chex.assert_trees_all_equal(ours[0], expected[0])
    chex.assert_trees_all_close(ours[1:], expected[1:], rtol=1e-5)


def test_arithmetic_in_bfloat16_keeps_float32_parameters():
    x = jnp.ones((1, 4, 4, 3))
    init = Conv(2, dtype=jnp.bfloat16).init_with_output
    answer, variables = jax.eval_shape(init, jax.random.key(0), x)
    chex.assert_type(answer, jnp.bfloat16)
    chex.assert_type(jax.tree.leaves(variables), jnp.float32)
