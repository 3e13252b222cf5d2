"""Matches, losses and detections of detectors that predict a set of boxes.

Every query predicts an object or none, and each object is learned by one query: no
duplicates, hence no NMS (Carion et al. 2020). Letters in shapes: L decoder layers,
Q queries. Predicted boxes are `(center x, center y, width, height)` in fractions of the
true image.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from jaxdet.config import Count, Fraction, NonNegative, checked_dataclass
from jaxdet.detectors import dense
from jaxdet.ops import boxes as box_ops
from jaxdet.ops import losses as loss_ops
from jaxdet.ops import matching, nms
from jaxdet.structs import Detections, GroundTruth

# Of the sum of all queries' weights, which is 0 if none has an object and
# `no_object_weight` is 0.
_LEAST_WEIGHT = 1e-6


@checked_dataclass
class SetLossConfig:
    """Configures matching and loss; defaults are DETR's, sections in brackets."""

    class_loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    """Of K classes and "no object", which comes last, or of K sigmoids (Zhu et al.
    2021)."""
    class_cost: NonNegative = 1.0
    """Of the score of the object's class, in the matching (3.1)."""
    l1_cost: NonNegative = 5.0
    """Of the L1 distance of the boxes, in the matching (A.4)."""
    giou_cost: NonNegative = 2.0
    """Of the generalized IoU, in the matching (A.4)."""
    class_weight: NonNegative = 1.0
    """Of the classes in the loss (3.1)."""
    l1_weight: NonNegative = 5.0
    """Of the L1 distance in the loss (A.4)."""
    giou_weight: NonNegative = 2.0
    """Of 1 - GIoU in the loss (A.4)."""
    no_object_weight: Fraction = 0.1
    """Of queries without object in the cross-entropy (3.1)."""
    focal_alpha: Fraction = 0.25
    """Weight of the positive class in the focal loss."""
    focal_gamma: NonNegative = 2.0
    """How much the focal loss down-weights easy queries."""
    auxiliary: bool = True
    """Whether all decoder layers have losses, each with its own matching (3.2)."""


@checked_dataclass
class SetPostprocessing:
    """How the queries' scores become detections."""

    score_threshold: Fraction = 0.0
    """Detections that score lower are discarded."""
    max_detections: Count = 100
    """Detections an image."""


def losses(
    logits: jax.Array,
    boxes: jax.Array,
    truth: GroundTruth,
    sizes: jax.Array,
    config: SetLossConfig,
    *,
    axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the losses of all decoder layers, the last one's first.

    Args:
      logits: `[L, B, Q, K + 1]`, or `[L, B, Q, K]` for the focal loss.
      boxes: `[L, B, Q, 4]`.
      truth: the objects, `N` slots an image; crowds are no targets.
      sizes: `[B, 2]` true (height, width).
      config: costs and weights.
      axis_name: of the devices that share the batch, under `pmap`.

    Returns:
      The weighted sum; the last layer's "class_loss", "l1_loss" and "giou_loss" before
      they are weighted, and the other layers' weighted sum, "auxiliary_loss".
    """
    if not config.auxiliary:
        logits, boxes = logits[-1:], boxes[-1:]
    parts = losses_per_layer(logits, boxes, truth, sizes, config, axis_name=axis_name)
    weights = {
        "class_loss": config.class_weight,
        "l1_loss": config.l1_weight,
        "giou_loss": config.giou_weight,
    }
    weighted = (weight * parts[name] for name, weight in weights.items())
    per_layer = sum(weighted, jnp.float32(0))
    metrics = {name: part[-1] for name, part in parts.items()}
    if config.auxiliary:
        metrics["auxiliary_loss"] = jnp.sum(per_layer[:-1])
    return jnp.sum(per_layer), metrics


def losses_per_layer(
    logits: jax.Array,
    boxes: jax.Array,
    truth: GroundTruth,
    sizes: jax.Array,
    config: SetLossConfig,
    *,
    axis_name: str | None = None,
) -> dict[str, jax.Array]:
    """Computes the losses of each decoder layer before they are weighted.

    Args:
      logits: as of `losses`; so are the others.
      boxes: `[L, B, Q, 4]`.
      truth: the objects.
      sizes: `[B, 2]` true (height, width).
      config: costs of the matching, and weights of queries.
      axis_name: of the devices that share the batch, under `pmap`.

    Returns:
      "class_loss", "l1_loss" and "giou_loss", `[L]` each.
    """
    truth = _in_fractions(truth, sizes)
    # 1. Match every query of every layer to an object or to none.
    match = jax.vmap(partial(match_queries, config=config), (0, 0, None))
    index, positive = match(logits, boxes, truth)  # [L, B, Q]
    # 2. Gather the targets of the matched queries.
    nothing = logits.shape[-1] - (config.class_loss == "cross_entropy")
    targets = partial(dense.matched_targets, truth, num_classes=nothing)
    labels, target_boxes = jax.vmap(targets)(index, positive)
    # 3. Compute the losses query by query.
    class_loss, weights = _class_loss_per_query(logits, labels, positive, config)
    l1 = jnp.abs(boxes - box_ops.xyxy_to_cxcywh(target_boxes))
    giou = loss_ops.giou_loss(box_ops.cxcywh_to_xyxy(boxes), target_boxes)
    # 4. Average them over all devices; each layer has as many objects.
    count = loss_ops.device_mean_count(positive[-1], axis_name=axis_name)
    total = count
    if config.class_loss == "cross_entropy":
        total = loss_ops.device_mean_sum(
            weights[-1], axis_name=axis_name, minimum=_LEAST_WEIGHT
        )
    sum_queries = partial(jnp.sum, axis=(1, 2))
    return {
        "class_loss": sum_queries(class_loss * weights) / total,
        "l1_loss": sum_queries(jnp.sum(l1, axis=-1), where=positive) / count,
        "giou_loss": sum_queries(giou, where=positive) / count,
    }


def match_queries(
    logits: jax.Array, boxes: jax.Array, truth: GroundTruth, config: SetLossConfig
) -> tuple[jax.Array, jax.Array]:
    """Matches queries and objects one to one at the least cost (3.1, equation 1).

    Args:
      logits: `[B, Q, K]`, or with "no object" as the last class `[B, Q, K + 1]`.
      boxes: `[B, Q, 4]`.
      truth: the objects, boxes in fractions of the image.
      config: costs.

    Returns:
      The slot of each query's object `[B, Q]`, and whether it has one.
    """

    def match(logits, boxes, truth):
        corners = box_ops.cxcywh_to_xyxy(boxes)
        targets = box_ops.xyxy_to_cxcywh(truth.boxes)
        l1 = jnp.sum(jnp.abs(boxes[:, None] - targets[None]), axis=-1)
        costs = config.l1_cost * l1
        costs -= config.giou_cost * box_ops.pairwise_giou(corners, truth.boxes)
        costs += config.class_cost * _class_costs(logits, config)[:, truth.labels]
        return matching.hungarian(costs, truth.valid & ~truth.crowd)

    return jax.vmap(match)(*jax.lax.stop_gradient((logits, boxes)), truth)


def postprocess(
    logits: jax.Array,
    boxes: jax.Array,
    sizes: jax.Array,
    config: SetPostprocessing,
    *,
    class_loss: Literal["cross_entropy", "focal"],
) -> Detections:
    """Returns the best-scoring predictions as detections, without NMS.

    Args:
      logits: `[B, Q, K + 1]` of a softmax, of which each query gives its best class; or
        `[B, Q, K]` of sigmoids, of which a query may give several.
      boxes: `[B, Q, 4]`; those that are not finite are discarded.
      sizes: `[B, 2]` true (height, width).
      config: how many detections, and of which scores.
      class_loss: which of the two the logits were trained by.

    Returns:
      `Detections` `[B, D]`, best first.
    """

    def select(logits, boxes, size):
        if class_loss == "cross_entropy":
            scores = jax.nn.softmax(logits)[:, :-1]
            labels, scores = jnp.argmax(scores, axis=-1), jnp.max(scores, axis=-1)
            queries = jnp.arange(len(scores))
        else:
            scores = jax.nn.sigmoid(logits).reshape(-1)
            queries, labels = jnp.divmod(jnp.arange(len(scores)), logits.shape[-1])
        corners = box_ops.cxcywh_to_xyxy(boxes) * _extents(size)[None]
        finite = jnp.all(jnp.isfinite(corners), axis=-1)[queries]
        scores = jnp.where(finite & jnp.isfinite(scores), scores, 0.0)
        scores, best = jax.lax.top_k(scores, min(config.max_detections, len(scores)))
        detections = Detections(
            boxes=box_ops.clip(corners[queries[best]], size),
            scores=scores,
            labels=labels[best].astype(jnp.int32),
            valid=scores > config.score_threshold,
        )
        return nms.clear_padding(detections)

    return jax.vmap(select)(logits, boxes, sizes)


def _class_costs(logits: jax.Array, config: SetLossConfig) -> jax.Array:
    """Returns what it costs each query to be of each class, `[Q, K]` or more."""
    if config.class_loss == "cross_entropy":
        return -jax.nn.softmax(logits)
    scores = jax.nn.sigmoid(logits)
    alpha, gamma = config.focal_alpha, config.focal_gamma
    positive = alpha * (1 - scores) ** gamma * -jax.nn.log_sigmoid(logits)
    negative = (1 - alpha) * scores**gamma * -jax.nn.log_sigmoid(-logits)
    return positive - negative


def _class_loss_per_query(logits, labels, positive, config: SetLossConfig):
    """Returns the losses of all queries, and what they are weighted by."""
    if config.class_loss == "cross_entropy":
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return loss, jnp.where(positive, 1.0, config.no_object_weight)
    # None is true where there is no object.
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    loss = loss_ops.focal_loss(
        logits, targets, alpha=config.focal_alpha, gamma=config.focal_gamma
    )
    return jnp.sum(loss, axis=-1), jnp.ones(labels.shape)


def _in_fractions(truth: GroundTruth, sizes: jax.Array) -> GroundTruth:
    """Returns the objects with boxes in fractions of their images."""
    extents = jax.vmap(_extents)(sizes)[:, None]
    return truth.replace(boxes=box_ops.to_float32(truth.boxes) / extents)


def _extents(size: jax.Array) -> jax.Array:
    """Returns (width, height, width, height) of an image, for boxes."""
    width_height = size[::-1].astype(jnp.float32)
    return jnp.concatenate([width_height, width_height])
