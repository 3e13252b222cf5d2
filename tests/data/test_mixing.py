"""Mosaic and copy-paste: objects painted so that one sees where they must be."""

import numpy as np
import pytest

from jaxdet.data import mixing
from jaxdet.data.transforms import Example

CELLS = 20


def painted(height, width, boxes, colors, *, masks=True, crowd=None):
    """An image whose boxes are filled with colors, which are the labels too."""
    image = np.full((height, width, 3), 200, np.uint8)
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    for (x1, y1, x2, y2), color in zip(boxes.astype(int), colors, strict=True):
        image[y1:y2, x1:x2] = paint(color)
    crowd = np.zeros(len(boxes), bool) if crowd is None else np.array(crowd)
    masks = np.ones((len(boxes), CELLS, CELLS), np.float32) if masks else None
    return Example(image, boxes, np.array(colors, np.int32), crowd, masks)


def paint(color):
    """An RGB that no mixture of two others has."""
    return color, color**2 % 251, color**3 % 241


def seen(example, color):
    """The box that a color fills, and how many pixels have it."""
    rows, columns = np.nonzero(np.all(example.image == paint(color), axis=-1))
    box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return np.array(box), len(rows)


def assert_as_painted(example, *, within):
    """Boxes are those that the colors fill, and masks cover as many pixels."""
    for box, mask, color in zip(
        example.boxes, example.masks, example.labels, strict=True
    ):
        drawn, pixels = seen(example, color)
        np.testing.assert_allclose(drawn, box, atol=within)
        area = np.prod(box[2:] - box[:2])
        border = 2 * (box[2:] - box[:2]).sum()
        assert abs(mask.mean() * area - pixels) <= within * border + area / CELLS


def test_four_images_around_a_point_by_hand():
    below, right, above = (8, 24, 20, 30), (22, 0, 30, 30), (0, 0, 30, 6)
    examples = [
        painted(30, 30, [(0, 0, 9, 30), below], [1, 2]),
        painted(30, 30, [right], [3]),
        painted(30, 30, [above], [4]),
        painted(10, 16, [(0, 0, 16, 10)], [5]),
    ]
    joined = mixing.tile(examples, (40, 48), (12, 20))
    # Of the first, rows 18 to 30 and columns 10 to 30 are seen; of the second rows 18
    # to 30 and columns 0 to 28, of the third columns 10 to 30 of rows 0 to 28.
    np.testing.assert_array_equal(joined.labels, [2, 3, 4, 5])
    boxes = [[0, 6, 10, 12], [42, 0, 48, 12], [0, 12, 20, 18], [20, 12, 36, 22]]
    np.testing.assert_array_equal(joined.boxes, boxes)
    for color, box in zip(joined.labels, boxes, strict=True):
        np.testing.assert_array_equal(seen(joined, color)[0], box)
    assert joined.masks.shape == (4, CELLS, CELLS) and joined.image.shape == (40, 48, 3)
    assert joined.image[39, 47].tolist() == [123, 117, 104]


def test_covered_objects_shrink_or_go_by_hand():
    own = {
        1: (0, 0, 20, 20),  # free
        2: (20, 0, 40, 20),  # its right half is covered
        3: (30, 20, 50, 40),  # its middle: the box stays
        4: (40, 0, 60, 20),  # all of it
        5: (20, 40, 60, 60),  # 31 of 40 columns: less than a quarter is left
        6: (20, 60, 60, 80),  # as much, but of a crowd
    }
    crowd = [color == 6 for color in own]
    example = painted(80, 80, [*own.values()], [*own], crowd=crowd)
    new = [(30, 0, 60, 20), (35, 20, 45, 40), (29, 40, 60, 80)]
    source = painted(80, 60, np.subtract(new, [10, 0, 10, 0]), [11, 12, 13])
    joined = mixing.paste(example, source, np.array([0, 10]))
    np.testing.assert_array_equal(joined.labels, [1, 2, 3, 6, 11, 12, 13])
    left = [own[1], (20, 0, 30, 20), own[3], (20, 60, 29, 80)]
    np.testing.assert_array_equal(joined.boxes, [*left, *new])
    np.testing.assert_array_equal(joined.crowd, [0, 0, 0, 1, 0, 0, 0])
    for color, box in zip(joined.labels, joined.boxes, strict=True):
        np.testing.assert_array_equal(seen(joined, color)[0], box)
    middle = np.ones((CELLS, CELLS))
    middle[:, 5:15] = 0
    np.testing.assert_array_equal(joined.masks[2], middle)
    np.testing.assert_array_equal(np.delete(joined.masks, 2, axis=0), 1)
    assert example.boxes[1].tolist() == [20, 0, 40, 20] and example.masks.all()


def test_only_the_pixels_of_an_object_are_pasted():
    """A triangle's other half stays as it was, and the object below keeps it."""
    lower = np.tri(CELLS, dtype=np.float32)
    source = painted(20, 20, [(0, 0, 20, 20)], [7])._replace(masks=lower[None])
    joined = mixing.paste(
        painted(20, 20, [(0, 0, 20, 20)], [1]), source, np.zeros(2, int)
    )
    np.testing.assert_array_equal(joined.image[..., 0], np.where(lower, 7, 1))
    np.testing.assert_array_equal(joined.boxes, [[1, 0, 20, 19], [0, 0, 20, 20]])
    shares = joined.masks[0].mean() * 19 * 19
    np.testing.assert_allclose(shares, 20 * 19 / 2, rtol=0.03)


def test_what_is_too_small_for_a_pixel_is_not_pasted():
    source = painted(20, 20, [(0, 0, 20, 20)], [7])
    source = source._replace(boxes=np.array([[1.6, 1.6, 2.4, 2.4]], np.float32))
    joined = mixing.paste(painted(20, 20, [], []), source, np.zeros(2, int))
    assert (joined.image == 200).all() and len(joined.boxes) == 0


def random_example(rng, first):
    """An image of unlike size with one to four boxes apart, colored from `first` on."""
    height, width = rng.integers(60, 140, 2)
    count = rng.integers(1, 5)
    edges = np.linspace(0, width, count + 1)[:, None]
    low = np.concatenate([edges[:-1], rng.integers(0, 20, (count, 1))], 1)
    high = np.concatenate([edges[1:], height - rng.integers(0, 20, (count, 1))], 1)
    boxes = np.rint(np.concatenate([low + 2, high], 1))
    return painted(height, width, boxes, range(first, 10 * count + first, 10))


def mosaic(rng, examples):
    return mixing.mosaic(rng, examples, (120, 160))


def copy_paste(rng, examples):
    return mixing.copy_paste(rng, *examples[:2])


@pytest.mark.parametrize("mix", [mosaic, copy_paste])
def test_objects_are_where_their_colors_are(rng, mix):
    kept, given = 0, 0
    for _ in range(60):
        examples = [random_example(rng, first) for first in (1, 4, 7, 9)]
        for values in (values for example in examples for values in example[:5]):
            values.setflags(write=False)
        seed = rng.integers(1000)
        mixed, again = (mix(np.random.default_rng(seed), examples) for _ in range(2))
        for one, other in zip(mixed[:5], again[:5], strict=True):
            np.testing.assert_array_equal(one, other)
        large = np.prod(mixed.boxes[:, 2:] - mixed.boxes[:, :2], axis=1) > 150
        assert_as_painted(mixing.select_objects(mixed, large), within=2)
        kept, given = kept + len(large), given + sum(len(x.boxes) for x in examples)
    assert 0.2 * given < kept < 0.95 * given


def test_mosaics_differ_in_point_size_and_quadrant(rng):
    example = painted(100, 100, [(0, 0, 100, 100)], [1], crowd=[True])  # always stays
    examples = [
        example._replace(image=np.full_like(example.image, i)) for i in range(4)
    ]
    mixed = [mixing.mosaic(rng, examples, (80, 120)) for _ in range(200)]
    corners = np.array([x.image[::79, ::119, 0].ravel() for x in mixed])
    for place in corners.T:
        counts = np.bincount(place[place < 4], minlength=4)
        assert counts.min() > 5  # any image anywhere
    first = np.array([x.boxes[0, 2:] for x in mixed])  # the point, above left of which
    assert 30 <= first[:, 0].min() < 33 and 87 < first[:, 0].max() <= 90
    assert 20 <= first[:, 1].min() < 22 and 58 < first[:, 1].max() <= 60


def test_what_is_pasted_differs_and_crowds_are_not(rng):
    example = painted(90, 90, [], [])
    boxes = [(i, 0, i + 20, 80) for i in (0, 20, 40, 60)]
    source = painted(80, 80, boxes, [1, 2, 3, 4], crowd=[False, True, False, False])
    mixed = [mixing.copy_paste(rng, example, source) for _ in range(300)]
    assert {tuple(x.labels) for x in mixed} > {(1,), (3,), (4,), (1, 3), (1, 3, 4)}
    assert not any(2 in x.labels or x.crowd.any() for x in mixed)
    only = source._replace(crowd=np.ones(4, bool))
    assert mixing.copy_paste(rng, example, only) is example
