from functools import partial

import jax
import numpy as np

from jaxdet.data import masks as masks_on_the_host
from jaxdet.ops import masks

CANVAS = (40, 50)
CORNERS = np.array([[[0, 1], [0.5, 0]]], np.float32)  # of a 2x2 mask
BOX = np.array([[10, 20, 30, 60]], np.float32)


def sampled(mask, box, region, size):
    """One region's target, point by point."""
    cells = len(mask)
    x1, y1, x2, y2 = (float(value) for value in box)
    target = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            x = region[0] + (j + 0.5) / size * (region[2] - region[0])
            y = region[1] + (i + 0.5) / size * (region[3] - region[1])
            if not (x1 <= x <= x2 and y1 <= y <= y2) or x1 >= x2 or y1 >= y2:
                continue
            column = np.clip((x - x1) / (x2 - x1) * cells - 0.5, 0, cells - 1)
            row = np.clip((y - y1) / (y2 - y1) * cells - 0.5, 0, cells - 1)
            for m in range(cells):
                for n in range(cells):
                    weight = max(0, 1 - abs(row - m)) * max(0, 1 - abs(column - n))
                    target[i, j] += weight * mask[m, n]
    return target


def boxes_in(rng, count, low, high):
    first = rng.uniform(low, high, (count, 2))
    return np.hstack([first, first + rng.uniform(3, 30, (count, 2))]).astype(np.float32)


class TestMasksInRegions:
    def test_by_hand(self):
        regions = np.array(
            [
                [10, 20, 30, 60],  # the box itself
                [20, 20, 40, 60],  # its right half, and as much beside it
                [15, 30, 25, 50],  # between the cells' centers
                [40, 20, 60, 60],  # elsewhere
            ],
            np.float32,
        )
        crop = jax.jit(partial(masks.crop_and_resize_masks, output_size=2))
        targets = crop(CORNERS, BOX, regions, np.zeros(4, int))
        # The third one's points lie 1/4 and 3/4 of the way between the cells' centers.
        near, far = 0.75, 0.25
        expected = [
            [[0, 1], [0.5, 0]],
            [[1, 0], [0, 0]],
            [
                [near * far + far * near * 0.5, near * near + far * far * 0.5],
                [far * far + near * near * 0.5, far * near + near * far * 0.5],
            ],
            [[0, 0], [0, 0]],
        ]
        np.testing.assert_allclose(targets, expected, atol=1e-6)
        assert targets.dtype == np.float32

    def test_point_by_point(self, rng):
        grids = rng.uniform(0, 1, (3, 5, 5)).astype(np.float32)
        boxes = boxes_in(rng, 3, 0, 20)
        index = np.array([2, 0, 1, 1, 2, 0])
        regions = boxes_in(rng, 6, -5, 30)
        targets = jax.jit(partial(masks.crop_and_resize_masks, output_size=7))(
            grids, boxes, regions, index
        )
        expected = [
            sampled(grids[n], boxes[n], region, 7)
            for n, region in zip(index, regions, strict=True)
        ]
        np.testing.assert_allclose(targets, expected, atol=2e-5)
        assert np.max(targets) > 0.5

    def test_padding_is_empty(self):
        boxes = np.concatenate([BOX, np.zeros((1, 4), np.float32)])
        grids = np.ones((2, 4, 4), np.float32)
        regions = np.array([[0, 0, 0, 0], [-4, -4, 4, 4], [0, 0, 0, 0]], np.float32)
        crop = jax.jit(masks.crop_and_resize_masks)
        targets = crop(grids, boxes, regions, np.array([1, 1, 0]))
        assert targets.shape == (3, 28, 28)
        np.testing.assert_array_equal(targets, np.zeros((3, 28, 28)))


class TestPasteMasks:
    def test_golden(self, golden_ops):
        boxes = golden_ops["masks/boxes"]
        expected = golden_ops["masks/pasted probability on 100x120"]
        probabilities = jax.nn.sigmoid(golden_ops["masks/logits 28x28"])
        paste = jax.jit(partial(masks.paste_masks, canvas=expected.shape[1:]))
        pasted = paste(probabilities, boxes)
        np.testing.assert_allclose(pasted, expected, atol=1e-5)

    def test_by_hand(self):
        # One cell and its border fill (-5, -5, 25, 25) truncated: 31 pixels a side, so
        # that pixel i stands at (i + 5.5) * 3 / 31 - 0.5 among the three cells.
        box = np.array([[5, 5, 15, 15]], np.float32)
        paste = jax.jit(partial(masks.paste_masks, canvas=(30, 30)))
        pasted = paste(np.ones((1, 1, 1)), box)
        where = (np.arange(30) + 5.5) * 3 / 31 - 0.5
        profile = np.maximum(1 - np.abs(where - 1), 0) * (np.arange(30) <= 25)
        np.testing.assert_allclose(pasted[0], np.outer(profile, profile), atol=1e-5)

    def test_no_area_and_outside(self):
        boxes = np.array(
            [[0, 0, 0, 0], [9, 9, 4, 12], [90, 90, 99, 99], [-40, -40, -20, -20]],
            np.float32,
        )
        paste = jax.jit(partial(masks.paste_masks, canvas=CANVAS))
        pasted = paste(np.ones((4, 3, 3), np.float32), boxes)
        np.testing.assert_array_equal(pasted, np.zeros((4, *CANVAS)))

    def test_the_host_draws_the_same(self, rng):
        boxes = boxes_in(rng, 40, -10, 45)
        probabilities = rng.uniform(0, 1, (40, 14, 14)).astype(np.float32)
        pasted = jax.jit(partial(masks.paste_masks, canvas=CANVAS))(
            probabilities, boxes
        )
        drawn = 0
        for one, box, expected in zip(
            probabilities, boxes, np.asarray(pasted), strict=True
        ):
            pixels = masks_on_the_host.paste(one, box, CANVAS)
            clear = np.abs(expected - 0.5) > 1e-5
            np.testing.assert_array_equal(pixels[clear], expected[clear] > 0.5)
            drawn += pixels.sum()
        assert drawn > 1000
