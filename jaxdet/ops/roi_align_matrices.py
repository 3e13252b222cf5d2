"""Computes RoI Align on TPUs, where gathers and scatters are slow, by matrix products.

A bin sums its samples over rows times columns, so that a box reads a map by a product
with a matrix of its columns and one of its rows. Every box is multiplied with every
level, and has zeros for weights on all but its own.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jaxtyping import Array, Float, Int

# Of what lies between the two products of some boxes. By the estimates of the TPU's
# compiler it is fastest where this fits the 128 MiB of a v5e's fast memory twice.
_BYTES = 48 * 2**20


class Samples(NamedTuple):
    """Where the bins of boxes are sampled along one axis."""

    position: Float[Array, "R S N"]  # on the box's map: the center of cell i is at i
    weight: Float[Array, "R S N"]  # of a sample in its bin


@jax.custom_vjp
def pool_by_matrices(
    maps: Sequence[Float[Array, "_ _ C"]],
    extents: Int[Array, "L 2"],
    level: Int[Array, " R"],
    rows: Samples,
    columns: Samples,
) -> Float[Array, "R S S C"]:
    """Averages bilinear samples of maps; only the maps get a gradient.

    Sums are float32 and products precise to 2**-16, for float32 maps to 2**-22. Under
    `vmap` images follow one another, and so use the memory of one.

    Args:
      maps: finite within their extents, since a box multiplies what it does not read,
        of all maps, by 0.
      extents: rows and columns that belong to the image.
      level: index of each box's map.
      rows: positions in [0, H - 1].
      columns: positions in [0, W - 1].

    Returns:
      Features of the boxes in the dtype of the maps.
    """
    return _pool(maps, extents, level, rows, columns)


@sequential_vmap
def _pool(maps, extents, level, rows, columns):
    maps = list(map(_inside, maps, extents))
    product = _product(maps[0].dtype)

    def pool_some(boxes):
        level, rows, columns = boxes
        total = jnp.float32(0)
        for index, features in enumerate(maps):
            y, x = _matrices(rows, columns, level == index, features.shape)
            read = product("rtw,hwc->rthc", x, features)
            total += product("rsh,rthc->rstc", y, read)
        return total.astype(maps[0].dtype)

    height = max(map(len, maps))
    chunks = _chunks((level, rows, columns), height * maps[0].shape[-1])
    pooled = jax.lax.map(pool_some, chunks)
    return pooled.reshape(-1, *pooled.shape[2:])[: len(level)]


def _pool_forward(maps, extents, level, rows, columns):
    # Empty slices remember shapes and dtype, and keep no features alive.
    like = [features[..., :0] for features in maps]
    pooled = _pool(maps, extents, level, rows, columns)
    return pooled, (like, level, rows, columns)


def _pool_backward(saved, gradient):
    return _gradient(*saved, gradient), None, None, None, None


@sequential_vmap
def _gradient(like, level, rows, columns, gradient):
    """Sums over boxes a block of rows at a time, small enough for fast memory, too."""
    channels = gradient.shape[-1]
    product = _product(gradient.dtype)

    def of_map(index, features):
        height, width, _ = features.shape
        count = max(-(-4 * height * width * channels // _BYTES), 1)
        block = -(-height // count)
        chunks = _chunks((level, rows, columns, gradient), block * channels)

        def of_block(first_row):
            def add_some(total, boxes):
                level, rows, columns, gradient = boxes
                rows = rows._replace(position=rows.position - first_row)
                y, x = _matrices(rows, columns, level == index, (block, width))
                spread = product("rsh,rstc->rthc", y, gradient)
                return total + product("rtw,rthc->hwc", x, spread), None

            total = jnp.zeros((block, width, channels))
            return jax.lax.scan(add_some, total, chunks)[0].astype(gradient.dtype)

        blocks = jax.lax.map(of_block, block * jnp.arange(count))
        return blocks.reshape(-1, width, channels)[:height]

    return [of_map(index, features) for index, features in enumerate(like)]


pool_by_matrices.defvjp(_pool_forward, _pool_backward)


def _inside(features: Array, extent: Int[Array, "2"]) -> Array:
    """Zeroes the cells beyond an extent."""
    rows, columns = (jnp.arange(x) for x in features.shape[:2])
    inside = (rows[:, None] < extent[0]) & (columns[None] < extent[1])
    return jnp.where(inside[..., None], features, 0)


def _matrices(rows, columns, own, shape) -> tuple[Array, Array]:
    """Returns the weights `[R, S, H]` and `[R, S, W]` of boxes on one map."""
    y, x = _matrix(rows, shape[0]), _matrix(columns, shape[1])
    return y * own[:, None, None], x


def _matrix(samples: Samples, length: int) -> Float[Array, "R S length"]:
    cells = jnp.expand_dims(jnp.arange(length), (0, 1, 2))
    weight = jnp.maximum(1 - jnp.abs(samples.position[..., None] - cells), 0)
    return jnp.sum(samples.weight[..., None] * weight, axis=-2)


def _chunks(boxes: Any, length: int) -> Any:
    """Splits `[R, ...]` into `[chunks, boxes, ...]`, filled up with zeros.

    Args:
      boxes: arrays and samples.
      length: of the float32 vector that stands between two products for each bin.
    """
    count, bins, _ = boxes[1].weight.shape
    size = max(_BYTES // (4 * bins * length), 1)
    size = max(min(1 << (size.bit_length() - 1), count), 1)  # divides the usual counts

    def split(x):
        x = jnp.pad(x, [(0, -count % size), *(x.ndim - 1) * [(0, 0)]])
        return x.reshape(-(-count // size), size, *x.shape[1:])

    return jax.tree.map(split, boxes)


def _product(dtype: jnp.dtype) -> Callable:
    """Returns a product in float32, as precise as values of a type are worth."""
    precision = "high" if dtype == jnp.bfloat16 else "highest"
    return partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)
