"""Builds feature pyramid networks (Lin et al. 2017)."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.nn.convolution import Conv
from jaxdet.nn.layers import Norm, NormType, relu, zero_outside

# detectron2's "c2_xavier", torchvision's kaiming_uniform(a=1): variance 1 / fan in.
XAVIER = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class FPN(nn.Module):
    """Lateral 1x1 convolutions, a top-down path of sums, and 3x3 convolutions."""

    finest: int = 3  # finest level of the pyramid
    coarsest: int = 7  # coarsest one; those beyond the backbone's are made by `extra`
    channels: int = 256  # of every level
    top_down: bool = True
    """Whether coarser levels are added to finer ones; False: the backbone's stages side
    by side, each with its own convolutions (Table 1 d)."""
    extra: Literal["c5", "p5", "pool"] = "c5"
    """`"c5"` and `"p5"`: 3x3 convolutions of stride 2 with ReLUs between them, the
    first on the backbone's last stage (RetinaNet, detectron2) or on the pyramid's
    (torchvision's first RetinaNet, FCOS); `"pool"`: every second cell of the level
    below (FPN 4.1)."""
    norm: NormType = "none"  # of the lateral and the output convolutions
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32

    @nn.compact
    def __call__(
        self, stages: dict[int, jax.Array], sizes: jax.Array | None = None
    ) -> dict[int, jax.Array]:
        """`{level: [B, H, W, C]}` -> `{level: [B, H, W, channels]}`, finest first.

        Of the backbone's `stages` those from `finest` up are used.

        Raises:
          ValueError: if `stages` lacks level `finest`, or one between it and its last.
        """
        top = min(max(stages), self.coarsest)
        if not {self.finest, *range(self.finest, top + 1)} <= set(stages):
            raise ValueError(
                f"finest level {self.finest}; the backbone has {[*stages]}"
            )
        conv = partial(Conv, self.channels, kernel_init=XAVIER, dtype=self.dtype)
        layer = partial(self._layer, conv=partial(conv, use_bias=self.norm == "none"))
        pyramid, above = {}, None
        for level in range(top, self.finest - 1, -1):
            x = layer(f"lateral{level}", stages[level], sizes, level, kernel=1)
            if self.top_down and above is not None:
                x = x + _upsample(above, x.shape)
            above = x
            smooth = zero_outside(above, sizes, 2**level)
            pyramid[level] = layer(f"output{level}", smooth, sizes, level, kernel=3)
        x = stages[top] if self.extra == "c5" else pyramid[top]
        for level in range(top + 1, self.coarsest + 1):
            if self.extra == "pool":
                x = x[:, ::2, ::2]
            else:
                x = relu(x) if level > top + 1 else x
                x = zero_outside(x, sizes, 2 ** (level - 1))
                x = conv(3, 2, name=f"output{level}")(x)
            pyramid[level] = x
        return dict(sorted(pyramid.items()))

    def _layer(self, name, x, sizes, level, *, conv, kernel):
        norm = Norm(self.norm, dtype=self.dtype, name=f"{name}_norm")
        return norm(x, sizes, 2**level, conv=conv(kernel, name=name))


def _upsample(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Repeats each cell to twice the extents, less the last row or column where odd."""
    x = jax.lax.platform_dependent(
        x, tpu=repeat_by_convolution, default=repeat_by_broadcast
    )
    return x[:, : shape[1], : shape[2]]


def repeat_by_broadcast(x: jax.Array) -> jax.Array:
    """Repeats each cell, `[B, H, W, C]` -> `[B, 2 H, 2 W, C]`."""
    batch, height, width, channels = x.shape
    x = x[:, :, None, :, None]
    x = jnp.broadcast_to(x, (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def repeat_by_convolution(x: jax.Array) -> jax.Array:
    """Repeats each cell, `[B, H, W, C]` -> `[B, 2 H, 2 W, C]`, as TPUs do best.

    A transposed depthwise convolution with ones: its tiles stay whole. By the estimate
    of the TPU's compiler it takes a third of the time, and its gradient an eighth.
    """
    channels = x.shape[-1]
    return jax.lax.conv_general_dilated(
        x,
        jnp.ones((2, 2, 1, channels), x.dtype),
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
        precision=jax.lax.Precision.HIGHEST,  # Copies are not rounded to bfloat16.
    )


class SingleLevel(nn.Module):
    """The backbone's features of one level, in place of a pyramid."""

    level: int  # of the backbone

    def __call__(
        self, stages: dict[int, jax.Array], sizes: jax.Array | None = None
    ) -> dict[int, jax.Array]:
        """`{level: [B, H, W, C]}` -> the same, of that level alone."""
        return {self.level: of_level(stages, self.level)}


def neck(
    levels: Sequence[int], channels: int | None, norm: NormType, dtype: jnp.dtype
) -> nn.Module:
    """Returns the layers between a backbone's stages and the levels of an RPN.

    Args:
      levels: finest first.
      channels: of an `FPN`; None: the one level is the backbone's own.
      norm: of the pyramid's convolutions.
      dtype: of the arithmetic.
    """
    if channels is None:
        return SingleLevel(levels[0])
    pyramid = partial(FPN, finest=levels[0], coarsest=levels[-1], extra="pool")
    return pyramid(channels=channels, norm=norm, dtype=dtype)


def of_level(stages: dict[int, jax.Array], level: int) -> jax.Array:
    """Returns the features of one level, `{level: [B, H, W, C]}` -> `[B, H, W, C]`.

    Raises:
      ValueError: if it has none of that level.
    """
    if level not in stages:
        raise ValueError(f"level {level}; the backbone has {[*stages]}")
    return stages[level]
