"""Adds stages beyond a backbone's last, for large objects (Liu et al. 2016, 2.1)."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.nn.convolution import Conv
from jaxdet.nn.layers import Norm, NormType, relu, zero_outside


class ExtraStages(nn.Module):
    """A backbone, continued by stages of a 1x1 and a 3x3 convolution of stride 2."""

    backbone: nn.Module  # its coarsest level is where the new ones begin
    channels: tuple[tuple[int, int], ...]
    """Of the 1x1 and of the 3x3 convolution of each stage."""
    norm: NormType = "none"  # of all new convolutions
    unpadded: int = 0
    """Of the last stages, so many have 3x3 convolutions of stride 1 without padding
    instead: the paper's 300 pixels end with 5, 3 and 1 cells. On a canvas larger than
    the image they see some padding; images should fill theirs."""
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32

    @nn.compact
    def __call__(
        self, pixels: jax.Array, sizes: jax.Array | None = None
    ) -> dict[int, jax.Array]:
        """Normalized pixels `[B, H, W, 3]` -> the backbone's levels, and the new ones.

        They are `{level: [B, ceil(H / 2**level), ceil(W / 2**level), C]}`; an unpadded
        level has two cells a side less than the one before.

        Raises:
          ValueError: if fewer than 3 cells a side are left for a convolution without
            padding.
        """
        stages = dict(self.backbone(pixels, sizes))
        top = max(stages)
        x = stages[top]
        for index, channels in enumerate(self.channels):
            level = top + 1 + index
            padded = index < len(self.channels) - self.unpadded
            if not padded and min(x.shape[1:3]) < 3:
                raise ValueError(
                    f"level {level} takes 3x3 cells or more, without padding, but "
                    f"level {level - 1} has {x.shape[1:3]} on a canvas of "
                    f"{pixels.shape[1:3]} pixels"
                )
            narrow, wide = channels
            layer = partial(self._layer, level=level)
            x = layer("1", narrow, x, (sizes, 2 ** (level - 1)), kernel=1)
            options = {"stride": 2} if padded else {"padding": (0, 0)}
            x = layer("2", wide, x, (sizes, 2**level), kernel=3, **options)
            stages[level] = x
        return stages

    def _layer(self, name, features, x, here, *, level, **options):
        conv = Conv(
            features,
            use_bias=self.norm == "none",
            dtype=self.dtype,
            name=f"level{level}_conv{name}",
            **options,
        )
        norm = Norm(self.norm, dtype=self.dtype, name=f"level{level}_norm{name}")
        return zero_outside(relu(norm(x, *here, conv=conv)), *here)
