"""Builds inverted residual blocks, of which MobileNetV2 and EfficientNet consist."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxdet.nn.convolution import Conv
from jaxdet.nn.depthwise import convolve_depthwise
from jaxdet.nn.layers import Norm, maybe_remat, zero_outside

_STEM = 32  # channels

Padding = Literal["centered", "same"]
"""Where the windows of stride 2 lie, whose parameters a network is to take over.

`"centered"` (torchvision): as many zeros before as after, so the first window is
centered on the first cell. `"same"` (TensorFlow): as few zeros as possible, one more
after than before where an image has an even number of cells; the first window is then
centered between two cells.
"""

Plan = Mapping[int, tuple[tuple[int, int, int], ...]]
"""Level -> (blocks, channels, kernel) of each group of equal blocks; 1 to 5."""


def stages(
    network: nn.Module,
    plan: Plan,
    padding: Padding,
    pixels: jax.Array,
    sizes: jax.Array | None,
) -> tuple[dict[int, jax.Array], dict[int, jax.Array]]:
    """Runs a 3x3 convolution of stride 2 and the blocks, made within the caller.

    Args:
      network: has `width`, `norm`, `epsilon`, `dtype` and `remat`.
      plan: its blocks; the first of each level but 1 has stride 2.
      padding: of all layers.
      pixels: `[B, H, W, 3]`, zero outside the true images.
      sizes: see `nn/layers.py`.

    Returns:
      Narrow and wide features, `{level: [B, H / 2**level, W / 2**level, C]}` both,
      extents rounded up. The narrow ones end a level of the plan; the wide ones, of all
      but the last, are what the first block of the next level widens them to.
    """
    norm = partial(Norm, network.norm, epsilon=network.epsilon, dtype=network.dtype)
    stem = Conv(
        math.ceil(_STEM * network.width),
        3,
        2,
        use_bias=False,
        padding=(0, 0),
        dtype=network.dtype,
        name="stem_conv",
    )
    x = pad(pixels, 3, 2, padding, sizes)
    x = nn.relu6(norm(name="stem_norm")(x, sizes, 2, conv=stem))
    narrow, wide = {}, {}
    for level, groups in plan.items():
        blocks = [group[1:] for group in groups for _ in range(group[0])]
        for index, (channels, kernel) in enumerate(blocks):
            block = maybe_remat(InvertedResidual, network.remat)(
                between=6 * x.shape[-1] if level > 1 else None,
                features=math.ceil(channels * network.width),
                level=level,
                kernel=kernel,
                stride=2 if level > 1 and index == 0 else 1,
                padding=padding,
                norm=norm,
                dtype=network.dtype,
                name=f"stage{level}_block{index}",
            )
            x, expanded = block(x, sizes)
            if block.stride == 2:
                wide[level - 1] = expanded
        narrow[level] = x
    return narrow, wide


def first_stages(count: int) -> tuple[str, ...]:
    """Returns patterns of the first stages' parameters, for `TrainingConfig.frozen`.

    There is one for each of `count` stages: 1 is all of stride 2, 2 adds stage 2 of
    stride 4, up to 5.

    Raises:
      ValueError: if `count` is not in 0 to 5.
    """
    if not 0 <= count <= 5:
        raise ValueError(f"there are stages 1 to 5; cannot freeze the first {count}")
    names = ["(stem|stage1)_", *(f"stage{level}_" for level in range(2, 6))]
    return tuple(f"backbone/{name}.*" for name in names[:count])


class InvertedResidual(nn.Module):
    """Narrow, wide, narrow, and the shortcut between the narrow (Sandler 2018, 3.3).

    A 1x1 convolution widens, a depthwise one mixes cells, a 1x1 one narrows again. The
    shortcut is there where the input has the output's shape.
    """

    between: int | None
    """Channels of the depthwise convolution; None: those of the input, without the
    first convolution."""
    features: int  # channels of the output
    level: int  # of the output: its stride is 2**level canvas pixels
    norm: Callable  # makes a norm, given a name
    kernel: int = 3  # side of the depthwise convolution in cells
    stride: int = 1  # of the same, 1 or 2
    padding: Padding = "centered"  # of the same
    linear: bool = True  # False: ReLU6 after the last convolution too
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32

    @nn.compact
    def __call__(
        self, x: jax.Array, sizes: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """`[B, H, W, C]` -> `[B, ceil(H / stride), ceil(W / stride), features]`.

        Returns:
          The features, and the wide ones before the depthwise convolution.
        """
        before, here = 2**self.level // self.stride, 2**self.level
        conv = partial(Conv, kernel=1, use_bias=False, dtype=self.dtype)
        wide = x
        if self.between is not None:
            expand = conv(self.between, name="expand_conv")
            wide = nn.relu6(
                self.norm(name="expand_norm")(x, sizes, before, conv=expand)
            )
        wide = zero_outside(wide, sizes, before)
        y = DepthwiseConv(
            self.kernel, self.stride, self.padding, self.dtype, name="depthwise_conv"
        )(wide, sizes, before)
        y = nn.relu6(self.norm(name="depthwise_norm")(y, sizes, here))
        project = conv(self.features, name="project_conv")
        y = self.norm(name="project_norm")(y, sizes, here, conv=project)
        y = y if self.linear else nn.relu6(y)
        return (x + y if x.shape == y.shape else y), wide


class DepthwiseConv(nn.Module):
    """One square filter a channel.

    Parameters are named and shaped as those of `flax.linen.Conv` with as many groups as
    channels. It is computed as a sum of shifted copies (`nn/depthwise.py`): the same
    numbers, ten times faster on CPU than XLA's grouped convolution.
    """

    kernel: int = 3  # side in cells, odd
    stride: int = 1  # 1 or 2
    padding: Padding = "centered"  # where windows of stride 2 lie
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32

    @nn.compact
    def __call__(
        self, x: jax.Array, sizes: jax.Array | None = None, stride: int = 1
    ) -> jax.Array:
        """`[B, H, W, C]` -> `[B, ceil(H / self.stride), ceil(W / self.stride), C]`.

        Args:
          x: features, zero outside the true images.
          sizes: see `nn/layers.py`.
          stride: canvas pixels per cell of `x`.
        """
        side, step, channels = self.kernel, self.stride, x.shape[-1]
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        kernel = self.param("kernel", init, (side, side, 1, channels))
        kernel = kernel.astype(self.dtype)
        height, width = (-(-extent // step) for extent in x.shape[1:3])
        x = pad(x.astype(self.dtype), side, step, self.padding, sizes, stride)
        x = convolve_depthwise(x, kernel[:, :, 0], step, (height, width))
        return x.astype(self.dtype)


def pad(
    x: jax.Array,
    kernel: int,
    stride: int,
    padding: Padding,
    sizes: jax.Array | None = None,
    pixels: int = 1,
) -> jax.Array:
    """Pads features with zeros for a convolution of `ceil(extent / stride)` cells.

    An image is padded by its own extents, not by the canvas's, so that its features are
    those it would have on a canvas of its own size.

    Args:
      x: `[B, H, W, C]`, zero outside the true images.
      kernel: side in cells, odd.
      stride: 1 or 2.
      padding: where windows of stride 2 lie.
      sizes: see `nn/layers.py`.
      pixels: canvas pixels per cell of `x`.

    Returns:
      The features with `kernel // 2` cells more on all sides, or one less where they
      are not needed.
    """
    margin = kernel // 2
    around = [(0, 0), (margin, margin), (margin, margin), (0, 0)]
    if padding == "centered" or stride == 1:
        return jnp.pad(x, around)
    if sizes is None:
        for axis in (1, 2):
            around[axis] = (margin - (1 - x.shape[axis] % 2), margin)
        return jnp.pad(x, around)
    for axis in (1, 2):
        even = -(-sizes[:, axis - 1] // pixels) % 2 == 0
        around = [(0, 0)] * 4
        around[axis] = (margin, margin + 1)
        padded = jnp.pad(x, around)
        first, second = (
            lax.slice_in_dim(padded, start, padded.shape[axis] - 1 + start, axis=axis)
            for start in (0, 1)
        )
        x = jnp.where(even[:, None, None, None], second, first)
    return x
