"""Computes losses entry by entry, and the count by which devices divide their sums.

Cross-entropies are those of `optax.losses`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdet.ops.boxes import area, pairwise_giou, to_float32

_FARTHEST = 1e8  # pixels
_NEAREST = 1e-8  # A point not farther from a side is on it.


def smooth_l1_loss(
    predictions: Float[Array, "*B"], targets: Float[Array, "*B"], *, beta: float
) -> Float[Array, "*B"]:
    """Returns the absolute error, squared below `beta` (Girshick 2015, 2.3).

    Value and slope are continuous; far off the loss is the absolute error less
    `beta / 2`.

    Args:
      predictions: any numbers.
      targets: what they should be.
      beta: at least 0; 0: the absolute error.

    Returns:
      Each prediction's loss.
    """
    # Not optax's huber_loss / beta: that is NaN for a beta of 0.
    error = predictions - targets
    error = jnp.maximum(error, -error)  # Its slope at 0 is 0, that of jnp.abs is 1.
    if beta == 0:
        return error
    return jnp.where(error < beta, error**2 / (2 * beta), error - beta / 2)


def focal_loss(
    logits: Float[Array, "*B"],
    targets: Bool[Array, "*B"],
    *,
    alpha: float,
    gamma: float,
) -> Float[Array, "*B"]:
    """Returns the focal loss, down-weighting what is easy (Lin et al. 2017, 3.2).

    Not optax's: that takes labels between 0 and 1, for which it stacks two terms of
    each entry, and needs more than three times the time on CPU and memory on TPUs.

    Args:
      logits: of independent classes.
      targets: whether the class is there.
      alpha: weight of true targets; that of false ones is `1 - alpha`.
      gamma: how much easy entries are down-weighted.

    Returns:
      Each entry's loss, float32.
    """
    logits = to_float32(logits)
    right = jnp.where(targets, logits, -logits)  # p_t is its sigmoid
    # As in `smooth_l1_loss`: the slope of jnp.abs at 0 is 1.
    small = jnp.log1p(jnp.exp(-jnp.maximum(right, -right)))
    entropy = jnp.maximum(-right, 0) + small  # -log(p_t)
    doubt = jnp.exp(-gamma * (jnp.maximum(right, 0) + small))  # (1 - p_t)**gamma
    return jnp.where(targets, alpha, 1 - alpha) * doubt * entropy


def giou_loss(
    boxes: Float[Array, "*B 4"], targets: Float[Array, "*B 4"]
) -> Float[Array, "*B"]:
    """Returns 1 - GIoU of each box and its target, in [0, 2].

    1 where both are the same empty box, such as padding. Coordinates beyond 1e8 count
    as that far, without gradient: areas of wild early predictions would overflow.
    """

    def giou(a: Float[Array, "4"], b: Float[Array, "4"]) -> Float[Array, ""]:
        return pairwise_giou(a[None], b[None])[0, 0]

    boxes = jnp.clip(to_float32(boxes), -_FARTHEST, _FARTHEST)
    return 1 - jnp.vectorize(giou, signature="(k),(k)->()")(boxes, targets)


def iou_loss(
    boxes: Float[Array, "*B 4"], targets: Float[Array, "*B 4"]
) -> Float[Array, "*B"]:
    """Returns -ln IoU of each box and its target (Yu et al. 2016).

    Both areas of the ratio count a square pixel more than they have, as in the code of
    FCOS's authors: finite where boxes do not touch, though no pull together, and 0
    where both are empty, such as padding. Coordinates beyond 1e8 count as that far.
    """
    boxes = jnp.clip(to_float32(boxes), -_FARTHEST, _FARTHEST)
    top_left = jnp.maximum(boxes[..., :2], targets[..., :2])
    bottom_right = jnp.minimum(boxes[..., 2:], targets[..., 2:])
    intersection = area(jnp.concatenate([top_left, bottom_right], axis=-1))
    union = area(boxes) + area(targets) - intersection
    return jnp.log(union + 1) - jnp.log(intersection + 1)


def centerness(ltrb: Float[Array, "*B 4"]) -> Float[Array, "*B"]:
    """Returns how central points are in their boxes (Tian et al. 2019, equation 3).

    Args:
      ltrb: distances to the left, top, right and bottom side, in any unit.

    Returns:
      1 in the center, falling to 0 on the sides and outside.
    """
    ltrb = to_float32(ltrb)
    near = jnp.minimum(ltrb[..., :2], ltrb[..., 2:])
    far = jnp.maximum(ltrb[..., :2], ltrb[..., 2:])
    inside = jnp.min(near, axis=-1, keepdims=True) > _NEAREST
    # Outside there are no roots, nor their gradients.
    near, far = (jnp.where(inside, side, 1.0) for side in (near, far))
    roots = jnp.sqrt(near / far)
    return jnp.where(inside[..., 0], roots[..., 0] * roots[..., 1], 0.0)


def device_mean_count(
    flags: Bool[Array, "..."], *, axis_name: str | None
) -> Float[Array, ""]:
    """Returns the number of true flags on all devices, at least 1, over their number.

    Each device divides its own sum of losses by this; the mean of the results over the
    devices, and `pmean` of their gradients, is then what one device with all the images
    would get. Dividing by each device's own count would weigh images unequally.

    Args:
      flags: this device's.
      axis_name: of the devices, under `pmap`; None: there is only this one.

    Returns:
      The same on all devices.
    """
    return device_mean_sum(flags, axis_name=axis_name, minimum=1.0)


def device_mean_sum(
    weights: Float[Array, "..."] | Bool[Array, "..."],
    *,
    axis_name: str | None,
    minimum: float,
) -> Float[Array, ""]:
    """Returns the sum of weights on all devices, over the number of devices.

    Args:
      weights: this device's.
      axis_name: of the devices, under `pmap`; None: there is only this one.
      minimum: what a smaller sum on all devices counts as.

    Returns:
      The same on all devices; for the use see `device_mean_count`.
    """
    total = jnp.sum(weights, dtype=jnp.float32)
    if axis_name is None:
        return jnp.maximum(total, minimum)
    total = jax.lax.psum(total, axis_name)
    return jnp.maximum(total, minimum) / jax.lax.axis_size(axis_name)
