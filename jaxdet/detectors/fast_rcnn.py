"""Fast R-CNN (Girshick 2015): features once an image, one network for both answers.

The convolutions see the whole image; for each region proposal its part of the features
is pooled to a fixed size, classified and moved. Both losses train all layers at once.
"""

import dataclasses
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.detectors import roi_heads
from jaxdet.detectors.detector import (
    Detector,
    from_network,
    of_level,
    require,
    require_colours,
)
from jaxdet.detectors.roi_heads import RoIHeadsConfig
from jaxdet.nn.heads import BoxPredictor
from jaxdet.ops import images
from jaxdet.structs import Batch, Detections


@dataclasses.dataclass(frozen=True)
class FastRCNNConfig:
    """Numbers of Fast R-CNN; defaults are the paper's with VGG-16.

    Raises:
      ValueError: for a number out of its range, naming the field and what is allowed.
    """

    num_classes: int = 20
    """K; labels run from 0 to K - 1."""
    region: RoIHeadsConfig = roi_heads.FAST_RCNN
    """How regions are learned from and answered for (2.3)."""
    level: int = 4
    """Of the backbone's features; their stride is `2**level`."""
    pool: Literal["max", "align"] = "max"
    """RoI max pooling (2.1), or RoI Align."""
    pool_size: int = 7
    """Cells a side of what is pooled: 7 for VGG-16, 6 for AlexNet, 14 for ResNet."""
    samples: int = 2
    """Points a side of each cell that RoI Align averages."""
    mask_padding: bool = True
    """Treat an image as if the canvas ended where it ends."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of red, green and blue, on a scale from 0 to 1; ImageNet's."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Of the same."""

    def __post_init__(self):
        for name in ("num_classes", "pool_size"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("samples", "level"):
            require(self, name, getattr(self, name) >= 0, "0 or more")
        require(self, "pool", self.pool in ("max", "align"), "'max' or 'align'")
        require_colours(self)


PAPER = FastRCNNConfig()


class FastRCNNNetwork(nn.Module):
    """Convolutions for the image, fully connected layers for each region (Figure 1).

    Attributes:
      config: see `FastRCNNConfig`.
      backbone: hands over the features of level `config.level`; see `fast_rcnn`.
      box_head: what each region passes before classes and boxes; see `fast_rcnn`.
    """

    config: FastRCNNConfig
    backbone: nn.Module
    box_head: nn.Module

    def setup(self):
        """Makes the two siblings that follow the box head."""
        self.box_predictor = BoxPredictor(
            self.config.num_classes,
            class_agnostic=self.config.region.class_agnostic,
            dtype=self.backbone.dtype,
        )

    def __call__(self, pixels: jax.Array):
        """Runs every layer once, on no region in particular, so that `init` makes all.

        `[B, H, W, 3]` -> class logits `[B, 1, K + 1]`, deltas `[B, 1, K, 4]`.
        """
        features = self.features(pixels)
        boxes = jnp.zeros((len(pixels), 1, 4))
        return roi_heads.classify(self, _crop(features, boxes, None, self.config))

    def features(self, pixels: jax.Array, sizes: jax.Array | None = None) -> jax.Array:
        """`[B, H, W, 3]` -> `[B, H / stride, W / stride, C]`."""
        return of_level(self.backbone(pixels, sizes), self.config.level)


def loss(network, batch: Batch, key, *, config: FastRCNNConfig, axis_name=None):
    """Softmax and box loss on sampled regions, jointly (2.3).

    Args:
      network: a bound `FastRCNNNetwork`.
      batch: with truth and regions.
      key: of the step; what an image draws hangs on it and on the image's id.
      config: see `FastRCNNConfig`.
      axis_name: of the devices that share the batch, under `pmap`; None: there is one.

    Returns:
      The sum, and `{"class_loss", "box_loss"}`.

    Raises:
      ValueError: if the batch has no regions.
    """
    metrics, _ = roi_heads.learn(
        partial(_look, network, batch, config),
        roi_heads.image_keys(key, batch, 2),
        roi_heads.given(batch),
        batch.truth,
        num_classes=config.num_classes,
        config=config.region,
        axis_name=axis_name,
    )
    return sum(metrics.values()), metrics


def predict(network, batch: Batch, *, config: FastRCNNConfig) -> Detections:
    """Classifies, moves and thins the regions that came with the batch.

    Args:
      network: a bound `FastRCNNNetwork`.
      batch: with regions; truth is not looked at.
      config: see `FastRCNNConfig`.

    Returns:
      `Detections` `[B, D]`, best first, D being `config.region.detections`.

    Raises:
      ValueError: if the batch has no regions.
    """
    look = partial(_look, network, batch, config)
    return roi_heads.answer(
        look, roi_heads.given(batch), batch.sizes, config=config.region
    )


def fast_rcnn(
    config: FastRCNNConfig, backbone: nn.Module, box_head: nn.Module
) -> Detector:
    """Fast R-CNN from what a backbone hands over.

    Args:
      config: see `FastRCNNConfig`.
      backbone: `(pixels, sizes) -> {level: features}`, with a `dtype`.
      box_head: `(crops [R, S, S, C], keys) -> [R, D]`, S being `pool_size`: `FCHead`
        or `ResNetHead`.
    """
    return from_network(
        FastRCNNNetwork(config, backbone, box_head),
        loss=partial(loss, config=config),
        predict=partial(predict, config=config),
        num_classes=config.num_classes,
        builder=partial(fast_rcnn, config, backbone, box_head),
    )


def _look(network, batch: Batch, config: FastRCNNConfig, boxes, keys):
    """Class logits `[B, R, K + 1]` and deltas of what lies in each box."""
    pixels = images.normalize(
        batch.images, batch.sizes, mean=config.mean, std=config.std
    )
    sizes = batch.sizes if config.mask_padding else None
    crops = _crop(network.features(pixels, sizes), boxes, sizes, config)
    return roi_heads.classify(network, crops, keys)


def _crop(features, boxes, sizes, config: FastRCNNConfig) -> jax.Array:
    return roi_heads.cut(
        {config.level: features},
        boxes,
        sizes,
        pool=config.pool,
        size=config.pool_size,
        samples=config.samples,
    )
