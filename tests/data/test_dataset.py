import dataclasses

import numpy as np
import pytest

from jaxdet.data.dataset import DataError, Proposals, concatenate
from tests.data.in_memory import in_memory_data_set


def a_set(name, count, *, first=0):
    """Images of 4 rows and 1, 2, .. columns, each with a box and with its own gray."""
    columns = range(first + 1, first + count + 1)
    images = [np.full((4, column, 3), column, np.uint8) for column in columns]
    boxes = [[(0, 0, column, 2, column % 2)] for column in columns]
    return dataclasses.replace(in_memory_data_set(images, boxes), name=name)


def with_proposals(data_set):
    found = [Proposals(objects.boxes, np.ones(1)) for objects in data_set.objects]
    return dataclasses.replace(data_set, proposals=found)


class TestConcatenate:
    def test_images_follow_one_another(self):
        joined = concatenate(
            a_set("a", 2), a_set("b", 1, first=2), a_set("c", 2, first=3)
        )
        assert joined.name == "a+b+c" and len(joined) == 5
        assert joined.image_ids == ("a/0", "a/1", "b/0", "c/0", "c/1")
        np.testing.assert_array_equal(joined.sizes[:, 1], [1, 2, 3, 4, 5])
        for position in range(5):
            assert (joined.read_image(position) == position + 1).all()
            assert joined.objects[position].boxes[0, 2] == position + 1
        assert joined.read_masks is joined.read_encoded is joined.proposals is None

    def test_the_ground_truth_has_ids_of_its_own(self):
        joined = concatenate(a_set("a", 2), a_set("b", 2, first=2))
        truth = joined.ground_truth()
        assert [image["id"] for image in truth["images"]] == list(joined.image_ids)
        found = [(a["id"], a["image_id"], a["bbox"][2]) for a in truth["annotations"]]
        expected = [(1, "a/0", 1), (2, "a/1", 2), (3, "b/0", 3), (4, "b/1", 4)]
        assert found == expected
        assert [category["id"] for category in truth["categories"]] == [1, 2]

    def test_what_all_have_stays(self):
        first, second = (
            dataclasses.replace(
                with_proposals(a_set(name, 2, first=first)),
                read_masks=lambda position, cells, name=name: (name, position, cells),
            )
            for name, first in (("a", 0), ("b", 2))
        )
        joined = concatenate(first, second)
        assert joined.read_masks(1, 7) == ("a", 1, 7)
        assert joined.read_masks(2, 7) == ("b", 0, 7)
        widths = [found.boxes[0, 2] for found in joined.proposals]
        assert widths == [1, 2, 3, 4]
        bare = dataclasses.replace(second, read_masks=None, proposals=None)
        partly = concatenate(first, bare)
        assert partly.read_masks is partly.proposals is None

    def test_what_does_not_fit(self):
        first, other = a_set("a", 1), a_set("b", 1)
        with pytest.raises(DataError, match=r"a and a: .*different names"):
            concatenate(first, first)
        renamed = dataclasses.replace(other, class_names=("cat", "gnu"))
        with pytest.raises(DataError, match=r"a and b cannot .* class_names .*'gnu'"):
            concatenate(first, renamed)
        renumbered = dataclasses.replace(other, category_ids=(1, 3))
        with pytest.raises(DataError, match=r"category_ids .*\(1, 2\).*\(1, 3\)"):
            concatenate(first, renumbered)
