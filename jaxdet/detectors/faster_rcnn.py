"""Faster R-CNN (Ren et al. 2015): a region proposal network and a Fast R-CNN in one.

Both share their features. The first stage proposes regions, the second classifies them
and moves their boxes once more; four losses train all of it jointly.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.config import Count, checked_dataclass
from jaxdet.detectors import roi_heads, rpn
from jaxdet.detectors.detector import Detector, from_network, preprocess
from jaxdet.detectors.roi_heads import RoIHeadsConfig, RoIPoolerConfig
from jaxdet.detectors.rpn import RPNConfig
from jaxdet.nn.fpn import neck
from jaxdet.ops import sampling
from jaxdet.structs import Batch, Detections


@checked_dataclass
class FasterRCNNConfig:
    """Configures both stages; defaults are detectron2's, but for `sampling_ratio`."""

    num_classes: Count = 80
    """K; labels run from 0 to K - 1."""
    rpn: RPNConfig = RPNConfig()
    """Of the trunk and the first stage."""
    pooler: RoIPoolerConfig = RoIPoolerConfig()
    """Between the stages."""
    roi_heads: RoIHeadsConfig = RoIHeadsConfig()
    """Of the second stage."""

    def relations(self) -> Iterator[tuple[str, bool, str]]:
        """Checks that RoIs are pooled from levels of the trunk."""
        fits = set(self.pooler.levels) <= set(self.rpn.levels)
        yield "pooler", fits, f"on levels among the RPN's, {self.rpn.levels}"


# VGG-16 at stride 16, FCHead(4096, dropout=0.5): 128 RoIs of one image.
PAPER = FasterRCNNConfig(
    num_classes=20,
    rpn=rpn.PAPER,
    pooler=RoIPoolerConfig(method="max", levels=(4,)),
    roi_heads=dataclasses.replace(
        roi_heads.FAST_RCNN, batch_size_per_image=128, hard_negative_iou=0.0
    ),
)

# ResNet-50 or -101 with a feature pyramid, FCHead(1024) (Lin et al. 2017, 4.2 and 5.2).
FPN_PAPER = FasterRCNNConfig(rpn=rpn.FPN_PAPER, roi_heads=RoIHeadsConfig(box_beta=1.0))

TORCHVISION = FasterRCNNConfig(
    rpn=rpn.TORCHVISION,
    pooler=RoIPoolerConfig(aligned=False),
    roi_heads=RoIHeadsConfig(box_beta=1 / 9, min_box_size=1e-2),
)

# Its second version (Li et al. 2021), with ConvFCHead(norm="frozen").
TORCHVISION_V2 = dataclasses.replace(
    TORCHVISION,
    rpn=dataclasses.replace(rpn.TORCHVISION, head_depth=2, fpn_norm="frozen"),
)

DETECTRON2 = FasterRCNNConfig(
    rpn=rpn.DETECTRON2, pooler=RoIPoolerConfig(sampling_ratio=0)
)

# ResNet(coarsest=4) and ResNetHead: the last stage runs on each RoI by itself.
DETECTRON2_C4 = FasterRCNNConfig(
    rpn=rpn.DETECTRON2_C4,
    pooler=RoIPoolerConfig(levels=(4,), output_size=14, sampling_ratio=0),
)


class FasterRCNNNetwork(nn.Module):
    """Trunk, sliding head, and the layers that each RoI passes (Figure 2)."""

    config: FasterRCNNConfig  # see `FasterRCNNConfig`
    backbone: nn.Module
    """Returns the stages below `config.rpn.levels`; see `faster_rcnn`."""
    box_head: nn.Module
    """What each RoI passes before classes and boxes; see `faster_rcnn`."""
    mask_head: nn.Module | None = None  # Mask R-CNN's third branch

    def setup(self):
        """Makes the layers that follow the backbone and the box head."""
        config, trunk, dtype = self.config, self.config.rpn, self.backbone.dtype
        self.neck = neck(trunk.levels, trunk.channels, trunk.fpn_norm, dtype)
        self.rpn_head = rpn.head(trunk, dtype)
        self.box_predictor = roi_heads.predictor(config, dtype)

    def __call__(self, pixels: jax.Array):
        """Runs every layer once, on an empty box of each image, so that `init` works.

        `[B, H, W, 3]` -> the outputs of RPN head, box predictor and, if any, mask head.
        """
        features = self.features(pixels)
        boxes = jnp.zeros((len(pixels), 1, 4))
        crops = roi_heads.pool(features, boxes, None, self.config.pooler)
        masks = None if self.mask_head is None else self.mask_head(crops[:, 0])
        return self.rpn_head(features), roi_heads.box_head(self, crops), masks

    def features(
        self, pixels: jax.Array, sizes: jax.Array | None = None
    ) -> dict[int, jax.Array]:
        """`[B, H, W, 3]` -> `{level: [B, H, W, C]}`, the RPN's levels."""
        return self.neck(self.backbone(pixels, sizes), sizes)


def loss(network, batch: Batch, key, *, config: FasterRCNNConfig, axis_name=None):
    """Computes the four losses: objectness and boxes of anchors, class and box of RoIs.

    Returns:
      The sum, and `{"objectness_loss", "rpn_box_loss", "class_loss", "box_loss"}`.
    """
    rpn_keys, roi_keys, dropout_keys = sampling.image_keys(key, batch.image_ids, 3)
    pixels, sizes = preprocess(batch, config.rpn.preprocessing, config.rpn.mask_padding)
    features = network.features(pixels, sizes)
    # 1. Where could an object be?
    objectness, anchor_deltas = network.rpn_head(features, sizes)
    losses = rpn.losses(
        rpn_keys, objectness, anchor_deltas, batch, config.rpn, axis_name
    )
    proposals = rpn.propose(objectness, anchor_deltas, batch, config.rpn, training=True)
    # 2. What is it, and where exactly?
    rois = roi_heads.sample_rois(
        roi_keys, proposals, batch.truth, config.roi_heads, config.num_classes
    )
    crops = roi_heads.pool(features, rois.boxes, sizes, config.pooler)
    class_logits, box_deltas = roi_heads.box_head(network, crops, dropout_keys)
    losses |= roi_heads.losses(
        class_logits, box_deltas, rois, config.roi_heads, axis_name
    )
    return sum(losses.values()), losses


def predict(network, batch: Batch, *, config: FasterRCNNConfig) -> Detections:
    """Proposes regions, classifies them and moves their boxes."""
    pixels, sizes = preprocess(batch, config.rpn.preprocessing, config.rpn.mask_padding)
    features = network.features(pixels, sizes)
    objectness, anchor_deltas = network.rpn_head(features, sizes)
    proposals = rpn.propose(objectness, anchor_deltas, batch, config.rpn)
    crops = roi_heads.pool(features, proposals.boxes, sizes, config.pooler)
    class_logits, box_deltas = roi_heads.box_head(network, crops)
    return roi_heads.postprocess(
        class_logits, box_deltas, proposals, batch.sizes, config.roi_heads
    )


def faster_rcnn(
    config: FasterRCNNConfig, backbone: nn.Module, box_head: nn.Module
) -> Detector:
    """Returns Faster R-CNN on the features of a backbone.

    Args:
      config: with `rpn.channels=None` it takes one level of the backbone as it is (C4,
        VGG-16), else it builds a feature pyramid.
      backbone: `(pixels, sizes) -> {level: features}`, with a `dtype`.
      box_head: `(crops [R, S, S, C], keys) -> [R, D]`, S being `pooler.output_size`:
        `FCHead`, `ConvFCHead` or `ResNetHead`.
    """
    return from_network(
        FasterRCNNNetwork(config, backbone, box_head),
        loss=partial(loss, config=config),
        predict=partial(predict, config=config),
        num_classes=config.num_classes,
        builder=partial(faster_rcnn, config, backbone, box_head),
    )
