"""Computes areas and overlaps of boxes, clips them, and converts to centers and back.

A box is float32 `(x1, y1, x2, y2)` in pixels and covers `[x1, x2) x [y1, y2)`.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real

# Square pixels. A smaller region counts as empty: the gradient of a ratio of areas
# contains the inverse square of its denominator, which would overflow float32.
_SMALLEST_AREA = 1e-18


def to_float32(values: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns values of half precision in float32, and others as they are.

    A float16 area overflows from 256 x 256 pixels on, and a bfloat16 coordinate knows
    eight bits: all that is computed from boxes is computed from these.
    """
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def area(boxes: Float[Array, "*B 4"]) -> Float[Array, "*B"]:
    """Returns the areas in square pixels; a negative side counts as 0."""
    boxes = to_float32(boxes)
    width = jnp.maximum(boxes[..., 2] - boxes[..., 0], 0.0)
    height = jnp.maximum(boxes[..., 3] - boxes[..., 1], 0.0)
    return width * height


def nonempty(
    boxes: Float[Array, "*B 4"], min_size: float | Float[Array, ""] = 0.0
) -> Bool[Array, "*B"]:
    """Tells whether both sides of a box are above 0 and at least `min_size`.

    False for boxes with a coordinate that is not finite.
    """
    boxes = to_float32(boxes)
    sides = boxes[..., 2:] - boxes[..., :2]
    long_enough = jnp.all((sides > 0) & (sides >= min_size), axis=-1)
    return long_enough & jnp.all(jnp.isfinite(boxes), axis=-1)


def pairwise_intersection(
    boxes_a: Float[Array, "M 4"], boxes_b: Float[Array, "N 4"]
) -> Float[Array, "M N"]:
    """Returns the area that every two boxes share, in square pixels."""
    a, b = to_float32(boxes_a)[:, None], to_float32(boxes_b)[None]
    width = jnp.minimum(a[..., 2], b[..., 2]) - jnp.maximum(a[..., 0], b[..., 0])
    height = jnp.minimum(a[..., 3], b[..., 3]) - jnp.maximum(a[..., 1], b[..., 1])
    return jnp.maximum(width, 0.0) * jnp.maximum(height, 0.0)


def pairwise_iou(
    boxes_a: Float[Array, "M 4"], boxes_b: Float[Array, "N 4"]
) -> Float[Array, "M N"]:
    """Returns the intersection over union of every two boxes, in [0, 1].

    It is 0, not NaN, where both are empty; padding, all zeros, overlaps nothing.
    """
    return _ratio(*_intersection_and_union(boxes_a, boxes_b))


def pairwise_giou(
    boxes_a: Float[Array, "M 4"], boxes_b: Float[Array, "N 4"]
) -> Float[Array, "M N"]:
    """Returns the generalized IoU of every two boxes, in [-1, 1].

    It is the IoU less the share of the smallest box around both that neither covers, so
    that boxes that do not touch are the better the closer they are (Rezatofighi et al.
    2019). Empty boxes are allowed; 0 where the box around both is empty too.
    """
    intersection, union = _intersection_and_union(boxes_a, boxes_b)
    a, b = to_float32(boxes_a)[:, None], to_float32(boxes_b)[None]
    width = jnp.maximum(a[..., 2], b[..., 2]) - jnp.minimum(a[..., 0], b[..., 0])
    height = jnp.maximum(a[..., 3], b[..., 3]) - jnp.minimum(a[..., 1], b[..., 1])
    hull = jnp.maximum(width, 0.0) * jnp.maximum(height, 0.0)
    return _ratio(intersection, union) - _ratio(hull - union, hull)


def clip(
    boxes: Float[Array, "*B 4"], size: Sequence[int] | Real[Array, "2"]
) -> Float[Array, "*B 4"]:
    """Moves the corners of boxes into an image of `size`, (height, width)."""
    height, width = size
    limits = jnp.array([width, height, width, height], jnp.float32)
    return jnp.clip(to_float32(boxes), 0.0, jnp.broadcast_to(limits, boxes.shape))


def xyxy_to_cxcywh(boxes: Float[Array, "*B 4"]) -> Float[Array, "*B 4"]:
    """Turns corners into center, width and height."""
    boxes = to_float32(boxes)
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    centers, sides = (top_left + bottom_right) / 2, bottom_right - top_left
    return jnp.concatenate([centers, sides], axis=-1)


def cxcywh_to_xyxy(boxes: Float[Array, "*B 4"]) -> Float[Array, "*B 4"]:
    """Turns center, width and height into corners."""
    boxes = to_float32(boxes)
    centers, half_sides = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([centers - half_sides, centers + half_sides], axis=-1)


def _intersection_and_union(
    boxes_a: Float[Array, "M 4"], boxes_b: Float[Array, "N 4"]
) -> tuple[Float[Array, "M N"], Float[Array, "M N"]]:
    intersection = pairwise_intersection(boxes_a, boxes_b)
    return intersection, area(boxes_a)[:, None] + area(boxes_b)[None] - intersection


def _ratio(part: Float[Array, "M N"], area: Float[Array, "M N"]) -> Array:
    """Returns `part / area`, and 0 with finite gradients where the area is empty."""
    empty = area < _SMALLEST_AREA
    return jnp.where(empty, 0.0, part / jnp.where(empty, 1.0, area))
