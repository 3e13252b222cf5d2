"""SPP-net (He et al. 2014): the features of all regions from one pass over the image.

Like R-CNN it classifies given regions, but their features are pooled from the image's,
into a pyramid of grids and so to one length. The convolutions are those of a network
trained before and stay as they are: only the fully connected layers are trained.
"""

from functools import partial
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.config import (
    Count,
    Level,
    NotEmpty,
    Positive,
    Preprocessing,
    checked_dataclass,
)
from jaxdet.detectors import roi_heads
from jaxdet.detectors.detector import Detector, from_network, preprocess
from jaxdet.detectors.roi_heads import RoIHeadsConfig
from jaxdet.nn.fpn import of_level
from jaxdet.nn.layers import zero_outside
from jaxdet.ops import boxes as box_ops
from jaxdet.ops import images, roi_pool, sampling
from jaxdet.structs import Batch, Detections


@checked_dataclass
class SPPNetConfig:
    """Configures SPP-net."""

    num_classes: Count = 20
    """K; labels run from 0 to K - 1."""
    level: Level = 4
    """Of the backbone's features; their stride is `2**level`."""
    bins: Annotated[tuple[Count, ...], NotEmpty()] = (6, 3, 2, 1)
    """Cells a side of the grids of the pyramid (4.1)."""
    scales: Annotated[tuple[Positive, ...], NotEmpty()] = (1.0,)
    """Of the canvas; the convolutions run once at each of them (4.1)."""
    region_size: Positive = 224.0
    """Each region is pooled at the scale where its area is nearest to this, squared, in
    pixels (4.1)."""
    roi_heads: RoIHeadsConfig = roi_heads.FAST_RCNN
    """Of sampling, losses and postprocessing (4.1)."""
    preprocessing: Preprocessing = Preprocessing()
    """Normalization of the pixels."""
    mask_padding: bool = True
    """Whether an image's results do not depend on the padding around it."""


# Shorter sides of 480 to 1200 (4.1), for canvases whose shorter side is 688.
PAPER = SPPNetConfig(scales=tuple(s / 688 for s in (480, 576, 688, 874, 1200)))


class SPPNetNetwork(nn.Module):
    """Convolutions for the image, fully connected layers for each region (Figure 5)."""

    config: SPPNetConfig  # see `SPPNetConfig`
    backbone: nn.Module  # returns the features of level `config.level`; see `sppnet`
    box_head: nn.Module
    """What each region passes before classes and boxes; see `sppnet`."""

    def setup(self):
        """Makes the two siblings that follow the box head."""
        self.box_predictor = roi_heads.predictor(self.config, self.backbone.dtype)

    def __call__(self, pixels: jax.Array):
        """Runs every layer once, on zeros for a region, so that `init` works.

        `[B, H, W, 3]` -> class logits `[B, 1, K + 1]`, deltas `[B, 1, K, 4]`.
        """
        features = self.features(pixels)
        cells = sum(side**2 for side in self.config.bins)
        crops = jnp.zeros((len(pixels), 1, cells, features.shape[-1]), features.dtype)
        return roi_heads.box_head(self, crops)

    def features(self, pixels: jax.Array, sizes: jax.Array | None = None) -> jax.Array:
        """`[B, H, W, 3]` -> `[B, H / stride, W / stride, C]`."""
        return of_level(self.backbone(pixels, sizes), self.config.level)


def loss(network, batch: Batch, key, *, config: SPPNetConfig, axis_name=None):
    """Computes softmax and box loss of sampled RoIs; convolutions get no gradient.

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
    crops = pool_at_best_scale(network, pixels, sizes, rois.boxes, config)
    crops = jax.lax.stop_gradient(crops)
    class_logits, box_deltas = roi_heads.box_head(network, crops, dropout_keys)
    losses = roi_heads.losses(
        class_logits, box_deltas, rois, config.roi_heads, axis_name
    )
    return sum(losses.values()), losses


def predict(network, batch: Batch, *, config: SPPNetConfig) -> Detections:
    """Classifies the regions that came with the batch and moves their boxes.

    Raises:
      ValueError: if the batch has no regions.
    """
    pixels, sizes = preprocess(batch, config.preprocessing, config.mask_padding)
    proposals = roi_heads.proposals_of(batch)
    crops = pool_at_best_scale(network, pixels, sizes, proposals.boxes, config)
    class_logits, box_deltas = roi_heads.box_head(network, crops)
    return roi_heads.postprocess(
        class_logits, box_deltas, proposals, batch.sizes, config.roi_heads
    )


def sppnet(config: SPPNetConfig, backbone: nn.Module, box_head: nn.Module) -> Detector:
    """Returns SPP-net from the two halves of a classification network.

    Its loss gives the backbone no gradient, but weight decay would still change it:
    put `"backbone/.*"` into `TrainingConfig.frozen`.

    Args:
      config: see `SPPNetConfig`.
      backbone: `(pixels, sizes) -> {level: features}`, trained before, with a `dtype`.
      box_head: `(cells [R, 50, C], keys) -> [R, D]`: `FCHead`.
    """
    return from_network(
        SPPNetNetwork(config, backbone, box_head),
        loss=partial(loss, config=config),
        predict=partial(predict, config=config),
        num_classes=config.num_classes,
        builder=partial(sppnet, config, backbone, box_head),
    )


def pool_at_best_scale(
    network,
    pixels: jax.Array,
    sizes: jax.Array | None,
    boxes: jax.Array,
    config: SPPNetConfig,
) -> jax.Array:
    """Pools every region from features of the image at the scale that suits it (4.1).

    Args:
      network: a bound `SPPNetNetwork`.
      pixels: `[B, H, W, 3]`, normalized.
      sizes: `[B, 2]` true (height, width); None: all of the canvas is image.
      boxes: `[B, R, 4]` canvas pixels.
      config: of the scales and the grids.

    Returns:
      `[B, R, cells, C]`.
    """
    squares = jnp.array(config.scales) ** 2
    areas = box_ops.area(boxes)[..., None] * squares[None, None]
    best = jnp.argmin(jnp.abs(areas - config.region_size**2), axis=-1)  # [B, R]
    chosen = None
    for index, scale in enumerate(config.scales):
        pooled = _pool_at(network, pixels, sizes, boxes, scale, config)
        here = (best == index)[..., None, None]
        chosen = pooled if chosen is None else jnp.where(here, pooled, chosen)
    return chosen


def _pool_at(network, pixels, sizes, boxes, scale: float, config: SPPNetConfig):
    """Pools features of the images at one scale to `[B, R, cells, C]`."""
    if scale != 1:
        pixels = jax.vmap(partial(images.rescale, scale=scale))(pixels)
        if sizes is not None:
            sizes = jnp.ceil(sizes * scale).astype(sizes.dtype)
    stride = 2**config.level
    features = zero_outside(network.features(pixels, sizes), sizes, stride)
    pool = partial(roi_pool.spatial_pyramid_pool, stride=stride, bins=config.bins)
    return jax.vmap(pool)(features, boxes * scale)
