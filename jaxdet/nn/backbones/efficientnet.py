"""Defines EfficientNet-Lite0 (Tan & Le 2019): without attention, with ReLU6."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.nn.backbones import inverted_residual
from jaxdet.nn.backbones.inverted_residual import first_stages
from jaxdet.nn.layers import NormType

__all__ = ["MEAN", "STD", "EfficientNetLite0", "first_stages"]

MEAN = (127 / 255,) * 3
STD = (128 / 255,) * 3
"""Of the pixels that the published weights take, for a detector's `mean` and `std`."""

_PLAN = {  # Table 1, of B0
    1: ((1, 16, 3),),
    2: ((2, 24, 3),),
    3: ((2, 40, 5),),
    4: ((3, 80, 3), (3, 112, 5)),
    5: ((4, 192, 5), (1, 320, 3)),
}


class EfficientNetLite0(nn.Module):
    """The convolutions of EfficientNet-Lite0, without the last 1x1 one."""

    width: float = 1.0  # channels, as a multiple of the published ones
    norm: NormType = "frozen"
    """`"frozen"` with pretrained statistics, `"group"` to train from scratch."""
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32
    remat: bool = False  # whether gradients compute the layers again, `maybe_remat`
    epsilon = 1e-3  # of the norms

    @nn.compact
    def __call__(
        self, pixels: jax.Array, sizes: jax.Array | None = None
    ) -> dict[int, jax.Array]:
        """Normalized pixels `[B, H, W, 3]` -> the features of stages 2 to 5.

        They are `{level: [B, ceil(H / 2**level), ceil(W / 2**level), C]}`, with 24, 40,
        112 and 320 channels.
        """
        narrow, _ = inverted_residual.stages(self, _PLAN, "same", pixels, sizes)
        return {level: narrow[level] for level in range(2, 6)}
