import io

import numpy as np
import pytest
from PIL import Image

from jaxdet.data.dataset import DataError
from jaxdet.data.masks import encode_rle
from jaxdet.evaluation import error_pictures
from tests.evaluation.scenes import data_set_of, detection, truth

BLACK = np.zeros((400, 400, 3), np.uint8)


def count(jpeg, color):
    """How many pixels of a JPEG are close to a color, and its size."""
    image = np.array(Image.open(io.BytesIO(jpeg)), int)
    return int((np.abs(image - color).max(axis=-1) < 40).sum()), image.shape


def drawn(objects, detections, **options):
    ground_truth = truth(*objects, images=1)
    data_set = data_set_of(ground_truth, lambda position: BLACK)
    (picture,) = error_pictures.draw_errors(
        data_set, ground_truth, detections, [0], min_score=0.3, **options
    )
    return picture


def test_what_is_right_is_green_and_what_is_wrong_red():
    cat, dog, crowd = (
        (0, 0, 50, 50, 90, 90),
        (0, 1, 250, 250, 90, 90),
        (0, 0, 250, 50, 90, 90, "crowd"),
    )
    right, wrong = (
        detection(0, 0, 0.9, 50, 50, 90, 90),
        detection(0, 1, 0.8, 250, 50, 90, 90),
    )
    hidden = detection(0, 1, 0.2, 250, 250, 90, 90)  # scores too low
    picture = drawn([cat, dog, crowd], [right, wrong, hidden])
    assert picture.file_name == "0"
    for jpeg in (picture.truth, picture.detections):
        for color in (error_pictures.RIGHT, error_pictures.WRONG):
            assert count(jpeg, color)[0] > 300
    assert count(picture.truth, error_pictures.IGNORED)[0] > 100
    assert count(picture.detections, error_pictures.IGNORED)[0] < 100
    found = drawn([cat], [right])
    assert not count(found.truth, error_pictures.WRONG)[0]
    assert not count(found.detections, error_pictures.WRONG)[0]


def test_masks_are_drawn_on_both_sides():
    cat, dog = (0, 0, 50, 50, 200, 90), (0, 1, 250, 250, 90, 90)
    ground_truth = truth(cat, dog, images=1)
    ground_truth["images"] = [{"id": 0, "height": 400, "width": 400}]
    found = detection(0, 0, 0.9, 50, 50, 200, 90)
    for one in (*ground_truth["annotations"], found):
        x, y, width, height = one["bbox"]
        left = np.zeros((400, 400), np.uint8)
        left[y : y + height, x : x + width // 2] = 1
        one["segmentation"] = encode_rle(left)
    data_set = data_set_of(ground_truth, lambda position: BLACK)
    (picture,) = error_pictures.draw_errors(
        data_set, ground_truth, [found], [0], min_score=0.3
    )
    for jpeg in (picture.truth, picture.detections):
        image = np.array(Image.open(io.BytesIO(jpeg)), int)  # twice as large
        assert (image[180:220, 140:260].max(axis=-1) > 30).all()  # left: the mask
        assert (image[180:220, 340:460].max(axis=-1) < 15).all()  # right: the box alone


def test_polygons_of_one_image_are_drawn():
    """Objects of COCO have polygons; those of other images may have none."""
    here, elsewhere = (0, 0, 50, 50, 90, 90), (1, 0, 50, 50, 90, 90)
    ground_truth = truth(here, elsewhere, images=2)
    ground_truth["annotations"][0]["segmentation"] = [[50, 50, 140, 50, 50, 140]]
    data_set = data_set_of(
        ground_truth, lambda position: np.zeros((500, 500, 3), np.uint8)
    )
    (picture,) = error_pictures.draw_errors(
        data_set, ground_truth, [], [0], min_score=0.3, size=500
    )
    image = np.array(Image.open(io.BytesIO(picture.truth)), int)
    assert image[80, 80].max() > 30
    assert image[125, 125].max() < 15


@pytest.mark.parametrize(
    "mask", [[[50, 50]], {"size": [3, 3], "counts": [4]}, {"size": [500, 500]}]
)
def test_a_broken_mask_that_nobody_has_checked_is_not_drawn(mask):
    broken, without = (0, 0, 50, 50, 90, 90), (1, 0, 50, 50, 90, 90)
    ground_truth = truth(broken, without, images=2)
    ground_truth["annotations"][0]["segmentation"] = mask
    data_set = data_set_of(ground_truth, lambda position: BLACK)
    (picture,) = error_pictures.draw_errors(
        data_set, ground_truth, [], [0], min_score=0.3
    )
    assert count(picture.truth, error_pictures.WRONG)[0] > 300


def test_large_images_become_small_and_small_ones_large():
    assert count(drawn([], [], size=100).truth, 0)[1] == (100, 100, 3)
    assert count(drawn([], []).truth, 0)[1] == (800, 800, 3)
    picture = drawn([], [detection(0, 0, 0.9, 0, 0, 400, 400)], size=100)
    # The box is the whole picture still: red on all four sides.
    image = np.array(Image.open(io.BytesIO(picture.detections)), int)
    for side in (image[0, 50:], image[-1], image[50:, 0], image[:, -1]):
        assert (side[:, 0] > 120).mean() > 0.8


def test_an_image_that_cannot_be_read_has_no_picture():
    def fail(position):
        raise DataError("broken")

    ground_truth = truth(images=1)
    data_set = data_set_of(ground_truth, fail)
    pictures = error_pictures.draw_errors(data_set, ground_truth, [], [0], min_score=0)
    assert pictures == [None]
