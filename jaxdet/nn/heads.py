"""Small networks on top of a pyramid, the same for every level."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.nn.conv import Conv
from jaxdet.nn.norm import Kind, Norm
from jaxdet.nn.padding import zero_outside

_NORMAL = nn.initializers.normal(0.01)


class DenseHead(nn.Module):
    """3x3 convolutions with ReLUs, then one with `outputs` per cell (RetinaNet 4).

    Attributes:
      outputs: numbers per cell, for instance shapes times classes.
      depth: convolutions before the last one.
      norm: of those convolutions.
      bias: of the last convolution at the start of training.
      dtype: of the arithmetic; parameters stay float32.
    """

    outputs: int
    depth: int = 4
    norm: Kind = "none"
    bias: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, pyramid: dict[int, jax.Array], sizes: jax.Array | None = None
    ) -> jax.Array:
        """`{level: [B, H, W, C]}` -> `[B, cells, outputs]` float32.

        Cells run over levels (finest first), rows, columns, as in ops/anchors.py.

        Args:
          pyramid: features of one number of channels, which the convolutions keep.
          sizes: `[B, 2]` true (height, width) in canvas pixels, to keep the padding
            empty; None: all of the canvas is image.
        """
        channels = next(iter(pyramid.values())).shape[-1]
        layers = [self._layer(channels, index) for index in range(self.depth)]
        last = self._conv(self.outputs, "output", bias_init=_constant(self.bias))
        answers = []
        for level, x in sorted(pyramid.items()):
            here = (sizes, 2**level)
            for conv, norm in layers:
                x = nn.relu(norm(conv(zero_outside(x, *here)), *here))
            x = last(zero_outside(x, *here))
            answers.append(x.reshape(len(x), -1, self.outputs))
        return jnp.concatenate(answers, axis=1).astype(jnp.float32)

    def _layer(self, channels: int, index: int) -> tuple[Conv, Norm]:
        conv = self._conv(channels, f"conv{index}", use_bias=self.norm == "none")
        return conv, Norm(self.norm, dtype=self.dtype, name=f"norm{index}")

    def _conv(self, features: int, name: str, **options) -> Conv:
        return Conv(
            features, kernel_init=_NORMAL, dtype=self.dtype, name=name, **options
        )


def _constant(value: float) -> Callable:
    return nn.initializers.constant(value)
