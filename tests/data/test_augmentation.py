"""Augmentation: pictures drawn so that one sees where their boxes must be."""

import colorsys

import numpy as np
import pytest

from jaxdet.data import augmentation
from jaxdet.data.transforms import Example


def marked(height=60, width=80, boxes=((10, 20, 30, 50), (50, 5, 70, 25)), **fields):
    """An image whose i-th box is filled with the color 10 (i + 1), all else 200."""
    image = np.full((height, width, 3), 200, np.uint8)
    for i, (x1, y1, x2, y2) in enumerate(np.array(boxes, int).reshape(-1, 4)):
        image[y1:y2, x1:x2] = 10 * (i + 1)
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels, crowd = np.arange(len(boxes), dtype=np.int32), np.zeros(len(boxes), bool)
    return Example(image, boxes, labels, crowd)._replace(**fields)


def seen(example):
    """The boxes that the colors of `marked` fill, one for each label."""
    found = []
    for label in example.labels:
        rows, columns = np.nonzero(example.image[..., 0] == 10 * (label + 1))
        found.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return np.array(found).reshape(-1, 4)


def part_seen(rng, example):
    return augmentation.scale_jitter(rng, example, (60, 60))[0]


COUNTS = {
    augmentation.expand: {2},
    augmentation.iou_crop: {0, 1, 2},
    augmentation.random_crop: {1, 2},
    part_seen: {1, 2},
}
"""Of the two objects of `marked`, how many may be left."""


@pytest.mark.parametrize("change", [augmentation.distort_colors, *COUNTS])
def test_a_change_is_a_function_of_generator_and_example(change):
    regions, scores = np.array([[0, 0, 20, 20]], np.float32), np.ones(1, np.float32)
    masks = np.ones((2, 4, 4), np.float32)
    given = marked(masks=masks, regions=regions, region_scores=scores)
    for values in given:
        values.setflags(write=False)
    images = set()
    for seed in range(12):
        first, second = (change(np.random.default_rng(seed), given) for _ in range(2))
        for before, one, other in zip(given, first, second, strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == before.dtype
        images.add(first.image.tobytes())
    assert len(images) > 6


@pytest.mark.parametrize("change", COUNTS)
def test_boxes_stay_where_their_colors_are(rng, change):
    counts, sizes = set(), set()
    for _ in range(30):
        without = change(rng, marked(boxes=()))
        assert without.boxes.shape == (0, 4)
        sizes.add(without.image.shape)
    assert len(sizes) > 15
    for _ in range(100):
        changed = change(rng, marked())
        np.testing.assert_allclose(changed.boxes, seen(changed))
        counts.add(len(changed.boxes))
    assert counts == COUNTS[change]


def test_expansion_surrounds_with_the_mean_color(rng):
    factors = []
    for _ in range(200):
        given = marked(30, 40, [(0, 0, 40, 30)])  # all of it
        image = augmentation.expand(rng, given).image
        around = np.all(image == (123, 117, 104), axis=-1)
        assert np.count_nonzero(~around) == 30 * 40
        assert np.all(image[~around] == 10)
        factors.append(image.shape[0] / 30)
        np.testing.assert_allclose(image.shape[1] / 40, factors[-1], atol=0.05)
    # Uniform in [1, 4].
    assert 1 <= min(factors) < 1.15 and 3.85 < max(factors) <= 4
    np.testing.assert_allclose(np.mean(factors), 2.5, atol=0.2)


def test_expansion_moves_regions_and_keeps_masks(rng):
    given = marked(regions=marked().boxes + 1, masks=np.zeros((2, 3, 3)))
    changed = augmentation.expand(rng, given)
    np.testing.assert_array_equal(changed.regions, changed.boxes + 1)
    assert changed.masks is given.masks


def test_a_patch_cut_out_by_hand():
    boxes = [(10, 20, 30, 50), (35, 5, 85, 25)]
    regions = np.array([[0, 0, 20, 40], [50, 0, 80, 60]], np.float32)
    given = marked(boxes=boxes, crowd=np.array([True, False]), regions=regions)
    patch, stays = np.array([15, 10, 40, 45]), np.array([True, False])
    cut = augmentation.cut_out(given, patch, stays)
    np.testing.assert_array_equal(cut.image, given.image[10:45, 15:40])
    np.testing.assert_array_equal(cut.boxes, [[0, 10, 15, 35]])
    assert (cut.labels.tolist(), cut.crowd.tolist()) == ([0], [True])
    np.testing.assert_array_equal(cut.regions[0], [0, 0, 5, 30])
    x1, y1, x2, y2 = cut.regions[1]
    assert (x2 - x1) * (y2 - y1) == 0  # nothing of it is left
    np.testing.assert_array_equal(given.boxes[0], [10, 20, 30, 50])


def test_masks_are_cut_with_their_boxes():
    # Half of the object lies in the patch: the right half of a mask that grows from
    # left to right, whose cells' centers are at 1/4, 1/2, .. of the way.
    ramp = np.tile(np.array([0, 1, 2, 3], np.float32), (4, 1))
    given = marked(boxes=[(20, 10, 40, 50)], masks=ramp[None])
    stays = np.ones(1, bool)
    cut = augmentation.cut_out(given, np.array([30, 0, 80, 60]), stays)
    np.testing.assert_array_equal(cut.boxes, [[0, 10, 10, 50]])
    np.testing.assert_allclose(
        cut.masks, np.tile([1.75, 2.25, 2.75, 3.0], (1, 4, 1)), rtol=1e-6
    )
    whole = augmentation.cut_out(given, np.array([0, 0, 80, 60]), stays)
    np.testing.assert_allclose(whole.masks, ramp[None], atol=1e-5)


def test_objects_stay_in_sampled_patches_by_their_center(monkeypatch):
    # The first object's center (20, 35) lies in the patch, the second's (60, 15) not,
    # and the third's (40, 30) on its right border, which belongs to the next patch.
    given = marked(boxes=[(10, 20, 30, 50), (35, 5, 85, 25), (38, 28, 42, 32)])
    patch = np.array([15, 10, 40, 45])
    monkeypatch.setattr(augmentation, "_find_patch", lambda *_: patch)
    monkeypatch.setattr(augmentation, "_LEAST_IOU", (None,) * 1000)
    cut = augmentation.iou_crop(np.random.default_rng(0), given)
    np.testing.assert_array_equal(cut.labels, [0])


def test_patches_are_as_large_and_overlap_as_much_as_they_say(rng, monkeypatch):
    monkeypatch.setattr(augmentation, "_LEAST_IOU", (0.5,))
    given = marked(60, 80, [(20, 10, 60, 50)])
    unchanged, overlaps = 0, []
    for _ in range(200):
        cut = augmentation.iou_crop(rng, given)
        height, width = cut.image.shape[:2]
        if (height, width) == (60, 80):
            unchanged += 1
            continue
        assert height >= 0.3 * 60 and width >= 0.3 * 80
        assert 0.5 <= width / height <= 2
        x1, y1, x2, y2 = cut.boxes[0]
        overlap = (x2 - x1) * (y2 - y1)
        overlaps.append(overlap / (40 * 40 + height * width - overlap))
    assert min(overlaps) >= 0.5 and max(overlaps) < 0.95
    assert 60 < unchanged < 140  # one of the two conditions left is "all of it"


def test_the_object_that_a_patch_overlaps_stays_in_it(rng, monkeypatch):
    monkeypatch.setattr(augmentation, "_LEAST_IOU", (0.1,))
    given = marked(boxes=[(0, 0, 40, 60)])
    assert all(len(augmentation.iou_crop(rng, given).boxes) == 1 for _ in range(200))


def test_each_condition_is_drawn(rng, monkeypatch):
    asked, given = [], marked()
    monkeypatch.setattr(
        augmentation, "_find_patch", lambda rng, example, least: asked.append(least)
    )
    for _ in range(700):
        assert augmentation.iou_crop(rng, given) is given  # no patch was found
    for least in (0.1, 0.3, 0.5, 0.7, 0.9, None):
        assert 70 < asked.count(least) < 130
    assert 70 < 700 - len(asked) < 130


def test_crowds_are_no_objects_to_overlap(monkeypatch):
    monkeypatch.setattr(augmentation, "_LEAST_IOU", (0.9,) * 100)
    small = marked(60, 80, [(0, 0, 4, 4)])  # no patch overlaps it by so much
    rng = np.random.default_rng(0)
    assert all(augmentation.iou_crop(rng, small) is small for _ in range(5))
    crowd = small._replace(crowd=np.ones(1, bool))
    assert any(augmentation.iou_crop(rng, crowd) is not crowd for _ in range(5))


def test_objects_stay_in_random_patches_by_their_visible_part(rng, monkeypatch):
    boxes_and_what_is_seen = [
        ((30, 0, 70, 10), (30, 0, 40, 10)),  # a quarter
        ((31, 0, 71, 10), None),  # less
        ((39.5, 0, 40.6, 10), None),  # nearly half, but only half a pixel
        ((5, 5, 5.5, 9), (5, 5, 5.5, 9)),  # as wide, but all of it
        ((50, 0, 60, 10), None),
        ((40, 0, 60, 10), None),
        ((39, 0, 80, 60), (39, 0, 40, 60)),  # crowds from here on
        ((39.5, 0, 80, 60), None),
        ((50, 0, 60, 10), None),
    ]
    boxes, seen = zip(*boxes_and_what_is_seen, strict=True)
    given = marked(boxes=boxes, crowd=np.arange(9) >= 6)
    patch = np.array([0, 0, 40, 60])
    monkeypatch.setattr(augmentation, "_random_patch", lambda *_: patch)
    for change in (augmentation.random_crop, stretched_to_twice_its_size):
        cut = change(rng, given)
        stay = [i for i in range(9) if seen[i] is not None]
        np.testing.assert_array_equal(cut.labels, stay)
        np.testing.assert_array_equal(cut.boxes, [seen[i] for i in stay])


def stretched_to_twice_its_size(rng, example):
    canvas, twice = example.image.shape[:2], (2.0, 2.0)
    return augmentation.scale_jitter(rng, example, canvas, factors=twice)[0]


def places(height, width):
    """An image whose pixels hold their own column and row."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(width), np.arange(height)[:, None]
    return image


def naively_cut(example, cut):
    """Which objects stay, and their boxes: by drawing each and counting its pixels."""
    (x1, y1), (x2, y2) = cut.image[0, 0, :2], cut.image[-1, -1, :2]
    stays, boxes = [], []
    for index, (left, top, right, bottom) in enumerate(example.boxes.astype(int)):
        drawn = np.zeros(example.image.shape[:2], bool)
        drawn[top:bottom, left:right] = True
        rows, columns = np.nonzero(drawn[y1 : y2 + 1, x1 : x2 + 1])
        least = 1 if example.crowd[index] else drawn.sum() / 4
        if len(rows) >= least:
            stays.append(index)
            sides = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            boxes.append(sides)
    return stays, np.reshape(boxes, (-1, 4))


@pytest.mark.parametrize("change", [augmentation.random_crop, part_seen])
def test_visible_parts_are_those_of_drawn_objects(rng, change):
    kept = 0
    for _ in range(60):
        corners = rng.integers(0, (70, 50), (8, 2))
        boxes = np.concatenate([corners, corners + rng.integers(1, 30, (8, 2))], axis=1)
        boxes = np.minimum(boxes, [80, 60, 80, 60]).astype(np.float32)
        given = marked(boxes=boxes, image=places(60, 80), crowd=rng.random(8) < 0.3)
        cut = change(rng, given)
        stays, expected = naively_cut(given, cut)
        np.testing.assert_array_equal(cut.labels, stays)
        np.testing.assert_array_equal(cut.boxes, expected)
        np.testing.assert_array_equal(cut.crowd, given.crowd[stays])
        kept += len(stays)
    assert 0.3 * 60 * 8 < kept < 0.95 * 60 * 8


def test_random_patches_are_of_any_size_and_place(rng):
    given = marked(boxes=(), image=places(60, 80))
    cuts = [augmentation.random_crop(rng, given).image for _ in range(300)]
    shares = np.array([image.shape[:2] for image in cuts]) / (60, 80)
    assert shares.min() >= 0.5 and shares.max() <= 1
    np.testing.assert_allclose(shares.mean(axis=0), 0.75, atol=0.04)
    assert abs(np.corrcoef(shares.T)[0, 1]) < 0.2
    for corner, limit in ((0, 0), (-1, (79, 59))):  # all sides of the image are reached
        reached = np.array([image[corner, corner, :2] for image in cuts]) == limit
        assert 2 < reached[:, 0].sum() < 50 and 2 < reached[:, 1].sum() < 50


@pytest.mark.parametrize(
    ("factor", "keep_aspect", "part", "size"),
    [
        (0.5, True, (20, 40), (10, 20)),  # 20 x 40 fits into 40 x 40 as it is
        (1.0, True, (20, 40), (20, 40)),
        (2.0, True, (20, 20), (40, 40)),  # 40 x 80, of which half is seen
        (4.0, True, (10, 10), (40, 40)),
        (0.5, False, (20, 40), (20, 20)),
        (2.0, False, (10, 20), (40, 40)),  # 80 x 80
        (100.0, True, (1, 1), (40, 40)),
        (0.001, True, (20, 40), (1, 1)),
    ],
)
def test_jittered_sizes_by_hand(rng, factor, keep_aspect, part, size):
    given = marked(20, 40, ())
    seen, new_size = augmentation.scale_jitter(
        rng, given, (40, 40), factors=(factor, factor), keep_aspect=keep_aspect
    )
    assert seen.image.shape[:2] == part and new_size == size


class Fixed:
    """A generator that draws what it is told."""

    def __init__(self, *, chances, values=()):
        self.chances, self.values = list(chances), list(values)

    def random(self):
        return self.chances.pop(0)

    def uniform(self, low, high):
        value = self.values.pop(0)
        assert low <= value <= high
        return value


YES, NO = 0.4, 0.6


def distorted(pixel, **drawn):
    given = marked(1, 1, (), image=np.array([[pixel]], np.uint8))
    rng = Fixed(**drawn)
    changed = augmentation.distort_colors(rng, given)
    assert not rng.chances and not rng.values and changed.boxes is given.boxes
    return changed.image[0, 0].tolist()


# Chances: brightness, contrast, contrast first, saturation, hue.
@pytest.mark.parametrize(
    ("chances", "values", "expected"),
    [
        ([NO, NO, NO, NO, NO], [], [10, 100, 250]),
        ([YES, NO, NO, NO, NO], [20.0], [30, 120, 255]),
        ([NO, YES, YES, NO, NO], [0.5], [5, 50, 125]),
        ([YES, YES, NO, NO, NO], [-20, 1.5], [0, 120, 255]),
    ],
)
def test_brightness_and_contrast_by_hand(chances, values, expected):
    assert distorted([10, 100, 250], chances=chances, values=values) == expected


@pytest.mark.parametrize("pixel", [[200, 100, 50], [20, 220, 120], [90, 90, 90]])
def test_hue_and_saturation_are_those_of_colorsys(pixel):
    hue, saturation, value = colorsys.rgb_to_hsv(*np.array(pixel) / 255)
    turned = distorted(pixel, chances=[NO, NO, NO, NO, YES], values=[18.0])
    expected = colorsys.hsv_to_rgb((hue + 18 / 360) % 1, saturation, value)
    np.testing.assert_allclose(turned, 255 * np.array(expected), atol=0.6)
    paler = distorted(pixel, chances=[NO, NO, NO, YES, NO], values=[0.5])
    expected = colorsys.hsv_to_rgb(hue, saturation * 0.5, value)
    np.testing.assert_allclose(paler, 255 * np.array(expected), atol=0.6)


def test_contrast_comes_before_or_after_saturation():
    # 1.5 times 200 is clipped to 255 before the color is looked at, or after.
    drawn = {"values": [1.5, 0.5]}
    first = distorted([200, 100, 50], chances=[NO, YES, YES, YES, NO], **drawn)
    last = distorted([200, 100, 50], chances=[NO, YES, NO, YES, NO], **drawn)
    assert first == [255, 202, 165] and last == [255, 225, 188]
