"""Pools regions by maxima, rounded to whole cells, as it was done before RoI Align."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdet.ops.boxes import to_float32
from jaxdet.ops.roi_align import max_over_images

# Windows of 1, 2 and 4 cells a side are pooled in advance, everywhere on the map, in
# the memory of nine maps. Each bin is then covered by a few of them.
_SCALES = 3


def roi_max_pool(
    features: Float[Array, "H W C"],
    boxes: Float[Array, "R 4"],
    *,
    stride: float,
    output_size: int = 7,
) -> Float[Array, "R S S C"]:
    """Returns the maxima in a grid of bins on each box (Girshick 2015, 2.1).

    Corners are rounded to cells, halves away from 0, and both cells belong to the box.
    Bin i of n covers, of a side of m cells, those from `floor(i m / n)` up to but not
    including `ceil((i + 1) m / n)`; cells beyond the map do not count. Of equal values
    the first, by rows, gets the gradient; the boxes get none. That of the features is
    summed by a scatter-add, whose order on GPUs is left to chance; with XLA's flag
    `--xla_gpu_deterministic_ops` it is fixed, and equal runs give equal bits.

    Where features are >= 0, boxes in the true image pool alike whether the map ends
    with it or goes on with zeros.

    Args:
      features: a map of the image.
      boxes: pixels, anywhere; padding is pooled like the first cell.
      stride: pixels per cell.
      output_size: bins S along each side.

    Returns:
      Features of the boxes in the dtype of the map; 0 in bins without a cell.
    """
    height, width, _ = features.shape
    x1, y1, x2, y2 = jnp.moveaxis(_rounded(to_float32(boxes) / stride), -1, 0)
    windows = jax.vmap(partial(_windows, size=output_size), in_axes=(0, 0, None))
    rows, columns = windows(y1, y2, height), windows(x1, x2, width)
    return _max_of_windows(features, rows, columns)


def spatial_pyramid_pool(
    features: Float[Array, "H W C"],
    boxes: Float[Array, "R 4"],
    *,
    stride: float,
    bins: Sequence[int] = (6, 3, 2, 1),
) -> Float[Array, "R B C"]:
    """Joins `roi_max_pool` with several grids (He et al. 2014, 2.2 and 4.1).

    Corners are rounded as in Fast R-CNN, not by He et al.'s own rule (appendix A),
    `floor(x / stride) + 1` at the left and top, `ceil(x / stride) - 1` at the others.

    Args:
      features: as in `roi_max_pool`.
      boxes: as in `roi_max_pool`.
      stride: as in `roi_max_pool`.
      bins: along each side of each grid.

    Returns:
      B, 50 by default, runs over grids in the order given, rows, columns.
    """
    grids = [
        roi_max_pool(features, boxes, stride=stride, output_size=size).reshape(
            len(boxes), size**2, features.shape[-1]
        )
        for size in bins
    ]
    return jnp.concatenate(grids, axis=1)


def adaptive_max_pool(
    features: Float[Array, "R H W C"], output_size: int
) -> Float[Array, "R S S C"]:
    """Max-pools whole maps into a grid of a given size.

    Bin i covers, of m rows or columns, those from `floor(i m / output_size)` up to
    but not including `ceil((i + 1) m / output_size)`. AlexNet's last pooling,
    3x3 of stride 2, is this from 13 to 6, and VGG's, 2x2 of stride 2, from 14 to 7.

    Args:
      features: maps.
      output_size: bins S along each side.

    Returns:
      The grids.
    """
    for axis in (1, 2):
        bins = [
            jax.lax.slice_in_dim(features, first, last, axis=axis)
            for first, last in (
                _bin(i, features.shape[axis], output_size) for i in range(output_size)
            )
        ]
        features = jnp.stack([jnp.max(x, axis) for x in bins], axis)
    return features


class _Windows(NamedTuple):
    """The cells from a bin's start to its end, as windows pooled in advance."""

    start: Int[Array, "R S"]
    end: Int[Array, "R S"]  # not included; at most `start` if there is no cell
    scale: Int[Array, "R S"]  # the windows have `2**scale` cells a side
    windows: Int[Array, "R S"]  # windows it takes; the last ones may overlap


def _rounded(values: Float[Array, "*B"]) -> Int[Array, "*B"]:
    """Rounds halves away from 0, as C does and `jnp.round` does not."""
    truncated = jnp.trunc(values)
    return (truncated + jnp.trunc(2 * (values - truncated))).astype(jnp.int32)


def _bin(index, extent, size):
    """Returns the first cell of a bin on one axis, and the cell after its last."""
    return index * extent // size, ((index + 1) * extent + size - 1) // size


def _windows(
    first: Int[Array, ""], last: Int[Array, ""], extent: int, *, size: int
) -> _Windows:
    """Returns the bins of one box on one axis, from its first to its last cell."""
    start, end = _bin(jnp.arange(size), jnp.maximum(last - first + 1, 1), size)
    start = jnp.clip(first + start, 0, extent)
    end = jnp.clip(first + end, 0, extent)
    length = end - start
    scale = sum((length >= 2**k).astype(jnp.int32) for k in range(1, _SCALES))
    count = (length + (1 << scale) - 1) >> scale  # length over side, rounded up
    return _Windows(start, end, scale, count)


class _Maximum(NamedTuple):
    value: Float[Array, "*B C"]
    cell: Int[Array, "*B C"]  # of the first cell that has it


@jax.custom_vjp
def _max_of_windows(
    features: Float[Array, "H W C"], rows: _Windows, columns: _Windows
) -> Float[Array, "R S S C"]:
    return _maximum(features, rows, columns).value


def _max_of_windows_forward(features, rows, columns):
    value, index = _maximum(features, rows, columns)
    # An empty slice remembers shape and dtype, and keeps no features alive.
    return value, (features[..., :0], index, _is_empty(rows, columns))


def _max_of_windows_backward(saved, gradient):
    like, index, empty = saved
    channels = gradient.shape[-1]
    gradient = jnp.where(empty, 0.0, gradient.astype(jnp.float32))
    total = jnp.zeros((like.shape[0] * like.shape[1], channels))
    channel = jax.lax.broadcasted_iota(jnp.int32, index.shape, index.ndim - 1)
    total = total.at[index, channel].add(gradient, mode="promise_in_bounds")
    return total.reshape(*like.shape[:2], channels).astype(like.dtype), None, None


_max_of_windows.defvjp(_max_of_windows_forward, _max_of_windows_backward)


def _maximum(
    features: Float[Array, "H W C"], rows: _Windows, columns: _Windows
) -> _Maximum:
    """Computes the maximum of each bin, one window of each at a time, for all boxes.

    Where the index is not used, compiled code does not compute it.
    """
    height, width, channels = features.shape
    tables = jax.tree.map(lambda x: x.reshape(-1, channels), _tables(features))
    table = _outer(jnp.add, rows.scale * _SCALES, columns.scale)
    num_rows, num_columns = (
        max_over_images(rows.windows),
        max_over_images(columns.windows),
    )

    def compare(n, best):
        top = _nth_start(rows, n // num_columns, height)
        left = _nth_start(columns, n % num_columns, width)
        entry = table * (height * width) + _outer(jnp.add, top * width, left)
        take = partial(jnp.take, indices=entry, axis=0, mode="clip")
        return _greater(best, jax.tree.map(take, tables))

    empty = _is_empty(rows, columns)
    shape = (*table.shape, channels)
    lowest = jnp.full(shape, -jnp.inf, features.dtype)
    best = _Maximum(lowest, jnp.zeros(shape, jnp.int32))
    best = jax.lax.fori_loop(0, num_rows * num_columns, compare, best)
    return best._replace(value=jnp.where(empty, 0, best.value))


def _is_empty(rows: _Windows, columns: _Windows) -> Bool[Array, "R S S 1"]:
    """Tells whether a bin has no cell."""
    return _outer(jnp.logical_or, rows.windows == 0, columns.windows == 0)[..., None]


def _nth_start(windows: _Windows, n: Int[Array, ""], extent: int) -> Array:
    """Returns where each bin's n-th window starts, or its last where fewer."""
    side = 1 << windows.scale
    start = jnp.minimum(windows.start + n * side, windows.end - side)
    return jnp.clip(start, 0, extent - 1)  # for bins without a cell


def _tables(features: Float[Array, "H W C"]) -> _Maximum:
    """Computes the maxima of all windows, `[heights, widths, H, W, C]`.

    Each stands at its first cell. Those that do not fit into the map are never read.
    """
    height, width, _ = features.shape
    cell = jnp.arange(height * width, dtype=jnp.int32).reshape(height, width, 1)
    table = _Maximum(features, jnp.broadcast_to(cell, features.shape))
    for axis in (-2, -3):
        longer = [table]
        for scale in range(_SCALES - 1):
            shift = partial(jnp.roll, shift=-(2**scale), axis=axis)
            longer.append(_greater(longer[-1], jax.tree.map(shift, longer[-1])))
        table = jax.tree.map(lambda *x: jnp.stack(x), *longer)
    return table


def _greater(a: _Maximum, b: _Maximum) -> _Maximum:
    """Compares entry by entry; of equal values the one that stands first wins."""
    is_b = (b.value > a.value) | ((b.value == a.value) & (b.cell < a.cell))
    return _Maximum(jnp.maximum(a.value, b.value), jnp.where(is_b, b.cell, a.cell))


def _outer(operation: Callable, rows: Array, columns: Array) -> Array:
    """Combines every row with every column, `[R, S]` twice, to `[R, S, S]`."""
    return operation(rows[:, :, None], columns[:, None])
