"""Non-maximum suppression: exact, of fixed size, and without a step per box."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdet.ops.boxes import area, pairwise_intersection, pairwise_iou, to_float32
from jaxdet.structs import Detections

_BLOCK = 128  # boxes settled together
_BLOCK_ON_GPU = 512  # each step takes as long as its kernels take to start


def nms(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, " N"],
    *,
    iou_threshold: float,
    max_output_size: int,
    valid: Bool[Array, " N"] | None = None,
) -> tuple[Int[Array, " S"], Bool[Array, " S"]]:
    """Suppresses boxes greedily: the best stays, those that overlap it go, and so on.

    Args:
      boxes: any coordinates; overlaps are computed in float32.
      scores: equal scores go by the lower index. A box whose score is NaN is
        neither kept nor suppresses another.
      iou_threshold: boxes whose IoU with a kept one is greater than this go.
      max_output_size: number of indices to return.
      valid: False for padding; all boxes by default.

    Returns:
      Indices of the kept boxes, best first, padded with 0; and which of them are no
      padding.
    """
    return _suppress(boxes, scores, None, valid, iou_threshold, max_output_size)


def batched_nms(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, " N"],
    labels: Int[Array, " N"],
    *,
    iou_threshold: float,
    max_output_size: int,
    valid: Bool[Array, " N"] | None = None,
) -> tuple[Int[Array, " S"], Bool[Array, " S"]]:
    """Runs `nms` where a box suppresses only those of its own class.

    Args:
      boxes: as in `nms`.
      scores: as in `nms`.
      labels: classes.
      iou_threshold: as in `nms`.
      max_output_size: number of indices to return, of all classes together.
      valid: as in `nms`.

    Returns:
      As `nms`.
    """
    return _suppress(boxes, scores, labels, valid, iou_threshold, max_output_size)


def select_detections(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, " N"],
    labels: Int[Array, " N"],
    *,
    iou_threshold: float,
    max_detections: int,
    valid: Bool[Array, " N"],
) -> Detections:
    """Runs `batched_nms` and returns the `Detections` of one image.

    Args:
      boxes: as in `nms`.
      scores: as in `nms`.
      labels: classes.
      iou_threshold: as in `nms`.
      max_detections: slots of the result.
      valid: False for padding.

    Returns:
      `[max_detections]`, best first, without masks, zeros for padding.
    """
    boxes, scores = to_float32(boxes), to_float32(scores)
    keep, valid = batched_nms(
        boxes,
        scores,
        labels,
        iou_threshold=iou_threshold,
        max_output_size=max_detections,
        valid=valid,
    )
    return clear_padding(Detections(boxes[keep], scores[keep], labels[keep], valid))


def clear_padding(detections: Detections) -> Detections:
    """Zeroes the slots of one image that hold no detection."""

    def clear(values: Array) -> Array:
        valid = detections.valid.reshape(-1, *(1,) * (values.ndim - 1))
        return jnp.where(valid, values, jnp.zeros((), values.dtype))

    return jax.tree.map(clear, detections)


def box_voting(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, " N"],
    labels: Int[Array, " N"],
    *,
    keep: Int[Array, " D"],
    iou_threshold: float,
    valid: Bool[Array, " N"],
) -> Float[Array, "D 4"]:
    """Replaces boxes kept by NMS by the mean of those that overlap them, by score.

    Gidaris and Komodakis 2015. A box is one of those that overlap it.

    Args:
      boxes: before NMS.
      scores: the weights; a negative one counts as 0.
      labels: classes; boxes of another class have no weight.
      keep: indices of the boxes that NMS kept.
      iou_threshold: the least IoU, above 0, with a kept box to have a weight.
      valid: False for padding.

    Returns:
      The kept boxes; one that nothing votes for, not even itself, stays where it is.
    """
    boxes, scores = to_float32(boxes), to_float32(scores)
    kept = boxes[keep]
    votes = pairwise_iou(kept, boxes) >= iou_threshold
    votes &= (labels[keep][:, None] == labels[None]) & valid[None]
    weights = jnp.where(votes, jnp.maximum(scores, 0.0)[None], 0.0)  # [D, N]
    total = jnp.sum(weights, axis=1, keepdims=True)
    # Coordinates need all digits of float32, which some devices' products do not have.
    summed = jnp.matmul(weights, boxes, precision="highest")
    return jnp.where(total > 0, summed / total, kept)


class _Candidates(NamedTuple):
    boxes: Float[Array, "M 4"]
    areas: Float[Array, " M"]  # kept so that no fused kernel rounds them its own way
    labels: Int[Array, " M"] | None
    place: Int[Array, " M"]  # where they stand in the caller's arrays


# Compiled by itself, so that a call outside jit is traced only once.
@partial(jax.jit, static_argnames="size")
def _suppress(boxes, scores, labels, valid, threshold, size):
    usable = ~jnp.isnan(scores) if valid is None else valid & ~jnp.isnan(scores)
    order = jnp.argsort(jnp.where(usable, -scores, jnp.nan))
    index = jnp.arange(len(boxes), dtype=jnp.int32)
    candidates = _Candidates(boxes, area(boxes), labels, index)
    return jax.lax.platform_dependent(
        *(jax.tree.map(lambda x: x[order], candidates), threshold),
        jnp.sum(usable, dtype=jnp.int32),
        cuda=partial(_suppress_by_blocks, size=size, block=_BLOCK_ON_GPU),
        default=partial(_suppress_by_blocks, size=size, block=_BLOCK),
    )


def _suppress_by_blocks(
    candidates: _Candidates,
    threshold: Float[Array, ""],
    count: Int[Array, ""],
    *,
    size: int,
    block: int,
) -> tuple[Int[Array, " S"], Bool[Array, " S"]]:
    """Settles the boxes a block at a time, in order of score.

    A block is first thinned by the boxes already kept, at most `size`, and then by
    itself, so time grows with `N * size` and the number of steps with `N / block`.

    Args:
      candidates: best first.
      threshold: IoU above which a box goes.
      count: candidates that are no padding.
      size: boxes to keep.
      block: boxes of a step; it changes nothing but the time.

    Returns:
      As `nms`.
    """
    padding = block - len(candidates.boxes) % block  # never 0: no boxes fill a block
    candidates = jax.tree.map(
        lambda x: jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)), candidates
    )
    earlier = jnp.tri(block, k=-1, dtype=bool)

    def unfinished(state):
        start, _, num_kept = state
        return (start < count) & (num_kept < size)

    def settle(state):
        start, kept, num_kept = state
        some = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, start, block), candidates
        )
        alive = start + jnp.arange(block) < count
        is_kept = jnp.arange(size) < num_kept
        alive &= ~jnp.any(_similar(some, kept, threshold) & is_kept[None], axis=1)
        stays = _greedy(_similar(some, some, threshold) & earlier, alive)
        slots = jnp.where(stays, num_kept + jnp.cumsum(stays) - 1, size)
        kept = jax.tree.map(lambda x, y: x.at[slots].set(y, mode="drop"), kept, some)
        return start + block, kept, num_kept + jnp.sum(stays, dtype=jnp.int32)

    none = jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype), candidates)
    state = (jnp.int32(0), none, jnp.int32(0))
    _, kept, num_kept = jax.lax.while_loop(unfinished, settle, state)
    return kept.place, jnp.arange(size) < num_kept


def _similar(
    a: _Candidates, b: _Candidates, threshold: Float[Array, ""]
) -> Bool[Array, "M N"]:
    """Tells whether one of a pair suppresses the other, `[len(a), len(b)]`."""
    overlap = pairwise_intersection(a.boxes, b.boxes)
    union = a.areas[:, None] + b.areas[None] - overlap
    similar = overlap / union > threshold  # Never if both are empty: 0/0 is NaN.
    if a.labels is None or b.labels is None:
        return similar
    return similar & (a.labels[:, None] == b.labels[None])


def _greedy(
    suppresses: Bool[Array, "M M"], alive: Bool[Array, " M"]
) -> Bool[Array, " M"]:
    """Chooses greedily among the boxes of a block.

    "A box that is alive stays unless a better one that stays suppresses it" has one
    solution. Applied again and again, the rule settles at least one more box each time,
    from the best down, and stops changing when all are settled, usually after a few
    rounds.

    Args:
      suppresses: in row i and column j whether j, better, suppresses i.
      alive: whether a box may stay.
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
