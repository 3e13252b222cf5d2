"""Sums bilinear samples of several maps around a point (deformable attention).

Cells have their values at their centers: that of row i, column j sits at
`(j + 0.5, i + 0.5)` cells. Beyond the map there are cells of 0, as for torch's
`grid_sample(align_corners=False)`; RoI Align repeats the edge instead, and needs no
gradient of positions, so that the two share no code.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def multi_scale_deformable_attention(
    values: Float[Array, "T H D"],
    points: Float[Array, "Q H L P 2"],
    weights: Float[Array, "Q H L P"],
    *,
    shapes: Sequence[tuple[int, int]],
    extents: Int[Array, "L 2"],
) -> Float[Array, "Q H D"]:
    """Sums weighted samples of all levels (Zhu et al. 2021, equation 3).

    A sample is read corner by corner, for all queries at once, and read again for the
    gradient, which reaches values, points and weights: no copy of all that queries read
    is ever kept.

    Args:
      values: of the cells of L maps, one after the other, row by row; H heads.
      points: P an image, head and level: (x, y) in cells of the level, anywhere.
      weights: of the samples.
      shapes: (rows, columns) of the maps; T cells in all.
      extents: rows and columns that belong to the image; what lies beyond counts as 0.

    Returns:
      The sums in the dtype of the values, computed in float32 or better.
    """
    queries, heads, _, count = weights.shape
    flat = values.reshape(-1, values.shape[-1])
    starts = [0, *itertools.accumulate(rows * columns for rows, columns in shapes)]
    levels = jnp.array(starts[:-1], jnp.int32), jnp.array(shapes, jnp.int32), extents
    levels = [jnp.repeat(x, count, axis=0) for x in levels]
    # Queries come last: TPUs fill the last axis up to 128.
    points = jnp.transpose(points, (2, 3, 4, 1, 0)).reshape(-1, 2, heads, queries)
    weights = jnp.transpose(weights, (2, 3, 1, 0)).reshape(-1, 1, heads, queries)
    # In a loop, whose inputs lie in memory: a compiler that computes points once for
    # cells and once for shares may round them differently, and mix up the cells.
    corners = jax.checkpoint(lambda slot: _corners(*slot))
    index, shares = jax.lax.map(corners, (points, *levels))
    slots = [x.reshape(-1, heads, queries) for x in (index, shares * weights)]

    @jax.checkpoint
    def read(index: jax.Array, share: jax.Array) -> jax.Array:
        return share[..., None] * jnp.take(flat, index, axis=0, mode="clip")

    def add(total, slot):
        return total + read(*slot), None

    dtype = jnp.promote_types(shares.dtype, values.dtype)
    total = jnp.zeros((heads, queries, flat.shape[1]), dtype)
    total, _ = jax.lax.scan(add, total, slots)
    return jnp.swapaxes(total, 0, 1).astype(values.dtype)


def _corners(
    points: Float[Array, "2 H Q"],
    start: Int[Array, ""],
    shape: Int[Array, "2"],
    extent: Int[Array, "2"],
) -> tuple[Int[Array, "4 H Q"], Float[Array, "4 H Q"]]:
    """Returns the four cells around each point, and the share that it has of each.

    Args:
      points: (x, y), of one level, one for each head and query.
      start: the level's first cell.
      shape: rows and columns of the level's map.
      extent: those that belong to the image.
    """
    end, heads = extent[:, None, None], points.shape[1]
    # A point more than a cell beyond the map has no share of any cell.
    centered = jnp.clip(points[::-1] - 0.5, -2.0, (end + 1).astype(points.dtype))
    floor = jnp.floor(centered)
    beyond = centered - floor
    index, shares = [], []
    for corner in itertools.product((0, 1), (0, 1)):
        step = jnp.array(corner)[:, None, None]
        cell = floor.astype(jnp.int32) + step
        inside = jnp.all((cell >= 0) & (cell < end), axis=0)
        share = jnp.prod(jnp.where(step == 1, beyond, 1 - beyond), axis=0)
        row, column = jnp.clip(cell, 0, shape[:, None, None] - 1)
        cell = start + row * shape[1] + column
        index.append(cell * heads + jnp.arange(heads)[:, None])
        shares.append(jnp.where(inside, share, 0.0))
    return jnp.stack(index), jnp.stack(shares)
