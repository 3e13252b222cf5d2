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
    heads, depth = values.shape[1:]
    index, shares = _corners(points, shapes, extents)  # [4, Q, H, L, P]
    shares = shares * weights[None]
    index = index * heads + jnp.arange(heads)[None, None, :, None, None]
    slots = [_by_slot(x) for x in (index, shares)]  # [4 L P, Q, H]
    flat = values.reshape(-1, depth)

    @jax.checkpoint
    def read(index: jax.Array, share: jax.Array) -> jax.Array:
        return share[..., None] * jnp.take(flat, index, axis=0, mode="clip")

    dtype = jnp.promote_types(shares.dtype, values.dtype)
    total = jnp.zeros((*points.shape[:2], depth), dtype)
    total, _ = jax.lax.scan(lambda x, slot: (x + read(*slot), None), total, slots)
    return total.astype(values.dtype)


def _corners(
    points: Float[Array, "Q H L P 2"],
    shapes: Sequence[tuple[int, int]],
    extents: Int[Array, "L 2"],
) -> tuple[Int[Array, "4 Q H L P"], Float[Array, "4 Q H L P"]]:
    """Returns the four cells around each point, and the share that it has of each."""
    starts = [0, *itertools.accumulate(rows * columns for rows, columns in shapes)]
    start = jnp.array(starts[:-1], jnp.int32)[None, None, :, None]
    rows_columns = jnp.array(shapes, jnp.int32).reshape(1, 1, -1, 1, 2)
    ends = extents[None, None, :, None]
    # A point more than a cell beyond the map has no share of any cell.
    centered = jnp.clip(points[..., ::-1] - 0.5, -2.0, (ends + 1).astype(points.dtype))
    floor = jnp.floor(centered)
    beyond = centered - floor
    index, shares = [], []
    for corner in itertools.product((0, 1), (0, 1)):
        step = jnp.array(corner).reshape(1, 1, 1, 1, 2)
        cell = floor.astype(jnp.int32) + step
        inside = jnp.all((cell >= 0) & (cell < ends), axis=-1)
        share = jnp.prod(jnp.where(step == 1, beyond, 1 - beyond), axis=-1)
        cell = jnp.clip(cell, 0, rows_columns - 1)
        index.append(start + cell[..., 0] * rows_columns[..., 1] + cell[..., 1])
        shares.append(jnp.where(inside, share, 0.0))
    return jnp.stack(index), jnp.stack(shares)


def _by_slot(x: Array) -> Array:
    """`[4, Q, H, L, P]` -> `[4 L P, Q, H]`."""
    x = jnp.moveaxis(x, (1, 2), (3, 4))
    return x.reshape(-1, *x.shape[3:])
