"""Normalizes, crops and rescales images on the device."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

from jaxdet.ops.boxes import to_float32


def normalize(
    images: Real[Array, "*B H W 3"],
    sizes: Int[Array, "*#B 2"],
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> Float[Array, "*B H W 3"]:
    """Brings pixels to zero mean and unit variance, and padding to exactly 0.

    Args:
      images: from 0 to 255, uint8 as a rule, each image in the upper left corner of
        its canvas.
      sizes: true (height, width), broadcast against the images.
      mean: of each channel, on a scale from 0 to 1.
      std: of each channel, on the same scale.

    Returns:
      The images in float32.
    """
    *leading, height, width, _ = images.shape
    sizes = jnp.broadcast_to(sizes, (*leading, 2))[..., None, None, :]
    grid = (*leading, height, width)
    rows = jax.lax.broadcasted_iota(jnp.int32, grid, len(leading))
    columns = jax.lax.broadcasted_iota(jnp.int32, grid, len(leading) + 1)
    inside = (rows < sizes[..., 0]) & (columns < sizes[..., 1])
    mean, std = (
        jnp.broadcast_to(jnp.array(statistic, jnp.float32), images.shape)
        for statistic in (mean, std)
    )
    pixels = (images.astype(jnp.float32) / 255 - mean) / std
    return jnp.where(inside[..., None], pixels, 0.0)


def crop_and_warp(
    image: Float[Array, "H W C"],
    boxes: Float[Array, "R 4"],
    *,
    output_size: int,
    context: int = 0,
) -> Float[Array, "R S S C"]:
    """Warps regions of an image to squares (Girshick et al. 2014, 2.1, A).

    Bilinear between the pixels' centers and without antialiasing, whatever the box's
    size; all around the image there are pixels of 0, so padding the canvas of a
    normalized image changes nothing. The boxes get no gradient.

    Args:
      image: normalized, padding 0.
      boxes: pixels, anywhere. A box of no area gives a crop of one color.
      output_size: side S of a crop, in its own pixels.
      context: of these, how many on each side show what surrounds the box, which fills
        the middle
        `output_size - 2 * context`; the paper's 227 have 16.

    Returns:
      The crops.

    Raises:
      ValueError: if the context leaves nothing for the box.
    """
    inner = output_size - 2 * context
    if context < 0 or inner <= 0:
        raise ValueError(
            f"context {context} on each side of a crop of {output_size} pixels"
        )
    boxes = to_float32(jax.lax.stop_gradient(boxes))
    x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
    offsets = (
        jnp.arange(output_size) + 0.5 - context
    ) / inner  # 0 and 1: the box's sides

    def corners(start, end, extent):
        """Yields two of the image's rows or columns for each of a crop's."""
        position = start[:, None] + offsets[None] * (end - start)[:, None] - 0.5
        low = jnp.floor(position)
        high_weight = position - low
        for index, weight in ((low, 1 - high_weight), (low + 1, high_weight)):
            inside = (index >= 0) & (index < extent)
            index = jnp.clip(index, 0, extent - 1).astype(jnp.int32)
            yield index, jnp.where(inside, weight, 0.0)

    height, width, channels = image.shape
    crops = jnp.zeros((len(boxes), output_size, output_size, channels))
    columns = list(corners(x1, x2, width))
    for row, row_weight in corners(y1, y2, height):
        for column, column_weight in columns:
            weight = row_weight[:, :, None] * column_weight[:, None]
            crops += weight[..., None] * image[row[:, :, None], column[:, None]]
    return crops.astype(image.dtype)


def rescale(image: Float[Array, "H W C"], scale: float) -> Float[Array, "Y X C"]:
    """Makes an image larger or smaller, bilinearly, without antialiasing.

    Args:
      image: outside there is 0, so that it does not matter where a
        canvas of zeros ends.
      scale: new pixels per old pixel, static; it is kept exactly.

    Returns:
      The image; Y is `ceil(H * scale)`, X `ceil(W * scale)`.
    """
    height, width, _ = image.shape
    rows, columns = _blends(height, scale), _blends(width, scale)
    # Without "highest" a TPU rounds to bfloat16, which keeps no more than 8 bits.
    return jnp.einsum("yh,xw,hwc->yxc", rows, columns, image, precision="highest")


def _blends(extent: int, scale: float) -> np.ndarray:
    """Returns the weights of the old pixels in each new one, `[new, old]`."""
    centers = (np.arange(math.ceil(extent * scale)) + 0.5) / scale
    distances = np.abs(centers[:, None] - (np.arange(extent) + 0.5))
    return np.maximum(1 - distances, 0).astype(np.float32)
