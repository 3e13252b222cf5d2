"""Subsets, random or the hardest, that do not depend on padding, order or company."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Subset(NamedTuple):
    """Chosen candidates, positive ones first; the rest of the slots is padding."""

    index: jax.Array  # [S] int32, which candidates; 0 for padding
    positive: jax.Array  # [S] bool
    valid: jax.Array  # [S] bool


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
    key: jax.Array,
    hashes: jax.Array,
    positive: jax.Array,
    negative: jax.Array,
    *,
    size: int,
    positive_fraction: float,
) -> Subset:
    """A random choice of positives, filled up with negatives (Ren et al. 2015, 3.1.3).

    Args:
      key: of this image.
      hashes: `[A]` uint32, what a candidate's luck hangs on. A candidate's place in
        the array changes with the canvas and with the order of the objects; what is
        drawn must not.
      positive: `[A]` bool.
      negative: `[A]` bool, never both.
      size: slots; fewer are valid where there are too few candidates.
      positive_fraction: at most this share of `size`, rounded down, is positive.

    Returns:
      `Subset`; negatives take the slots that positives leave free.
    """
    priorities = _random_priorities(key, hashes)
    limit = min(int(size * positive_fraction), len(priorities))
    best, index = jax.lax.top_k(jnp.where(positive, priorities, -1.0), limit)
    chosen = jnp.zeros(positive.shape, bool).at[index].set(best >= 0)
    rank = jnp.where(chosen, 1 + priorities, jnp.where(negative, priorities, -1.0))
    best, index = jax.lax.top_k(rank, min(size, len(rank)))
    padding = (0, size - len(best))
    best = jnp.pad(best, padding, constant_values=-1.0)
    valid = best >= 0
    index = jnp.where(valid, jnp.pad(index, padding), 0)
    return Subset(index.astype(jnp.int32), best >= 1, valid)


def hard_negative_mining(
    losses: jax.Array, candidates: jax.Array, count: jax.Array
) -> jax.Array:
    """The candidates with the greatest losses (Liu et al. 2016, 2.2).

    Only the losses are sorted, not their places; a threshold then tells.

    Args:
      losses: `[A]`, of which no gradient is taken.
      candidates: `[A]` bool, the candidates.
      count: how many at most, a scalar at least 0.

    Returns:
      `[A]` bool, exactly `count` of them where there are enough; of equal losses the
      first are taken.
    """
    losses = jax.lax.stop_gradient(jnp.where(candidates, losses, -jnp.inf))
    place = jnp.clip(len(losses) - count, 0, len(losses) - 1)
    least = jnp.sort(losses)[place]
    above, equal = losses > least, losses == least
    room = count - jnp.sum(above)
    return candidates & (above | (equal & (jnp.cumsum(equal) <= room)))


def hash_boxes(boxes: jax.Array) -> jax.Array:
    """A number for each box, `[A, 4]` -> `[A]` uint32, that hangs on its sides alone.

    For boxes that are exactly the same however they were padded or ordered, such as
    anchors and objects; the answers of a network differ in their last bits.
    """
    bits = jax.lax.bitcast_convert_type(boxes.astype(jnp.float32), jnp.uint32)
    # Odd factors: no bit of a side is lost, and swapped sides differ.
    factors = jnp.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F], jnp.uint32)
    bits = bits * factors[None]
    return jnp.sum(bits ^ (bits >> 15), axis=-1, dtype=jnp.uint32)


def _random_priorities(key: jax.Array, hashes: jax.Array) -> jax.Array:
    """`[A]` float32, uniform in [0, 1), a function of key and hashes."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, hashes)
    bits = jax.random.key_data(keys)[:, 0]
    return (bits >> 8).astype(jnp.float32) * 2.0**-24
