"""The pictures of the ideas of detection: what is drawn, worked out by hand."""

import numpy as np
import pytest
from matplotlib.collections import LineCollection

from experiments.lecture import anatomy_figures as figures
from jaxdet.ops.matching import Matches
from jaxdet.ops.receptive_field import Field

PICTURE = np.full((160, 160, 3), 100, np.uint8)


def boxes_in(axes, index=0):
    """The boxes of one of the sets of outlines that are drawn, `[N, 4]`."""
    outlines = [part for part in axes.collections if isinstance(part, LineCollection)]
    corners = np.array(outlines[index].get_segments())
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=-1)


def texts_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_pooling_snaps_to_the_cells_of_both_corners():
    # In cells 1.25 to 6.25 and 2.25 to 8.25: columns 1 to 6, rows 2 to 8, of which both
    # rows of bins take the middle one.
    box = np.array([20, 36, 100, 132], np.float32)
    bins = figures.pool_bins(box, (160, 160), stride=16, size=2)
    left, right, upper, lower = (16, 64), (64, 112), (32, 96), (80, 144)
    expected = [
        [[x[0], y[0], x[1], y[1]] for x in (left, right)] for y in (upper, lower)
    ]
    np.testing.assert_array_equal(bins, expected)


def test_pooling_ends_with_the_map_and_leaves_bins_without_a_cell():
    box = np.array([20, 36, 100, 132], np.float32)
    bins = figures.pool_bins(box, (128, 160), stride=16, size=2)
    np.testing.assert_array_equal(bins[1, 0], [16, 80, 64, 128])
    beyond = np.array([0, 112, 16, 160], np.float32)  # rows 7 to 10, of 8
    bins = figures.pool_bins(beyond, (128, 160), stride=16, size=2)
    assert np.isnan(bins[1]).all() and not np.isnan(bins[0]).any()


@pytest.mark.parametrize("shift", [0.0, 4.5])
def test_align_reads_between_cells_and_moves_nothing(shift):
    box = np.array([16, 32, 80, 96], np.float32) + shift
    points = figures.align_points(box, (160, 160), stride=16, size=2, samples=2)
    x, y = np.meshgrid([24, 40, 56, 72], [40, 56, 72, 88])
    np.testing.assert_allclose(points, np.stack([x, y], axis=-1) + shift, atol=1e-4)


def test_cells_see_what_their_layers_add_up_to():
    figure = figures.receptive_fields(
        PICTURE, [(7, 2, 3), (3, 2, 1)], name="two layers"
    )
    (axes,) = figure.axes
    expected = ["stride 2: 7 x 7 pixels", "stride 4: 11 x 11 pixels"]
    assert texts_of(axes) == expected
    # The first center is 0.5; cells 40 and 20 have theirs at 80.5.
    np.testing.assert_array_equal(boxes_in(axes, 0), [[77, 77, 84, 84]])
    np.testing.assert_array_equal(boxes_in(axes, 1), [[75, 75, 86, 86]])


def test_a_region_goes_to_cells_and_whole_cells_come_back():
    field, box = Field(size=16, stride=16, center=8.0), np.array([24, 40, 72, 88.0])
    left, right = figures.projected_region(PICTURE, box, field, name="it").axes
    np.testing.assert_allclose(boxes_in(right, 0), [[1.5, 2.5, 4.5, 5.5]])
    np.testing.assert_allclose(boxes_in(right, 1), [[1, 2, 5, 6]])
    np.testing.assert_allclose(boxes_in(left, 0), box[None])
    np.testing.assert_allclose(boxes_in(left, 1), [[16, 32, 80, 96]])


def test_each_anchor_stands_in_the_panel_of_its_label():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 20, 20], [0, 0, 30, 30]], np.float32)
    flags = np.eye(3, dtype=bool)
    matches = Matches(np.zeros(3, np.int32), flags[0], flags[2], np.zeros(3))
    panels = figures.anchor_labels(PICTURE, boxes, matches, boxes[:1]).axes
    for axes, box, name in zip(
        panels, boxes, ("positive", "ignored", "negative"), strict=True
    ):
        np.testing.assert_array_equal(boxes_in(axes), box[None])
        np.testing.assert_array_equal(boxes_in(axes, 1), boxes[:1])
        assert axes.get_title() == f"{name}: 1 anchors"


def test_regions_go_to_levels_by_their_size():
    sides = np.array([100, 120, 250, 500], np.float32)  # 4 + log2(side / 224), floored
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=-1)
    chart, axes = figures.region_levels(PICTURE, boxes).axes
    counts = ["level 2: 1", "level 3: 1", "level 4: 1", "level 5: 1"]
    assert texts_of(chart) == ["rule", *counts]
    rule, *dots = (line.get_xydata() for line in chart.lines)
    np.testing.assert_array_equal(
        np.concatenate(dots), np.stack([sides, [2, 3, 4, 5]], 1)
    )
    expected = np.clip(np.floor(4 + np.log2(rule[:, 0] / 224)), 2, 5)
    assert np.mean(rule[:, 1] == expected) > 0.99  # but where it steps
    np.testing.assert_array_equal(boxes_in(axes, 0), boxes[:1])


def test_curves_of_the_focal_loss():
    (axes,) = figures.focal_curves((0.0, 2.0)).axes
    for line, gamma in zip(axes.lines, (0, 2), strict=True):
        right, loss = line.get_xydata().T
        np.testing.assert_allclose(
            loss, -((1 - right) ** gamma) * np.log(right), rtol=1e-4
        )


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


def test_centerness_of_two_points_and_of_all():
    box = np.array([40, 40, 120, 120], np.float32)
    left, right, _ = figures.centerness(PICTURE, box, stride=16).axes
    # A quarter in: the near sides are a third of the far ones, across and down.
    assert texts_of(left) == ["centerness 1.00", "centerness 0.33"]
    np.testing.assert_allclose(boxes_in(left, 1), box[None])
    central = right.images[-1].get_array()
    assert central.shape == (10, 10) and central[2, 2] == 0  # (40, 40), on the corner
    np.testing.assert_allclose(central[4, 3], np.sqrt((32 / 48) * (16 / 64)))
