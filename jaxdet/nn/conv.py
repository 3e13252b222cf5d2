"""The convolution and the pooling of every network here."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxdet.nn.cpu_convolution import convolve

HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
    """A square convolution, zero-padded so that stride 1 keeps the extents.

    Parameters are named and shaped as those of `flax.linen.Conv`. A 1x1 convolution is
    computed as one product of two matrices, and a 7x7 one of stride 2 on blocks of 2x2
    pixels: the same numbers, several times faster on CPU, where gradients of 1x1
    convolutions and convolutions of three channels are slow. On accelerators neither
    has been timed.

    Attributes:
      features: channels of the output.
      kernel: side in cells, odd.
      stride: cells from one output to the next.
      use_bias: whether a number for each channel is added.
      padding: cells before and after; None: half of the kernel's reach on both sides.
      dilation: cells from one tap of the kernel to the next.
      kernel_init: of `[kernel, kernel, C, features]`.
      bias_init: of `[features]`.
      dtype: of the arithmetic; parameters stay float32.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    use_bias: bool = True
    padding: tuple[int, int] | None = None
    dilation: int = 1
    kernel_init: Callable = HE_NORMAL
    bias_init: Callable = nn.initializers.zeros
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` -> `[B, ceil(H / stride), ceil(W / stride), features]`.

        So many cells where the padding sums to `dilation * (kernel - 1)`, fewer where
        to less.
        """
        reach = (self.kernel - 1) * self.dilation
        margins = self.padding or (reach // 2, reach // 2)
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.kernel == 1 and margins == (0, 0):
            x = _pointwise(x[:, :: self.stride, :: self.stride], kernel[0, 0])
        elif (self.kernel, self.stride, self.dilation, margins) == (7, 2, 1, (3, 3)):
            x = _on_blocks(x, kernel)
        else:
            x = convolve(x, kernel, self.stride, margins, self.dilation)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,))
            x = x + bias.astype(self.dtype)[None, None, None]
        return x


def max_pool(
    x: jax.Array, window: int = 3, padding: tuple[int, int] = (1, 1), stride: int = 2
) -> jax.Array:
    """The maximum over square windows, as a rule at every second cell; outside is 0.

    As maxima of shifted copies, rows first: XLA's gradient of a window's maximum
    searches each window again, and on CPU takes seven times as long.

    Args:
      x: `[B, H, W, C]`, nothing negative (after a ReLU).
      window: side in cells.
      padding: cells before and after.
      stride: cells from one window to the next.

    Returns:
      `[B, ceil(H / stride), ceil(W / stride), C]` where the padding sums to
      `window - 1`, fewer cells where to less.
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


def _on_blocks(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 7x7 convolution of stride 2 as a 4x4 one on blocks of 2x2 pixels."""
    batch, height, width, channels = x.shape
    # Taps 2i - 3 to 2i + 3, with one of weight 0 before, are blocks i - 2 to i + 1.
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
    kernel = kernel.reshape(4, 2, 4, 2, channels, -1).transpose(0, 2, 1, 3, 4, 5)
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    rows, columns = -(-height // 2), -(-width // 2)
    x = x.reshape(batch, rows, 2, columns, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(batch, rows, columns, 4 * channels)
    return convolve(x, kernel.reshape(4, 4, 4 * channels, -1), 1, (2, 1))


def _pointwise(x: jax.Array, matrix: jax.Array) -> jax.Array:
    # Two dimensions, made by hand: XLA's four-dimensional product is far slower on CPU.
    flat = x.reshape(-1, x.shape[-1]) @ matrix
    return flat.reshape(*x.shape[:-1], matrix.shape[-1])
