import dataclasses

import numpy as np
import pytest

from jaxdet.data.dataset import (
    DataError,
    Proposals,
    concatenate,
    subset,
    with_class_names,
)
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


def test_images_follow_one_another():
    joined = concatenate(a_set("a", 2), a_set("b", 1, first=2), a_set("c", 1, first=3))
    assert joined.name == "a+b+c" and len(joined) == 4
    assert joined.image_ids == ("a/0", "a/1", "b/0", "c/0")
    np.testing.assert_array_equal(joined.sizes[:, 1], [1, 2, 3, 4])
    for position in range(4):
        assert (joined.read_image(position) == position + 1).all()
        assert joined.objects[position].boxes[0, 2] == position + 1
    assert joined.read_masks is joined.read_encoded is joined.proposals is None
    assert joined.file_names == ("0", "1", "0", "0")  # ids, for want of names
    truth = joined.ground_truth()  # with ids of its own
    assert [image["id"] for image in truth["images"]] == list(joined.image_ids)
    found = [(a["id"], a["image_id"], a["bbox"][2]) for a in truth["annotations"]]
    assert found == [(1, "a/0", 1), (2, "a/1", 2), (3, "b/0", 3), (4, "c/0", 4)]
    assert [category["id"] for category in truth["categories"]] == [1, 2]


def test_masks_and_proposals_of_all_stay():
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
    assert [found.boxes[0, 2] for found in joined.proposals] == [1, 2, 3, 4]
    bare = dataclasses.replace(second, read_masks=None, proposals=None)
    partly = concatenate(first, bare)
    assert partly.read_masks is partly.proposals is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "a"}, r"a and a: .*different names"),
        ({"class_names": ("cat", "gnu")}, r"a and b cannot .* class_names .*'gnu'"),
        ({"category_ids": (1, 3)}, r"category_ids .*\(1, 2\).*\(1, 3\)"),
    ],
)
def test_what_does_not_fit(fields, message):
    other = dataclasses.replace(a_set("b", 1), **fields)
    with pytest.raises(DataError, match=message):
        concatenate(a_set("a", 1), other)


def test_some_of_the_images():
    whole = dataclasses.replace(
        with_proposals(a_set("a", 4)),
        read_masks=lambda position, cells: (position, cells),
        read_encoded=lambda position: bytes([position]),
        file_names=("w", "x", "y", "z"),
    )
    part = subset(whole, [3, 1], "part")
    assert (part.name, part.image_ids, part.class_names) == (
        "part",
        (3, 1),
        ("cat", "dog"),
    )
    np.testing.assert_array_equal(part.sizes[:, 1], [4, 2])
    for position, column in enumerate((4, 2)):
        assert (part.read_image(position) == column).all()
        assert part.objects[position].boxes[0, 2] == column
        assert part.proposals[position].boxes[0, 2] == column
        assert part.read_masks(position, 7) == (column - 1, 7)
        assert part.read_encoded(position) == bytes([column - 1])
    assert part.file_names == ("z", "x")
    truth = part.ground_truth()
    assert [one["id"] for one in truth["images"]] == [3, 1]
    assert sorted(one["image_id"] for one in truth["annotations"]) == [1, 3]
    assert truth["categories"] == whole.ground_truth()["categories"]
    assert subset(a_set("a", 2), [0], "bare").read_masks is None


def test_other_labels_for_the_same_classes():
    data_set = with_class_names(a_set("a", 2), ("dog", "eel", "cat"))  # of labels 1, 0
    assert data_set.class_names == ("dog", "eel", "cat")
    assert data_set.category_ids == (0, 1, 2)
    assert [one.labels.tolist() for one in data_set.objects] == [[0], [2]]
    truth = data_set.ground_truth()
    assert [one["category_id"] for one in truth["annotations"]] == [0, 2]
    assert truth["categories"][2] == {"id": 2, "name": "cat"}
    with pytest.raises(DataError, match="a: the class 'dog' is unknown; allowed: cat"):
        with_class_names(a_set("a", 1), ("cat",))
    no_dogs = subset(a_set("a", 2), [1], "cats")
    assert with_class_names(no_dogs, ("cat",)).category_ids == (0,)
