"""The same images and boxes in each layout are the same data set."""

import json
import pathlib

import numpy as np
import pytest

from jaxdet.data.formats import coco, createml, metadata_jsonl, voc, voc_flat, yolo
from tests.data.formats import folders
from tests.data.in_memory import in_memory_data_set


def yolo_folders(data_set, root, images, split="train"):
    """As Roboflow leaves it: a path that is wrong by one level."""
    folders.write_yolo(
        data_set, root / split / "images", root / split / "labels", images
    )
    names = list(data_set.class_names)
    text = f"train: ../{split}/images\nval: ../valid/images\n\nnc: {len(names)}\n"
    (root / "data.yaml").write_text(text + f"names: {names}\n")
    return yolo.load(root, split)


def yolo_split_inside(data_set, root, images):
    """As Ultralytics leaves it: a folder of each split in images and in labels."""
    folders.write_yolo(
        data_set, root / "images" / "train", root / "labels" / "train", images
    )
    names = "".join(f"  {k}: {name}\n" for k, name in enumerate(data_set.class_names))
    (root / "cells.yaml").write_text(f"path: .\ntrain: images/train\nnames:\n{names}")
    return yolo.load(root / "cells.yaml", "train")


def yolo_list(data_set, root, images):
    """As Darknet takes it: text files with the images, labels beside them."""
    folders.write_yolo(
        data_set, root / "obj_train_data", root / "obj_train_data", images
    )
    listed = sorted((root / "obj_train_data").glob("*.jpg"))
    lines = [f"data/obj_train_data/{path.name}\n" for path in listed]
    (root / "train.txt").write_text("".join(lines))
    names = json.dumps(data_set.class_names)
    (root / "data.yaml").write_text(f"train: train.txt\nnames: {names}")
    return yolo.load(root, "train")


def yolo_without_yaml(data_set, root, images):
    """As Label Studio leaves it."""
    folders.write_yolo(data_set, root / "images", root / "labels", images)
    (root / "classes.txt").write_text("\n".join(data_set.class_names) + "\n")
    return yolo.load(root)


def voc_beside(data_set, root, images):
    """As labelImg leaves it."""
    folders.write_voc_xml(data_set, root, root, images)
    return voc_flat.load(root, class_names=data_set.class_names)


def voc_neighbor(data_set, root, images):
    """As Kaggle's sets are."""
    folders.write_voc_xml(data_set, root / "images", root / "annotations", images)
    return voc_flat.load(root, class_names=data_set.class_names)


def voc_splits(data_set, root, images):
    """As Roboflow leaves it."""
    folders.write_voc_xml(data_set, root / "train", root / "train", images)
    return voc_flat.load(root, "train", class_names=data_set.class_names)


def voc_devkit(data_set, root, images):
    """As the challenges are, and as CVAT leaves it: lists of one line an image."""
    folders.write_voc_xml(data_set, root / "JPEGImages", root / "Annotations", images)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    stems = [path.stem for path in (root / "JPEGImages").iterdir()]
    (root / "ImageSets" / "Main" / "default.txt").write_text("\n".join(stems))
    return voc.load(root, split="default", class_names=data_set.class_names)


def metadata_in_split(data_set, root, images):
    folders.write_metadata_jsonl(data_set, root / "train", images)
    return metadata_jsonl.load(root, "train", class_names=data_set.class_names)


def metadata_at_the_top(data_set, root, images):
    folders.write_metadata_jsonl(data_set, root, images, key="category")
    return metadata_jsonl.load(root, class_names=data_set.class_names)


def createml_in_split(data_set, root, images):
    folders.write_createml(data_set, root / "train", images)
    return createml.load(root, "train", class_names=data_set.class_names)


LAYOUTS = [
    *(yolo_folders, yolo_split_inside, yolo_list, yolo_without_yaml),
    *(voc_beside, voc_neighbor, voc_splits, voc_devkit),
    *(metadata_in_split, metadata_at_the_top, createml_in_split),
]


def drawn():
    """Three images, one of them without objects, and paths of none."""
    objects = [[(0, 0, 60, 40, 0), (3.25, 4.5, 9, 11.125, 2)], [], [(1, 2, 3, 4, 1)]]
    images = [np.zeros((height, width, 3), np.uint8) for height, width in SIZES]
    names = ("zebra", "ant", "my gnu")
    ids = ("b", "my img 1", "a.rf.1")
    data_set = in_memory_data_set(images, objects, image_ids=ids, class_names=names)
    return data_set, None


SIZES = [(40, 60), (30, 20), (64, 64)]


def assert_same(data_set, expected, stems):
    """Compares images in any order; their ids end in stems."""
    assert data_set.class_names == expected.class_names
    assert len(data_set) == len(expected)
    positions = {
        pathlib.PurePath(image_id).name.removesuffix(".jpg"): position
        for position, image_id in enumerate(data_set.image_ids)
    }
    truth = data_set.ground_truth()["annotations"]
    assert len(truth) == sum(len(one.labels) for one in expected.objects)
    for position, stem in enumerate(stems):
        own, wanted = positions[stem], expected.objects[position]
        np.testing.assert_array_equal(data_set.sizes[own], expected.sizes[position])
        found = data_set.objects[own]
        np.testing.assert_allclose(found.boxes, wanted.boxes, atol=2e-3)
        np.testing.assert_array_equal(found.labels, wanted.labels)
        np.testing.assert_array_equal(found.crowd, wanted.crowd)
    assert data_set.read_image(own).shape[:2] == tuple(expected.sizes[-1])
    assert data_set.read_encoded(own)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_drawn_images(tmp_path, layout):
    expected, images = drawn()
    data_set = layout(expected, tmp_path, images)
    assert_same(data_set, expected, expected.image_ids)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_photographs(tmp_path, data_folder, layout):
    file = data_folder / "bccd" / "annotations" / "val.json"
    expected = coco.load(file, data_folder / "bccd" / "images")
    names = {one["id"]: one["file_name"] for one in expected.ground_truth()["images"]}
    images = [
        data_folder / "bccd" / "images" / names[image_id]
        for image_id in expected.image_ids
    ]
    data_set = layout(expected, tmp_path, images)
    assert_same(data_set, expected, [image.stem for image in images])
