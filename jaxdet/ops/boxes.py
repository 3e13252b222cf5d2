"""Boxes: areas, overlaps, clipping and the formats other people store them in.

A box is float32 `(x1, y1, x2, y2)` in pixels and covers `[x1, x2) x [y1, y2)`.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

# Square pixels. A smaller region counts as empty: the gradient of a ratio of areas
# contains the inverse square of its denominator, which would overflow float32.
_SMALLEST_AREA = 1e-18


def area(boxes: jax.Array) -> jax.Array:
    """`[..., 4]` boxes -> `[...]` square pixels; negative extents count as 0."""
    width = jnp.maximum(boxes[..., 2] - boxes[..., 0], 0.0)
    height = jnp.maximum(boxes[..., 3] - boxes[..., 1], 0.0)
    return width * height


def nonempty(boxes: jax.Array, shortest: float = 0.0) -> jax.Array:
    """Whether both sides are above 0 and at least `shortest`, `[..., 4]` -> `[...]`.

    False for boxes with a coordinate that is not finite.
    """
    sides = boxes[..., 2:] - boxes[..., :2]
    right = jnp.all((sides > 0) & (sides >= shortest), axis=-1)
    return right & jnp.all(jnp.isfinite(boxes), axis=-1)


def pairwise_intersection(boxes_a: jax.Array, boxes_b: jax.Array) -> jax.Array:
    """Areas shared, in square pixels: `[M, 4]` and `[N, 4]` -> `[M, N]`."""
    chex.assert_shape([boxes_a, boxes_b], (None, 4))
    a, b = boxes_a[:, None], boxes_b[None]
    width = jnp.minimum(a[..., 2], b[..., 2]) - jnp.maximum(a[..., 0], b[..., 0])
    height = jnp.minimum(a[..., 3], b[..., 3]) - jnp.maximum(a[..., 1], b[..., 1])
    return jnp.maximum(width, 0.0) * jnp.maximum(height, 0.0)


def pairwise_iou(boxes_a: jax.Array, boxes_b: jax.Array) -> jax.Array:
    """Intersection over union, every box of one set with every box of another.

    Args:
      boxes_a: `[M, 4]`.
      boxes_b: `[N, 4]`; padding (all zeros) is allowed and overlaps nothing.

    Returns:
      `[M, N]` in [0, 1]; 0, not NaN, where both boxes are empty.
    """
    overlap, union = _overlap_and_union(boxes_a, boxes_b)
    return _ratio(overlap, union)


def pairwise_giou(boxes_a: jax.Array, boxes_b: jax.Array) -> jax.Array:
    """Generalised IoU (Rezatofighi et al. 2019), every box with every other.

    The IoU less the share of the smallest box around both that neither covers, so that
    boxes that do not touch still feel how far apart they are.

    Args:
      boxes_a: `[M, 4]`.
      boxes_b: `[N, 4]`; empty boxes are allowed in both sets.

    Returns:
      `[M, N]` in [-1, 1]; 0 where the box around both is empty too.
    """
    overlap, union = _overlap_and_union(boxes_a, boxes_b)
    a, b = boxes_a[:, None], boxes_b[None]
    width = jnp.maximum(a[..., 2], b[..., 2]) - jnp.minimum(a[..., 0], b[..., 0])
    height = jnp.maximum(a[..., 3], b[..., 3]) - jnp.minimum(a[..., 1], b[..., 1])
    hull = jnp.maximum(width, 0.0) * jnp.maximum(height, 0.0)
    return _ratio(overlap, union) - _ratio(hull - union, hull)


def clip(boxes: jax.Array, size: Sequence[int] | jax.Array) -> jax.Array:
    """Moves the corners of `[..., 4]` boxes into an image of `size` (height, width)."""
    height, width = size
    limits = jnp.array([width, height, width, height], jnp.float32)
    return jnp.clip(boxes, 0.0, jnp.broadcast_to(limits, boxes.shape))


def xyxy_to_xywh(boxes: jax.Array) -> jax.Array:
    """Corners -> upper left corner, width and height (COCO)."""
    return jnp.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def xywh_to_xyxy(boxes: jax.Array) -> jax.Array:
    """Upper left corner, width and height (COCO) -> corners."""
    return jnp.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def yxyx_to_xyxy(boxes: jax.Array) -> jax.Array:
    """Corners with the vertical coordinate first (TFDS, TensorFlow) -> corners."""
    y1, x1, y2, x2 = jnp.moveaxis(boxes, -1, 0)
    return jnp.stack([x1, y1, x2, y2], axis=-1)


def xyxy_to_cxcywh(boxes: jax.Array) -> jax.Array:
    """Corners -> centre, width and height."""
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    centres, sides = (top_left + bottom_right) / 2, bottom_right - top_left
    return jnp.concatenate([centres, sides], axis=-1)


def cxcywh_to_xyxy(boxes: jax.Array) -> jax.Array:
    """Centre, width and height -> corners."""
    centres, half_sides = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([centres - half_sides, centres + half_sides], axis=-1)


def _overlap_and_union(
    boxes_a: jax.Array, boxes_b: jax.Array
) -> tuple[jax.Array, jax.Array]:
    overlap = pairwise_intersection(boxes_a, boxes_b)
    return overlap, area(boxes_a)[:, None] + area(boxes_b)[None] - overlap


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    """`part / whole`, and 0 with finite gradients where the whole is empty."""
    empty = whole < _SMALLEST_AREA
    return jnp.where(empty, 0.0, part / jnp.where(empty, 1.0, whole))
