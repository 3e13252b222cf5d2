from fractions import Fraction

import numpy as np
import pytest

from jaxdet.data import transforms
from jaxdet.data.dataset import DataError


def example(image, boxes=(), **fields):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels, crowd = np.arange(len(boxes), dtype=np.int32), np.zeros(len(boxes), bool)
    return transforms.Example(image, boxes, labels, crowd)._replace(**fields)


def bilinear(image, height, width):
    """Samples at the centers of the new pixels; the border pixels reach outwards."""
    rows, row_weights = _neighbors(image.shape[0], height)
    columns, column_weights = _neighbors(image.shape[1], width)
    picked = image.astype(float)[rows][:, :, columns]  # [2, H, 2, W, 3]
    return np.einsum("ahbwc,ah,bw->hwc", picked, row_weights, column_weights)


def _neighbors(old, new):
    centers = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centers)
    weights = np.stack([1 - (centers - first), centers - first])
    return np.clip([first, first + 1], 0, old - 1).astype(int), weights


@pytest.mark.parametrize(
    ("size", "canvas", "fitted"),
    [
        ((50, 100), (100, 100), (50, 100)),
        ((50, 100), (100, 200), (100, 200)),
        ((100, 50), (100, 200), (100, 50)),
        ((480, 640), (800, 1344), (800, 1067)),  # 1066.67 is rounded
        ((427, 640), (800, 1344), (800, 1199)),
        ((3, 1000), (64, 64), (1, 64)),  # 0.19 rows are still one
        ((1000, 3), (64, 64), (64, 1)),
    ],
)
def test_fitted_size(size, canvas, fitted):
    assert transforms.fitted_size(size, canvas) == fitted
    assert transforms.fitted_size(size, canvas, keep_aspect=False) == canvas


def test_a_square_doubled_by_hand():
    image = np.full((2, 3, 3), 7, np.uint8)
    given = example(image, [[0, 0, 3, 2], [1, 0.5, 2, 1]])
    resized, scale = transforms.resize_to_canvas(given, (5, 6))
    np.testing.assert_array_equal(scale, [2, 2])
    np.testing.assert_array_equal(resized.boxes, [[0, 0, 6, 4], [2, 1, 4, 2]])
    np.testing.assert_array_equal(resized.image[:4], np.full((4, 6, 3), 7))
    np.testing.assert_array_equal(resized.image[4:], np.zeros((1, 6, 3)))
    assert resized.boxes.dtype == scale.dtype == np.float32
    assert resized.labels is given.labels and resized.crowd is given.crowd


def test_scales_come_from_whole_sizes():
    given = example(np.zeros((480, 640, 3), np.uint8), [[320, 240, 640, 480]])
    resized, scale = transforms.resize_to_canvas(given, (800, 1344))
    np.testing.assert_allclose(scale, [800 / 480, 1067 / 640], rtol=1e-6)
    np.testing.assert_allclose(resized.boxes, [[533.5, 400, 1067, 800]], rtol=1e-6)


@pytest.mark.parametrize("canvas", [(40, 60), (21, 33), (20, 30), (13, 30), (40, 33)])
@pytest.mark.parametrize("keep_aspect", [True, False])
def test_resizing_is_bilinear_sampling(rng, canvas, keep_aspect):
    image = rng.integers(0, 256, (20, 30, 3), np.uint8)
    image.setflags(write=False)
    size = transforms.fitted_size((20, 30), canvas, keep_aspect=keep_aspect)
    given = example(image, [[3, 2, 6, 10]])
    batch = np.zeros((3, *canvas, 3), np.uint8)
    resized, scale = transforms.resize_to_canvas(
        given, canvas, keep_aspect=keep_aspect, out=batch[1]
    )
    actual = resized.image[: size[0], : size[1]].astype(float)
    # OpenCV: 11-bit weights.
    np.testing.assert_allclose(actual, bilinear(image, *size), atol=1.0)
    np.testing.assert_allclose(scale, [size[0] / 20, size[1] / 30], rtol=1e-6)
    np.testing.assert_allclose(resized.boxes, given.boxes * np.tile(scale[::-1], 2))
    assert np.shares_memory(resized.image, batch) and not batch[[0, 2]].any()
    alone, _ = transforms.resize_to_canvas(given, canvas, keep_aspect=keep_aspect)
    np.testing.assert_array_equal(batch[1], alone.image)


def test_shrinking_a_lot_averages_whole_areas(rng):
    image = rng.integers(0, 256, (40, 60, 3), np.uint8)
    resized, _ = transforms.resize_to_canvas(example(image), (10, 15))
    areas = image.reshape(10, 4, 15, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(resized.image, areas, atol=0.51)
    assert resized.boxes.shape == (0, 4) and resized.boxes.dtype == np.float32


def test_a_mark_stays_inside_its_box():
    image = np.zeros((60, 90, 3), np.uint8)
    image[20:40, 30:70] = 255
    given = example(image, [[30, 20, 70, 40]])
    for canvas in [(120, 200), (70, 90), (45, 45), (10, 30)]:
        for each in (given, transforms.flip_horizontally(given)):
            resized, _ = transforms.resize_to_canvas(each, canvas)
            rows, columns = np.nonzero(resized.image[..., 0] >= 128)
            seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(resized.boxes[0], seen, atol=1.0)


def test_boxes_on_the_border_stay_in_the_image(rng):
    for old_width, canvas_width in rng.integers(1, 3000, (300, 2)):
        given = example(np.zeros((1, old_width, 3), np.uint8), [[0, 0, old_width, 1]])
        resized, _ = transforms.resize_to_canvas(given, (1, canvas_width))
        _, width = transforms.fitted_size((1, old_width), (1, canvas_width))
        assert resized.boxes[0, 2] <= width


def test_flip_by_hand():
    image = np.arange(2 * 10 * 3, dtype=np.uint8).reshape(2, 10, 3)
    given = example(
        image,
        [[0, 0, 3, 1], [8, 1, 10, 2]],
        masks=np.array([[[1, 0], [0.5, 0]]], np.float32),
        regions=np.array([[8, 1, 10, 2], [0, 0, 10, 2]], np.float32),
    )
    for values in given[:-1]:
        values.setflags(write=False)
    flipped = transforms.flip_horizontally(given)
    np.testing.assert_array_equal(flipped.boxes, [[7, 0, 10, 1], [0, 1, 2, 2]])
    np.testing.assert_array_equal(flipped.image, image[:, ::-1])
    np.testing.assert_array_equal(flipped.regions, [[0, 1, 2, 2], [0, 0, 10, 2]])
    np.testing.assert_array_equal(flipped.masks, [[[0, 1], [0, 0.5]]])
    assert flipped.boxes.dtype == np.float32
    for before, after in zip(given, transforms.flip_horizontally(flipped), strict=True):
        np.testing.assert_array_equal(before, after)
    resized, _ = transforms.resize_to_canvas(given, (6, 30))
    np.testing.assert_array_equal(resized.regions, [[24, 3, 30, 6], [0, 0, 30, 6]])
    assert resized.masks is given.masks and resized.regions.dtype == np.float32


@pytest.mark.parametrize(
    ("old", "new"),
    [  # as torchvision.models.detection.transform resizes them
        ((480, 640), (800, 1066)),
        ((427, 640), (800, 1199)),
        ((640, 480), (1066, 800)),
        ((100, 1000), (133, 1333)),
        ((800, 1333), (800, 1333)),
        ((1, 5000), (1, 1333)),
    ],
)
def test_torchvisions_sizes_and_canvases(old, new):
    sides = (800, 1333)
    assert transforms.size_from_min_max(old, sides) == new
    canvases = transforms.canvases_from_min_max(sides)
    which = transforms.assign_canvases(np.array([old]), canvases, min_max_size=sides)[0]
    assert canvases[which] == tuple(-(-side // 32) * 32 for side in new)


def test_canvases_of_sides_by_hand():
    canvases = transforms.canvases_from_min_max((5, 10), multiple=4)
    assert set(canvases) == {(8, 8), (12, 8), (12, 4), (8, 12), (4, 12)}
    assert len(canvases) == 5
    sizes = np.array([[5, 5], [5, 10]])
    with pytest.raises(DataError, match=r"canvases is .*resized to 10x20"):
        transforms.assign_canvases(sizes, [(16, 16)], min_max_size=(10, 20))


def test_pixels_keep_their_fractions_on_floats():
    image = np.zeros((1, 4, 3), np.uint8)
    image[0, :, 0] = [0, 10, 20, 31]
    given, canvas = example(image, [[1, 0, 2, 1]]), np.zeros((2, 8, 3), np.float32)
    resized, scale = transforms.resize_to_canvas(
        given, (2, 8), min_max_size=(1, 3), out=canvas
    )
    # Centers of three pixels among four: 1/6, 1 1/2 and 2 5/6.
    expected = [10 / 6, 15, 20 + 11 * 5 / 6]
    np.testing.assert_allclose(canvas[0, :3, 0], expected, rtol=1e-6)
    assert not canvas[1].any() and not canvas[:, 3:].any()
    np.testing.assert_allclose(scale, [1, 0.75])
    np.testing.assert_allclose(resized.boxes, [[0.75, 0, 1.5, 1]])
    # Six of four: the first center, at -1/6, and the last lie outside. And nothing is
    # averaged, however small it becomes: one pixel is sampled at 1 1/2.
    wide = [0, 5, 10 + 10 / 6, 10 + 50 / 6, 20 + 11 / 2, 31]
    for expected in (wide, [15]):
        size = (1, len(expected))
        out = np.zeros((*size, 3), np.float32)
        transforms.resize_to_canvas(given, size, keep_aspect=False, out=out)
        np.testing.assert_allclose(out[0, :, 0], expected, rtol=1e-6)


def test_coordinates_are_rounded_once():
    """As torch's; if the product were rounded too, seven of these would differ."""
    low, _, weight = transforms._neighbors(500, 1066)
    factor = Fraction(float(np.float32(500 / 1066)))
    exact = [factor * (i + Fraction(1, 2)) - Fraction(1, 2) for i in range(1066)]
    rounded = np.array([float(max(value, 0)) for value in exact]).astype(np.float32)
    np.testing.assert_array_equal(low, np.floor(rounded))
    np.testing.assert_array_equal(weight, rounded - np.floor(rounded))
