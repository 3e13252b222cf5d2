"""Defines residual networks (He et al. 2015), stride in the 3x3 convolution."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.nn.convolution import Conv
from jaxdet.nn.layers import Norm, NormType, max_pool, maybe_remat, relu, zero_outside

# Depth -> (blocks of stages 2 to 5, whether they are bottlenecks).
_LAYOUTS = {
    10: ((1, 1, 1, 1), False),
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


class ResNet(nn.Module):
    """The convolutional part of a residual network."""

    depth: int = 50  # 10, 18, 34, 50, 101 or 152 layers
    width: int = 64
    """Channels of the stem; the stages have 1, 2, 4 and 8 times as many, four times
    that with bottlenecks."""
    norm: NormType = "frozen"
    """`"frozen"` with pretrained statistics, `"group"` to train from scratch."""
    coarsest: int = 5  # the last stage that is made, 2 to 5
    epsilon: float = 1e-5  # of the norms
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32
    remat: bool = False  # whether gradients compute the layers again, `maybe_remat`

    @nn.compact
    def __call__(
        self, pixels: jax.Array, sizes: jax.Array | None = None
    ) -> dict[int, jax.Array]:
        """Normalized pixels `[B, H, W, 3]` -> the features of stages 2 to `coarsest`.

        They are `{level: [B, ceil(H / 2**level), ceil(W / 2**level), C]}`.

        Raises:
          ValueError: for a depth that has no layout, or a stage that it lacks.
        """
        _layout(self.depth)  # fails before any layer is made
        if not 2 <= self.coarsest <= 5:
            raise ValueError(f"coarsest is {self.coarsest}; it must be in 2 to 5")
        norm = partial(Norm, self.norm, epsilon=self.epsilon, dtype=self.dtype)
        stem = Conv(self.width, 7, 2, False, dtype=self.dtype, name="stem_conv")
        x = relu(norm(name="stem_norm")(pixels, sizes, 2, conv=stem))
        x = max_pool(zero_outside(x, sizes, 2))
        stages = {}
        for level in range(2, self.coarsest + 1):
            x = stages[level] = _stage(self, level, x, sizes)
        return stages


class ResNetHead(nn.Module):
    """Stage 5 on each region of stage 4, averaged (He et al. 2015, appendix A)."""

    depth: int = 50
    """Of the network it is the end of, as in `ResNet`; so are all others."""
    width: int = 64  # channels of the stem
    norm: NormType = "frozen"  # each region is an image of its own
    epsilon: float = 1e-5  # of the norms
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32
    remat: bool = False  # whether gradients compute the layers again, `maybe_remat`

    @nn.compact
    def __call__(self, regions: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Stage 4 `[R, S, S, C]` -> `[R, D]`, the means over the cells of stage 5."""
        del keys  # There is no dropout.
        return jnp.mean(_stage(self, 5, regions, None), axis=(1, 2))


def first_stages(count: int) -> tuple[str, ...]:
    """Returns patterns of the first stages' parameters, for `TrainingConfig.frozen`.

    There is one for each of `count` stages: 1 is the stem, 2 adds stage 2 (the usual
    choice), up to 5.

    Raises:
      ValueError: if `count` is not in 0 to 5.
    """
    if not 0 <= count <= 5:
        raise ValueError(f"a ResNet has stages 1 to 5; cannot freeze the first {count}")
    names = ["stem_", *(f"stage{level}_" for level in range(2, 6))]
    return tuple(f"backbone/{name}.*" for name in names[:count])


def layers(level: int, depth: int = 50) -> tuple[tuple[int, int, int], ...]:
    """Returns (kernel, stride, padding before) of a stage's layers, past no shortcut.

    Args:
      level: of the stage, 2 to 5.
      depth: as in `ResNet`.

    Raises:
      ValueError: for a depth that has no layout.
    """
    blocks, bottleneck = _layout(depth)
    stack = [(7, 2, 3), (3, 2, 1)]
    for stage in range(2, level + 1):
        for index in range(blocks[stage - 2]):
            stride = 2 if stage > 2 and index == 0 else 1
            around = [(1, 1, 0)] if bottleneck else [(3, 1, 1)]
            before = around if bottleneck else []
            stack += [*before, (3, stride, 1), *around]
    return tuple(stack)


def _layout(depth: int) -> tuple[tuple[int, ...], bool]:
    if depth not in _LAYOUTS:
        raise ValueError(f"ResNet depth {depth}; allowed: {sorted(_LAYOUTS)}")
    return _LAYOUTS[depth]


def _stage(
    network: ResNet | ResNetHead, level: int, x: jax.Array, sizes: jax.Array | None
) -> jax.Array:
    """Runs the blocks of one stage, made within the network that calls."""
    blocks, bottleneck = _layout(network.depth)
    kind = maybe_remat(_Bottleneck if bottleneck else _Basic, network.remat)
    dtype = network.dtype
    for index in range(blocks[level - 2]):
        block = kind(
            features=network.width * 2 ** (level - 2),
            level=level,
            stride=2 if level > 2 and index == 0 else 1,
            norm=partial(Norm, network.norm, epsilon=network.epsilon, dtype=dtype),
            dtype=dtype,
            name=f"stage{level}_block{index}",
        )
        x = block(x, sizes)
    return x


class _Basic(nn.Module):
    """Two 3x3 convolutions and the shortcut around them (Figure 5, left)."""

    features: int
    level: int
    stride: int
    norm: partial
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, sizes):
        conv = partial(Conv, self.features, use_bias=False, dtype=self.dtype)
        here = (sizes, 2**self.level)
        shortcut = _shortcut(self, x, self.features, here)
        x = zero_outside(x, sizes, 2**self.level // self.stride)
        conv1, conv2 = conv(3, self.stride, name="conv1"), conv(3, name="conv2")
        x = relu(self.norm(name="norm1")(x, *here, conv=conv1))
        x = zero_outside(x, *here)
        x = self.norm(name="norm2")(x, *here, conv=conv2)
        return relu(x + shortcut)


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and the shortcut around them (Figure 5, right)."""

    features: int
    level: int
    stride: int
    norm: partial
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, sizes):
        conv = partial(Conv, use_bias=False, dtype=self.dtype)
        before, here = (sizes, 2**self.level // self.stride), (sizes, 2**self.level)
        shortcut = _shortcut(self, x, 4 * self.features, here)
        conv1 = conv(self.features, 1, name="conv1")
        conv2 = conv(self.features, 3, self.stride, name="conv2")
        conv3 = conv(4 * self.features, 1, name="conv3")
        x = relu(self.norm(name="norm1")(x, *before, conv=conv1))
        x = zero_outside(x, *before)
        x = relu(self.norm(name="norm2")(x, *here, conv=conv2))
        x = self.norm(name="norm3")(x, *here, conv=conv3)
        return relu(x + shortcut)


def _shortcut(block: nn.Module, x: jax.Array, features: int, here) -> jax.Array:
    """Returns the input, or its projection where the shape changes (option B)."""
    if block.stride == 1 and x.shape[-1] == features:
        return x
    conv = Conv(
        features, 1, block.stride, False, dtype=block.dtype, name="shortcut_conv"
    )
    return block.norm(name="shortcut_norm")(x, *here, conv=conv)
