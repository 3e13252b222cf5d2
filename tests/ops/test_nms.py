from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops import nms
from jaxdet.structs import Detections
from tests import oracles


@pytest.fixture(autouse=True, params=["default", "cuda"])
def branch(request, monkeypatch):
    """Runs each test both as on CPUs and TPUs and as on GPUs."""

    def choose(*arguments, **branches):
        return branches[request.param](*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", choose)
    monkeypatch.setattr(nms, "_BLOCK_ON_GPU", 64)  # so that scenes have several
    nms._suppress.clear_cache()
    yield
    nms._suppress.clear_cache()


def kept(answer):
    """The indices that are no padding, after a look at the padding."""
    indices, valid = map(np.asarray, answer)
    assert indices.dtype == np.int32
    assert (np.diff(valid.astype(int)) <= 0).all()
    assert (indices[~valid] == 0).all()
    return indices[valid].tolist()


def run(boxes, scores, threshold, size, *, labels=None, valid=None):
    """The indices that NMS keeps, of each class where there are labels."""
    options = {"iou_threshold": float(threshold), "max_output_size": size}
    options["valid"] = None if valid is None else jnp.asarray(valid)
    boxes, scores = jnp.asarray(boxes), jnp.asarray(scores)
    if labels is None:
        return kept(nms.nms(boxes, scores, **options))
    return kept(nms.batched_nms(boxes, scores, jnp.asarray(labels), **options))


def random_scene(rng, count):
    """Crowded boxes, many partly outside the image, with many equal scores."""
    centers = rng.uniform(-50, 60, (count, 2))
    sides = rng.uniform(5, 60, (count, 2))
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], -1)
    return boxes.astype(np.float32), (rng.integers(0, 50, count) / 50).astype(
        np.float32
    )


def test_three_boxes_by_hand(transform):
    # The second shares 2/3 with the first, and so does the third with the second.
    boxes = jnp.array([[0.0, 0, 5, 1], [1.0, 0, 6, 1], [2.0, 0, 7, 1]])
    scores = jnp.array([0.8, 0.9, 0.7])
    suppress = transform(partial(nms.nms, iou_threshold=0.5, max_output_size=3))
    indices, valid = suppress(boxes, scores)
    assert indices.tolist() == [1, 0, 0]
    assert valid.tolist() == [True, False, False]
    # What has been suppressed suppresses nothing.
    assert kept(suppress(boxes, jnp.array([0.9, 0.8, 0.7]))) == [0, 2]
    assert run(boxes, scores, 0.7, 3) == [1, 0, 2]


def test_iou_at_the_threshold_stays():
    halves, scores = [[0.0, 0, 2, 1], [0.0, 0, 1, 1]], [0.9, 0.8]
    assert run(halves, scores, 0.5, 2) == [0, 1]
    assert run(halves, scores, 0.4999, 2) == [0]


@pytest.mark.parametrize("threshold", [0.3, 0.45, 0.5, 0.6, 0.7])
def test_agrees_with_torchvision(golden_ops, threshold):
    boxes, scores, labels = (
        golden_ops[f"nms/{x}"] for x in ("boxes", "scores", "labels")
    )
    expected = golden_ops[f"nms/keep{threshold}"].tolist()
    assert run(boxes, scores, threshold, 240) == expected
    expected = golden_ops[f"nms/class_wise_keep{threshold}"].tolist()
    assert run(boxes, scores, threshold, 240, labels=labels) == expected


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("count", [300, 128, 20])  # several blocks, one, a part
def test_agrees_with_the_oracle(rng, threshold, count):
    boxes, scores = random_scene(rng, count)
    scores[rng.uniform(size=count) < 0.05] = np.nan
    valid = rng.uniform(size=count) < 0.9
    for labels in (None, rng.integers(0, 3, count)):
        options = {"valid": valid, "labels": labels}
        expected = oracles.greedy_nms(boxes, scores, threshold, **options)
        assert run(boxes, scores, threshold, count, **options) == expected


def test_is_exact_at_thresholds_that_occur(rng):
    boxes, scores = random_scene(rng, 60)
    values = np.unique(oracles.pairwise(oracles.iou, boxes, boxes).astype(np.float32))
    for threshold in rng.choice(values, 20):
        expected = oracles.greedy_nms(boxes, scores, threshold)
        assert run(boxes, scores, threshold, 60) == expected


@pytest.mark.parametrize("size", [0, 128, 500])
def test_size_cuts_or_pads_the_answer(rng, size):
    boxes, scores = random_scene(rng, 300)
    everything = oracles.greedy_nms(boxes, scores, 0.5)
    assert 200 < len(everything) < 300
    assert run(boxes, scores, 0.5, size) == everything[:size]


def test_long_chains_across_blocks():
    # Each box suppresses the next one only, so every other box stays.
    start = np.arange(400, dtype=np.float32)
    boxes = np.stack([start, 0 * start, start + 1.8, 0 * start + 1], -1)
    assert run(boxes, -start, 0.2, 400) == list(range(0, 400, 2))


def test_equal_scores_go_by_index():
    boxes = np.tile([[0.0, 0.0, 9.0, 9.0]], (200, 1))
    assert run(boxes, np.zeros(200), 0.5, 3) == [0]
    assert run(boxes, [-0.0, 0.0] * 100, 0.5, 3) == [0]


def test_empty_boxes_suppress_nothing_and_stay():
    boxes = [[0.0] * 4, [0.0] * 4, [0.0, 0.0, 5.0, 5.0], [4.0, 4.0, 1.0, 1.0]]
    assert run(boxes, [4.0, 3.0, 2.0, 1.0], 0.0, 4) == [0, 1, 2, 3]


def test_padding_neither_stays_nor_suppresses():
    boxes = np.tile([[0.0, 0.0, 9.0, 9.0]], (5, 1))
    scores = [np.nan, 0.9, 0.2, -np.inf, 0.1]
    for valid, expected in [
        ([True, False, True, True, False], [2]),
        ([True, False, False, True, False], [3]),
        ([False] * 5, []),
    ]:
        assert run(boxes, scores, 0.5, 5, valid=valid) == expected


def test_no_boxes_at_all():
    answer = nms.nms(
        jnp.zeros((0, 4)), jnp.zeros(0), iou_threshold=0.5, max_output_size=3
    )
    assert kept(answer) == []
    chex.assert_shape(answer, (3,))


@pytest.mark.parametrize("masks", [None, np.ones((3, 2, 2), np.float32)])
def test_slots_without_an_answer_are_zeros(transform, masks):
    valid = np.array([True, False, True])
    found = Detections(np.ones((3, 4)), np.ones(3), np.ones(3, int), valid, masks)
    found = jax.tree.map(jnp.asarray, found)
    answer = transform(nms.clear_padding)(found)
    np.testing.assert_array_equal(answer.valid, valid)
    for values in jax.tree.leaves(answer):
        np.testing.assert_array_equal(values[1], np.zeros(values.shape[1:]))
        assert (np.asarray(values)[[0, 2]] == 1).all()


def test_a_vote_worked_by_hand(transform):
    # The second shares 3/5 with the first, the third nothing, the fourth is another
    # class, the fifth is padding.
    boxes = jnp.array(
        [[0.0, 0, 4, 1], [1, 0, 5, 1], [9, 0, 10, 1]] + [[0.0, 0, 4, 1]] * 2
    )
    scores, labels = jnp.array([0.6, 0.2, 0.5, 0.9, 0.9]), jnp.array([1, 1, 1, 0, 1])
    valid, keep = jnp.array([True] * 4 + [False]), jnp.array([0, 2, 3])
    vote = transform(partial(nms.box_voting, keep=keep, iou_threshold=0.6, valid=valid))
    expected = jnp.array([[0.25, 0, 4.25, 1], [9, 0, 10, 1], [0, 0, 4, 1]])
    chex.assert_trees_all_close(vote(boxes, scores, labels), expected, atol=1e-6)
    deaf = nms.box_voting(
        boxes, scores, labels, keep=keep, iou_threshold=0.61, valid=valid
    )
    chex.assert_trees_all_close(deaf, boxes[keep], atol=1e-6)


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_votes_agree_with_the_oracle(rng, threshold):
    boxes, scores = random_scene(rng, 150)
    boxes[30:] = np.tile(boxes[:30], (4, 1)) + rng.uniform(-3, 3, (120, 4))
    scores[:20] *= -1
    boxes[20] = 0  # Empty: not even it itself has a say.
    labels, valid = rng.integers(0, 3, 150), rng.uniform(size=150) < 0.9
    keep = np.array([20, *rng.integers(0, 150, 30)])
    vote = jax.jit(partial(nms.box_voting, iou_threshold=threshold))
    expected = oracles.box_voting(boxes, scores, labels, keep, threshold, valid=valid)
    voted = vote(boxes, scores, labels, keep=keep, valid=valid)
    np.testing.assert_allclose(voted, expected, atol=1e-4)
    assert np.sum(np.any(np.abs(voted - boxes[keep]) > 0.1, axis=1)) > 10
