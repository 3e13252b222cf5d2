"""Makes training images different: colors, expansion, crops, size.

Each is a pure function of a random generator and an example; masks and regions follow
(`mixing.py` has those of several examples).
Whether an example is changed at all is up to the caller; how is drawn here. Section
numbers are those of SSD (Liu et al. 2016) where no other paper is named.
"""

import cv2
import numpy as np

from jaxdet.data.boxes import pairwise_iou
from jaxdet.data.input_config import InputConfig
from jaxdet.data.masks import resample_masks
from jaxdet.data.transforms import (
    Example,
    fitted_size,
    flip_horizontally,
    move_boxes,
    select_objects,
)

MEAN_COLOR = (123, 117, 104)
"""Of ImageNet's images: what surrounds an expanded one."""

LEAST_VISIBLE = 0.25
"""Share of an object that must be left for it to stay."""

_LARGEST_EXPANSION, _SMALLEST_CROP = 4.0, 0.5
# A patch overlaps some object at least so much (2.2); None: it need not at all.
_LEAST_IOU = (0.1, 0.3, 0.5, 0.7, 0.9, None)
_TRIALS = 50  # for a patch that meets its condition, as in the authors' code


def augment(
    rng: np.random.Generator,
    example: Example,
    config: InputConfig,
    canvas: tuple[int, int],
    *,
    flip: bool,
) -> tuple[Example, tuple[int, int]]:
    """Changes a training image in all ways that a config asks for.

    Args:
      rng: draws which of them, by their probabilities, and how.
      example: not modified.
      config: the probabilities.
      canvas: (height, width).
      flip: whether the image is mirrored, whatever the config says.

    Returns:
      The changed example, and the (height, width) that it gets on its canvas.
    """
    for probability, change in (
        (config.distort_colors, distort_colors),
        (config.expand, expand),
        (config.iou_crop, iou_crop),
        (config.random_crop, random_crop),
    ):
        if rng.random() < probability:
            example = change(rng, example)
    if flip:
        example = flip_horizontally(example)
    factors, keep_aspect = config.scale_jitter, config.keep_aspect
    if factors != (1.0, 1.0):
        return scale_jitter(
            rng, example, canvas, factors=factors, keep_aspect=keep_aspect
        )
    return example, fitted_size(
        example.image.shape[:2],
        canvas,
        keep_aspect=keep_aspect,
        min_max_size=config.min_max_size,
    )


def distort_colors(rng: np.random.Generator, example: Example) -> Example:
    """Changes brightness, contrast, saturation and hue (2.2, after Howard 2013).

    Each with probability 1/2: brightness by at most 32 of 255, contrast and saturation
    by a factor in [0.5, 1.5], hue by at most 18 degrees; contrast comes before or after
    the last two.
    """
    image = example.image.astype(np.float32)
    if rng.random() < 0.5:
        image += np.float32(rng.uniform(-32, 32))
    contrast = np.float32(rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0)
    contrast_first = rng.random() < 0.5
    if contrast_first:
        image *= contrast
    saturation = np.float32(rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0)
    hue = np.float32(rng.uniform(-18, 18) if rng.random() < 0.5 else 0.0)
    if saturation != 1 or hue != 0:
        hsv = cv2.cvtColor(np.clip(image, 0, 255), cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0] + hue) % 360
        hsv[..., 1] = np.minimum(hsv[..., 1] * saturation, 1)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if not contrast_first:
        image *= contrast
    return example._replace(image=np.clip(np.rint(image), 0, 255).astype(np.uint8))


def expand(rng: np.random.Generator, example: Example) -> Example:
    """Puts the image on a larger one of the mean color, for small objects (3.6).

    Sides grow by the same factor, uniform in [1, 4]; the old image lies anywhere on the
    larger one, and no object is lost.
    """
    height, width = example.image.shape[:2]
    factor = rng.uniform(1, _LARGEST_EXPANSION)
    new_height, new_width = round(height * factor), round(width * factor)
    top = rng.integers(new_height - height, endpoint=True)
    left = rng.integers(new_width - width, endpoint=True)
    image = np.empty((new_height, new_width, 3), np.uint8)
    image[:] = MEAN_COLOR
    image[top : top + height, left : left + width] = example.image
    shift = np.array([left, top, left, top], np.float32)
    return move_boxes(example, lambda boxes: boxes + shift)._replace(image=image)


def iou_crop(rng: np.random.Generator, example: Example) -> Example:
    """Cuts out a patch of the image, or keeps all of it (2.2).

    One of seven conditions is drawn: all of the image; a patch whose IoU with some
    object that stays is at least 0.1, 0.3, 0.5, 0.7 or 0.9; any patch. Its sides are
    0.3 to 1 of the image's, one at most twice the other; where no such patch is found,
    the image stays as it is. Without objects any patch will do. Objects stay, cut to
    the patch, if their center lies in it.
    """
    choice = rng.integers(1 + len(_LEAST_IOU))
    if choice == len(_LEAST_IOU):
        return example
    patch = _find_patch(rng, example, _LEAST_IOU[choice])
    if patch is None:
        return example
    return cut_out(example, patch, _centers_inside(example.boxes, patch))


def random_crop(rng: np.random.Generator, example: Example) -> Example:
    """Returns a patch anywhere whose sides are each 0.5 to 1 of the image's.

    An object stays if a quarter of its area lies in the patch, and at least one pixel
    each way (of a thinner one, all of it); its box is then clipped to the patch. Crowds
    stay with any pixel, since complete objects may lie in it.
    """
    height, width = example.image.shape[:2]
    sides = np.rint(rng.uniform(_SMALLEST_CROP, 1, 2) * (width, height)).astype(int)
    return crop(example, _random_patch(rng, example, np.maximum(sides, 1)))


def scale_jitter(
    rng: np.random.Generator,
    example: Example,
    canvas: tuple[int, int],
    *,
    factors: tuple[float, float] = (0.1, 2.0),
    keep_aspect: bool = True,
) -> tuple[Example, tuple[int, int]]:
    """Makes an example smaller or larger than fits its canvas (Ghiasi et al. 2021, 3).

    What would reach out of the canvas is cut off, and which part of the image remains
    is random. Objects stay as in `random_crop`.

    Args:
      rng: draws the factor, uniformly, and the part.
      example: not modified.
      canvas: (height, width).
      factors: least and greatest, of the size that fits the canvas: 0.1 and 2 are
        large-scale jitter; the paper's standard jitter has 0.8 and 1.25.
      keep_aspect: see `fitted_size`.

    Returns:
      The part that remains, not resized yet, and the (height, width) that it is to be
      resized to, at most the canvas.
    """
    factor, size = rng.uniform(*factors), example.image.shape[:2]
    height, width = (max(1, round(factor * side)) for side in canvas)
    resized = fitted_size(size, (height, width), keep_aspect=keep_aspect)
    visible = min(resized[0], canvas[0]), min(resized[1], canvas[1])
    if visible == resized:
        return example, visible
    sides = np.rint(np.array(size) * visible / resized).astype(int)[::-1]
    patch = _random_patch(rng, example, np.maximum(sides, 1))
    return crop(example, patch), visible


def crop(example: Example, patch: np.ndarray) -> Example:
    """Returns a patch, in which objects stay as in `random_crop`.

    Args:
      example: not modified.
      patch: `[4]` int (x1, y1, x2, y2), within the image.
    """
    boxes = example.boxes.astype(float)  # rounding must not make a visible one smaller
    sides, visible = boxes[:, 2:] - boxes[:, :2], _visible_sides(boxes, patch)
    enough = np.prod(visible, axis=1) >= LEAST_VISIBLE * np.prod(sides, axis=1)
    a_pixel = np.all(visible >= np.minimum(sides, 1), axis=1)
    return cut_out(example, patch, a_pixel & (enough | example.crowd))


def cut_out(example: Example, patch: np.ndarray, stays: np.ndarray) -> Example:
    """Returns a patch with the objects that stay, their masks and all regions, cropped.

    Regions outside the patch are left without area.

    Args:
      example: not modified.
      patch: `[4]` int (x1, y1, x2, y2), within the image.
      stays: `[N]` bool, which objects do; each overlaps the patch.
    """
    x1, y1, x2, y2 = patch
    corner = np.array([x1, y1, x1, y1], np.float32)
    limits = np.array([x2 - x1, y2 - y1] * 2, np.float32)
    kept = select_objects(example, stays)._replace(image=example.image[y1:y2, x1:x2])
    moved = move_boxes(kept, lambda boxes: np.clip(boxes - corner, 0, limits))
    if kept.masks is None:
        return moved
    masks = resample_masks(kept.masks, kept.boxes - corner, moved.boxes)
    return moved._replace(masks=masks)


def _find_patch(
    rng: np.random.Generator, example: Example, least_iou: float | None
) -> np.ndarray | None:
    height, width = example.image.shape[:2]
    objects = example.boxes[~example.crowd]
    for _ in range(_TRIALS):
        sides = np.rint(rng.uniform(0.3, 1, 2) * (width, height)).astype(int)
        sides = np.maximum(sides, 1)
        patch = _random_patch(rng, example, sides)
        if not 0.5 <= sides[0] / sides[1] <= 2:
            continue
        if len(objects) == 0 or least_iou is None:
            return patch
        staying = objects[_centers_inside(objects, patch)]
        if pairwise_iou(staying, patch[None]).max(initial=0) >= least_iou:
            return patch
    return None


def _random_patch(
    rng: np.random.Generator, example: Example, sides: np.ndarray
) -> np.ndarray:
    """Returns a patch in the image, `[4]` int, of `sides` (width, height)."""
    corner = rng.integers(example.image.shape[1::-1] - sides, endpoint=True)
    return np.concatenate([corner, corner + sides])


def _centers_inside(boxes: np.ndarray, patch: np.ndarray) -> np.ndarray:
    """Returns `[N]` bool; half open as pixels are, so that tiles share no center."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.all((centers >= patch[:2]) & (centers < patch[2:]), axis=1)


def _visible_sides(boxes: np.ndarray, patch: np.ndarray) -> np.ndarray:
    """Returns (width, height) of the part of each box in a patch, `[N, 2]`."""
    low, high = np.maximum(boxes[:, :2], patch[:2]), np.minimum(boxes[:, 2:], patch[2:])
    return np.maximum(high - low, 0)
