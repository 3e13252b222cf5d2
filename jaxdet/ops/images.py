"""Pixels on the device."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def normalise(
    images: jax.Array, sizes: jax.Array, *, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
    """Brings pixels to zero mean and unit variance, and padding to exactly 0.

    Args:
      images: `[..., H, W, 3]` uint8, each image in the upper left corner of its canvas.
      sizes: `[..., 2]` true (height, width), broadcast against the images.
      mean: of each channel, on a scale from 0 to 1.
      std: of each channel, on the same scale.

    Returns:
      `[..., H, W, 3]` float32.
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
