"""Region proposal networks (Ren et al. 2015): where could an object be?

A small network slides over the features of an image and says, for each anchor, whether
there is an object, and how the anchor should move to become its box.
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdet.detectors import roi_heads
from jaxdet.detectors.detector import (
    Detector,
    from_network,
    of_level,
    require,
    require_colours,
)
from jaxdet.nn.fpn import FPN
from jaxdet.nn.heads import RPNHead
from jaxdet.nn.layers import NormType
from jaxdet.ops import anchors, box_coding, images, losses, matching, nms, sampling
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.coverage import Coverage, of_pyramid
from jaxdet.structs import Batch, Detections, GroundTruth, Regions


@dataclasses.dataclass(frozen=True)
class RPNConfig:
    """Numbers of the trunk and the RPN; defaults are detectron2's on a pyramid.

    Only the anchors lie in the middle of their cells; sections are Ren et al.'s.

    Raises:
      ValueError: for numbers that contradict each other or are out of their range.
    """

    levels: tuple[int, ...] = (2, 3, 4, 5, 6)
    """Of the features that it slides over; strides are powers of two (FPN 4.1)."""
    anchor_sizes: tuple[tuple[float, ...], ...] = (
        (32.0,),
        (64.0,),
        (128.0,),
        (256.0,),
        (512.0,),
    )
    """Square roots of the areas in canvas pixels, a tuple per level (FPN 4.1)."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width (3.3)."""
    anchor_offset: float = 0.5
    """Of the centre within its cell, in strides; torchvision and detectron2 use 0."""
    anchor_rounded: bool = False
    """Whole pixels, as torchvision."""
    inside_only: bool = False
    """Train only anchors that lie within their image (3.3)."""
    channels: int | None = 256
    """Of the feature pyramid (FPN 3); None: the one level is the backbone's own."""
    fpn_norm: NormType = "none"
    """Of the pyramid's convolutions."""
    head_channels: int | None = None
    """Of the 3x3 convolutions; None: as many as the features have."""
    head_depth: int = 1
    """3x3 convolutions (3.1)."""
    softmax: bool = False
    """Two logits an anchor and a softmax (3.1), instead of one and a sigmoid."""
    mask_padding: bool = True
    """Treat an image as if the canvas ended where it ends; the references do not."""
    low_iou: float = 0.3
    """Below it with every object, an anchor is background (3.1.2)."""
    high_iou: float = 0.7
    """From it on, or where none is better, an anchor is an object (3.1.2)."""
    per_image: int = 256
    """Anchors an image that a training step looks at (3.1.3)."""
    positive_fraction: float = 0.5
    """Of them, at most, are objects (3.1.3)."""
    box_beta: float = 0.0
    """Where smooth L1 turns from square to linear; 0 is L1."""
    box_weight: float = 1.0
    """Of the box loss; 1, as it is divided by the samples, is about lambda = 10 (3.1.2)
    divided by the number of cells."""
    train_candidates: int = 2000
    """Best scores a level that reach the NMS in training."""
    train_proposals: int = 1000
    """Proposals an image in training."""
    candidates: int = 1000
    """Best scores a level that reach the NMS."""
    proposals: int = 1000
    """Proposals an image."""
    nms_threshold: float = 0.7
    """Of two proposals of a level that overlap more, the better one stays (3.3)."""
    min_side: float = 0.0
    """Proposals with a shorter side, in pixels of the image before it was resized, are
    dropped."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of red, green and blue, on a scale from 0 to 1; ImageNet's."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Of the same."""

    def __post_init__(self):
        counts = {len(sizes) for sizes in self.anchor_sizes}
        right = len(self.anchor_sizes) == len(self.levels) and len(counts) == 1
        allowed = f"a tuple for each of the levels {self.levels}, all of one length"
        require(self, "anchor_sizes", right, allowed)
        rising = list(range(self.levels[0], self.levels[-1] + 1))
        require(self, "levels", list(self.levels) == rising, "consecutive, rising")
        one = self.channels is not None or len(self.levels) == 1
        require(self, "channels", one, f"a number, for the levels {self.levels}")
        for name in ("channels", "head_channels"):
            right = getattr(self, name) is None or getattr(self, name) >= 1
            require(self, name, right, "at least 1, or None")
        allowed = ("none", "group", "frozen")
        require(self, "fpn_norm", self.fpn_norm in allowed, f"one of {allowed}")
        require(self, "anchor_offset", 0 <= self.anchor_offset <= 1, "in [0, 1]")
        require(self, "high_iou", 0 < self.high_iou <= 1, "in (0, 1]")
        right = 0 <= self.low_iou <= self.high_iou
        require(self, "low_iou", right, f"in [0, high_iou], which is {self.high_iou}")
        for name in ("train_candidates", "train_proposals", "candidates", "proposals"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("per_image", "head_depth"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("box_beta", "box_weight", "min_side"):
            require(self, name, getattr(self, name) >= 0, "0 or more")
        for name in ("positive_fraction", "nms_threshold"):
            require(self, name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        right = len(self.anchor_ratios) > 0 and min(self.anchor_ratios) > 0
        require(self, "anchor_ratios", right, "one or more numbers above 0")
        require_colours(self)
        roi_heads.require_positive_samples(self)
        right = all(sizes and min(sizes) > 0 for sizes in self.anchor_sizes)
        require(self, "anchor_sizes", right, "above 0")

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


# Lin et al. 2017 (4.1, 5.1), with the losses of Ren et al.
FPN_PAPER = RPNConfig(box_beta=1 / 9, train_proposals=2000)

# One level of stride 16, VGG's conv5_3 or ResNet's conv4_x; 300 proposals (3.3).
PAPER = RPNConfig(
    levels=(4,),
    anchor_sizes=((128.0, 256.0, 512.0),),
    inside_only=True,
    channels=None,
    head_channels=512,
    softmax=True,
    box_beta=1 / 9,
    train_candidates=12000,
    train_proposals=2000,
    candidates=6000,
    proposals=300,
    min_side=16.0,
)

TORCHVISION = RPNConfig(
    anchor_offset=0.0,
    anchor_rounded=True,
    mask_padding=False,
    box_beta=1 / 9,
    train_proposals=2000,
    min_side=1e-3,
)

DETECTRON2 = RPNConfig(anchor_offset=0.0, mask_padding=False)

DETECTRON2_C4 = RPNConfig(
    levels=(4,),
    anchor_sizes=((32.0, 64.0, 128.0, 256.0, 512.0),),
    anchor_offset=0.0,
    channels=None,
    mask_padding=False,
    train_candidates=12000,
    train_proposals=2000,
    candidates=6000,
)


class RPNNetwork(nn.Module):
    """Backbone, feature pyramid where there is one, and the sliding head (Figure 3).

    Attributes:
      config: see `RPNConfig`.
      backbone: `(pixels, sizes) -> {level: features}`, with a `dtype`.
    """

    config: RPNConfig
    backbone: nn.Module

    def setup(self):
        """Makes the layers that follow the backbone."""
        self.neck = neck(self.config, self.backbone.dtype)
        self.rpn_head = head(self.config, self.backbone.dtype)

    def __call__(self, pixels: jax.Array, sizes: jax.Array | None = None):
        """`[B, H, W, 3]` -> objectness `[B, A, 1 or 2]`, box deltas `[B, A, 4]`."""
        return self.rpn_head(self.features(pixels, sizes), sizes)

    def features(
        self, pixels: jax.Array, sizes: jax.Array | None = None
    ) -> dict[int, jax.Array]:
        """`[B, H, W, 3]` -> `{level: [B, H, W, C]}`, the config's levels."""
        return self.neck(self.backbone(pixels, sizes), sizes)


def neck(config: RPNConfig, dtype: jnp.dtype) -> nn.Module:
    """What makes the levels of the config from the backbone's stages."""
    if config.channels is None:
        return _OneLevel(config.levels[0])
    return FPN(
        finest=config.levels[0],
        coarsest=config.levels[-1],
        channels=config.channels,
        extra="pool",
        norm=config.fpn_norm,
        dtype=dtype,
    )


def head(config: RPNConfig, dtype: jnp.dtype) -> RPNHead:
    """What slides over every level."""
    return RPNHead(
        config.anchors_per_cell,
        depth=config.head_depth,
        outputs=2 if config.softmax else 1,
        channels=config.head_channels,
        dtype=dtype,
    )


def loss(network, batch: Batch, key, *, config: RPNConfig, axis_name=None):
    """Objectness and box losses on sampled anchors; see `proposal_losses`.

    Args:
      network: a bound `RPNNetwork`.
      batch: with truth.
      key: of the step; what an image draws hangs on it and on the image's id.
      config: see `RPNConfig`.
      axis_name: of the devices that share the batch, under `pmap`; None: there is one.

    Returns:
      The sum, and `{"objectness_loss", "rpn_box_loss"}`.
    """
    (keys,) = roi_heads.image_keys(key, batch, 1)
    logits, deltas = network(*pixels_and_sizes(batch, config))
    metrics = proposal_losses(
        keys, logits, deltas, batch, config=config, axis_name=axis_name
    )
    return sum(metrics.values()), metrics


def predict(network, batch: Batch, *, config: RPNConfig) -> Detections:
    """The proposals as detections of one class.

    Args:
      network: a bound `RPNNetwork`.
      batch: truth is not looked at.
      config: see `RPNConfig`.

    Returns:
      `Detections` `[B, config.proposals]`, best first; all labels are 0.
    """
    logits, deltas = network(*pixels_and_sizes(batch, config))
    found = propose(
        logits,
        deltas,
        batch,
        config=config,
        candidates=config.candidates,
        proposals=config.proposals,
    )
    labels = jnp.zeros(found.valid.shape, jnp.int32)
    return Detections(found.boxes, found.scores, labels, found.valid)


def coverage(
    canvas: tuple[int, int], boxes: np.ndarray, sizes: np.ndarray, *, config: RPNConfig
) -> Coverage:
    """How well the anchors that are trained overlap objects; for `Detector`.

    Args:
      canvas: (height, width) in pixels.
      boxes: `[N, 4]` objects, on canvases of that size.
      sizes: `[N, 2]` true (height, width) of their images, where `config.inside_only`
        leaves out the anchors that reach over them.
      config: see `RPNConfig`.
    """
    within = sizes if config.inside_only else None
    best = of_pyramid(canvas, boxes, **config.anchors, within=within)
    return Coverage(best, config.low_iou, config.high_iou, "IoU with the best anchor")


def rpn(config: RPNConfig, backbone: nn.Module) -> Detector:
    """An RPN alone, on a backbone that returns `{level: features}`.

    It tells no classes apart: every object is one, and all labels are 0.
    """
    return from_network(
        RPNNetwork(config, backbone),
        loss=partial(loss, config=config),
        predict=partial(predict, config=config),
        builder=partial(rpn, config, backbone),
        coverage=partial(coverage, config=config),
    )


def pixels_and_sizes(
    batch: Batch, config: RPNConfig
) -> tuple[jax.Array, jax.Array | None]:
    """What the networks take: normalised pixels, and where the true images end.

    Returns:
      `[B, H, W, 3]` float32, 0 outside the images; `[B, 2]` (height, width), or None
      without `config.mask_padding`: all of the canvas is image.
    """
    pixels = images.normalize(
        batch.images, batch.sizes, mean=config.mean, std=config.std
    )
    return pixels, batch.sizes if config.mask_padding else None


def proposal_losses(
    keys: jax.Array,
    logits: jax.Array,
    deltas: jax.Array,
    batch: Batch,
    *,
    config: RPNConfig,
    axis_name: str | None,
) -> dict[str, jax.Array]:
    """Objectness and box losses on sampled anchors (3.1.2 and 3.1.3).

    Both are divided by the number of sampled anchors on all devices.

    Args:
      keys: `[B]`, for the samples.
      logits: `[B, A, 1 or 2]`.
      deltas: `[B, A, 4]`.
      batch: with its truth.
      config: see `RPNConfig`.
      axis_name: of the devices; None: there is one.

    Returns:
      `{"objectness_loss", "rpn_box_loss"}`, the latter times its weight.
    """
    boxes = anchors.pyramid_anchors(batch.images.shape[1:3], **config.anchors)
    # The barrier keeps XLA from computing this while it compiles, which takes seconds.
    identity = sampling.hash_boxes(jax.lax.optimization_barrier(boxes))

    def of_image(key, logits, deltas, truth: GroundTruth, size, used):
        # 1. Which anchors are objects, which are background?
        if config.inside_only:
            used &= jnp.all(boxes == box_ops.clip(boxes, size), axis=-1)
        matches = matching.match_by_iou(
            jnp.where(used[:, None], boxes, 0.0),  # no object's best is out of use
            truth.boxes,
            truth.valid & ~truth.crowd,
            negative_iou=config.low_iou,
            positive_iou=config.high_iou,
        )
        # 2. Which of them teach, this time?
        chosen = sampling.balanced_subset(
            key,
            identity,
            matches.positive & used,
            matches.negative & used,
            size=config.per_image,
            positive_fraction=config.positive_fraction,
        )
        # 3. How far off were they?
        objectness = _logit(logits[chosen.index])
        cross_entropy = optax.losses.sigmoid_binary_cross_entropy(
            objectness, chosen.positive
        )
        if len(truth.labels) == 0:
            targets = jnp.zeros((len(chosen.index), 4))
        else:
            targets = truth.boxes[matches.gt_index[chosen.index]]
        targets = box_coding.encode(targets, boxes[chosen.index])
        misses = losses.smooth_l1_loss(
            deltas[chosen.index], targets, beta=config.box_beta
        )
        return cross_entropy, jnp.sum(misses, axis=-1), chosen

    used = _anchors_on_images(batch, config)
    surprises, misses, chosen = jax.vmap(of_image)(
        keys, logits, deltas, batch.truth, batch.sizes, used
    )
    count = losses.device_mean_count(chosen.valid, axis_name=axis_name)
    box_loss = jnp.sum(misses, where=chosen.positive) / count
    return {
        "objectness_loss": jnp.sum(surprises, where=chosen.valid) / count,
        "rpn_box_loss": config.box_weight * box_loss,
    }


def propose(
    logits: jax.Array,
    deltas: jax.Array,
    batch: Batch,
    *,
    config: RPNConfig,
    candidates: int,
    proposals: int,
) -> Regions:
    """The best anchors of each level, decoded, clipped and thinned (3.3).

    No gradient flows through them: the approximation of 3.2.

    Args:
      logits: `[B, A, 1 or 2]`.
      deltas: `[B, A, 4]`.
      batch: its canvas, true sizes and scales count.
      config: see `RPNConfig`.
      candidates: best scores a level that are decoded.
      proposals: slots an image.

    Returns:
      Regions `[B, proposals]`, best first.
    """
    thin = partial(
        nms.select_detections,
        iou_threshold=config.nms_threshold,
        max_detections=proposals,
    )
    *found, valid = best_anchors(logits, deltas, batch, config=config, limit=candidates)
    kept = jax.vmap(lambda found, valid: thin(*found, valid=valid))(found, valid)
    return jax.lax.stop_gradient(Regions(kept.boxes, kept.scores, kept.valid))


def best_anchors(
    logits: jax.Array, deltas: jax.Array, batch: Batch, *, config: RPNConfig, limit: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """What `propose` thins: the best anchors of each level, decoded and clipped.

    Args:
      logits: `[B, A, 1 or 2]`.
      deltas: `[B, A, 4]`.
      batch: its canvas, true sizes and scales count.
      config: see `RPNConfig`.
      limit: best scores a level.

    Returns:
      Boxes `[B, M, 4]`, scores `[B, M]`, the indices of their levels `[B, M]`, and
      which are valid `[B, M]`: large enough, and of cells that are on their image.
    """
    canvas = batch.images.shape[1:3]
    boxes = anchors.pyramid_anchors(canvas, **config.anchors)
    counts = [
        anchors.num_anchors(canvas, levels=(level,), per_cell=config.anchors_per_cell)
        for level in config.levels
    ]
    level = jnp.repeat(jnp.arange(len(counts)), np.minimum(counts, limit))

    def of_image(scores, deltas, used, size, scale):
        scores, index, _ = anchors.topk_per_level(
            jnp.where(used, scores, -1.0)[:, None],
            canvas,
            levels=config.levels,
            per_cell=config.anchors_per_cell,
            k=limit,
        )
        found = box_ops.clip(box_coding.decode(deltas[index], boxes[index]), size)
        large = box_ops.nonempty(found, config.min_side * jnp.mean(scale))
        return found, scores, level, (scores >= 0) & large

    scores = jax.nn.sigmoid(_logit(logits))
    used = _anchors_on_images(batch, config)
    return jax.vmap(of_image)(scores, deltas, used, batch.sizes, batch.scales)


def _logit(logits: jax.Array) -> jax.Array:
    """`[..., 1]`, or `[..., 2]` of background and object -> `[...]`, of objectness.

    The softmax of two logits is the sigmoid of their difference.
    """
    return logits[..., -1] - logits[..., 0] if logits.shape[-1] == 2 else logits[..., 0]


def _anchors_on_images(batch: Batch, config: RPNConfig) -> jax.Array:
    """`[B, A]`: anchors of cells that an image's own canvas would have."""
    return anchors.inside_mask(
        batch.images.shape,
        batch.sizes if config.mask_padding else None,
        levels=config.levels,
        per_cell=config.anchors_per_cell,
    )


class _OneLevel(nn.Module):
    """No pyramid: the backbone's features of one level."""

    level: int

    def __call__(self, stages: dict[int, jax.Array], sizes=None):
        return {self.level: of_level(stages, self.level)}
