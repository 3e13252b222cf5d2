"""FCOS: fully convolutional one-stage object detection (Tian et al. 2019).

No anchors: every cell of a feature pyramid is one point of the image. For each, the
network predicts the class of the object around it, the distances to that object's four
sides, and its centerness: points far off the center predict the sides badly, so their
scores are lowered.
"""

import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdet.config import (
    Count,
    Depth,
    Fraction,
    NonNegative,
    Positive,
    Postprocessing,
    Preprocessing,
    Probability,
    PyramidLevels,
    Rising,
    checked_dataclass,
)
from jaxdet.detectors import dense
from jaxdet.detectors.detector import Detector, from_network, preprocess
from jaxdet.nn.fpn import FPN
from jaxdet.nn.heads import FCOSHead
from jaxdet.nn.layers import NormType, maybe_remat
from jaxdet.ops import anchors, box_coding, losses, matching
from jaxdet.structs import Batch, Detections

Boundaries = Annotated[tuple[Positive, ...], Rising()]

# Sides may be e**12 pixels away, more than any canvas has: wild, early predictions
# would overflow.
_LARGEST_LOG = 12.0
# Of the sum of the centerness of all positive points; they may be few.
_LEAST_CENTERNESS = 1e-6


@checked_dataclass
class FCOSConfig:
    """Configures FCOS; defaults are the paper's with all its improvements (Table 3).

    Sections in brackets.
    """

    num_classes: Count = 80
    """K; labels run from 0 to K - 1."""
    levels: PyramidLevels = (3, 4, 5, 6, 7)
    """Of the pyramid; strides are powers of two (3.2)."""
    regression_ranges: Boundaries = (64.0, 128.0, 256.0, 512.0)
    """A level regresses objects whose farthest side lies within its range from a point:
    canvas pixels where one level's range ends and the next one's begins (3.2)."""
    inclusive_ranges: bool = True
    """Whether both levels take an object whose farthest side lies where their ranges
    meet (the authors' code), or neither (torchvision, detectron2)."""
    center_radius: Positive | None = 1.5
    """Points are positive so many strides around an object's center, across and down;
    None: all over its box (Table 3, "ctr. sampling")."""
    channels: Count = 256
    """Of the pyramid and the head."""
    extra_levels: Literal["c5", "p5"] = "p5"
    """What P6 is made from (3.2)."""
    head_depth: Depth = 4
    """3x3 convolutions in each tower of the head (Figure 2)."""
    head_norm: NormType = "group"
    """Of the head's convolutions."""
    fpn_norm: NormType = "none"
    """Of the pyramid's convolutions."""
    level_scales: bool = True
    """Whether distances are multiplied by a learned number for each level (3.2)."""
    centerness_on: Literal["box", "class"] = "box"
    """The tower that predicts the centerness (Table 3, "ctr. on reg."; Figure 2:
    class)."""
    ltrb_activation: Literal["exp", "relu"] = "relu"
    """What makes distances positive: pixels are the exponential (3.2), or strides are
    rectified (Table 3, "Normalization")."""
    focal_alpha: Fraction = 0.25
    """Weight of the positive class."""
    focal_gamma: NonNegative = 2.0
    """How much easy points are down-weighted."""
    prior: Probability = 0.01
    """Score of every point and class at the start of training (4)."""
    box_loss: Literal["l2", "iou", "giou"] = "giou"
    """"iou": -ln IoU of the boxes (equation 2). "giou": 1 - GIoU (Table 3). "l2": the
    squares of the errors of the four distances, in strides, summed."""
    box_weighting: Literal["centerness", "uniform"] = "centerness"
    """Whether box losses of positive points are averaged with their target centerness
    as weight, as in the authors' code, or equally (equation 2, torchvision)."""
    box_weight: NonNegative = 1.0
    """Of the box loss in the sum (equation 2, lambda)."""
    preprocessing: Preprocessing = Preprocessing()
    """ImageNet's mean and standard deviation."""
    postprocessing: Postprocessing = Postprocessing(nms_threshold=0.6)
    """The top 1000 scores of each level are decoded (4)."""
    threshold_on: Literal["class", "score"] = "class"
    """What the score threshold is compared with: the class score, or its product with
    the centerness (torchvision)."""
    score: Literal["product", "square_root"] = "product"
    """Of class score and centerness (3.3), or its square root, which ranks the same
    (torchvision)."""
    point_offset: Fraction = 0.5
    """Of the point within its cell, in strides (3.1); torchvision uses 0."""
    point_rounded: bool = False
    """Whether cells lie whole pixels apart, for torchvision's weights."""
    mask_padding: bool = True
    """Whether an image's results do not depend on the padding around it; False for the
    references' weights, which were trained without."""

    def relations(self) -> Iterator[tuple[str, bool, str]]:
        """Checks that there is a range for every level."""
        between = len(self.regression_ranges) == len(self.levels) - 1
        allowed = f"one number between each two of the levels {self.levels}"
        yield "regression_ranges", between, allowed


# Without the improvements. The authors' code takes the square root of the scores in the
# end, which changes neither their order nor which of them are detections.
PAPER = FCOSConfig(
    center_radius=None, centerness_on="class", ltrb_activation="exp", box_loss="iou"
)

TORCHVISION = FCOSConfig(
    inclusive_ranges=False,
    level_scales=False,
    box_weighting="uniform",
    postprocessing=Postprocessing(score_threshold=0.2, nms_threshold=0.6),
    threshold_on="score",
    score="square_root",
    point_offset=0.0,
    point_rounded=True,
    mask_padding=False,
)


class FCOSNetwork(nn.Module):
    """Backbone, feature pyramid and the head that its levels share (Figure 2)."""

    config: FCOSConfig  # see `FCOSConfig`
    backbone: nn.Module
    """`(pixels, sizes) -> {level: features}`, with a `dtype`; the levels of `config`
    are made of its stages."""

    def setup(self):
        """Makes the layers that follow the backbone."""
        config, dtype = self.config, self.backbone.dtype
        self.fpn = FPN(
            finest=config.levels[0],
            coarsest=config.levels[-1],
            channels=config.channels,
            extra=config.extra_levels,
            norm=config.fpn_norm,
            dtype=dtype,
        )
        head = maybe_remat(FCOSHead, getattr(self.backbone, "remat", False))
        self.head = head(
            config.num_classes,
            depth=config.head_depth,
            norm=config.head_norm,
            centerness_on=config.centerness_on,
            level_scales=config.level_scales,
            bias=-math.log((1 - config.prior) / config.prior),
            dtype=dtype,
        )

    def __call__(
        self, pixels: jax.Array, sizes: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """`[B, H, W, 3]` -> class logits, ltrb, centerness logits.

        `[B, A, K]`, `[B, A, 4]`, which are no distances yet, and `[B, A]`.
        """
        return self.head(self.fpn(self.backbone(pixels, sizes), sizes), sizes)


def loss(network, batch: Batch, key, *, config: FCOSConfig, axis_name=None):
    """Computes focal losses of all points, box and centerness losses of positive ones.

    Returns:
      The sum, and `{"class_loss", "box_loss", "centerness_loss", "positives"}`; the
      last is the number of points of an image that lie in an object, on average.
    """
    del key  # FCOS samples nothing.
    truth = batch.truth
    pixels, sizes = preprocess(batch, config.preprocessing, config.mask_padding)
    logits, ltrb, centerness = network(pixels, sizes)  # [B, A, K], [B, A, 4], [B, A]
    # 1. Assign to every point on the image the smallest object around it, if any.
    points, strides, inside = _points(pixels.shape, sizes, config)
    ranges = assignment_ranges(pixels.shape[1:3], config)

    def match(boxes, valid):
        return matching.match_points(points, boxes, valid, **ranges)

    index, positive = jax.vmap(match)(truth.boxes, truth.valid & ~truth.crowd)
    positive &= inside
    # 2. Compute the targets of the points.
    labels, target_boxes = dense.matched_targets(
        truth, index, positive, num_classes=config.num_classes
    )
    class_targets = jax.nn.one_hot(labels, config.num_classes, dtype=bool)
    target_ltrb = box_coding.encode_ltrb(target_boxes, points[None])
    target_centerness = losses.centerness(target_ltrb)
    # 3. Compute the losses point by point.
    focal = losses.focal_loss(
        logits, class_targets, alpha=config.focal_alpha, gamma=config.focal_gamma
    )
    box_loss = _box_loss_per_point(ltrb, target_ltrb, points, strides, config)
    entropy = optax.losses.sigmoid_binary_cross_entropy(centerness, target_centerness)
    # 4. Average them over the positive points of all devices.
    count = losses.device_mean_count(positive, axis_name=axis_name)
    weights, least = positive.astype(jnp.float32), 1.0
    if config.box_weighting == "centerness":
        weights, least = weights * target_centerness, _LEAST_CENTERNESS
    total = losses.device_mean_sum(weights, axis_name=axis_name, minimum=least)
    metrics = {
        "class_loss": jnp.sum(focal, where=inside[..., None]) / count,
        "box_loss": jnp.sum(box_loss * weights, where=positive) / total,
        "centerness_loss": jnp.sum(entropy, where=positive) / count,
        "positives": jnp.mean(jnp.sum(positive, axis=1, dtype=jnp.float32)),
    }
    box_loss = config.box_weight * metrics["box_loss"]
    return metrics["class_loss"] + box_loss + metrics["centerness_loss"], metrics


def predict(network, batch: Batch, *, config: FCOSConfig) -> Detections:
    """Decodes the top scores of each level and removes duplicates by NMS."""
    pixels, sizes = preprocess(batch, config.preprocessing, config.mask_padding)
    logits, ltrb, centerness = network(pixels, sizes)  # [B, A, K], [B, A, 4], [B, A]
    points, strides, inside = _points(pixels.shape, sizes, config)
    boxes = box_coding.decode_ltrb(_distances(ltrb, strides, config), points[None])
    class_scores = jax.nn.sigmoid(logits)
    scores = class_scores * jax.nn.sigmoid(centerness)[..., None]
    if config.score == "square_root":
        scores = jnp.sqrt(scores)
    compared = class_scores if config.threshold_on == "class" else scores
    kept = inside[..., None] & (compared > config.postprocessing.score_threshold)
    scores, index, labels = dense.topk_per_level(
        jnp.where(kept, scores, -1.0),
        pixels.shape[1:3],
        levels=config.levels,
        per_cell=1,
        k=config.postprocessing.pre_nms_topk,
    )
    boxes = dense.gather(boxes, index)
    return dense.postprocess(boxes, scores, labels, batch.sizes, config.postprocessing)


def fcos(config: FCOSConfig, backbone: nn.Module) -> Detector:
    """Returns FCOS on a backbone `(pixels, sizes) -> {level: features}`."""
    return from_network(
        FCOSNetwork(config, backbone),
        loss=partial(loss, config=config),
        predict=partial(predict, config=config),
        num_classes=config.num_classes,
        builder=partial(fcos, config, backbone),
    )


def assignment_ranges(canvas: tuple[int, int], config: FCOSConfig) -> dict:
    """Returns what objects each point may be assigned, as arguments of `match_points`.

    Args:
      canvas: (height, width) in pixels.
      config: see `FCOSConfig`.
    """
    ends, radius = config.regression_ranges, config.center_radius
    ranges = list(itertools.pairwise((0.0, *ends, math.inf)))
    radii = [(radius or 0) * 2**level for level in config.levels]
    return {
        "regression_ranges": _per_point(ranges, canvas, config),
        "inclusive": config.inclusive_ranges,
        "center_radius": None if radius is None else _per_point(radii, canvas, config),
    }


def _points(shape, sizes, config: FCOSConfig):
    """Returns points `[A, 2]`, strides `[A, 1]`, and the inside mask `[B, A]`."""
    canvas, levels = shape[1:3], config.levels
    points = anchors.cell_centers(
        canvas, levels=levels, offset=config.point_offset, rounded=config.point_rounded
    )
    strides = _per_point([2**level for level in levels], canvas, config)[:, None]
    return points, strides, anchors.inside_mask(shape, sizes, levels=levels, per_cell=1)


def _per_point(values, canvas: tuple[int, int], config: FCOSConfig) -> jax.Array:
    """Repeats the value of each level for all of its points, `[A, ...]`."""
    counts = [
        anchors.num_anchors(canvas, levels=[level], per_cell=1)
        for level in config.levels
    ]
    return jnp.asarray(np.repeat(np.array(values, np.float32), counts, axis=0))


def _distances(ltrb: jax.Array, strides: jax.Array, config: FCOSConfig) -> jax.Array:
    """Makes distances of `[B, A, 4]` predictions, in pixels, none negative."""
    if config.ltrb_activation == "exp":
        return jnp.exp(jnp.minimum(ltrb, _LARGEST_LOG))
    return jnp.minimum(nn.relu(ltrb) * strides[None], math.exp(_LARGEST_LOG))


def _box_loss_per_point(ltrb, targets, points, strides, config: FCOSConfig):
    """Computes the losses of all points, `[B, A]`, from two of `[B, A, 4]`."""
    distances = _distances(ltrb, strides, config)
    if config.box_loss == "l2":
        return jnp.sum(((distances - targets) / strides[None]) ** 2, axis=-1)
    measure = {"iou": losses.iou_loss, "giou": losses.giou_loss}[config.box_loss]
    boxes = (box_coding.decode_ltrb(d, points[None]) for d in (distances, targets))
    return measure(*boxes)
