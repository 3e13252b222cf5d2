import json
import time

import numpy as np
import pycocotools.mask
import pytest

from jaxdet.data import masks

SIZE = (20, 30)
SQUARE = [10.0, 10, 20, 10, 20, 20, 10, 20]  # polygon
WHOLE = np.array([10, 10, 20, 20])


def run_lengths(pixels):
    """Uncompressed, column by column, zeros first."""
    flat = pixels.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=0))
    ends = np.concatenate([changes, [len(flat)]])
    counts = np.diff(ends, prepend=0)
    return {"size": list(pixels.shape), "counts": counts.tolist()}


@pytest.fixture
def blob(rng):
    """Pixels in a rectangle, in some of which the object is."""
    pixels = np.zeros(SIZE, np.uint8)
    pixels[5:15, 8:25] = rng.integers(0, 2, (10, 17))
    return pixels


def crop(segmentation, box, cells):
    return masks.rasterize(
        masks.parse_segmentation(segmentation, SIZE), np.array(box), cells
    )


class TestCrop:
    def test_polygons_by_hand(self):
        np.testing.assert_array_equal(crop([SQUARE], WHOLE, 3), np.ones((3, 3)))
        grid = crop([SQUARE], [5, 10, 25, 20], 4)  # a quarter beside it, on both sides
        np.testing.assert_array_equal(grid, np.tile([0, 1, 1, 0], (4, 1)))
        grid = crop([SQUARE], [0, 0, 16, 16], 2)  # it covers the corner 6 x 6
        np.testing.assert_allclose(grid, [[0, 0], [0, 36 / 64]], atol=1 / 16)
        assert grid.dtype == np.float32
        # Parts are joined, and their overlap counts once.
        parts = [10, 10, 16, 10, 16, 20, 10, 20], [14, 10, 20, 10, 20, 20, 14, 20]
        np.testing.assert_array_equal(crop(list(parts), WHOLE, 4), np.ones((4, 4)))

    def test_a_triangle_is_smooth(self):
        grid = crop([[10, 10, 20, 10, 10, 20]], WHOLE, 5)
        columns, rows = np.meshgrid(range(5), range(5))
        np.testing.assert_array_equal(grid[rows + columns < 4], 1)
        np.testing.assert_allclose(grid[rows + columns == 4], 0.5, atol=0.15)
        np.testing.assert_array_equal(grid[rows + columns > 4], 0)

    def test_rows_are_y_and_columns_are_x(self):
        wide = [10, 10, 20, 10, 20, 15, 10, 15]
        expected = [[1, 1], [0, 0]]
        np.testing.assert_array_equal(crop([wide], WHOLE, 2), expected)
        pixels = np.zeros(SIZE, np.uint8)
        pixels[10:15, 10:20] = 1
        np.testing.assert_array_equal(crop(run_lengths(pixels), WHOLE, 2), expected)

    @pytest.mark.parametrize("box", [(8, 5, 25, 15), (7.3, 4.1, 26.6, 13.9)])
    @pytest.mark.parametrize("cells", [3, 7, 28])
    def test_run_lengths_are_averaged_over_areas(self, blob, box, cells):
        grid = crop(run_lengths(blob), box, cells)
        fine = 100  # points a side of each cell
        x1, y1, x2, y2 = box
        points = (np.arange(cells * fine) + 0.5) / (cells * fine)
        rows = np.floor(y1 + points * (y2 - y1)).astype(int)
        columns = np.floor(x1 + points * (x2 - x1)).astype(int)
        sampled = blob[rows][:, columns].reshape(cells, fine, cells, fine)
        np.testing.assert_allclose(grid, sampled.mean(axis=(1, 3)), atol=0.02)

    def test_parts_of_fewer_than_three_points_are_left_out(self):
        parts = masks.parse_segmentation([[5, 5, 6, 6], SQUARE, [], [3, 4]], SIZE)
        np.testing.assert_array_equal(parts, [SQUARE])

    def test_many_parts_are_joined_in_linear_time(self):
        x, y = 10 * np.mgrid[:200, :100]  # squares of 5 x 5 pixels, apart
        corners = np.stack([x, y, x + 5, y, x + 5, y + 5, x, y + 5], -1)
        parts = corners.reshape(-1, 8).tolist()
        parts = masks.parse_segmentation(parts, (2000, 3000), np.float64)
        start = time.process_time()
        runs = masks.to_run_lengths(parts, (2000, 3000))
        assert time.process_time() - start < 5  # 12, joined one after the other
        assert pycocotools.mask.area(runs) == 20_000 * 25

    def test_a_polygon_far_beyond_its_box_costs_no_more(self):
        far = [-9e5, -9e5, 9e5, -9e5, 9e5, 9e5, -9e5, 9e5]
        grid = crop([far], [3, 3, 3 + 1e-4, 4], 7)
        np.testing.assert_array_equal(grid, np.ones((7, 7)))


class TestParse:
    def test_round_trip(self, rng):
        long = np.zeros((300, 400), np.uint8)
        long[:, 200:203] = 1  # counts of more than two groups of bits
        noise = [rng.uniform(0, 1, SIZE) < rng.uniform() for _ in range(20)]
        for pixels in (long, *(image.astype(np.uint8) for image in noise)):
            for segmentation in (run_lengths(pixels), masks.encode_rle(pixels)):
                runs = masks.parse_segmentation(segmentation, pixels.shape)
                np.testing.assert_array_equal(pycocotools.mask.decode(runs), pixels)

    @pytest.mark.parametrize(
        ("segmentation", "allowed"),
        [
            ([], "one or more polygons, or run lengths"),
            ("04", "one or more polygons, or run lengths"),
            ([SQUARE, [1, 2, 3, 4, 5, 6, 7]], "3 or more points"),
            ([[5, 5, 6, 6], []], "3 or more points"),
            (SQUARE, "3 or more points"),
            ([[1, 2, "x", 4, 5, 6]], "3 or more points"),
            ([[1, 2, float("nan"), 4, 5, 6]], "finite"),
            ([[1, 2, float("inf"), 4, 5, 6]], "finite"),
            ({"counts": [600]}, r"size is that of the image, \[20, 30\]"),
            ({"size": [30, 20], "counts": [600]}, "size is that of the image"),
            ({"size": [20, 30], "counts": [599]}, r"sum up to 20 \* 30"),
            ({"size": [20, 30], "counts": [601, -1]}, "sum up to"),
            ({"size": [20, 30], "counts": [600.0]}, "sum up to"),
            ({"size": [20, 30], "counts": ""}, "sum up to"),
            ({"size": [20, 30], "counts": "04"}, "sum up to"),
            ({"size": [20, 30], "counts": "\x01ü~"}, "sum up to"),
            ({"size": [20, 30]}, "sum up to"),
            ({"size": [20, 30], "counts": "o" * 1_000_000}, "sum up to 20"),
        ],
    )
    def test_what_is_broken_is_told(self, segmentation, allowed):
        with pytest.raises(ValueError, match=allowed):
            masks.parse_segmentation(segmentation, SIZE)


class TestPaste:
    def test_golden(self, golden_ops):
        probabilities = 1 / (1 + np.exp(-golden_ops["masks/logits 28x28"]))
        expected = golden_ops["masks/pasted probability on 100x120"] >= 0.5
        for mask, box, pixels in zip(
            probabilities, golden_ops["masks/boxes"], expected, strict=True
        ):
            pasted = masks.paste(mask, box, (100, 120))
            np.testing.assert_array_equal(pasted, pixels)
            assert pasted.dtype == np.uint8 and pasted.any()

    @pytest.mark.parametrize(
        "box", [(0, 0, 0, 0), (9, 9, 4, 12), (90, 90, 99, 99), (-40, -40, -20, -20)]
    )
    def test_no_area_and_outside(self, box):
        pasted = masks.paste(np.ones((28, 28), np.float32), np.array(box), SIZE)
        np.testing.assert_array_equal(pasted, np.zeros(SIZE))


def test_encoded_runs_are_json_that_pycocotools_reads(blob):
    runs = json.loads(json.dumps(masks.encode_rle(blob > 0)))
    np.testing.assert_array_equal(masks.decode_rle([runs, runs]), [blob > 0] * 2)
    assert runs["size"] == [20, 30]
    np.testing.assert_array_equal(pycocotools.mask.decode(runs), blob)
