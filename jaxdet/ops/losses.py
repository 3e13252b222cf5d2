"""Losses, entry by entry, and the count that several devices divide their sums by."""

import jax
import jax.numpy as jnp

from jaxdet.ops.boxes import area, pairwise_giou

_FARTHEST = 1e8  # pixels
_NEAREST = 1e-8  # A point not farther from a side is on it.


def smooth_l1_loss(
    predictions: jax.Array, targets: jax.Array, *, beta: float
) -> jax.Array:
    """Absolute error, squared where it is less than `beta` (Girshick 2015, 2.3).

    Value and slope are continuous; far off the loss is the absolute error less
    `beta / 2`.

    Args:
      predictions: `[...]`.
      targets: `[...]`.
      beta: at least 0; 0: the absolute error.

    Returns:
      `[...]`, each prediction's loss.
    """
    error = predictions - targets
    error = jnp.maximum(error, -error)  # Its slope at 0 is 0, that of jnp.abs is 1.
    if beta == 0:
        return error
    return jnp.where(error < beta, error**2 / (2 * beta), error - beta / 2)


def giou_loss(boxes: jax.Array, targets: jax.Array) -> jax.Array:
    """1 - GIoU of each box and its target, `[..., 4]` -> `[...]` in [0, 2].

    1 where both are the same empty box, such as padding. Coordinates beyond 1e8 count
    as that far, without gradient: areas of wild early predictions would overflow.
    """

    def giou(a: jax.Array, b: jax.Array) -> jax.Array:
        return pairwise_giou(a[None], b[None])[0, 0]

    boxes = jnp.clip(boxes, -_FARTHEST, _FARTHEST)
    return 1 - jnp.vectorize(giou, signature="(k),(k)->()")(boxes, targets)


def iou_loss(boxes: jax.Array, targets: jax.Array) -> jax.Array:
    """-ln IoU of each box and its target (Yu et al. 2016), `[..., 4]` -> `[...]`.

    Both areas of the ratio count a square pixel more than they have, as in the code of
    FCOS's authors: finite where boxes do not touch, though no pull together, and 0
    where both are empty, such as padding. Coordinates beyond 1e8 count as that far.
    """
    boxes = jnp.clip(boxes, -_FARTHEST, _FARTHEST)
    corners = jnp.minimum(boxes[..., 2:], targets[..., 2:])
    corners = [jnp.maximum(boxes[..., :2], targets[..., :2]), corners]
    overlap = area(jnp.concatenate(corners, axis=-1))
    union = area(boxes) + area(targets) - overlap
    return jnp.log(union + 1) - jnp.log(overlap + 1)


def centerness(distances: jax.Array) -> jax.Array:
    """How central a point is in its box (Tian et al. 2019, equation 3).

    Args:
      distances: `[..., 4]` to the left, top, right and bottom side, in any unit.

    Returns:
      `[...]`, 1 in the centre, falling to 0 on the sides and outside.
    """
    near = jnp.minimum(distances[..., :2], distances[..., 2:])
    far = jnp.maximum(distances[..., :2], distances[..., 2:])
    inside = jnp.min(near, axis=-1, keepdims=True) > _NEAREST
    # Outside there are no roots, nor their gradients.
    near, far = (jnp.where(inside, side, 1.0) for side in (near, far))
    roots = jnp.sqrt(near / far)
    return jnp.where(inside[..., 0], roots[..., 0] * roots[..., 1], 0.0)


def device_mean_count(flags: jax.Array, *, axis_name: str | None) -> jax.Array:
    """The number of true flags on all devices, at least 1, by the number of devices.

    Each device divides its own sum of losses by this; the mean of the results over the
    devices, and `pmean` of their gradients, is then what one device with all the images
    would get. Dividing by each device's own count would weigh images unequally.

    Args:
      flags: `[...]` bool, this device's.
      axis_name: of the devices, under `pmap`; None: there is only this one.

    Returns:
      A float32 scalar, the same on all devices.
    """
    return device_mean_sum(flags, axis_name=axis_name, minimum=1.0)


def device_mean_sum(
    weights: jax.Array, *, axis_name: str | None, minimum: float
) -> jax.Array:
    """`device_mean_count` of weights: their sum on all devices, by the devices' number.

    Args:
      weights: `[...]`, this device's.
      axis_name: of the devices, under `pmap`; None: there is only this one.
      minimum: what a smaller sum on all devices counts as.

    Returns:
      A float32 scalar, the same on all devices.
    """
    total = jnp.sum(weights, dtype=jnp.float32)
    if axis_name is None:
        return jnp.maximum(total, minimum)
    total = jax.lax.psum(total, axis_name)
    return jnp.maximum(total, minimum) / jax.lax.axis_size(axis_name)
