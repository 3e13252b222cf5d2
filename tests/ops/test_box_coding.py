from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops import box_coding

WEIGHTS = [(1, 1, 1, 1), (10, 10, 5, 5)]


def random_boxes(rng, *shape):
    corners = rng.uniform(0, 80, (*shape, 2))
    sides = rng.uniform(1, 60, (*shape, 2))
    return np.concatenate([corners, corners + sides], -1).astype(np.float32)


def test_deltas_by_hand(transform):
    anchor = jnp.array([[0.0, 0.0, 10.0, 20.0]])  # center (5, 10)
    box = jnp.array([[5.0, 0.0, 25.0, 10.0]])  # center (15, 5), sides (20, 10)
    deltas = jnp.array([[1.0, -0.25, np.log(2), np.log(0.5)]])
    chex.assert_trees_all_close(transform(box_coding.encode)(box, anchor), deltas)
    chex.assert_trees_all_close(transform(box_coding.decode)(deltas, anchor), box)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_agrees_with_torchvision(golden_ops, weights):
    anchors = golden_ops["boxes/b"]
    encode = jax.jit(partial(box_coding.encode, weights=weights))
    deltas = encode(golden_ops["boxes/a"][: len(anchors)], anchors)
    golden = golden_ops[f"coder/encode{weights}"]
    chex.assert_trees_all_close(deltas, golden, rtol=1e-5, atol=1e-5)
    decode = jax.jit(partial(box_coding.decode, weights=weights))
    boxes = decode(golden_ops[f"coder/deltas{weights}"], anchors)
    golden = golden_ops[f"coder/decode{weights}"]
    chex.assert_trees_all_close(boxes, golden, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_decode_inverts_encode(rng, weights):
    boxes, anchors = random_boxes(rng, 50), random_boxes(rng, 50)
    deltas = jax.jit(partial(box_coding.encode, weights=weights))(boxes, anchors)
    again = jax.jit(partial(box_coding.decode, weights=weights))(deltas, anchors)
    chex.assert_trees_all_close(again, boxes, atol=1e-3)


def test_growth_is_limited_and_shrinking_is_not():
    anchor = jnp.array([[0.0, 0.0, 16.0, 16.0]])
    wild = jnp.array([[0.0, 0.0, 100.0, -100.0]])
    box = jax.jit(box_coding.decode)(wild, anchor)
    chex.assert_trees_all_close(box, jnp.array([[-492.0, 8.0, 508.0, 8.0]]), rtol=1e-5)
    half = jax.jit(partial(box_coding.decode, max_log_scale=0.0))(wild, anchor)
    chex.assert_trees_all_close(half, jnp.array([[0.0, 8.0, 16.0, 8.0]]))


def test_padding_and_empty_anchors_are_finite():
    kinds = [
        [0, 0, 0, 0],
        [500, 500, 500, 500],
        [9, 9, 1, 1],
        [2, 2, 2, 8],
        [1, 1, 9, 9],
    ]
    kinds = jnp.array(kinds, jnp.float32)
    boxes, anchors = kinds[:, None], kinds[None]

    def total(boxes, anchors):
        return jnp.sum(box_coding.encode(boxes, anchors))

    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(boxes, anchors)
    chex.assert_tree_all_finite((value, gradients))


def test_wild_predictions_have_finite_gradients():
    def total(deltas, anchors):
        return jnp.sum(box_coding.decode(deltas, anchors))

    deltas = jnp.array([[0, 0, 1e4, -1e4], [1e4, -1e4, 4.135, 0], [0.0] * 4])
    anchors = jnp.array([[0.0, 0.0, 16.0, 16.0], [0.0] * 4, [0.0] * 4])
    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(deltas, anchors)
    chex.assert_tree_all_finite((value, gradients))


def test_distances_by_hand(transform):
    points = jnp.array([[5.0, 6.0], [0.0, 20.0]])
    boxes = jnp.array([[1.0, 4.0, 8.0, 16.0]] * 2)
    distances = jnp.array([[4.0, 2, 3, 10], [-1, 16, 8, -4]])
    encoded = transform(box_coding.encode_ltrb)(boxes, points)
    chex.assert_trees_all_equal(encoded, distances)
    decoded = transform(box_coding.decode_ltrb)(distances, points)
    chex.assert_trees_all_equal(decoded, boxes)
