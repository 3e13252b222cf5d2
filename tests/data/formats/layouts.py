"""Writes data sets in the layouts that annotation tools leave, and compares them."""

import io
import json
import pathlib

import numpy as np
import PIL.Image

from jaxdet.data.formats import coco
from tests.data.in_memory import in_memory_data_set


def example(count=3, *, first=0, class_names=("cat", "dog")):
    """Images of 40 rows and 60 columns; of three, one has no object, one has two."""
    gray = range(first, first + count)
    return in_memory_data_set(
        [np.full((40, 60, 3), value, np.uint8) for value in gray],
        [
            [(1, 2, 31, 12, 1), (5, 10, 20, 40, 0), (0, 0, 60, 9, 1)][: i % 3]
            for i in gray
        ],
        image_ids=[f"image_{value}" for value in gray],
        class_names=class_names,
    )


def blood_cells(data_folder):
    """`bccd`, by split."""
    folder = data_folder / "bccd"
    return {
        split: coco.load(folder / "annotations" / f"{split}.json", folder / "images")
        for split in ("train", "val", "test")
    }


def file_names(data_set):
    """The names of the image files, by position."""
    images = {image["id"]: image for image in data_set.ground_truth()["images"]}
    return [
        pathlib.Path(images[image_id].get("file_name", f"{image_id}.png")).name
        for image_id in data_set.image_ids
    ]


def write_images(folder, data_set):
    """Writes the image files."""
    folder.mkdir(parents=True, exist_ok=True)
    for position, name in enumerate(file_names(data_set)):
        if data_set.read_encoded:
            content = data_set.read_encoded(position)
        else:
            stream = io.BytesIO()
            PIL.Image.fromarray(data_set.read_image(position)).save(stream, "png")
            content = stream.getvalue()
        (folder / name).write_bytes(content)


def write_coco(file, data_set, **categories):
    """Writes a json; `categories` are further keys of its categories."""
    truth = data_set.ground_truth()
    for image, name in zip(truth["images"], file_names(data_set), strict=True):
        image["file_name"] = name
    truth["categories"] = [one | categories for one in truth["categories"]]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(truth))


def coco_folder(folder, splits):
    """`annotations/instances_SPLIT.json`, and images in `SPLIT/`."""
    for split, data_set in splits.items():
        write_coco(folder / "annotations" / f"instances_{split}.json", data_set)
        write_images(folder / split, data_set)


def coco_folder_of_cvat(folder, splits):
    """`annotations/instances_SPLIT.json`, and all images in `images/`."""
    for split, data_set in splits.items():
        write_coco(folder / "annotations" / f"instances_{split}.json", data_set)
        write_images(folder / "images", data_set)


def roboflow_coco(folder, splits):
    """`SPLIT/_annotations.coco.json` and images beside it; val is called valid."""
    for split, data_set in splits.items():
        own = folder / {"val": "valid"}.get(split, split)
        write_coco(own / "_annotations.coco.json", data_set, supercategory="things")
        write_images(own, data_set)


def images_and_json(folder, splits):
    """A folder of its own for each split, with one json beside `images/`."""
    for split, data_set in splits.items():
        write_coco(folder / split / "result.json", data_set)
        write_images(folder / split / "images", data_set)


def assert_same(data_set, expected, tolerance=0.0):
    """The same images, in any order, with the same objects in the same order.

    Images are compared by the stems of their file names, or of their ids where the
    format gives no names; classes by their names.
    """
    assert sorted(data_set.class_names) == sorted(expected.class_names)
    assert len(data_set) == len(expected)
    positions = {_stem(name): i for i, name in enumerate(file_names(expected))}
    for position, name in enumerate(file_names(data_set)):
        other = positions.pop(_stem(name))
        np.testing.assert_array_equal(data_set.sizes[position], expected.sizes[other])
        own, its = data_set.objects[position], expected.objects[other]
        assert own.boxes.shape == its.boxes.shape
        np.testing.assert_allclose(own.boxes, its.boxes, rtol=0, atol=tolerance)
        names = [data_set.class_names[label] for label in own.labels]
        assert names == [expected.class_names[label] for label in its.labels]
        np.testing.assert_array_equal(own.crowd, its.crowd)
        if position == 0:
            pixels = data_set.read_image(position)
            np.testing.assert_array_equal(pixels, expected.read_image(other))
    counts = [len(one.ground_truth()["annotations"]) for one in (data_set, expected)]
    assert counts[0] == counts[1]


def _stem(name):
    return name.rsplit(".", 1)[0]
