"""RetinaNet: focal loss for dense object detection (Lin et al. 2017).

One network looks once at every cell of a feature pyramid and, for each of nine anchor
boxes there, says which class it answers for and how it should move. Nearly all anchors
are easy background; the focal loss keeps their number from drowning the rest.
"""

import dataclasses
import math
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.detectors.detector import Detector, from_network, require, require_colours
from jaxdet.nn.fpn import FPN
from jaxdet.nn.heads import DenseHead
from jaxdet.nn.layers import NormType
from jaxdet.ops import anchors, box_coding, images, losses, matching, nms
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.coverage import Coverage, of_pyramid
from jaxdet.structs import Batch, Detections


def _octaves(*sizes: float) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(size * 2 ** (i / 3) for i in range(3)) for size in sizes)


def _whole_octaves(*sizes: int) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(int(s)) for s in octave) for octave in _octaves(*sizes))


@dataclasses.dataclass(frozen=True)
class RetinaNetConfig:
    """Numbers of RetinaNet; defaults are the paper's, sections in brackets.

    Raises:
      ValueError: for numbers that contradict each other or are out of their range.
    """

    num_classes: int = 80
    """K; labels run from 0 to K - 1."""
    levels: tuple[int, ...] = (3, 4, 5, 6, 7)
    """Of the pyramid; strides are powers of two (3)."""
    anchor_sizes: tuple[tuple[float, ...], ...] = _octaves(32, 64, 128, 256, 512)
    """Square roots of the areas in canvas pixels, a tuple per level (4)."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width (4)."""
    anchor_offset: float = 0.5
    """Of the centre within its cell, in strides; torchvision and detectron2 use 0."""
    anchor_rounded: bool = False
    """Whole pixels, as torchvision."""
    channels: int = 256
    """Of the pyramid and the heads (4)."""
    top_down: bool = True
    """Whether levels take up what coarser ones have found; False: the backbone's stages
    side by side, an ablation of the pyramid."""
    extra_levels: Literal["c5", "p5"] = "c5"
    """What P6 is made from (4, footnote 2)."""
    head_depth: int = 4
    """3x3 convolutions in each head before its last one (4)."""
    head_norm: NormType = "none"
    """Of the heads' convolutions; "group" learns from scratch."""
    fpn_norm: NormType = "none"
    """Of the pyramid's convolutions."""
    mask_padding: bool = True
    """Treat an image as if the canvas ended where it ends; the references do not."""
    low_iou: float = 0.4
    """Below it with every object, an anchor is background (4)."""
    high_iou: float = 0.5
    """From it on, an anchor answers for the object (4)."""
    focal_alpha: float = 0.25
    """Weight of the positive class (5.1)."""
    focal_gamma: float = 2.0
    """How much easy anchors are toned down (5.1)."""
    prior: float = 0.01
    """Score of every anchor and class at the start of training (3.3)."""
    box_loss: Literal["smooth_l1", "giou"] = "smooth_l1"
    """On the deltas, or on the boxes that they make."""
    box_beta: float = 0.0
    """Where smooth L1 turns from square to linear; 0 is L1."""
    box_weight: float = 1.0
    """Of the box loss in the sum."""
    normalise_by: Literal["batch", "image"] = "batch"
    """Divide by the positive anchors of the whole batch (4.1), or of each image."""
    score_threshold: float = 0.05
    """Lower scores are no answers (4.1)."""
    candidates: int = 1000
    """Best scores per level that are decoded (4.1)."""
    nms_threshold: float = 0.5
    """Of two answers of a class that overlap more, the better one stays (4.1)."""
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
        for name in ("head_depth", "box_beta", "box_weight", "focal_gamma"):
            check(name, getattr(self, name) >= 0, "0 or more")
        for name in ("score_threshold", "nms_threshold", "focal_alpha"):
            check(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        ratios = self.anchor_ratios
        check("anchor_ratios", ratios and min(ratios) > 0, "one or more above 0")
        check("anchor_offset", 0 <= self.anchor_offset <= 1, "in [0, 1]")
        require_colours(self)
        check("prior", 0 < self.prior < 1, "between 0 and 1")
        for name, allowed in (
            ("box_loss", ("smooth_l1", "giou")),
            ("normalise_by", ("batch", "image")),
            ("extra_levels", ("c5", "p5")),
            ("head_norm", ("none", "group", "frozen")),
            ("fpn_norm", ("none", "group", "frozen")),
        ):
            check(name, getattr(self, name) in allowed, f"one of {allowed}")
        levels = list(self.levels)
        rising = levels and levels == list(range(levels[0], levels[-1] + 1))
        check("levels", rising, "one or more, consecutive, finest first")
        sizes = self.anchor_sizes
        one_each = len(sizes) == len(self.levels)
        check("anchor_sizes", one_each, f"a tuple for each of levels {self.levels}")
        right = len({len(level) for level in sizes}) == 1
        check("anchor_sizes", right, "as many sizes a level, for the heads are shared")
        right = all(level and min(level) > 0 for level in sizes)
        check("anchor_sizes", right, "one or more above 0 a level")
        check("high_iou", 0 < self.high_iou <= 1, "in (0, 1]")
        right = 0 <= self.low_iou <= self.high_iou
        check("low_iou", right, f"in [0, high_iou], which is {self.high_iou}")

    @property
    def anchors(self) -> dict:
        """Arguments of `anchors.pyramid_anchors`."""
        return {
            "sizes": self.anchor_sizes,
            "ratios": self.anchor_ratios,
            "levels": self.levels,
            "offset": self.anchor_offset,
            "rounded": self.anchor_rounded,
        }

    @property
    def anchors_per_cell(self) -> int:
        """Sizes times ratios."""
        return len(self.anchor_sizes[0]) * len(self.anchor_ratios)


TORCHVISION = RetinaNetConfig(
    anchor_sizes=_whole_octaves(32, 64, 128, 256, 512),
    anchor_offset=0.0,
    anchor_rounded=True,
    extra_levels="p5",
    mask_padding=False,
    normalise_by="image",
    detections=300,
)

# Its second version, trained for longer (torchvision, pull request 5756).
TORCHVISION_V2 = dataclasses.replace(
    TORCHVISION, extra_levels="c5", head_norm="group", box_loss="giou"
)

# Its normaliser is a moving average over steps (0.9, from 100) of each GPU's positives;
# here it is the batch's own count, so that a loss is a function of the batch alone.
DETECTRON2 = RetinaNetConfig(anchor_offset=0.0, mask_padding=False)


class RetinaNetNetwork(nn.Module):
    """Backbone, feature pyramid and two heads (section 4, Figure 3).

    Attributes:
      config: see `RetinaNetConfig`.
      backbone: `(pixels, sizes) -> {level: features}`, with a `dtype`; the levels of
        `config` are made of its stages.
    """

    config: RetinaNetConfig
    backbone: nn.Module

    def setup(self):
        """Makes the layers that follow the backbone."""
        config, dtype = self.config, self.backbone.dtype
        self.fpn = FPN(
            finest=config.levels[0],
            coarsest=config.levels[-1],
            channels=config.channels,
            top_down=config.top_down,
            extra=config.extra_levels,
            norm=config.fpn_norm,
            dtype=dtype,
        )
        head = partial(DenseHead, depth=config.head_depth, norm=config.head_norm)
        shapes = config.anchors_per_cell
        logit = -math.log((1 - config.prior) / config.prior)
        self.class_head = head(shapes * config.num_classes, bias=logit, dtype=dtype)
        self.box_head = head(shapes * 4, dtype=dtype)

    def __call__(
        self, pixels: jax.Array, sizes: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """`[B, H, W, 3]` -> class logits `[B, A, K]`, box deltas `[B, A, 4]`."""
        pyramid = self.fpn(self.backbone(pixels, sizes), sizes)
        logits = self.class_head(pyramid, sizes)
        deltas = self.box_head(pyramid, sizes)
        batch = len(pixels)
        logits = logits.reshape(batch, -1, self.config.num_classes)
        return logits, deltas.reshape(batch, -1, 4)


def loss(network, batch: Batch, key, *, config: RetinaNetConfig, axis_name=None):
    """Focal loss on all but the ignored anchors, a box loss on the positive ones.

    Args:
      network: a bound `RetinaNetNetwork`.
      batch: with truth.
      key: not used: RetinaNet draws nothing.
      config: see `RetinaNetConfig`.
      axis_name: of the devices that share the batch, under `pmap`; None: there is one.

    Returns:
      The sum, and `{"class_loss", "box_loss", "positives"}`; the last is the number of
      positive anchors of an image, on average.
    """
    del key  # RetinaNet samples nothing.
    truth = batch.truth
    logits, deltas = _look(network, batch, config)  # [B, A, K], [B, A, 4]
    # 1. Which object, if any, does each anchor answer for?
    boxes = anchors.pyramid_anchors(batch.images.shape[1:3], **config.anchors)
    match = partial(
        matching.match_by_iou, negative_iou=config.low_iou, positive_iou=config.high_iou
    )
    used = _anchors_on_images(batch, config)
    on_image = jnp.where(used[..., None], boxes[None], 0.0)  # no best one in padding
    matches = jax.vmap(match)(on_image, truth.boxes, truth.valid & ~truth.crowd)
    positive = matches.positive & used
    # 2. What should it have said?
    matched = jax.vmap(lambda values, index: values[index])
    labels = matched(truth.labels, matches.gt_index)
    labels = jnp.where(positive, labels, config.num_classes)  # K: background
    class_targets = jax.nn.one_hot(labels, config.num_classes)  # zeros for background
    target_boxes = matched(truth.boxes, matches.gt_index)
    # 3. How far off was it?
    focal = losses.sigmoid_focal_loss(
        logits, class_targets, alpha=config.focal_alpha, gamma=config.focal_gamma
    )
    judged = positive | (matches.negative & used)
    class_loss = jnp.sum(focal, axis=(1, 2), where=judged[..., None])  # [B]
    misses = _box_misses(deltas, target_boxes, boxes, config)
    box_loss = jnp.sum(misses, axis=1, where=positive)  # [B]
    if config.normalise_by == "image":
        count = jnp.maximum(jnp.sum(positive, axis=1), 1) * len(positive)
    else:
        count = losses.device_mean_count(positive, axis_name=axis_name)
    class_loss, box_loss = jnp.sum(class_loss / count), jnp.sum(box_loss / count)
    metrics = {
        "class_loss": class_loss,
        "box_loss": box_loss,
        "positives": jnp.mean(jnp.sum(positive, axis=1, dtype=jnp.float32)),
    }
    return class_loss + config.box_weight * box_loss, metrics


def predict(network, batch: Batch, *, config: RetinaNetConfig) -> Detections:
    """The best scores of each level, decoded, clipped and thinned class by class.

    Args:
      network: a bound `RetinaNetNetwork`.
      batch: truth is not looked at.
      config: see `RetinaNetConfig`.

    Returns:
      `Detections` `[B, D]`, best first, D being `config.detections`.
    """
    logits, deltas = _look(network, batch, config)
    boxes = anchors.pyramid_anchors(batch.images.shape[1:3], **config.anchors)
    used = _anchors_on_images(batch, config)
    answer = partial(
        _detect, anchor_boxes=boxes, canvas=batch.images.shape[1:3], config=config
    )
    return jax.vmap(answer)(logits, deltas, used, batch.sizes)


def coverage(
    canvas: tuple[int, int],
    boxes: np.ndarray,
    sizes: np.ndarray,
    *,
    config: RetinaNetConfig,
) -> Coverage:
    """How well anchors overlap objects; for `Detector`.

    Args:
      canvas: (height, width) in pixels.
      boxes: `[N, 4]` objects, on canvases of that size.
      sizes: not used: the best anchor's cell is one of the image's.
      config: see `RetinaNetConfig`.
    """
    del sizes  # The best anchor's cell is one of the image's.
    best = of_pyramid(canvas, boxes, **config.anchors)
    return Coverage(best, config.low_iou, config.high_iou, "IoU with the best anchor")


def retinanet(config: RetinaNetConfig, backbone: nn.Module) -> Detector:
    """RetinaNet on a backbone that returns `{level: features}` and has a `dtype`."""
    return from_network(
        RetinaNetNetwork(config, backbone),
        loss=partial(loss, config=config),
        predict=partial(predict, config=config),
        num_classes=config.num_classes,
        builder=partial(retinanet, config, backbone),
        coverage=partial(coverage, config=config),
    )


def _look(network, batch: Batch, config: RetinaNetConfig):
    normalize = partial(images.normalize, mean=config.mean, std=config.std)
    pixels = jax.vmap(normalize)(batch.images, batch.sizes)
    return network(pixels, batch.sizes if config.mask_padding else None)


def _anchors_on_images(batch: Batch, config: RetinaNetConfig) -> jax.Array:
    """`[B, A]`: anchors of cells that an image's own canvas would have."""
    return anchors.inside_mask(
        batch.images.shape,
        batch.sizes if config.mask_padding else None,
        levels=config.levels,
        per_cell=config.anchors_per_cell,
    )


def _box_misses(deltas, target_boxes, boxes, config: RetinaNetConfig) -> jax.Array:
    """`[B, A]`: the box loss of every anchor, whether or not it counts."""
    if config.box_loss == "giou":
        decoded = box_coding.decode(deltas, boxes[None])
        return losses.giou_loss(decoded, target_boxes)
    targets = box_coding.encode(target_boxes, boxes[None])
    return jnp.sum(
        losses.smooth_l1_loss(deltas, targets, beta=config.box_beta), axis=-1
    )


def _detect(logits, deltas, used, size, *, anchor_boxes, canvas, config):
    """One image: `[A, K]`, `[A, 4]`, `[A]`, `[2]` -> `Detections` of it alone."""
    scores = jax.nn.sigmoid(logits)
    scores = jnp.where(used[:, None] & (scores > config.score_threshold), scores, -1.0)
    scores, index, labels = anchors.topk_per_level(
        scores,
        canvas,
        levels=config.levels,
        per_cell=config.anchors_per_cell,
        k=config.candidates,
    )
    found = box_ops.clip(box_coding.decode(deltas[index], anchor_boxes[index]), size)
    return nms.select_detections(
        found,
        scores,
        labels,
        iou_threshold=config.nms_threshold,
        max_detections=config.detections,
        valid=(scores > 0) & jnp.all(jnp.isfinite(found), axis=-1),
    )
