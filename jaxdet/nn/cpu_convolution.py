"""Convolves arrays, on CPUs in ways that are faster there than XLA's.

XLA's CPU backend takes two to five times as long for the gradient of a kernel as for
the convolution, and for the convolution as long as for its products of numbers. The
ways here are faster there, and exact but for rounding. On other platforms a program
holds XLA's convolution and its gradients, and nothing else.
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
# Kernels' gradients: the speed of XLA's holds up to so many cells, ...
_BAND_CELLS = 8192
_MOST_BANDS = 16  # ... and each band takes time to compile.


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    stride: int = 1,
    margins: tuple[int, int] = (0, 0),
    dilation: int = 1,
) -> jax.Array:
    """Convolves images with a square kernel.

    Args:
      x: `[B, H, W, C]`.
      kernel: `[side, side, C, K]`, of the same dtype.
      stride: cells from one output to the next.
      margins: rows and columns of zeros before and after.
      dilation: cells from one tap of the kernel to the next.

    Returns:
      `[B, H', W', K]`, of that dtype; H and W again if the stride is 1 and the margins
      sum to `dilation * (side - 1)`.
    """
    if stride == dilation == 1 and sum(margins) == len(kernel) - 1:
        return _same_extents(x, kernel, margins)
    return _convolution(x, kernel, (margins, margins), stride, dilation)


def _convolution(x, kernel, padding, stride=1, dilation=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _same_extents(x, kernel, margins):
    plain = functools.partial(_convolution, padding=(margins, margins))
    if not _winograd_pays(x.shape, kernel.shape, margins):
        return plain(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=_winograd, default=plain)


def _same_extents_forward(x, kernel, margins):
    return _same_extents(x, kernel, margins), (x, kernel)


def _same_extents_backward(margins, kept, gradient):
    x, kernel = kept
    plain = functools.partial(_kernel_gradient, shape=kernel.shape, margins=margins)
    on_cpu = functools.partial(_kernel_gradient_on_cpu, margins=margins)
    of_kernel = lax.platform_dependent(x, gradient, cpu=on_cpu, default=plain)
    return _input_gradient(x, kernel, gradient, margins), of_kernel


_same_extents.defvjp(_same_extents_forward, _same_extents_backward)


def _input_gradient(x, kernel, gradient, margins):
    def plain(kernel, gradient):
        convolution = functools.partial(_convolution, padding=(margins, margins))
        return jax.vjp(lambda x: convolution(x, kernel), x)[1](gradient)[0]

    def turned(kernel, gradient):
        return _winograd(gradient, kernel[::-1, ::-1].swapaxes(2, 3))

    if not _winograd_pays(x.shape, kernel.shape, margins):
        return plain(kernel, gradient)
    return lax.platform_dependent(kernel, gradient, cpu=turned, default=plain)


def _kernel_gradient(x, gradient, shape, margins):
    kernel = jnp.zeros(shape, x.dtype)  # the gradient does not depend on it
    convolution = functools.partial(_convolution, x, padding=(margins, margins))
    return jax.vjp(convolution, kernel)[1](gradient)[0]


def _kernel_gradient_on_cpu(x, gradient, margins):
    if math.prod(x.shape[:3]) <= _BAND_CELLS:
        return _kernel_gradient_as_convolution(x, gradient, (margins, margins))
    # Partial sums are not rounded to less than float32.
    arguments = _widened(x), _widened(gradient), margins
    return _kernel_gradient_in_bands(*arguments).astype(x.dtype)


def _kernel_gradient_as_convolution(x, gradient, padding):
    """Convolves with the axes of images, which XLA's own gradient does not have.

    Within a loop, such as that over chunks of masks, XLA is 200 times slower without.
    """
    x, kernel = x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3)
    return _convolution(x, kernel, padding).transpose(1, 2, 0, 3)


def _kernel_gradient_in_bands(x, gradient, margins):
    """Sums over bands of rows, none of which exceeds the processor's caches."""
    batch, height, width, _ = x.shape
    bands = min(-(-batch * height * width // _BAND_CELLS), height, _MOST_BANDS)
    rows, total = -(-height // bands), 0
    x = jnp.pad(x, ((0, 0), margins, (0, 0), (0, 0)))
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        around, here = x[:, start : stop + sum(margins)], gradient[:, start:stop]
        padding = ((0, 0), margins)
        total += _kernel_gradient_as_convolution(around, here, padding)
    return total


# Winograd's F(2x2, 3x3), Lavin & Gray 2016, section 4.1: squares of 2x2 cells of the
# output, A^T [(G g G^T) * (B^T d B)] A for a kernel g and the 4x4 cells d around a
# square, need 16 products of numbers instead of 36. Over all channels and squares they
# are 16 products of matrices. One column of the 4x4 at a time keeps the program short.


def _winograd_pays(x_shape, kernel_shape, margins):
    if kernel_shape[:2] != (3, 3) or margins != (1, 1):
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
