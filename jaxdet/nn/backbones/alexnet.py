"""Defines AlexNet in a single tower (Krizhevsky et al. 2012; Krizhevsky 2014)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.nn.convolution import Conv
from jaxdet.nn.layers import Norm, NormType, max_pool, maybe_remat, relu, zero_outside

# Channels as multiples of conv1's, kernel, stride, padding before.
_CONVS = ((1, 11, 4, 2), (3, 5, 1, 2), (6, 3, 1, 1), (4, 3, 1, 1), (4, 3, 1, 1))
_WINDOW = 3  # of the poolings, which follow conv1 and conv2


class AlexNet(nn.Module):
    """The convolutional part of AlexNet, without the last pooling.

    Its box head is `FCHead(4096, depth=2, dropout=0.5)` on 6x6 cells.

    The published paddings make 13x13 cells of 224 pixels; the first is centered at
    pixel 15.5 and the last 16 pixels from the border, so the cells of a canvas are too
    few, and lie half a cell to the lower right of where a region of them is pooled.
    With one cell of padding before the second pooling, and enough after all layers,
    there are `ceil(canvas / 16)` of them, the first centered at 7.5. The filters see
    the same patterns; Fast R-CNN changes the paddings of its AlexNet for the same
    purpose.
    """

    width: int = 64  # channels of conv1; the others have 3, 6, 4 and 4 times as many
    norm: NormType = "none"  # `"none"` as torchvision, `"group"` to train from scratch
    centered: bool = True
    """Cells centered in their strides, to detect on the features of an image; False:
    the published paddings, to classify crops as in pretraining."""
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32
    remat: bool = False  # whether gradients compute the layers again, `maybe_remat`

    @nn.compact
    def __call__(
        self, pixels: jax.Array, sizes: jax.Array | None = None
    ) -> dict[int, jax.Array]:
        """Normalized pixels `[B, H, W, 3]` -> conv5 after its ReLU.

        It is `{4: [B, ceil(H / 16), ceil(W / 16), 4 * width]}`; about one row and
        column less, 13x13 cells of 224x224 pixels, if not `centered`.
        """
        x, cells = pixels, sizes  # cells: what images of those sizes have in this layer
        for index in range(len(_CONVS)):

            def layer(network, x, cells, index=index):
                return _layer(network, index, x, cells)

            x, cells = maybe_remat(layer, self.remat)(self, x, cells)
        return {4: x}


def first_convs(count: int) -> tuple[str, ...]:
    """Returns patterns of the first layers' parameters, for `TrainingConfig.frozen`.

    There is one for each of `count` layers; 5 are all (SPP-net).

    Raises:
      ValueError: if `count` is not in 0 to 5.
    """
    if not 0 <= count <= 5:
        raise ValueError(f"AlexNet has 5 convolutions; cannot freeze the first {count}")
    return tuple(f"backbone/(conv|norm){index + 1}/.*" for index in range(count))


def layers(centered: bool = True) -> tuple[tuple[int, int, int], ...]:
    """Returns (kernel, stride, padding before) of all layers up to conv5."""
    stack = [conv[1:] for conv in _CONVS]
    for index in (2, 1):  # from the end, so that places before stay
        stack.insert(index, (_WINDOW, 2, _pool_padding(index, centered)))
    return tuple(stack)


def _layer(
    network: AlexNet, index: int, x: jax.Array, cells: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Runs a convolution, made within the network, and the pooling that follows it."""
    multiple, kernel, stride, before = _CONVS[index]
    # `kernel - 1` in all makes ceil(extent / stride) cells.
    margins = (before, kernel - 1 - before if network.centered else before)
    conv = Conv(
        network.width * multiple,
        kernel,
        stride,
        network.norm == "none",
        margins,
        dtype=network.dtype,
        name=f"conv{index + 1}",
    )
    norm = Norm(network.norm, dtype=network.dtype, name=f"norm{index + 1}")
    cells = _cells(cells, kernel, stride, margins)
    x = zero_outside(relu(norm(x, cells, conv=conv)), cells, 1)
    if index < 2:
        before = _pool_padding(index + 1, network.centered)
        margins = (before, _WINDOW - 1 - before if network.centered else 0)
        cells = _cells(cells, _WINDOW, 2, margins)
        x = zero_outside(max_pool(x, _WINDOW, margins), cells, 1)
    return x, cells


def _pool_padding(index: int, centered: bool) -> int:
    return 1 if centered and index == 2 else 0


def _cells(
    sizes: jax.Array | None, kernel: int, stride: int, margins: tuple[int, int]
) -> jax.Array | None:
    if sizes is None:
        return None
    return (sizes + (sum(margins) - kernel)) // stride + 1
