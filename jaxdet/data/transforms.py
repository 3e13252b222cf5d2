"""Image and truth, changed together: pure functions on one example, without jax."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np


class Example(NamedTuple):
    """One image, its objects and regions; boxes are in pixels of that image."""

    image: np.ndarray  # [H, W, 3] uint8 RGB
    boxes: np.ndarray  # [N, 4] float32 (x1, y1, x2, y2)
    labels: np.ndarray  # [N] int32 in [0, K)
    crowd: np.ndarray  # [N] bool
    masks: np.ndarray | None = None  # [N, M, M] float32, cut to the boxes
    regions: np.ndarray | None = None  # [P, 4] float32, as boxes


def nearest_canvas(
    sizes: np.ndarray, canvases: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Which canvas each image goes to: that of nearest log aspect ratio.

    `[N, 2]` (height, width) and C of them -> `[N]` indices in [0, C).
    """
    height, width = np.reshape(sizes, (-1, 2)).astype(float).T
    canvas_height, canvas_width = np.array(canvases, float).T
    ratios = np.log(canvas_height / canvas_width)
    distances = np.abs(np.log(height / width)[:, None] - ratios)
    return distances.argmin(axis=1)


def fitted_size(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """The largest (height, width) of the shape of `size` that fits into `canvas`.

    Rounded to whole pixels, at least one a side.
    """
    ratio = min(canvas[0] / size[0], canvas[1] / size[1])
    height, width = (max(1, round(side * ratio)) for side in size)
    return height, width


def resize_to_canvas(
    example: Example, canvas: tuple[int, int], *, out: np.ndarray | None = None
) -> tuple[Example, np.ndarray]:
    """Scales an example to the largest size that fits, into the upper left corner.

    Bilinear and without antialiasing, as torchvision does it; but averaging over areas
    where an image shrinks to less than half: bilinear sampling would then pass over
    pixels, and thin things would vanish.

    Args:
      example: not modified.
      canvas: (height, width).
      out: `[height, width, 3]` uint8 zeros to draw on, made here if None.

    Returns:
      The example on its canvas, zeros outside the image; and `[2]` float32, new pixels
      per old pixel (height, width). As the new size is whole, the two differ slightly.
    """
    old_size = example.image.shape[:2]
    height, width = fitted_size(old_size, canvas)
    scale = np.array([height / old_size[0], width / old_size[1]])
    image = np.zeros((*canvas, 3), np.uint8) if out is None else out
    method = cv2.INTER_AREA if scale.min() < 0.5 else cv2.INTER_LINEAR
    corner = image[:height, :width]
    cv2.resize(example.image, (width, height), dst=corner, interpolation=method)
    factors = scale[[1, 0, 1, 0]]
    moved = _move_boxes(example, lambda boxes: (boxes * factors).astype(np.float32))
    return moved._replace(image=image), scale.astype(np.float32)


def flip_horizontally(example: Example) -> Example:
    """Mirrors left and right: x becomes W - x, as coordinates are continuous."""
    width = np.float32(example.image.shape[1])

    def mirror(boxes: np.ndarray) -> np.ndarray:
        x1, y1, x2, y2 = boxes.T
        return np.stack([width - x2, y1, width - x1, y2], axis=1)

    masks = None if example.masks is None else example.masks[:, :, ::-1]
    image = cv2.flip(example.image, 1)
    return _move_boxes(example, mirror)._replace(image=image, masks=masks)


def _move_boxes(example: Example, move: Callable[[np.ndarray], np.ndarray]) -> Example:
    """The example with its objects and regions elsewhere."""
    regions = None if example.regions is None else move(example.regions)
    return example._replace(boxes=move(example.boxes), regions=regions)
