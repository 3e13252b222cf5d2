"""Defines MobileNetV2 (Sandler et al. 2018)."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.nn.backbones import inverted_residual
from jaxdet.nn.backbones.inverted_residual import InvertedResidual, Padding
from jaxdet.nn.convolution import Conv
from jaxdet.nn.layers import Norm, NormType, maybe_remat

_PLAN = {  # Table 2
    1: ((1, 16, 3),),
    2: ((2, 24, 3),),
    3: ((3, 32, 3),),
    4: ((4, 64, 3), (3, 96, 3)),
    5: ((3, 160, 3), (1, 320, 3)),
}
_LAST = 1280  # channels of the last 1x1 convolution


class MobileNetV2(nn.Module):
    """The convolutional part of MobileNetV2."""

    width: float = 1.0  # channels, as a multiple of the published ones
    wide: bool = False
    """Whether to return the features that SSDLite detects on (section 6.2): those of
    stages 2 to 4 as the next stage widens them, and those of stage 5 after the last 1x1
    convolution; False: as the stages end, and without it."""
    extra: tuple[tuple[int, int], ...] = ()
    """(between, features) channels of further stages, of one block each, that end with
    a ReLU6: levels from 6 on."""
    padding: Padding = "centered"
    """`"centered"` for parameters of torchvision, `"same"` of TensorFlow."""
    norm: NormType = "frozen"
    """`"frozen"` with pretrained statistics, `"group"` to train from scratch."""
    epsilon: float = 1e-5  # of the norms; TensorFlow's is 1e-3
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32
    remat: bool = False  # whether gradients compute the layers again, `maybe_remat`

    @nn.compact
    def __call__(
        self, pixels: jax.Array, sizes: jax.Array | None = None
    ) -> dict[int, jax.Array]:
        """Normalized pixels `[B, H, W, 3]` -> stages 2 to 5, and the extra ones.

        They are `{level: [B, ceil(H / 2**level), ceil(W / 2**level), C]}`, with 24, 32,
        96 and 320 channels, or 144, 192, 576 and 1280 if `wide`, and those of `extra`.
        """
        narrow, wide = inverted_residual.stages(
            self, _PLAN, self.padding, pixels, sizes
        )
        norm = partial(Norm, self.norm, epsilon=self.epsilon, dtype=self.dtype)
        if self.wide:
            last = Conv(
                math.ceil(_LAST * self.width),
                1,
                use_bias=False,
                dtype=self.dtype,
                name="last_conv",
            )
            wide[5] = nn.relu6(norm(name="last_norm")(narrow[5], sizes, 32, conv=last))
        features = {
            level: (wide if self.wide else narrow)[level] for level in range(2, 6)
        }
        for level, (between, channels) in enumerate(self.extra, start=6):
            block = maybe_remat(InvertedResidual, self.remat)(
                between=math.ceil(between * self.width),
                features=math.ceil(channels * self.width),
                level=level,
                norm=norm,
                stride=2,
                padding=self.padding,
                linear=False,
                dtype=self.dtype,
                name=f"stage{level}_block0",
            )
            features[level], _ = block(features[level - 1], sizes)
        return features
