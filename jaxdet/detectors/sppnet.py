"""SPP-net (He et al. 2014): the features of all regions from one look at the image.

Like R-CNN it classifies given regions, but their features are pooled from the image's,
into a pyramid of grids and so to one length. The convolutions stay as they are, from a
network trained before: only the fully connected layers learn.
"""

import dataclasses
from functools import partial

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
from jaxdet.nn.layers import zero_outside
from jaxdet.ops import boxes as box_ops
from jaxdet.ops import images, roi_pool
from jaxdet.structs import Batch, Detections


@dataclasses.dataclass(frozen=True)
class SPPNetConfig:
    """Numbers of SPP-net.

    Raises:
      ValueError: for a number out of its range, naming the field and what is allowed.
    """

    num_classes: int = 20
    """K; labels run from 0 to K - 1."""
    region: RoIHeadsConfig = roi_heads.FAST_RCNN
    """How regions are learned from and answered for (4.1)."""
    level: int = 4
    """Of the backbone's features; their stride is `2**level`."""
    bins: tuple[int, ...] = (6, 3, 2, 1)
    """Cells a side of the grids of the pyramid (4.1)."""
    scales: tuple[float, ...] = (1.0,)
    """Of the canvas, at each of which the network looks once (4.1)."""
    region_side: float = 224.0
    """Each region is read at the scale where its area is nearest to this, squared, in
    pixels (4.1)."""
    mask_padding: bool = True
    """Treat an image as if the canvas ended where it ends."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of red, green and blue, on a scale from 0 to 1; ImageNet's."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Of the same."""

    def __post_init__(self):
        require(self, "num_classes", self.num_classes >= 1, "at least 1")
        require(self, "level", self.level >= 0, "0 or more")
        for name, least in (("bins", 1), ("scales", 1e-3)):
            right = len(getattr(self, name)) and min(getattr(self, name)) >= least
            require(self, name, right, f"one or more numbers, at least {least}")
        require(self, "region_side", self.region_side > 0, "above 0")
        require_colours(self)


# Shorter sides of 480 to 1200 (4.1), for canvases whose shorter side is 688.
PAPER = SPPNetConfig(scales=tuple(s / 688 for s in (480, 576, 688, 874, 1200)))


class SPPNetNetwork(nn.Module):
    """Convolutions for the image, fully connected layers for each region (Figure 5).

    Attributes:
      config: see `SPPNetConfig`.
      backbone: hands over the features of level `config.level`; see `sppnet`.
      box_head: what each region passes before classes and boxes; see `sppnet`.
    """

    config: SPPNetConfig
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
        cells = sum(side**2 for side in self.config.bins)
        crops = jnp.zeros((len(pixels), 1, cells, features.shape[-1]), features.dtype)
        return roi_heads.classify(self, crops)

    def features(self, pixels: jax.Array, sizes: jax.Array | None = None) -> jax.Array:
        """`[B, H, W, 3]` -> `[B, H / stride, W / stride, C]`."""
        return of_level(self.backbone(pixels, sizes), self.config.level)


def loss(network, batch: Batch, key, *, config: SPPNetConfig, axis_name=None):
    """Softmax and box loss on sampled regions; the convolutions get no gradient.

    Args:
      network: a bound `SPPNetNetwork`.
      batch: with truth and regions.
      key: of the step; what an image draws hangs on it and on the image's id.
      config: see `SPPNetConfig`.
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


def predict(network, batch: Batch, *, config: SPPNetConfig) -> Detections:
    """Classifies, moves and thins the regions that came with the batch.

    Args:
      network: a bound `SPPNetNetwork`.
      batch: with regions; truth is not looked at.
      config: see `SPPNetConfig`.

    Returns:
      `Detections` `[B, D]`, best first, D being `config.region.detections`.

    Raises:
      ValueError: if the batch has no regions.
    """
    look = partial(_look, network, batch, config)
    return roi_heads.answer(
        look, roi_heads.given(batch), batch.sizes, config=config.region
    )


def sppnet(config: SPPNetConfig, backbone: nn.Module, box_head: nn.Module) -> Detector:
    """SPP-net from the two halves of a classification network.

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


def _look(network, batch: Batch, config: SPPNetConfig, boxes, keys):
    """Class logits and deltas of every region, from features that never learn."""
    pooled = jax.lax.stop_gradient(_pool(network, batch, boxes, config))
    return roi_heads.classify(network, pooled, keys)


def _pool(network, batch: Batch, boxes, config: SPPNetConfig) -> jax.Array:
    """The features of every region, `[B, R, 4]` -> `[B, R, cells, C]`."""
    pixels = images.normalize(
        batch.images, batch.sizes, mean=config.mean, std=config.std
    )
    squares = jnp.array(config.scales) ** 2
    areas = box_ops.area(boxes)[..., None] * squares[None, None]
    best = jnp.argmin(jnp.abs(areas - config.region_side**2), axis=-1)  # [B, R]
    answer = None
    for index, scale in enumerate(config.scales):
        pooled = _pool_at(network, pixels, batch.sizes, boxes, scale, config)
        here = (best == index)[..., None, None]
        answer = pooled if answer is None else jnp.where(here, pooled, answer)
    return answer


def _pool_at(network, pixels, sizes, boxes, scale: float, config: SPPNetConfig):
    """`[B, R, cells, C]` from features of the images at one scale."""
    if scale != 1:
        pixels = jax.vmap(partial(images.rescale, scale=scale))(pixels)
        sizes = jnp.ceil(sizes * scale).astype(sizes.dtype)
    sizes = sizes if config.mask_padding else None
    stride = 2**config.level
    features = zero_outside(network.features(pixels, sizes), sizes, stride)
    pool = partial(roi_pool.spatial_pyramid_pool, stride=stride, bins=config.bins)
    return jax.vmap(pool)(features, boxes * scale)
