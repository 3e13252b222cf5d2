from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops import anchors, matching
from tests import oracles

SQUARE = [0, 0, 10, 10]


def compact(matches):
    """As torchvision writes it: -1 for background, -2 for ignored anchors."""
    assert not (matches.positive & matches.negative).any()
    background = np.where(matches.negative, -1, -2)
    return np.where(matches.positive, matches.index, background)


def random_boxes(rng, count):
    corners = rng.uniform(0, 80, (count, 2))
    sides = rng.uniform(5, 60, (count, 2))
    return np.concatenate([corners, corners + sides], -1).astype(np.float32)


@pytest.fixture(scope="module")
def rpn_anchors():
    return anchors.pyramid_anchors(
        (256, 320),
        sizes=[[x] for x in (32, 64, 128, 256, 512)],
        ratios=(0.5, 1.0, 2.0),
        levels=(2, 3, 4, 5, 6),
        offset=0.0,
        rounded=True,
    )


def test_thresholds_by_hand(transform):
    match = transform(
        partial(matching.match_by_iou, low=0.25, high=0.5, force_best=False)
    )
    # IoU with the square: 1, 0.5 (at high), 0.4, 0.25 (at low), 0.2, 0.
    rows = [[0, 0, 10, bottom] for bottom in (10, 5, 4, 2.5, 2)] + [[20, 20, 30, 30]]
    matches = match(
        jnp.array(rows, jnp.float32),
        jnp.array([SQUARE], jnp.float32),
        jnp.ones(1, bool),
    )
    np.testing.assert_array_equal(compact(matches), [0, 0, -2, -2, -1, -1])
    chex.assert_trees_all_close(matches.iou, jnp.array([1, 0.5, 0.4, 0.25, 0.2, 0]))
    assert matches.index.dtype == jnp.int32
    assert matches.iou.dtype == jnp.float32


def test_the_best_anchors_of_an_object_are_positive_with_all_ties():
    rows = [[0, 0, 10, 2], [0, 8, 10, 10], [0, 0, 10, 1], [50, 50, 60, 60]]
    match = jax.jit(partial(matching.match_by_iou, low=0.3, high=0.7))
    matches = match(
        jnp.array(rows, jnp.float32),
        jnp.array([SQUARE], jnp.float32),
        jnp.ones(1, bool),
    )
    np.testing.assert_array_equal(compact(matches), [0, 0, -1, -1])


def test_a_best_anchor_answers_for_the_object_it_overlaps_most():
    objects = jnp.array([[0.0, 0.0, 10.0, 10.0], [0.0, 4.0, 10.0, 24.0]])
    # The first anchor is the best one of both objects and nearer to the first.
    rows = jnp.array([[0.0, 0.0, 10.0, 12.0], [0.0, 22.0, 10.0, 24.0]])
    match = jax.jit(partial(matching.match_by_iou, low=0.3, high=0.9))
    matches = match(rows, objects, jnp.ones(2, bool))
    np.testing.assert_array_equal(compact(matches), [0, -1])


def test_the_first_of_equal_objects_is_meant():
    twins = jnp.array([SQUARE, SQUARE], jnp.float32)
    match = jax.jit(partial(matching.match_by_iou, low=0.3, high=0.7))
    for valid, first in [([1, 1], 0), ([0, 1], 1)]:
        matches = match(twins, twins, np.array(valid, bool))
        np.testing.assert_array_equal(matches.index, [first, first])


@pytest.mark.parametrize("slots", [0, 1, 3])
def test_without_objects_all_anchors_are_background(rng, slots):
    boxes = np.zeros((slots, 4), np.float32)
    match = jax.jit(partial(matching.match_by_iou, low=0.0, high=0.0))
    matches = match(random_boxes(rng, 7), boxes, np.zeros(slots, bool))
    chex.assert_trees_all_equal(
        matches,
        matching.Matches(
            index=jnp.zeros(7, jnp.int32),
            positive=jnp.zeros(7, bool),
            negative=jnp.ones(7, bool),
            iou=jnp.zeros(7),
        ),
    )


def test_padding_changes_nothing(rng, rpn_anchors):
    boxes = random_boxes(rng, 3)
    # Zeros touch no anchor; a stale box that does must not count either.
    padding = np.stack([np.zeros(4, np.float32), np.asarray(rpn_anchors[4000])])
    match = jax.jit(partial(matching.match_by_iou, low=0.3, high=0.7))
    alone = match(rpn_anchors, boxes, np.ones(3, bool))
    padded = match(
        rpn_anchors, np.concatenate([boxes, padding]), np.array([1, 1, 1, 0, 0], bool)
    )
    assert 3 <= padded.positive.sum() < 200
    chex.assert_trees_all_equal(padded, alone)


@pytest.mark.parametrize("force_best", [True, False])
def test_agrees_with_the_oracle(rng, force_best):
    match = jax.jit(
        partial(matching.match_by_iou, low=0.3, high=0.6, force_best=force_best)
    )
    for _ in range(5):
        rows, boxes = random_boxes(rng, 60), random_boxes(rng, 6)
        rows[30:] = rows[:30]  # Ties.
        valid = rng.uniform(size=6) < 0.7
        expected = oracles.match(
            rows, boxes, valid, low=0.3, high=0.6, force_best=force_best
        )
        np.testing.assert_array_equal(compact(match(rows, boxes, valid)), expected)


@pytest.mark.parametrize(
    "name, low, high", [("rpn", 0.3, 0.7), ("retinanet", 0.4, 0.5)]
)
def test_agrees_with_torchvision(golden_ops, rpn_anchors, name, low, high):
    match = jax.jit(partial(matching.match_by_iou, low=low, high=high))
    boxes = golden_ops[f"matcher/{name}/boxes"]
    matches = match(rpn_anchors, boxes, np.ones(len(boxes), bool))
    golden = golden_ops[f"matcher/{name}/index_on_rpn_256x320"]
    np.testing.assert_array_equal(compact(matches), golden)


def test_agrees_with_torchvision_without_best_matches(golden_ops):
    match = jax.jit(partial(matching.match_by_iou, low=0.5, high=0.5, force_best=False))
    boxes = golden_ops["matcher/roi/boxes"]
    matches = match(golden_ops["boxes/a"], boxes, np.ones(len(boxes), bool))
    golden = golden_ops["matcher/roi/index_on_boxes_a"]
    np.testing.assert_array_equal(compact(matches), golden)


def test_maps_over_images(rng, rpn_anchors):
    boxes = np.stack([random_boxes(rng, 4), random_boxes(rng, 4)])
    valid = np.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool)
    match = partial(matching.match_by_iou, low=0.3, high=0.7)
    mapped = jax.jit(jax.vmap(match, (None, 0, 0)))(rpn_anchors, boxes, valid)
    for i in range(2):
        one = jax.jit(match)(rpn_anchors, boxes[i], valid[i])
        np.testing.assert_array_equal(compact(mapped)[i], compact(one))
        np.testing.assert_allclose(mapped.iou[i], one.iou, rtol=1e-6)
