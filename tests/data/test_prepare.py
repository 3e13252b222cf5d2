import dataclasses
import json

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets

from jaxdet.data import prepare
from jaxdet.data.dataset import DataError
from jaxdet.data.formats import coco, tfds

OUTLINE = [[10, 5, 20, 5, 20, 25, 10, 25]]
RUNS = {"size": [30, 40], "counts": [30, 30, 1140]}  # the second column


@pytest.fixture
def source(tmp_path, rng):
    """The folder of two photographs with three objects, one of them without area."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("a.jpg", "b.png"):
        pixels = rng.integers(0, 256, (30, 40, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(folder / name)
    rows = [
        (1, [10, 5, 10, 20], 0, 150.25, OUTLINE),
        (1, [3, 4, 0, 9], 0, 0, OUTLINE),
        (0, [1, 0, 1, 31], 1, 30, RUNS),  # reaches out by a pixel
    ]
    content = {
        "images": [
            {"id": 70, "file_name": "a.jpg", "height": 30, "width": 40},
            {"id": 4, "file_name": "b.png", "height": 30, "width": 40},
        ],
        "annotations": [
            {
                "id": number,
                "image_id": 70,
                "category_id": (5, 9)[label],
                "bbox": box,
                "iscrowd": crowd,
                "area": area,
                "segmentation": outline,
            }
            for number, (label, box, crowd, area, outline) in enumerate(rows)
        ],
        "categories": [{"id": 9, "name": "stop sign"}, {"id": 5, "name": "cat"}],
    }
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
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
        np.testing.assert_array_equal(
            found.read_image(position), data_set.read_image(position)
        )
    # Of twenty pixels the first ten lie in the outline's box; of one column all.
    np.testing.assert_allclose(found.read_masks(0, 4), np.ones((2, 4, 4)), atol=1e-5)
    first, second = found.ground_truth()["annotations"]
    assert (first["area"], first["segmentation"]) == (150.25, OUTLINE)
    assert (second["iscrowd"], second["segmentation"]) == (1, RUNS)
    validation = tfds.load_directory(folder, "validation")
    assert validation.image_ids == (1, 2)
    with pytest.raises(DataError, match="allowed: train, validation and slices"):
        tfds.load_directory(folder, "test")


def test_it_is_indexed(data_set, tmp_path, monkeypatch):
    folder = prepare.save({"train": data_set}, tmp_path, "photos")
    monkeypatch.setattr(tfds, "_read_index", lambda *_: pytest.fail("no index"))
    assert len(tfds.load_directory(folder, "train")) == 2


def test_tfds_reads_it_too(data_set, tmp_path):
    """With its own decoding, and as relative boxes."""
    prepare.save({"train": data_set}, tmp_path, "photos")
    source = tensorflow_datasets.data_source("photos", split="train", data_dir=tmp_path)
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


def test_twice_is_told(data_set, tmp_path):
    prepare.save({"train": data_set}, tmp_path, "photos")
    with pytest.raises(DataError, match=r"photos/1\.0\.0: prepared already; delete"):
        prepare.save({"train": data_set}, tmp_path, "photos")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_an_interruption_leaves_nothing(data_set, tmp_path, error):
    def read_encoded(position):
        if position == 1:
            raise error
        return data_set.read_encoded(position)

    interrupted = dataclasses.replace(data_set, read_encoded=read_encoded)
    root = tmp_path / "tfds"
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        prepare.save({"train": interrupted}, root, "photos")
    assert not list(root.iterdir())
    prepare.save({"train": data_set}, root, "photos")


def test_broken_images_are_told_before_anything_is_written(source, data_set, tmp_path):
    content = (source / "a.jpg").read_bytes()
    (source / "a.jpg").write_bytes(content[:300])
    root = tmp_path / "tfds"
    message = r"boxes: 1 of 2 images are broken; the first: .*a\.jpg: "
    with pytest.raises(DataError, match=message):
        prepare.save({"train": data_set}, root, "photos")
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


def test_splits_that_do_not_fit(source, data_set, tmp_path):
    others = dataclasses.replace(data_set, class_names=("cat", "dog"))
    with pytest.raises(DataError, match="train, test: one has other classes"):
        prepare.save({"train": data_set, "test": others}, tmp_path, "photos")
    unmasked = coco.load(source / "boxes.json", source)
    with pytest.raises(DataError, match="train, test: one has other masks"):
        prepare.save({"train": data_set, "test": unmasked}, tmp_path, "photos")
    for name in ("", " dog", "two\nlines"):
        odd = dataclasses.replace(data_set, class_names=("cat", name))
        with pytest.raises(DataError, match="train: a class is called"):
            prepare.save({"train": odd}, tmp_path, "photos")
