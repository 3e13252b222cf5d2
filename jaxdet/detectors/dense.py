"""Matches, selects and postprocesses for detectors that predict for every anchor.

All of them take and return whole batches.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from jaxdet.config import Anchors, Postprocessing
from jaxdet.ops import anchors, matching, nms
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.lookup import lookup
from jaxdet.structs import Detections, GroundTruth


def anchor_grid(
    shape: tuple[int, ...],
    sizes: jax.Array | None,
    levels: Sequence[int],
    config: Anchors,
) -> tuple[jax.Array, jax.Array]:
    """Returns the anchors of a pyramid, and which of them lie in cells on their image.

    Args:
      shape: of the batch's pixels, `(B, H, W, 3)`.
      sizes: `[B, 2]` true (height, width); None: all of the canvas is image.
      levels: of the pyramid, finest first.
      config: sizes and ratios of the anchors.

    Returns:
      `[A, 4]` boxes; `[B, A]` bool.
    """
    boxes = anchors.pyramid_anchors(shape[1:3], levels=levels, **vars(config))
    layout = {"levels": levels, "per_cell": config.per_cell}
    return boxes, anchors.inside_mask(shape, sizes, **layout)


def match_anchors(
    boxes: jax.Array,
    inside: jax.Array,
    truth: GroundTruth,
    *,
    negative_iou: float,
    positive_iou: float,
) -> matching.Matches:
    """Matches the anchors inside each image to its objects, except for crowds.

    Args:
      boxes: `[A, 4]` anchors, the same for all images.
      inside: `[B, A]` bool; anchors outside are neither positive nor negative.
      truth: the objects, `N` slots an image.
      negative_iou: see `matching.match_by_iou`.
      positive_iou: see `matching.match_by_iou`.

    Returns:
      `Matches` `[B, A]`.
    """
    match = partial(
        matching.match_by_iou, negative_iou=negative_iou, positive_iou=positive_iou
    )
    valid = truth.valid & ~truth.crowd
    matches = jax.vmap(match)(zero_outside(boxes, inside), truth.boxes, valid)
    return ignore_outside(matches, inside)


def zero_outside(boxes: jax.Array, inside: jax.Array) -> jax.Array:
    """Repeats anchors for each image, as zeros where they are outside of it.

    Zeros overlap nothing, so no object's best anchor is one in the padding.

    Args:
      boxes: `[A, 4]` anchors, the same for all images.
      inside: `[B, A]` bool.

    Returns:
      `[B, A, 4]`.
    """
    return jnp.where(inside[..., None], boxes[None], 0.0)


def ignore_outside(matches: matching.Matches, inside: jax.Array) -> matching.Matches:
    """Returns the matches without the anchors outside: not positive, not negative.

    Args:
      matches: `[B, A]`.
      inside: `[B, A]` bool.
    """
    return matches.replace(
        positive=matches.positive & inside, negative=matches.negative & inside
    )


def matched_targets(
    truth: GroundTruth, index: jax.Array, positive: jax.Array, *, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    """Looks up the label and the box of every anchor's object.

    Args:
      truth: the objects, `N` slots an image.
      index: `[B, A]`, slots.
      positive: `[B, A]` bool.
      num_classes: K, the label of anchors that are not positive.

    Returns:
      Labels `[B, A]`, from 0 to K; boxes `[B, A, 4]`, meaningless unless positive.
    """
    labels = jnp.where(positive, jax.vmap(lookup)(truth.labels, index), num_classes)
    return labels, jax.vmap(lookup)(truth.boxes, index)


def gather(values: jax.Array, index: jax.Array) -> jax.Array:
    """Takes items of each image, `[B, N, ...]` at `[B, M]` -> `[B, M, ...]`.

    Where there are no items at all, N being 0, it returns zeros.
    """
    if values.shape[1] == 0:
        return jnp.zeros((*index.shape, *values.shape[2:]), values.dtype)
    return jax.vmap(lambda values, index: values[index])(values, index)


def gather_rows(values: jax.Array, index: jax.Array) -> jax.Array:
    """Takes rows of each image, `[B, N, n]` at `[B, M]` -> `[B, M, n]`.

    As `gather`, but number by number: TPUs pad rows of a few numbers to 128, and with
    them the gradient of all rows that are not taken.
    """
    size = values.shape[-1]
    places = size * index[..., None] + jnp.arange(size, dtype=index.dtype)[None, None]
    numbers = gather(*(x.reshape(len(x), -1) for x in (values, places)))
    return numbers.reshape(*index.shape, size)


def topk_per_level(
    scores: jax.Array,
    canvas: tuple[int, int],
    *,
    levels: Sequence[int],
    per_cell: int,
    k: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Selects the highest scores of each level of a pyramid.

    Args:
      scores: `[B, A, K]`.
      canvas: see `anchors.topk_per_level`.
      levels: see there.
      per_cell: anchors, or points, in each cell.
      k: scores of a level.

    Returns:
      Scores, anchors and classes, each `[B, M]`: level by level, best first.
    """
    topk = partial(
        anchors.topk_per_level, canvas=canvas, levels=levels, per_cell=per_cell, k=k
    )
    return jax.vmap(topk)(scores)


def postprocess(
    boxes: jax.Array,
    scores: jax.Array,
    labels: jax.Array,
    sizes: jax.Array,
    config: Postprocessing,
) -> Detections:
    """Clips boxes to their images and removes duplicates by class-wise NMS.

    Args:
      boxes: `[B, M, 4]` canvas pixels; those that are not finite are discarded.
      scores: `[B, M]`; what scores 0 or less is discarded.
      labels: `[B, M]` int.
      sizes: `[B, 2]` true (height, width) in canvas pixels.
      config: its `nms_threshold` and `max_detections` are used.

    Returns:
      `Detections` `[B, config.max_detections]`, best first.
    """
    boxes = jax.vmap(box_ops.clip)(boxes, sizes)
    valid = (scores > 0) & jnp.all(jnp.isfinite(boxes), axis=-1)

    def select(boxes, scores, labels, valid):
        return nms.select_detections(
            boxes,
            scores,
            labels,
            iou_threshold=config.nms_threshold,
            max_detections=config.max_detections,
            valid=valid,
        )

    return jax.vmap(select)(boxes, scores, labels, valid)
