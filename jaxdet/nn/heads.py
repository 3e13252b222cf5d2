"""Defines heads: small networks on the levels of a pyramid, or on crops of RoIs."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.nn.convolution import HE_NORMAL, Conv
from jaxdet.nn.fpn import XAVIER
from jaxdet.nn.layers import Norm, NormType, relu, zero_outside

_NORMAL = nn.initializers.normal(0.01)


class DenseHead(nn.Module):
    """3x3 convolutions with ReLUs, then one with `outputs` per cell (RetinaNet 4)."""

    outputs: int  # numbers per cell, for instance anchors times classes
    depth: int = 4  # convolutions before the last one
    norm: NormType = "none"  # of those convolutions
    bias: float = 0.0  # of the last convolution at the start of training
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32

    @nn.compact
    def __call__(
        self, pyramid: dict[int, jax.Array], sizes: jax.Array | None = None
    ) -> jax.Array:
        """`{level: [B, H, W, C]}` -> `[B, cells, outputs]` float32.

        Cells run over levels (finest first), rows, columns, as in ops/anchors.py. All
        levels have one number of channels, which the convolutions keep.
        """
        tower = _tower_layers(self, next(iter(pyramid.values())).shape[-1])
        bias_init = nn.initializers.constant(self.bias)
        last = partial(Conv, kernel_init=_NORMAL, dtype=self.dtype)
        last = last(self.outputs, bias_init=bias_init, name="output")
        outputs = []
        for level, x in sorted(pyramid.items()):
            x = zero_outside(_apply_tower(tower, x, sizes, 2**level), sizes, 2**level)
            outputs.append(last(x))
        return _concatenate(outputs, self.outputs)


class FCOSHead(nn.Module):
    """Classes, boxes and centerness of each cell (Tian et al. 2019, Figure 2).

    Two towers, shared by all levels: one for the classes, one for the boxes.
    """

    num_classes: int  # K
    depth: int = 4  # 3x3 convolutions of each tower
    norm: NormType = "group"  # of those convolutions
    centerness_on: Literal["box", "class"] = "box"
    """The tower that the centerness is predicted from; "class" in the paper's Figure 2,
    "box" among its later improvements."""
    level_scales: bool = True
    """Whether the distances of each level are multiplied by a learned number."""
    bias: float = 0.0  # of the class logits at the start of training
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32

    @nn.compact
    def __call__(
        self, pyramid: dict[int, jax.Array], sizes: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """`{level: [B, H, W, C]}` -> class logits, distances, centerness logits.

        They are `[B, A, K]`, `[B, A, 4]` (left, top, right, bottom) and `[B, A]`,
        float32; A as in `DenseHead`.
        """
        tower = partial(_Tower, self.depth, self.norm, self.dtype)
        towers = {name: tower(name=f"{name}_tower") for name in ("class", "box")}
        last = partial(Conv, kernel_init=_NORMAL, dtype=self.dtype)
        bias_init = nn.initializers.constant(self.bias)
        classes = last(self.num_classes, bias_init=bias_init, name="classes")
        ltrb, centerness = last(4, name="ltrb"), last(1, name="centerness")
        scales = jnp.ones(len(pyramid))
        if self.level_scales:
            scales = self.param("scales", nn.initializers.ones, scales.shape)
        outputs = []
        for (level, x), scale in zip(sorted(pyramid.items()), scales, strict=True):
            features = {name: towers[name](x, sizes, 2**level) for name in towers}
            distances = ltrb(features["box"]).astype(jnp.float32) * scale
            central = centerness(features[self.centerness_on])
            outputs.append((classes(features["class"]), distances, central))
        logits, distances, central = zip(*outputs, strict=True)
        return (
            _concatenate(logits, self.num_classes),
            _concatenate(distances, 4),
            _concatenate(central, 1)[..., 0],
        )


class RPNHead(nn.Module):
    """3x3 convolutions with ReLUs and two 1x1 siblings (Ren et al. 2015, 3.1)."""

    num_anchors: int  # per cell
    depth: int = 1  # 3x3 convolutions
    outputs: int = 1
    """Objectness logits per anchor: 1 for a sigmoid, 2 for the softmax over
    (background, object) of the paper."""
    channels: int | None = None
    """Of the 3x3 convolutions; None: as many as the pyramid has."""
    norm: NormType = "none"  # of the 3x3 convolutions
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32

    @nn.compact
    def __call__(
        self, pyramid: dict[int, jax.Array], sizes: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """`{level: [B, H, W, C]}` -> logits `[B, A, outputs]`, deltas `[B, A, 4]`.

        Both are float32; A runs over levels (finest first), rows, columns, shapes, as
        in ops/anchors.py.
        """
        channels = self.channels or next(iter(pyramid.values())).shape[-1]
        tower = _tower_layers(self, channels)
        sibling = partial(Conv, kernel=1, kernel_init=_NORMAL, dtype=self.dtype)
        objectness = sibling(self.num_anchors * self.outputs, name="objectness")
        deltas = sibling(self.num_anchors * 4, name="deltas")
        hidden = [
            _apply_tower(tower, x, sizes, 2**level)
            for level, x in sorted(pyramid.items())
        ]
        # Number by number, see `dense.gather_rows`.
        logits = _concatenate(map(objectness, hidden), 1)
        shifts = _concatenate(map(deltas, hidden), 1)
        batch = len(logits)
        return logits.reshape(batch, -1, self.outputs), shifts.reshape(batch, -1, 4)


class FCHead(nn.Module):
    """Fully connected layers with ReLUs on each RoI (Girshick 2015, 2.1)."""

    features: int = 1024
    """Outputs of each layer; 4096 for AlexNet and VGG, 1024 on a pyramid."""
    depth: int = 2  # layers
    dropout: float = 0.0  # share of the outputs of each layer set to zero in training
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32

    @nn.compact
    def __call__(self, crops: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """`[B * R, ..., C]` -> `[B * R, features]`.

        Args:
          crops: of the RoIs of all images, one image after the other.
          keys: `[B]`, one for the dropout on each image, which then does not depend on
            what shares its batch; None: no dropout.

        Raises:
          ValueError: if dropout is not in [0, 1).
        """
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1)")
        x = crops.reshape(len(crops), -1)
        for index in range(self.depth):
            dense = nn.Dense(
                self.features, kernel_init=XAVIER, dtype=self.dtype, name=f"fc{index}"
            )
            x = relu(dense(x))
            if keys is not None and self.dropout > 0:
                layer_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
                x = _dropout(x, layer_keys, self.dropout)
        return x


class ConvFCHead(nn.Module):
    """3x3 convolutions, then one fully connected layer (Wu & He 2018, 4.2)."""

    features: int = 1024  # outputs
    channels: int = 256  # of the convolutions
    depth: int = 4  # convolutions
    norm: NormType = "none"  # of the convolutions, each RoI an image of its own
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32

    @nn.compact
    def __call__(self, crops: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """`[R, S, S, C]` -> `[R, features]`."""
        del keys  # There is no dropout.
        tower = _tower_layers(self, self.channels, kernel_init=HE_NORMAL)
        x = _apply_tower(tower, crops, None, 1)
        dense = nn.Dense(self.features, kernel_init=XAVIER, dtype=self.dtype, name="fc")
        return relu(dense(x.reshape(len(x), -1)))


class BoxPredictor(nn.Module):
    """Class logits and box deltas of each RoI (Girshick 2015, 2.1)."""

    num_classes: int  # K
    class_agnostic: bool = False  # one box for all classes instead of one for each
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32

    @nn.compact
    def __call__(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`[..., D]` -> logits `[..., K + 1]`, deltas `[..., K, 4]`, both float32.

        The background comes last among the logits; the deltas are `[..., 1, 4]` where
        they are class agnostic.
        """
        boxes = 1 if self.class_agnostic else self.num_classes
        dense = partial(nn.Dense, dtype=self.dtype)
        classes = dense(self.num_classes + 1, kernel_init=_NORMAL, name="classes")
        small = nn.initializers.normal(0.001)
        deltas = dense(boxes * 4, kernel_init=small, name="deltas")(features)
        deltas = deltas.reshape(*features.shape[:-1], boxes, 4)
        return classes(features).astype(jnp.float32), deltas.astype(jnp.float32)


class MaskHead(nn.Module):
    """A mask of each RoI for every class (He et al. 2017, Figure 4 right)."""

    num_classes: int  # K
    channels: int = 256  # of all convolutions but the last
    depth: int = 4  # 3x3 convolutions before the one that doubles the extents
    norm: NormType = "none"  # of the 3x3 convolutions, each RoI an image of its own
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32

    @nn.compact
    def __call__(self, crops: jax.Array) -> jax.Array:
        """`[R, S, S, C]` -> mask logits `[R, 2 S, 2 S, K]` float32."""
        tower = _tower_layers(self, self.channels, kernel_init=HE_NORMAL)
        x = _apply_tower(tower, crops, None, 1)
        x = relu(_Deconv2x(self.channels, dtype=self.dtype, name="deconv")(x))
        small = nn.initializers.normal(0.001)  # detectron2's: masks start undecided
        last = Conv(
            self.num_classes, 1, kernel_init=small, dtype=self.dtype, name="output"
        )
        return last(x).astype(jnp.float32)


class _Deconv2x(nn.Module):
    """A transposed 2x2 convolution of stride 2, as one product of two matrices."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[R, H, W, C]` -> `[R, 2 H, 2 W, features]`."""
        rois, height, width, channels = x.shape
        # As a convolution's: rows, columns, from, to.
        kernel = self.param("kernel", HE_NORMAL, (2, 2, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        matrix = kernel.transpose(2, 0, 1, 3).reshape(channels, -1).astype(self.dtype)
        x = x.astype(self.dtype).reshape(-1, channels) @ matrix
        x = x.reshape(rois, height, width, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(rois, 2 * height, 2 * width, -1)
        return x + bias.astype(self.dtype)[None, None, None]


class _Tower(nn.Module):
    """3x3 convolutions with biases, norms and ReLUs, for heads that have several."""

    depth: int
    norm: NormType
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, sizes: jax.Array | None, stride: int) -> jax.Array:
        """`[B, H, W, C]` -> the same shape, zero outside the images."""
        layers = _tower_layers(self, x.shape[-1], use_bias=True)
        return zero_outside(_apply_tower(layers, x, sizes, stride), sizes, stride)


def _tower_layers(
    head: nn.Module,
    channels: int,
    kernel_init: Callable = _NORMAL,
    use_bias: bool = False,
) -> list[tuple[Conv, Norm]]:
    """Makes the 3x3 convolutions that a head starts with, and their norms.

    They have biases where they have no norm, and with `use_bias` before a norm too.
    """
    use_bias |= head.norm == "none"
    conv = partial(Conv, channels, use_bias=use_bias, kernel_init=kernel_init)
    norm = partial(Norm, head.norm, dtype=head.dtype)
    return [
        (conv(dtype=head.dtype, name=f"conv{index}"), norm(name=f"norm{index}"))
        for index in range(head.depth)
    ]


def _apply_tower(layers, x: jax.Array, sizes: jax.Array | None, stride: int):
    for conv, norm in layers:
        x = zero_outside(x, sizes, stride)
        x = relu(norm(x, sizes, stride, conv=conv))
    return x


def _concatenate(maps: Iterable[jax.Array], size: int) -> jax.Array:
    """Joins maps `[B, H, W, n * size]` of all levels to `[B, A, size]` float32."""
    rows = [x.reshape(len(x), -1, size) for x in maps]
    return jnp.concatenate(rows, axis=1).astype(jnp.float32)


def _dropout(x: jax.Array, keys: jax.Array, rate: float) -> jax.Array:
    """Zeroes a share of `[B * R, D]` by the keys `[B]`, and scales up the rest."""
    shape = (len(x) // len(keys), x.shape[-1])
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, shape))(keys)
    return jnp.where(kept.reshape(x.shape), x / (1 - rate), 0)
