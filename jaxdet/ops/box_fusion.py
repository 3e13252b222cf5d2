"""Weighted box fusion: the detections of several views become averages of clusters."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdet.ops.boxes import pairwise_iou, to_float32
from jaxdet.ops.nms import clear_padding
from jaxdet.structs import Detections


def weighted_box_fusion(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, " N"],
    labels: Int[Array, " N"],
    *,
    num_views: int,
    iou_threshold: float,
    max_detections: int,
    valid: Bool[Array, " N"],
) -> Detections:
    """Averages the boxes that several detectors, or views of an image, agree on.

    Solovyev et al. 2021, section 3: best score first, a box joins the cluster of its
    class whose average, weighted by the scores so far, it overlaps most, or begins one
    of its own.

    Args:
      boxes: of all views.
      scores: at least 0.
      labels: classes.
      num_views: the score of a cluster of fewer boxes falls in proportion.
      iou_threshold: boxes join a cluster with an IoU greater than this.
      max_detections: slots of the result.
      valid: False for padding.

    Returns:
      `[max_detections]`, best first, without masks: averages of the boxes, and means of
      the scores times the share of the views that a cluster has boxes of.
    """
    boxes, scores = to_float32(boxes), to_float32(scores)
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf))
    boxes, scores, labels, valid = (x[order] for x in (boxes, scores, labels, valid))
    slots = jnp.arange(len(boxes))

    def add(index, clusters):
        """Adds a box to a cluster, of which its first box has the slot."""
        weighted, total, count = clusters
        average = weighted / jnp.where(total > 0, total, 1.0)[:, None]
        iou = pairwise_iou(boxes[index][None], average)[0]
        iou = jnp.where((count > 0) & (labels == labels[index]), iou, -1.0)
        best = jnp.argmax(iou)
        slot = jnp.where(iou[best] > iou_threshold, best, index)
        here = ((slots == slot) & valid[index]).astype(jnp.float32)
        weighted += here[:, None] * scores[index] * boxes[index][None]
        return weighted, total + here * scores[index], count + here

    none = jnp.zeros(len(boxes))
    weighted, total, count = jax.lax.fori_loop(
        0, len(boxes), add, (jnp.zeros((len(boxes), 4)), none, none)
    )
    fused = jnp.where((total > 0)[:, None], weighted / total[:, None], boxes)
    means = total / jnp.maximum(count, 1.0) * jnp.minimum(count / num_views, 1.0)
    padding = max(max_detections - len(boxes), 0)
    found = Detections(fused, means, labels, count > 0)
    found = jax.tree.map(
        lambda x: jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)), found
    )
    best = jnp.argsort(jnp.where(found.valid, -found.scores, jnp.inf))[:max_detections]
    return clear_padding(jax.tree.map(lambda x: x[best], found))
