"""Keeps the empty part of a canvas empty on the way through a network.

A canvas is larger than its image, and a convolution's bias or norm fills the rest with
values that leak back over the border. Given the true sizes, the modules here set the
rest to zero before each layer that looks around, so that an image's features are those
it would have on a canvas of its own size, whatever it shares a batch with.
"""

import jax
import jax.numpy as jnp


def inside(sizes: jax.Array, shape: tuple[int, ...], stride: int) -> jax.Array:
    """True for the feature cells that touch the true image.

    Args:
      sizes: `[B, 2]` true (height, width) in canvas pixels.
      shape: of the features, `(B, H, W, C)`.
      stride: canvas pixels per cell.

    Returns:
      `[B, H, W, 1]` bool; a map of the image alone has `ceil(size / stride)` cells.
    """
    extents = -(-sizes // stride)
    rows = jnp.arange(shape[1])[None, :] < extents[:, :1]
    columns = jnp.arange(shape[2])[None, :] < extents[:, 1:]
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def zero_outside(
    features: jax.Array, sizes: jax.Array | None, stride: int
) -> jax.Array:
    """Features whose cells outside the true images are zero.

    Args:
      features: `[B, H, W, C]`.
      sizes: `[B, 2]` true (height, width) in canvas pixels; None: all of the canvas is
        image, and nothing changes.
      stride: canvas pixels per cell.

    Returns:
      `[B, H, W, C]`; cells that an image touches stay as they are, see `inside`.
    """
    if sizes is None:
        return features
    return jnp.where(inside(sizes, features.shape, stride), features, 0)
