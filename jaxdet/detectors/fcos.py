"""FCOS: fully convolutional one-stage object detection (Tian et al. 2019).

No anchors: every cell of a feature pyramid stands for one point of the image. It says
which class of object it lies in, how far that object's four sides are, and how central
in the object it is; points far off centre guess the sides badly, and count for less.
"""

import dataclasses
import itertools
import math
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.detectors.detector import Detector, from_network, require, require_colours
from jaxdet.nn.fpn import FPN
from jaxdet.nn.heads import FCOSHead
from jaxdet.nn.layers import NormType
from jaxdet.ops import anchors, box_coding, images, losses, matching, nms
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.coverage import Coverage, points_in_charge
from jaxdet.structs import Batch, Detections

# Sides may be e**12 pixels away, more than any canvas has: wild, early predictions
# would overflow.
_LARGEST_LOG = 12.0
# Of the sum of the centerness of all positive points; they may be few.
_LEAST_CENTERNESS = 1e-6


@dataclasses.dataclass(frozen=True)
class FCOSConfig:
    """Numbers of FCOS; defaults are the paper's with all its improvements (Table 3).

    Sections in brackets.

    Raises:
      ValueError: for numbers that contradict each other or are out of their range.
    """

    num_classes: int = 80
    """K; labels run from 0 to K - 1."""
    levels: tuple[int, ...] = (3, 4, 5, 6, 7)
    """Of the pyramid; strides are powers of two (3.2)."""
    limits: tuple[float, ...] = (64.0, 128.0, 256.0, 512.0)
    """Distances, in canvas pixels, of a point's farthest side up to which a level is in
    charge; of the last level there is none (3.2)."""
    at_limits: Literal["both", "neither"] = "both"
    """Which of two levels takes an object whose farthest side lies at their limit: both
    (the authors' code) or neither (torchvision, detectron2)."""
    centre_radius: float | None = 1.5
    """Points learn an object so many strides around its centre, across and down; None:
    all over its box (Table 3, "ctr. sampling")."""
    point_offset: float = 0.5
    """Of the point within its cell, in strides (3.1); torchvision uses 0."""
    point_rounded: bool = False
    """Cells lie whole pixels apart, as in torchvision."""
    channels: int = 256
    """Of the pyramid and the head."""
    extra_levels: Literal["c5", "p5"] = "p5"
    """What P6 is made from (3.2)."""
    head_depth: int = 4
    """3x3 convolutions in each tower of the head (Figure 2)."""
    head_norm: NormType = "group"
    """Of the head's convolutions."""
    fpn_norm: NormType = "none"
    """Of the pyramid's convolutions."""
    level_scales: bool = True
    """Whether sides are multiplied by a learned number for each level (3.2)."""
    centerness_on: Literal["box", "class"] = "box"
    """The tower that says the centerness (Table 3, "ctr. on reg."; Figure 2: class)."""
    distances: Literal["exp", "relu"] = "relu"
    """What makes the sides positive: pixels are their exponential (3.2), or they are
    rectified and count strides (Table 3, "Normalization")."""
    mask_padding: bool = True
    """Treat an image as if the canvas ended where it ends; the references do not."""
    focal_alpha: float = 0.25
    """Weight of the positive class."""
    focal_gamma: float = 2.0
    """How much easy points are toned down."""
    prior: float = 0.01
    """Score of every point and class at the start of training (4)."""
    box_loss: Literal["l2", "iou", "giou"] = "giou"
    """"iou": -ln IoU of the boxes (equation 2). "giou": 1 - GIoU (Table 3). "l2": the
    squares of the errors of the four distances, in strides, summed."""
    box_weighting: Literal["centerness", "plain"] = "centerness"
    """Whether positive points share the box loss by the centerness they should have, as
    in the authors' code, or equally (equation 2, torchvision)."""
    box_weight: float = 1.0
    """Of the box loss in the sum (equation 2, lambda)."""
    score: Literal["product", "square_root"] = "product"
    """Of class score and centerness (3.3), or its square root, which ranks the same."""
    threshold_on: Literal["class", "score"] = "class"
    """What is compared with `score_threshold`: the class score or the final one."""
    score_threshold: float = 0.05
    """Lower scores are no answers (4)."""
    candidates: int = 1000
    """Best scores per level that are decoded."""
    nms_threshold: float = 0.6
    """Of two answers of a class that overlap more, the better one stays."""
    detections: int = 100
    """Slots for the answers on one image."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of red, green and blue, on a scale from 0 to 1; ImageNet's."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Of the same."""

    def __post_init__(self):
        check = partial(require, self)
        for name in ("num_classes", "channels", "candidates", "detections"):
            check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("head_depth", "box_weight", "focal_gamma"):
            check(name, getattr(self, name) >= 0, "0 or more")
        for name in ("score_threshold", "nms_threshold", "focal_alpha"):
            check(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        check("prior", 0 < self.prior < 1, "between 0 and 1")
        check("point_offset", 0 <= self.point_offset <= 1, "in [0, 1]")
        require_colours(self)
        radius = self.centre_radius
        check("centre_radius", radius is None or radius > 0, "above 0, or None")
        for name, allowed in (
            ("at_limits", ("both", "neither")),
            ("extra_levels", ("c5", "p5")),
            ("head_norm", ("none", "group", "frozen")),
            ("fpn_norm", ("none", "group", "frozen")),
            ("centerness_on", ("box", "class")),
            ("distances", ("exp", "relu")),
            ("box_loss", ("l2", "iou", "giou")),
            ("box_weighting", ("centerness", "plain")),
            ("score", ("product", "square_root")),
            ("threshold_on", ("class", "score")),
        ):
            check(name, getattr(self, name) in allowed, f"one of {allowed}")
        levels = list(self.levels)
        rising = levels and levels == list(range(levels[0], levels[-1] + 1))
        check("levels", rising, "one or more, consecutive, finest first")
        between = len(self.limits) == len(self.levels) - 1
        check("limits", between, f"one between each two of levels {self.levels}")
        rising = sorted({0.0, *self.limits})[1:]
        check("limits", list(self.limits) == rising, "rising and above 0")


# Without the improvements. Its code takes the square root of the scores in the end,
# which changes neither their order nor which of them are answers.
PAPER = FCOSConfig(
    centre_radius=None, centerness_on="class", distances="exp", box_loss="iou"
)

TORCHVISION = FCOSConfig(
    at_limits="neither",
    point_offset=0.0,
    point_rounded=True,
    level_scales=False,
    mask_padding=False,
    box_weighting="plain",
    score="square_root",
    threshold_on="score",
    score_threshold=0.2,
)


class FCOSNetwork(nn.Module):
    """Backbone, feature pyramid and the head that its levels share (Figure 2).

    Attributes:
      config: see `FCOSConfig`.
      backbone: `(pixels, sizes) -> {level: features}`, with a `dtype`; the levels of
        `config` are made of its stages.
    """

    config: FCOSConfig
    backbone: nn.Module

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
        self.head = FCOSHead(
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
        """`[B, H, W, 3]` -> class logits, sides, centerness logits.

        `[B, A, K]`, `[B, A, 4]`, which are no distances yet, and `[B, A]`.
        """
        return self.head(self.fpn(self.backbone(pixels, sizes), sizes), sizes)


def loss(network, batch: Batch, key, *, config: FCOSConfig, axis_name=None):
    """Focal loss on all points; box loss and centerness on those in an object.

    Args:
      network: a bound `FCOSNetwork`.
      batch: with truth.
      key: not used: FCOS draws nothing.
      config: see `FCOSConfig`.
      axis_name: of the devices that share the batch, under `pmap`; None: there is one.

    Returns:
      The sum, and `{"class_loss", "box_loss", "centerness_loss", "positives"}`; the
      last is the number of points of an image that lie in an object, on average.
    """
    del key  # FCOS samples nothing.
    truth = batch.truth
    canvas = batch.images.shape[1:3]
    logits, sides, centerness = _look(network, batch, config)
    # 1. Which object, if any, does each point lie in?
    points, strides = _points(canvas, config), _strides(canvas, config)
    match = partial(matching.match_points, points, **_charges(canvas, config))
    index, positive = jax.vmap(match)(truth.boxes, truth.valid & ~truth.crowd)
    used = _points_on_images(batch, config)
    positive &= used
    # 2. What should it have said?
    matched = jax.vmap(lambda values, index: values[index])
    labels = jnp.where(positive, matched(truth.labels, index), config.num_classes)
    class_targets = jax.nn.one_hot(labels, config.num_classes)  # zeros for background
    targets = box_coding.encode_ltrb(matched(truth.boxes, index), points[None])
    central = losses.centerness(targets)
    # 3. How far off was it?
    focal = losses.sigmoid_focal_loss(
        logits, class_targets, alpha=config.focal_alpha, gamma=config.focal_gamma
    )
    misses = _box_misses(sides, targets, points, strides, config)
    cross_entropy = losses.sigmoid_focal_loss(
        centerness, central, alpha=None, gamma=0.0
    )
    # 4. On average over the points in objects, on all devices.
    count = losses.device_mean_count(positive, axis_name=axis_name)
    weights, least = positive.astype(jnp.float32), 1.0
    if config.box_weighting == "centerness":
        weights, least = weights * central, _LEAST_CENTERNESS
    share = losses.device_mean_sum(weights, axis_name=axis_name, minimum=least)
    class_loss = jnp.sum(focal, where=used[..., None]) / count
    box_loss = jnp.sum(misses * weights, where=positive) / share
    centerness_loss = jnp.sum(cross_entropy, where=positive) / count
    metrics = {
        "class_loss": class_loss,
        "box_loss": box_loss,
        "centerness_loss": centerness_loss,
        "positives": jnp.mean(jnp.sum(positive, axis=1, dtype=jnp.float32)),
    }
    return class_loss + config.box_weight * box_loss + centerness_loss, metrics


def predict(network, batch: Batch, *, config: FCOSConfig) -> Detections:
    """The best scores of each level, decoded, clipped and thinned class by class.

    Args:
      network: a bound `FCOSNetwork`.
      batch: truth is not looked at.
      config: see `FCOSConfig`.

    Returns:
      `Detections` `[B, D]`, best first, D being `config.detections`.
    """
    logits, sides, centerness = _look(network, batch, config)
    canvas = batch.images.shape[1:3]
    used = _points_on_images(batch, config)
    distances = _distances(sides, _strides(canvas, config), config)
    boxes = box_coding.decode_ltrb(distances, _points(canvas, config)[None])
    answer = partial(_detect, canvas=canvas, config=config)
    return jax.vmap(answer)(logits, centerness, boxes, used, batch.sizes)


def coverage(
    canvas: tuple[int, int],
    boxes: np.ndarray,
    sizes: np.ndarray,
    *,
    config: FCOSConfig,
) -> Coverage:
    """How many points lie in objects of their level's range; for `Detector`.

    Args:
      canvas: (height, width) in pixels.
      boxes: `[N, 4]` objects, on canvases of that size.
      sizes: not used: no point of an object lies beyond its image.
      config: see `FCOSConfig`.
    """
    del sizes  # No point of an object lies beyond its image.
    radius = math.inf if config.centre_radius is None else config.centre_radius
    points = points_in_charge(
        canvas,
        boxes,
        levels=config.levels,
        limits=tuple(itertools.pairwise((0.0, *config.limits, math.inf))),
        reaches=[radius * 2**level for level in config.levels],
        inclusive=config.at_limits == "both",
        offset=config.point_offset,
        rounded=config.point_rounded,
    )
    return Coverage(points, 1, 1, "points that learn it")


def fcos(config: FCOSConfig, backbone: nn.Module) -> Detector:
    """FCOS on a backbone that returns `{level: features}` and has a `dtype`."""
    return from_network(
        FCOSNetwork(config, backbone),
        loss=partial(loss, config=config),
        predict=partial(predict, config=config),
        num_classes=config.num_classes,
        builder=partial(fcos, config, backbone),
        coverage=partial(coverage, config=config),
    )


def _look(network, batch: Batch, config: FCOSConfig):
    pixels = images.normalize(
        batch.images, batch.sizes, mean=config.mean, std=config.std
    )
    return network(pixels, batch.sizes if config.mask_padding else None)


def _points(canvas: tuple[int, int], config: FCOSConfig) -> jax.Array:
    """`[A, 2]`."""
    return anchors.cell_centers(
        canvas,
        levels=config.levels,
        offset=config.point_offset,
        rounded=config.point_rounded,
    )


def _points_on_images(batch: Batch, config: FCOSConfig) -> jax.Array:
    """`[B, A]`: points of cells that an image's own canvas would have."""
    return anchors.inside_mask(
        batch.images.shape,
        batch.sizes if config.mask_padding else None,
        levels=config.levels,
        per_cell=1,
    )


def _charges(canvas: tuple[int, int], config: FCOSConfig) -> dict:
    """Which objects each point may take, as `match_points` wants it."""
    each = partial(_of_levels, canvas=canvas, config=config)
    radius = None
    if config.centre_radius is not None:
        radius = each([config.centre_radius * 2**level for level in config.levels])
    low, high = each([0.0, *config.limits]), each([*config.limits, math.inf])
    return {
        "regression_ranges": jnp.stack([low, high], axis=-1),
        "inclusive": config.at_limits == "both",
        "center_radius": radius,
    }


def _strides(canvas: tuple[int, int], config: FCOSConfig) -> jax.Array:
    """`[A, 1]` canvas pixels."""
    strides = [2**level for level in config.levels]
    return _of_levels(strides, canvas=canvas, config=config)[:, None]


def _of_levels(values, *, canvas: tuple[int, int], config: FCOSConfig) -> jax.Array:
    """A value of each level for each of its points, `[A]`."""
    counts = [
        anchors.num_anchors(canvas, levels=[level], per_cell=1)
        for level in config.levels
    ]
    return jnp.asarray(np.repeat(np.array(values, np.float32), counts))


def _distances(sides: jax.Array, strides: jax.Array, config: FCOSConfig) -> jax.Array:
    """`[B, A, 4]` pixels, none negative."""
    if config.distances == "exp":
        return jnp.exp(jnp.minimum(sides, _LARGEST_LOG))
    return jnp.minimum(nn.relu(sides) * strides[None], math.exp(_LARGEST_LOG))


def _box_misses(sides, targets, points, strides, config: FCOSConfig) -> jax.Array:
    """`[B, A]`: the box loss of every point, whether or not it counts."""
    distances = _distances(sides, strides, config)
    if config.box_loss == "l2":
        return jnp.sum(((distances - targets) / strides[None]) ** 2, axis=-1)
    measure = {"iou": losses.iou_loss, "giou": losses.giou_loss}[config.box_loss]
    boxes = (box_coding.decode_ltrb(d, points[None]) for d in (distances, targets))
    return measure(*boxes)


def _detect(logits, centerness, boxes, used, size, *, canvas, config):
    """One image: `[A, K]`, `[A]`, `[A, 4]`, `[A]`, `[2]` -> `Detections` of it."""
    class_scores = jax.nn.sigmoid(logits)
    scores = class_scores * jax.nn.sigmoid(centerness)[:, None]
    if config.score == "square_root":
        scores = jnp.sqrt(scores)
    judged = class_scores if config.threshold_on == "class" else scores
    scores = jnp.where(used[:, None] & (judged > config.score_threshold), scores, -1.0)
    layout = {"levels": config.levels, "per_cell": 1}
    scores, index, labels = anchors.topk_per_level(
        scores, canvas, **layout, k=config.candidates
    )
    found = box_ops.clip(boxes[index], size)
    return nms.select_detections(
        found,
        scores,
        labels,
        iou_threshold=config.nms_threshold,
        max_detections=config.detections,
        valid=(scores > 0) & jnp.all(jnp.isfinite(found), axis=-1),
    )
