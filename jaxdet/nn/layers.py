"""Convolves, pools and normalizes, and keeps the padding of a canvas empty.

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

from jaxdet.nn.cpu_convolution import convolve

HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

NormType = Literal["frozen", "group", "none"]


class Conv(nn.Module):
    """A square convolution, zero-padded so that stride 1 keeps the extents.

    Parameters are named and shaped as those of `flax.linen.Conv`. How it is computed
    depends on the platform, the numbers but for rounding do not. A 1x1 convolution is a
    product of two matrices; on NVIDIA's GPUs it stays one, to which cuDNN adds shift,
    shortcut and ReLU itself. One of 7x7 and stride 2 is slow for the three channels of
    images: CPUs and those GPUs convolve blocks of 2x2 pixels, TPUs pairs of rows.
    """

    features: int  # channels of the output
    kernel: int = 3  # side in cells, odd
    stride: int = 1  # cells from one output to the next
    use_bias: bool = True  # whether a number for each channel is added
    padding: tuple[int, int] | None = None
    """Cells before and after; None: half of the kernel's reach on both sides."""
    dilation: int = 1  # cells from one tap of the kernel to the next
    kernel_init: Callable = HE_NORMAL  # of `[kernel, kernel, C, features]`
    bias_init: Callable = nn.initializers.zeros  # of `[features]`
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        factor: jax.Array | None = None,
        shift: jax.Array | None = None,
    ) -> jax.Array:
        """`[B, H, W, C]` -> `[B, ceil(H / stride), ceil(W / stride), features]`.

        So many cells where the padding sums to `dilation * (kernel - 1)`, fewer where
        to less.

        Args:
          x: features.
          factor: `[features]` float32 that the output is multiplied by, as a frozen
            norm does; on accelerators the kernel is, so that they write it once.
          shift: `[features]` float32, added to that.
        """
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,))
            bias = bias if factor is None else bias * factor
            shift = bias if shift is None else bias + shift
        if factor is not None:
            before, after = _divide(factor)
            kernel *= before[None, None, None]
        x = self._convolve(x.astype(self.dtype), kernel.astype(self.dtype))
        x = x if factor is None else x * _spread(after, x)
        return x if shift is None else x + _spread(shift, x)

    def _convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        reach = (self.kernel - 1) * self.dilation
        margins = self.padding or (reach // 2, reach // 2)
        if self.kernel == 1 and margins == (0, 0):
            return _convolve_1x1(x, kernel, self.stride)
        if (self.kernel, self.stride, self.dilation, margins) == (7, 2, 1, (3, 3)):
            return _convolve_7x7(x, kernel)
        plain = functools.partial(
            convolve, stride=self.stride, margins=margins, dilation=self.dilation
        )
        if x.shape[-1] % 8 == self.features % 8 == 0:
            return plain(x, kernel)
        in_eights = functools.partial(convolve_in_eights, plain)
        return lax.platform_dependent(x, kernel, cuda=in_eights, default=plain)


def _divide(factor):
    """Returns factors of a kernel, and of what is convolved; ones are optimized away.

    On CPUs a multiplication beside an addition costs nothing, and one of kernels time.
    """
    return lax.platform_dependent(
        factor,
        cpu=lambda factor: (jnp.ones_like(factor), factor),
        default=lambda factor: (factor, jnp.ones_like(factor)),
    )


# Compiled by itself, so that layers of the same shapes are traced only once.
@functools.partial(jax.jit, static_argnums=2)
def _convolve_1x1(x, kernel, stride):
    def product(x, kernel):
        # Two dimensions, made by hand: XLA's product of four is far slower on CPU.
        x = x[:, ::stride, ::stride]
        flat = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
        return flat.reshape(*x.shape[:-1], kernel.shape[-1])

    plain = functools.partial(convolve, stride=stride)
    in_eights = functools.partial(convolve_in_eights, plain)
    return lax.platform_dependent(x, kernel, cuda=in_eights, default=product)


def _convolve_7x7(x, kernel):
    return lax.platform_dependent(
        *(x, kernel),
        cpu=conv7x7_on_blocks,
        cuda=functools.partial(conv7x7_on_blocks, in_eights=True),
        tpu=conv7x7_on_pairs_of_rows,
        default=functools.partial(convolve, stride=2, margins=(3, 3)),
    )


def convolve_in_eights(
    convolution: Callable, x: jax.Array, kernel: jax.Array
) -> jax.Array:
    """Convolves with zeros for more channels, so that there are multiples of 8.

    Tensor cores need such numbers. cuDNN copies all features to add channels itself;
    here XLA adds them where it makes the features, and drops them where it reads them.

    Args:
      convolution: of features and a kernel.
      x: `[B, H, W, C]`.
      kernel: `[side, side, C, K]`.

    Returns:
      What `convolution` does, `[B, H', W', K]`.
    """
    channels, features = kernel.shape[2:]
    if channels % 8 == features % 8 == 0:
        return convolution(x, kernel)
    more = (0, -channels % 8)
    x = jnp.pad(x, [(0, 0)] * 3 + [more])
    kernel = jnp.pad(kernel, [(0, 0)] * 2 + [more, (0, -features % 8)])
    return convolution(x, kernel)[..., :features]


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
        return x * _spread(factor, x) + _spread(shift, x)


def _spread(values: jax.Array, x: jax.Array) -> jax.Array:
    """Returns a number for each channel as `x` can be multiplied with."""
    return values.astype(x.dtype)[(None,) * (x.ndim - 1)]


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


def conv7x7_on_blocks(
    x: jax.Array, kernel: jax.Array, *, in_eights: bool = False
) -> jax.Array:
    """Computes a 7x7 convolution of stride 2 as a 4x4 one on blocks of 2x2 pixels.

    Args:
      x: `[B, H, W, C]`.
      kernel: `[7, 7, C, K]`.
      in_eights: whether by `convolve_in_eights`.

    Returns:
      `[B, ceil(H / 2), ceil(W / 2), K]`, where the margins are 3 cells wide.
    """
    batch, height, width, channels = x.shape
    # Taps 2i - 3 to 2i + 3, with one of weight 0 before, are blocks i - 2 to i + 1.
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
    kernel = kernel.reshape(4, 2, 4, 2, channels, -1).transpose(0, 2, 1, 3, 4, 5)
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    rows, columns = -(-height // 2), -(-width // 2)
    x = x.reshape(batch, rows, 2, columns, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(batch, rows, columns, 4 * channels)
    kernel = kernel.reshape(4, 4, 4 * channels, -1)
    plain = functools.partial(convolve, margins=(2, 1))
    return convolve_in_eights(plain, x, kernel) if in_eights else plain(x, kernel)


def conv7x7_on_pairs_of_rows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes a 7x7 convolution of stride 2 as a 4x7 one on blocks of 2x1 pixels.

    TPUs pad each pixel's three channels to 128: pairs of them take half the memory and,
    by the compiler's estimate, 70 % of the time. Making blocks of 2x2 pixels takes
    longer than they save.

    Args:
      x: `[B, H, W, C]`.
      kernel: `[7, 7, C, K]`.

    Returns:
      `[B, ceil(H / 2), ceil(W / 2), K]`, where the margins are 3 cells wide.
    """
    # As in `conv7x7_on_blocks`, but for the columns.
    kernel = jnp.pad(kernel, ((1, 0), (0, 0), (0, 0), (0, 0)))
    kernel = kernel.reshape(4, 2, 7, x.shape[-1], -1).transpose(0, 2, 1, 3, 4)
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))
    x = jnp.concatenate([x[:, ::2], x[:, 1::2]], axis=-1)
    return lax.conv_general_dilated(
        x,
        kernel.reshape(4, 7, x.shape[-1], -1),
        window_strides=(1, 2),
        padding=((2, 1), (3, 3)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
