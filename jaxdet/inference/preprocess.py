"""A picture as a detector takes it, and the answer in the picture's own pixels.

Without jax and flax: an exported detector runs where no network can be made.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdet.data import masks, transforms
from jaxdet.data.dataset import Proposals

Propose = Callable[[np.ndarray], Proposals]
"""From `[H, W, 3]` uint8 RGB to regions of that image that may hold an object."""

_NO_PROPOSALS = Proposals(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))


class Found(NamedTuple):
    """What was found in one image, best score first."""

    boxes: np.ndarray  # [D, 4] float32 (x1, y1, x2, y2), pixels of the image given
    scores: np.ndarray  # [D] float32
    labels: np.ndarray  # [D] int32
    names: tuple[str, ...]  # D class names
    masks: np.ndarray | None = None  # [D, H, W] bool, of a detector that finds them


class Placing(NamedTuple):
    """How images become arrays of one shape; the fields are those of `InputConfig`."""

    canvases: tuple[tuple[int, int], ...]  # (height, width) of each
    keep_aspect: bool = True
    min_max_size: tuple[int, int] | None = None
    float_pixels: bool = False
    max_regions: int = 0  # 0: the detector needs no proposals


def place(
    image: np.ndarray, placing: Placing, propose: Propose | None = None
) -> dict[str, Any]:
    """Puts an image on the canvas that suits it.

    Args:
      image: `[H, W, 3]` uint8 RGB.
      placing: on which, and how.
      propose: asked for the image's regions, best first, where there is room for some;
        as many as fit stay. None: there are none.

    Returns:
      The images, sizes and scales of a `structs.Batch` of one, by name, and, where
      proposals are needed, its regions as a dict of boxes, scores and valid.

    Raises:
      ValueError: if the image is another array.
      DataError: if no canvas holds it.
    """
    image = np.asarray(image)
    shape, kind = image.shape, image.dtype
    if len(shape) != 3 or shape[2] != 3 or 0 in shape or kind != np.uint8:
        raise ValueError(
            f"image is {kind}{list(shape)}; uint8[H, W, 3] is needed, H and W at least "
            "1"
        )
    size, canvases = shape[:2], placing.canvases
    rule = {
        "keep_aspect": placing.keep_aspect,
        "min_max_size": placing.min_max_size,
    }
    sizes = np.array([size])
    canvas = canvases[
        transforms.assign_canvases(sizes, canvases, min_max_size=placing.min_max_size)[
            0
        ]
    ]
    objects = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    proposals = _NO_PROPOSALS
    if placing.max_regions and propose is not None:
        proposals = propose(image)
    best, scores = (values[: placing.max_regions] for values in proposals)
    example = transforms.Example(image, *objects, regions=best)
    blank = np.zeros((*canvas, 3), np.float32 if placing.float_pixels else np.uint8)
    example, scale = transforms.resize_to_canvas(example, canvas, **rule, out=blank)
    arrays = {
        "images": example.image[None],
        "sizes": np.array([transforms.fitted_size(size, canvas, **rule)], np.int32),
        "scales": scale[None],
    }
    if placing.max_regions:
        empty = placing.max_regions - len(best)
        arrays["regions"] = {
            "boxes": np.pad(example.regions, ((0, empty), (0, 0)))[None],
            "scores": np.pad(scores, (0, empty))[None],
            "valid": np.arange(placing.max_regions)[None] < len(best),
        }
    return arrays


def in_own_pixels(
    answer: tuple,
    size: tuple[int, int],
    scale: np.ndarray,
    *,
    class_names: Sequence[str],
    min_score: float,
) -> Found:
    """The detections of one image, without padding, in pixels of that image.

    Args:
      answer: boxes `[D, 4]`, scores `[D]`, labels `[D]`, valid `[D]` and masks
        `[D, M, M]` or None, as of `structs.Detections`, in pixels of the canvas.
      size: (height, width) of the image.
      scale: `[2]` pixels of the canvas per pixel of the image, (height, width).
      class_names: the name of each label.
      min_score: lower scores are left out.
    """
    boxes, scores, labels, valid, cells = answer
    kept = valid & (scores >= min_score)
    height, width = size
    limits = np.array([[width, height, width, height]], np.float32)
    boxes = np.clip(boxes[kept] / scale[None, [1, 0, 1, 0]], 0, limits)
    whole = None
    if cells is not None:
        pasted = [
            masks.paste(mask, box, size)
            for mask, box in zip(cells[kept], boxes, strict=True)
        ]
        whole = np.array(pasted, bool).reshape(-1, height, width)
    return Found(
        boxes=boxes,
        scores=scores[kept],
        labels=labels[kept],
        names=tuple(class_names[label] for label in labels[kept]),
        masks=whole,
    )
