"""Image pyramids: a detector that looks at an image in several sizes.

The oldest way to find objects of all sizes: a detector of one size of object sees the
image smaller and larger (Rowley et al. 1998; Felzenszwalb et al. 2010). Detectors that
find several sizes by themselves gain too, for a multiple of the time.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.detectors.detector import Detector, require
from jaxdet.detectors.serialization import serialize
from jaxdet.ops import boxes as box_ops
from jaxdet.ops import images, nms
from jaxdet.ops.coverage import Coverage
from jaxdet.structs import Batch, Detections


@dataclasses.dataclass(frozen=True)
class ImagePyramidConfig:
    """What is looked at, and how the answers become one.

    Raises:
      ValueError: for a number out of its range, naming the field and what is allowed.
    """

    scales: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Pixels looked at per pixel of the canvas, down and across."""
    flip: bool = False
    """Look at the mirror image as well, in every size."""
    nms_threshold: float = 0.5
    """Of two answers of a class that overlap more, the better one stays."""
    detections: int = 100
    """Slots for the answers on one image."""
    vote_iou: float | None = None
    """From it on, answers of a class are averaged with the one that stays (Gidaris and
    Komodakis 2015, with 0.5), and two that stay may then overlap more than
    `nms_threshold`; None: they go."""

    def __post_init__(self):
        _require_scales(self)
        require(self, "nms_threshold", 0 <= self.nms_threshold <= 1, "in [0, 1]")
        require(self, "detections", self.detections >= 1, "at least 1")
        right = self.vote_iou is None or 0 < self.vote_iou <= 1
        require(self, "vote_iou", right, "in (0, 1], or None")


@dataclasses.dataclass(frozen=True)
class AllScalesConfig:
    """In what sizes images are learned.

    Raises:
      ValueError: for a number out of its range, naming the field and what is allowed.
    """

    scales: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Pixels looked at per pixel of the canvas, down and across."""
    object_sizes: tuple[float, float] | None = None
    """Least and greatest square root of an object's area, in pixels looked at; others
    are background at that scale. None: all are objects at every scale."""

    def __post_init__(self):
        _require_scales(self)
        if self.object_sizes is not None:
            low, high = self.object_sizes
            require(self, "object_sizes", 0 <= low < high, "0 <= least < greatest")


def predict(
    variables, batch: Batch, *, detector: Detector, config: ImagePyramidConfig
) -> Detections:
    """The detector's answers on every view, thinned class by class.

    Masks stay what they are within their boxes; region proposals follow their image.

    Args:
      variables: of the detector.
      batch: truth is not looked at.
      detector: asked at each scale; with `config.flip` about mirrored images too.
      config: see `ImagePyramidConfig`.

    Returns:
      `Detections` `[B, config.detections]`, best first, in pixels of the given canvas.

    Raises:
      ValueError: if boxes are to be averaged that have masks, which would not fit.
    """
    views = batch.replace(truth=None)
    if config.flip:  # as one batch, so that each size is compiled once
        views = _joined([views, _mirrored(views)], axis=0)
    answers = []
    for scale in config.scales:
        found = detector.predict(variables, _rescaled(views, scale))
        answers.append(found.replace(boxes=found.boxes / scale))
    found = _joined(answers, axis=1)
    if config.flip:
        count = len(batch.images)
        as_it_is = jax.tree.map(lambda values: values[:count], found)
        mirrored = jax.tree.map(lambda values: values[count:], found)
        found = _joined([as_it_is, _mirrored_answers(mirrored, batch.sizes)], axis=1)
    if config.vote_iou is not None and found.masks is not None:
        raise ValueError(
            f"vote_iou is {config.vote_iou}, but the detector finds masks, which would "
            "not fit averaged boxes; it must be None"
        )
    return jax.vmap(partial(_merge, config=config))(found, batch.sizes)


def image_pyramid(detector: Detector, config: ImagePyramidConfig) -> Detector:
    """The detector, predicting at several scales; it learns as before.

    Args:
      detector: any; its `predict` is traced once for each scale, whose canvas has a
        shape of its own, and all of it is one program.
      config: see `ImagePyramidConfig`.
    """
    make = partial(image_pyramid, config=config)
    return detector._replace(
        predict=partial(predict, detector=detector, config=config),
        recipe=_recipe(make, detector),
    )


def at_all_scales(detector: Detector, config: AllScalesConfig) -> Detector:
    """The detector, learning each batch at all scales; it predicts as before.

    Training for an `image_pyramid` of the same scales: with `object_sizes` it learns to
    find what is of one size, and to pass over what it will see again in another. Loss
    and metrics are means over the scales.

    Args:
      detector: any.
      config: see `AllScalesConfig`.
    """

    def loss(variables, batch: Batch, key, axis_name: str | None = None):
        answers = []
        keys = jax.random.split(key, len(config.scales))
        for scale, scale_key in zip(config.scales, keys, strict=True):
            view = _rescaled(batch, scale)
            if config.object_sizes is not None:
                view = _fitting(view, config.object_sizes)
            answers.append(
                detector.loss(variables, view, scale_key, axis_name=axis_name)
            )
        return jax.tree.map(lambda *parts: sum(parts) / len(parts), *answers)

    make = partial(at_all_scales, config=config)
    coverage = None
    if detector.coverage is not None:
        coverage = partial(_coverage, detector=detector, config=config)
    return detector._replace(
        loss=loss, recipe=_recipe(make, detector), coverage=coverage
    )


def _require_scales(config: ImagePyramidConfig | AllScalesConfig) -> None:
    right = len(config.scales) > 0 and min(config.scales) > 0
    require(config, "scales", right, "one or more numbers above 0")


def _coverage(
    canvas: tuple[int, int],
    boxes: np.ndarray,
    sizes: np.ndarray,
    *,
    detector: Detector,
    config: AllScalesConfig,
) -> Coverage:
    """What each object finds at the best of the scales that learn it."""
    views = []
    for scale in config.scales:
        scaled = tuple(math.ceil(extent * scale) for extent in canvas)
        found = detector.coverage(scaled, boxes * scale, sizes * scale)
        if config.object_sizes is not None:
            low, high = config.object_sizes
            side = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)) * scale
            learned = (side >= low) & (side <= high)
            found = found._replace(best=np.where(learned, found.best, 0))
        views.append(found)
    return views[0]._replace(best=np.max([found.best for found in views], axis=0))


def _recipe(make: partial, detector: Detector) -> dict | None:
    """That of `make(detector)`, which holds the detector's own."""
    if detector.recipe is None:
        return None
    return serialize(make) | {"arguments": [detector.recipe]}


def _joined(parts: list, *, axis: int):
    """Structs of the same shapes, array by array."""
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis), *parts)


def _merge(
    found: Detections, size: jax.Array, *, config: ImagePyramidConfig
) -> Detections:
    """One image: `[D]` answers of all views, in canvas pixels -> `[detections]`."""
    boxes = box_ops.clip(found.boxes, size)
    candidates = {"scores": found.scores, "labels": found.labels, "valid": found.valid}
    keep, valid = nms.batched_nms(
        boxes,
        **candidates,
        iou_threshold=config.nms_threshold,
        max_output_size=config.detections,
    )
    kept = jax.tree.map(lambda values: values[keep], found.replace(boxes=boxes))
    if config.vote_iou is not None:
        voted = nms.box_voting(
            boxes, keep=keep, **candidates, iou_threshold=config.vote_iou
        )
        kept = kept.replace(boxes=voted)
    return nms.clear_padding(kept.replace(valid=valid))


def _rescaled(batch: Batch, scale: float) -> Batch:
    """The batch on a canvas `scale` times as high and wide; at 1 it is the same."""
    if scale == 1:
        return batch
    resize = partial(_rescaled_image, scale=scale)
    batch = batch.replace(
        images=jax.vmap(resize)(batch.images, batch.sizes),
        sizes=_rescaled_size(batch.sizes, scale),
        scales=batch.scales * scale,
    )
    if batch.truth is not None:
        truth = batch.truth.replace(boxes=batch.truth.boxes * scale)
        batch = batch.replace(truth=truth)
    if batch.regions is not None:
        regions = batch.regions.replace(boxes=batch.regions.boxes * scale)
        batch = batch.replace(regions=regions)
    return batch


def _rescaled_image(image: jax.Array, size: jax.Array, *, scale: float) -> jax.Array:
    """`[H, W, 3]` -> `[ceil(H * scale), ceil(W * scale), 3]`, of the same dtype.

    Pixels at the border get their share of the pixels inside alone, so none is darker
    for what lies outside.
    """
    inside = _inside(image.shape, size).astype(jnp.float32)
    pixels = images.rescale(image * inside, scale)
    shares = images.rescale(inside, scale)
    pixels = jnp.where(shares > 0, pixels / shares, 0.0)
    inside = _inside(pixels.shape, _rescaled_size(size, scale))
    if jnp.issubdtype(image.dtype, jnp.integer):
        pixels = jnp.round(pixels)
    return jnp.where(inside, pixels, 0.0).astype(image.dtype)


def _rescaled_size(size: jax.Array, scale: float) -> jax.Array:
    # Rounded, so that the centre of the last pixel is at most half a pixel outside.
    return jnp.maximum(jnp.round(size * scale), 1).astype(size.dtype)


def _inside(shape: Sequence[int], size: jax.Array) -> jax.Array:
    """`[H, W, 1]`: the pixels of the true image."""
    rows, columns = jnp.arange(shape[0]) < size[0], jnp.arange(shape[1]) < size[1]
    return (rows[:, None] & columns[None])[..., None]


def _fitting(batch: Batch, object_sizes: tuple[float, float]) -> Batch:
    """The batch with only those objects as targets whose size is in the range."""
    low, high = object_sizes
    truth = batch.truth
    size = jnp.sqrt(box_ops.area(truth.boxes))
    fits = (size >= low) & (size <= high)
    return batch.replace(truth=truth.replace(valid=truth.valid & fits))


def _mirrored(batch: Batch) -> Batch:
    """Every image mirrored within its true width, its regions too."""
    columns = jnp.arange(batch.images.shape[2])[None]
    widths = batch.sizes[:, 1:]
    source = jnp.where(columns < widths, widths - 1 - columns, columns)
    batch = batch.replace(
        images=jnp.take_along_axis(batch.images, source[:, None, :, None], axis=2)
    )
    if batch.regions is not None:
        regions = batch.regions
        boxes = _mirrored_boxes(regions.boxes, regions.valid, batch.sizes)
        batch = batch.replace(regions=regions.replace(boxes=boxes))
    return batch


def _mirrored_answers(found: Detections, sizes: jax.Array) -> Detections:
    """What was found in mirrored images, in the images."""
    found = found.replace(boxes=_mirrored_boxes(found.boxes, found.valid, sizes))
    if found.masks is not None:
        found = found.replace(masks=found.masks[..., ::-1])
    return found


def _mirrored_boxes(boxes: jax.Array, valid: jax.Array, sizes: jax.Array) -> jax.Array:
    """`[B, D, 4]` within images of `sizes`; padding stays zeros."""
    x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
    widths = sizes[:, 1:].astype(boxes.dtype)
    mirrored = jnp.stack([widths - x2, y1, widths - x1, y2], axis=-1)
    return jnp.where(valid[..., None], mirrored, 0.0)
