"""Encodes boxes relative to anchors (Girshick et al. 2014, C) or points, and back."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdet.ops.boxes import cxcywh_to_xyxy, to_float32, xyxy_to_cxcywh

# Pixels. Shorter sides count as this long: padding and empty boxes get finite deltas.
_SHORTEST_SIDE = 1e-6


def encode(
    boxes: Float[Array, "*#B 4"],
    anchors: Float[Array, "*#B 4"],
    *,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> Float[Array, "*B 4"]:
    """Returns the deltas that turn anchors into boxes.

    Args:
      boxes: padding and empty boxes get finite, meaningless deltas.
      anchors: broadcast against the boxes.
      weights: factors of the deltas; the inverse of the standard deviations that some
        papers divide by.

    Returns:
      The shift of the center in anchor sides, horizontal first, and the logarithms of
      the ratios of widths and of heights, times `weights`.
    """
    boxes, anchors = jnp.broadcast_arrays(boxes, anchors)
    centers, sides = _centers_and_sides(boxes)
    anchor_centers, anchor_sides = _centers_and_sides(anchors)
    sides = jnp.maximum(sides, _SHORTEST_SIDE)
    anchor_sides = jnp.maximum(anchor_sides, _SHORTEST_SIDE)
    shifts = (centers - anchor_centers) / anchor_sides
    deltas = jnp.concatenate([shifts, jnp.log(sides / anchor_sides)], axis=-1)
    return deltas * _like(weights, deltas)


def decode(
    deltas: Float[Array, "*#B 4"],
    anchors: Float[Array, "*#B 4"],
    *,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
    max_log_scale: float = math.log(1000 / 16),
) -> Float[Array, "*B 4"]:
    """Returns the boxes that deltas make of anchors: the inverse of `encode`.

    Args:
      deltas: as `encode` returns them.
      anchors: broadcast against the deltas.
      weights: those given to `encode`.
      max_log_scale: upper limit of the logarithms of the ratios, so that an early,
        wild prediction does not overflow.

    Returns:
      Boxes, not clipped to the image.
    """
    deltas, anchors = jnp.broadcast_arrays(to_float32(deltas), anchors)
    shifts, log_ratios = jnp.split(deltas / _like(weights, deltas), 2, axis=-1)
    anchor_centers, anchor_sides = _centers_and_sides(anchors)
    centers = anchor_centers + shifts * anchor_sides
    sides = anchor_sides * jnp.exp(jnp.minimum(log_ratios, max_log_scale))
    return cxcywh_to_xyxy(jnp.concatenate([centers, sides], axis=-1))


def encode_ltrb(
    boxes: Float[Array, "*#B 4"], points: Float[Array, "*#B 2"]
) -> Float[Array, "*B 4"]:
    """Returns how far the sides of boxes are from points (Tian et al. 2019, eq. 1).

    Args:
      boxes: padding and empty boxes get finite, meaningless distances.
      points: (x, y) in pixels, broadcast against the boxes.

    Returns:
      Pixels to the left, top, right and bottom side; one of them is negative where the
      point lies outside.
    """
    points, boxes = to_float32(points), to_float32(boxes)
    return jnp.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], axis=-1)


def decode_ltrb(
    ltrb: Float[Array, "*#B 4"], points: Float[Array, "*#B 2"]
) -> Float[Array, "*B 4"]:
    """Returns the boxes at distances from points: the inverse of `encode_ltrb`.

    Args:
      ltrb: pixels to the left, top, right and bottom side.
      points: (x, y) in pixels, broadcast against the distances.

    Returns:
      Boxes, not clipped to the image.
    """
    points, ltrb = to_float32(points), to_float32(ltrb)
    return jnp.concatenate([points - ltrb[..., :2], points + ltrb[..., 2:]], axis=-1)


def _centers_and_sides(boxes: Float[Array, "*B 4"]) -> list[Float[Array, "*B 2"]]:
    return jnp.split(xyxy_to_cxcywh(boxes), 2, axis=-1)


def _like(weights: tuple[float, ...], deltas: Float[Array, "*B 4"]) -> Array:
    return jnp.broadcast_to(jnp.array(weights, deltas.dtype), deltas.shape)
