"""Matching, gathering and postprocessing by hand on two images; recipes."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.config import Postprocessing, Preprocessing
from jaxdet.detectors import dense
from jaxdet.detectors.detector import preprocess
from jaxdet.detectors.serialization import deserialize
from jaxdet.structs import GroundTruth
from tests.detectors import scenes, test_fcos, test_retinanet, test_ssd

# Four anchors, the quarters of a 64x64 image; in the second image only the left two.
ANCHORS = np.array(
    [[0, 0, 32, 32], [32, 0, 64, 32], [0, 32, 32, 64], [32, 32, 64, 64]], np.float32
)
INSIDE = np.array([[1, 1, 1, 1], [1, 0, 1, 0]], bool)
# The first quarter, and half of the last; the same, with a crowd; and padding.
TRUTH = GroundTruth(
    boxes=np.array([[[0, 0, 32, 32], [32, 48, 64, 64], [0, 0, 0, 0]]] * 2, np.float32),
    labels=np.array([[2, 1, 0]] * 2),
    valid=np.array([[1, 1, 0]] * 2, bool),
    crowd=np.array([[0, 0, 0], [1, 0, 0]], bool),
)


def test_matches_and_targets_by_hand():
    @jax.jit
    def match(truth):
        matches = dense.match_anchors(
            ANCHORS, INSIDE, truth, negative_iou=0.4, positive_iou=0.6
        )
        targets = dense.matched_targets(
            truth, matches.gt_index, matches.positive, num_classes=3
        )
        return matches, *targets

    matches, labels, boxes = match(TRUTH)
    # The last quarter is positive as the best of the second object, though its IoU is
    # 1/2; in the second image it is outside, and the other object is a crowd.
    expected = np.array([[1, 0, 0, 1], [0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(matches.positive, expected)
    np.testing.assert_array_equal(matches.negative, INSIDE & ~expected)
    np.testing.assert_array_equal(labels, [[2, 3, 3, 1], [3, 3, 3, 3]])
    np.testing.assert_array_equal(boxes[0, [0, 3]], TRUTH.boxes[0, :2])
    empty = jax.tree.map(lambda x: x[:, :0], TRUTH)
    matches, labels, boxes = match(empty)
    assert not np.any(matches.positive) and np.all(labels == 3) and not np.any(boxes)


def test_postprocessing_by_hand():
    boxes = np.array([[-9, 0, 32, 40], [0, 0, 32, 33], [0, 0, 32, 33], [0, 0, 9, 9]])
    boxes = jnp.array([boxes, boxes], jnp.float32).at[1, 0, 0].set(jnp.nan)
    scores = jnp.array([[0.9, 0.8, 0.7, -1.0]] * 2)
    labels = jnp.array([[0, 0, 1, 1]] * 2)
    config = Postprocessing(nms_threshold=0.5, max_detections=2)
    sizes = np.array([[32, 64], [64, 64]])
    found = jax.jit(lambda *arrays: dense.postprocess(*arrays, config))(
        boxes, scores, labels, sizes
    )
    np.testing.assert_array_equal(found.boxes[0], [[0, 0, 32, 32]] * 2)
    np.testing.assert_array_equal(found.boxes[1], [[0, 0, 32, 33]] * 2)
    np.testing.assert_array_equal(found.labels, [[0, 1]] * 2)
    np.testing.assert_allclose(found.scores, [[0.9, 0.7], [0.8, 0.7]])
    assert np.all(found.valid)


def test_preprocessing_normalizes_and_says_where_images_end():
    batch = scenes.batch(counts=(1, 0))  # sizes 64x64 and 48x64
    config = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    pixels, sizes = preprocess(batch, config)
    expected = (batch.images / 255 - 0.5) / 0.25
    chex.assert_trees_all_close(pixels[0], expected[0], atol=1e-5)
    chex.assert_trees_all_close(pixels[1, :48], expected[1, :48], atol=1e-5)
    assert not np.any(pixels[1, 48:])
    np.testing.assert_array_equal(sizes, batch.sizes)
    assert preprocess(batch, config, mask_padding=False)[1] is None


@pytest.mark.parametrize(
    "make",
    [test_retinanet.small_retinanet, test_fcos.small_fcos, test_ssd.small_ssd],
)
def test_a_recipe_builds_the_detector_again(make):
    detector = make(jnp.bfloat16)
    again = deserialize(json.loads(json.dumps(detector.recipe)))
    assert (again.recipe, again.num_classes) == (detector.recipe, 3)
    scene, key = scenes.batch(), jax.random.key(0)
    shapes = [jax.eval_shape(d.init, key, scene) for d in (detector, again)]
    chex.assert_trees_all_equal_shapes_and_dtypes(*shapes)


def test_rows_are_those_of_gather(rng):
    values = jnp.asarray(rng.normal(size=(2, 5, 3)), jnp.float32)
    index = jnp.array([[4, 0, 0, 2], [1, 4, 3, 3]])

    def rows_and_gradient(gather):
        def total(values):
            rows = gather(values, index)
            return jnp.sum(rows**2), rows

        return jax.grad(total, has_aux=True)(values)

    chex.assert_trees_all_equal(
        *map(rows_and_gradient, (dense.gather_rows, dense.gather))
    )
