"""Makes batches of images for a detector, and detections in the images of its output.

Without flax: an exported detector runs where no network can be made.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdet.data import masks, transforms
from jaxdet.data.dataset import Proposals
from jaxdet.data.selective_search import selective_search

Propose = Callable[[np.ndarray], Proposals]
"""From `[H, W, 3]` uint8 RGB to regions of that image that may hold an object."""

_NO_PROPOSALS = Proposals(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))


class ImageDetections(NamedTuple):
    """The objects that were detected in one image, best score first."""

    boxes: np.ndarray  # [D, 4] float32 (x1, y1, x2, y2), pixels of the image given
    scores: np.ndarray  # [D] float32
    labels: np.ndarray  # [D] int32
    names: tuple[str, ...]  # D class names
    masks: np.ndarray | None = None  # [D, H, W] bool, of a detector that finds them

    def to_supervision(self) -> Any:
        """Returns the `supervision.Detections`, for its trackers and drawings.

        Raises:
          ImportError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError("needs supervision: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.labels.astype(int),
            data={"class_name": np.array(self.names, str)},
        )


class ResizeSpec(NamedTuple):
    """How images become arrays of one shape; the fields are those of `InputConfig`."""

    canvases: tuple[tuple[int, int], ...]  # (height, width) of each
    keep_aspect: bool = True
    min_max_size: tuple[int, int] | None = None
    float_pixels: bool = False
    max_regions: int = 0  # 0: the detector needs no proposals

    @classmethod
    def of_input(cls, config: Any) -> "ResizeSpec":
        """Returns what an `InputConfig` says about a single image."""
        return cls(*(getattr(config, name) for name in cls._fields))


def preprocess(
    image: np.ndarray, spec: ResizeSpec, propose: Propose | None = None
) -> dict[str, Any]:
    """Resizes an image to the canvas of the nearest aspect ratio.

    Args:
      image: `[H, W, 3]` uint8 RGB.
      spec: the canvases, and how images fill them.
      propose: returns the image's regions, best first, for a detector that takes some;
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
    size, limits = shape[:2], {"min_max_size": spec.min_max_size}
    rule = {"keep_aspect": spec.keep_aspect, **limits}
    (index,) = transforms.assign_canvases(np.array([size]), spec.canvases, **limits)
    canvas = spec.canvases[index]
    proposals = _NO_PROPOSALS
    if spec.max_regions and propose is not None:
        proposals = propose(image)
    regions, scores = (values[: spec.max_regions] for values in proposals)
    no_objects = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    example = transforms.Example(image, *no_objects, regions=regions)
    blank = np.zeros((*canvas, 3), np.float32 if spec.float_pixels else np.uint8)
    example, scale = transforms.resize_to_canvas(example, canvas, **rule, out=blank)
    arrays: dict[str, Any] = {
        "images": example.image[None],
        "sizes": np.array([transforms.fitted_size(size, canvas, **rule)], np.int32),
        "scales": scale[None],
    }
    if spec.max_regions:
        padding = spec.max_regions - len(regions)
        arrays["regions"] = {
            "boxes": np.pad(example.regions, ((0, padding), (0, 0)))[None],
            "scores": np.pad(scores, (0, padding))[None],
            "valid": np.arange(spec.max_regions)[None] < len(regions),
        }
    return arrays


def postprocess(
    detections: tuple,
    size: tuple[int, int],
    scale: np.ndarray,
    *,
    class_names: Sequence[str],
    min_score: float,
) -> ImageDetections:
    """Returns the detections of one image in its own pixels, without padding.

    Masks stay cells of their boxes, `[D, M, M]`, until `paste_masks`.

    Args:
      detections: boxes `[D, 4]`, scores `[D]`, labels `[D]`, valid `[D]` and masks
        `[D, M, M]` or None, as of `structs.Detections`, in pixels of the canvas.
      size: (height, width) of the image.
      scale: `[2]` pixels of the canvas per pixel of the image, (height, width).
      class_names: the name of each label.
      min_score: detections that score lower are discarded.
    """
    boxes, scores, labels, valid, cells = detections
    kept = valid & (scores >= min_score)
    height, width = size
    limits = np.array([[width, height, width, height]], np.float32)
    return ImageDetections(
        boxes=np.clip(boxes[kept] / scale[None, [1, 0, 1, 0]], 0, limits),
        scores=scores[kept],
        labels=labels[kept],
        names=tuple(class_names[label] for label in labels[kept]),
        masks=None if cells is None else cells[kept],
    )


def paste_masks(detections: ImageDetections, size: tuple[int, int]) -> ImageDetections:
    """Draws the masks, cells of their boxes so far, in an image of (height, width)."""
    if detections.masks is None:
        return detections
    pairs = zip(detections.masks, detections.boxes, strict=True)
    pasted = [masks.paste(mask, box, size) for mask, box in pairs]
    return detections._replace(masks=np.array(pasted, bool).reshape(-1, *size))


def detect_images(
    images: Sequence[np.ndarray], **options: Any
) -> list[ImageDetections]:
    """Detects objects in images of any size.

    Args:
      images: see `predict_images`.
      **options: see `predict_images`.

    Returns:
      The detections of each image, with masks as large as it.
    """
    pairs = zip(predict_images(images, **options), images, strict=True)
    return [paste_masks(found, np.shape(image)[:2]) for found, image in pairs]


def predict_images(
    images: Sequence[np.ndarray],
    predict: Callable[[dict[str, Any]], tuple],
    spec: ResizeSpec,
    *,
    class_names: Sequence[str],
    batch_size: int = 1,
    min_score: float = 0.0,
    propose: Propose | None = None,
) -> list[ImageDetections]:
    """Detects objects in images of any size, and leaves masks cells of their boxes.

    Args:
      images: `[H, W, 3]` uint8 RGB. Those of one canvas share batches, the last of
        which is filled up.
      predict: takes what `preprocess` makes of `batch_size` images of one canvas;
        returns boxes, scores, labels, valid and masks (or None), as of
        `structs.Detections`.
      spec: the canvases, and how images fill them.
      class_names: the name of each label.
      batch_size: images that `predict` takes at a time.
      min_score: detections that score lower are discarded.
      propose: from an image to its proposals, for a detector that takes some; None:
        selective search.

    Returns:
      The detections of each image.
    """
    if propose is None:
        propose = partial(selective_search, max_proposals=spec.max_regions)
    resized = [preprocess(image, spec, propose) for image in images]
    detections = {}
    for group in _groups([arrays["images"].shape for arrays in resized], batch_size):
        filled = group + group[:1] * (batch_size - len(group))
        arrays = jax.tree.map(
            lambda *parts: np.concatenate(parts), *(resized[i] for i in filled)
        )
        predicted = jax.device_get(predict(arrays))
        for slot, i in enumerate(group):
            detections[i] = postprocess(
                tuple(None if values is None else values[slot] for values in predicted),
                np.shape(images[i])[:2],
                resized[i]["scales"][0],
                class_names=class_names,
                min_score=min_score,
            )
    return [detections[i] for i in range(len(images))]


def _groups(shapes: Sequence[tuple], batch_size: int) -> Iterator[list[int]]:
    """Yields the indices of at most `batch_size` images of one shape at a time."""
    order = sorted(range(len(shapes)), key=shapes.__getitem__)
    for _, same in itertools.groupby(order, shapes.__getitem__):
        same = list(same)
        for start in range(0, len(same), batch_size):
            yield same[start : start + batch_size]
