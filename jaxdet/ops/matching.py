"""Which object, if any, each anchor answers for."""

import flax.struct
import jax
import jax.numpy as jnp

from jaxdet.ops.boxes import pairwise_iou


@flax.struct.dataclass
class Matches:
    """One entry an anchor; an anchor neither positive nor negative is ignored."""

    index: jax.Array  # [A] int32, slot of the object; 0 where there are no objects
    positive: jax.Array  # [A] bool, answers for that object
    negative: jax.Array  # [A] bool, background
    iou: jax.Array  # [A] float32, with that object; 0 where there are no objects


def match_by_iou(
    anchors: jax.Array,
    boxes: jax.Array,
    valid: jax.Array,
    *,
    low: float,
    high: float,
    force_best: bool = True,
) -> Matches:
    """Matches every anchor to the object it overlaps most (Ren et al. 2015, 3.1.2).

    Args:
      anchors: `[A, 4]`.
      boxes: `[N, 4]`, objects.
      valid: `[N]` bool; padding matches nothing. Without a valid box all anchors are
        negative.
      low: an anchor whose greatest IoU is less is negative.
      high: an anchor whose greatest IoU is at least this is positive.
      force_best: also make positive the anchors that overlap some object as much as any
        anchor does, if at all, so that no object goes without. They still answer for
        the object that they themselves overlap most, as in torchvision and detectron2.

    Returns:
      `Matches`; of equally good objects the first is meant.
    """
    if len(boxes) == 0:  # There is no greatest of nothing: one slot of padding instead.
        boxes, valid = jnp.zeros((1, 4)), jnp.zeros(1, bool)
    iou = jnp.where(valid[None], pairwise_iou(anchors, boxes), -1.0)
    # Computed once, not once for each use: compilers may round differently in each, and
    # the test for equality below would miss.
    iou = jax.lax.optimization_barrier(iou)
    greatest = jnp.max(iou, axis=1)
    positive = greatest >= high
    if force_best:
        best = jnp.max(iou, axis=0)
        is_best = (iou == best[None]) & (best > 0)[None]
        positive |= jnp.any(is_best, axis=1)
    return Matches(
        index=jnp.argmax(iou, axis=1).astype(jnp.int32),
        positive=positive,
        negative=(greatest < low) & ~positive,
        iou=jnp.maximum(greatest, 0.0),
    )
