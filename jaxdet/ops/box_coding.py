"""Boxes written relative to anchors (Girshick et al. 2014, C) or points, and back."""

import math

import jax
import jax.numpy as jnp

from jaxdet.ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh

# Pixels. Shorter sides count as this long: padding and empty boxes get finite deltas.
_SHORTEST_SIDE = 1e-6


def encode(
    boxes: jax.Array,
    anchors: jax.Array,
    *,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> jax.Array:
    """What an anchor's regression should say to become a box.

    Args:
      boxes: `[..., 4]`; padding and empty boxes get finite, meaningless deltas.
      anchors: `[..., 4]`, broadcast against the boxes.
      weights: factors of the deltas; the inverse of the standard deviations that some
        papers divide by.

    Returns:
      `[..., 4]`: the shift of the centre in anchor sides, horizontal first, and the
      logarithms of the ratios of widths and of heights, times `weights`.
    """
    boxes, anchors = jnp.broadcast_arrays(boxes, anchors)
    centres, sides = _centres_and_sides(boxes)
    anchor_centres, anchor_sides = _centres_and_sides(anchors)
    sides = jnp.maximum(sides, _SHORTEST_SIDE)
    anchor_sides = jnp.maximum(anchor_sides, _SHORTEST_SIDE)
    shifts = (centres - anchor_centres) / anchor_sides
    deltas = jnp.concatenate([shifts, jnp.log(sides / anchor_sides)], axis=-1)
    return deltas * _like(weights, deltas)


def decode(
    deltas: jax.Array,
    anchors: jax.Array,
    *,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
    max_log_scale: float = math.log(1000 / 16),
) -> jax.Array:
    """The inverse of `encode`.

    Args:
      deltas: `[..., 4]`.
      anchors: `[..., 4]`, broadcast against the deltas.
      weights: those given to `encode`.
      max_log_scale: upper limit of the logarithms of the ratios, so that an early,
        wild prediction does not overflow.

    Returns:
      `[..., 4]` boxes, not clipped to the image.
    """
    deltas, anchors = jnp.broadcast_arrays(deltas, anchors)
    shifts, log_ratios = jnp.split(deltas / _like(weights, deltas), 2, axis=-1)
    anchor_centres, anchor_sides = _centres_and_sides(anchors)
    centres = anchor_centres + shifts * anchor_sides
    sides = anchor_sides * jnp.exp(jnp.minimum(log_ratios, max_log_scale))
    return cxcywh_to_xyxy(jnp.concatenate([centres, sides], axis=-1))


def encode_ltrb(boxes: jax.Array, points: jax.Array) -> jax.Array:
    """How far the sides of a box are from a point (Tian et al. 2019, equation 1).

    Args:
      boxes: `[..., 4]`; padding and empty boxes get finite, meaningless distances.
      points: `[..., 2]` (x, y) in pixels, broadcast against the boxes.

    Returns:
      `[..., 4]` pixels to the left, top, right and bottom side; one of them is negative
      where the point lies outside.
    """
    return jnp.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], axis=-1)


def decode_ltrb(distances: jax.Array, points: jax.Array) -> jax.Array:
    """The inverse of `encode_ltrb`.

    Args:
      distances: `[..., 4]` pixels to the left, top, right and bottom side.
      points: `[..., 2]` (x, y) in pixels, broadcast against the distances.

    Returns:
      `[..., 4]` boxes, not clipped to the image.
    """
    return jnp.concatenate(
        [points - distances[..., :2], points + distances[..., 2:]], axis=-1
    )


def _centres_and_sides(boxes: jax.Array) -> list[jax.Array]:
    """`[..., 4]` -> two of `[..., 2]`, horizontal first."""
    return jnp.split(xyxy_to_cxcywh(boxes), 2, axis=-1)


def _like(weights: tuple[float, ...], deltas: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.array(weights, deltas.dtype), deltas.shape)
