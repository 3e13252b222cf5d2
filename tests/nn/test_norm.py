"""Norms worked by hand and against NumPy."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.nn.norm import FrozenBatchNorm, Norm


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


def test_frozen_norm_has_no_parameters():
    init = Norm("frozen").init
    variables = jax.eval_shape(init, jax.random.key(0), jnp.ones((1, 2, 2, 4)))
    assert "params" not in variables
    assert set(variables["constants"]["frozen"]) == {"scale", "bias", "mean", "var"}


def test_group_norm_against_numpy(rng):
    x = rng.normal(2, 3, (2, 5, 6, 64)).astype(np.float32)
    norm = Norm("group")
    answer, _ = jax.jit(norm.init_with_output)(jax.random.key(0), x)
    groups = x.reshape(2, 30, 32, 2)
    mean = groups.mean((1, 3), keepdims=True)
    var = groups.var((1, 3), keepdims=True)
    expected = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    chex.assert_trees_all_close(answer, expected, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 5, 9, 16, 33, 48])
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
