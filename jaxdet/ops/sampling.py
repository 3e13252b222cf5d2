"""Selects subsets, random or the hardest, that depend on no padding, order or batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32


class Subset(NamedTuple):
    """Chosen candidates, positive ones first; the rest of the slots is padding."""

    indices: Int[Array, " S"]  # which candidates; 0 for padding
    positive: Bool[Array, " S"]
    valid: Bool[Array, " S"]


def image_keys(
    key: jax.Array, image_ids: jax.Array, count: int
) -> tuple[jax.Array, ...]:
    """Returns keys of each image, the same whatever shares its batch.

    Args:
      key: of the step.
      image_ids: `[B]`.
      count: how many keys an image needs.

    Returns:
      `count` arrays of keys, `[B]` each.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, image_ids)
    return tuple(jax.vmap(jax.random.split, (0, None), 1)(keys, count))


def balanced_subset(
    key: Key[Array, ""],
    hashes: UInt32[Array, " A"],
    positive: Bool[Array, " A"],
    negative: Bool[Array, " A"],
    *,
    size: int,
    positive_fraction: float,
) -> Subset:
    """Samples positives and fills up with negatives (Ren et al. 2015, 3.1.3).

    Args:
      key: of this image.
      hashes: what a candidate's random priority depends on, with the key alone. Its
        place in the array changes with the canvas and with the order of the objects;
        the sample must not.
      positive: which candidates are positive.
      negative: which are negative, none of them positive too.
      size: slots; fewer are valid where there are too few candidates.
      positive_fraction: at most this share of `size`, rounded down, is positive.

    Returns:
      `Subset`; negatives take the slots that positives leave free.
    """
    priorities = _random_priorities(key, hashes)
    # Both in one sort: a TPU's compiler takes 15 s for each.
    ranks = jnp.where(jnp.stack([positive, negative]), priorities[None], -1.0)
    top, index = jax.lax.top_k(ranks, min(size, ranks.shape[1]))
    num_positive, num_negative = jnp.sum(top >= 0, axis=1)
    num_positive = jnp.minimum(num_positive, int(size * positive_fraction))
    # Positives come first, negatives follow.
    slots = jnp.arange(size)
    positives, negatives = jnp.pad(index, ((0, 0), (0, size - index.shape[1])))
    index = jnp.where(
        slots < num_positive, positives, jnp.roll(negatives, num_positive)
    )
    valid = slots < num_positive + num_negative
    return Subset(jnp.where(valid, index, 0), slots < num_positive, valid)


def hard_negative_mining(
    losses: Float[Array, " A"], candidates: Bool[Array, " A"], count: Int[Array, ""]
) -> Bool[Array, " A"]:
    """Selects the candidates with the greatest losses (Liu et al. 2016, 2.2).

    Args:
      losses: of all; no gradient is taken of them.
      candidates: those to select from.
      count: how many at most, at least 0.

    Returns:
      Which are selected: exactly `count` where there are enough candidates; of equal
      losses the first.
    """
    # Only the losses are sorted, not their places; a threshold then tells them apart.
    losses = jax.lax.stop_gradient(jnp.where(candidates, losses, -jnp.inf))
    rank = jnp.clip(len(losses) - count, 0, len(losses) - 1)
    least = jnp.sort(losses)[rank]
    above, equal = losses > least, losses == least
    room = count - jnp.sum(above)
    return candidates & (above | (equal & (jnp.cumsum(equal) <= room)))


def hash_boxes(boxes: Float[Array, "A 4"]) -> UInt32[Array, " A"]:
    """Returns a number for each box that depends on its coordinates alone.

    For boxes that are exactly the same however they were padded or ordered, such as
    anchors and objects; a network's predictions differ in their last bits.
    """
    bits = jax.lax.bitcast_convert_type(boxes.astype(jnp.float32), jnp.uint32)
    factor = jnp.uint32(0x9E3779B1)
    number = jnp.full(len(boxes), factor)
    for side in range(4):
        # Whole pixels end in many zeros: high bits must reach the low ones each time.
        number = (number ^ bits[:, side]) * factor
        number ^= number >> 16
    return number


def _random_priorities(
    key: Key[Array, ""], hashes: UInt32[Array, " A"]
) -> Float[Array, " A"]:
    """Draws uniformly from [0, 1), as a function of key and hash."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, hashes)
    bits = jax.random.key_data(keys)[:, 0]
    return (bits >> 8).astype(jnp.float32) * 2.0**-24
