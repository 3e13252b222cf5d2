"""Non-maximum suppression: exact, of fixed size, and without a step per box."""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxdet.ops.boxes import area, pairwise_intersection, pairwise_iou
from jaxdet.structs import Detections

_BLOCK = 128  # boxes settled together


def nms(
    boxes: jax.Array,
    scores: jax.Array,
    *,
    iou_threshold: float,
    max_output_size: int,
    valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Greedy non-maximum suppression: the best box stays, those much like it go, again.

    Args:
      boxes: `[N, 4]`, any coordinates.
      scores: `[N]`; equal scores go by the lower index. A box whose score is NaN is
        neither kept nor suppresses another.
      iou_threshold: boxes whose IoU with a kept one is greater than this go.
      max_output_size: number of indices to return.
      valid: `[N]` bool, False for padding; all boxes by default.

    Returns:
      Indices of the kept boxes, best first, `[max_output_size]` int32 padded with 0;
      and which of them are no padding, `[max_output_size]` bool.
    """
    return _suppress(boxes, scores, None, valid, iou_threshold, max_output_size)


def batched_nms(
    boxes: jax.Array,
    scores: jax.Array,
    labels: jax.Array,
    *,
    iou_threshold: float,
    max_output_size: int,
    valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`nms` where a box suppresses only those of its own class.

    Args:
      boxes: as in `nms`.
      scores: as in `nms`.
      labels: `[N]` int.
      iou_threshold: as in `nms`.
      max_output_size: number of indices to return, of all classes together.
      valid: as in `nms`.

    Returns:
      As `nms`.
    """
    return _suppress(boxes, scores, labels, valid, iou_threshold, max_output_size)


def select_detections(
    boxes: jax.Array,
    scores: jax.Array,
    labels: jax.Array,
    *,
    iou_threshold: float,
    max_detections: int,
    valid: jax.Array,
) -> Detections:
    """What `batched_nms` keeps, as the `Detections` of one image.

    Args:
      boxes: as in `nms`.
      scores: as in `nms`.
      labels: `[N]` int.
      iou_threshold: as in `nms`.
      max_detections: slots of the result.
      valid: `[N]` bool, False for padding.

    Returns:
      `Detections` `[max_detections]`, best first, without masks, zeros for padding.
    """
    keep, valid = batched_nms(
        boxes,
        scores,
        labels,
        iou_threshold=iou_threshold,
        max_output_size=max_detections,
        valid=valid,
    )
    return clear_padding(Detections(boxes[keep], scores[keep], labels[keep], valid))


def clear_padding(found: Detections) -> Detections:
    """Zeros in the slots of one image that hold no answer."""

    def emptied(values: jax.Array) -> jax.Array:
        there = found.valid.reshape(-1, *(1,) * (values.ndim - 1))
        return jnp.where(there, values, jnp.zeros((), values.dtype))

    return jax.tree.map(emptied, found)


def box_voting(
    boxes: jax.Array,
    scores: jax.Array,
    labels: jax.Array,
    *,
    keep: jax.Array,
    iou_threshold: float,
    valid: jax.Array,
) -> jax.Array:
    """Moves the boxes that NMS has kept to the mean of those like them, itself too.

    Weights are the scores, so all that say the same help to place the box (Gidaris and
    Komodakis 2015).

    Args:
      boxes: `[N, 4]`, before NMS.
      scores: `[N]`; a negative one has no weight.
      labels: `[N]`; boxes of another class have no say.
      keep: `[D]` indices of the boxes that stay.
      iou_threshold: the least IoU, above 0, with a kept box to be heard.
      valid: `[N]` bool, False for padding.

    Returns:
      `[D, 4]`; a box that nothing votes for, not even itself, stays where it is.
    """
    kept = boxes[keep]
    heard = pairwise_iou(kept, boxes) >= iou_threshold
    heard &= (labels[keep][:, None] == labels[None]) & valid[None]
    weights = jnp.where(heard, jnp.maximum(scores, 0.0)[None], 0.0)  # [D, N]
    total = jnp.sum(weights, axis=1, keepdims=True)
    # Coordinates need all digits of float32, which some devices' products do not have.
    summed = jnp.matmul(weights, boxes, precision="highest")
    return jnp.where(total > 0, summed / total, kept)


class _Candidates(NamedTuple):
    boxes: jax.Array  # [M, 4]
    areas: jax.Array  # [M], kept so that no fused kernel rounds them its own way
    labels: jax.Array | None  # [M]
    index: jax.Array  # [M] int32, where they stand in the caller's arrays


# Compiled by itself, so that a call outside jit is traced only once.
@partial(jax.jit, static_argnames="size")
def _suppress(boxes, scores, labels, valid, threshold, size):
    """Settles the boxes block by block in order of score.

    A block is first thinned by the boxes already kept, at most `size`, and then by
    itself, so time grows with `N * size` and the number of steps with `N / _BLOCK`.
    """
    chex.assert_shape(boxes, (None, 4))
    usable = ~jnp.isnan(scores) if valid is None else valid & ~jnp.isnan(scores)
    count = jnp.sum(usable, dtype=jnp.int32)
    order = jnp.argsort(jnp.where(usable, -scores, jnp.nan))
    index = jnp.arange(len(boxes), dtype=jnp.int32)
    padding = _BLOCK - len(boxes) % _BLOCK  # never 0: no boxes fill a block too
    candidates = jax.tree.map(
        lambda x: jnp.pad(x[order], [(0, padding)] + [(0, 0)] * (x.ndim - 1)),
        _Candidates(boxes, area(boxes), labels, index),
    )
    earlier = jnp.tri(_BLOCK, k=-1, dtype=bool)

    def unfinished(state):
        start, _, num_kept = state
        return (start < count) & (num_kept < size)

    def settle(state):
        start, kept, num_kept = state
        block = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, start, _BLOCK), candidates
        )
        alive = start + jnp.arange(_BLOCK) < count
        is_kept = jnp.arange(size) < num_kept
        alive &= ~jnp.any(_similar(block, kept, threshold) & is_kept[None], axis=1)
        stays = _greedy(_similar(block, block, threshold) & earlier, alive)
        slots = jnp.where(stays, num_kept + jnp.cumsum(stays) - 1, size)
        kept = jax.tree.map(lambda x, y: x.at[slots].set(y, mode="drop"), kept, block)
        return start + _BLOCK, kept, num_kept + jnp.sum(stays, dtype=jnp.int32)

    none = jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype), candidates)
    state = (jnp.int32(0), none, jnp.int32(0))
    _, kept, num_kept = jax.lax.while_loop(unfinished, settle, state)
    return kept.index, jnp.arange(size) < num_kept


def _similar(a: _Candidates, b: _Candidates, threshold: float) -> jax.Array:
    """Whether one of a pair suppresses the other, `[len(a), len(b)]`."""
    overlap = pairwise_intersection(a.boxes, b.boxes)
    union = a.areas[:, None] + b.areas[None] - overlap
    similar = overlap / union > threshold  # Never if both are empty: 0/0 is NaN.
    if a.labels is None:
        return similar
    return similar & (a.labels[:, None] == b.labels[None])


def _greedy(suppresses: jax.Array, alive: jax.Array) -> jax.Array:
    """The greedy choice among the boxes of a block.

    "A living box stays unless a better one that stays suppresses it" has one solution.
    Applied again and again, the rule settles at least one more box each time, from the
    best down, and stops changing when all are settled: usually after a few rounds.

    Args:
      suppresses: `[M, M]` bool, in row i and column j whether j, better, suppresses i.
      alive: `[M]` bool.
    """

    def rule(stays):
        return alive & ~jnp.any(suppresses & stays[None], axis=1)

    first = rule(alive)
    _, stays = jax.lax.while_loop(
        lambda state: jnp.any(state[0] != state[1]),
        lambda state: (state[1], rule(state[1])),
        (alive, first),
    )
    return stays
