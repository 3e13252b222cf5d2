"""The convolution against JAX's own."""

import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from jaxdet.nn import convolution
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


# Bands of two rows, the last of one; or products of matrices.
@pytest.mark.parametrize("few_channels", [8, 0], ids=["bands", "products"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (7, 2)])
def test_gradients_made_for_cpus_agree_with_flax(
    rng, monkeypatch, kernel, stride, few_channels
):
    monkeypatch.setattr(convolution, "_FEW_CELLS", 0)
    monkeypatch.setattr(convolution, "_BAND_CELLS", 2 * 6 * 2)
    monkeypatch.setattr(convolution, "_FEW_CHANNELS", few_channels)
    x = jnp.asarray(rng.normal(size=(2, 5 * stride, 6 * stride, 2)), jnp.float32)
    ours = Conv(7, kernel, stride)
    margin = [(kernel // 2, kernel // 2)] * 2
    flax = nn.Conv(7, (kernel, kernel), (stride, stride), padding=margin)
    variables = drawn.variables(rng, flax, x)

    def gradients(module):
        def total(variables, x):
            return jnp.sum(module.apply(variables, x) ** 2)

        return jax.jit(jax.grad(total, argnums=(0, 1)))(variables, x)

    chex.assert_trees_all_close(gradients(ours), gradients(flax), rtol=1e-4, atol=1e-4)


@pytest.fixture
def winograd(monkeypatch):
    """Takes Winograd's way, however small the images."""
    monkeypatch.setattr(convolution, "_MANY_PRODUCTS", 0)
    monkeypatch.setattr(convolution, "_MANY_CHANNELS", 2)


@pytest.mark.parametrize("extents", [(4, 6), (5, 6), (4, 7), (1, 1)])
def test_winograd_agrees_with_flax(rng, winograd, extents):
    x = jnp.asarray(rng.normal(size=(2, *extents, 3)), jnp.float32)
    flax, ours = nn.Conv(5, (3, 3), padding=1), Conv(5)
    variables = drawn.variables(rng, flax, x)

    def answer_and_gradients(module):
        def total(variables, x):
            answer = module.apply(variables, x)
            return jnp.sum(answer**2), answer

        return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(variables, x)

    chex.assert_trees_all_close(
        answer_and_gradients(ours), answer_and_gradients(flax), rtol=1e-4, atol=1e-4
    )


def test_winograd_is_exact_for_whole_numbers(rng, winograd):
    x = jnp.asarray(rng.integers(-99, 99, (1, 6, 5, 4)), jnp.float32)
    kernel = jnp.asarray(4 * rng.integers(-9, 9, (3, 3, 4, 3)), jnp.float32)
    answer = jax.jit(partial(convolution.convolve, margins=(1, 1)))(x, kernel)
    expected = convolution._convolution(x, kernel, ((1, 1), (1, 1)))
    chex.assert_trees_all_equal(answer, expected)


def test_winograd_needs_fewer_products(winograd):
    x, kernel = jnp.zeros((1, 64, 64, 64)), jnp.zeros((3, 3, 64, 64))

    def flops(function):
        return jax.jit(function).lower(x, kernel).cost_analysis()["flops"]

    ours = flops(partial(convolution.convolve, margins=(1, 1)))
    plain = flops(partial(convolution._convolution, padding=((1, 1), (1, 1))))
    assert ours < 0.6 * plain  # 16 / 36, and the sums


@pytest.mark.parametrize(
    ("side", "margins", "channels", "extent"),
    [
        (3, (2, 0), 256, 64),
        (5, (2, 2), 256, 64),
        (3, (1, 1), 64, 256),  # too few channels
        (3, (1, 1), 256, 32),  # too few products
    ],
)
def test_other_convolutions_are_xla_s_own(side, margins, channels, extent):
    shapes = (1, extent, extent, channels), (side, side, channels, channels)
    x, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    lowered = jax.jit(partial(convolution.convolve, margins=margins)).lower(x, kernel)
    assert "stablehlo.convolution" in lowered.as_text()


@pytest.mark.parametrize("way", ["winograd", "bands", "products"])
def test_ways_of_cpus_round_bfloat16_once(rng, monkeypatch, way):
    monkeypatch.setattr(convolution, "_FEW_CELLS", 0)
    monkeypatch.setattr(convolution, "_BAND_CELLS", 8)
    monkeypatch.setattr(convolution, "_FEW_CHANNELS", 0 if way == "products" else 8)
    if way == "winograd":
        monkeypatch.setattr(convolution, "_MANY_PRODUCTS", 0)
        monkeypatch.setattr(convolution, "_MANY_CHANNELS", 2)
    shapes = (1, 16, 8, 3), (3, 3, 3, 4), (1, 16, 8, 4)
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes]

    def answers(x, kernel, gradient):
        answer, pull = jax.vjp(partial(convolution.convolve, margins=(1, 1)), x, kernel)
        return answer, *pull(gradient)

    ours = jax.jit(answers)(*arrays)
    chex.assert_type(ours, jnp.bfloat16)
    exact = jax.jit(answers)(*(array.astype(jnp.float32) for array in arrays))
    for value, expected in zip(ours, exact, strict=True):
        # Half of the last of eight bits, and float32's own rounding.
        chex.assert_trees_all_close(
            value.astype(jnp.float32), expected, rtol=2**-8, atol=1e-4
        )


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_what_is_made_for_cpus_costs_accelerators_nothing(platform):
    x, kernel = jnp.zeros((1, 96, 96, 160)), jnp.zeros((3, 3, 160, 160))
    gradient = jnp.zeros((1, 96, 96, 160))

    def operations(convolution):
        def gradients(x, kernel, gradient):
            return jax.vjp(convolution, x, kernel)[1](gradient)

        traced = jax.jit(gradients).trace(x, kernel, gradient)
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        # A case is of the platform, with one branch left: XLA puts it in its place.
        return re.findall(r"stablehlo\.(?!return|constant|case)\w+", program)

    ours = operations(partial(convolution.convolve, margins=(1, 1)))
    plain = operations(partial(convolution._convolution, padding=((1, 1), (1, 1))))
    assert sorted(ours) == sorted(plain)


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
