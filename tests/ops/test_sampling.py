import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.ops import sampling

POSITIVE = np.arange(40) < 10
NEGATIVE = (np.arange(40) >= 10) & (np.arange(40) < 35)


def subset(
    seed=0, positive=POSITIVE, negative=NEGATIVE, *, identity=None, size=16, share=0.25
):
    identity = np.arange(len(positive)) if identity is None else identity
    return sampling.balanced_subset(
        jax.random.key(seed),
        jnp.asarray(identity, jnp.uint32),
        jnp.asarray(positive),
        jnp.asarray(negative),
        size=size,
        positive_fraction=share,
    )


def test_keys_belong_to_images_not_to_slots():
    ids = jnp.array([3, 1, 4])
    first, second = sampling.image_keys(jax.random.key(1), ids, 2)
    again, _ = sampling.image_keys(jax.random.key(1), ids[::-1], 2)
    assert np.array_equal(jax.random.key_data(first), jax.random.key_data(again[::-1]))
    assert np.any(jax.random.key_data(first) != jax.random.key_data(second))


def test_a_quarter_is_positive_and_comes_first():
    chosen = subset()
    np.testing.assert_array_equal(chosen.positive, np.arange(16) < 4)
    assert np.all(chosen.valid)
    assert np.all(POSITIVE[chosen.indices[:4]]) and np.all(NEGATIVE[chosen.indices[4:]])
    assert len(set(chosen.indices.tolist())) == 16


def test_negatives_take_the_place_of_missing_positives():
    chosen = subset(positive=np.arange(40) < 1)
    assert int(chosen.positive.sum()) == 1 and int(chosen.valid.sum()) == 16


def test_too_few_candidates_leave_padding():
    chosen = subset(positive=np.arange(40) < 2, negative=np.arange(40) == 39)
    assert int(chosen.positive.sum()) == 2 and int(chosen.valid.sum()) == 3
    np.testing.assert_array_equal(chosen.indices[3:], 0)
    assert int(chosen.indices[2]) == 39
    assert not np.any(chosen.positive[2:])


def test_fewer_candidates_than_slots():
    chosen = subset(positive=np.array([True, False]), negative=np.array([False, True]))
    chex.assert_shape(list(chosen), (16,))
    np.testing.assert_array_equal(chosen.indices[:2], [0, 1])
    np.testing.assert_array_equal(chosen.valid, np.arange(16) < 2)


def test_every_candidate_has_the_same_chance():
    draws = jax.vmap(lambda seed: subset(seed).indices)(jnp.arange(2000))
    counts = np.bincount(np.asarray(draws).reshape(-1), minlength=40)
    np.testing.assert_allclose(counts[:10], 2000 * 4 / 10, rtol=0.12)
    np.testing.assert_allclose(counts[10:35], 2000 * 12 / 25, rtol=0.12)
    assert not np.any(counts[35:])


def test_neighbors_are_drawn_independently():
    draws = np.asarray(
        jax.vmap(lambda seed: subset(seed).indices[:4])(jnp.arange(2000))
    )
    both = np.any(draws == 0, axis=1) & np.any(draws == 1, axis=1)
    np.testing.assert_allclose(both.mean(), 4 / 10 * 3 / 9, atol=0.03)


def test_the_choice_follows_the_identity_wherever_it_stands(rng):
    order = rng.permutation(60)
    positive = np.pad(POSITIVE, (0, 20))[order]
    negative = np.pad(NEGATIVE, (0, 20))[order]
    moved = subset(positive=positive, negative=negative, identity=order)
    np.testing.assert_array_equal(order[moved.indices], subset().indices)


def test_identities_tell_boxes_apart(rng):
    boxes = rng.uniform(0, 500, (1000, 4)).astype(np.float32)
    boxes[1] = boxes[0][[1, 0, 3, 2]]  # a box of the same sides, elsewhere
    boxes[2] = boxes[0]
    numbers = np.asarray(sampling.hash_boxes(jnp.asarray(boxes)))
    assert numbers[0] == numbers[2]
    assert len(set(numbers.tolist())) >= 998
    # Of so many numbers of 32 bits, drawn at random, 0.08 would be equal to another.
    corners = np.stack(np.meshgrid(*[8 * np.arange(40)] * 2), -1).reshape(-1, 1, 2)
    sides = np.stack(np.meshgrid(*[16 * 2 ** np.arange(4)] * 2), -1).reshape(1, -1, 2)
    whole = np.concatenate(np.broadcast_arrays(corners, corners + sides), -1)
    numbers = sampling.hash_boxes(jnp.asarray(whole.reshape(-1, 4), jnp.float32))
    assert len(np.unique(numbers)) == 25_600


def hardest(losses, among, count):
    """By sorting places, as naively as it goes."""
    order = sorted(np.flatnonzero(among), key=lambda place: -losses[place])
    chosen = np.zeros(len(losses), bool)
    chosen[order[:count]] = True
    return chosen


def test_hardest_by_hand(transform):
    losses = jnp.array([0.5, 3.0, 1.0, 2.0, 9.0])
    among = jnp.array([True, True, True, True, False])
    choose = transform(sampling.hard_negative_mining)
    for count, expected in ((0, []), (1, [1]), (3, [1, 2, 3]), (9, [0, 1, 2, 3])):
        chosen = choose(losses, among, jnp.int32(count))
        np.testing.assert_array_equal(np.flatnonzero(chosen), expected)


def test_hardest_agrees_with_sorting(rng):
    choose = jax.jit(sampling.hard_negative_mining)
    for _ in range(50):
        losses = rng.integers(0, 6, 30).astype(np.float32)  # many are equal
        among, count = rng.random(30) < rng.random(), rng.integers(0, 35)
        np.testing.assert_array_equal(
            choose(losses, among, count), hardest(losses, among, count)
        )


def test_hardest_hinders_no_gradient():
    def total(losses):
        chosen = sampling.hard_negative_mining(losses, jnp.ones(4, bool), jnp.int32(2))
        return jnp.sum(losses, where=chosen)

    gradient = jax.grad(total)(jnp.array([1.0, 4.0, 2.0, 3.0]))
    np.testing.assert_array_equal(gradient, [0, 1, 0, 1])
