import dataclasses
import json
import shutil

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets

from jaxdet.data import prepare
from jaxdet.data.dataset import DataError
from jaxdet.data.formats import coco, tfds

OUTLINE = [[10, 5, 20, 5, 20, 25, 10, 25]]
RUNS = {"size": [30, 40], "counts": [30, 30, 1140]}  # the second column


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The folder of two photographs with three objects, one of them without area."""
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "b.png"):
        pixels = rng.integers(0, 256, (30, 40, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(folder / name)
    keys = ("id", "category_id", "bbox", "iscrowd", "area", "segmentation")
    rows = [
        (0, 9, [10, 5, 10, 20], 0, 150.25, OUTLINE),
        (1, 9, [3, 4, 0, 9], 0, 0, OUTLINE),
        (2, 5, [1, 0, 1, 31], 1, 30, RUNS),  # reaches out by a pixel
    ]
    size = {"height": 30, "width": 40}
    content = {
        "images": [
            {"id": 70, "file_name": "a.jpg", **size},
            {"id": 4, "file_name": "b.png", **size},
        ],
        "annotations": [
            {"image_id": 70, **dict(zip(keys, row, strict=True))} for row in rows
        ],
        "categories": [{"id": 9, "name": "stop sign"}, {"id": 5, "name": "cat"}],
    }
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def data_set(source):
    return coco.load(source / "boxes.json", source, masks=True)


def renamed(data_set, image_ids):
    """The data set, its images called otherwise."""
    truth = data_set.ground_truth()
    new = dict(zip(data_set.image_ids, image_ids, strict=True))
    for annotation in truth["annotations"]:
        annotation["image_id"] = new[annotation["image_id"]]
    return dataclasses.replace(
        data_set, image_ids=tuple(image_ids), ground_truth=lambda: truth
    )


def test_what_is_written_is_read(data_set, source, tmp_path):
    splits = {"train": data_set, "validation": renamed(data_set, (1, 2))}
    folder = prepare.save(splits, tmp_path / "tfds", "photos")
    assert folder == tmp_path / "tfds" / "photos" / "1.0.0"
    found = tfds.load("photos", "train", data_dir=tmp_path / "tfds")
    assert found.class_names == ("cat", "stop sign")
    assert found.image_ids == data_set.image_ids == (70, 4)
    np.testing.assert_array_equal(found.sizes, data_set.sizes)
    for one, other in zip(found.objects, data_set.objects, strict=True):
        np.testing.assert_allclose(one.boxes, other.boxes, rtol=1e-6)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.crowd, other.crowd)
    for position, name in enumerate(("a.jpg", "b.png")):
        assert found.read_encoded(position) == (source / name).read_bytes()
        assert (found.read_image(position) == data_set.read_image(position)).all()
    # Of twenty pixels the first ten lie in the outline's box; of one column all.
    np.testing.assert_allclose(found.read_masks(0, 4), np.ones((2, 4, 4)), atol=1e-5)
    first, second = found.ground_truth()["annotations"]
    assert (first["area"], first["segmentation"]) == (150.25, OUTLINE)
    assert (second["iscrowd"], second["segmentation"]) == (1, RUNS)
    validation = tfds.load_directory(folder, "validation")
    assert validation.image_ids == (1, 2)
    with pytest.raises(DataError, match="allowed: train, validation and slices"):
        tfds.load_directory(folder, "test")


@pytest.fixture(scope="module")
def prepared(data_set, tmp_path_factory):
    return prepare.save({"train": data_set}, tmp_path_factory.mktemp("tfds"), "photos")


def test_it_is_indexed(prepared, monkeypatch):
    monkeypatch.setattr(tfds, "_read_index", lambda *_: pytest.fail("no index"))
    assert len(tfds.load_directory(prepared, "train")) == 2


def test_tfds_reads_it_too(prepared):
    """With its own decoding, and as relative boxes."""
    root = prepared.parents[1]
    source = tensorflow_datasets.data_source("photos", split="train", data_dir=root)
    example = source[0]
    assert example["image"].shape == (30, 40, 3)
    first = example["objects"]["bbox"][0]
    np.testing.assert_allclose(first, [5 / 30, 0.25, 25 / 30, 0.5], rtol=1e-6)


def test_without_masks_and_with_names_for_ids(source, tmp_path):
    data_set = coco.load(source / "boxes.json", source)
    data_set = renamed(data_set, ("VOC2007/a", "ü"))
    folder = prepare.save({"train": data_set}, tmp_path, "photos")
    found = tfds.load_directory(folder, "train")
    assert found.image_ids == ("VOC2007/a", "ü")
    assert found.read_masks is None
    assert "segmentation" not in found.ground_truth()["annotations"][0]


def test_long_splits_lie_in_several_files(data_set, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_SHARD", 1)
    folder = prepare.save({"train": data_set}, tmp_path, "photos")
    assert len(list(folder.glob("*.array_record*"))) == 2
    found = tfds.load_directory(folder, "train")
    assert found.image_ids == (70, 4) and len(found.objects[0].boxes) == 2
    assert tfds.load_directory(folder, "train[1:]").image_ids == (4,)


def test_twice_is_told(data_set, prepared):
    with pytest.raises(DataError, match=r"photos/1\.0\.0: prepared already; delete"):
        prepare.save({"train": data_set}, prepared.parents[1], "photos")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_an_interruption_leaves_nothing(data_set, tmp_path, error):
    def read_encoded(position):
        if position == 1:
            raise error
        return data_set.read_encoded(position)

    interrupted = dataclasses.replace(data_set, read_encoded=read_encoded)
    root = tmp_path / "tfds"
    with pytest.raises((KeyboardInterrupt, OSError)):
        prepare.save({"train": interrupted}, root, "photos")
    assert not list(root.iterdir())
    prepare.save({"train": data_set}, root, "photos")


def test_broken_images_are_told_before_anything_is_written(source, tmp_path):
    folder = shutil.copytree(source, tmp_path / "source")
    (folder / "a.jpg").write_bytes((source / "a.jpg").read_bytes()[:300])
    broken = coco.load(folder / "boxes.json", folder)
    root = tmp_path / "tfds"
    message = r"boxes: 1 of 2 images are broken; the first: .*a\.jpg: "
    with pytest.raises(DataError, match=message):
        prepare.save({"train": broken}, root, "photos")
    assert not root.exists()


@pytest.mark.parametrize("name", ["Photos", "my photos", "", "a/b", "1st", "../a"])
def test_names_that_are_not_allowed(data_set, tmp_path, name):
    with pytest.raises(DataError, match=r"the data set cannot be called.*lower case"):
        prepare.save({"train": data_set}, tmp_path, name)
    with pytest.raises(DataError, match=r"the split cannot be called.*lower case"):
        prepare.save({name: data_set}, tmp_path, "photos")


@pytest.mark.parametrize("name", ["voc", "coco", "kitti"])
def test_names_of_tfds_are_not_taken(data_set, tmp_path, name):
    with pytest.raises(DataError, match=f"'{name}' is that of one of TFDS's own"):
        prepare.save({"train": data_set}, tmp_path, name)


def test_splits_that_do_not_fit(data_set, tmp_path):
    others = dataclasses.replace(data_set, class_names=("cat", "dog"))
    unmasked = dataclasses.replace(data_set, read_masks=None)
    for other, what in ((others, "classes"), (unmasked, "masks")):
        with pytest.raises(DataError, match=f"train, test: one has other {what}"):
            prepare.save({"train": data_set, "test": other}, tmp_path, "photos")
    for name in ("", " dog", "two\nlines"):
        odd = dataclasses.replace(data_set, class_names=("cat", name))
        with pytest.raises(DataError, match="train: a class is called"):
            prepare.save({"train": odd}, tmp_path, "photos")
