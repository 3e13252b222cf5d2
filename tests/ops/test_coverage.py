from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops import anchors, boxes, matching
from jaxdet.ops.coverage import best_iou, of_pyramid, points_in_charge

CANVAS = (64, 96)
LAYOUT = {
    "sizes": ((12.0, 17.0), (24.0, 34.0)),
    "ratios": (0.5, 2.0),
    "levels": (3, 4),
}


def objects_on(canvas, rng, count=60):
    """Of all sizes and shapes, some with sides of whole pixels."""
    corners = rng.uniform(0, canvas[::-1], (2, count, 2))
    low, high = np.minimum(*corners), np.maximum(*corners)
    found = np.concatenate([low, high + 1], axis=1)
    found[::3] = np.rint(found[::3])
    return np.clip(found, 0, [*canvas[::-1]] * 2).astype(np.float32)


def test_the_best_of_two_columns_by_hand():
    # Two cells side by side, each with a square of 10 and a lying box of 20 x 10.
    grid = np.array([[[[0, 0, 10, 10], [-5, 0, 15, 10]]] * 2], float)
    grid[0, 1, :, ::2] += 10  # the second column: 10 pixels to the right
    objects = np.array(
        [
            [10, 0, 20, 10],
            [0, 0, 10, 5],
            [5, 0, 25, 10],
            [12, 0, 22, 10],
            [60, 0, 70, 9],
        ]
    )
    # The second square; half of the first; the second lying box; 8 of 12 columns of the
    # second square; nothing.
    expected = [1.0, 0.5, 1.0, 8 / 12, 0.0]
    np.testing.assert_allclose(best_iou(grid, objects), expected)


def test_only_boxes_within_the_image_count_where_asked():
    grid = np.array([[[[0, 0, 10, 10]], [[10, 0, 20, 10]]]], float)
    objects = np.array([[10, 0, 18, 10]] * 2, float)
    within = np.array([[10, 20], [10, 18]])
    np.testing.assert_allclose(best_iou(grid, objects, within=within), [0.8, 0.0])


@pytest.mark.parametrize("options", [{}, {"offset": 0.0, "rounded": True}])
@pytest.mark.parametrize("inside", [False, True])
def test_it_agrees_with_all_anchors(rng, options, inside):
    objects = objects_on(CANVAS, rng)
    all_anchors = np.asarray(anchors.pyramid_anchors(CANVAS, **LAYOUT, **options))
    within = None
    if inside:
        within = np.tile((56, 90), (len(objects), 1))
        left = (all_anchors >= 0) & (all_anchors <= [90, 56, 90, 56])
        all_anchors = all_anchors[left.all(axis=1)]
    expected = np.asarray(jax.jit(boxes.pairwise_iou)(all_anchors, objects)).max(axis=0)
    found = of_pyramid(CANVAS, objects, **LAYOUT, **options, within=within)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert 0.1 < np.median(found) < 0.9  # there was something to agree on


@pytest.mark.parametrize("inclusive", [True, False])
@pytest.mark.parametrize("reaches", [(np.inf, np.inf), (12.0, 24.0)])
def test_points_agree_with_their_matching(rng, inclusive, reaches):
    levels, limits = (3, 4), ((0.0, 20.0), (20.0, np.inf))
    objects = objects_on(CANVAS, rng)
    objects[:3] = [[20, 20, 44, 44], [0, 0, 48, 40], [12, 4, 36, 44]]  # at the limit
    points = anchors.cell_centers(CANVAS, levels=levels)
    counts = [
        anchors.num_anchors(CANVAS, levels=[level], per_cell=1) for level in levels
    ]
    ranges = {"regression_ranges": np.repeat(np.array(limits), counts, axis=0)}
    ranges["center_radius"] = np.repeat(reaches, counts)
    there = jnp.ones(1, bool)
    match = partial(matching.match_points, points, **ranges, inclusive=inclusive)
    _, positive = jax.vmap(lambda alone: match(alone[None], there))(objects)
    found = points_in_charge(
        CANVAS,
        objects,
        levels=levels,
        limits=limits,
        reaches=reaches,
        inclusive=inclusive,
    )
    np.testing.assert_array_equal(found, positive.sum(axis=1))
    assert found.max() > 3


def test_points_by_hand():
    # Level 3 has points at 4, 12, 20, ...; 4 x 4 of them lie in this box, and the inner
    # four have no side farther than 20 pixels.
    square = np.array([[0, 0, 32, 32]], float)
    of_level = {"levels": (3,), "reaches": (np.inf,)}
    for limit, count in ((20, 4), (19, 0), (28, 16), (np.inf, 16)):
        found = points_in_charge((64, 64), square, **of_level, limits=((0, limit),))
        assert found.tolist() == [count]
    far = points_in_charge((64, 64), square, **of_level, limits=((21, np.inf),))
    assert far.tolist() == [12]
