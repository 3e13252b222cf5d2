"""Changes image and truth together: pure functions on one example, without jax."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from jaxdet.data.dataset import DataError


class Example(NamedTuple):
    """One image, its objects and regions; boxes are in pixels of that image."""

    image: np.ndarray  # [H, W, 3] uint8 RGB
    boxes: np.ndarray  # [N, 4] float32 (x1, y1, x2, y2)
    labels: np.ndarray  # [N] int32 in [0, K)
    crowd: np.ndarray  # [N] bool
    masks: np.ndarray | None = None  # [N, M, M] float32, cut to the boxes
    regions: np.ndarray | None = None  # [P, 4] float32, as boxes
    region_scores: np.ndarray | None = None  # [P] float32


def assign_canvases(
    sizes: np.ndarray,
    canvases: Sequence[tuple[int, int]],
    *,
    min_max_size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Assigns each image the canvas of the nearest aspect ratio, by its logarithm.

    With `min_max_size` it is the smallest that holds the image at its new size.

    Args:
      sizes: `[N, 2]` (height, width) of the images.
      canvases: (height, width) of each.
      min_max_size: see `size_from_min_max`.

    Returns:
      `[N]` indices into the canvases.

    Raises:
      DataError: if no canvas holds an image at its new size.
    """
    sizes = np.reshape(sizes, (-1, 2))
    if min_max_size is not None:
        new = [size_from_min_max(size, min_max_size) for size in sizes.tolist()]
        return _smallest_canvas(np.reshape(new, (-1, 2)), canvases)
    height, width = sizes.astype(float).T
    canvas_height, canvas_width = np.array(canvases, float).T
    ratios = np.log(canvas_height / canvas_width)
    distances = np.abs(np.log(height / width)[:, None] - ratios)
    return distances.argmin(axis=1)


def fitted_size(
    size: tuple[int, int],
    canvas: tuple[int, int],
    *,
    keep_aspect: bool = True,
    min_max_size: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """Returns the largest (height, width) of `size`'s shape that fits into `canvas`.

    Rounded to whole pixels, at least one a side.

    Args:
      size: (height, width) of the image.
      canvas: (height, width).
      keep_aspect: whether the shape is kept; else the canvas is the size.
      min_max_size: what `size_from_min_max` says instead, whatever the canvas.
    """
    if not keep_aspect:
        return canvas
    if min_max_size is not None:
        return size_from_min_max(size, min_max_size)
    ratio = min(canvas[0] / size[0], canvas[1] / size[1])
    height, width = (max(1, round(side * ratio)) for side in size)
    return height, width


def resize_to_canvas(
    example: Example,
    canvas: tuple[int, int],
    *,
    keep_aspect: bool = True,
    min_max_size: tuple[int, int] | None = None,
    out: np.ndarray | None = None,
) -> tuple[Example, np.ndarray]:
    """Scales an example to the largest size that fits, into the upper left corner.

    Bilinear and without antialiasing, as torchvision does it; but averaging over areas
    where an image shrinks to less than half: bilinear sampling would then pass over
    pixels, and thin things would vanish.

    Args:
      example: not modified.
      canvas: (height, width).
      keep_aspect: whether the shape is kept; else the canvas is filled.
      min_max_size: see `size_from_min_max`; that size must fit into the canvas.
      out: uint8 zeros to draw on, as large as the canvas or larger, made here if None.
        On float32 pixels keep their fractions, and are never averaged: torchvision's
        numbers.

    Returns:
      The example on its canvas, zeros outside the image; and `[2]` float32, new pixels
      per old pixel (height, width). As the new size is whole, the two differ slightly.
    """
    old_size = example.image.shape[:2]
    height, width = fitted_size(
        old_size, canvas, keep_aspect=keep_aspect, min_max_size=min_max_size
    )
    scale = np.array([height / old_size[0], width / old_size[1]])
    image = np.zeros((*canvas, 3), np.uint8) if out is None else out
    corner = image[:height, :width]
    if image.dtype == np.float32:
        corner[:] = _interpolated(example.image, (height, width))
    else:
        method = cv2.INTER_AREA if scale.min() < 0.5 else cv2.INTER_LINEAR
        cv2.resize(example.image, (width, height), dst=corner, interpolation=method)
    factors = scale[[1, 0, 1, 0]]
    moved = move_boxes(example, lambda boxes: (boxes * factors).astype(np.float32))
    return moved._replace(image=image), scale.astype(np.float32)


def size_from_min_max(
    size: tuple[int, int], min_max_size: tuple[int, int]
) -> tuple[int, int]:
    """Returns the (height, width), rounded down, that torchvision resizes an image to.

    Args:
      size: (height, width) of the image.
      min_max_size: what the shorter side becomes, unless the longer one would become
        more than the second number.
    """
    factor = min(min_max_size[0] / min(size), min_max_size[1] / max(size))
    height, width = (max(1, math.floor(side * factor)) for side in size)
    return height, width


def canvases_from_min_max(
    min_max_size: tuple[int, int], *, multiple: int = 32
) -> tuple[tuple[int, int], ...]:
    """Returns the canvases that torchvision pads single images to.

    Args:
      min_max_size: as in `size_from_min_max`.
      multiple: of which all heights and widths are.

    Returns:
      (height, width) of each.
    """
    shorter, longer = (-(-side // multiple) * multiple for side in min_max_size)
    upright = [(height, shorter) for height in range(shorter, longer + 1, multiple)]
    upright += [(longer, width) for width in range(multiple, shorter, multiple)]
    lying = [(width, height) for height, width in upright]
    return tuple(dict.fromkeys(upright + lying))


def _smallest_canvas(
    sizes: np.ndarray, canvases: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Assigns each image the canvas of least area that holds it as it is."""
    holds = np.all(sizes[:, None] <= np.array(canvases)[None], axis=-1)
    if not holds.any(axis=1).all():
        height, width = sizes[~holds.any(axis=1)][0].tolist()
        raise DataError(
            f"canvases is {tuple(canvases)}; one must hold an image that is resized "
            f"to {height}x{width}"
        )
    areas = np.prod(np.array(canvases, float), axis=1)
    return np.where(holds, areas[None], np.inf).argmin(axis=1)


def _interpolated(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Interpolates bilinearly, in float32 throughout.

    OpenCV's coordinates are rounded otherwise than torch's: 1e-5 of a pixel's range,
    which a deep network makes 1e-4 of a score.
    """
    image = image.astype(np.float32)
    low, high, weight = _neighbors(image.shape[0], size[0])
    weight = weight[:, None, None]
    image = image[low] * (1 - weight) + image[high] * weight
    low, high, weight = _neighbors(image.shape[1], size[1])
    weight = weight[None, :, None]
    return image[:, low] * (1 - weight) + image[:, high] * weight


def _neighbors(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns each new pixel's two old neighbors, and the weight of the second."""
    centers = np.arange(new, dtype=np.float32) + np.float32(0.5)
    # As torch's fused product and difference: exact, then rounded once.
    where = np.multiply(np.float32(old / new), centers, dtype=float) - 0.5
    where = np.maximum(where, 0).astype(np.float32)
    low = where.astype(np.int32)
    return low, np.minimum(low + 1, old - 1), where - low.astype(np.float32)


def flip_horizontally(example: Example) -> Example:
    """Mirrors left and right: x becomes W - x, as coordinates are continuous."""
    width = np.float32(example.image.shape[1])

    def mirror(boxes: np.ndarray) -> np.ndarray:
        x1, y1, x2, y2 = boxes.T
        return np.stack([width - x2, y1, width - x1, y2], axis=1)

    masks = None if example.masks is None else example.masks[:, :, ::-1]
    image = cv2.flip(example.image, 1)
    return move_boxes(example, mirror)._replace(image=image, masks=masks)


def move_boxes(example: Example, move: Callable[[np.ndarray], np.ndarray]) -> Example:
    """Moves the objects and regions of an example."""
    regions = None if example.regions is None else move(example.regions)
    return example._replace(boxes=move(example.boxes), regions=regions)


def select_objects(example: Example, chosen: np.ndarray) -> Example:
    """Returns an example with some of its objects, by their indices or a mask `[N]`."""
    masks = None if example.masks is None else example.masks[chosen]
    boxes, labels = example.boxes[chosen], example.labels[chosen]
    crowd = example.crowd[chosen]
    return example._replace(boxes=boxes, labels=labels, crowd=crowd, masks=masks)
