"""What all R-CNNs share: how they learn from regions, and how they answer for them.

A region is a box worth a look, from selective search or a region proposal network. Each
is classified as one of K classes or as background, and moved by the deltas of its class
(Girshick et al. 2014; both at once since Girshick 2015).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxdet.detectors.detector import require
from jaxdet.nn.layers import zero_outside
from jaxdet.ops import box_coding, losses, matching, nms, roi_align, roi_pool, sampling
from jaxdet.ops import boxes as box_ops
from jaxdet.structs import Batch, Detections, GroundTruth, Regions


@dataclasses.dataclass(frozen=True)
class RoIHeadsConfig:
    """Numbers of the second stage; defaults are detectron2's and torchvision's.

    Raises:
      ValueError: for a number out of its range, naming the field and what is allowed.
    """

    per_image: int = 512
    """Regions an image that a training step looks at."""
    positive_fraction: float = 0.25
    """Of them, at most, are objects (Fast R-CNN 2.3)."""
    positive_iou: float = 0.5
    """From it on, with any object, a region answers for that object."""
    negative_iou: float = 0.5
    """Below it with every object, a region is background."""
    hard_negative_iou: float = 0.0
    """Background that overlaps less is left out, unless there is no other (0.1 in Fast
    R-CNN 2.3: a cheap search for hard examples)."""
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    """Factors of the deltas: the inverse of their usual standard deviations."""
    box_beta: float = 0.0
    """Where smooth L1 turns from square to linear; 0 is L1, Fast R-CNN's is 1."""
    box_weight: float = 1.0
    """Of the box loss in the sum; lambda (Fast R-CNN 2.3)."""
    class_agnostic: bool = False
    """One box a region for all classes, instead of one a class."""
    score_threshold: float = 0.05
    """Lower scores are no answers."""
    min_side: float = 0.0
    """Boxes with a shorter side, in canvas pixels, are no answers."""
    candidates: int = 2000
    """Best scores of an image, over regions and classes, that reach the NMS."""
    nms_threshold: float = 0.5
    """Of two answers of a class that overlap more, the better one stays."""
    detections: int = 100
    """Slots for the answers on one image."""

    def __post_init__(self):
        for name in ("per_image", "candidates", "detections"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("box_beta", "box_weight", "min_side"):
            require(self, name, getattr(self, name) >= 0, "0 or more")
        for name in ("positive_fraction", "score_threshold", "nms_threshold"):
            require(self, name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        right = 0 < self.negative_iou <= self.positive_iou <= 1
        require(self, "negative_iou", right, "above 0, at most positive_iou (<= 1)")
        right = 0 <= self.hard_negative_iou < self.negative_iou
        require(self, "hard_negative_iou", right, "in [0, negative_iou)")
        right = len(self.box_weights) == 4 and min(self.box_weights) > 0
        require(self, "box_weights", right, "four numbers above 0")
        require_positive_samples(self)


def require_positive_samples(config: Any) -> None:
    """For configs of samples: at least one of an image's may be an object.

    Raises:
      ValueError: if `per_image` times `positive_fraction` is less than one.
    """
    right = int(config.per_image * config.positive_fraction) >= 1
    allowed = f"large enough for one of the per_image ({config.per_image}) samples"
    require(config, "positive_fraction", right, allowed)


# Girshick 2015: 64 regions from each of 2 images (2.3), NMS from R-CNN.
FAST_RCNN = RoIHeadsConfig(
    per_image=64, hard_negative_iou=0.1, box_beta=1.0, nms_threshold=0.3
)


@flax.struct.dataclass
class Samples:
    """Regions that a training step learns from; positive ones come first."""

    boxes: jax.Array  # [..., R, 4]
    labels: jax.Array  # [..., R] int32, K for background
    objects: jax.Array  # [..., R] int32, the slot of the object answered for
    targets: jax.Array  # [..., R, 4], that object's box
    positive: jax.Array  # [..., R] bool
    valid: jax.Array  # [..., R] bool


def given(batch: Batch) -> Regions:
    """The regions that came with a batch, clipped to their images.

    Regions without area are no regions, and neither are those outside their image.

    Raises:
      ValueError: if the batch has none.
    """
    if batch.regions is None:
        raise ValueError(
            "this detector needs batch.regions; give its data set proposals "
            "(jaxdet.data.selective_search) and set InputConfig.max_regions"
        )
    boxes = jax.vmap(box_ops.clip)(batch.regions.boxes, batch.sizes)
    there = batch.regions.valid & (box_ops.area(boxes) > 0)
    boxes = jnp.where(there[..., None], boxes, 0.0)
    return batch.regions.replace(boxes=boxes, valid=there)


def image_keys(key: jax.Array, batch: Batch, count: int) -> tuple[jax.Array, ...]:
    """Keys of each image, the same whatever shares its batch.

    Args:
      key: of the step.
      batch: its `image_ids` count.
      count: how many things an image draws.

    Returns:
      `count` arrays of keys, `[B]` each.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch.image_ids)
    return tuple(jax.vmap(jax.random.split, (0, None), 1)(keys, count))


def learn(
    look: Callable,
    keys: tuple[jax.Array, jax.Array],
    regions: Regions,
    truth: GroundTruth,
    *,
    num_classes: int,
    config: RoIHeadsConfig,
    axis_name: str | None,
) -> tuple[dict[str, jax.Array], Samples]:
    """Chooses regions, looks at them, and tells how wrong the look was.

    Args:
      look: `(boxes [B, R, 4], keys [B] or None for no dropout)` -> class logits
        `[B, R, K + 1]`, deltas `[B, R, K, 4]`.
      keys: `[B]` for the choice and `[B]` for dropout.
      regions: `[B, P]`, best first.
      truth: `[B, N]`.
      num_classes: K.
      config: of the choice and of the losses.
      axis_name: of the devices; None: there is one.

    Returns:
      What `region_losses` returns, and the regions that were chosen.
    """
    region_keys, dropout_keys = keys
    samples = sample(
        region_keys, regions, truth, num_classes=num_classes, config=config
    )
    logits, deltas = look(samples.boxes, dropout_keys)
    metrics = region_losses(logits, deltas, samples, config=config, axis_name=axis_name)
    return metrics, samples


def answer(
    look: Callable, regions: Regions, sizes: jax.Array, *, config: RoIHeadsConfig
) -> Detections:
    """What all regions look like, scored, moved and thinned; see `detections`.

    Args:
      look: as of `learn`; asked without keys.
      regions: `[B, P]`; padding gives no answers.
      sizes: `[B, 2]`, true (height, width) of the images.
      config: thresholds and slots.

    Returns:
      Detections `[B, D]`, best first.
    """
    logits, deltas = look(regions.boxes, None)
    return detections(logits, deltas, regions, sizes, config=config)


def cut(
    pyramid: dict[int, jax.Array],
    boxes: jax.Array,
    sizes: jax.Array | None,
    *,
    pool: Literal["align", "max"],
    size: int,
    samples: int,
    aligned: bool = True,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
) -> jax.Array:
    """What lies in each box, `[B, R, 4]` -> `[B, R, size, size, C]`.

    Args:
      pyramid: `{level: [B, H, W, C]}`; each region is cut from one, by its size.
      boxes: in canvas pixels.
      sizes: `[B, 2]`, where the true images end; None: all of the canvas is image.
      pool: RoI Align, or RoI max pooling, which takes one level.
      size: cells a side.
      samples: of RoI Align, as the next three: see `roi_align.pyramid_roi_align`.
      aligned: without torchvision's shift by half a cell.
      canonical_size: side of the regions that are cut from `canonical_level`.
      canonical_level: see `canonical_size`.
    """
    if pool == "max":
        ((level, features),) = pyramid.items()
        features = zero_outside(features, sizes, 2**level)
        pool_image = partial(roi_pool.roi_max_pool, stride=2**level, output_size=size)
        return jax.vmap(pool_image)(features, boxes)

    def align(levels, boxes, image_size):
        return roi_align.pyramid_roi_align(
            levels,
            boxes,
            output_size=size,
            sampling_ratio=samples,
            aligned=aligned,
            canonical_size=canonical_size,
            canonical_level=canonical_level,
            image_size=image_size,
        )

    return jax.vmap(align)(pyramid, boxes, sizes)


def sample(
    keys: jax.Array,
    regions: Regions,
    truth: GroundTruth,
    *,
    num_classes: int,
    config: RoIHeadsConfig,
) -> Samples:
    """Chooses, in every image, what to learn from; the objects are regions too.

    Args:
      keys: `[B]`.
      regions: `[B, P]`, best first; their order is what the choice hangs on.
      truth: `[B, N]`; crowds are no objects: a region on one is background, as in
        torchvision and detectron2.
      num_classes: K.
      config: how many, and which overlap makes which.

    Returns:
      `Samples` with leading shape `[B, config.per_image]`.
    """

    def of_image(key, regions, truth):
        objects = truth.valid & ~truth.crowd
        boxes = jnp.concatenate([regions.boxes, truth.boxes])
        valid = jnp.concatenate([regions.valid, objects])
        ranks = jnp.arange(len(regions.valid), dtype=jnp.uint32)
        identity = jnp.concatenate([ranks, sampling.hash_boxes(truth.boxes)])
        matches = matching.match_by_iou(
            boxes,
            truth.boxes,
            objects,
            negative_iou=config.negative_iou,
            positive_iou=config.positive_iou,
            allow_low_quality_matches=False,
        )
        negative = valid & matches.negative
        hard = negative & (matches.iou >= config.hard_negative_iou)
        chosen = sampling.balanced_subset(
            key,
            identity,
            valid & matches.positive,
            jnp.where(jnp.any(hard), hard, negative),
            size=config.per_image,
            positive_fraction=config.positive_fraction,
        )
        slots = jnp.where(chosen.positive, matches.gt_index[chosen.index], 0)
        if len(truth.labels) == 0:  # There is nothing to look up in.
            labels, targets = jnp.zeros_like(slots), jnp.zeros((len(slots), 4))
        else:
            labels, targets = truth.labels[slots], truth.boxes[slots]
        return Samples(
            boxes=jnp.where(chosen.valid[:, None], boxes[chosen.index], 0.0),
            labels=jnp.where(chosen.positive, labels, num_classes),
            objects=slots,
            targets=targets,
            positive=chosen.positive,
            valid=chosen.valid,
        )

    return jax.vmap(of_image)(keys, regions, truth)


def classify(network, crops: jax.Array, keys: jax.Array | None = None):
    """What the network's box head and box predictor say of every region's crop.

    Args:
      network: with `box_head` and `box_predictor`.
      crops: `[B, R, ..., C]`.
      keys: `[B]`, for dropout; None: there is none.

    Returns:
      Class logits `[B, R, K + 1]`, background last, and deltas `[B, R, K, 4]`.
    """
    batch, count = crops.shape[:2]
    hidden = network.box_head(crops.reshape(batch * count, *crops.shape[2:]), keys)
    logits, deltas = network.box_predictor(hidden)
    return (
        logits.reshape(batch, count, *logits.shape[1:]),
        deltas.reshape(batch, count, *deltas.shape[1:]),
    )


def region_losses(
    logits: jax.Array,
    deltas: jax.Array,
    samples: Samples,
    *,
    config: RoIHeadsConfig,
    axis_name: str | None,
) -> dict[str, jax.Array]:
    """Softmax loss on all samples, box loss on the positive ones (Fast R-CNN 2.3).

    Both are divided by the number of samples on all devices.

    Args:
      logits: `[B, R, K + 1]`.
      deltas: `[B, R, K, 4]`, or `[B, R, 1, 4]` if they are class agnostic.
      samples: `[B, R]`.
      config: of the box loss.
      axis_name: of the devices; None: there is one.

    Returns:
      `{"class_loss", "box_loss"}`, the latter times its weight.
    """
    count = losses.device_mean_count(samples.valid, axis_name=axis_name)
    cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels(
        logits, samples.labels
    )
    class_loss = jnp.sum(cross_entropy, where=samples.valid) / count
    own = jnp.minimum(samples.labels, deltas.shape[-2] - 1)[..., None, None]
    deltas = jnp.take_along_axis(deltas, own, axis=-2)[..., 0, :]
    targets = box_coding.encode(
        samples.targets, samples.boxes, weights=config.box_weights
    )
    misses = losses.smooth_l1_loss(deltas, targets, beta=config.box_beta)
    box_loss = jnp.sum(misses, where=samples.positive[..., None]) / count
    return {"class_loss": class_loss, "box_loss": config.box_weight * box_loss}


def detections(
    logits: jax.Array,
    deltas: jax.Array,
    regions: Regions,
    sizes: jax.Array,
    *,
    config: RoIHeadsConfig,
) -> Detections:
    """Scores every region for every class, moves, clips and thins them class by class.

    Args:
      logits: `[B, P, K + 1]`.
      deltas: `[B, P, K, 4]` or `[B, P, 1, 4]`.
      regions: `[B, P]`.
      sizes: `[B, 2]`, true (height, width) of the images.
      config: thresholds and slots.

    Returns:
      Detections `[B, D]`, best first.
    """

    def of_image(logits, deltas, regions, size):
        scores = jax.nn.softmax(logits)[:, :-1]
        usable = regions.valid[:, None] & (scores > config.score_threshold)
        scores = jnp.where(usable, scores, -1.0).reshape(-1)
        scores, place = jax.lax.top_k(scores, min(config.candidates, len(scores)))
        region, label = jnp.divmod(place, logits.shape[-1] - 1)
        own = jnp.minimum(label, deltas.shape[1] - 1)
        found = box_coding.decode(
            deltas[region, own], regions.boxes[region], weights=config.box_weights
        )
        found = box_ops.clip(found, size)
        return nms.select_detections(
            found,
            scores,
            label,
            iou_threshold=config.nms_threshold,
            max_detections=config.detections,
            valid=(scores > 0) & box_ops.nonempty(found, config.min_side),
        )

    return jax.vmap(of_image)(logits, deltas, regions, sizes)
