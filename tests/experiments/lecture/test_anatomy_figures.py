"""The pictures of the ideas of detection: what is drawn, worked out by hand."""

import numpy as np
import pytest

from experiments.lecture import anatomy_figures as figures

PICTURE = np.full((160, 160, 3), 100, np.uint8)


def test_pooling_snaps_to_the_cells_of_both_corners():
    # In cells 1.25 to 6.25 and 2.25 to 8.25: columns 1 to 6, rows 2 to 8, of which both
    # rows of bins take the middle one.
    box = np.array([20, 36, 100, 132], np.float32)
    bins = figures.pool_bins(box, (160, 160), stride=16)
    left, right, upper, lower = (16, 64), (64, 112), (32, 96), (80, 144)
    expected = [
        [[x[0], y[0], x[1], y[1]] for x in (left, right)] for y in (upper, lower)
    ]
    np.testing.assert_array_equal(bins, expected)


def test_pooling_ends_with_the_map_and_leaves_bins_without_a_cell():
    box = np.array([20, 36, 100, 132], np.float32)
    bins = figures.pool_bins(box, (128, 160), stride=16)
    np.testing.assert_array_equal(bins[1, 0], [16, 80, 64, 128])
    beyond = np.array([0, 112, 16, 160], np.float32)  # rows 7 to 10, of 8
    bins = figures.pool_bins(beyond, (128, 160), stride=16)
    assert np.isnan(bins[1]).all() and not np.isnan(bins[0]).any()


@pytest.mark.parametrize("shift", [0.0, 4.5])
def test_align_reads_between_cells_and_moves_nothing(shift):
    box = np.array([16, 32, 80, 96], np.float32) + shift
    points = figures.align_points(box, (160, 160), stride=16)
    x, y = np.meshgrid([24, 40, 56, 72], [40, 56, 72, 88])
    np.testing.assert_allclose(points, np.stack([x, y], axis=-1) + shift, atol=1e-4)


# Negatives with scores 0.05, 0.05 and 0.5; a positive one with 0.5.
SCORES, TARGETS = np.array([0.05, 0.05, 0.5, 0.5]), np.array([0, 0, 0, 1])
LOGITS = np.log(SCORES / (1 - SCORES)).astype(np.float32)


@pytest.mark.parametrize("gamma", [0, 2])
def test_shares_of_the_loss(gamma):
    easy = -2 * 0.05**gamma * np.log(0.95)
    hard = -(0.5**gamma) * np.log(0.5)
    shares = figures.shares_of_loss(LOGITS, TARGETS, gamma=gamma)
    expected = np.array([easy, hard, hard]) / (easy + 2 * hard)
    assert [*shares] == ["easy negatives", "hard negatives", "positives"]
    np.testing.assert_allclose([*shares.values()], expected, rtol=1e-5)
