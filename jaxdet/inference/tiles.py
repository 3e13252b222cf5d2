"""Detects small objects in large images, tile by tile (Akyon et al. 2022, SAHI).

detect = load("ssd_mobilenet_v2", tiles=TilesConfig(size=640, overlap=0.2))
detections = detect(image)

The image is cut into tiles that overlap, each of which fills the detector's canvas, so
that its objects are larger there. The whole image is a view too, for the large objects.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from jaxdet.config import Count, Fraction, InRange, checked_dataclass
from jaxdet.data import transforms
from jaxdet.inference.preprocess import (
    ImageDetections,
    ResizeSpec,
    detect_images,
    paste_masks,
    predict_images,
)


@checked_dataclass
class TilesConfig:
    """Configures how an image is cut, and how the detections in tiles are merged."""

    size: Count = 640
    """Pixels a side, of the image."""
    overlap: Annotated[float, InRange(0, 1, below=True)] = 0.2
    """What neighbors share, of a side: no less than the largest object that the whole
    image is too coarse for."""
    batch_size: Count = 4
    """Tiles at a time; an exported detector has a number of its own."""
    nms_threshold: Fraction = 0.5
    """Of two boxes of a class with a higher IoU, the lower-scoring one is removed."""
    cut_threshold: Fraction = 0.5
    """Of a box at the edge of a tile and another one of its class one is removed, too,
    if they share more than this part of the smaller."""
    cut_score: Fraction = 0.5
    """A box at the edge of a tile has this part of its score against others, so that
    one of the complete object stays; its own score is what is returned."""
    edge: Fraction = 0.01
    """What is nearer to the edge of a tile is cut there, of a side."""


def tile_grid(size: Sequence[int], tiles: TilesConfig) -> np.ndarray:
    """Returns the tiles of an image, `[T, 4]` whole (x1, y1, x2, y2), row by row.

    The last of a row or column ends at the image's border; none is larger than the
    image.

    Args:
      size: (height, width) of the image.
      tiles: size and overlap of the tiles.
    """
    height, width = size
    tops, lefts = (_starts(side, tiles) for side in (height, width))
    top, left = (axis.ravel() for axis in np.meshgrid(tops, lefts, indexing="ij"))
    bottom = np.minimum(top + tiles.size, height)
    right = np.minimum(left + tiles.size, width)
    return np.stack([left, top, right, bottom], axis=1)


def detect_in_tiles(
    images: Sequence[np.ndarray], *, tiles: TilesConfig, **options: Any
) -> list[ImageDetections]:
    """Detects objects in images of any size and in their tiles.

    All views of all images have one canvas, that of a tile, and batches are filled up:
    one compilation. An image no larger than a tile is processed as without tiles.

    Args:
      images: `[H, W, 3]` uint8 RGB.
      tiles: how images are cut, and detections merged.
      **options: see `predict_images`; `spec` and `batch_size` must be among them.

    Returns:
      The detections of each image, in its own pixels.
    """
    return [_detect_in_one(image, tiles, **options) for image in images]


def merge(
    views: np.ndarray,
    detections: Sequence[ImageDetections],
    size: Sequence[int],
    tiles: TilesConfig,
) -> ImageDetections:
    """Merges the detections in the views of an image by class-wise NMS.

    What is cut by the edge of a view gives way to what is complete in another. An
    object that is complete in none, the whole image included, stays in parts.

    Args:
      views: `[V, 4]` (x1, y1, x2, y2) in the image.
      detections: in each of them, in its own pixels.
      size: (height, width) of the image.
      tiles: the thresholds.

    Returns:
      Detections in pixels of the image, best first.
    """
    counts = [len(found.scores) for found in detections]
    views = np.repeat(views, counts, axis=0).astype(np.float32)  # of each box
    boxes = np.concatenate([found.boxes for found in detections])
    boxes = boxes + views[:, [0, 1, 0, 1]]
    height, width = size
    near = np.abs(boxes - views) <= tiles.edge * tiles.size
    cut = np.any(near & (views != [0, 0, width, height]), axis=1)
    scores = np.concatenate([found.scores for found in detections])
    labels = np.concatenate([found.labels for found in detections])
    names = np.concatenate([np.array(found.names, object) for found in detections])
    keep = _suppress(boxes, scores, labels, cut, tiles)
    cells = None
    if detections[0].masks is not None:
        cells = np.concatenate([found.masks for found in detections])[keep]
    return ImageDetections(
        boxes[keep], scores[keep], labels[keep], tuple(names[keep]), cells
    )


def _starts(side: int, tiles: TilesConfig) -> np.ndarray:
    """Returns where the tiles along a side of an image begin."""
    step = max(1, round(tiles.size * (1 - tiles.overlap)))
    beyond = max(side - tiles.size, 0)
    return np.minimum(np.arange(-(-beyond // step) + 1) * step, beyond)


def _detect_in_one(
    image: np.ndarray,
    tiles: TilesConfig,
    *,
    spec: ResizeSpec,
    batch_size: int,
    **options: Any,
) -> ImageDetections:
    options["batch_size"] = batch_size
    size = np.shape(image)[:2]
    if max(size) <= tiles.size:
        return detect_images([image], spec=spec, **options)[0]
    views = np.concatenate([[[0, 0, size[1], size[0]]], tile_grid(size, tiles)])
    spec = _of_tiles(spec, tiles)
    detections: list[ImageDetections] = []
    for start in range(0, len(views), batch_size):  # so that memory holds no more
        batch = views[start : start + batch_size]
        cut = [image[y1:y2, x1:x2] for x1, y1, x2, y2 in batch]
        detections += predict_images(cut, spec=spec, **options)
    return paste_masks(merge(views, detections, size, tiles), size)


def _of_tiles(spec: ResizeSpec, tiles: TilesConfig) -> ResizeSpec:
    """Returns how all views fill the canvas that a tile is assigned."""
    sizes = np.array([(tiles.size, tiles.size)])
    (index,) = transforms.assign_canvases(
        sizes, spec.canvases, min_max_size=spec.min_max_size
    )
    return spec._replace(canvases=(spec.canvases[index],), min_max_size=None)


def _suppress(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    cut: np.ndarray,
    tiles: TilesConfig,
) -> np.ndarray:
    """Returns the indices of the boxes to keep, best score first.

    With NumPy: as many boxes as there are, which differ from image to image, would be a
    compilation each.
    """
    ranks = np.where(cut, scores * tiles.cut_score, scores)
    rest, keep = np.argsort(-ranks, kind="stable"), []
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    while len(rest):
        best, rest = rest[0], rest[1:]
        keep.append(best)
        corners = np.minimum(boxes[rest, 2:], boxes[best, 2:])
        sides = corners - np.maximum(boxes[rest, :2], boxes[best, :2])
        shared = np.prod(np.maximum(sides, 0), axis=1)
        union = areas[rest] + areas[best] - shared
        smaller = np.minimum(areas[rest], areas[best])
        gone = shared > tiles.nms_threshold * union
        gone |= (cut[rest] | cut[best]) & (shared > tiles.cut_threshold * smaller)
        rest = rest[~(gone & (labels[rest] == labels[best]))]
    keep = np.array(keep, int)
    return keep[np.argsort(-scores[keep], kind="stable")]
