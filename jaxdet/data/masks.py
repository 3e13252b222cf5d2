"""Converts masks on the host: segmentations to grids in boxes, and grids to pixels."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

_ALLOWED_POLYGONS = "allowed: polygons [x1, y1, x2, y2, ..] of 3 or more points"
_SUPERSAMPLING = 4  # points a side in each cell that a polygon may or may not cover


def parse_segmentation(
    segmentation: Any, size: tuple[int, int], dtype: type[np.floating] = np.float32
) -> tuple[np.ndarray, ...] | dict[str, Any]:
    """Checks a segmentation of COCO's json and makes it small.

    Args:
      segmentation: polygons `[[x1, y1, x2, y2, ..], ..]`, or run lengths
        `{"size": [height, width], "counts": ..}`, compressed or not.
      size: (height, width) of the image.
      dtype: of polygons.

    Returns:
      Polygons as `[2 points]` arrays, or compressed run lengths. Parts of fewer
      than three points, strays of a mouse, are left out where others remain.

    Raises:
      ValueError: it is neither; says what is allowed.
    """
    if isinstance(segmentation, dict):
        return _parse_run_lengths(segmentation, size)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("allowed: one or more polygons, or run lengths")
    polygons = []
    for polygon in segmentation:
        try:
            points = np.array(polygon, dtype)
        except (ValueError, TypeError, OverflowError):
            raise ValueError(_ALLOWED_POLYGONS) from None
        if points.ndim != 1 or len(points) % 2:
            raise ValueError(_ALLOWED_POLYGONS)
        if not (np.abs(points) < 1e6).all():
            raise ValueError("allowed: polygons of finite coordinates")
        if len(points) >= 6:
            polygons.append(points)
    if not polygons:
        raise ValueError(_ALLOWED_POLYGONS)
    return tuple(polygons)


def to_run_lengths(
    segmentation: tuple[np.ndarray, ...] | dict[str, Any], size: tuple[int, int]
) -> dict[str, Any]:
    """Draws a segmentation at the size of its image.

    Args:
      segmentation: from `parse_segmentation`.
      size: (height, width) of the image.

    Returns:
      Compressed run lengths.
    """
    if isinstance(segmentation, dict):
        return segmentation
    return _draw(
        [points.reshape(-1, 2).astype(np.float64) for points in segmentation],
        size,
        margin=max(size),
    )


def rasterize(
    segmentation: tuple[np.ndarray, ...] | dict[str, Any],
    box: np.ndarray,
    mask_size: int,
) -> np.ndarray:
    """Measures how much of each cell of a grid in `box` the object covers.

    Args:
      segmentation: from `parse_segmentation`.
      box: `[4]` (x1, y1, x2, y2) in pixels of the image, with area.
      mask_size: M, a side of the grid.

    Returns:
      `[M, M]` float32 in [0, 1]; of polygons in steps of 1/16.
    """
    x1, y1, x2, y2 = np.asarray(box, np.float64)
    if isinstance(segmentation, dict):
        pixels = coco_mask.decode(segmentation).astype(np.float32)
        rows = _shares(y1, y2, mask_size, pixels.shape[0])
        columns = _shares(x1, x2, mask_size, pixels.shape[1])
        return (rows @ pixels @ columns.T).clip(0, 1)
    side = _SUPERSAMPLING * mask_size
    scale = side / np.array([x2 - x1, y2 - y1])
    polygons = [(points.reshape(-1, 2) - [x1, y1]) * scale for points in segmentation]
    runs = _draw(polygons, (side, side), margin=9 * side)
    shape = (mask_size, _SUPERSAMPLING, mask_size, _SUPERSAMPLING)
    fine = coco_mask.decode(runs).reshape(shape)
    return fine.mean(axis=(1, 3), dtype=np.float32)


def rasterize_all(
    segmentations: Sequence, boxes: np.ndarray, mask_size: int
) -> np.ndarray:
    """Rasterizes the segmentations of one image, each in its box; see `rasterize`.

    Args:
      segmentations: N of them.
      boxes: `[N, 4]`.
      mask_size: M.

    Returns:
      `[N, M, M]` float32.
    """
    grids = np.zeros((len(boxes), mask_size, mask_size), np.float32)
    for grid, segmentation, box in zip(grids, segmentations, boxes, strict=True):
        grid[:] = rasterize(segmentation, box, mask_size)
    return grids


def draw_mask(
    mask: np.ndarray, box: np.ndarray, size: tuple[int, int]
) -> tuple[tuple[slice, slice], np.ndarray]:
    """Draws an object: the pixels whose centers lie in cells that it covers half.

    Args:
      mask: `[M, M]` of shares in [0, 1], as from `rasterize`.
      box: `[4]` (x1, y1, x2, y2) in pixels of the image, inside it, with area.
      size: (height, width) of the image.

    Returns:
      The rows and columns of the image that the box touches, and their pixels
      `[rows, columns]` bool.
    """
    low = np.floor(box[:2]).astype(int)
    high = np.minimum(np.ceil(box[2:]).astype(int), size[::-1])
    padded = np.pad(mask, 1)  # for centers outside the box

    def cells(axis: int) -> np.ndarray:
        """Returns the cell, in the padded mask, of each row or column of pixels."""
        centers = np.arange(low[axis], high[axis]) + 0.5
        shares = (centers - box[axis]) / (box[axis + 2] - box[axis])
        return np.floor(shares * len(mask)).clip(-1, len(mask)).astype(int) + 1

    window = slice(low[1], high[1]), slice(low[0], high[0])
    return window, padded[cells(1)][:, cells(0)] >= 0.5


def resample_masks(masks: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Resamples masks of some boxes for others, bilinearly.

    Args:
      masks: `[N, M, M]`.
      old: `[N, 4]`, the boxes that they are cut to, with area.
      new: `[N, 4]`, the boxes that they shall be cut to.

    Returns:
      `[N, M, M]` float32.
    """
    cells = masks.shape[-1]
    centers = (np.arange(cells) + 0.5) / cells
    for axis in (1, 2):  # rows, then columns; by indices, as threads would share BLAS
        (start, end), (low, high) = (
            (boxes[:, 2 - axis, None], boxes[:, 4 - axis, None]) for boxes in (old, new)
        )
        positions = (low + centers * (high - low) - start) / (end - start) * cells
        positions = np.expand_dims(np.clip(positions - 0.5, 0, cells - 1), 3 - axis)
        lower = np.floor(positions).astype(int)
        upper, share = np.minimum(lower + 1, cells - 1), positions - lower
        masks = (1 - share) * np.take_along_axis(masks, lower, axis) + (
            share * np.take_along_axis(masks, upper, axis)
        )
    return masks.astype(np.float32)


def paste(
    probabilities: np.ndarray, box: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Draws the pixels of a mask that a network gave for a box.

    What `jaxdet.ops.masks.paste_masks` gives, at least 0.5; but only the pixels of the
    box are computed.

    Args:
      probabilities: `[M, M]` float32.
      box: `[4]` (x1, y1, x2, y2) in pixels of the image; without area, nothing is
        drawn.
      size: (height, width) of the image.

    Returns:
      `[height, width]` uint8, 0 or 1.
    """
    pixels = np.zeros(size, np.uint8)
    box = np.asarray(box, np.float32)
    if not (box[2:] > box[:2]).all():
        return pixels
    cells = len(probabilities)
    half = (box[2:] - box[:2]) * np.float32(0.5) * np.float32((cells + 2) / cells)
    center = (box[2:] + box[:2]) * np.float32(0.5)
    first, last = (
        np.trunc(corner).astype(int) for corner in (center - half, center + half)
    )
    sides = np.maximum(last - first + 1, 1)
    padded = np.pad(probabilities.astype(np.float32), 1)
    resized = cv2.resize(padded, sides.tolist(), interpolation=cv2.INTER_LINEAR)
    x1, y1 = np.maximum(first, 0)
    x2, y2 = np.minimum(first + sides, size[::-1])
    x, y = first
    if x2 > x1 and y2 > y1:
        pixels[y1:y2, x1:x2] = resized[y1 - y : y2 - y, x1 - x : x2 - x] >= 0.5
    return pixels


def encode_rle(pixels: np.ndarray) -> dict[str, Any]:
    """Encodes `[H, W]` of 0 and 1 as COCO's compressed run lengths, ready for json."""
    runs = coco_mask.encode(np.asfortranarray(pixels, np.uint8))
    return {"size": list(runs["size"]), "counts": runs["counts"].decode()}


def decode_rle(masks: Sequence[dict[str, Any]]) -> np.ndarray:
    """Decodes compressed run lengths of one image to `[N, height, width]` bool."""
    return np.moveaxis(coco_mask.decode(list(masks)), -1, 0).astype(bool)


def _draw(
    polygons: Sequence[np.ndarray], size: tuple[int, int], *, margin: float
) -> dict[str, Any]:
    """Draws the union of polygons in pixels, in time linear in their points.

    Args:
      polygons: `[points, 2]` float64 (x, y) each.
      size: (height, width) of the picture.
      margin: what lies farther outside of it is drawn nearer, since COCO's code walks
        along every edge.

    Returns:
      Compressed run lengths.
    """
    limits = np.array(size[::-1]) + margin
    near = [points.clip(-margin, limits).ravel() for points in polygons]
    runs = coco_mask.frPyObjects(near, *size)
    # In pairs: one after the other would read the whole union again for each.
    while len(runs) > 1:
        runs = [coco_mask.merge(runs[i : i + 2]) for i in range(0, len(runs), 2)]
    return runs[0]


def _parse_run_lengths(segmentation: dict, size: tuple[int, int]) -> dict[str, Any]:
    height, width = size
    found, counts = segmentation.get("size"), segmentation.get("counts")
    if found != [height, width]:
        raise ValueError(
            f"allowed: run lengths whose size is that of the image, {[height, width]}"
        )
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")  # as pycocotools itself returns them
    if isinstance(counts, str):
        counts = _read_counts(counts)
    right = isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts)
    if not right or sum(counts) != height * width:
        # pycocotools would read on in whatever memory comes next.
        raise ValueError(
            "allowed: counts, as whole numbers or as COCO's text, that sum up to "
            f"{height} * {width}"
        )
    runs = {"size": [height, width], "counts": counts}
    return coco_mask.frPyObjects(runs, height, width)


def _read_counts(text: str) -> list[int]:
    """Undoes COCO's compression.

    A count is written in groups of five bits, lowest first, 32 added where more follow,
    its sign that of the last; from the fourth on it is the difference to that two
    before.
    """
    counts, value, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        if shift > 60:
            return []  # No image has so many pixels.
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    return counts


def _shares(start: float, stop: float, cells: int, length: int) -> np.ndarray:
    """Returns how much of each cell lies in a pixel, `[cells, length]`."""
    edges = np.linspace(start, stop, cells + 1)
    pixels = np.arange(length)
    low = np.maximum(edges[:-1, None], pixels)
    high = np.minimum(edges[1:, None], pixels + 1)
    return ((high - low).clip(0) * cells / (stop - start)).astype(np.float32)
