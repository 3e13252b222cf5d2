import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops import boxes
from tests import oracles

# Nothing, a point, two lines, a box turned inside out, specks and two real boxes.
DEGENERATE = np.array(
    [
        [0, 0, 0, 0],
        [3, 4, 3, 4],
        [3, 4, 3, 9],
        [3, 4, 8, 4],
        [8, 9, 3, 4],
        [3, 4, 3 + 1e-6, 9],
        [0, 0, 1e-15, 1e-15],
        [0, 0, 1e-25, 1e3],
        [3, 4, 8, 9],
        [-5, -5, 1000, 1000],
    ],
    np.float32,
)


def random_boxes(rng, *shape):
    corners = rng.uniform(-20, 50, (*shape, 2))
    sides = rng.uniform(0, 40, (*shape, 2))
    return np.concatenate([corners, corners + sides], -1).astype(np.float32)


def test_area_by_hand(transform):
    values = [[0, 0, 2, 3], [-1, -1, 1, 1], [0, 0, 0, 5], [2, 0, 1, 1], [2, 2, 1, 1]]
    areas = transform(boxes.area)(jnp.array(values, jnp.float32))
    chex.assert_trees_all_equal(areas, jnp.array([6.0, 4.0, 0.0, 0.0, 0.0]))


def test_iou_with_the_unit_box(transform):
    unit = jnp.array([[0.0, 0.0, 1.0, 1.0]])
    same, half, touching, padding = [0, 0, 1, 1], [0, 0, 1, 2], [1, 0, 2, 1], [0] * 4
    others = jnp.array([same, half, touching, padding], jnp.float32)
    iou = transform(boxes.pairwise_iou)(unit, others)
    chex.assert_trees_all_close(iou, jnp.array([[1.0, 0.5, 0.0, 0.0]]))


def test_overlap_by_hand():
    a = jnp.array([[0.0, 0.0, 4.0, 3.0]])
    b = jnp.array([[1.0, 1.0, 9.0, 9.0], [4.0, 0.0, 5.0, 3.0], [5.0, 5.0, 1.0, 1.0]])
    chex.assert_trees_all_equal(
        jax.jit(boxes.pairwise_intersection)(a, b), jnp.array([[6.0, 0.0, 0.0]])
    )


def test_giou_by_hand(transform):
    unit = jnp.array([[0.0, 0.0, 1.0, 1.0]])
    # The same; a gap as wide as the boxes (hull 3, union 2); touching; inside a 2x2.
    others = jnp.array([[0, 0, 1, 1], [2, 0, 3, 1], [1, 0, 2, 1], [0, 0, 2, 2]])
    giou = transform(boxes.pairwise_giou)(unit, others.astype(jnp.float32))
    chex.assert_trees_all_close(giou, jnp.array([[1.0, -1 / 3, 0.0, 0.25]]))


def test_giou_of_empty_boxes():
    points = jnp.array([[0.0, 0.0, 0.0, 0.0], [3.0, 4.0, 3.0, 4.0]])
    giou = jax.jit(boxes.pairwise_giou)(points, points)
    chex.assert_trees_all_equal(giou, jnp.array([[0.0, -1.0], [-1.0, 0.0]]))


@pytest.mark.parametrize("name", ["iou", "giou"])
def test_pairs_agree_with_the_oracle(rng, name):
    a, b = random_boxes(rng, 20), random_boxes(rng, 15)
    measure = jax.jit(getattr(boxes, f"pairwise_{name}"))
    expected = oracles.pairwise(getattr(oracles, name), a, b)
    chex.assert_trees_all_close(measure(a, b), expected.astype(np.float32), atol=1e-6)


@pytest.mark.parametrize("name", ["pairwise_iou", "pairwise_giou"])
def test_pairs_agree_with_torchvision(golden_ops, name):
    measure = jax.jit(getattr(boxes, name))
    values = measure(golden_ops["boxes/a"], golden_ops["boxes/b"])
    chex.assert_trees_all_close(values, golden_ops[f"boxes/{name}"], atol=1e-6)


def test_area_and_clip_agree_with_torchvision(golden_ops):
    a = golden_ops["boxes/a"]
    areas, clipped = golden_ops["boxes/area"], golden_ops["boxes/clip(100,150)"]
    chex.assert_trees_all_close(jax.jit(boxes.area)(a), areas, rtol=1e-6)
    clip = jax.jit(lambda a: boxes.clip(a, (100, 150)))
    chex.assert_trees_all_equal(clip(a), clipped)


@pytest.mark.parametrize("measure", [boxes.pairwise_iou, boxes.pairwise_giou])
def test_degenerate_boxes_have_finite_values_and_gradients(measure):
    def total(a, b):
        return jnp.sum(measure(a, b))

    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(
        DEGENERATE, DEGENERATE
    )
    chex.assert_tree_all_finite((value, gradients))


@pytest.mark.parametrize(
    "size", [(10, 20), jnp.array([10, 20]), jnp.array([10.0, 20.0])]
)
def test_clip_by_hand(size):
    outside = jnp.array([[[-3.0, -4.0, 30.0, 40.0], [1.0, 2.0, 3.0, 4.0]]])
    clipped = boxes.clip(outside, size)
    inside = jnp.array([[[0.0, 0.0, 20.0, 10.0], [1.0, 2.0, 3.0, 4.0]]])
    chex.assert_trees_all_equal(clipped, inside)


def test_centers_by_hand(transform):
    box = jnp.array([1.0, 2.0, 4.0, 8.0])
    centered = jnp.array([2.5, 5.0, 3.0, 6.0])
    chex.assert_trees_all_equal(transform(boxes.xyxy_to_cxcywh)(box), centered)
    chex.assert_trees_all_equal(transform(boxes.cxcywh_to_xyxy)(centered), box)
