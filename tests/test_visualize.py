"""Drawings cover the pixels that they should, and no others."""

import functools

import numpy as np
import pytest

from jaxdet import visualize

NAMES = ("cat", "a very long name of a class", "dog")


def gray(height, width):
    return np.full((height, width, 3), 128, np.uint8)


def changed(image, picture):
    return (picture != image).any(axis=-1)


def test_a_box_covers_the_pixels_between_its_corners():
    image = gray(200, 300)
    picture = visualize.draw(image, [[50, 60, 150, 120]], [0], class_names=NAMES)
    red = (picture == visualize.class_color(0)).all(axis=-1)
    assert red[60:120, 50].all() and red[60:120, 149].all()
    assert red[60, 50:90].all() and red[119, 50:90].all()
    touched = changed(image, picture)
    assert not touched[61:119, 51:149].any()  # one pixel thick, the tag is above
    assert not touched[120:].any() and not touched[:, 150:].any()
    assert not touched[:, :50].any() and touched[45:60, 50:60].any()
    assert picture.dtype == np.uint8 and picture.shape == image.shape


def test_inputs_are_never_modified(rng):
    image = rng.integers(0, 256, (60, 80, 3), np.uint8)
    before, masks = image.copy(), np.ones((1, 60, 80), bool)
    for options in ({}, {"masks": masks}, {"scores": [0.5]}):
        picture = visualize.draw(
            image, [[5.0, 5, 90, 70]], [1], class_names=NAMES, **options
        )
        picture[:] = 0
    visualize.contact_sheet([image], columns=1)[:] = 0
    np.testing.assert_array_equal(image, before)


def test_without_boxes_the_picture_is_the_image(rng):
    image = rng.integers(0, 256, (60, 80, 3), np.uint8)
    nothing = np.zeros((0, 4)), np.zeros(0, int)
    for options in ({}, {"scores": np.zeros(0)}, {"masks": np.zeros((0, 60, 80))}):
        picture = visualize.draw(image, *nothing, class_names=NAMES, **options)
        np.testing.assert_array_equal(picture, image)


@pytest.mark.parametrize(
    "box",
    [
        [0, 0, 30, 30],
        [270, 170, 300, 200],
        [-50, -50, 400, 400],
        [400, 300, 500, 500],
        [20, 20, 20, 20],
        [299.9, 199.9, 300, 200],
    ],
)
@pytest.mark.parametrize("size", [(200, 300), (40, 30), (4, 3), (1, 1)])
def test_tags_stay_whole_inside_the_picture(box, size):
    """A tag has the same area wherever its box lies: none of it is cut off."""
    height, width = size
    areas = set()
    for each in (box, [width / 2, height / 2, width, height]):
        pixels = visualize._pixels(np.array(each), (width, height))
        tag = visualize._place_tag("dog 0.87", (0, 0, 0), pixels, (width, height), [])
        left, top, right, bottom = tag.corners
        assert 0 <= left <= right < width and 0 <= top <= bottom < height
        areas.add(visualize._area(tag.corners))
    assert len(areas) == 1
    picture = visualize.draw(gray(*size), [box], [2], [0.87], class_names=NAMES)
    assert picture.shape == (*size, 3) and changed(gray(*size), picture).any()


def test_long_names_shrink_to_fit():
    size = (120, 200)
    font = visualize._font(size, NAMES[1])
    assert font.getlength(NAMES[1]) <= size[0]
    assert visualize._font(size, "cat").size == 10


def test_tags_keep_out_of_each_others_way():
    size, tags = (640, 480), []
    for shift in range(6):
        box = (200 + shift, 200, 300 + shift, 300)
        tags.append(visualize._place_tag("person", (0, 0, 0), box, size, tags))
    for i, tag in enumerate(tags):
        for other in tags[:i]:
            assert visualize._overlap(tag.corners, other.corners) == 0


def test_the_best_score_has_the_place_above_its_box():
    image, box = gray(200, 300), [100, 100, 160, 160]
    for scores in ([0.9, 0.1], [0.1, 0.9]):
        picture = visualize.draw(image, [box, box], [0, 2], scores, class_names=NAMES)
        best = visualize.class_color(0 if scores[0] > scores[1] else 2)
        above = picture[86:100, 100:160].reshape(-1, 3)
        assert (above == best).all(axis=-1).sum() > 100
        assert (picture[100, 159] == best).all()  # and its line lies on top


def test_crowds_are_dashed():
    image, box = gray(200, 300), [[50, 60, 150, 120]]
    whole, dashed = (
        visualize.draw(image, box, [0], class_names=NAMES, crowd=crowd)
        for crowd in ([False], [True])
    )
    solid, broken = changed(image, whole)[119], changed(image, dashed)[119]
    assert solid.sum() == 100 and 40 <= broken.sum() <= 60
    assert not changed(image, dashed)[120:].any()


def test_masks_are_translucent_with_an_outline_in_the_color_of_the_class():
    image, mask = gray(200, 300), np.zeros((1, 200, 300), bool)
    mask[0, 60:120, 50:150] = True
    mask[0, 80:90, 70:80] = False  # a hole
    box, color = [[50, 60, 150, 120]], np.array(visualize.class_color(2))
    picture = visualize.draw(image, box, [2], class_names=NAMES, masks=mask)
    blend = np.round(0.55 * 128 + 0.45 * color)
    for pixel, expected in (
        ((100, 100), blend),
        ((85, 75), [128, 128, 128]),
        ((79, 75), color),  # the outline around the hole
        ((85, 69), color),
        ((85, 80), color),
        ((90, 75), color),
        ((78, 75), blend),
    ):
        np.testing.assert_array_equal(picture[pixel], expected)
    plain = visualize.draw(image, box, [2], class_names=NAMES)
    np.testing.assert_array_equal(picture[~mask[0]], plain[~mask[0]])


def test_the_mask_of_the_best_score_lies_on_top():
    image, masks = gray(60, 80), np.zeros((2, 60, 80), bool)
    masks[:, 10:50, 10:70] = True
    boxes = [[10, 10, 70, 50]] * 2
    for scores, best in (([0.9, 0.1], 0), ([0.1, 0.9], 2)):
        picture = visualize.draw(
            image, boxes, [0, 2], scores, class_names=NAMES, masks=masks
        )
        colors = [visualize.class_color(label) for label in (2 - best, best)]
        expected = np.full(3, 128.0)
        for color in colors:
            expected = np.round(0.55 * expected + 0.45 * np.array(color))
        np.testing.assert_array_equal(picture[45, 40], expected)


def test_empty_boxes_and_masks_are_no_error():
    for masks in (np.zeros((1, 60, 80), bool), np.ones((1, 60, 80), bool)):
        boxes = np.zeros((1, 4))
        visualize.draw(gray(60, 80), boxes, [0], class_names=NAMES, masks=masks)


def test_enlarge_masks_fit_enlarged_images():
    mask = np.array([[[True, False], [False, False]]])
    expected = np.zeros((1, 6, 6), bool)
    expected[0, :3, :3] = True
    np.testing.assert_array_equal(visualize.enlarge_masks(mask, 3), expected)


def test_lines_and_letters_grow_with_the_image():
    def thickness(height, width):
        image = gray(height, width)
        box = [[0.25 * width, 0.5 * height, 0.75 * width, 0.75 * height]]
        picture = visualize.draw(image, box, [0], class_names=NAMES)
        return changed(image, picture)[:, width // 2 + width // 8].sum() // 2

    assert thickness(200, 300) == 1 and thickness(1000, 1500) == 5
    assert visualize._font((1500, 1000), "cat").size == 31


def test_colors_differ_and_can_be_read_on():
    colors = np.array([visualize.class_color(label) for label in range(20)], float)
    distances = np.abs(colors[:, None] - colors).sum(axis=-1)
    assert distances[~np.eye(20, dtype=bool)].min() > 40
    neighbors = np.abs(np.diff(colors, axis=0)).sum(axis=-1)
    assert neighbors.min() > 150


def test_side_by_side_keeps_both_pictures(rng):
    left = rng.integers(0, 256, (50, 90, 3), np.uint8)
    right = rng.integers(0, 256, (40, 80, 3), np.uint8)
    picture = visualize.side_by_side(left, right, captions=("before", "after"))
    bar = picture.shape[0] - 50
    assert 10 < bar < 40 and picture[:bar, :90].min() < 60  # the caption
    np.testing.assert_array_equal(picture[bar:, :90], left)
    windows = np.lib.stride_tricks.sliding_window_view(picture, right.shape)
    assert (windows == right).all(axis=(-3, -2, -1)).sum() == 1


def test_truth_beside_detections_is_drawn_on_the_enlarged_image():
    boxes, label = np.array([[10.0, 5, 20, 15]]), np.array([2])
    truth, nothing = (boxes, label, np.array([False])), np.zeros(0)
    draw = functools.partial(
        visualize.truth_beside_detections, gray(30, 48), truth, class_names=NAMES
    )
    picture = draw((boxes[:0], nothing, nothing))  # ten times larger: 300 x 480
    drawn = (picture == visualize.class_color(2)).all(axis=-1)
    bar = picture.shape[0] - 300
    assert drawn[bar + 50 : bar + 150, 100].all() and not drawn[:, 480:].any()
    detections = boxes, label, np.array([0.5])
    masked = draw(detections, masks=np.ones((1, 30, 48), bool))
    renamed = draw(detections, detection_names=("", "", "object"))
    assert changed(masked, renamed)[bar:, 480:].sum() > 0.9 * 300 * 480
    assert not changed(masked, renamed)[:, :480].any()


def test_contact_sheet_by_hand():
    sheet = visualize.contact_sheet(
        [gray(10, 20), np.zeros((6, 10, 3), np.uint8), gray(10, 20)], columns=2
    )
    assert sheet.shape == (22, 42, 3)  # gaps of two pixels
    assert (sheet[:10, :20] == 128).all() and (sheet[12:, :20] == 128).all()
    assert (sheet[10:12] == 255).all() and (sheet[:, 20:22] == 255).all()
    cell = sheet[:10, 22:]
    assert (cell[2:8, 5:15] == 0).all() and (cell == 0).sum() == 6 * 10 * 3
    assert (sheet[12:, 22:] == 255).all()


def test_contact_sheets_of_few_images():
    assert visualize.contact_sheet([gray(5, 5)], columns=4).shape == (5, 5, 3)
    with pytest.raises(ValueError, match="at least one image"):
        visualize.contact_sheet([], columns=4)
