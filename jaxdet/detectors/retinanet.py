"""RetinaNet: focal loss for dense object detection (Lin et al. 2017).

One network predicts, for each of nine anchors in every cell of a feature pyramid, the
object's class and how the anchor should move to become its box. Nearly all anchors are
easy background; the focal loss keeps their number from drowning the rest.
"""

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.config import (
    Anchors,
    Count,
    Depth,
    Fraction,
    NonNegative,
    PositiveFraction,
    Postprocessing,
    Preprocessing,
    Probability,
    PyramidLevels,
    checked_dataclass,
)
from jaxdet.detectors import dense
from jaxdet.detectors.detector import Detector, from_network, preprocess
from jaxdet.nn.fpn import FPN
from jaxdet.nn.heads import DenseHead
from jaxdet.nn.layers import NormType, maybe_remat
from jaxdet.ops import box_coding, losses
from jaxdet.structs import Batch, Detections


def _octaves(*sizes: float) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(size * 2 ** (i / 3) for i in range(3)) for size in sizes)


def _whole_octaves(*sizes: int) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(int(s)) for s in octave) for octave in _octaves(*sizes))


@checked_dataclass
class RetinaNetConfig:
    """Configures RetinaNet; defaults are the paper's, sections in brackets."""

    num_classes: Count = 80
    """K; labels run from 0 to K - 1."""
    levels: PyramidLevels = (3, 4, 5, 6, 7)
    """Of the pyramid; strides are powers of two (3)."""
    anchors: Anchors = Anchors(_octaves(32, 64, 128, 256, 512))
    """Three sizes and three ratios in each cell (4)."""
    channels: Count = 256
    """Of the pyramid and the heads (4)."""
    top_down: bool = True
    """Whether coarser levels are added to finer ones; False: the backbone's stages side
    by side, an ablation of the pyramid."""
    extra_levels: Literal["c5", "p5"] = "c5"
    """What P6 is made from (4, footnote 2)."""
    head_depth: Depth = 4
    """3x3 convolutions in each head before its last one (4)."""
    head_norm: NormType = "none"
    """Of the heads' convolutions; "group" trains from scratch."""
    fpn_norm: NormType = "none"
    """Of the pyramid's convolutions."""
    negative_iou: Fraction = 0.4
    """Anchors that overlap every object less are background (4)."""
    positive_iou: PositiveFraction = 0.5
    """Anchors that overlap an object as much or more are matched to it (4)."""
    focal_alpha: Fraction = 0.25
    """Weight of the positive class (5.1)."""
    focal_gamma: NonNegative = 2.0
    """How much easy anchors are down-weighted (5.1)."""
    prior: Probability = 0.01
    """Score of every anchor and class at the start of training (3.3)."""
    box_loss: Literal["smooth_l1", "giou"] = "smooth_l1"
    """On the deltas, or on the boxes that they decode to."""
    box_beta: NonNegative = 0.0
    """Where smooth L1 turns from square to linear; 0 is L1."""
    box_weight: NonNegative = 1.0
    """Of the box loss in the sum."""
    preprocessing: Preprocessing = Preprocessing()
    """ImageNet's mean and standard deviation."""
    postprocessing: Postprocessing = Postprocessing()
    """The top 1000 scores of each level are decoded (4.1)."""
    mask_padding: bool = True
    """Whether an image's results do not depend on the padding around it; False for the
    references' weights, which were trained without."""
    normalize_by: Literal["batch", "image"] = "batch"
    """Divide losses by the positive anchors of the whole batch (4.1); or of each image,
    as torchvision."""

    def relations(self) -> Iterator[tuple[str, bool, str]]:
        """Checks that levels have anchors, and the order of the thresholds."""
        one_each = len(self.anchors.sizes) == len(self.levels)
        yield "anchors", one_each, f"sizes for each of the levels {self.levels}"
        rising = self.negative_iou <= self.positive_iou
        yield "negative_iou", rising, f"at most positive_iou, {self.positive_iou}"


TORCHVISION = RetinaNetConfig(
    anchors=Anchors(_whole_octaves(32, 64, 128, 256, 512), offset=0.0, rounded=True),
    extra_levels="p5",
    postprocessing=Postprocessing(max_detections=300),
    mask_padding=False,
    normalize_by="image",
)

# Its second version, trained for longer (torchvision, pull request 5756).
TORCHVISION_V2 = dataclasses.replace(
    TORCHVISION, extra_levels="c5", head_norm="group", box_loss="giou"
)

# detectron2 divides by a moving average over steps (0.9, from 100) of each GPU's count
# of positives; here it is the batch's own, so that a loss depends on its batch alone.
DETECTRON2 = RetinaNetConfig(
    anchors=Anchors(_octaves(32, 64, 128, 256, 512), offset=0.0), mask_padding=False
)


class RetinaNetNetwork(nn.Module):
    """Backbone, feature pyramid and two heads (section 4, Figure 3)."""

    config: RetinaNetConfig  # see `RetinaNetConfig`
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
            top_down=config.top_down,
            extra=config.extra_levels,
            norm=config.fpn_norm,
            dtype=dtype,
        )
        head = maybe_remat(DenseHead, getattr(self.backbone, "remat", False))
        head = partial(head, depth=config.head_depth, norm=config.head_norm)
        per_cell = config.anchors.per_cell
        logit = -math.log((1 - config.prior) / config.prior)
        self.class_head = head(per_cell * config.num_classes, bias=logit, dtype=dtype)
        self.box_head = head(per_cell * 4, dtype=dtype)

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
    """Computes the focal loss of all but ignored anchors, a box loss of positive ones.

    Returns:
      The sum, and `{"class_loss", "box_loss", "positives"}`; the last is the number of
      positive anchors of an image, on average.
    """
    del key  # RetinaNet samples nothing.
    pixels, sizes = preprocess(batch, config.preprocessing, config.mask_padding)
    logits, deltas = network(pixels, sizes)  # [B, A, K], [B, A, 4]
    # 1. Match every anchor to an object or to the background, or ignore it.
    boxes, inside = dense.anchor_grid(
        pixels.shape, sizes, config.levels, config.anchors
    )
    matches = dense.match_anchors(
        boxes,
        inside,
        batch.truth,
        negative_iou=config.negative_iou,
        positive_iou=config.positive_iou,
    )
    positive, used = matches.positive, matches.positive | matches.negative
    # 2. Gather the targets of the matched anchors.
    labels, target_boxes = dense.matched_targets(
        batch.truth, matches.gt_index, positive, num_classes=config.num_classes
    )
    class_targets = jax.nn.one_hot(labels, config.num_classes, dtype=bool)
    # 3. Sum the losses of each image, and divide them by the number of positives.
    focal = losses.focal_loss(
        logits, class_targets, alpha=config.focal_alpha, gamma=config.focal_gamma
    )
    class_loss = jnp.sum(focal, axis=(1, 2), where=used[..., None])  # [B]
    box_loss = _box_loss_per_anchor(deltas, target_boxes, boxes, config)
    box_loss = jnp.sum(box_loss, axis=1, where=positive)  # [B]
    if config.normalize_by == "image":
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
    """Decodes the top scores of each level and removes duplicates by NMS."""
    pixels, sizes = preprocess(batch, config.preprocessing, config.mask_padding)
    logits, deltas = network(pixels, sizes)  # [B, A, K], [B, A, 4]
    boxes, inside = dense.anchor_grid(
        pixels.shape, sizes, config.levels, config.anchors
    )
    scores = jax.nn.sigmoid(logits)
    kept = inside[..., None] & (scores > config.postprocessing.score_threshold)
    scores, index, labels = dense.topk_per_level(
        jnp.where(kept, scores, -1.0),
        pixels.shape[1:3],
        levels=config.levels,
        per_cell=config.anchors.per_cell,
        k=config.postprocessing.pre_nms_topk,
    )
    boxes = box_coding.decode(dense.gather(deltas, index), boxes[index])
    return dense.postprocess(boxes, scores, labels, batch.sizes, config.postprocessing)


def retinanet(config: RetinaNetConfig, backbone: nn.Module) -> Detector:
    """Returns RetinaNet on a backbone `(pixels, sizes) -> {level: features}`."""
    return from_network(
        RetinaNetNetwork(config, backbone),
        loss=partial(loss, config=config),
        predict=partial(predict, config=config),
        num_classes=config.num_classes,
        builder=partial(retinanet, config, backbone),
    )


def _box_loss_per_anchor(deltas, target_boxes, boxes, config: RetinaNetConfig):
    """Computes the losses of all anchors, `[B, A]`, from two of `[B, A, 4]`."""
    if config.box_loss == "giou":
        decoded = box_coding.decode(deltas, boxes[None])
        return losses.giou_loss(decoded, target_boxes)
    targets = box_coding.encode(target_boxes, boxes[None])
    return jnp.sum(
        losses.smooth_l1_loss(deltas, targets, beta=config.box_beta), axis=-1
    )
