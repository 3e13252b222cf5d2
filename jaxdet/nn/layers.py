"""Pools and normalizes, and keeps the padding of a canvas empty.

A canvas is larger than its image, and a convolution's bias or norm fills the rest with
values that leak back over the border. Given the true sizes, networks set the rest to
zero before each layer that mixes cells (`zero_outside`), so that an image's features
are those it would have on a canvas of its own size, whatever it shares a batch with.

Wherever a network or a layer takes `sizes`, they are the `[B, 2]` true (height, width)
of the images in canvas pixels; with None all of the canvas is image. `dtype` is that of
the arithmetic; parameters and statistics stay float32.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxdet.nn.convolution import Conv, spread_channels

NormType = Literal["frozen", "group", "none"]


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """Returns the greater of `x` and 0, `[...]` -> the same shape.

    The gradient looks at the output, which layers keep anyway, where `jax.nn.relu`'s
    looks at the input: on GPUs that would be written out, too.
    """
    return jnp.maximum(x, 0)


@relu.defjvp
def _relu_jvp(primals, tangents):
    # "Not 0", since XLA makes "above 0" a question about the input again.
    output, (tangent,) = relu(*primals), tangents
    return output, jnp.where(output != 0, tangent, jnp.zeros_like(tangent))


def maybe_remat(layers: Callable, remat: bool) -> Callable:
    """Returns layers whose gradients keep only their inputs, if `remat`.

    What lies between is computed again for the gradients: less memory, about a third
    more arithmetic (Chen et al. 2016). Parameters keep their names.

    Args:
      layers: a class of modules, or a function whose first argument is a module.
      remat: False: `layers` as they are.
    """
    return nn.remat(layers) if remat else layers


def max_pool(
    x: jax.Array, window: int = 3, padding: tuple[int, int] = (1, 1), stride: int = 2
) -> jax.Array:
    """Returns the maximum over square windows; outside the map there is 0.

    Equal maxima of a window share its gradient; on TPUs one has it all.

    Args:
      x: `[B, H, W, C]`, nothing negative (after a ReLU).
      window: side in cells.
      padding: cells before and after.
      stride: cells from one window to the next.

    Returns:
      `[B, ceil(H / stride), ceil(W / stride), C]` where the padding sums to
      `window - 1`, fewer cells where to less.
    """
    return lax.platform_dependent(
        x,
        tpu=lambda x: max_pool_by_windows(x, window, padding, stride),
        default=lambda x: max_pool_by_shifts(x, window, padding, stride),
    )


def max_pool_by_windows(
    x: jax.Array, window: int, padding: tuple[int, int], stride: int
) -> jax.Array:
    """Returns what `max_pool` does; XLA's own way.

    Args:
      x: `[B, H, W, C]`.
      window: side in cells.
      padding: cells before and after.
      stride: cells from one window to the next.

    Returns:
      `[B, H', W', C]`.
    """
    return nn.max_pool(x, (window,) * 2, (stride,) * 2, (padding,) * 2)


def max_pool_by_shifts(
    x: jax.Array, window: int, padding: tuple[int, int], stride: int
) -> jax.Array:
    """Returns what `max_pool` does, as maxima of shifted copies, rows first.

    XLA's gradient of a window's maximum searches each window again, and takes seven
    times as long on CPUs, twice on an H100. On TPUs, by their compiler's estimate,
    shifted copies take more time and memory.

    Args:
      x: `[B, H, W, C]`, nothing negative.
      window: side in cells.
      padding: cells before and after.
      stride: cells from one window to the next.

    Returns:
      `[B, H', W', C]`.
    """
    for axis in (1, 2):
        margins = [(0, 0)] * 4
        margins[axis] = padding
        padded = jnp.pad(x, margins)
        extent = padded.shape[axis] - window + 1
        shifted = [
            lax.slice_in_dim(padded, shift, shift + extent, stride, axis)
            for shift in range(window)
        ]
        x = functools.reduce(jnp.maximum, shifted)
    return x


class FrozenBatchNorm(nn.Module):
    """Batch norm whose statistics, scale and bias are constants (He et al. 2015, 3.4).

    They live in the collection `constants`, out of reach of any optimizer, and come
    from a pretrained checkpoint; without one this is the identity.
    """

    epsilon: float = 1e-5  # added to the variances
    dtype: jnp.dtype = jnp.float32
    """Of the arithmetic; parameters and statistics stay float32."""

    @nn.compact
    def __call__(self, x: jax.Array, conv: Conv | None = None) -> jax.Array:
        """`[B, H, W, C]` -> the same shape, or that of `conv`'s output: it comes first.

        Args:
          x: features.
          conv: a convolution that the norm is made a part of; None: there is none.
        """
        shape = x.shape[-1:] if conv is None else (conv.features,)
        scale = self.variable("constants", "scale", jnp.ones, shape).value
        bias = self.variable("constants", "bias", jnp.zeros, shape).value
        mean = self.variable("constants", "mean", jnp.zeros, shape).value
        var = self.variable("constants", "var", jnp.ones, shape).value
        factor = scale * lax.rsqrt(var + self.epsilon)
        shift = bias - mean * factor
        if conv is not None:
            return conv(x, factor, shift)
        x = x.astype(self.dtype)
        return x * spread_channels(factor, x) + spread_channels(shift, x)


class GroupNorm(nn.Module):
    """Group normalization (Wu & He 2018): statistics of a few channels of one image.

    They are summed channel by channel first, in one pass over the features; groups are
    then joined on `[B, C]` numbers.
    """

    groups: int = 32  # fewer where a group would be left with a single channel
    epsilon: float = 1e-5  # added to the variances
    dtype: jnp.dtype = jnp.float32
    """Of the arithmetic; parameters and statistics stay float32."""

    @nn.compact
    def __call__(self, x: jax.Array, inside: jax.Array | None = None) -> jax.Array:
        """`[B, H, W, C]` -> the same shape.

        Args:
          x: features.
          inside: `[B, H, W, 1]` bool, the cells that count; None: all.
        """
        batch, height, width, channels = x.shape
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        values = x.astype(jnp.float32)
        cells = jnp.full((batch, 1), height * width, jnp.float32)
        if inside is not None:
            values = jnp.where(inside, values, 0.0)
            cells = jnp.sum(inside, axis=(1, 2), dtype=jnp.float32)
            cells = jnp.maximum(cells, 1.0)
        groups = math.gcd(self.groups, channels)
        if groups == channels and channels % 2 == 0:
            groups //= 2
        size = channels // groups

        def mean(sums: jax.Array) -> jax.Array:  # [B, C] -> its group's, [B, C]
            grouped = jnp.sum(sums.reshape(batch, groups, size), axis=-1)
            return jnp.repeat(grouped / (cells * size), size, axis=-1)

        first = mean(jnp.sum(values, axis=(1, 2)))
        second = mean(jnp.sum(values**2, axis=(1, 2)))
        variance = jnp.maximum(second - first**2, 0.0)
        factor = scale[None] * lax.rsqrt(variance + self.epsilon)
        shift = bias[None] - first * factor
        factor, shift = (v.astype(self.dtype)[:, None, None] for v in (factor, shift))
        return x.astype(self.dtype) * factor + shift


class Norm(nn.Module):
    """The norm of one layer, by kind: `FrozenBatchNorm`, `GroupNorm` or none."""

    kind: NormType = "group"  # `"frozen"`, `"group"` or `"none"`
    epsilon: float = 1e-5  # added to the variances
    dtype: jnp.dtype = jnp.float32
    """Of the arithmetic; parameters and statistics stay float32."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        sizes: jax.Array | None = None,
        stride: int = 1,
        *,
        conv: Conv | None = None,
    ) -> jax.Array:
        """`[B, H, W, C]` -> the same shape, or that of `conv`'s output: it comes first.

        Statistics leave the canvas's padding out.

        Args:
          x: features.
          sizes: see above.
          stride: canvas pixels per cell, of the output.
          conv: the convolution before the norm, which a frozen one is made a part of;
            None: there is none.

        Raises:
          ValueError: if `kind` is none of the three.
        """
        if self.kind not in ("frozen", "group", "none"):
            raise ValueError(
                f"norm is {self.kind!r}; it must be 'frozen', 'group' or 'none'"
            )
        if self.kind == "frozen":
            return FrozenBatchNorm(self.epsilon, self.dtype, name="frozen")(x, conv)
        x = x if conv is None else conv(x)
        if self.kind == "none":
            return x
        inside = None if sizes is None else inside_mask(sizes, x.shape, stride)
        norm = GroupNorm(epsilon=self.epsilon, dtype=self.dtype, name="group")
        return norm(x, inside)


def inside_mask(sizes: jax.Array, shape: tuple[int, ...], stride: int) -> jax.Array:
    """Tells which cells of features touch the true image.

    Args:
      sizes: `[B, 2]` true (height, width) in canvas pixels.
      shape: of the features, `(B, H, W, C)`.
      stride: canvas pixels per cell.

    Returns:
      `[B, H, W, 1]` bool; a map of the image alone has `ceil(size / stride)` cells.
    """
    extents = -(-sizes // stride)
    rows = jnp.arange(shape[1])[None, :] < extents[:, :1]
    columns = jnp.arange(shape[2])[None, :] < extents[:, 1:]
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def zero_outside(
    features: jax.Array, sizes: jax.Array | None, stride: int
) -> jax.Array:
    """Zeroes the cells of features that lie outside the true images.

    Args:
      features: `[B, H, W, C]`.
      sizes: see above; with None nothing changes.
      stride: canvas pixels per cell.

    Returns:
      `[B, H, W, C]`; cells that an image touches stay as they are, see `inside_mask`.
    """
    if sizes is None:
        return features
    return jnp.where(inside_mask(sizes, features.shape, stride), features, 0)
