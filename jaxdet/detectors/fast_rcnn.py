"""Fast R-CNN (Girshick 2015): convolutions once an image, one network for both tasks.

The convolutions run on the whole image. For each region proposal its part of the
features is pooled to a fixed size, classified and moved; both losses train all layers.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.config import Count, Preprocessing, checked_dataclass
from jaxdet.detectors import roi_heads
from jaxdet.detectors.detector import Detector, from_network, preprocess
from jaxdet.detectors.roi_heads import RoIHeadsConfig, RoIPoolerConfig
from jaxdet.ops import sampling
from jaxdet.structs import Batch, Detections


@checked_dataclass
class FastRCNNConfig:
    """Configures Fast R-CNN; defaults are the paper's with VGG-16."""

    num_classes: Count = 20
    """K; labels run from 0 to K - 1."""
    pooler: RoIPoolerConfig = RoIPoolerConfig(method="max", levels=(4,))
    """Of the backbone's features: RoI max pooling (2.1)."""
    roi_heads: RoIHeadsConfig = roi_heads.FAST_RCNN
    """Of sampling, losses and postprocessing (2.3)."""
    preprocessing: Preprocessing = Preprocessing()
    """Normalization of the pixels."""
    mask_padding: bool = True
    """Whether an image's results do not depend on the padding around it."""


PAPER = FastRCNNConfig()


class FastRCNNNetwork(nn.Module):
    """Convolutions for the image, fully connected layers for each RoI (Figure 1)."""

    config: FastRCNNConfig  # see `FastRCNNConfig`
    backbone: nn.Module
    """Returns the features of `config.pooler.levels`; see `fast_rcnn`."""
    box_head: nn.Module
    """What each RoI passes before classes and boxes; see `fast_rcnn`."""

    def setup(self):
        """Makes the two siblings that follow the box head."""
        self.box_predictor = roi_heads.predictor(self.config, self.backbone.dtype)

    def __call__(self, pixels: jax.Array):
        """Runs every layer once, on an empty box of each image, so that `init` works.

        `[B, H, W, 3]` -> class logits `[B, 1, K + 1]`, deltas `[B, 1, K, 4]`.
        """
        boxes = jnp.zeros((len(pixels), 1, 4))
        features = self.features(pixels)
        crops = roi_heads.pool(features, boxes, None, self.config.pooler)
        return roi_heads.box_head(self, crops)

    def features(
        self, pixels: jax.Array, sizes: jax.Array | None = None
    ) -> dict[int, jax.Array]:
        """`[B, H, W, 3]` -> `{level: [B, H, W, C]}`."""
        return self.backbone(pixels, sizes)


def loss(network, batch: Batch, key, *, config: FastRCNNConfig, axis_name=None):
    """Computes softmax and box loss of sampled RoIs, jointly (2.3).

    Returns:
      The sum, and `{"class_loss", "box_loss"}`.

    Raises:
      ValueError: if the batch has no regions.
    """
    roi_keys, dropout_keys = sampling.image_keys(key, batch.image_ids, 2)
    pixels, sizes = preprocess(batch, config.preprocessing, config.mask_padding)
    proposals = roi_heads.proposals_of(batch)
    rois = roi_heads.sample_rois(
        roi_keys, proposals, batch.truth, config.roi_heads, config.num_classes
    )
    features = network.features(pixels, sizes)
    crops = roi_heads.pool(features, rois.boxes, sizes, config.pooler)
    class_logits, box_deltas = roi_heads.box_head(network, crops, dropout_keys)
    losses = roi_heads.losses(
        class_logits, box_deltas, rois, config.roi_heads, axis_name
    )
    return sum(losses.values()), losses


def predict(network, batch: Batch, *, config: FastRCNNConfig) -> Detections:
    """Classifies the regions that came with the batch and moves their boxes.

    Raises:
      ValueError: if the batch has no regions.
    """
    pixels, sizes = preprocess(batch, config.preprocessing, config.mask_padding)
    proposals = roi_heads.proposals_of(batch)
    features = network.features(pixels, sizes)
    crops = roi_heads.pool(features, proposals.boxes, sizes, config.pooler)
    class_logits, box_deltas = roi_heads.box_head(network, crops)
    return roi_heads.postprocess(
        class_logits, box_deltas, proposals, batch.sizes, config.roi_heads
    )


def fast_rcnn(
    config: FastRCNNConfig, backbone: nn.Module, box_head: nn.Module
) -> Detector:
    """Returns Fast R-CNN on the features of a backbone.

    Args:
      config: see `FastRCNNConfig`.
      backbone: `(pixels, sizes) -> {level: features}`, with a `dtype`.
      box_head: `(crops [R, S, S, C], keys) -> [R, D]`, S being `pooler.output_size`:
        `FCHead` or `ResNetHead`.
    """
    return from_network(
        FastRCNNNetwork(config, backbone, box_head),
        loss=partial(loss, config=config),
        predict=partial(predict, config=config),
        num_classes=config.num_classes,
        builder=partial(fast_rcnn, config, backbone, box_head),
    )
