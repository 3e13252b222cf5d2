"""Runs a detector on an image at several scales, an image pyramid.

The oldest way to detect objects of all sizes: a detector of one size of object runs on
the image made smaller and larger (Rowley et al. 1998; Felzenszwalb et al. 2010).
Detectors of several sizes gain from it too, for a multiple of the time.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxdet.config import (
    ConfigError,
    Count,
    Fraction,
    NonNegative,
    NotEmpty,
    Positive,
    PositiveFraction,
    checked_dataclass,
)
from jaxdet.detectors.detector import Detector
from jaxdet.detectors.serialization import serialize
from jaxdet.ops import boxes as box_ops
from jaxdet.ops import images, nms
from jaxdet.ops.box_fusion import weighted_box_fusion
from jaxdet.structs import Batch, Detections

Scales = Annotated[tuple[Positive, ...], NotEmpty()]


@checked_dataclass
class ImagePyramidConfig:
    """Configures what scales are predicted at, and how the detections are merged."""

    scales: Scales = (0.5, 1.0, 2.0)
    """Of the canvas, down and across."""
    flip: bool = False
    """Whether to predict on the mirror image as well, at every scale."""
    nms_threshold: Fraction = 0.5
    """Of two boxes of a class with a higher IoU, the lower-scoring one is removed."""
    max_detections: Count | None = None
    """Detections an image; None: as many as the detector returns of one view."""
    voting_iou: PositiveFraction | None = None
    """Detections of a class with this IoU or more are averaged with the one that is
    kept (Gidaris and Komodakis 2015, with 0.5), and two that are kept may then overlap
    more than `nms_threshold`; None: they are only removed."""
    fusion_iou: PositiveFraction | None = None
    """Instead of NMS, boxes of a class with a higher IoU are fused, and the fewer views
    agree, the less a score counts (Solovyev et al. 2021, with 0.55); None: NMS."""

    def relations(self) -> Iterator[tuple[str, bool, str]]:
        """Checks that boxes are averaged in one way."""
        both = self.voting_iou is not None and self.fusion_iou is not None
        yield "fusion_iou", not both, "None where voting_iou is not"


@checked_dataclass
class AllScalesConfig:
    """Configures what scales are trained at."""

    scales: Scales = (0.5, 1.0, 2.0)
    """Of the canvas, down and across."""
    object_sizes: tuple[NonNegative, NonNegative] | None = None
    """Least and greatest square root of an object's area, in scaled pixels; others are
    background at that scale. None: all are objects at every scale."""

    def relations(self) -> Iterator[tuple[str, bool, str]]:
        """Checks that sizes rise."""
        low, high = self.object_sizes or (0, 1)
        yield "object_sizes", low < high, "least < greatest"


def predict(
    variables, batch: Batch, *, detector: Detector, config: ImagePyramidConfig
) -> Detections:
    """Predicts on every view of each image and merges the detections.

    Masks stay what they are within their boxes; region proposals follow their image.

    Args:
      variables: of the detector.
      batch: its truth is not used.
      detector: predicts at each scale; with `config.flip` on mirrored images too.
      config: see `ImagePyramidConfig`.

    Returns:
      `Detections` `[B, max_detections]`, best first, in pixels of the given
      canvas.

    Raises:
      ConfigError: if boxes are to be averaged that have masks, which would not fit, or
        if the detector takes no canvas of one of the scales.
    """
    views = batch.replace(truth=None)
    if config.flip:  # as one batch, so that each size is compiled once
        views = _concatenate([views, _mirror(views)], axis=0)
    detections = []
    for scale in config.scales:
        try:
            of_scale = detector.predict(variables, _rescale(views, scale))
        except ConfigError as error:
            raise ConfigError(
                f"scales is {config.scales}; the detector takes no canvas of {scale:g} "
                f"times its size: {error}"
            ) from error
        detections.append(of_scale.replace(boxes=of_scale.boxes / scale))
    slots = config.max_detections or detections[0].valid.shape[1]
    detections = _concatenate(detections, axis=1)
    if config.flip:
        count = len(batch.images)
        original, mirrored = (
            jax.tree.map(lambda values, part=part: values[part], detections)
            for part in (slice(count), slice(count, None))
        )
        mirrored = _mirror_detections(mirrored, batch.sizes)
        detections = _concatenate([original, mirrored], axis=1)
    for name in ("voting_iou", "fusion_iou"):
        value = getattr(config, name)
        if value is not None and detections.masks is not None:
            raise ConfigError(
                f"{name} is {value}, but the detector predicts masks, which would not "
                "fit averaged boxes; it must be None"
            )
    merge = partial(_merge, config=config, max_detections=slots)
    return jax.vmap(merge)(detections, batch.sizes)


def image_pyramid(detector: Detector, config: ImagePyramidConfig) -> Detector:
    """Makes a detector predict at several scales; its training stays as it is.

    Args:
      detector: any; its `predict` is traced once for each scale, whose canvas has a
        shape of its own, and all of it is one program.
      config: see `ImagePyramidConfig`.

    Returns:
      A detector with the same variables.
    """
    return detector._replace(
        predict=partial(predict, detector=detector, config=config),
        recipe=_recipe(partial(image_pyramid, config=config), detector),
    )


def at_all_scales(detector: Detector, config: AllScalesConfig) -> Detector:
    """Trains a detector on each batch at all scales; its predictions stay as they are.

    Use it before an `image_pyramid` of the same scales: with `object_sizes` the network
    is trained to detect objects of one size, and to ignore what other scales bring to
    that size. Loss and metrics are means over the scales.

    Args:
      detector: any.
      config: see `AllScalesConfig`.

    Returns:
      A detector with the same variables.
    """

    def loss(variables, batch: Batch, key, axis_name: str | None = None):
        results = []
        keys = jax.random.split(key, len(config.scales))
        for scale, scale_key in zip(config.scales, keys, strict=True):
            view = _rescale(batch, scale)
            if config.object_sizes is not None:
                view = _only_objects_of_sizes(view, config.object_sizes)
            results.append(
                detector.loss(variables, view, scale_key, axis_name=axis_name)
            )
        return jax.tree.map(lambda *parts: sum(parts) / len(parts), *results)

    recipe = _recipe(partial(at_all_scales, config=config), detector)
    return detector._replace(loss=loss, recipe=recipe)


def _recipe(make: partial, detector: Detector) -> dict | None:
    """Returns the recipe of `make(detector)`, which holds the detector's own."""
    if detector.recipe is None:
        return None
    return serialize(make) | {"arguments": [detector.recipe]}


def _concatenate(parts: list, *, axis: int):
    """Concatenates structs array by array."""
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis), *parts)


def _merge(
    views: Detections,
    size: jax.Array,
    *,
    config: ImagePyramidConfig,
    max_detections: int,
) -> Detections:
    """Merges an image's `[D]` detections in all views into `[max_detections]`."""
    boxes = box_ops.clip(views.boxes, size)
    candidates = {"scores": views.scores, "labels": views.labels, "valid": views.valid}
    if config.fusion_iou is not None:
        return weighted_box_fusion(
            boxes,
            **candidates,
            num_views=len(config.scales) * (1 + config.flip),
            iou_threshold=config.fusion_iou,
            max_detections=max_detections,
        )
    keep, valid = nms.batched_nms(
        boxes,
        **candidates,
        iou_threshold=config.nms_threshold,
        max_output_size=max_detections,
    )
    kept = jax.tree.map(lambda values: values[keep], views.replace(boxes=boxes))
    if config.voting_iou is not None:
        voted = nms.box_voting(
            boxes, keep=keep, **candidates, iou_threshold=config.voting_iou
        )
        kept = kept.replace(boxes=voted)
    return nms.clear_padding(kept.replace(valid=valid))


def _rescale(batch: Batch, scale: float) -> Batch:
    """Resizes a batch to a canvas `scale` times as high and wide; not at 1."""
    if scale == 1:
        return batch
    resize = partial(_rescale_image, scale=scale)
    batch = batch.replace(
        images=jax.vmap(resize)(batch.images, batch.sizes),
        sizes=_rescale_sizes(batch.sizes, scale),
        scales=batch.scales * scale,
    )
    if batch.truth is not None:
        truth = batch.truth.replace(boxes=batch.truth.boxes * scale)
        batch = batch.replace(truth=truth)
    if batch.regions is not None:
        regions = batch.regions.replace(boxes=batch.regions.boxes * scale)
        batch = batch.replace(regions=regions)
    return batch


def _rescale_image(image: jax.Array, size: jax.Array, *, scale: float) -> jax.Array:
    """Rescales `[H, W, 3]` to `[ceil(H * scale), ceil(W * scale), 3]`; dtypes stay.

    Pixels at the border are averages of pixels inside alone, so the black outside makes
    none darker.
    """
    inside = _inside(image.shape, size).astype(jnp.float32)
    pixels = images.rescale(image * inside, scale)
    shares = images.rescale(inside, scale)
    pixels = jnp.where(shares > 0, pixels / shares, 0.0)
    inside = _inside(pixels.shape, _rescale_sizes(size, scale))
    if jnp.issubdtype(image.dtype, jnp.integer):
        pixels = jnp.round(pixels)
    return jnp.where(inside, pixels, 0.0).astype(image.dtype)


def _rescale_sizes(size: jax.Array, scale: float) -> jax.Array:
    # Rounded, so that the center of the last pixel is at most half a pixel outside.
    return jnp.maximum(jnp.round(size * scale), 1).astype(size.dtype)


def _inside(shape: Sequence[int], size: jax.Array) -> jax.Array:
    """Returns `[H, W, 1]` bool, True for the pixels of the true image."""
    rows, columns = jnp.arange(shape[0]) < size[0], jnp.arange(shape[1]) < size[1]
    return (rows[:, None] & columns[None])[..., None]


def _only_objects_of_sizes(batch: Batch, object_sizes: tuple[float, float]) -> Batch:
    """Makes padding of the objects whose size is not in the range."""
    low, high = object_sizes
    truth = batch.truth
    size = jnp.sqrt(box_ops.area(truth.boxes))
    fits = (size >= low) & (size <= high)
    return batch.replace(truth=truth.replace(valid=truth.valid & fits))


def _mirror(batch: Batch) -> Batch:
    """Mirrors every image, and its regions, within its true width."""
    columns = jnp.arange(batch.images.shape[2])[None]
    widths = batch.sizes[:, 1:]
    source = jnp.where(columns < widths, widths - 1 - columns, columns)
    batch = batch.replace(
        images=jnp.take_along_axis(batch.images, source[:, None, :, None], axis=2)
    )
    if batch.regions is not None:
        regions = batch.regions
        boxes = _mirror_boxes(regions.boxes, regions.valid, batch.sizes)
        batch = batch.replace(regions=regions.replace(boxes=boxes))
    return batch


def _mirror_detections(detections: Detections, sizes: jax.Array) -> Detections:
    """Mirrors detections, and their masks, within images of `sizes`."""
    boxes = _mirror_boxes(detections.boxes, detections.valid, sizes)
    masks = None if detections.masks is None else detections.masks[..., ::-1]
    return detections.replace(boxes=boxes, masks=masks)


def _mirror_boxes(boxes: jax.Array, valid: jax.Array, sizes: jax.Array) -> jax.Array:
    """Mirrors `[B, D, 4]` within images of `sizes`; padding stays zeros."""
    x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
    widths = sizes[:, 1:].astype(boxes.dtype)
    mirrored = jnp.stack([widths - x2, y1, widths - x1, y2], axis=-1)
    return jnp.where(valid[..., None], mirrored, 0.0)
