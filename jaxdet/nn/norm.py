"""Normalisation for small batches: frozen statistics, or statistics of one image."""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxdet.nn import padding

Kind = Literal["frozen", "group", "none"]


class FrozenBatchNorm(nn.Module):
    """Batch norm whose statistics, scale and bias are constants (He et al. 2015, 3.4).

    They live in the collection `constants`, out of reach of any optimizer, and come
    from a pretrained checkpoint; without one this is the identity.

    Attributes:
      epsilon: added to the variances.
      dtype: of the arithmetic; parameters and statistics stay float32.
    """

    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` -> the same shape."""
        shape = x.shape[-1:]
        scale = self.variable("constants", "scale", jnp.ones, shape).value
        bias = self.variable("constants", "bias", jnp.zeros, shape).value
        mean = self.variable("constants", "mean", jnp.zeros, shape).value
        var = self.variable("constants", "var", jnp.ones, shape).value
        factor = scale * lax.rsqrt(var + self.epsilon)
        shift = bias - mean * factor
        spread = (None,) * (x.ndim - 1)
        return (
            x.astype(self.dtype) * factor.astype(self.dtype)[spread]
            + shift.astype(self.dtype)[spread]
        )


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018): statistics of a few channels of one image.

    They are summed channel by channel first, in one pass over the features; groups are
    then joined on `[B, C]` numbers.

    Attributes:
      groups: fewer where a group would be left with a single channel.
      epsilon: added to the variances.
      dtype: of the arithmetic; parameters and statistics stay float32.
    """

    groups: int = 32
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

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
    """The norm of one layer, by kind: `FrozenBatchNorm`, `GroupNorm` or none.

    Attributes:
      kind: `"frozen"`, `"group"` or `"none"`.
      epsilon: added to the variances.
      dtype: of the arithmetic; parameters and statistics stay float32.
    """

    kind: Kind = "group"
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, sizes: jax.Array | None = None, stride: int = 1
    ) -> jax.Array:
        """`[B, H, W, C]` -> the same shape; statistics leave the canvas's padding out.

        Args:
          x: features.
          sizes: `[B, 2]` true (height, width) in canvas pixels, or None: all is image.
          stride: canvas pixels per cell.

        Raises:
          ValueError: if `kind` is none of the three.
        """
        if self.kind not in ("frozen", "group", "none"):
            raise ValueError(
                f"norm is {self.kind!r}; it must be 'frozen', 'group' or 'none'"
            )
        if self.kind == "none":
            return x
        if self.kind == "frozen":
            return FrozenBatchNorm(self.epsilon, self.dtype, name="frozen")(x)
        inside = None if sizes is None else padding.inside(sizes, x.shape, stride)
        norm = GroupNorm(epsilon=self.epsilon, dtype=self.dtype, name="group")
        return norm(x, inside)
