"""Mosaics of shrunk pictures, by hand."""

import numpy as np

from experiments.benchmarks import tiles
from jaxdet.data.formats import coco
from tests.data.in_memory import in_memory_data_set


def test_pictures_and_their_boxes_lie_where_they_should(tmp_path):
    images = [np.full((20, 40, 3), 50 * i, np.uint8) for i in range(5)]
    objects = [[(4, 8, 24, 16, 1)] for _ in images]
    data_set = in_memory_data_set(images, objects, image_ids=(3, 1, 4, 5, 9))
    file = tiles.make_mosaics(data_set, 10, (20, 20), tmp_path)
    mosaics = coco.load(file, tmp_path)
    assert len(mosaics) == 2 and mosaics.sizes.tolist() == [[20, 20], [20, 20]]
    first = mosaics.read_image(0)
    assert (first[10:15, :10] == 100).all() and (first[15:, :10] == 114).all()
    # A quarter of the size, in four cells.
    expected = [[1, 2, 6, 4], [11, 2, 16, 4], [1, 12, 6, 14], [11, 12, 16, 14]]
    np.testing.assert_allclose(mosaics.objects[0].boxes, expected)
    np.testing.assert_allclose(mosaics.objects[1].boxes, expected[:1])
    areas = [one["area"] for one in mosaics.ground_truth()["annotations"]]
    np.testing.assert_allclose(areas, [10] * 5)
