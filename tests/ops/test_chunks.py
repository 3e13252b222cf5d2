"""Sums over chunks, against the same sum over all items at once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops.chunks import sum_over_chunks


def _function(parameters, x, factors):
    return jnp.sum(factors * jnp.tanh(x @ parameters["kernel"]))


@pytest.mark.parametrize("count", [0, 1, 4, 5, 7])
def test_sums_and_gradients_are_those_of_the_items_that_count(rng, count):
    parameters = {"kernel": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)}
    x = jnp.asarray(rng.normal(size=(2, 7, 3)), jnp.float32)
    counts = np.arange(7)[:, None] < count
    factors = jnp.asarray(rng.normal(size=(2, 7, 1)) * counts, jnp.float32)
    # Nothing is read from chunks of four without an item that counts.
    unread = np.arange(7)[:, None] >= -(-count // 4) * 4

    def in_chunks(parameters, x):
        x = jnp.where(unread, jnp.nan, x)
        return 3 * sum_over_chunks(_function, 4, parameters, x, (factors,), count)

    def at_once(parameters, x):
        return 3 * _function(parameters, x, factors)

    def answer(function):
        both = jax.value_and_grad(function, argnums=(0, 1))
        return jax.jit(both)(parameters, x), jax.jit(function)(parameters, x)

    chex.assert_trees_all_close(answer(in_chunks), answer(at_once), rtol=1e-5)
