import numpy as np

from jaxdet.data import boxes
from jaxdet.ops.boxes import pairwise_iou


def test_overlaps_with_the_unit_box():
    unit = np.array([[0, 0, 1, 1]])
    same, half, touching, away = [0, 0, 1, 1], [0, 0, 1, 2], [1, 0, 2, 1], [3, 3, 4, 5]
    others = np.array([same, half, touching, away])
    np.testing.assert_array_equal(
        boxes.pairwise_intersection(unit, others), [[1, 1, 0, 0]]
    )
    np.testing.assert_array_equal(boxes.pairwise_iou(unit, others), [[1, 0.5, 0, 0]])


def test_the_device_finds_the_same(rng):
    corners = rng.uniform(0, 50, (2, 20, 4)).astype(np.float32)
    a, b = np.concatenate([corners[..., :2], corners[..., :2] + corners[..., 2:]], -1)
    np.testing.assert_allclose(boxes.pairwise_iou(a, b), pairwise_iou(a, b), atol=1e-6)
