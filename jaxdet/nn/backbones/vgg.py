"""Defines VGG-16, thirteen 3x3 convolutions (Simonyan & Zisserman 2014, D)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxdet.nn.convolution import Conv
from jaxdet.nn.layers import Norm, NormType, max_pool, maybe_remat, relu, zero_outside

# Convolutions of each block, and their channels as multiples of the first block's.
_BLOCKS = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))
_POOL_WINDOW, _POOL_PADDING = 2, (0, 1)


class VGG16(nn.Module):
    """The convolutional part of VGG-16, without the last pooling.

    Its box head is `FCHead(4096, depth=2, dropout=0.5)` on 7x7 cells. Cells lie
    exactly where the conventions say, centered in their strides.
    """

    width: int = 64
    """Channels of the first block; the last ones have eight times as many."""
    norm: NormType = "none"  # `"none"` as published, `"group"` to train from scratch
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32
    remat: bool = False  # whether gradients compute the layers again, `maybe_remat`

    @nn.compact
    def __call__(
        self, pixels: jax.Array, sizes: jax.Array | None = None
    ) -> dict[int, jax.Array]:
        """Normalized pixels `[B, H, W, 3]` -> conv5_3 after its ReLU.

        It is `{4: [B, ceil(H / 16), ceil(W / 16), 8 * width]}`.
        """
        x = pixels
        for level in range(len(_BLOCKS)):
            x = _block(self, level, x, sizes)
        return {4: x}


class VGG16SSD(nn.Module):
    """VGG-16 as SSD changes it: convolutions for its fully connected layers (3).

    The last pooling keeps the extents, so conv6 sees as far as fc6 did by dilation.
    """

    width: int = 64
    """Channels of the first block; conv6 and conv7 have sixteen times as many."""
    norm: NormType = "none"  # `"none"` as published, `"group"` to train from scratch
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32
    remat: bool = False  # whether gradients compute the layers again, `maybe_remat`

    @nn.compact
    def __call__(
        self, pixels: jax.Array, sizes: jax.Array | None = None
    ) -> dict[int, jax.Array]:
        """Normalized pixels `[B, H, W, 3]` -> conv4_3, rescaled, and conv7.

        They are `{3: [B, ceil(H / 8), ceil(W / 8), 8 * width],
        4: [B, ceil(H / 16), ceil(W / 16), 16 * width]}`.
        """
        x = pixels
        for level in range(4):
            x = _block(self, level, x, sizes)
        stages = {3: L2Norm(dtype=self.dtype, name="unit4_3")(x)}
        x = max_pool(_block(self, 4, x, sizes), stride=1)
        x = zero_outside(x, sizes, 16)
        features = 16 * self.width
        x = _layer(self, "6", features, x, (sizes, 16), dilation=6)
        stages[4] = _layer(self, "7", features, x, (sizes, 16), kernel=1)
        return stages


class L2Norm(nn.Module):
    """Features divided by their length, times a learned scale (Liu et al. 2015)."""

    scale: float = 20.0  # of each channel at the start of training
    dtype: jnp.dtype = jnp.float32  # of the output; the arithmetic is in float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` -> the same shape; zeros stay zeros."""
        init = nn.initializers.constant(self.scale)
        scale = self.param("scale", init, x.shape[-1:])
        values = x.astype(jnp.float32)
        squares = jnp.sum(values**2, axis=-1, keepdims=True)
        values = values * lax.rsqrt(squares + 1e-10) * scale[None, None, None]
        return values.astype(self.dtype)


def first_convs(count: int) -> tuple[str, ...]:
    """Returns patterns of the first layers' parameters, for `TrainingConfig.frozen`.

    There is one for each of `count` layers: 4 are conv1_1 to conv2_2 (Fast R-CNN), 13
    are all (SPP-net).

    Raises:
      ValueError: if `count` is not in 0 to 13.
    """
    if not 0 <= count <= 13:
        raise ValueError(f"VGG-16 has 13 convolutions; cannot freeze the first {count}")
    names = [n for level, (size, _) in enumerate(_BLOCKS) for n in _names(level, size)]
    return tuple(f"backbone/(conv|norm){name}/.*" for name in names[:count])


def layers() -> tuple[tuple[int, int, int], ...]:
    """Returns (kernel, stride, padding before) of all layers up to conv5_3."""
    pool = (_POOL_WINDOW, 2, _POOL_PADDING[0])
    first, *others = (((3, 1, 1),) * count for count, _ in _BLOCKS)
    return sum(((pool, *convs) for convs in others), first)


def _block(
    network: VGG16 | VGG16SSD, level: int, x: jax.Array, sizes: jax.Array | None
) -> jax.Array:
    """Runs one block, made within the network that calls."""
    count, multiple = _BLOCKS[level]

    def run(network, x, sizes):
        if level > 0:
            x = max_pool(x, _POOL_WINDOW, _POOL_PADDING)
        for name in _names(level, count):
            x = _layer(network, name, network.width * multiple, x, (sizes, 2**level))
        return x

    return maybe_remat(run, network.remat)(network, x, sizes)


def _layer(network, name: str, features: int, x, here, **options) -> jax.Array:
    conv = Conv(
        features,
        use_bias=network.norm == "none",
        dtype=network.dtype,
        name=f"conv{name}",
        **options,
    )
    norm = Norm(network.norm, dtype=network.dtype, name=f"norm{name}")
    return zero_outside(relu(norm(x, *here, conv=conv)), *here)


def _names(level: int, count: int) -> list[str]:
    return [f"{level + 1}_{index + 1}" for index in range(count)]
