"""DETR: end-to-end object detection with transformers (Carion et al. 2020).

No anchors and no NMS: a transformer's decoder turns a hundred learned queries into a
hundred boxes at once, each an object or "no object". In training the Hungarian
algorithm pairs boxes with objects, so that each object is found by one query only.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.config import (
    Count,
    Fraction,
    PositiveDepth,
    Preprocessing,
    checked_dataclass,
)
from jaxdet.detectors import set_prediction
from jaxdet.detectors.detector import Detector, from_network, preprocess
from jaxdet.detectors.set_prediction import SetLossConfig, SetPostprocessing
from jaxdet.nn import transformer
from jaxdet.nn.convolution import Conv
from jaxdet.nn.layers import inside_mask
from jaxdet.ops import sampling
from jaxdet.structs import Batch, Detections


@checked_dataclass
class DETRConfig:
    """Configures DETR; defaults are the paper's, sections in brackets."""

    num_classes: Count = 80
    """K; labels run from 0 to K - 1, and K is "no object"."""
    num_queries: Count = 100
    """Q, many more than an image has objects (3.1)."""
    channels: Count = 256
    """Of each cell and each query in the transformer (A.4)."""
    num_heads: Count = 8
    """Of each attention, which share the channels (A.4)."""
    hidden: Count = 2048
    """Features inside the feed-forward networks."""
    encoder_depth: PositiveDepth = 6
    """Layers of the encoder (4)."""
    decoder_depth: PositiveDepth = 6
    """Layers of the decoder (4)."""
    dropout: Fraction = 0.1
    """Share dropped in training of what each sublayer adds to a cell or a query, and of
    the features inside feed-forward networks (4); attention weights are kept whole."""
    set_loss: SetLossConfig = SetLossConfig()
    """Costs of the matching, and weights of the losses (3.1)."""
    preprocessing: Preprocessing = Preprocessing()
    """ImageNet's mean and standard deviation."""
    postprocessing: SetPostprocessing = SetPostprocessing()
    """Each query gives its best class (A.4)."""
    mask_padding: bool = True
    """Whether the backbone's features do not depend on the padding around an image;
    False for the authors' weights, which were trained without. Attention never sees
    the padding."""

    def relations(self) -> Iterator[tuple[str, bool, str]]:
        """Checks that the channels can be shared."""
        multiple = self.channels % self.num_heads == 0 and self.channels % 4 == 0
        yield (
            "channels",
            multiple,
            f"a multiple of 4 and of num_heads, {self.num_heads}",
        )
        fits = self.set_loss.class_loss == "cross_entropy"
        yield "set_loss", fits, 'of class_loss "cross_entropy"'


TRANSFORMERS = DETRConfig(mask_padding=False)
"""What facebook/detr-resnet-50 was trained by, but for its 91 classes, ids of COCO."""


class Memory(NamedTuple):
    """What the encoder makes of an image, for the decoder; T cells."""

    features: jax.Array  # [B, T, C]
    positions: jax.Array  # [B, T, C]
    mask: jax.Array  # [B, 1, 1, T] bool: cells that touch the image


class DETRNetwork(nn.Module):
    """Backbone, transformer, and two heads that all decoder layers share (Figure 2)."""

    config: DETRConfig  # see `DETRConfig`
    backbone: nn.Module
    """`(pixels, sizes) -> {level: features}`, with a `dtype`; of its stages the
    coarsest is used."""

    def setup(self):
        """Makes the layers that follow the backbone."""
        config, dtype = self.config, self.backbone.dtype
        layer = {
            "heads": config.num_heads,
            "hidden": config.hidden,
            "dropout": config.dropout,
            "dtype": dtype,
        }
        dense = {"kernel_init": transformer.TORCH_UNIFORM, "dtype": dtype}
        self.projection = Conv(config.channels, 1, **dense)
        self.encoder = [
            transformer.EncoderLayer(**layer) for _ in range(config.encoder_depth)
        ]
        shape = config.num_queries, config.channels
        normal = nn.initializers.normal(1.0)
        self.query_positions = self.param("query_positions", normal, shape)
        self.decoder = [
            transformer.DecoderLayer(**layer) for _ in range(config.decoder_depth)
        ]
        self.decoder_norm = transformer.layer_norm(dtype)
        self.class_head = nn.Dense(config.num_classes + 1, **dense)
        self.box_head = transformer.MLP(config.channels, 4, dtype=dtype)

    def __call__(
        self, pixels: jax.Array, sizes: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """`[B, H, W, 3]` -> what `heads` returns, without dropout."""
        return self.heads(self.decode(self.encode(pixels, sizes)))

    def encode(
        self,
        pixels: jax.Array,
        sizes: jax.Array | None = None,
        keys: jax.Array | None = None,
    ) -> Memory:
        """Computes the features of the backbone's cells and relates them (3.2).

        Args:
          pixels: `[B, H, W, 3]`, normalized.
          sizes: `[B, 2]` true (height, width); None: all of the canvas is image.
          keys: `[B]`, for dropout; None: no dropout.

        Returns:
          The cells' features, positions and mask.
        """
        config = self.config
        stages = self.backbone(pixels, sizes if config.mask_padding else None)
        level = max(stages)
        features = self.projection(stages[level])
        batch, height, width, channels = features.shape
        inside = jnp.ones((batch, height, width), bool)
        if sizes is not None:
            inside = inside_mask(sizes, features.shape, 2**level)[..., 0]
        positions = transformer.sine_position_embedding(inside, channels)
        x, positions = (v.reshape(batch, -1, channels) for v in (features, positions))
        mask = inside.reshape(batch, 1, 1, -1)
        keys = transformer.cell_keys(keys, height, width)
        keys = transformer.split_keys(keys, config.encoder_depth)
        for layer, layer_keys in zip(self.encoder, keys, strict=True):
            x = layer(x, positions, mask, layer_keys)
        return Memory(x, positions, mask)

    def decode(self, memory: Memory, keys: jax.Array | None = None) -> jax.Array:
        """Turns the learned queries into features of objects (3.2).

        Args:
          memory: of the encoder.
          keys: `[B]`, for dropout; None: no dropout.

        Returns:
          `[L, B, Q, C]`, normalized, of all L layers.
        """
        config = self.config
        shape = (len(memory.features), config.num_queries, config.channels)
        query_positions = jnp.broadcast_to(self.query_positions[None], shape)
        x, outputs = jnp.zeros(shape, memory.features.dtype), []
        keys = transformer.query_keys(keys, config.num_queries)
        keys = transformer.split_keys(keys, config.decoder_depth)
        for layer, layer_keys in zip(self.decoder, keys, strict=True):
            x = layer(x, query_positions, *memory, layer_keys)
            outputs.append(self.decoder_norm(x))
        return jnp.stack(outputs)

    def heads(self, queries: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`[L, B, Q, C]` -> class logits `[L, B, Q, K + 1]`, boxes `[L, B, Q, 4]`.

        Both are float32. "No object" is the last class; boxes are (center x, center y,
        width, height) in fractions of the image.
        """
        logits, boxes = self.class_head(queries), self.box_head(queries)
        return logits.astype(jnp.float32), nn.sigmoid(boxes.astype(jnp.float32))


def loss(network, batch: Batch, key, *, config: DETRConfig, axis_name=None):
    """Computes the set losses of all decoder layers (3.1).

    Returns:
      The sum, and `{"class_loss", "l1_loss", "giou_loss", "auxiliary_loss"}`; the first
      three of the last layer, not weighted, the fourth of the others.
    """
    encoder_keys, decoder_keys = sampling.image_keys(key, batch.image_ids, 2)
    pixels, sizes = preprocess(batch, config.preprocessing)
    memory = network.encode(pixels, sizes, encoder_keys)
    queries = network.decode(memory, decoder_keys)  # [L, B, Q, C]
    logits, boxes = network.heads(queries)  # [L, B, Q, K + 1], [L, B, Q, 4]
    return set_prediction.losses(
        logits, boxes, batch.truth, batch.sizes, config.set_loss, axis_name=axis_name
    )


def predict(network, batch: Batch, *, config: DETRConfig) -> Detections:
    """Returns the queries that score best, each with its best class; without NMS."""
    pixels, sizes = preprocess(batch, config.preprocessing)
    logits, boxes = network(pixels, sizes)
    return set_prediction.postprocess(
        logits[-1],
        boxes[-1],
        batch.sizes,
        config.postprocessing,
        class_loss=config.set_loss.class_loss,
    )


def detr(config: DETRConfig, backbone: nn.Module) -> Detector:
    """Returns DETR on a backbone `(pixels, sizes) -> {level: features}`."""
    return from_network(
        DETRNetwork(config, backbone),
        loss=partial(loss, config=config),
        predict=partial(predict, config=config),
        num_classes=config.num_classes,
        builder=partial(detr, config, backbone),
    )
