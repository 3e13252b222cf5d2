"""Convolves in the way that is fastest on each platform.

What CPUs compute in the place of XLA's convolution and its gradients is in
`cpu_convolution.py`.
"""

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

    Parameters are named and shaped as those of `flax.linen.Conv`. How it is computed
    depends on the platform, the numbers but for rounding do not. A 1x1 convolution is
    computed as a product of two matrices, except on NVIDIA's GPUs, where cuDNN adds
    shift, shortcut and ReLU to convolutions. One of 7x7 and stride 2 is slow for the
    three channels of images: CPUs and those GPUs convolve blocks of 2x2 pixels, TPUs
    pairs of rows.
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
        x = x if factor is None else x * spread_channels(after, x)
        return x if shift is None else x + spread_channels(shift, x)

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


def spread_channels(values: jax.Array, x: jax.Array) -> jax.Array:
    """Returns numbers `[C]` of channels in the form that multiplies features `x`."""
    return values.astype(x.dtype)[(None,) * (x.ndim - 1)]
