"""What the anchors cannot reach: refused, warned of, or nobody's business."""

import dataclasses
import logging

import numpy as np
import pytest

from jaxdet.config import Anchors, ConfigError
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.retinanet import RetinaNetConfig, retinanet
from jaxdet.evaluation import anchor_coverage
from tests.data.in_memory import in_memory_data_set

# One square of 16 pixels in each cell of 16.
DETECTOR = retinanet(
    RetinaNetConfig(
        num_classes=2, levels=(4,), anchors=Anchors(((16.0,),), ratios=(1.0,))
    ),
    None,
)
INPUT = InputConfig(canvases=((32, 32), (32, 64)))
FITTING, TINY = (16, 0, 32, 16, 0), (2, 2, 4, 4, 1)


def data_set(*objects, size=(32, 32)):
    return in_memory_data_set([size] * len(objects), [list(rows) for rows in objects])


def test_objects_in_reach_are_nobodys_business(caplog):
    anchor_coverage.check(DETECTOR, data_set(*[[FITTING]] * 9, [FITTING, TINY]), INPUT)
    assert not caplog.messages  # 1 of 11 is out of reach


def test_more_than_a_tenth_out_of_reach_is_told(caplog):
    with caplog.at_level(logging.WARNING, logger="jaxdet"):
        anchor_coverage.check(DETECTOR, data_set([FITTING] * 4, [TINY]), INPUT)
    (message,) = caplog.messages
    for words in (
        "1 of 5 objects of 'in memory' are out of the detector's reach",
        "IoU with the best anchor must be at least 0.4, and theirs is at most 0.016",
        "2 to 2 pixels on the canvases ((32, 32), (32, 64))",
    ):
        assert words in message


def test_all_out_of_reach_is_refused():
    with pytest.raises(ConfigError, match=r"^2 of 2 objects of 'in memory' are out of"):
        anchor_coverage.check(DETECTOR, data_set([TINY], [TINY]), INPUT)


@pytest.mark.parametrize("crowd", [False, True])
def test_without_objects_there_is_nothing_to_reach(crowd):
    only = [(*TINY, True)] if crowd else []
    anchor_coverage.check(DETECTOR, data_set(only), INPUT)


def test_a_detector_without_anchors_reaches_everything():
    anchor_coverage.check(DETECTOR._replace(coverage=None), data_set([TINY]), INPUT)


def test_objects_are_measured_as_large_as_the_network_sees_them():
    # Eight times as large, the tiny one has the size of an anchor.
    enlarged = InputConfig(canvases=((256, 256),))
    anchor_coverage.check(DETECTOR, data_set([TINY]), enlarged)


def test_objects_are_measured_on_the_canvases_of_training():
    # Four times as large as an anchor; at a quarter it has the size of one.
    large = data_set([(0, 0, 64, 64, 0)], size=(128, 128))
    canvas = InputConfig(canvases=((128, 128),))
    with pytest.raises(ConfigError, match=r"64 to 64 pixels .* \(\(128, 128\),\)"):
        anchor_coverage.check(DETECTOR, large, canvas)
    smaller = dataclasses.replace(canvas, multi_scale=(0.25,))
    anchor_coverage.check(DETECTOR, large, smaller)
    # One factor in reach is enough.
    anchor_coverage.check(
        DETECTOR, large, dataclasses.replace(canvas, multi_scale=(1, 0.25))
    )
    # And what has the size of an anchor is too small at a quarter.
    fitting = data_set([(0, 0, 16, 16, 0)], size=(128, 128))
    anchor_coverage.check(DETECTOR, fitting, canvas)
    with pytest.raises(ConfigError, match=r"4 to 4 pixels .* \(\(32, 32\),\)"):
        anchor_coverage.check(DETECTOR, fitting, smaller)


@pytest.mark.parametrize(
    "change",
    [
        {"scale_jitter": (1.0, 8.0)},
        {"expand": 0.5},
        {"iou_crop": 1.0},
        {"random_crop": 1},
    ],
)
def test_objects_that_augmentation_resizes_are_not_refused(change, caplog):
    config = dataclasses.replace(INPUT, **change)
    with caplog.at_level(logging.WARNING, logger="jaxdet"):
        anchor_coverage.check(DETECTOR, data_set([TINY]), config)
    assert "1 of 1 objects" in caplog.messages[0]


def test_objects_lie_where_batches_have_them():
    images = [(16, 16), (16, 32), (64, 128)]
    rows = [[(0, 0, 4, 8, 0)], [(8, 0, 16, 16, 0), (*TINY, True)], [(0, 0, 8, 8, 1)]]
    objects = anchor_coverage.place(in_memory_data_set(images, rows), INPUT, most=10)
    placed = {
        tuple(box): (tuple(size), canvas)
        for box, size, canvas in zip(*map(np.ndarray.tolist, objects), strict=True)
    }
    assert placed == {
        (0, 0, 8, 16): ((32, 32), 0),
        (16, 0, 32, 32): ((32, 64), 1),
        (0, 0, 4, 4): ((32, 64), 1),
    }
    np.testing.assert_allclose(sorted(objects.sides), [4, 128**0.5, 512**0.5])
    # The canvas is chosen before it is scaled: wide, though scaled it is square.
    scaled = anchor_coverage.place(
        in_memory_data_set(images[1:2], rows[1:2]), INPUT, most=9, factor=0.5
    )
    assert scaled.boxes.tolist() == [[8, 0, 16, 16]]
    assert (scaled.sizes.tolist(), scaled.canvases.tolist()) == ([[16, 32]], [1])
    stretched = InputConfig(canvases=((32, 32),), keep_aspect=False)
    objects = anchor_coverage.place(
        in_memory_data_set([(16, 64)], [rows[0]]), stretched, most=1
    )
    assert objects.boxes.tolist() == [[0, 0, 2, 16]]
    assert objects.sizes.tolist() == [[32, 32]]


def test_of_many_images_a_sample_counts():
    many = data_set(*[[FITTING] * 3] * 50)
    assert len(anchor_coverage.place(many, INPUT, most=20).boxes) == 21
    assert len(anchor_coverage.place(many, INPUT, most=1000).boxes) == 150


def test_what_is_measured_keeps_the_order_of_the_objects(rng):
    corners = rng.uniform(0, 16, (1200, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 16, (1200, 2))], axis=1)
    canvases = rng.integers(0, 2, 1200)
    objects = anchor_coverage.PlacedObjects(boxes, np.full((1200, 2), 32), canvases)
    found = anchor_coverage.measure(DETECTOR.coverage, objects, INPUT.canvases)
    for index, canvas in enumerate(INPUT.canvases):
        there = canvases == index
        alone = DETECTOR.coverage(canvas, boxes[there], objects.sizes[there])
        np.testing.assert_array_equal(found.best[there], alone.best)
