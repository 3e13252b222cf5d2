"""Convolves each channel with a filter of its own, as a sum of shifted copies.

On CPUs a loop adds one copy after the other, and other loops compute the gradients. As
one expression, XLA's CPU backend would compute what comes before the convolution again
for each of the copies, and compile it again for each.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


def convolve_depthwise(
    x: jax.Array, kernel: jax.Array, stride: int, extents: tuple[int, int]
) -> jax.Array:
    """Convolves padded features with one square filter a channel.

    Args:
      x: `[B, H, W, C]`, with at least the cells that the windows cover.
      kernel: `[side, side, C]`, of the same dtype.
      stride: cells from one output to the next.
      extents: rows and columns of the output.

    Returns:
      float32 `[B, *extents, C]`: rounded no further, as convolutions add up.
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(by_loops, stride, extents),
        default=functools.partial(_unrolled, stride, extents),
    )


def _unrolled(stride, extents, x, kernel):
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    total, reaches = jnp.zeros((), dtype), _reaches(stride, extents)
    for i in range(len(kernel)):
        for j in range(len(kernel)):
            covered = x[:, i : i + reaches[0] : stride, j : j + reaches[1] : stride]
            total += covered.astype(dtype) * kernel[i, j][None, None, None]
    return total


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def by_loops(
    stride: int, extents: tuple[int, int], x: jax.Array, kernel: jax.Array
) -> jax.Array:
    """Returns what `convolve_depthwise` does, by one loop over the filters' taps.

    Args:
      stride: cells from one output to the next.
      extents: rows and columns of the output.
      x: `[B, H, W, C]`.
      kernel: `[side, side, C]`.

    Returns:
      `[B, *extents, C]`, float32 or, of such, float64.
    """
    side, dtype = len(kernel), jnp.promote_types(x.dtype, jnp.float32)

    def add(tap, total):
        i, j = tap // side, tap % side
        covered = _shifted(x, i, j, stride, extents).astype(dtype)
        return total + covered * kernel[i, j][None, None, None]

    zeros = jnp.zeros((len(x), *extents, x.shape[-1]), dtype)
    return lax.fori_loop(0, side**2, add, zeros)


def _forward(stride, extents, x, kernel):
    return by_loops(stride, extents, x, kernel), (x, kernel)


def _backward(stride, extents, kept, gradient):
    x, kernel = kept
    side = len(kernel)

    def of_tap(tap):
        shifted = _shifted(x, tap // side, tap % side, stride, extents)
        return jnp.sum(shifted * gradient, (0, 1, 2))

    of_kernel = lax.map(of_tap, jnp.arange(side**2)).reshape(kernel.shape)
    # The filter turned, over the gradient with zeros between its cells.
    around = [
        (side - 1, length - reach, stride - 1)
        for length, reach in zip(x.shape[1:3], _reaches(stride, extents), strict=True)
    ]
    zero = jnp.zeros((), gradient.dtype)
    spread = lax.pad(gradient, zero, ((0, 0, 0), *around, (0, 0, 0)))
    of_x = by_loops(1, x.shape[1:3], spread, kernel[::-1, ::-1])
    return of_x.astype(x.dtype), of_kernel.astype(kernel.dtype)


by_loops.defvjp(_forward, _backward)


def _shifted(x, row, column, stride, extents):
    """The cells that lie under one tap, `[B, *extents, C]`."""
    sizes = len(x), *_reaches(stride, extents), x.shape[-1]
    covered = lax.dynamic_slice(x, (0, row, column, 0), sizes)
    return covered[:, ::stride, ::stride]


def _reaches(stride, extents):
    """The cells from the first to the last that lie under one tap, on both axes."""
    return [stride * (extent - 1) + 1 for extent in extents]
