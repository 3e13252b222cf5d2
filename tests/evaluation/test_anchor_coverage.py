"""Coverage by hand and against the matching, and what `check` says of it."""

import dataclasses
import logging
from functools import partial

import jax
import numpy as np
import pytest

from jaxdet.config import Anchors, ConfigError
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors import fcos, rpn, ssd
from jaxdet.detectors.detector import Detector
from jaxdet.detectors.faster_rcnn import FasterRCNNConfig
from jaxdet.detectors.fcos import FCOSConfig
from jaxdet.detectors.image_pyramid import (
    AllScalesConfig,
    ImagePyramidConfig,
    at_all_scales,
    image_pyramid,
)
from jaxdet.detectors.mask_rcnn import MaskRCNNConfig, mask_rcnn
from jaxdet.detectors.retinanet import RetinaNetConfig, retinanet
from jaxdet.evaluation import anchor_coverage
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.heads import FCHead
from jaxdet.ops import anchors, boxes, matching
from jaxdet.weights.published import SSD_MOBILENET_V2_CONFIG
from tests.data.in_memory import in_memory_data_set

CANVAS = (64, 96)
PYRAMID = RetinaNetConfig(
    levels=(3, 4), anchors=Anchors(((12.0, 17.0), (24.0, 34.0)), ratios=(0.5, 2.0))
)
# One square of 16 pixels in each cell of 16.
SQUARES = RetinaNetConfig(
    num_classes=2, levels=(4,), anchors=Anchors(((16.0,),), ratios=(1.0,))
)
DETECTOR = retinanet(SQUARES, ResNet(depth=10, width=8))
INPUT = InputConfig(canvases=((32, 32), (32, 64)))
FITTING, TINY = (16, 0, 32, 16, 0), (2, 2, 4, 4, 1)


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
    np.testing.assert_allclose(anchor_coverage.best_iou(grid, objects), expected)


def test_only_boxes_within_the_image_count_where_asked():
    grid = np.array([[[[0, 0, 10, 10]], [[10, 0, 20, 10]]]], float)
    objects = np.array([[10, 0, 18, 10]] * 2, float)
    within = np.array([[10, 20], [10, 18]])
    np.testing.assert_allclose(
        anchor_coverage.best_iou(grid, objects, within=within), [0.8, 0.0]
    )


@pytest.mark.parametrize(
    "config",
    [
        PYRAMID,
        dataclasses.replace(
            PYRAMID,
            anchors=dataclasses.replace(PYRAMID.anchors, offset=0.0, rounded=True),
        ),
        rpn.RPNConfig(levels=(3, 4), anchors=PYRAMID.anchors, inside_only=True),
    ],
)
def test_it_agrees_with_all_anchors(rng, config):
    objects = objects_on(CANVAS, rng)
    options = {"levels": config.levels, **vars(config.anchors)}
    grid = np.asarray(anchors.pyramid_anchors(CANVAS, **options))
    if isinstance(config, rpn.RPNConfig):
        grid = grid[np.all((grid >= 0) & (grid <= [90, 56, 90, 56]), axis=1)]
    expected = np.asarray(boxes.pairwise_iou(grid, objects)).max(axis=0)
    sizes = np.tile((56, 90), (len(objects), 1))
    best = anchor_coverage.cover(config, CANVAS, objects, sizes)
    np.testing.assert_allclose(best, expected, atol=1e-6)
    assert 0.1 < np.median(best) < 0.9  # there was something to agree on


@pytest.mark.parametrize(
    ("config", "extents"),
    [
        (ssd.PAPER, (38, 19, 10, 5, 3, 1)),
        (SSD_MOBILENET_V2_CONFIG, (19, 10, 5, 3, 2, 1)),
    ],
)
def test_it_agrees_with_all_default_boxes(rng, config, extents):
    objects = objects_on((300, 300), rng)
    cells = [(extent, extent) for extent in extents]
    layout = {"strides": config.strides, "sizes": config.default_box_sizes}
    iou = boxes.pairwise_iou(anchors.default_boxes(cells, **layout), objects)
    best = anchor_coverage.cover(config, (300, 300), objects, None)
    np.testing.assert_allclose(best, iou.max(axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inclusive", [True, False])
@pytest.mark.parametrize("radius", [None, 1.5])
def test_points_agree_with_their_matching(rng, inclusive, radius):
    config = FCOSConfig(
        levels=(3, 4),
        regression_ranges=(20.0,),
        inclusive_ranges=inclusive,
        center_radius=radius,
    )
    objects = objects_on(CANVAS, rng)
    objects[:3] = [[20, 20, 44, 44], [0, 0, 48, 40], [12, 4, 36, 44]]  # at the limit
    points = anchors.cell_centers(CANVAS, levels=config.levels)
    ranges = fcos.assignment_ranges(CANVAS, config)
    match = partial(matching.match_points, points, **ranges)
    there = np.ones(1, bool)
    _, positive = jax.vmap(lambda alone: match(alone[None], there))(objects)
    count = anchor_coverage.cover(config, CANVAS, objects, None)
    np.testing.assert_array_equal(count, positive.sum(axis=1))
    assert count.max() > 3


@pytest.mark.parametrize(("end", "count"), [(19, 4), (20, 8), (25, 4), (28, 16)])
def test_points_by_hand(end, count):
    # Of level 3 the box has points at 4, 12, 20 and 28, down and across; the inner four
    # have no side farther than 20 pixels, the others 28. Of level 4 it has four, with
    # sides of 24 pixels.
    config = FCOSConfig(levels=(3, 4), regression_ranges=(end,), center_radius=None)
    square = np.array([[0, 0, 32, 32]], float)
    assert anchor_coverage.cover(config, (64, 64), square, None) == [count]


def test_the_best_scale_of_training_counts():
    # Squares of 4, 8 and 30 pixels; anchors are the cells, 8 x 8 pixels.
    objects = np.array([[6, 6, 10, 10], [4, 4, 12, 12], [1, 1, 31, 31]], np.float32)
    objects = anchor_coverage.CanvasObjects(objects, np.full((3, 2), 32), np.zeros(3))
    config = dataclasses.replace(
        SQUARES, levels=(3,), anchors=Anchors(((8.0,),), ratios=(1.0,))
    )
    cover = partial(anchor_coverage.cover_objects, config, objects, [(32, 32)])
    # A quarter of the first two lies in each of four cells; twice as large, the second
    # covers four cells.
    np.testing.assert_allclose(cover(), [4 / 76, 16 / 112, 64 / 900])
    twice = AllScalesConfig(scales=(1.0, 2.0))
    np.testing.assert_allclose(cover(twice), [16 / 112, 1 / 4, 64 / 900])
    fitting = dataclasses.replace(twice, object_sizes=(16.0, 32.0))
    np.testing.assert_allclose(cover(fitting), [0.0, 1 / 4, 64 / 900])


def test_the_part_of_a_config_that_has_anchors():
    scales = AllScalesConfig(scales=(1.0, 2.0), object_sizes=(4.0, 90.0))
    wrapped = image_pyramid(at_all_scales(DETECTOR, scales), ImagePyramidConfig())
    assert anchor_coverage.dense_config_of(wrapped) == (SQUARES, scales)
    masks = MaskRCNNConfig(FasterRCNNConfig(rpn=rpn.DETECTRON2))
    detector = mask_rcnn(masks, ResNet(), FCHead())
    one_scale = anchor_coverage.ONE_SCALE
    assert anchor_coverage.dense_config_of(detector) == (rpn.DETECTRON2, one_scale)
    own = Detector(None, None, None, recipe={"call": "mine:detector", "arguments": []})
    assert anchor_coverage.dense_config_of(own) == (None, one_scale)


def data_set(*objects, size=(32, 32)):
    return in_memory_data_set([size] * len(objects), [list(rows) for rows in objects])


def test_a_few_missed_objects_are_not_mentioned(caplog):
    anchor_coverage.check(DETECTOR, data_set(*[[FITTING]] * 9, [FITTING, TINY]), INPUT)
    assert not caplog.messages  # 1 of 11 is missed


def test_more_than_a_tenth_missed_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING, logger="jaxdet"):
        anchor_coverage.check(DETECTOR, data_set([FITTING] * 4, [TINY]), INPUT)
    (message,) = caplog.messages
    for words in (
        "1 of 5 objects of 'in memory' match no anchor or point of the detector",
        "IoU with the best anchor must be at least 0.4, and theirs is at most 0.016",
        "2 to 2 pixels on the canvases ((32, 32), (32, 64))",
    ):
        assert words in message


def test_all_missed_is_refused():
    with pytest.raises(ConfigError, match=r"^2 of 2 objects of 'in memory' match no"):
        anchor_coverage.check(DETECTOR, data_set([TINY], [TINY]), INPUT)


@pytest.mark.parametrize("crowd", [False, True])
def test_without_objects_there_is_nothing_to_match(crowd):
    only = [(*TINY, True)] if crowd else []
    anchor_coverage.check(DETECTOR, data_set(only), INPUT)


def test_without_a_recipe_nothing_is_checked():
    anchor_coverage.check(DETECTOR._replace(recipe=None), data_set([TINY]), INPUT)


def test_objects_are_measured_on_the_canvases_of_training():
    # Four times as large as an anchor; at a quarter it has the size of one.
    large = data_set([(0, 0, 64, 64, 0)], size=(128, 128))
    canvas = InputConfig(canvases=((128, 128),))
    with pytest.raises(ConfigError, match=r"64 to 64 pixels .* \(\(128, 128\),\)"):
        anchor_coverage.check(DETECTOR, large, canvas)
    smaller = dataclasses.replace(canvas, multi_scale=(0.25,))
    anchor_coverage.check(DETECTOR, large, smaller)
    # One factor that fits is enough.
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
    objects = anchor_coverage.sample_objects(
        in_memory_data_set(images, rows), INPUT, max_objects=10
    )
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
    scaled = anchor_coverage.sample_objects(
        in_memory_data_set(images[1:2], rows[1:2]), INPUT, max_objects=9, factor=0.5
    )
    assert scaled.boxes.tolist() == [[8, 0, 16, 16]]
    assert (scaled.sizes.tolist(), scaled.canvases.tolist()) == ([[16, 32]], [1])
    stretched = InputConfig(canvases=((32, 32),), keep_aspect=False)
    objects = anchor_coverage.sample_objects(
        in_memory_data_set([(16, 64)], [rows[0]]), stretched, max_objects=1
    )
    assert objects.boxes.tolist() == [[0, 0, 2, 16]]
    assert objects.sizes.tolist() == [[32, 32]]


def test_of_many_images_a_sample_counts():
    many = data_set(*[[FITTING] * 3] * 50)
    assert len(anchor_coverage.sample_objects(many, INPUT, max_objects=20).boxes) == 21
    assert (
        len(anchor_coverage.sample_objects(many, INPUT, max_objects=1000).boxes) == 150
    )


def test_what_is_measured_keeps_the_order_of_the_objects(rng):
    corners = rng.uniform(0, 16, (1200, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 16, (1200, 2))], axis=1)
    canvases = rng.integers(0, 2, 1200)
    objects = anchor_coverage.CanvasObjects(boxes, np.full((1200, 2), 32), canvases)
    best = anchor_coverage.cover_objects(SQUARES, objects, INPUT.canvases)
    for index, canvas in enumerate(INPUT.canvases):
        there = canvases == index
        alone = anchor_coverage.cover(SQUARES, canvas, boxes[there], None)
        np.testing.assert_array_equal(best[there], alone)
