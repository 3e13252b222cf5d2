"""What SSD does to its training images: colours, expansion, crops (Liu et al. 2016).

Each is a pure function of a random generator and an example. Whether an example is
changed at all is up to the caller; how is drawn here.
"""

import cv2
import numpy as np

from jaxdet.data.transforms import Example, move_boxes

MEAN_COLOUR = (123, 117, 104)
"""Of ImageNet's images: what surrounds an expanded one."""

# A patch overlaps some object at least so much (2.2); None: it need not at all.
_LEAST_IOU = (0.1, 0.3, 0.5, 0.7, 0.9, None)
_TRIALS = 50  # for a patch that fulfils its condition, as in the authors' code


def distort_colours(rng: np.random.Generator, example: Example) -> Example:
    """Other brightness, contrast, saturation and hue (2.2, after Howard 2013).

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


def expand(
    rng: np.random.Generator, example: Example, *, largest: float = 4.0
) -> Example:
    """The image somewhere on a larger one of the mean colour: small objects (3.6).

    Sides grow by the same factor, uniform in [1, `largest`].
    """
    height, width = example.image.shape[:2]
    factor = rng.uniform(1, largest)
    new_height, new_width = round(height * factor), round(width * factor)
    top = rng.integers(new_height - height, endpoint=True)
    left = rng.integers(new_width - width, endpoint=True)
    image = np.empty((new_height, new_width, 3), np.uint8)
    image[:] = MEAN_COLOUR
    image[top : top + height, left : left + width] = example.image
    shift = np.array([left, top, left, top], np.float32)
    return move_boxes(example, lambda boxes: boxes + shift)._replace(image=image)


def crop(rng: np.random.Generator, example: Example) -> Example:
    """A patch of the image, or all of it (2.2).

    One of seven conditions is drawn: all of the image; a patch whose IoU with some
    object that stays is at least 0.1, 0.3, 0.5, 0.7 or 0.9; any patch. Its sides are
    0.3 to 1 of the image's, one at most twice the other; where no such patch is found,
    the image stays as it is. Without objects any patch will do. See `cut_out`.
    """
    choice = rng.integers(1 + len(_LEAST_IOU))
    if choice == len(_LEAST_IOU):
        return example
    patch = _find_patch(rng, example, _LEAST_IOU[choice])
    return example if patch is None else cut_out(example, patch)


def cut_out(example: Example, patch: np.ndarray) -> Example:
    """What lies in a patch: objects stay if their centre does.

    Those that stay are cut to it, and their masks with them. So are all regions; those
    outside are left without area.

    Args:
      example: not modified.
      patch: `[4]` int (x1, y1, x2, y2), within the image.
    """
    x1, y1, x2, y2 = patch
    stays = _centres_inside(example.boxes, patch)
    corner = np.array([x1, y1, x1, y1], np.float32)
    limits = np.array([x2 - x1, y2 - y1] * 2, np.float32)
    whole = example.boxes[stays]
    kept = example._replace(
        boxes=whole,
        labels=example.labels[stays],
        crowd=example.crowd[stays],
        image=example.image[y1:y2, x1:x2],
    )
    moved = move_boxes(kept, lambda boxes: np.clip(boxes - corner, 0, limits))
    if example.masks is None:
        return moved
    masks = _cut_masks(example.masks[stays], whole - corner, moved.boxes)
    return moved._replace(masks=masks)


def _find_patch(
    rng: np.random.Generator, example: Example, least_iou: float | None
) -> np.ndarray | None:
    height, width = example.image.shape[:2]
    objects = example.boxes[~example.crowd]
    for _ in range(_TRIALS):
        sides = np.rint(rng.uniform(0.3, 1, 2) * (width, height)).astype(int)
        sides = np.maximum(sides, 1)
        corner = rng.integers((width, height) - sides, endpoint=True)
        if not 0.5 <= sides[0] / sides[1] <= 2:
            continue
        patch = np.concatenate([corner, corner + sides])
        if len(objects) == 0 or least_iou is None:
            return patch
        staying = objects[_centres_inside(objects, patch)]
        if _iou(staying, patch).max(initial=0) >= least_iou:
            return patch
    return None


def _centres_inside(boxes: np.ndarray, patch: np.ndarray) -> np.ndarray:
    """`[N]` bool; half open as pixels are, so that tiles share no centre."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.all((centres >= patch[:2]) & (centres < patch[2:]), axis=1)


def _iou(boxes: np.ndarray, patch: np.ndarray) -> np.ndarray:
    """Of each box with the patch, `[N]`."""
    low, high = np.maximum(boxes[:, :2], patch[:2]), np.minimum(boxes[:, 2:], patch[2:])
    overlap = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) + np.prod(
        patch[2:] - patch[:2]
    )
    return overlap / (areas - overlap)


def _cut_masks(masks: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Masks of `old` boxes `[N, M, M]` for the `new` ones inside them, bilinearly."""
    cells = masks.shape[-1]
    centres = (np.arange(cells) + 0.5) / cells

    def weights(axis: int) -> np.ndarray:
        """Of the old cells in each new one, `[N, new, old]`."""
        (start, end), (low, high) = (
            (boxes[:, axis, None], boxes[:, axis + 2, None]) for boxes in (old, new)
        )
        places = (low + centres * (high - low) - start) / (end - start) * cells - 0.5
        places = np.clip(places, 0, cells - 1)
        distances = np.abs(places[..., None] - np.arange(cells))
        return np.maximum(1 - distances, 0)

    cut = np.einsum("nyh,nhw,nxw->nyx", weights(1), masks, weights(0))
    return cut.astype(np.float32)
