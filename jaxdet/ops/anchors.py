"""Makes anchors: boxes of fixed shapes on a grid, which a dense detector refines."""

from collections.abc import Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

ROUNDED_MULTIPLE = 32  # of torchvision's canvases; others would shift the last cells


def pyramid_anchors(
    canvas: tuple[int, int],
    *,
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
    levels: Sequence[int],
    offset: float = 0.5,
    rounded: bool = False,
) -> Float[Array, "A 4"]:
    """Returns the anchors of every cell of a feature pyramid (Ren et al. 2015, 3.1.1).

    Args:
      canvas: `(height, width)` in pixels, static.
      sizes: for each level its anchor sizes, the square roots of their areas in pixels.
      ratios: height over width.
      levels: finest first. Level l has stride `2**l` and `ceil(canvas / 2**l)` cells.
      offset: where in its cell an anchor has its center, in strides; torchvision and
        detectron2 use 0.
      rounded: torchvision's integer arithmetic: half sides are rounded, and cells lie
        `canvas // cells` apart, less than a stride that does not divide the canvas.

    Returns:
      Boxes, not clipped. A runs over levels (in the order given), rows, columns,
      ratios, sizes.

    Raises:
      ValueError: if there is not one group of sizes for each level; or if cells are
        rounded on a canvas that is no multiple of 32, nor of their stride.
    """
    if len(sizes) != len(levels):
        raise ValueError(f"{len(sizes)} groups of sizes for {len(levels)} levels")
    grids = []
    for level, level_sizes in zip(levels, sizes, strict=True):
        shapes = _shapes(level_sizes, ratios, rounded=rounded)
        y, x = (_centers(extent, level, offset, rounded=rounded) for extent in canvas)
        y, x = np.meshgrid(y, x, indexing="ij")
        centers = np.stack([x, y, x, y], axis=-1)
        grids.append((centers[:, :, None] + shapes).reshape(-1, 4))
    # In NumPy: a constant of the compiled program, as the canvas is static.
    return jnp.asarray(np.concatenate(grids), jnp.float32)


def default_boxes(
    feature_sizes: Sequence[tuple[int, int]],
    *,
    strides: Sequence[float],
    sizes: Sequence[Sequence[Sequence[float]]],
) -> Float[Array, "A 4"]:
    """Returns the default boxes of SSD, map by map (Liu et al. 2016, 2.2).

    Args:
      feature_sizes: (rows, columns) of each map, static.
      strides: for each map the pixels from one cell to the next; the first box has its
        center half a stride from the corner.
      sizes: for each map the (height, width) of its boxes, in pixels.

    Returns:
      Boxes, not clipped. A runs over maps, rows, columns, shapes.

    Raises:
      ValueError: if there is not one stride and one group of sizes for each map.
    """
    grids = []
    for extents, stride, sides in zip(feature_sizes, strides, sizes, strict=True):
        y, x = (stride * (np.arange(extent) + 0.5) for extent in extents)
        y, x = np.meshgrid(y, x, indexing="ij")
        centers = np.stack([x, y, x, y], axis=-1)
        half = np.array(sides)[:, ::-1] / 2  # width first
        shifts = np.concatenate([-half, half], axis=-1)
        grids.append((centers[:, :, None] + shifts).reshape(-1, 4))
    return jnp.asarray(np.concatenate(grids), jnp.float32)


def cell_centers(
    canvas: tuple[int, int],
    *,
    levels: Sequence[int],
    offset: float = 0.5,
    rounded: bool = False,
) -> Float[Array, "A 2"]:
    """Returns the point that each cell of a pyramid stands for (Tian et al. 2019, 3.1).

    Args:
      canvas: `(height, width)` in pixels, static.
      levels: as in `pyramid_anchors`.
      offset: where in its cell the point lies, in strides; torchvision uses 0.
      rounded: cells lie `canvas // cells` apart, as in torchvision.

    Returns:
      (x, y) in pixels. A runs over levels (in the order given), rows,
      columns: the anchors of `pyramid_anchors` where each cell has one.
    """
    grids = []
    for level in levels:
        y, x = (_centers(extent, level, offset, rounded=rounded) for extent in canvas)
        grids.append(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2))
    return jnp.asarray(np.concatenate(grids), jnp.float32)


def topk_per_level(
    scores: Float[Array, "A K"],
    canvas: tuple[int, int],
    *,
    levels: Sequence[int],
    per_cell: int,
    k: int,
) -> tuple[Float[Array, " M"], Int[Array, " M"], Int[Array, " M"]]:
    """Returns the highest scores of each level, so that none outnumbers another.

    Args:
      scores: of the anchors for each class.
      canvas: `(height, width)` in pixels, static.
      levels: as in `pyramid_anchors`.
      per_cell: anchors in each cell.
      k: scores of each level; one with fewer gives all it has.

    Returns:
      Scores, anchors and classes, level by level, best first.
    """
    counts = [num_anchors(canvas, levels=(x,), per_cell=per_cell) for x in levels]
    num_classes = scores.shape[1]
    # They are among those of as many anchors: far fewer to sort.
    best, chosen = _topk_of_parts(jnp.max(scores, axis=1), counts, k)
    if num_classes == 1:
        return best, chosen, jnp.zeros_like(chosen)
    # Levels are padded to the same length, so that they can be sorted together.
    width = min(k, max(counts))
    ends = np.cumsum([min(k, count) for count in counts])
    rows = [
        jnp.pad(x, (0, width - len(x)), constant_values=len(scores))
        for x in jnp.split(chosen, ends[:-1])
    ]
    rows = jnp.sort(jnp.stack(rows), axis=1)  # of equal scores the first stay first
    candidates = scores.at[rows].get(mode="fill", fill_value=-jnp.inf)
    candidates = candidates.reshape(len(rows), -1)  # [levels, width * K]
    lengths = [min(k, count * num_classes) for count in counts]
    best, index = jax.lax.platform_dependent(
        candidates,
        tpu=partial(topk_at_once, lengths=lengths),
        default=partial(topk_by_rows, lengths=lengths),
    )
    anchors, labels = jnp.divmod(index, num_classes)
    level = np.repeat(np.arange(len(rows)), lengths)
    return best, rows[level, anchors], labels


def topk_by_rows(
    rows: Iterable[jax.Array], lengths: Sequence[int]
) -> tuple[Float[Array, " M"], Int[Array, " M"]]:
    """Returns the highest values of each row and their columns, row by row.

    Args:
      rows: of any lengths.
      lengths: how many values of each.
    """
    parts = [jax.lax.top_k(*x) for x in zip(rows, lengths, strict=True)]
    best, index = map(jnp.concatenate, zip(*parts, strict=True))
    return best, index


def topk_at_once(
    values: Float[Array, "R N"], lengths: Sequence[int]
) -> tuple[Float[Array, " M"], Int[Array, " M"]]:
    """Returns the same from a single sort.

    Compilers for TPUs need 10 s for each; on CPUs only `top_k` of few axes is fast.

    Args:
      values: rows of one length.
      lengths: as in `topk_by_rows`.
    """
    best, index = jax.lax.top_k(values, max(lengths))
    rows = list(enumerate(lengths))
    join = [jnp.concatenate([x[i, :n] for i, n in rows]) for x in (best, index)]
    return join[0], join[1]


def _topk_of_parts(
    values: Float[Array, " A"], counts: Sequence[int], k: int
) -> tuple[Float[Array, " M"], Int[Array, " M"]]:
    """Returns the highest values of each part and their places, the best first.

    Args:
      values: of one part after the other.
      counts: how many values each part has.
      k: values of each part; one with fewer gives all it has.
    """
    starts = np.cumsum([0, *counts[:-1]])
    lengths = [min(k, count) for count in counts]
    best, index = topk_by_rows(jnp.split(values, starts[1:]), lengths)
    return best, index + np.repeat(starts, lengths).astype(np.int32)


def num_anchors(
    canvas: tuple[int, int], *, levels: Sequence[int], per_cell: int
) -> int:
    """Counts the anchors of `pyramid_anchors` where each cell has `per_cell`.

    Args:
      canvas: `(height, width)` in pixels, static.
      levels: as in `pyramid_anchors`.
      per_cell: anchors in each cell.

    Returns:
      Their number.
    """
    height, width = canvas
    cells = sum(-(-height // 2**level) * -(-width // 2**level) for level in levels)
    return cells * per_cell


def inside_mask(
    shape: tuple[int, ...],
    sizes: Int[Array, "B 2"] | None,
    *,
    levels: Sequence[int],
    per_cell: int,
) -> Bool[Array, "B A"]:
    """Tells which anchors belong to cells that touch the image, not only its canvas.

    Those are the anchors of a canvas as large as the image, in the same order.

    Args:
      shape: of the batch's images, `(B, height, width, ...)`.
      sizes: true (height, width); None: all of the canvas is image.
      levels: as in `pyramid_anchors`.
      per_cell: anchors in each cell.

    Returns:
      Whether, for each image and anchor.
    """
    batch, *canvas = shape[:3]
    if sizes is None:
        sizes = jnp.broadcast_to(jnp.array(canvas), (batch, 2))
    masks = []
    for level in levels:
        rows, columns = (
            np.arange(-(-extent // 2**level))[None] * 2**level for extent in canvas
        )
        inside = (rows < sizes[:, :1])[:, :, None] & (columns < sizes[:, 1:])[:, None]
        masks.append(jnp.repeat(inside.reshape(batch, -1), per_cell, axis=1))
    return jnp.concatenate(masks, axis=1)


def _shapes(
    sizes: Sequence[float], ratios: Sequence[float], *, rounded: bool
) -> np.ndarray:
    """Boxes around the origin, `[shapes, 4]`, ratio by ratio."""
    roots, sizes = np.sqrt(ratios)[:, None], np.array(sizes)[None]
    half_sides = np.stack([sizes / roots, sizes * roots], axis=-1).reshape(-1, 2) / 2
    if rounded:
        half_sides = np.round(half_sides)
    return np.concatenate([-half_sides, half_sides], axis=-1)


def _centers(extent: int, level: int, offset: float, *, rounded: bool) -> np.ndarray:
    """Centers of the cells of a level along one side of the canvas, in pixels."""
    stride = 2**level
    cells = -(-extent // stride)
    if rounded and extent % min(stride, ROUNDED_MULTIPLE):
        raise ValueError(
            f"a canvas side is {extent}; it must be a multiple of "
            f"{min(stride, ROUNDED_MULTIPLE)} for cells that lie whole pixels apart"
        )
    step = extent // cells if rounded else stride
    return (np.arange(cells) + offset) * step
