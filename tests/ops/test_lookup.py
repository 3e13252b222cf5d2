"""Lookups, both as on TPUs and as elsewhere, against NumPy's indexing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops.lookup import (
    channel_by_comparison,
    lookup,
    lookup_by_comparison,
    lookup_channel,
)


@pytest.mark.parametrize("function", [lookup, lookup_by_comparison])
@pytest.mark.parametrize("shape", [(7,), (7, 4), (7, 2, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_values_are_exact_whatever_stands_in_other_slots(rng, function, shape, dtype):
    values = (1e6 * rng.normal(size=shape)).astype(dtype)
    index = rng.integers(0, 5, 50)
    if dtype == np.float32:  # padding
        values[5], values[6] = np.nan, np.inf
    result = jax.jit(function)(values, index)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, values[index])


def test_no_values_are_zeros():
    result = jax.vmap(lookup)(jnp.ones((2, 0, 4)), jnp.zeros((2, 3), jnp.int32))
    np.testing.assert_array_equal(result, np.zeros((2, 3, 4)))


@pytest.mark.parametrize("function", [lookup_channel, channel_by_comparison])
def test_channels_and_their_gradients(rng, function):
    values = rng.normal(size=(5, 3, 2, 4)).astype(np.float32)
    index, rows = jnp.asarray(rng.integers(0, 4, 5)), np.arange(5)
    values[rows, :, :, (index + 1) % 4] = np.nan
    weights = rng.normal(size=(5, 3, 2)).astype(np.float32)

    def total(values):
        result = function(values, index)
        return jnp.sum(weights * result), result

    gradient, result = jax.jit(jax.grad(total, has_aux=True))(values)
    np.testing.assert_array_equal(result, values[rows, :, :, index])
    expected = np.zeros_like(values)
    expected[rows, :, :, index] = weights
    np.testing.assert_array_equal(gradient, expected)
