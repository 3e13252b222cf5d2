"""Convolves arrays, on CPUs in ways that are faster there than XLA's.

XLA's CPU backend takes two to five times as long for the gradient of a kernel as for
the convolution, within loops 20 to 200 times as long. Its 3x3 convolutions compute 36
products of numbers for 2x2 cells, where 16 suffice. The ways here are faster there, and
exact but for rounding. On other platforms a program holds XLA's convolution and its
gradients, and nothing else.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Measured with 3x3 kernels on two cores. Winograd's way pays from so many products of
# numbers on: each takes a third of a second to compile, ...
_MANY_PRODUCTS = 2**30
# ... and so many channels on both sides: with fewer, its sums outweigh the products.
_MANY_CHANNELS = 128
# Kernels' gradients are fastest over so many cells of the output at a time, ...
_BAND_CELLS = 8192
_MOST_BANDS = 16  # ... but each such band takes time to compile.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def convolve(
    x: jax.Array,
    kernel: jax.Array,
    stride: int = 1,
    margins: tuple[int, int] = (0, 0),
    dilation: int = 1,
) -> jax.Array:
    """Convolves images with a square kernel.

    Its derivatives are those of reverse mode alone (`jax.grad`, `jax.vjp`).

    Args:
      x: `[B, H, W, C]`.
      kernel: `[side, side, C, K]`, of the same dtype.
      stride: cells from one output to the next.
      margins: rows and columns of zeros before and after, each from 0 to
        `dilation * (side - 1)`.
      dilation: cells from one tap of the kernel to the next.

    Returns:
      `[B, H', W', K]`, of that dtype; H and W again if the stride is 1 and the margins
      sum to `dilation * (side - 1)`.

    Raises:
      ValueError: for other margins, with which XLA's gradients on CPUs may be wrong.
    """
    reach = dilation * (len(kernel) - 1)
    if not 0 <= min(margins) <= max(margins) <= reach:
        raise ValueError(f"margins are {margins}; each must be from 0 to {reach}")
    steps = stride, margins, dilation
    plain = functools.partial(_convolution, steps=steps)
    if not _winograd_pays(x.shape, kernel.shape, steps):
        return plain(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=_winograd, default=plain)


def _forward(x, kernel, *steps):
    return convolve(x, kernel, *steps), (x, kernel)


def _backward(stride, margins, dilation, kept, gradient):
    (x, kernel), steps = kept, (stride, margins, dilation)

    def of_x(kernel, gradient):
        convolution = functools.partial(_convolution, kernel=kernel, steps=steps)
        return jax.vjp(convolution, x)[1](gradient)[0]

    def of_x_by_winograd(kernel, gradient):
        turned = kernel[::-1, ::-1].swapaxes(2, 3)
        return _summed_over_devices(_winograd(gradient, turned), x)

    def of_kernel(x, gradient):
        convolution = functools.partial(_convolution, x, steps=steps)
        return jax.vjp(convolution, kernel)[1](gradient)[0]

    if _winograd_pays(x.shape, kernel.shape, steps):
        x_gradient = lax.platform_dependent(
            kernel, gradient, cpu=of_x_by_winograd, default=of_x
        )
    else:
        x_gradient = of_x(kernel, gradient)

    def of_kernel_in_bands(x, gradient):
        total = _kernel_gradient(x, gradient, len(kernel), steps)
        return _summed_over_devices(total, kernel)

    return x_gradient, lax.platform_dependent(
        x, gradient, cpu=of_kernel_in_bands, default=of_kernel
    )


convolve.defvjp(_forward, _backward)


def _summed_over_devices(gradient, of):
    """Sums a gradient over the devices of a `shard_map` that share what it is of.

    Gradients made by JAX are such sums already.
    """
    return jax.vjp(lambda shared: shared + gradient, of)[1](gradient)[0]


def _convolution(x, kernel, steps):
    stride, margins, dilation = steps
    return _convolve_xla(x, kernel, stride, (margins, margins), dilation)


def _convolve_xla(x, kernel, stride, padding, dilation):
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _kernel_gradient(x, gradient, side, steps):
    """Sums over bands of rows, small enough for the processor's caches if 16 do.

    Of each band an ordinary convolution is taken, in which channels stand for images
    and images for channels. XLA's own gradient orders the axes in another way, which
    takes 20 to 200 times as long in a loop, such as that over chunks of masks.
    """
    if not gradient.size:
        return jnp.zeros((side, side, x.shape[3], gradient.shape[3]), gradient.dtype)
    stride, (before, _), dilation = steps
    batch, height, width, _ = gradient.shape
    bands = min(-(-batch * height * width // _BAND_CELLS), height, _MOST_BANDS)
    rows = -(-height // bands)
    total = jnp.float32(0)

    def window(start, stop, extent):  # what these cells read, and zeros around it
        first = stride * start - before
        end = stride * (stop - 1) - before + dilation * (side - 1) + 1
        inside = slice(max(first, 0), min(end, extent))
        return inside, (max(-first, 0), max(end - extent, 0))

    columns, beside = window(0, width, x.shape[2])
    # Partial sums are not rounded to less than float32.
    dtype = gradient.dtype
    x, gradient = _widened(x)[:, :, columns], _widened(gradient)
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        lines, around = window(start, stop, x.shape[1])
        band = x[:, lines].transpose(3, 1, 2, 0)
        taps = gradient[:, start:stop].transpose(1, 2, 0, 3)
        total += _convolve_xla(band, taps, dilation, (around, beside), stride)
    return total.transpose(1, 2, 0, 3).astype(dtype)


# Winograd's F(2x2, 3x3), Lavin & Gray 2016, section 4.1: squares of 2x2 cells of the
# output, A^T [(G g G^T) * (B^T d B)] A for a kernel g and the 4x4 cells d around a
# square, need 16 products of numbers instead of 36. Over all channels and squares they
# are 16 products of matrices. One column of the 4x4 at a time keeps the program short.


def _winograd_pays(x_shape, kernel_shape, steps):
    if kernel_shape[:2] != (3, 3) or steps != (1, (1, 1), 1):
        return False
    products = math.prod(x_shape[:3]) * math.prod(kernel_shape)
    return products >= _MANY_PRODUCTS and min(kernel_shape[2:]) >= _MANY_CHANNELS


def _winograd(x, kernel):
    """Computes the 3x3 convolution with a margin of 1."""
    dtype, shape = x.dtype, (*x.shape[:3], kernel.shape[-1])
    squares, kernels = _around_squares(_widened(x)), _transformed(_widened(kernel))
    products = [jnp.matmul(*column) for column in zip(squares, kernels, strict=True)]
    return _from_squares(products, shape).astype(dtype)


def _transformed(kernel):
    """G g G^T: `[3, 3, C, K]` -> 4 columns of `[4, C, K]`."""
    halves = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    flat, shape = kernel.reshape(9, -1), (4, *kernel.shape[2:])
    columns = [np.kron(halves, half).astype(kernel.dtype) for half in halves]
    return [(column @ flat).reshape(shape) for column in columns]


def _around_squares(x):
    """B^T d B: `[B, H, W, C]` -> 4 columns of `[4, B * squares, C]`."""
    batch, height, width, channels = x.shape
    rows, columns = -(-height // 2), -(-width // 2)
    x = jnp.pad(x, ((0, 0), (1, 1 + height % 2), (1, 1 + width % 2), (0, 0)))
    x = x.reshape(batch, rows + 1, 2, columns + 1, 2, channels)
    lines = x[:, :-1, 0], x[:, :-1, 1], x[:, 1:, 0], x[:, 1:, 1]
    lines = jnp.stack(_differences(*lines))
    left, right = lines[:, :, :, :-1], lines[:, :, :, 1:]
    cells = left[..., 0, :], left[..., 1, :], right[..., 0, :], right[..., 1, :]
    return [values.reshape(4, -1, channels) for values in _differences(*cells)]


def _differences(a, b, c, d):
    """Computes the rows of B^T."""
    return a - c, b + c, c - b, b - d


def _from_squares(products, shape):
    """A^T m A: 4 columns of `[4, B * squares, K]` -> `[B, H, W, K]`, that shape."""
    batch, height, width, channels = shape
    rows, columns = -(-height // 2), -(-width // 2)
    m = [values.reshape(4, batch, rows, columns, channels) for values in products]
    halves = [jnp.stack(_sums(*half), 2) for half in _sums(*m)]
    output = jnp.stack(halves, 4)  # [B, rows, 2, columns, 2, K]
    output = output.reshape(batch, 2 * rows, 2 * columns, channels)
    return output[:, :height, :width]


def _sums(a, b, c, d):
    """Computes the rows of A^T."""
    return a + b + c, b - c - d


def _widened(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
