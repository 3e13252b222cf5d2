from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from jaxdet.ops import anchors, matching
from tests import oracles

SQUARE = [0, 0, 10, 10]


def compact(matches):
    """As torchvision writes it: -1 for background, -2 for ignored anchors."""
    assert not (matches.positive & matches.negative).any()
    background = np.where(matches.negative, -1, -2)
    return np.where(matches.positive, matches.gt_index, background)


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


def match(rows, boxes, valid=None, *, low=0.3, high=0.7, best=True):
    """Anchors and objects, matched by their IoU."""
    rows, boxes = (jnp.asarray(x, jnp.float32) for x in (rows, boxes))
    valid = np.ones(len(boxes), bool) if valid is None else np.array(valid, bool)
    return _match(
        rows,
        boxes,
        valid,
        negative_iou=low,
        positive_iou=high,
        allow_low_quality_matches=best,
    )


_match = jax.jit(
    matching.match_by_iou,
    static_argnames=("negative_iou", "positive_iou", "allow_low_quality_matches"),
)


def test_thresholds_by_hand():
    # IoU with the square: 1, 0.5 (at high), 0.4, 0.25 (at low), 0.2, 0.
    rows = [[0, 0, 10, bottom] for bottom in (10, 5, 4, 2.5, 2)] + [[20, 20, 30, 30]]
    matches = match(rows, [SQUARE], low=0.25, high=0.5, best=False)
    np.testing.assert_array_equal(compact(matches), [0, 0, -2, -2, -1, -1])
    chex.assert_trees_all_close(matches.iou, jnp.array([1, 0.5, 0.4, 0.25, 0.2, 0]))
    assert matches.gt_index.dtype == jnp.int32
    assert matches.iou.dtype == jnp.float32


def test_the_best_anchors_of_an_object_are_positive_with_all_ties():
    rows = [[0, 0, 10, 2], [0, 8, 10, 10], [0, 0, 10, 1], [50, 50, 60, 60]]
    np.testing.assert_array_equal(compact(match(rows, [SQUARE])), [0, 0, -1, -1])


def test_a_best_anchor_answers_for_the_object_it_overlaps_most():
    objects = [[0, 0, 10, 10], [0, 4, 10, 24]]
    # The first anchor is the best one of both objects and nearer to the first.
    rows = [[0, 0, 10, 12], [0, 22, 10, 24]]
    matches = match(rows, objects, high=0.9)
    np.testing.assert_array_equal(compact(matches), [0, -1])


def test_the_first_of_equal_objects_is_meant():
    for valid, first in [([1, 1], 0), ([0, 1], 1)]:
        matches = match([SQUARE] * 2, [SQUARE] * 2, valid)
        np.testing.assert_array_equal(matches.gt_index, [first, first])


@pytest.mark.parametrize("slots", [0, 1, 3])
def test_without_objects_all_anchors_are_background(rng, slots):
    boxes, none = np.zeros((slots, 4)), np.zeros(slots, bool)
    matches = match(random_boxes(rng, 7), boxes, none, low=0.0, high=0.0)
    assert matches.negative.all() and not matches.positive.any()
    np.testing.assert_array_equal(matches.gt_index, np.zeros(7))
    np.testing.assert_array_equal(matches.iou, np.zeros(7))


def test_padding_changes_nothing(rng, rpn_anchors):
    boxes = random_boxes(rng, 3)
    # Zeros touch no anchor; a stale box that does must not count either.
    padding = np.stack([np.zeros(4, np.float32), np.asarray(rpn_anchors[4000])])
    alone = match(rpn_anchors, boxes)
    padded = match(rpn_anchors, np.concatenate([boxes, padding]), [1, 1, 1, 0, 0])
    assert 3 <= padded.positive.sum() < 200
    chex.assert_trees_all_equal(padded, alone)


@pytest.mark.parametrize("best", [True, False])
def test_agrees_with_the_oracle(rng, best):
    for _ in range(5):
        rows, boxes = random_boxes(rng, 60), random_boxes(rng, 6)
        rows[30:] = rows[:30]  # Ties.
        valid = rng.uniform(size=6) < 0.7
        options = {"negative_iou": 0.3, "positive_iou": 0.6}
        options["allow_low_quality_matches"] = best
        expected = oracles.match(rows, boxes, valid, **options)
        matches = match(rows, boxes, valid, high=0.6, best=best)
        np.testing.assert_array_equal(compact(matches), expected)


@pytest.mark.parametrize(
    ("name", "rows", "low", "high"),
    [
        ("rpn", "rpn_256x320", 0.3, 0.7),
        ("retinanet", "rpn_256x320", 0.4, 0.5),
        ("roi", "boxes_a", 0.5, 0.5),
    ],
)
def test_agrees_with_torchvision(golden_ops, rpn_anchors, name, rows, low, high):
    candidates = golden_ops["boxes/a"] if rows == "boxes_a" else rpn_anchors
    boxes = golden_ops[f"matcher/{name}/boxes"]
    matches = match(candidates, boxes, low=low, high=high, best=name != "roi")
    golden = golden_ops[f"matcher/{name}/index_on_{rows}"]
    np.testing.assert_array_equal(compact(matches), golden)


def matched_points(points, boxes, valid=None, *, low=0.0, high=np.inf, **options):
    """As the oracle writes it: -1 for points in no object."""
    points, boxes = np.array(points, np.float32), np.array(boxes, np.float32)
    boxes = boxes.reshape(-1, 4)
    ranges = np.full((len(points), 2), [low, high], np.float32)
    valid = np.ones(len(boxes), bool) if valid is None else np.array(valid, bool)
    if "center_radius" in options:
        radius = options["center_radius"]
        options["center_radius"] = np.full(len(points), radius, np.float32)
    inclusive = options.pop("inclusive", True)
    match = partial(matching.match_points, inclusive=inclusive)
    index, positive = jax.jit(match)(
        points, boxes, valid, regression_ranges=ranges, **options
    )
    assert index.dtype == jnp.int32 and positive.dtype == bool
    return np.where(positive, index, -1).tolist()


def test_a_point_takes_the_smallest_object_around_it():
    boxes = [[0, 0, 20, 20], [0, 0, 10, 10], [8, 0, 18, 10]]
    points = [[5, 5], [15, 15], [15, 5], [9, 5], [25, 5]]
    # Two of one area: the first of them.
    assert matched_points(points, boxes) == [1, 0, 2, 1, -1]
    assert matched_points(points, boxes, [True, False, True]) == [0, 0, 2, 2, -1]
    assert matched_points(points, boxes, [False] * 3) == [-1] * 5
    assert matched_points(points, []) == [-1] * 5


def test_a_point_on_a_side_is_not_inside():
    points = [[0, 5], [5, 10], [10, 10], [0.5, 9.5]]
    assert matched_points(points, [SQUARE]) == [-1, -1, -1, 0]


@pytest.mark.parametrize(("inclusive", "at_limits"), [(True, 0), (False, -1)])
def test_farthest_sides_at_the_limits(inclusive, at_limits):
    box, points = (
        [0, 0, 100, 20],
        [[36, 10], [35, 10], [37, 10], [64, 10]],
    )  # 64, 65, 63
    match = partial(matched_points, points, [box], inclusive=inclusive)
    assert match(low=64) == [at_limits, 0, -1, at_limits]
    assert match(high=64) == [at_limits, -1, 0, at_limits]


def test_an_object_too_large_for_a_level_leaves_the_point_to_others():
    boxes = [[0, 0, 10, 10], [0, 0, 40, 40]]
    assert matched_points([[5, 5]], boxes, low=20) == [1]
    assert matched_points([[5, 5]], boxes, low=50) == [-1]


def test_center_sampling():
    box, points = [0, 0, 40, 8], [[20, 4], [25, 4], [25.5, 4], [26, 4], [14, 7]]
    match = partial(matched_points, points, [box])
    assert match() == [0] * 5
    assert match(center_radius=6.0) == [0, 0, 0, -1, -1]  # nearer, and across and down
    # What reaches out of a box is not in it.
    assert matched_points([[20, 9]], [box], center_radius=6.0) == [-1]


@pytest.mark.parametrize("inclusive", [True, False])
@pytest.mark.parametrize("radius", [None, 1.5])
def test_points_agree_with_the_oracle(rng, inclusive, radius):
    # Whole numbers, so that limits, sides and areas are often met exactly.
    levels = (2, 3)
    points = np.asarray(anchors.cell_centers((48, 64), levels=levels))
    fine = np.arange(len(points)) < anchors.num_anchors(
        (48, 64), levels=(2,), per_cell=1
    )
    options = {
        "regression_ranges": np.where(fine[:, None], [0, 12], [12, np.inf]),
        "center_radius": radius and radius * np.where(fine, 4, 8),
    }
    match = jax.jit(partial(matching.match_points, inclusive=inclusive))
    seen = set()
    for _ in range(8):
        corners, sides = rng.integers(0, 12, (6, 2)), rng.integers(1, 10, (6, 2))
        boxes = 4.0 * np.concatenate([corners, corners + sides], axis=-1)
        valid = rng.uniform(size=6) < 0.8
        index, positive = match(points, boxes, valid, **options)
        expected = oracles.match_points(
            points, boxes, valid, inclusive=inclusive, **options
        )
        np.testing.assert_array_equal(np.where(positive, index, -1), expected)
        seen |= set(expected)
    assert len(seen) > 5


def match_default_boxes(anchors, boxes, valid, positive_iou=0.5):
    arrays = (jnp.asarray(rows, jnp.float32) for rows in (anchors, boxes))
    valid = jnp.asarray(valid, bool)
    return _match_default_boxes(*arrays, valid, positive_iou=positive_iou)


_match_default_boxes = jax.jit(
    matching.match_default_boxes, static_argnames="positive_iou"
)


def test_no_object_goes_without_a_default_box_by_hand():
    # The first box overlaps the first object more, but is the second's best.
    boxes = [[0, 0, 10, 10], [0, 0, 9, 10], [30, 30, 40, 40]]
    objects = [[0, 0, 9.2, 10], [0, 2, 10, 12], [31, 31, 34, 34]]
    matches = match_default_boxes(boxes, objects, [True] * 3)
    np.testing.assert_array_equal(compact(matches), [1, 0, 2])
    expected = jnp.array([80 / 120, 9 / 9.2, 9 / 100])
    chex.assert_trees_all_close(matches.iou, expected, rtol=1e-5)


def test_of_two_objects_with_one_best_default_box_the_nearer_gets_it():
    boxes = [[0, 0, 10, 10], [30, 30, 40, 40]]
    objects = np.array([[0, 0, 4, 10], [0, 0, 10, 6]])
    for order in ([0, 1], [1, 0]):
        matches = match_default_boxes(boxes, objects[order], [True] * 2, 0.9)
        np.testing.assert_array_equal(compact(matches), [order.index(1), -1])


def test_one_of_equally_good_default_boxes_is_enough():
    boxes = [[0, 0, 10, 10], [2, 2, 12, 12], [30, 30, 40, 40]]
    matches = match_default_boxes(boxes, [[4, 4, 8, 8]], [True])
    np.testing.assert_array_equal(compact(matches), [0, -1, -1])


@pytest.mark.parametrize("count", [0, 1, 6])
def test_default_boxes_agree_with_the_oracle(rng, count):
    for _ in range(5):
        boxes, objects = random_boxes(rng, 40), random_boxes(rng, count)
        valid = rng.random(count) < 0.7
        matches = match_default_boxes(boxes, objects, valid)
        expected = oracles.match_default_boxes(boxes, objects, valid, positive_iou=0.5)
        np.testing.assert_array_equal(compact(matches), expected)
        assert matches.gt_index.dtype == jnp.int32


def test_objects_that_are_padding_or_far_away_claim_no_default_box():
    boxes = [[0, 0, 10, 10], [20, 0, 30, 10]]
    far, nothing = [50, 50, 60, 60], [0, 0, 0, 0]
    matches = match_default_boxes(boxes, [far, nothing, SQUARE], [True, False, False])
    np.testing.assert_array_equal(compact(matches), [-1, -1])


@pytest.mark.parametrize("image", [0, 1])
def test_default_boxes_match_as_torchvisions(golden_ssd, image):
    height, width, _ = golden_ssd[f"in/image{image}"].shape
    scale = np.array([300 / width, 300 / height] * 2, np.float32)
    objects = golden_ssd[f"in/target{image}/boxes"] * scale
    matches = match_default_boxes(
        golden_ssd["eval/anchors/0"], objects, np.ones(len(objects))
    )
    expected = golden_ssd[f"train_frozen/matched_idxs/{image}"]
    np.testing.assert_array_equal(compact(matches), expected)
    assert len(np.unique(expected)) == 10  # each of nine objects, and background


hungarian = jax.jit(matching.hungarian)
hungarian_of_each = jax.jit(jax.vmap(matching.hungarian))


def test_the_hungarian_algorithm_by_hand(transform):
    # Query 0 is the best for both objects; the second has more to lose.
    costs, both = jnp.array([[1.0, 1.0], [2.0, 5.0], [9.0, 9.0]]), jnp.ones(2, bool)
    solve = transform(matching.hungarian)
    index, positive = solve(costs, both)
    assert positive.tolist() == [True, True, False]
    assert index.tolist() == [1, 0, 0]
    index, positive = solve(costs, jnp.array([True, False]))
    assert positive.tolist() == [True, False, False]
    assert index.tolist() == [0, 0, 0]
    # More objects than queries: the one that costs more goes without.
    index, positive = solve(costs[:1] + jnp.array([[0.0, 1.0]]), both)
    assert (index.tolist(), positive.tolist()) == ([0], [True])
    index, positive = solve(costs[:, :0], both[:0])
    assert (index.tolist(), positive.any()) == ([0, 0, 0], False)


def cost_matrices(rng, shape):
    """Costs without and with ties, of objects that want the same, and all equal."""
    yield from rng.normal(0, 2, (100, *shape))
    yield from rng.integers(0, 4, (100, *shape))
    yield from rng.uniform(0, 1, (50, shape[0], 1)) + rng.uniform(0, 1e-3, (50, *shape))
    yield from rng.uniform(0, 1, (50, 1, shape[1])) + np.zeros((50, *shape))
    yield np.ones(shape)


@pytest.mark.parametrize("shape", [(12, 7), (5, 9), (6, 6)])
def test_the_hungarian_algorithm_agrees_with_scipy(rng, shape):
    costs = np.stack(list(cost_matrices(rng, shape))).astype(np.float32)
    counts = rng.integers(0, shape[1] + 1, len(costs))
    valid = rng.permuted(np.arange(shape[1])[None] < counts[:, None], axis=1)
    indices, positives = jax.device_get(hungarian_of_each(costs, valid))
    for matrix, used, index, positive in zip(
        costs, valid, indices, positives, strict=True
    ):
        matched = index[positive]
        assert len(set(matched)) == len(matched) == min(np.sum(used), len(matrix))
        assert np.all(used[matched]) and not np.any(index[~positive])
        least = matrix[:, used][linear_sum_assignment(matrix[:, used])].sum()
        assert matrix[positive, matched].sum() == pytest.approx(least, 1e-4, 1e-5)
    for image in (0, 120, 220, 300):  # one by one as all together
        alone = hungarian(costs[image], valid[image])
        chex.assert_trees_all_equal(alone, (indices[image], positives[image]))


def test_costs_that_are_not_finite_are_avoided(rng):
    costs = rng.normal(0, 1, (6, 4)).astype(np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        broken = costs.copy()
        broken[:, 1] = bad
        broken[2:, 3] = bad
        index, positive = hungarian(broken, np.ones(4, bool))
        assert sorted(index[positive].tolist()) == [0, 1, 2, 3]
        assert np.flatnonzero((index == 3) & positive)[0] < 2
        _, positive = hungarian(np.full_like(costs, bad), np.ones(4, bool))
        assert positive.sum() == 4
