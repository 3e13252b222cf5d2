"""Which objects the anchors or points of a detector can learn: NumPy, before training.

Every object is looked at as if it were alone in its image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxdet.ops.anchors import cell_centers, pyramid_anchors


class Coverage(NamedTuple):
    """What every object finds among the anchors or points of a detector."""

    best: np.ndarray  # [N]: greatest IoU with an anchor, or how many points learn it
    low: float  # below it, an object is background to all anchors or points
    high: float  # from it on, some answer for it
    measure: str  # what `best` is


def of_pyramid(
    canvas: tuple[int, int],
    boxes: np.ndarray,
    *,
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
    levels: Sequence[int],
    offset: float = 0.5,
    rounded: bool = False,
    within: np.ndarray | None = None,
) -> np.ndarray:
    """The greatest IoU of every object with an anchor of `anchors.pyramid_anchors`.

    Args:
      canvas: `(height, width)` in pixels.
      boxes: `[N, 4]` objects, on canvases of that size.
      sizes: as all that follow but the last, see `pyramid_anchors`.
      ratios: height over width.
      levels: finest first.
      offset: of the centres within their cells, in strides.
      rounded: torchvision's integer arithmetic.
      within: `[N, 2]` true (height, width) of the object's image; only anchors inside
        it count. None: all do.

    Returns:
      `[N]` in [0, 1].
    """
    best = np.zeros(len(boxes))
    for level, level_sizes in zip(levels, sizes, strict=True):
        of_level = {"sizes": [level_sizes], "ratios": ratios, "levels": [level]}
        grid = pyramid_anchors(canvas, **of_level, offset=offset, rounded=rounded)
        rows, columns = (-(-extent // 2**level) for extent in canvas)
        grid = np.asarray(grid).reshape(rows, columns, -1, 4)
        best = np.maximum(best, best_iou(grid, boxes, within=within))
    return best


def best_iou(
    grid: np.ndarray, boxes: np.ndarray, *, within: np.ndarray | None = None
) -> np.ndarray:
    """The greatest IoU of every object with a box of a grid.

    Boxes of one shape overlap an object by a length across times one down, so the best
    column and the best row are found each by itself.

    Args:
      grid: `[rows, columns, S, 4]`, the same S shapes in every cell.
      boxes: `[N, 4]`, objects.
      within: see `of_pyramid`.

    Returns:
      `[N]` in [0, 1].
    """
    overlap = np.ones(1)
    for axis, cells in enumerate((grid[0], grid[:, 0])):  # across, down
        low, high = cells[..., axis], cells[..., axis + 2]  # [cells, S]
        start, end = boxes[:, axis, None, None], boxes[:, axis + 2, None, None]
        length = np.minimum(high, end) - np.maximum(low, start)  # [N, cells, S]
        if within is not None:
            inside = (low >= 0) & (high <= within[:, 1 - axis, None, None])
            length = np.where(inside, length, 0.0)
        overlap = overlap * np.maximum(length.max(axis=1), 0.0)  # [N, S]
    shapes, objects = (x[..., 2:] - x[..., :2] for x in (grid[0, 0], boxes))
    union = np.prod(shapes, axis=-1) + np.prod(objects, axis=-1)[:, None] - overlap
    return (overlap / union).max(axis=1)


def points_in_charge(
    canvas: tuple[int, int],
    boxes: np.ndarray,
    *,
    levels: Sequence[int],
    limits: Sequence[tuple[float, float]],
    reaches: Sequence[float],
    inclusive: bool = True,
    offset: float = 0.5,
    rounded: bool = False,
) -> np.ndarray:
    """How many points learn each object, as `matching.match_points` tells of one.

    Args:
      canvas: `(height, width)` in pixels.
      boxes: `[N, 4]` objects, on canvases of that size.
      levels: of the points, as in `anchors.cell_centers`.
      limits: for each level the least and the greatest distance, in pixels, of a
        point's farthest side.
      reaches: for each level how far off an object's centre its points may lie, in
        pixels, across and down.
      inclusive: whether the limits belong to both of their levels, or to neither.
      offset: of the points within their cells, in strides.
      rounded: torchvision's integer arithmetic.

    Returns:
      `[N]` int.
    """
    below, within = (np.less, np.less_equal)[:: 1 if inclusive else -1]
    total = np.zeros(len(boxes), int)
    for level, (low, high), reach in zip(levels, limits, reaches, strict=True):
        points = cell_centers(canvas, levels=[level], offset=offset, rounded=rounded)
        rows, columns = (-(-extent // 2**level) for extent in canvas)
        points = np.asarray(points).reshape(rows, columns, 2)
        # The farther of the two sides across, and of those down.
        farther = [
            _farther_side(points[0, :, 0], boxes[:, ::2], reach),
            _farther_side(points[:, 0, 1], boxes[:, 1::2], reach),
        ]
        # Of all four, the farthest is within limits where both are, but not too near.
        near, nearer = (
            np.prod([np.sum(nearer_than(side, limit), axis=1) for side in farther], 0)
            for nearer_than, limit in ((within, high), (below, low))
        )
        total += near - nearer
    return total


def _farther_side(points: np.ndarray, sides: np.ndarray, reach: float) -> np.ndarray:
    """`[cells]` and `[N, 2]` -> `[N, cells]`; NaN outside, or out of reach."""
    before, after = points - sides[:, :1], sides[:, 1:] - points
    inside = (np.minimum(before, after) > 0) & (np.abs(after - before) / 2 < reach)
    return np.where(inside, np.maximum(before, after), np.nan)
