"""Augmentation that joins several examples into one: mosaic and copy-paste.

As in `augmentation`, each is a pure function of a random generator and examples. No
regions follow: `InputConfig` refuses them.
"""

from collections.abc import Sequence

import numpy as np

from jaxdet.data.augmentation import LEAST_VISIBLE, MEAN_COLOR, crop, scale_jitter
from jaxdet.data.masks import draw_mask, resample_masks
from jaxdet.data.transforms import (
    Example,
    fitted_size,
    flip_horizontally,
    move_boxes,
    resize_to_canvas,
    select_objects,
)

_CENTERS = (0.25, 0.75)  # of a mosaic, as shares of its sides
_MOSAIC_SCALES = (0.5, 1.0)  # of the size that fits the canvas
_PASTE_SCALES = (0.1, 2.0)  # large-scale jitter


def mosaic(
    rng: np.random.Generator,
    examples: Sequence[Example],
    canvas: tuple[int, int],
    *,
    keep_aspect: bool = True,
) -> Example:
    """Puts four examples around a point of a canvas (Bochkovskiy et al. 2020, 3.3).

    The point lies in the middle half of both sides. Each image gets half to all of the
    size that fits the canvas, and a quadrant at random.

    Args:
      rng: draws the point, the sizes and the quadrants.
      examples: four; not modified.
      canvas: (height, width).
      keep_aspect: see `fitted_size`.

    Returns:
      An example as large as the canvas; objects stay as in `random_crop`.
    """
    center = np.rint(rng.uniform(*_CENTERS, 2) * canvas).astype(int)
    resized = []
    for index in rng.permutation(4):
        example, factor = examples[index], rng.uniform(*_MOSAIC_SCALES)
        height, width = (max(1, round(factor * side)) for side in canvas)
        size = fitted_size(
            example.image.shape[:2], (height, width), keep_aspect=keep_aspect
        )
        resized.append(resize_to_canvas(example, size, keep_aspect=False)[0])
    return tile(resized, canvas, (int(center[0]), int(center[1])))


def tile(
    examples: Sequence[Example], canvas: tuple[int, int], center: tuple[int, int]
) -> Example:
    """Puts four examples around a point, as large as they are, on the mean color.

    Args:
      examples: above left, above right, below left and below right of the point, each
        with a corner on it; what reaches out of the canvas is cut off.
      canvas: (height, width).
      center: the point (y, x), inside.

    Returns:
      An example as large as the canvas; objects stay as in `random_crop`.
    """
    image = np.empty((*canvas, 3), np.uint8)
    image[:] = MEAN_COLOR
    parts = []
    for quadrant, example in enumerate(examples):
        after = divmod(quadrant, 2)  # whether it is below, and whether it is right
        size = example.image.shape[:2]
        start = np.where(after, center, np.subtract(center, size))
        low, high = np.maximum(start, 0), np.minimum(start + size, canvas)
        part = crop(example, np.concatenate([low - start, high - start])[[1, 0, 3, 2]])
        image[low[0] : high[0], low[1] : high[1]] = part.image
        parts.append(_shifted(part, low))
    return _joined(image, parts)


def copy_paste(rng: np.random.Generator, example: Example, source: Example) -> Example:
    """Pastes objects of one example onto another (Ghiasi et al. 2021, 3).

    The source is mirrored or not, and becomes smaller or larger by large-scale jitter.
    Of its objects, crowds excepted, a random subset of at least one is pasted, without
    blending.

    Args:
      rng: draws all that.
      example: gets the objects; not modified. It has masks.
      source: with masks; not modified.

    Returns:
      The example, its own objects first; see `paste`.
    """
    size = example.image.shape[:2]
    if rng.random() < 0.5:
        source = flip_horizontally(source)
    part, new_size = scale_jitter(rng, source, size, factors=_PASTE_SCALES)
    part, _ = resize_to_canvas(part, new_size, keep_aspect=False)
    corner = rng.integers(np.subtract(size, new_size), endpoint=True)
    candidates = np.flatnonzero(~part.crowd)
    if not len(candidates):
        return example
    count = rng.integers(1, len(candidates), endpoint=True)
    chosen = np.sort(rng.choice(candidates, count, replace=False))
    return paste(example, select_objects(part, chosen), corner)


def paste(example: Example, source: Example, corner: np.ndarray) -> Example:
    """Pastes all objects of one example onto another, by their masks.

    Covered objects lose what is covered of their masks, and their boxes end where the
    rest does; with less than a quarter of their pixels, or for crowds none, they are
    dropped. Objects too small for a pixel are not pasted.

    Args:
      example: gets the objects; not modified. It has masks.
      source: with masks, and no larger; not modified.
      corner: `[2]` int (y, x), where the upper left corner of the source goes.

    Returns:
      The example, its own objects first.
    """
    size = example.image.shape[:2]
    pasted = _shifted(source, corner)
    covered = np.zeros(size, bool)
    seen = np.zeros(len(pasted.boxes), bool)
    for index, (mask, box) in enumerate(zip(pasted.masks, pasted.boxes, strict=True)):
        window, pixels = draw_mask(mask, box, size)
        covered[window] |= pixels
        seen[index] = pixels.any()
    pasted = select_objects(pasted, seen)
    image = example.image.copy()
    height, width = source.image.shape[:2]
    region = slice(corner[0], corner[0] + height), slice(corner[1], corner[1] + width)
    np.copyto(image[region], source.image, where=covered[region][..., None])
    return _joined(image, [_occluded(example, covered), pasted])


def _occluded(example: Example, covered: np.ndarray) -> Example:
    """Takes covered pixels `[H, W]` from all objects."""
    boxes, masks = example.boxes.copy(), example.masks.copy()
    stays = np.ones(len(boxes), bool)
    for index, (mask, box) in enumerate(zip(masks, boxes, strict=True)):
        window, before = draw_mask(mask, box, covered.shape)
        if not before.any():  # too thin a mask for any pixel: all of its box counts
            before = np.ones_like(before)
        visible = before & ~covered[window]
        if visible.sum() == before.sum():
            continue
        least = 1 if example.crowd[index] else LEAST_VISIBLE * before.sum()
        stays[index] = visible.sum() >= least
        if stays[index]:
            corner = np.array([window[1].start, window[0].start] * 2, np.float32)
            bounds, old = _bounds(visible), box.copy()
            box[:] = np.where(bounds == _bounds(before), old, bounds + corner)
            cut = resample_masks(mask[None], old[None], box[None])[0]
            mask[:] = cut * ~_sampled(covered, box, len(mask))
    return select_objects(example._replace(boxes=boxes, masks=masks), stays)


def _sampled(pixels: np.ndarray, box: np.ndarray, cells: int) -> np.ndarray:
    """Returns the pixels at the centers of the cells of a box, `[cells, cells]`."""
    centers = (np.arange(cells) + 0.5) / cells
    low, high = box[:2, None], box[2:, None]
    columns, rows = np.floor(low + centers * (high - low)).astype(int)
    return pixels[rows][:, columns]


def _bounds(pixels: np.ndarray) -> np.ndarray:
    """Returns (x1, y1, x2, y2) of the pixels that are set, of which there are some."""
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def _shifted(example: Example, corner: np.ndarray) -> Example:
    """Moves the objects of an example whose corner goes to (y, x)."""
    shift = np.tile(np.asarray(corner)[::-1], 2).astype(np.float32)
    return move_boxes(example, lambda boxes: boxes + shift)


def _joined(image: np.ndarray, parts: Sequence[Example]) -> Example:
    """Returns an example of the objects of all parts."""
    boxes, labels, crowd = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("boxes", "labels", "crowd")
    )
    masks = None
    if parts[0].masks is not None:
        masks = np.concatenate([part.masks for part in parts])
    return Example(image, boxes, labels, crowd, masks)
