"""Deformable DETR: transformers that attend to a few points (Zhu et al. 2021).

DETR's attention compares each cell with all others, which takes long to train and rules
out fine maps. Here each cell, and each query, reads a few points of all levels, at
offsets that it predicts. The two-stage variant, whose queries come from the encoder
(4.2), is not built.
"""

import math
from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.config import (
    Count,
    Fraction,
    PositiveDepth,
    Preprocessing,
    PyramidLevels,
    checked_dataclass,
)
from jaxdet.detectors import set_prediction
from jaxdet.detectors.detector import Detector, from_network, preprocess
from jaxdet.detectors.set_prediction import SetLossConfig, SetPostprocessing
from jaxdet.nn import transformer
from jaxdet.nn.deformable_transformer import (
    DeformableDecoderLayer,
    DeformableEncoderLayer,
    LevelProjections,
    Maps,
)
from jaxdet.nn.layers import inside_mask
from jaxdet.ops import sampling
from jaxdet.structs import Batch, Detections

_PRIOR = 0.01  # of each class, before anything is learned
_SIDE = -2.0  # logit of a box's sides in fractions of the image, at first
_LEAST_FRACTION = 1e-5  # of an image that logits are taken of


@checked_dataclass
class DeformableDETRConfig:
    """Configures Deformable DETR; defaults are the paper's, sections in brackets."""

    num_classes: Count = 80
    """K; labels run from 0 to K - 1."""
    levels: PyramidLevels = (3, 4, 5, 6)
    """That are attended to; those that the backbone lacks are made by convolutions of
    stride 2 (4.1, A.2)."""
    num_queries: Count = 300
    """Q, many more than an image has objects (5)."""
    channels: Count = 256
    """Of each cell and each query in the transformer (A.2)."""
    num_heads: Count = 8
    """M, of each attention, which share the channels (5)."""
    num_points: Count = 4
    """K of the paper: points of each head on each level (5)."""
    hidden: Count = 1024
    """Features inside the feed-forward networks."""
    encoder_depth: PositiveDepth = 6
    """Layers of the encoder."""
    decoder_depth: PositiveDepth = 6
    """Layers of the decoder."""
    dropout: Fraction = 0.1
    """Share dropped in training of what each sublayer adds to a cell or a query, and of
    the features inside feed-forward networks; attention weights are kept whole."""
    refine_boxes: bool = False
    """Whether each decoder layer has heads of its own and corrects the boxes of the one
    before ("iterative bounding box refinement", 4.2)."""
    set_loss: SetLossConfig = SetLossConfig(
        class_loss="focal", class_cost=2.0, class_weight=2.0
    )
    """Costs of the matching, and weights of the losses (5)."""
    preprocessing: Preprocessing = Preprocessing()
    """ImageNet's mean and standard deviation."""
    postprocessing: SetPostprocessing = SetPostprocessing()
    """The best pairs of a query and a class."""
    mask_padding: bool = True
    """Whether the backbone's features do not depend on the padding around an image;
    False for the authors' weights, which were trained without. Attention never sees
    the padding."""

    def relations(self) -> Iterator[tuple[str, bool, str]]:
        """Checks that the channels can be shared, and that the loss has sigmoids."""
        multiple = self.channels % self.num_heads == 0 and self.channels % 4 == 0
        allowed = f"a multiple of 4 and of num_heads, {self.num_heads}"
        yield "channels", multiple, allowed
        yield "set_loss", self.set_loss.class_loss == "focal", 'of class_loss "focal"'


TRANSFORMERS = DeformableDETRConfig(mask_padding=False)
"""What SenseTime/deformable-detr was trained by, but for its 91 classes, ids of COCO;
SenseTime/deformable-detr-with-box-refine has `refine_boxes`, too."""


class DeformableDETRNetwork(nn.Module):
    """Backbone, deformable transformer, and heads for classes and boxes (Figure 1)."""

    config: DeformableDETRConfig  # see `DeformableDETRConfig`
    backbone: nn.Module
    """`(pixels, sizes) -> {level: features}`, with a `dtype`."""

    def setup(self):
        """Makes the layers that follow the backbone."""
        config, dtype = self.config, self.backbone.dtype
        layer = {
            "heads": config.num_heads,
            "points": config.num_points,
            "hidden": config.hidden,
            "dropout": config.dropout,
            "dtype": dtype,
        }
        normal = nn.initializers.normal(1.0)
        self.projections = LevelProjections(config.levels, config.channels, dtype)
        shape = len(config.levels), config.channels
        self.level_positions = self.param("level_positions", normal, shape)
        self.encoder = [
            DeformableEncoderLayer(**layer) for _ in range(config.encoder_depth)
        ]
        shape = config.num_queries, config.channels
        self.queries = self.param("queries", normal, shape)
        self.query_positions = self.param("query_positions", normal, shape)
        self.reference_points = nn.Dense(2, kernel_init=transformer.XAVIER)
        self.decoder = [
            DeformableDecoderLayer(**layer) for _ in range(config.decoder_depth)
        ]
        heads = range(config.decoder_depth if config.refine_boxes else 1)
        self.class_heads = [_class_head(config.num_classes, dtype) for _ in heads]
        sides = [0.0 if i else _SIDE for i in heads]
        self.box_heads = [_box_head(config.channels, dtype, side) for side in sides]

    def __call__(
        self, pixels: jax.Array, sizes: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """`[B, H, W, 3]` -> what `decode` returns, without dropout."""
        return self.decode(self.encode(pixels, sizes))

    def encode(
        self,
        pixels: jax.Array,
        sizes: jax.Array | None = None,
        keys: jax.Array | None = None,
    ) -> Maps:
        """Computes the features of the backbone's cells and relates them (4.1).

        Args:
          pixels: `[B, H, W, 3]`, normalized.
          sizes: `[B, 2]` true (height, width); None: all of the canvas is image.
          keys: `[B]`, for dropout; None: no dropout.

        Returns:
          The levels' maps, cells of padding included.
        """
        config = self.config
        if sizes is None:
            sizes = jnp.full((len(pixels), 2), jnp.array(pixels.shape[1:3])[None])
        seen = sizes if config.mask_padding else None
        features = self.projections(self.backbone(pixels, seen), seen)
        keys = transformer.query_keys(keys, len(features))
        flat, positions, extents, cell_keys = [], [], [], []
        for i, (level, x) in enumerate(zip(config.levels, features, strict=True)):
            batch, height, width, channels = x.shape
            inside = inside_mask(sizes, x.shape, 2**level)[..., 0]
            embedding = transformer.sine_position_embedding(
                inside, channels, offset=-0.5
            )
            embedding = embedding + self.level_positions[i][None, None, None]
            flat.append(x.reshape(batch, -1, channels))
            positions.append(embedding.reshape(batch, -1, channels))
            limits = jnp.array([[height, width]])
            extents.append(jnp.clip(-(-sizes // 2**level), 1, limits))
            if keys is not None:
                cell_keys.append(transformer.cell_keys(keys[:, i], height, width))
        shapes = tuple(x.shape[1:3] for x in features)
        maps = Maps(jnp.concatenate(flat, axis=1), jnp.stack(extents, axis=1), shapes)
        keys = None if keys is None else jnp.concatenate(cell_keys, axis=1)
        keys = transformer.split_keys(keys, config.encoder_depth)
        positions = jnp.concatenate(positions, axis=1).astype(self.backbone.dtype)
        for layer, layer_keys in zip(self.encoder, keys, strict=True):
            maps = layer(maps, positions, layer_keys)
        return maps

    def decode(
        self, maps: Maps, keys: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Turns the learned queries into objects (4.1, A.3).

        Args:
          maps: of the encoder.
          keys: `[B]`, for dropout; None: no dropout.

        Returns:
          Class logits `[L, B, Q, K]`, boxes `[L, B, Q, 4]` of all L layers, float32.
          Boxes are (center x, center y, width, height) in fractions of the image.
        """
        config = self.config
        shape = len(maps.features), config.num_queries, config.channels
        x, positions = (
            jnp.broadcast_to(v[None], shape).astype(maps.features.dtype)
            for v in (self.queries, self.query_positions)
        )
        references = nn.sigmoid(self.reference_points(self.query_positions))
        references = jnp.broadcast_to(references[None], (*shape[:2], 2))
        keys = transformer.query_keys(keys, config.num_queries)
        keys = transformer.split_keys(keys, config.decoder_depth)
        logits, boxes = [], []
        for i, (layer, layer_keys) in enumerate(zip(self.decoder, keys, strict=True)):
            x = layer(x, positions, references, maps, layer_keys)
            head = i if config.refine_boxes else 0
            logits.append(self.class_heads[head](x).astype(jnp.float32))
            box = self.box_heads[head](x).astype(jnp.float32)
            unknown = 4 - references.shape[-1]  # none, or the sides around the center
            box += jnp.pad(_logit(references), ((0, 0), (0, 0), (0, unknown)))
            boxes.append(nn.sigmoid(box))
            if config.refine_boxes:
                references = jax.lax.stop_gradient(boxes[-1])
        return jnp.stack(logits), jnp.stack(boxes)


def loss(network, batch: Batch, key, *, config: DeformableDETRConfig, axis_name=None):
    """Computes the set losses of all decoder layers.

    Returns:
      The sum, and `{"class_loss", "l1_loss", "giou_loss", "auxiliary_loss"}`; the first
      three of the last layer, not weighted, the fourth of the others.
    """
    encoder_keys, decoder_keys = sampling.image_keys(key, batch.image_ids, 2)
    pixels, sizes = preprocess(batch, config.preprocessing)
    maps = network.encode(pixels, sizes, encoder_keys)
    logits, boxes = network.decode(maps, decoder_keys)  # [L, B, Q, K], [L, B, Q, 4]
    return set_prediction.losses(
        logits, boxes, batch.truth, batch.sizes, config.set_loss, axis_name=axis_name
    )


def predict(network, batch: Batch, *, config: DeformableDETRConfig) -> Detections:
    """Returns the pairs of a query and a class that score best, without NMS."""
    pixels, sizes = preprocess(batch, config.preprocessing)
    logits, boxes = network(pixels, sizes)
    return set_prediction.postprocess(
        logits[-1],
        boxes[-1],
        batch.sizes,
        config.postprocessing,
        class_loss=config.set_loss.class_loss,
    )


def deformable_detr(config: DeformableDETRConfig, backbone: nn.Module) -> Detector:
    """Returns Deformable DETR on a backbone `(pixels, sizes) -> {level: features}`."""
    return from_network(
        DeformableDETRNetwork(config, backbone),
        loss=partial(loss, config=config),
        predict=partial(predict, config=config),
        num_classes=config.num_classes,
        builder=partial(deformable_detr, config, backbone),
    )


def _class_head(num_classes: int, dtype: jnp.dtype) -> nn.Module:
    """Returns a layer whose scores start out as `_PRIOR`."""
    bias = nn.initializers.constant(-math.log((1 - _PRIOR) / _PRIOR))
    kernel = transformer.TORCH_UNIFORM
    return nn.Dense(num_classes, kernel_init=kernel, bias_init=bias, dtype=dtype)


def _box_head(channels: int, dtype: jnp.dtype, side: float) -> nn.Module:
    """Returns layers that start out with boxes at their reference points.

    Args:
      channels: of a query.
      dtype: of the arithmetic.
      side: logit that the layers add to those of a box's sides.
    """

    def bias(key, shape, dtype=jnp.float32):
        del key, shape
        return jnp.array([0, 0, side, side], dtype)

    kernel = nn.initializers.zeros
    return transformer.MLP(channels, 4, kernel_init=kernel, bias_init=bias, dtype=dtype)


def _logit(fractions: jax.Array) -> jax.Array:
    """Returns the logits of fractions, finite at 0 and 1 too."""
    low, high = (jnp.maximum(x, _LEAST_FRACTION) for x in (fractions, 1 - fractions))
    return jnp.log(low) - jnp.log(high)
