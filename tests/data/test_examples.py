"""What is loaded and joined; how unreadable images are skipped, `test_batching` has."""

import dataclasses

import numpy as np
import pytest

from jaxdet.data.examples import ExampleLoader
from jaxdet.data.input_config import InputConfig
from tests.data.in_memory import in_memory_data_set

CONFIG = InputConfig(canvases=((40, 60),), max_objects=5)
ALL = np.arange(4)


def data_set():
    """Four images of one color each, 10, 20, 30 and 40, with two objects."""
    images = [np.full((40, 60, 3), 10 * i, np.uint8) for i in range(1, 5)]
    objects = [[(5, 5, 35, 35, 0), (30, 10, 55, 30, 1)]] * 4

    def read_masks(position, cells):
        return np.full((2, cells, cells), 0.5 + position / 10, np.float32)

    return dataclasses.replace(
        in_memory_data_set(images, objects), read_masks=read_masks
    )


def load(seed, **changes):
    loader = ExampleLoader(data_set(), dataclasses.replace(CONFIG, **changes))
    return loader.load_mixed(np.random.default_rng(seed), 0, ALL, (40, 60))


@pytest.mark.parametrize("field", ["mosaic", "copy_paste"])
def test_others_are_drawn_from_all_images_as_often_as_asked(field):
    mixed, partners = 0, set()
    for seed in range(200):
        position, example = load(seed, **{field: 0.3})
        assert position == 0 and len(example.boxes) <= 5
        colors = set(np.unique(example.image[..., 0])) & {10, 20, 30, 40}
        partners |= colors
        mixed += colors != {10} or len(example.boxes) > 2
    # Some are mixed with their own image alone.
    assert 30 < mixed < 78 and partners == {10, 20, 30, 40}


@pytest.mark.parametrize("mask_size", [0, 28, 50])
def test_masks_are_of_the_size_asked_for_and_none_where_none_are(mask_size):
    """Also where objects are cut out by finer ones."""
    for seed in range(6):
        joined = float(seed % 2)
        _, example = load(seed, copy_paste=1.0, mosaic=joined, mask_size=mask_size)
        if mask_size:
            shape = (len(example.boxes), mask_size, mask_size)
            assert example.masks.shape == shape and example.masks.max() <= 0.8 + 1e-6
        else:
            assert example.masks is None


def test_the_largest_of_joined_objects_stay():
    _, everything = load(5, mosaic=1.0, max_objects=8)
    _, some = load(5, mosaic=1.0, max_objects=2, too_many_objects="drop")
    areas = np.prod(everything.boxes[:, 2:] - everything.boxes[:, :2], axis=1)
    assert len(areas) > 3 and len(some.boxes) == 2
    largest = np.sort(np.argsort(-areas, kind="stable")[:2])
    np.testing.assert_array_equal(some.boxes, everything.boxes[largest])
