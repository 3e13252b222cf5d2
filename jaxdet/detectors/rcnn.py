"""R-CNN (Girshick et al. 2014), the "slow" one: a whole network for every region.

Each region proposal is cut out of the image, warped to a square and sent through the
network by itself: 2,000 forward passes an image, which share nothing. As is usual since
Fast R-CNN, a softmax classifies and the network itself moves the boxes, where the paper
trains support vector machines and ridge regressions on stored features.
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
from jaxdet.ops import images, roi_pool
from jaxdet.structs import Batch, Detections


@dataclasses.dataclass(frozen=True)
class RCNNConfig:
    """Numbers of R-CNN; defaults are the paper's with AlexNet.

    Raises:
      ValueError: for a number out of its range, naming the field and what is allowed.
    """

    num_classes: int = 20
    """K; labels run from 0 to K - 1."""
    region: RoIHeadsConfig = RoIHeadsConfig(
        per_image=64, box_beta=1.0, nms_threshold=0.3
    )
    """How regions are learned from (2.3) and answered for (2.2)."""
    size: int = 227
    """Height and width of a warped region (2.1)."""
    context: int = 16
    """Pixels at each of its sides that show the surroundings (appendix A)."""
    level: int = 4
    """Of the backbone's features."""
    pool_size: int = 6
    """Cells a side to which they are pooled for the box head: 6 for AlexNet, 7 for
    VGG-16, 14 for ResNet."""
    chunk: int = 128
    """Regions in the network at a time, so that 2,000 fit into memory."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of red, green and blue, on a scale from 0 to 1; ImageNet's."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Of the same."""

    def __post_init__(self):
        for name in ("num_classes", "size", "pool_size", "chunk"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "level", self.level >= 0, "0 or more")
        right = 0 <= self.context < self.size / 2
        require(self, "context", right, f"at least 0 and below {self.size / 2}")
        require_colours(self)


PAPER = RCNNConfig()


class RCNNNetwork(nn.Module):
    """A classification network for warped regions (Figure 1).

    Attributes:
      config: see `RCNNConfig`.
      backbone: hands over the features of level `config.level`; see `rcnn`.
      box_head: what each region passes before classes and boxes; see `rcnn`.
    """

    config: RCNNConfig
    backbone: nn.Module
    box_head: nn.Module

    def setup(self):
        """Makes the two siblings that follow the box head."""
        self.box_predictor = BoxPredictor(
            self.config.num_classes,
            class_agnostic=self.config.region.class_agnostic,
            dtype=self.backbone.dtype,
        )

    def __call__(self, crops: jax.Array, keys: jax.Array | None = None):
        """`[R, S, S, 3]` -> class logits `[R, K + 1]`, deltas `[R, K, 4]`.

        Args:
          crops: normalised pixels.
          keys: `[R]`, for dropout; None: there is none.
        """
        features = of_level(self.backbone(crops), self.config.level)
        cells = roi_pool.adaptive_max_pool(features, self.config.pool_size)
        return self.box_predictor(self.box_head(cells, keys))


def loss(network, batch: Batch, key, *, config: RCNNConfig, axis_name=None):
    """Softmax and box loss on sampled regions.

    Args:
      network: a bound `RCNNNetwork`.
      batch: with truth and regions.
      key: of the step; what an image draws hangs on it and on the image's id.
      config: see `RCNNConfig`.
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


def predict(network, batch: Batch, *, config: RCNNConfig) -> Detections:
    """Classifies, moves and thins the regions that came with the batch.

    Args:
      network: a bound `RCNNNetwork`.
      batch: with regions; truth is not looked at.
      config: see `RCNNConfig`.

    Returns:
      `Detections` `[B, D]`, best first, D being `config.region.detections`.

    Raises:
      ValueError: if the batch has no regions.
    """
    look = partial(_look, network, batch, config)
    return roi_heads.answer(
        look, roi_heads.given(batch), batch.sizes, config=config.region
    )


def rcnn(config: RCNNConfig, backbone: nn.Module, box_head: nn.Module) -> Detector:
    """R-CNN from the two halves of a classification network.

    Args:
      config: see `RCNNConfig`.
      backbone: `pixels -> {level: features}`, with a `dtype`.
      box_head: `(cells [R, S, S, C], keys) -> [R, D]`, S being `pool_size`: `FCHead`
        or `ResNetHead`.
    """
    return from_network(
        RCNNNetwork(config, backbone, box_head),
        loss=partial(loss, config=config),
        predict=partial(predict, config=config),
        num_classes=config.num_classes,
        builder=partial(rcnn, config, backbone, box_head),
    )


def _look(network, batch: Batch, config: RCNNConfig, boxes, keys):
    """Warps every region and sends it through the network.

    `[B, R, 4]` -> class logits `[B, R, K + 1]`, deltas `[B, R, K, 4]`. All at once if
    they are few, as in training: on CPU a gradient within a loop takes far longer.
    """
    batch_size, count, _ = boxes.shape
    pixels = images.normalize(
        batch.images, batch.sizes, mean=config.mean, std=config.std
    )
    warp = partial(
        images.crop_and_warp, output_size=config.size, context=config.context
    )
    if batch_size * count <= config.chunk:
        crops = jax.vmap(warp)(pixels, boxes)
        if keys is not None:
            keys = _keys_of_regions(keys, count).reshape(-1)
        answers = network(crops.reshape(-1, *crops.shape[2:]), keys)
        return jax.tree.map(
            lambda x: x.reshape(batch_size, count, *x.shape[1:]), answers
        )
    chunk = min(config.chunk, count)
    chunks = -(-count // chunk)
    boxes = jnp.pad(boxes, ((0, 0), (0, chunks * chunk - count), (0, 0)))
    # Within a loop of JAX's, a module is a function of its variables.
    module, variables = network.unbind()

    def look_at(chunk_of_image):
        image, boxes, keys = chunk_of_image
        return module.apply(variables, warp(pixels[image], boxes), keys)

    if keys is not None:
        keys = _keys_of_regions(keys, chunks * chunk).reshape(-1, chunk)
    image = jnp.arange(batch_size * chunks) // chunks
    answers = jax.lax.map(look_at, (image, boxes.reshape(-1, chunk, 4), keys))
    return jax.tree.map(
        lambda x: x.reshape(batch_size, chunks * chunk, *x.shape[2:])[:, :count],
        answers,
    )


def _keys_of_regions(keys: jax.Array, count: int) -> jax.Array:
    """`[B]` -> `[B, count]`: dropout must not depend on how regions are chunked."""
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    return fold(keys, jnp.arange(count))
