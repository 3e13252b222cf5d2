"""Layers by hand, against NumPy and against Flax's own."""

import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxdet.nn.convolution import Conv
from jaxdet.nn.layers import (
    FrozenBatchNorm,
    Norm,
    inside_mask,
    max_pool_by_shifts,
    max_pool_by_windows,
    relu,
    zero_outside,
)
from tests.nn import drawn


def test_relu_is_that_of_jax(transform):
    x = jnp.array([-2.0, -0.0, 0.0, 1e-30, 3.0, jnp.inf, jnp.nan])

    def answer_and_gradient(function):
        answer, pull = jax.vjp(transform(function), x)
        return answer, *pull(jnp.arange(1.0, 8.0))

    ours, expected = map(answer_and_gradient, (relu, jax.nn.relu))
    chex.assert_trees_all_equal(ours[0], expected[0])
    # What is not a number has a gradient, too: it is not passed over.
    chex.assert_trees_all_equal(ours[1], expected[1].at[-1].set(7.0))


@pytest.mark.parametrize("extents", [(8, 10), (7, 9)])
@pytest.mark.parametrize(
    ("window", "padding", "stride"),
    [(3, (1, 1), 2), (3, (0, 2), 2), (3, (0, 0), 2), (2, (0, 1), 2), (3, (1, 1), 1)],
)
def test_max_pool_is_the_same_by_shifts_and_by_windows(
    rng, extents, window, padding, stride
):
    x = jnp.asarray(rng.uniform(size=(2, *extents, 3)), jnp.float32)

    @partial(jax.jit, static_argnums=0)
    def answer_total_and_gradient(pool, x):
        def total(x):
            answer = pool(x)
            return jnp.sum(answer**2), answer

        (total, answer), gradient = jax.value_and_grad(total, has_aux=True)(x)
        return answer, total, gradient

    options = {"window": window, "padding": padding, "stride": stride}
    pools = [partial(f, **options) for f in (max_pool_by_shifts, max_pool_by_windows)]
    ours, expected = (answer_total_and_gradient(pool, x) for pool in pools)
    chex.assert_trees_all_equal(ours[0], expected[0])
    chex.assert_trees_all_close(ours[1:], expected[1:], rtol=1e-5)


def test_frozen_norm_by_hand():
    constants = {
        "scale": jnp.array([2.0]),
        "bias": jnp.array([1.0]),
        "mean": jnp.array([3.0]),
        "var": jnp.array([4.0]),
    }
    norm = FrozenBatchNorm(epsilon=0.0)
    answer = norm.apply({"constants": constants}, jnp.full((1, 1, 1, 1), 7.0))
    np.testing.assert_allclose(answer, 2 * (7 - 3) / 2 + 1)


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("kind", ["frozen", "group", "none"])
def test_a_norm_is_the_same_after_a_convolution_and_in_it(rng, kind, use_bias):
    class Both(nn.Module):
        joined: bool

        @nn.compact
        def __call__(self, x):
            conv = Conv(6, 3, use_bias=use_bias, name="conv")
            norm = Norm(kind, name="norm")
            return norm(x, conv=conv) if self.joined else norm(conv(x))

    x = jnp.asarray(rng.normal(size=(2, 5, 7, 3)), jnp.float32)
    variables = drawn.variables(rng, Both(joined=False), x)
    rest = {name: value for name, value in variables.items() if name != "params"}

    def answer_and_gradients(joined):
        def run(params, x):
            return Both(joined).apply({"params": params, **rest}, x)

        answer, pull = jax.vjp(run, variables["params"], x)
        return answer, *pull(jnp.sin(answer))

    ours, expected = (
        jax.jit(answer_and_gradients, static_argnums=0)(x) for x in (1, 0)
    )
    chex.assert_trees_all_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("optimized")
def test_accelerators_multiply_kernels_by_frozen_norms_and_cpus_features(platform):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return relu(Norm("frozen", name="norm")(x, conv=Conv(16, name="conv")))

    x = jnp.zeros((2, 9, 9, 8))
    variables = jax.eval_shape(Layer().init, jax.random.key(0), x)
    text = jax.jit(Layer().apply).lower(variables, x).compile().as_text()
    products = set(re.findall(r"= (\S+)\{\S* multiply\(", text))
    of_kernel, of_features = "f32[3,3,8,16]", "f32[2,9,9,16]"
    assert (of_kernel in products) == (platform != "cpu")
    assert (of_features in products) == (platform == "cpu")


def test_group_norm_against_numpy(rng):
    x = rng.normal(2, 3, (2, 5, 6, 64)).astype(np.float32)
    norm = Norm("group")
    answer, _ = jax.jit(norm.init_with_output)(jax.random.key(0), x)
    groups = x.reshape(2, 30, 32, 2)
    mean = groups.mean((1, 3), keepdims=True)
    var = groups.var((1, 3), keepdims=True)
    expected = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    chex.assert_trees_all_close(answer, expected, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 5, 33, 48])
def test_any_number_of_channels_has_groups(rng, channels):
    x = jnp.asarray(rng.normal(3, 2, (1, 8, 8, channels)), jnp.float32)
    answer, _ = jax.jit(Norm("group").init_with_output)(jax.random.key(0), x)
    np.testing.assert_allclose(np.mean(answer), 0, atol=1e-4)
    np.testing.assert_allclose(np.var(answer), 1, rtol=1e-3)


def test_statistics_leave_padding_out(rng):
    image = rng.normal(size=(1, 6, 10, 8)).astype(np.float32)
    canvas = rng.normal(size=(1, 9, 12, 8)).astype(np.float32)
    canvas[:, :6, :10] = image
    norm = Norm("group")
    alone, variables = jax.jit(norm.init_with_output)(jax.random.key(0), image)
    sizes = np.array([[12, 19]])  # canvas pixels: at stride 2 these are 6 x 10 cells
    padded = jax.jit(partial(norm.apply, stride=2))(variables, canvas, sizes)
    chex.assert_trees_all_close(padded[:, :6, :10], alone, atol=1e-5)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="norm is 'batch'; it must be"):
        Norm("batch").init(jax.random.key(0), jnp.zeros((1, 2, 2, 4)))


def test_cells_that_touch_the_image():
    inside = inside_mask(jnp.array([[17, 8], [0, 40]]), (2, 4, 4, 3), 8)
    np.testing.assert_array_equal(
        inside[0, :, :, 0], np.outer([1, 1, 1, 0], [1, 0, 0, 0])
    )
    assert not np.any(inside[1])


def test_zero_outside():
    features = jnp.ones((1, 2, 2, 1))
    np.testing.assert_array_equal(zero_outside(features, None, 8), features)
    kept = zero_outside(features, jnp.array([[8, 16]]), 8)
    np.testing.assert_array_equal(kept[0, :, :, 0], [[1, 1], [0, 0]])
