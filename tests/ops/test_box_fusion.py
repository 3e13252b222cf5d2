"""Weighted box fusion: clusters by hand, and against plain loops."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops.box_fusion import weighted_box_fusion
from tests import oracles


@pytest.fixture
def fused(transform):
    """From rows of (x1, y1, x2, y2, score, label), -1 for padding, to such rows."""

    def call(rows, **options):
        rows = np.asarray(rows, np.float32)
        labels = rows[:, 5].astype(np.int32)
        options = {"num_views": 2, "iou_threshold": 0.5, "max_detections": 9} | options
        fuse = transform(partial(weighted_box_fusion, **options))
        arrays = map(jnp.array, (rows[:, :4], rows[:, 4], labels))
        found = fuse(*arrays, valid=jnp.array(labels >= 0))
        assert found.boxes.shape == (options["max_detections"], 4)
        assert not np.any(found.boxes[~found.valid])
        columns = (found.boxes, found.scores, found.labels)
        return np.column_stack(columns)[np.asarray(found.valid)]

    return call


def test_clusters_by_hand(fused):
    rows = [
        (0, 0, 10, 10, 0.5, 0),
        (2, 0, 12, 10, 0.25, 0),  # IoU 80 / 120 with the first
        (0, 0, 10, 10, 0.75, 1),  # another class, seen once
        (50, 50, 60, 60, 0.125, 0),  # elsewhere, seen once
        (0, 0, 10, 10, 1.0, -1),  # padding
    ]
    expected = [
        (0, 0, 10, 10, 0.375, 1),  # 0.75 * 1 / 2
        (2 / 3, 0, 10 + 2 / 3, 10, 0.375, 0),  # (0.5 + 0.25) / 2
        (50, 50, 60, 60, 0.0625, 0),
    ]
    found = fused(rows)
    found = found[np.lexsort((-found[:, 5], -found[:, 4]))]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(fused(rows, max_detections=2)[:, 4], [0.375, 0.375])


def test_more_boxes_than_views_are_no_more_sure(fused):
    rows = [(0, 0, 10, 10, 0.5, 0)] * 3
    np.testing.assert_allclose(fused(rows), [(0, 0, 10, 10, 0.5, 0)])


def test_boxes_without_a_score_or_an_area_stay(fused):
    rows = [(0, 0, 10, 10, 0.0, 0), (5, 5, 5, 5, 0.5, 0)]
    expected = [(5, 5, 5, 5, 0.25, 0), (0, 0, 10, 10, 0, 0)]
    np.testing.assert_allclose(fused(rows), expected)


def loops(rows, threshold, views):
    """As the paper says it."""
    clusters = []
    for row in sorted(rows.tolist(), key=lambda row: -row[4]):
        near = []
        for cluster in clusters:
            average = np.average([r[:4] for r in cluster], 0, [r[4] for r in cluster])
            overlap = oracles.iou(average, row[:4])
            if cluster[0][5] == row[5] and overlap > threshold:
                near.append((overlap, cluster))
        if near:
            max(near, key=lambda pair: pair[0])[1].append(row)
        else:
            clusters.append([row])
    fused = []
    for cluster in clusters:
        scores = [row[4] for row in cluster]
        box = np.average([row[:4] for row in cluster], 0, scores)
        share = min(len(cluster), views) / views
        fused.append([*box, np.mean(scores) * share, cluster[0][5]])
    return np.array(sorted(fused, key=lambda row: -row[4]))


@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_what_loops_find(fused, threshold):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 40, (60, 2))
    sides = rng.uniform(10, 30, (60, 2))
    rows = np.column_stack(
        [corners, corners + sides, rng.uniform(size=60), rng.integers(0, 2, 60)]
    ).astype(np.float32)
    expected = loops(rows, threshold, 3)
    assert 10 < len(expected) < 58
    found = fused(rows, iou_threshold=threshold, num_views=3, max_detections=60)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_images_do_not_mix():
    boxes = jnp.array([[[0, 0, 8, 8.0]] * 2, [[4, 4, 8, 8.0]] * 2])
    scores, labels = jnp.array([[0.5, 0.5], [0.25, 0.25]]), jnp.zeros((2, 2), int)

    def one(boxes, scores, labels):
        return weighted_box_fusion(
            boxes,
            scores,
            labels,
            num_views=2,
            iou_threshold=0.5,
            max_detections=1,
            valid=scores > 0,
        )

    found = jax.vmap(one)(boxes, scores, labels)
    np.testing.assert_array_equal(found.boxes[:, 0], boxes[:, 0])
    np.testing.assert_array_equal(found.scores[:, 0], [0.5, 0.25])
