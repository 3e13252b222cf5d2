"""Sums a function over the leading items of arrays alone, however many those are.

Shapes are fixed, so arrays have room for the most items that there can be. A loop over
chunks of them ends after the last that counts, and costs what those cost.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def sum_over_chunks(
    function: Callable,
    size: int,
    parameters: Any,
    x: jax.Array,
    others: tuple[jax.Array, ...],
    count: jax.Array,
) -> jax.Array:
    """Returns the sum of a function over chunks of items, up to the last that counts.

    JAX cannot differentiate a loop whose end depends on data. So where a gradient is
    asked for, the loop computes it together with the sum, and keeps nothing else.

    Args:
      function: `(parameters, x, *others) -> scalar`, of chunks `[B, size, ...]` of the
        arrays; items of zeros, and those from `count` on, must add 0 to it. It must not
        close over traced arrays.
      size: items of each of the B in a chunk.
      parameters: a tree of arrays; has a gradient.
      x: `[B, R, ...]`; has a gradient.
      others: arrays `[B, R, ...]` without one.
      count: scalar integer; chunks that lie beyond are left out.

    Returns:
      A float32 scalar.
    """
    x, others = _padded((x, others), size)

    def add(index, total):
        return total + function(parameters, *_chunk((x, *others), index, size))

    return lax.fori_loop(0, -(-count // size), add, jnp.float32(0))


def _forward(function, size, parameters, x, others, count):
    extent, (x, others) = x.shape[1], _padded((x, others), size)
    compute = jax.value_and_grad(function, argnums=(0, 1))

    def add(index, carry):
        total, of_parameters, of_x = carry
        arrays = _chunk((x, *others), index, size)
        value, (more, of_chunk) = compute(parameters, *arrays)
        of_x = lax.dynamic_update_slice_in_dim(of_x, of_chunk, index * size, axis=1)
        return total + value, jax.tree.map(jnp.add, of_parameters, more), of_x

    zeros = jax.tree.map(jnp.zeros_like, (jnp.float32(0), parameters, x))
    total, of_parameters, of_x = lax.fori_loop(0, -(-count // size), add, zeros)
    return total, (of_parameters, of_x[:, :extent])


def _backward(function, size, gradients, factor):
    del function, size
    scaled = jax.tree.map(lambda g: (factor * g).astype(g.dtype), gradients)
    return *scaled, None, None


sum_over_chunks.defvjp(_forward, _backward)


def _padded(arrays, size: int):
    """Fills the axis of items up with zeros, to a multiple of the chunks' size."""

    def pad(x):
        return jnp.pad(x, [(0, 0), (0, -x.shape[1] % size)] + [(0, 0)] * (x.ndim - 2))

    return jax.tree.map(pad, arrays)


def _chunk(arrays, index, size: int):
    slices = partial(lax.dynamic_slice_in_dim, slice_size=size, axis=1)
    return jax.tree.map(lambda x: slices(x, index * size), arrays)
