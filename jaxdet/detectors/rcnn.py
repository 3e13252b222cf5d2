"""R-CNN (Girshick et al. 2014), the "slow" one: a whole network for every region.

Each region proposal is cut out of the image, warped to a square and sent through the
network by itself: 2,000 forward passes an image, which share nothing. As is usual since
Fast R-CNN, a softmax classifies and the network itself moves the boxes, where the paper
trains support vector machines and ridge regressions on stored features.
"""

from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.config import (
    Count,
    Level,
    Postprocessing,
    Preprocessing,
    Size,
    checked_dataclass,
)
from jaxdet.detectors import roi_heads
from jaxdet.detectors.detector import Detector, from_network, preprocess
from jaxdet.detectors.roi_heads import RoIHeadsConfig
from jaxdet.nn.fpn import of_level
from jaxdet.ops import images, roi_pool, sampling
from jaxdet.structs import Batch, Detections


@checked_dataclass
class RCNNConfig:
    """Configures R-CNN; defaults are the paper's with AlexNet."""

    num_classes: Count = 20
    """K; labels run from 0 to K - 1."""
    crop_size: Count = 227
    """Height and width of a warped region (2.1)."""
    context: Size = 16
    """Pixels at each of its sides that show the surroundings (appendix A)."""
    level: Level = 4
    """Of the backbone's features."""
    pool_size: Count = 6
    """Cells a side to which they are pooled for the box head: 6 for AlexNet, 7 for
    VGG-16, 14 for ResNet."""
    chunk_size: Count = 128
    """Regions in the network at a time, so that 2,000 fit into memory."""
    roi_heads: RoIHeadsConfig = RoIHeadsConfig(
        batch_size_per_image=64,
        box_beta=1.0,
        postprocessing=Postprocessing(pre_nms_topk=2000, nms_threshold=0.3),
    )
    """Of sampling, losses (2.3) and postprocessing (2.2)."""
    preprocessing: Preprocessing = Preprocessing()
    """Normalization of the pixels."""

    def relations(self) -> Iterator[tuple[str, bool, str]]:
        """Checks that the context leaves room for the region."""
        fits = self.context < self.crop_size / 2
        yield "context", fits, f"below half the crop_size, {self.crop_size}"


PAPER = RCNNConfig()


class RCNNNetwork(nn.Module):
    """A classification network for warped regions (Figure 1)."""

    config: RCNNConfig  # see `RCNNConfig`
    backbone: nn.Module  # returns the features of level `config.level`; see `rcnn`
    box_head: nn.Module  # what each region passes before classes and boxes; see `rcnn`

    def setup(self):
        """Makes the two siblings that follow the box head."""
        self.box_predictor = roi_heads.predictor(self.config, self.backbone.dtype)

    def __call__(self, crops: jax.Array, keys: jax.Array | None = None):
        """`[R, S, S, 3]` -> class logits `[R, K + 1]`, deltas `[R, K, 4]`.

        Args:
          crops: normalized pixels.
          keys: `[R]`, for dropout; None: no dropout.
        """
        features = of_level(self.backbone(crops), self.config.level)
        cells = roi_pool.adaptive_max_pool(features, self.config.pool_size)
        return self.box_predictor(self.box_head(cells, keys))


def loss(network, batch: Batch, key, *, config: RCNNConfig, axis_name=None):
    """Computes softmax and box loss of sampled RoIs.

    Returns:
      The sum, and `{"class_loss", "box_loss"}`.

    Raises:
      ValueError: if the batch has no regions.
    """
    roi_keys, dropout_keys = sampling.image_keys(key, batch.image_ids, 2)
    pixels, _ = preprocess(batch, config.preprocessing)
    proposals = roi_heads.proposals_of(batch)
    rois = roi_heads.sample_rois(
        roi_keys, proposals, batch.truth, config.roi_heads, config.num_classes
    )
    class_logits, box_deltas = warp_and_classify(
        network, pixels, rois.boxes, config, dropout_keys
    )
    losses = roi_heads.losses(
        class_logits, box_deltas, rois, config.roi_heads, axis_name
    )
    return sum(losses.values()), losses


def predict(network, batch: Batch, *, config: RCNNConfig) -> Detections:
    """Classifies the regions that came with the batch and moves their boxes.

    Raises:
      ValueError: if the batch has no regions.
    """
    pixels, _ = preprocess(batch, config.preprocessing)
    proposals = roi_heads.proposals_of(batch)
    class_logits, box_deltas = warp_and_classify(
        network, pixels, proposals.boxes, config
    )
    return roi_heads.postprocess(
        class_logits, box_deltas, proposals, batch.sizes, config.roi_heads
    )


def rcnn(config: RCNNConfig, backbone: nn.Module, box_head: nn.Module) -> Detector:
    """Returns R-CNN from the two halves of a classification network.

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


def warp_and_classify(
    network,
    pixels: jax.Array,
    boxes: jax.Array,
    config: RCNNConfig,
    keys: jax.Array | None = None,
):
    """Warps every region to a square and sends it through the network.

    All at once if they are few, as in training; else chunk by chunk, in a loop that
    keeps the crops of one chunk.

    Args:
      network: a bound `RCNNNetwork`.
      pixels: `[B, H, W, 3]`, normalized.
      boxes: `[B, R, 4]` canvas pixels.
      config: of the crops and the chunks.
      keys: `[B]`, for dropout; None: no dropout.

    Returns:
      Class logits `[B, R, K + 1]`, deltas `[B, R, K, 4]`.
    """
    batch, count, _ = boxes.shape
    warp = partial(
        images.crop_and_warp, output_size=config.crop_size, context=config.context
    )
    if batch * count <= config.chunk_size:
        crops = jax.vmap(warp)(pixels, boxes)
        if keys is not None:
            keys = _keys_of_regions(keys, count).reshape(-1)
        outputs = network(crops.reshape(-1, *crops.shape[2:]), keys)
        return roi_heads.unflatten(outputs, (batch, count))
    size = min(config.chunk_size, count)
    chunks = -(-count // size)  # of each image
    boxes = jnp.pad(boxes, ((0, 0), (0, chunks * size - count), (0, 0)))
    if keys is not None:
        keys = _keys_of_regions(keys, chunks * size).reshape(-1, size)
    # Within a loop of JAX's, a module is a function of its variables.
    module, variables = network.unbind()

    def classify_chunk(chunk):
        image, boxes, keys = chunk
        return module.apply(variables, warp(pixels[image], boxes), keys)

    image = jnp.arange(batch * chunks) // chunks
    outputs = jax.lax.map(classify_chunk, (image, boxes.reshape(-1, size, 4), keys))
    outputs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)
    outputs = roi_heads.unflatten(outputs, (batch, chunks * size))
    return jax.tree.map(lambda x: x[:, :count], outputs)


def _keys_of_regions(keys: jax.Array, count: int) -> jax.Array:
    """Splits `[B]` to `[B, count]`: dropout must not depend on chunks of regions."""
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    return fold(keys, jnp.arange(count))
