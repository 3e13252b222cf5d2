"""Samples the features of a box between cells, never rounded to them (RoI Align).

Cells have their values at their centers: that of row i, column j of a map of stride s
sits at `((j + 0.5) s, (i + 0.5) s)` pixels. Between four centers the map is bilinear;
up to half a cell beyond the map it repeats its edge, and further out it is 0.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdet.ops.boxes import area, to_float32
from jaxdet.ops.roi_align_matrices import Samples, pool_by_matrices

# Samples of a bin along one axis where their number follows from the box. A bin of more
# cells is sampled this often all the same, more coarsely than its cells.
MAX_SAMPLING_RATIO = 16
# Cells that a bin reads, up to which they are summed in one expression, not in a loop.
_FEW_CELLS = 16


def roi_align(
    features: Float[Array, "H W C"],
    boxes: Float[Array, "R 4"],
    *,
    stride: float,
    output_size: int = 7,
    sampling_ratio: int = 2,
    aligned: bool = True,
    image_size: Int[Array, "2"] | None = None,
) -> Float[Array, "R S S C"]:
    """Averages bilinear samples in a grid of bins on each box (He et al. 2017, 3).

    The boxes get no gradient. That of the features is summed by a scatter-add, whose
    order on GPUs is left to chance; with XLA's flag `--xla_gpu_deterministic_ops` it is
    fixed, and equal runs give equal bits.

    Args:
      features: a map of the image.
      boxes: pixels, anywhere. A box of no area is sampled at its point, or all 0 if
        `aligned` and `sampling_ratio` is 0; padding is thus finite, and to be masked by
        callers.
      stride: pixels per cell.
      output_size: bins S along each side.
      sampling_ratio: samples along each side of a bin; 0: `ceil(side / output_size)`
        for each box and axis, the side in cells, at most `MAX_SAMPLING_RATIO`. One
        large box then slows all of them down: the loop runs as often as the box with
        the most cells needs.
      aligned: False is torchvision's older convention: samples lie half a cell further
        right and down, and no side is shorter than a cell.
      image_size: true (height, width) in pixels: the map is taken to end after
        `ceil(image_size / stride)` cells, whatever lies beyond; None: it ends where it
        ends.

    Returns:
      Features of the boxes in the dtype of the map, summed in float32.
    """
    level = jnp.zeros(len(boxes), jnp.int32)
    grid = _Grid(output_size, sampling_ratio, aligned)
    boxes = to_float32(boxes) / stride
    return _pool([features], boxes, level, [stride], image_size, grid)


def pyramid_roi_align(
    pyramid: dict[int, Float[Array, "_ _ C"]],
    boxes: Float[Array, "R 4"],
    *,
    output_size: int = 7,
    sampling_ratio: int = 2,
    aligned: bool = True,
    canonical_size: float = 224,
    canonical_level: int = 4,
    image_size: Int[Array, "2"] | None = None,
) -> Float[Array, "R S S C"]:
    """Runs `roi_align` for each box on the level of its size (Lin et al. 2017, 4.2).

    Each box reads its own level alone: the maps are laid end to end and read by index.

    Args:
      pyramid: `{level: [H, W, C]}`, level l of stride `2**l`.
      boxes: pixels, as in `roi_align`.
      output_size: as in `roi_align`.
      sampling_ratio: as in `roi_align`.
      aligned: as in `roi_align`.
      canonical_size: as in `assign_levels`.
      canonical_level: as in `assign_levels`.
      image_size: as in `roi_align`, for all levels.

    Returns:
      Features of the boxes.

    Raises:
      ValueError: if levels are missing between the finest and the coarsest.
    """
    levels = sorted(pyramid)
    level = assign_levels(
        boxes, levels, canonical_size=canonical_size, canonical_level=canonical_level
    )
    maps, strides = [pyramid[x] for x in levels], [2**x for x in levels]
    level -= levels[0]
    boxes = to_float32(boxes) / jnp.array(strides, jnp.float32)[level, None]
    grid = _Grid(output_size, sampling_ratio, aligned)
    return _pool(maps, boxes, level, strides, image_size, grid)


def assign_levels(
    boxes: Float[Array, "R 4"],
    levels: Sequence[int],
    *,
    canonical_size: float = 224,
    canonical_level: int = 4,
) -> Int[Array, " R"]:
    """Returns the pyramid level that fits each box (Lin et al. 2017, equation 1).

    Args:
      boxes: one of no area gets the finest level.
      levels: of the pyramid, without gaps, in any order.
      canonical_size: square root of the area of a box on `canonical_level`, in pixels.
        Twice the size is one level up; 1e-6 of a level is added against rounding.
      canonical_level: may lie outside the pyramid.

    Returns:
      Levels, clipped to those of the pyramid.

    Raises:
      ValueError: if levels are missing between the finest and the coarsest.
    """
    finest, coarsest = min(levels), max(levels)
    if sorted(levels) != list(range(finest, coarsest + 1)):
        raise ValueError(f"levels {sorted(levels)}: all from finest to coarsest needed")
    size = jnp.sqrt(jnp.maximum(area(boxes), jnp.finfo(jnp.float32).tiny))
    level = jnp.floor(canonical_level + jnp.log2(size / canonical_size) + 1e-6)
    return jnp.clip(level, finest, coarsest).astype(jnp.int32)


@jax.custom_batching.custom_vmap
def max_over_images(counts: Int[Array, "..."]) -> Int[Array, ""]:
    """Returns the greatest count, or 0; under `vmap` of all images together.

    As the bound of a loop it keeps the loop one loop: with a bound for each image, XLA
    would copy all that the loop carries, to hold still the images that are through.
    """
    return jnp.max(counts, initial=0)


@max_over_images.def_vmap
def _max_over_images_vmap(axis_size, in_batched, counts):
    del axis_size, in_batched
    return max_over_images(counts), False


class _Grid(NamedTuple):
    size: int  # bins along each side
    sampling_ratio: int  # samples along each side of a bin; 0: they follow from the box
    aligned: bool


def _pool(
    maps: list[Float[Array, "_ _ C"]],
    boxes: Float[Array, "R 4"],
    level: Int[Array, " R"],
    strides: Sequence[float],
    image_size: Int[Array, "2"] | None,
    grid: _Grid,
) -> Float[Array, "R S S C"]:
    """Pools boxes, in cells of their maps; levels are indices of these."""
    extents = _extents([x.shape[:2] for x in maps], strides, image_size)
    return jax.lax.platform_dependent(
        maps,
        jax.lax.stop_gradient(boxes),
        level,
        extents,
        tpu=partial(_pool_by_matrices, grid=grid),
        default=partial(_pool_by_gathers, grid=grid),
    )


def _pool_by_matrices(maps, boxes, level, extents, *, grid: _Grid):
    x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
    samples = jax.vmap(partial(_samples, grid=grid))
    rows, _ = samples(y1, y2, extents[level, 0])
    columns, _ = samples(x1, x2, extents[level, 1])
    return pool_by_matrices(maps, extents, level, rows, columns)


def _pool_by_gathers(maps, boxes, level, extents, *, grid: _Grid):
    """Lays maps end to end; boxes read their own by index."""
    flat = [features.reshape(-1, features.shape[-1]) for features in maps]
    starts = [sum(map(len, flat[:i])) for i in range(len(flat))]
    layout = _Layout(
        height=extents[:, 0],
        width=extents[:, 1],
        start=jnp.array(starts, jnp.int32),
        step=jnp.array([features.shape[1] for features in maps], jnp.int32),
    )
    layout = jax.tree.map(lambda x: x[level], layout)
    rows, columns = _cells(boxes, layout, grid)
    # XLA would make these again for each of the cells that a bin reads. `used` stays
    # outside: where it is a constant, the loop need not ask the host how to go on.
    flat, known = jax.lax.optimization_barrier(
        (jnp.concatenate(flat), _Cells(rows, columns))
    )
    cells = _Cells(
        known.rows._replace(used=rows.used), known.columns._replace(used=columns.used)
    )
    return _weighted_sum(flat, cells)


class _Layout(NamedTuple):
    """Where the map of each box lies in the flattened maps."""

    height: Int[Array, "..."]  # rows that count
    width: Int[Array, "..."]  # columns that count
    start: Int[Array, "..."]  # index of the first cell
    step: Int[Array, "..."]  # cells from one row to the next


def _extents(
    shapes: Sequence[Sequence[int]],
    strides: Sequence[float],
    image_size: Int[Array, "2"] | None,
) -> Int[Array, "L 2"]:
    """Rows and columns of maps that belong to the image.

    At least one: an empty image has no box that counts, but is to stay finite.
    """
    extents = jnp.array(shapes, jnp.int32)
    if image_size is None:
        return extents
    cells = -(-image_size[None] // jnp.array(strides)[:, None])
    return jnp.clip(cells.astype(jnp.int32), 1, extents)


class _Axis(NamedTuple):
    """The cells that each bin reads along one axis; T slots, some of weight 0."""

    cell: Int[Array, "R S T"]  # in cells of the flattened map
    weight: Float[Array, "R S T"]
    used: Int[Array, ""]  # slots from here on have weight 0


class _Cells(NamedTuple):
    """Bins sum over their rows times their columns: the weights are separable."""

    rows: _Axis  # cell: the row's first
    columns: _Axis  # cell: to be added to that


def _cells(boxes: Float[Array, "R 4"], layout: _Layout, grid: _Grid) -> _Cells:
    """Returns where bins read, and with which weight; boxes in cells of their map."""
    x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
    axis = jax.vmap(partial(_axis, grid=grid))
    rows, columns = (
        _Axis(index, weight, max_over_images(used))
        for index, weight, used in (
            axis(y1, y2, layout.height),
            axis(x1, x2, layout.width),
        )
    )
    index = layout.start[:, None, None] + rows.cell * layout.step[:, None, None]
    return _Cells(rows._replace(cell=index), columns)


def _axis(
    start: Float[Array, ""], end: Float[Array, ""], extent: Int[Array, ""], grid: _Grid
) -> tuple[Int[Array, "S T"], Float[Array, "S T"], Int[Array, ""]]:
    """Returns index, weight and number of the slots of one box on one axis."""
    samples, count = _samples(start, end, extent, grid)
    low, high = _corners(samples, extent)
    if grid.sampling_ratio == 0:
        return _merge_equal_cells(low, high, count)
    index, weight = jax.tree.map(lambda *x: jnp.concatenate(x, -1), low, high)
    return index, weight, 2 * count


def _samples(
    start: Float[Array, ""], end: Float[Array, ""], extent: Int[Array, ""], grid: _Grid
) -> tuple[Samples, Int[Array, ""]]:
    """Returns the samples of one box on one axis, and their number in a bin."""
    side = end - start
    if grid.aligned:
        start = start - 0.5
    else:
        side = jnp.maximum(side, 1.0)
    if grid.sampling_ratio == 0:
        count = jnp.clip(jnp.ceil(side / grid.size), 0, MAX_SAMPLING_RATIO)
        count = count.astype(jnp.int32)
    else:
        count = jnp.int32(grid.sampling_ratio)
    sample = jnp.arange(grid.sampling_ratio or MAX_SAMPLING_RATIO)[None]
    within_bin = (sample + 0.5) / jnp.maximum(count, 1)
    bins = jnp.arange(grid.size)[:, None] + within_bin
    position = start + bins * (side / grid.size)
    used = (sample < count) & (position >= -1) & (position <= extent)
    weight = jnp.where(used, 1 / jnp.maximum(count, 1), 0.0)
    return Samples(jnp.clip(position, 0, extent - 1), weight), count


class _Corner(NamedTuple):
    cell: Int[Array, "S N"]  # index on one axis
    weight: Float[Array, "S N"]


def _corners(samples: Samples, extent: Int[Array, ""]) -> tuple[_Corner, _Corner]:
    """Returns the cells around samples on one axis."""
    low = jnp.floor(samples.position).astype(jnp.int32)
    high = jnp.minimum(low + 1, extent - 1)
    weight = samples.position - low
    return (
        _Corner(low, (1 - weight) * samples.weight),
        _Corner(high, weight * samples.weight),
    )


def _merge_equal_cells(
    low: _Corner, high: _Corner, count: Int[Array, ""]
) -> tuple[Int[Array, "S T"], Float[Array, "S T"], Int[Array, ""]]:
    """Adds up the weights of equal cells.

    Samples at most a cell apart share their cells: n of them touch `n + 1`, not `2 n`.
    A cell's slot is the number of distinct cells before it; low ones come in order.
    """
    most = low.cell.shape[-1]
    slots = jnp.arange(2 * most)[None, None]
    # A step of more than a cell passes the high cell of the sample before, too.
    steps = jnp.minimum(jnp.diff(low.cell, axis=-1), 2)
    slot = jnp.cumsum(jnp.pad(steps, [(0, 0), (1, 0)]), axis=-1)
    index, weight = jnp.int32(0), jnp.float32(0)
    for corner, place in ((low, slot), (high, slot + 1)):
        here = place[..., None] == slots  # [size, samples, T]
        index = jnp.maximum(index, jnp.max(corner.cell[..., None] * here, axis=1))
        weight += jnp.sum(corner.weight[..., None] * here, axis=1)
    ends = jnp.where(jnp.arange(most)[None] < count, slot + 2, 0)
    return index, weight, jnp.max(ends)


@jax.custom_vjp
def _weighted_sum(
    flat: Float[Array, "cells C"], cells: _Cells
) -> Float[Array, "R S S C"]:
    """Sums the cells that each bin reads by their weights.

    One of a bin's cells at a time, for all bins of all boxes: vectors of C are gathered
    and added without a copy of what all bins read, which would be the most memory of a
    two-stage detector. The gradient is written out for the same reason. Few cells are
    added without a loop, whose every round would write all bins.
    """
    count, size, slots = cells.rows.cell.shape

    def add(term, total):
        index, weight = _read(cells, term)
        values = jnp.take(flat, index, axis=0, mode="clip").astype(jnp.float32)
        return total + weight[..., None] * values

    total = jnp.zeros((count, size, size, flat.shape[-1]))
    if slots**2 > _FEW_CELLS:
        return _for_each_cell(cells, add, total).astype(flat.dtype)
    for term in itertools.product(range(slots), repeat=2):
        total = add(term, total)
    return total.astype(flat.dtype)


def _weighted_sum_forward(flat, cells):
    # An empty slice remembers shape and dtype, and keeps no features alive.
    return _weighted_sum(flat, cells), (flat[:, :0], cells)


def _weighted_sum_backward(saved, gradient):
    like, cells = saved
    gradient = gradient.astype(jnp.float32)

    def add(term, total):
        index, weight = _read(cells, term)
        update = weight[..., None] * gradient
        return total.at[index].add(update, mode="promise_in_bounds")

    total = jnp.zeros((len(like), gradient.shape[-1]))
    return _for_each_cell(cells, add, total).astype(like.dtype), None


_weighted_sum.defvjp(_weighted_sum_forward, _weighted_sum_backward)


def _for_each_cell(cells: _Cells, body: Callable, initial: Array) -> Array:
    """Loops over the slots of rows times those of columns that anything uses."""
    rows, columns = cells.rows.used, cells.columns.used

    def body_of_cell(term, carry):
        return body((term // columns, term % columns), carry)

    return jax.lax.fori_loop(0, rows * columns, body_of_cell, initial)


def _read(
    cells: _Cells, term: tuple
) -> tuple[Int[Array, "R S S"], Float[Array, "R S S"]]:
    """Returns index and weight of one of the cells of each bin."""
    row, column = term
    rows, columns = cells
    index = rows.cell[:, :, None, row] + columns.cell[:, None, :, column]
    return index, rows.weight[:, :, None, row] * columns.weight[:, None, :, column]
