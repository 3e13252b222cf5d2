"""Samples, pools and classifies regions of interest: the second stage of R-CNNs.

A region of interest (RoI) is a box from selective search or a region proposal network.
It is classified as one of K classes or as background, and moved by the deltas of its
class (Girshick et al. 2014; jointly since Girshick 2015).
"""

from collections.abc import Iterator
from functools import partial
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxdet.config import (
    Count,
    Fraction,
    NonNegative,
    Positive,
    PositiveFraction,
    Postprocessing,
    PyramidLevels,
    Size,
    checked_dataclass,
)
from jaxdet.detectors import dense
from jaxdet.nn.fpn import of_level
from jaxdet.nn.heads import BoxPredictor
from jaxdet.nn.layers import zero_outside
from jaxdet.ops import box_coding, matching, roi_align, roi_pool, sampling
from jaxdet.ops import boxes as box_ops
from jaxdet.ops import losses as loss_ops
from jaxdet.structs import Batch, Detections, GroundTruth, Regions


@checked_dataclass
class RoIHeadsConfig:
    """Configures the second stage; defaults are detectron2's and torchvision's."""

    batch_size_per_image: Count = 512
    """RoIs of an image that a training step samples."""
    positive_fraction: PositiveFraction = 0.25
    """At most this share of them is positive (Fast R-CNN 2.3)."""
    positive_iou: PositiveFraction = 0.5
    """RoIs that overlap an object as much or more are positive."""
    negative_iou: PositiveFraction = 0.5
    """RoIs that overlap every object less are background."""
    hard_negative_iou: Fraction = 0.0
    """Background that overlaps less is not sampled, unless there is no other (0.1 in
    Fast R-CNN 2.3: a cheap search for hard examples)."""
    box_weights: tuple[Positive, Positive, Positive, Positive] = (10.0, 10.0, 5.0, 5.0)
    """Factors of the deltas: the inverse of their usual standard deviations."""
    box_beta: NonNegative = 0.0
    """Where smooth L1 turns from square to linear; 0 is L1, Fast R-CNN's is 1."""
    box_weight: NonNegative = 1.0
    """Of the box loss in the sum; lambda (Fast R-CNN 2.3)."""
    class_agnostic: bool = False
    """One box for all classes of a RoI, instead of one for each."""
    postprocessing: Postprocessing = Postprocessing(pre_nms_topk=2000)
    """The top scores are taken over RoIs and classes of an image."""
    min_box_size: NonNegative = 0.0
    """Boxes with a shorter side, in canvas pixels, are discarded."""

    def relations(self) -> Iterator[tuple[str, bool, str]]:
        """Checks the order of the thresholds, and that positives can be sampled."""
        fits = self.negative_iou <= self.positive_iou
        yield "negative_iou", fits, f"at most positive_iou, {self.positive_iou}"
        fits = self.hard_negative_iou < self.negative_iou
        yield "hard_negative_iou", fits, f"below negative_iou, {self.negative_iou}"
        fits = self.max_positives >= 1
        allowed = f"at least 1 / batch_size_per_image ({self.batch_size_per_image})"
        yield "positive_fraction", fits, allowed

    @property
    def max_positives(self) -> int:
        """Returns the most RoIs of an image that are sampled as positive."""
        return int(self.batch_size_per_image * self.positive_fraction)


# Girshick 2015: 64 RoIs from each of 2 images (2.3), NMS from R-CNN.
FAST_RCNN = RoIHeadsConfig(
    batch_size_per_image=64,
    hard_negative_iou=0.1,
    box_beta=1.0,
    postprocessing=Postprocessing(pre_nms_topk=2000, nms_threshold=0.3),
)


@checked_dataclass
class RoIPoolerConfig:
    """Configures how features are pooled from RoIs."""

    method: Literal["align", "max"] = "align"
    """RoI Align, or Fast R-CNN's RoI max pooling, which takes one level."""
    levels: PyramidLevels = (2, 3, 4, 5)
    """Of the features; each RoI is pooled from one, by its size (FPN 4.2)."""
    output_size: Count = 7
    """Cells a side: 7 for VGG-16 and pyramids, 6 for AlexNet, 14 for ResNet-C4."""
    sampling_ratio: Size = 2
    """Points a side of each cell that RoI Align averages; 0: as many as it has cells
    of the features below it."""
    canonical_size: Positive = 224.0
    """Side of the RoIs that are pooled from `canonical_level` (FPN 4.2)."""
    canonical_level: int = 4
    """See `canonical_size`."""
    aligned: bool = True
    """False for torchvision's weights, whose RoI Align is half a cell off."""

    def relations(self) -> Iterator[tuple[str, bool, str]]:
        """Checks that max pooling takes one level."""
        fits = self.method == "align" or len(self.levels) == 1
        yield "method", fits, f"'align' for several levels, {self.levels}"


@flax.struct.dataclass
class SampledRoIs:
    """RoIs of a training step and their targets; positive ones come first."""

    boxes: jax.Array  # [B, R, 4]
    labels: jax.Array  # [B, R] int32, K for background
    gt_index: jax.Array  # [B, R] int32, the slot of the matched object
    gt_boxes: jax.Array  # [B, R, 4], that object's box
    positive: jax.Array  # [B, R] bool
    valid: jax.Array  # [B, R] bool


def predictor(config, dtype: jnp.dtype) -> BoxPredictor:
    """Returns the two siblings after the box head, of an R-CNN's config."""
    return BoxPredictor(config.num_classes, config.roi_heads.class_agnostic, dtype)


def proposals_of(batch: Batch) -> Regions:
    """Returns the regions that came with a batch, clipped to their images.

    Those without area are invalid then, and so are those outside their image.

    Raises:
      ValueError: if the batch has none.
    """
    if batch.regions is None:
        raise ValueError(
            "this detector needs batch.regions; give its data set proposals "
            "(jaxdet.data.selective_search) and set InputConfig.max_regions"
        )
    boxes = jax.vmap(box_ops.clip)(batch.regions.boxes, batch.sizes)
    valid = batch.regions.valid & (box_ops.area(boxes) > 0)
    boxes = jnp.where(valid[..., None], boxes, 0.0)
    return batch.regions.replace(boxes=boxes, valid=valid)


def sample_rois(
    keys: jax.Array,
    proposals: Regions,
    truth: GroundTruth,
    config: RoIHeadsConfig,
    num_classes: int,
) -> SampledRoIs:
    """Samples the RoIs of a training step from the proposals and the objects.

    Args:
      keys: `[B]`.
      proposals: `[B, P]`, best first; which ones are sampled depends on their order.
      truth: `[B, N]`; crowds are no objects: a RoI on one is background, as in
        torchvision and detectron2.
      config: how many, and which overlap makes which.
      num_classes: K.

    Returns:
      `SampledRoIs` `[B, config.batch_size_per_image]`.
    """
    objects = truth.valid & ~truth.crowd
    boxes = jnp.concatenate([proposals.boxes, truth.boxes], axis=1)
    valid = jnp.concatenate([proposals.valid, objects], axis=1)
    # 1. Match every candidate to an object or to the background.
    match = partial(
        matching.match_by_iou,
        negative_iou=config.negative_iou,
        positive_iou=config.positive_iou,
        allow_low_quality_matches=False,
    )
    matches = jax.vmap(match)(boxes, truth.boxes, objects)
    negative = valid & matches.negative
    hard = negative & (matches.iou >= config.hard_negative_iou)
    negative = jnp.where(jnp.any(hard, axis=1, keepdims=True), hard, negative)
    # 2. Sample some of them: proposals by their rank, objects by their boxes.
    ranks = jnp.arange(proposals.valid.shape[1], dtype=jnp.uint32)
    ranks = jnp.broadcast_to(ranks, proposals.valid.shape)
    hashes = jnp.concatenate([ranks, jax.vmap(sampling.hash_boxes)(truth.boxes)], 1)
    sample = partial(
        sampling.balanced_subset,
        size=config.batch_size_per_image,
        positive_fraction=config.positive_fraction,
    )
    chosen = jax.vmap(sample)(keys, hashes, valid & matches.positive, negative)
    # 3. Gather their targets.
    gt_index = dense.gather(matches.gt_index, chosen.indices)
    gt_index = jnp.where(chosen.positive, gt_index, 0)
    labels, gt_boxes = dense.matched_targets(
        truth, gt_index, chosen.positive, num_classes=num_classes
    )
    boxes = dense.gather(boxes, chosen.indices)
    boxes = jnp.where(chosen.valid[..., None], boxes, 0.0)
    return SampledRoIs(boxes, labels, gt_index, gt_boxes, chosen.positive, chosen.valid)


def pool(
    features: dict[int, jax.Array],
    boxes: jax.Array,
    sizes: jax.Array | None,
    config: RoIPoolerConfig,
    output_size: int | None = None,
) -> jax.Array:
    """Pools the features in each box to a fixed size.

    Args:
      features: `{level: [B, H, W, C]}`.
      boxes: `[B, R, 4]` canvas pixels.
      sizes: `[B, 2]` true (height, width); None: all of the canvas is image.
      config: how to pool.
      output_size: cells a side; by default `config.output_size`.

    Returns:
      `[B, R, output_size, output_size, C]`.

    Raises:
      ValueError: if features of a level are missing.
    """
    output_size = output_size or config.output_size
    if config.method == "max":
        (level,) = config.levels
        features = zero_outside(of_level(features, level), sizes, 2**level)
        max_pool = partial(
            roi_pool.roi_max_pool, stride=2**level, output_size=output_size
        )
        return jax.vmap(max_pool)(features, boxes)

    def align(features, boxes, size):
        return roi_align.pyramid_roi_align(
            features,
            boxes,
            output_size=output_size,
            sampling_ratio=config.sampling_ratio,
            aligned=config.aligned,
            canonical_size=config.canonical_size,
            canonical_level=config.canonical_level,
            image_size=size,
        )

    features = {level: of_level(features, level) for level in config.levels}
    return jax.vmap(align)(features, boxes, sizes)


def box_head(network, crops: jax.Array, keys: jax.Array | None = None):
    """Classifies the crop of every RoI and predicts how its box should move.

    Args:
      network: with the modules `box_head` and `box_predictor`.
      crops: `[B, R, ..., C]`.
      keys: `[B]`, for dropout; None: no dropout.

    Returns:
      Class logits `[B, R, K + 1]`, background last, and deltas `[B, R, K, 4]`.
    """
    hidden = network.box_head(crops.reshape(-1, *crops.shape[2:]), keys)
    return unflatten(network.box_predictor(hidden), crops.shape[:2])


def unflatten(outputs, shape: tuple[int, int]):
    """Reshapes arrays `[B * R, ...]` to `[B, R, ...]`, the shape being (B, R)."""
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), outputs)


def losses(
    class_logits: jax.Array,
    box_deltas: jax.Array,
    rois: SampledRoIs,
    config: RoIHeadsConfig,
    axis_name: str | None = None,
) -> dict[str, jax.Array]:
    """Computes softmax loss on all RoIs, box loss on positive ones (Fast R-CNN 2.3).

    Both are divided by the number of sampled RoIs on all devices.

    Args:
      class_logits: `[B, R, K + 1]`.
      box_deltas: `[B, R, K, 4]`, or `[B, R, 1, 4]` if they are class agnostic.
      rois: `[B, R]`.
      config: of the box loss.
      axis_name: of the devices; None: there is one.

    Returns:
      `{"class_loss", "box_loss"}`, the latter times its weight.
    """
    count = loss_ops.device_mean_count(rois.valid, axis_name=axis_name)
    cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels
    class_loss = jnp.sum(cross_entropy(class_logits, rois.labels), where=rois.valid)
    own = jnp.minimum(rois.labels, box_deltas.shape[2] - 1)  # any for the background
    deltas = jnp.take_along_axis(box_deltas, own[..., None, None], axis=2)[:, :, 0]
    targets = box_coding.encode(rois.gt_boxes, rois.boxes, weights=config.box_weights)
    box_loss = loss_ops.smooth_l1_loss(deltas, targets, beta=config.box_beta)
    box_loss = jnp.sum(box_loss, where=rois.positive[..., None])
    return {
        "class_loss": class_loss / count,
        "box_loss": config.box_weight * (box_loss / count),
    }


def postprocess(
    class_logits: jax.Array,
    box_deltas: jax.Array,
    proposals: Regions,
    sizes: jax.Array,
    config: RoIHeadsConfig,
) -> Detections:
    """Scores and moves every proposal for every class, and removes duplicates by NMS.

    Args:
      class_logits: `[B, P, K + 1]`.
      box_deltas: `[B, P, K, 4]` or `[B, P, 1, 4]`.
      proposals: `[B, P]`.
      sizes: `[B, 2]`, true (height, width) of the images.
      config: weights of the deltas, and postprocessing.

    Returns:
      `Detections` `[B, config.postprocessing.max_detections]`, best first.
    """
    limits = config.postprocessing
    scores = jax.nn.softmax(class_logits)[..., :-1]
    usable = proposals.valid[..., None] & (scores > limits.score_threshold)
    scores = jnp.where(usable, scores, -1.0).reshape(len(scores), -1)
    scores, index = jax.lax.top_k(scores, min(limits.pre_nms_topk, scores.shape[1]))
    roi, labels = jnp.divmod(index, class_logits.shape[-1] - 1)
    num_deltas = box_deltas.shape[2]  # K or 1
    own = roi * num_deltas + jnp.minimum(labels, num_deltas - 1)
    deltas = dense.gather(box_deltas.reshape(len(scores), -1, 4), own)
    boxes = dense.gather(proposals.boxes, roi)
    boxes = box_coding.decode(deltas, boxes, weights=config.box_weights)
    boxes = jax.vmap(box_ops.clip)(boxes, sizes)
    large = box_ops.nonempty(boxes, config.min_box_size)
    scores = jnp.where(large, scores, -1.0)
    return dense.postprocess(boxes, scores, labels, sizes, limits)
