"""Region proposal networks (Ren et al. 2015): where could an object be?

A small network slides over the features of an image. For each anchor it predicts
whether there is an object, and how the anchor should move to become its box.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdet.config import (
    Anchors,
    Count,
    Fraction,
    NonNegative,
    PositiveDepth,
    PositiveFraction,
    Preprocessing,
    PyramidLevels,
    checked_dataclass,
)
from jaxdet.detectors import dense
from jaxdet.detectors.detector import Detector, from_network, preprocess
from jaxdet.nn.fpn import neck
from jaxdet.nn.heads import RPNHead
from jaxdet.nn.layers import NormType
from jaxdet.ops import anchors, box_coding, nms, sampling
from jaxdet.ops import boxes as box_ops
from jaxdet.ops import losses as loss_ops
from jaxdet.ops.lookup import lookup
from jaxdet.structs import Batch, Detections, Regions


@checked_dataclass
class RPNConfig:
    """Configures trunk and RPN; defaults are detectron2's on a pyramid.

    Only the anchors lie in the middle of their cells; sections are Ren et al.'s.
    """

    levels: PyramidLevels = (2, 3, 4, 5, 6)
    """Of the features that it slides over; strides are powers of two (FPN 4.1)."""
    anchors: Anchors = Anchors(((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)))
    """One size and three ratios in each cell (3.3; FPN 4.1)."""
    inside_only: bool = False
    """Train only anchors that lie within their image (3.3)."""
    channels: Count | None = 256
    """Of the feature pyramid (FPN 3); None: the one level is the backbone's own."""
    fpn_norm: NormType = "none"
    """Of the pyramid's convolutions."""
    head_channels: Count | None = None
    """Of the 3x3 convolutions; None: as many as the features have."""
    head_depth: PositiveDepth = 1
    """3x3 convolutions (3.1)."""
    softmax: bool = False
    """Two logits an anchor and a softmax (3.1), instead of one and a sigmoid."""
    negative_iou: Fraction = 0.3
    """Anchors that overlap every object less are background (3.1.2)."""
    positive_iou: PositiveFraction = 0.7
    """Anchors that overlap an object as much, or the most, are positive (3.1.2)."""
    batch_size_per_image: Count = 256
    """Anchors of an image that a training step samples (3.1.3)."""
    positive_fraction: PositiveFraction = 0.5
    """At most this share of them is positive (3.1.3)."""
    box_beta: NonNegative = 0.0
    """Where smooth L1 turns from square to linear; 0 is L1."""
    box_weight: NonNegative = 1.0
    """Of the box loss; 1 is close to lambda = 10, which divides by cells (3.1.2)."""
    pre_nms_topk_train: Count = 2000
    """Best scores a level that reach the NMS in training."""
    post_nms_topk_train: Count = 1000
    """Proposals an image in training."""
    pre_nms_topk: Count = 1000
    """Best scores a level that reach the NMS."""
    post_nms_topk: Count = 1000
    """Proposals an image."""
    nms_threshold: Fraction = 0.7
    """Of two proposals of a level with a higher IoU, the worse one is removed (3.3)."""
    min_box_size: NonNegative = 0.0
    """Proposals with a shorter side, in pixels of the original image, are discarded."""
    preprocessing: Preprocessing = Preprocessing()
    """Normalization of the pixels."""
    mask_padding: bool = True
    """Whether an image's results do not depend on the padding around it; False for the
    references' weights, which were trained without."""

    def relations(self) -> Iterator[tuple[str, bool, str]]:
        """Checks levels, the thresholds' order, and that positives can be sampled."""
        fits = len(self.anchors.sizes) == len(self.levels)
        yield "anchors", fits, f"sizes for each of the levels {self.levels}"
        fits = self.channels is not None or len(self.levels) == 1
        yield "channels", fits, f"a number, for the levels {self.levels}"
        fits = self.negative_iou <= self.positive_iou
        yield "negative_iou", fits, f"at most positive_iou, {self.positive_iou}"
        fits = int(self.batch_size_per_image * self.positive_fraction) >= 1
        allowed = f"at least 1 / batch_size_per_image ({self.batch_size_per_image})"
        yield "positive_fraction", fits, allowed


# Lin et al. 2017 (4.1, 5.1), with the losses of Ren et al.
FPN_PAPER = RPNConfig(box_beta=1 / 9, post_nms_topk_train=2000)

# One level of stride 16, VGG's conv5_3 or ResNet's conv4_x; 300 proposals (3.3).
PAPER = RPNConfig(
    levels=(4,),
    anchors=Anchors(((128.0, 256.0, 512.0),)),
    inside_only=True,
    channels=None,
    head_channels=512,
    softmax=True,
    box_beta=1 / 9,
    pre_nms_topk_train=12000,
    post_nms_topk_train=2000,
    pre_nms_topk=6000,
    post_nms_topk=300,
    min_box_size=16.0,
)

TORCHVISION = RPNConfig(
    anchors=dataclasses.replace(RPNConfig().anchors, offset=0.0, rounded=True),
    box_beta=1 / 9,
    post_nms_topk_train=2000,
    min_box_size=1e-3,
    mask_padding=False,
)

DETECTRON2 = RPNConfig(
    anchors=dataclasses.replace(RPNConfig().anchors, offset=0.0), mask_padding=False
)

DETECTRON2_C4 = RPNConfig(
    levels=(4,),
    anchors=Anchors(((32.0, 64.0, 128.0, 256.0, 512.0),), offset=0.0),
    channels=None,
    pre_nms_topk_train=12000,
    post_nms_topk_train=2000,
    pre_nms_topk=6000,
    mask_padding=False,
)


class RPNNetwork(nn.Module):
    """Backbone, feature pyramid where there is one, and the sliding head (Figure 3)."""

    config: RPNConfig  # see `RPNConfig`
    backbone: nn.Module  # `(pixels, sizes) -> {level: features}`, with a `dtype`

    def setup(self):
        """Makes the layers that follow the backbone."""
        config, dtype = self.config, self.backbone.dtype
        self.neck = neck(config.levels, config.channels, config.fpn_norm, dtype)
        self.rpn_head = head(config, dtype)

    def __call__(self, pixels: jax.Array, sizes: jax.Array | None = None):
        """`[B, H, W, 3]` -> objectness `[B, A, 1 or 2]`, box deltas `[B, A, 4]`."""
        return self.rpn_head(self.features(pixels, sizes), sizes)

    def features(
        self, pixels: jax.Array, sizes: jax.Array | None = None
    ) -> dict[int, jax.Array]:
        """`[B, H, W, 3]` -> `{level: [B, H, W, C]}`, the config's levels."""
        return self.neck(self.backbone(pixels, sizes), sizes)


def head(config: RPNConfig, dtype: jnp.dtype) -> RPNHead:
    """Returns the head that slides over every level."""
    return RPNHead(
        config.anchors.per_cell,
        depth=config.head_depth,
        outputs=2 if config.softmax else 1,
        channels=config.head_channels,
        dtype=dtype,
    )


def loss(network, batch: Batch, key, *, config: RPNConfig, axis_name=None):
    """Computes the objectness and box losses of sampled anchors; see `losses`.

    Returns:
      The sum, and `{"objectness_loss", "rpn_box_loss"}`.
    """
    (keys,) = sampling.image_keys(key, batch.image_ids, 1)
    pixels, sizes = preprocess(batch, config.preprocessing, config.mask_padding)
    objectness, deltas = network(pixels, sizes)
    metrics = losses(keys, objectness, deltas, batch, config, axis_name)
    return sum(metrics.values()), metrics


def predict(network, batch: Batch, *, config: RPNConfig) -> Detections:
    """Returns the proposals as detections of one class, whose label is 0."""
    pixels, sizes = preprocess(batch, config.preprocessing, config.mask_padding)
    objectness, deltas = network(pixels, sizes)
    proposals = propose(objectness, deltas, batch, config)
    labels = jnp.zeros(proposals.valid.shape, jnp.int32)
    return Detections(proposals.boxes, proposals.scores, labels, proposals.valid)


def rpn(config: RPNConfig, backbone: nn.Module) -> Detector:
    """Returns an RPN alone, on a backbone that returns `{level: features}`.

    It tells no classes apart: every object is one, and all labels are 0.
    """
    return from_network(
        RPNNetwork(config, backbone),
        loss=partial(loss, config=config),
        predict=partial(predict, config=config),
        builder=partial(rpn, config, backbone),
    )


def losses(
    keys: jax.Array,
    objectness: jax.Array,
    deltas: jax.Array,
    batch: Batch,
    config: RPNConfig,
    axis_name: str | None = None,
) -> dict[str, jax.Array]:
    """Computes objectness and box losses of sampled anchors (3.1.2 and 3.1.3).

    Both are divided by the number of sampled anchors on all devices.

    Args:
      keys: `[B]`, for the samples.
      objectness: logits `[B, A, 1 or 2]`.
      deltas: `[B, A, 4]`.
      batch: with its truth.
      config: see `RPNConfig`.
      axis_name: of the devices; None: there is one.

    Returns:
      `{"objectness_loss", "rpn_box_loss"}`, the latter times its weight.
    """
    # 1. Match every anchor to an object or to the background, or ignore it.
    boxes, inside = _anchor_grid(batch, config)
    if config.inside_only:
        clipped = jax.vmap(box_ops.clip, (None, 0))(boxes, batch.sizes)
        inside &= jnp.all(boxes[None] == clipped, axis=-1)
    matches = dense.match_anchors(
        boxes,
        inside,
        batch.truth,
        negative_iou=config.negative_iou,
        positive_iou=config.positive_iou,
    )
    # 2. Sample some of them.
    # The barrier keeps XLA from hashing while it compiles, which takes seconds.
    hashes = sampling.hash_boxes(jax.lax.optimization_barrier(boxes))
    sample = partial(
        sampling.balanced_subset,
        size=config.batch_size_per_image,
        positive_fraction=config.positive_fraction,
    )
    sample = jax.vmap(sample, (0, None, 0, 0))
    chosen = sample(keys, hashes, matches.positive, matches.negative)
    # 3. Compute the losses of the sampled anchors.
    logits = _objectness_logits(dense.gather_rows(objectness, chosen.indices))
    objectness_loss = optax.losses.sigmoid_binary_cross_entropy(logits, chosen.positive)
    gt_index = dense.gather(matches.gt_index, chosen.indices)
    gt_boxes = jax.vmap(lookup)(batch.truth.boxes, gt_index)
    targets = box_coding.encode(gt_boxes, boxes[chosen.indices])
    deltas = dense.gather_rows(deltas, chosen.indices)
    box_loss = loss_ops.smooth_l1_loss(deltas, targets, beta=config.box_beta)
    count = loss_ops.device_mean_count(chosen.valid, axis_name=axis_name)
    box_loss = jnp.sum(box_loss, where=chosen.positive[..., None]) / count
    return {
        "objectness_loss": jnp.sum(objectness_loss, where=chosen.valid) / count,
        "rpn_box_loss": config.box_weight * box_loss,
    }


def propose(
    objectness: jax.Array,
    deltas: jax.Array,
    batch: Batch,
    config: RPNConfig,
    *,
    training: bool = False,
) -> Regions:
    """Decodes the best anchors of each level and removes duplicates by NMS (3.3).

    No gradient flows through them: the approximation of 3.2.

    Args:
      objectness: logits `[B, A, 1 or 2]`.
      deltas: `[B, A, 4]`.
      batch: its canvas, true sizes and scales are used.
      config: see `RPNConfig`.
      training: whether to take as many as in training.

    Returns:
      `Regions` `[B, P]`, best first, P being `post_nms_topk` or `post_nms_topk_train`.
    """
    canvas, layout = batch.images.shape[1:3], {"per_cell": config.anchors.per_cell}
    k = config.pre_nms_topk_train if training else config.pre_nms_topk
    boxes, inside = _anchor_grid(batch, config)
    # 1. Decode the best anchors of each level.
    scores = jnp.where(inside, jax.nn.sigmoid(_objectness_logits(objectness)), -1.0)
    scores, index, _ = dense.topk_per_level(
        scores[..., None], canvas, levels=config.levels, **layout, k=k
    )
    boxes = box_coding.decode(dense.gather_rows(deltas, index), boxes[index])
    boxes = jax.vmap(box_ops.clip)(boxes, batch.sizes)
    min_size = config.min_box_size * jnp.mean(batch.scales, axis=1)
    valid = (scores >= 0) & jax.vmap(box_ops.nonempty)(boxes, min_size)
    # 2. Remove duplicates within each level.
    counts = [anchors.num_anchors(canvas, levels=(x,), **layout) for x in config.levels]
    levels = jnp.asarray(np.repeat(np.arange(len(counts)), np.minimum(counts, k)))
    limit = config.post_nms_topk_train if training else config.post_nms_topk

    def select(boxes, scores, valid):
        thresholds = {"iou_threshold": config.nms_threshold, "max_detections": limit}
        return nms.select_detections(boxes, scores, levels, valid=valid, **thresholds)

    kept = jax.vmap(select)(boxes, scores, valid)
    return jax.lax.stop_gradient(Regions(kept.boxes, kept.scores, kept.valid))


def _objectness_logits(logits: jax.Array) -> jax.Array:
    """Reduces `[..., 1]`, or `[..., 2]` of background and object, to `[...]`.

    The softmax of two logits is the sigmoid of their difference.
    """
    return logits[..., -1] - logits[..., 0] if logits.shape[-1] == 2 else logits[..., 0]


def _anchor_grid(batch: Batch, config: RPNConfig) -> tuple[jax.Array, jax.Array]:
    """Returns anchors `[A, 4]`, and which are of cells on their image, `[B, A]`."""
    sizes = batch.sizes if config.mask_padding else None
    return dense.anchor_grid(batch.images.shape, sizes, config.levels, config.anchors)
