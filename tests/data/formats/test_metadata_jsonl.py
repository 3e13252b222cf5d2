import json

import numpy as np
import PIL.Image
import pytest

from jaxdet.data.dataset import DataError
from jaxdet.data.formats import LoadOptions, metadata_jsonl

SKIP = LoadOptions(bad_boxes="skip")


@pytest.fixture
def folder(tmp_path):
    """Writes the lines of a file, and images of 40 x 20 pixels."""

    def write(lines, images=("a.jpg",), file="metadata.jsonl"):
        for path in (*images, file):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        for image in images:
            PIL.Image.new("RGB", (40, 20), "red").save(tmp_path / image)
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (tmp_path / file).write_text("\n".join(texts))
        return tmp_path

    return write


def line(name="a.jpg", boxes=((1, 2, 3, 4),), categories=("cat",), **others):
    objects = {"bbox": boxes, "categories": categories}
    return {"file_name": name, "objects": objects} | others


def test_by_hand(folder, caplog):
    first = line(boxes=[[10, 5, 20.5, 10], [0, 0, 0, 9]], categories=["dog", "cat"])
    empty = {"file_name": "b/b.png", "objects": {"bbox": [], "category": []}}
    root = folder(
        ["", first, empty, {"file_name": "c.jpg"}], ["a.jpg", "b/b.png", "c.jpg"]
    )
    assert metadata_jsonl.recognize(root) and metadata_jsonl.splits(root) == ()
    data = metadata_jsonl.load(root)
    assert data.image_ids == ("a.jpg", "b/b.png", "c.jpg")
    assert data.class_names == ("cat", "dog")
    np.testing.assert_array_equal(data.objects[0].boxes, [[10, 5, 30.5, 15]])
    assert [one.labels.tolist() for one in data.objects] == [[1], [], []]
    assert len(data.ground_truth()["annotations"]) == 1
    assert "dropped 1 objects without area" in caplog.text
    assert len(metadata_jsonl.load(root / "metadata.jsonl")) == 3


def test_splits(folder):
    root = folder([line()], ["train/a.jpg"], "train/metadata.jsonl")
    folder([line("b.jpg")], ["validation/b.jpg"], "validation/metadata.jsonl")
    assert metadata_jsonl.splits(root) == ("train", "validation")
    assert metadata_jsonl.load(root, "train").image_ids == ("train/a.jpg",)
    with pytest.raises(DataError, match="no images of split 'test'"):
        metadata_jsonl.load(root, "test")


def test_splits_of_one_file(folder):
    images = ["train/a.jpg", "test/b.jpg"]
    root = folder(list(map(line, images)), images)
    assert metadata_jsonl.splits(root) == ("train", "test")
    assert metadata_jsonl.load(root, "test").image_ids == ("test/b.jpg",)


def test_paths_of_windows(folder):
    root = folder([line("train\\a.jpg")], ["train/a.jpg"])
    assert metadata_jsonl.splits(root) == ("train",)
    assert metadata_jsonl.load(root, "train").image_ids == ("train/a.jpg",)


def test_categories_that_are_numbers(folder):
    boxes = [[1, 2, 3, 4]] * 3
    root = folder([line(boxes=boxes, categories=[10, 9, 0])])
    data = metadata_jsonl.load(root)
    assert data.class_names == ("0", "9", "10")
    assert data.objects[0].labels.tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("{", "not json"),
        ("[1]", "file_name is None; allowed: an image's path"),
        ({"file_name": 3}, "file_name is 3"),
        (line(objects=[]), r"objects is \[\]; allowed: \{.bbox"),
        (line(objects={"bbox": []}), "objects: categories is None; allowed: a list"),
        (line(boxes=None), "objects: bbox is None"),
        (line(boxes=[]), "bbox has 0 boxes, categories 1; allowed: one for each"),
        (line(categories=[None]), "category is None; allowed: a name or a number"),
        (line(categories=[True]), "category is True"),
        (line(name="b.jpg"), r"there is no image .*b\.jpg"),
    ],
)
def test_bad_lines_are_named(folder, bad, problem):
    root = folder([line(), bad])
    with pytest.raises(DataError, match=rf"metadata\.jsonl: line 2: .*{problem}"):
        metadata_jsonl.load(root, options=SKIP)


def test_an_image_twice_is_named(folder):
    with pytest.raises(DataError, match=r"line 2: a\.jpg stands in .*line 1 too"):
        metadata_jsonl.load(folder([line(), line()]))


@pytest.mark.parametrize(
    "box",
    [[1, 2, 3], "1 2 3 4", [1, 2, None, 4], [1, 2, 3, float("nan")], [9, 9, 9, 99]],
)
def test_bad_boxes_are_named_or_dropped(folder, caplog, box):
    root = folder([line(boxes=[box, [1, 2, 3, 4]], categories=["dog", "cat"])])
    with pytest.raises(
        DataError, match=r"line 1: dog has the box .*width 40.*drops it"
    ):
        metadata_jsonl.load(root)
    data = metadata_jsonl.load(root, options=SKIP)
    assert data.class_names == ("cat",) and len(data.objects[0].boxes) == 1
    assert "dropped 1 objects with bad boxes" in caplog.text


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "metadata.jsonl").symlink_to(tmp_path / "lost")
    assert metadata_jsonl.recognize(tmp_path)
    with pytest.raises(DataError, match=r"metadata\.jsonl: cannot be read"):
        metadata_jsonl.load(tmp_path)


def test_captions_are_no_objects(folder):
    assert not metadata_jsonl.recognize(folder([{"file_name": "a.jpg", "text": "a"}]))
    assert not metadata_jsonl.recognize(folder([], [], "other.json") / "lost")
