import logging

import numpy as np
import PIL.Image
import pycocotools.mask
import pytest

from jaxdet.data.dataset import DataError
from jaxdet.data.formats import LoadOptions, yolo

SKIP = LoadOptions(bad_boxes="skip")
MASKS = LoadOptions(masks=True)


@pytest.fixture
def folder(tmp_path):
    """Writes images of 40 x 20 pixels; by stem, what stands in their label files."""

    def write(labels, options=""):
        for part in ("images", "labels"):
            (tmp_path / part).mkdir(exist_ok=True)
        for stem, text in labels.items():
            image = PIL.Image.new("RGB", (40, 20), "red")
            image.save(tmp_path / "images" / f"{stem}.jpg")
            if text is not None:
                (tmp_path / "labels" / f"{stem}.txt").write_text(text)
        names = "names: [cat, dog]\n"
        (tmp_path / "data.yaml").write_text(f"train: images\n{names}{options}")
        return tmp_path

    return write


def test_boxes_and_polygons_by_hand(folder):
    root = folder(
        {
            "b": "\ufeff1 0.5 0.5 0.5 0.2\r\n\r\n0.0 0.25 1 0.5 0.5 0 0.5 \r\n",
            "a": "",
        }
    )
    data = yolo.load(root)
    assert data.name == f"{root.name} train"
    assert data.class_names == ("cat", "dog") and data.category_ids == (0, 1)
    assert data.image_ids == ("images/a.jpg", "images/b.jpg")
    np.testing.assert_array_equal(data.sizes, [[20, 40]] * 2)
    nothing, found = data.objects
    assert nothing.boxes.shape == (0, 4)
    # A box of the center (20, 10); a triangle's smallest box.
    np.testing.assert_allclose(found.boxes, [[10, 8, 30, 12], [0, 10, 20, 20]])
    np.testing.assert_array_equal(found.labels, [1, 0])
    assert not found.crowd.any() and data.read_masks is None
    assert [values.dtype for values in found] == [np.float32, np.int32, bool]
    boxes = [one["bbox"] for one in data.ground_truth()["annotations"]]
    np.testing.assert_allclose(boxes, [[10, 8, 20, 4], [0, 10, 20, 10]])
    assert data.read_image(1).shape == (20, 40, 3)


def test_polygons_are_masks(folder):
    text = "1 0.25 1 0.5 0.5 0 0.5\n0 0 0 0.5 0 0.5 0.5 0 0.5\n"
    data = yolo.load(folder({"a": text}), options=MASKS)
    np.testing.assert_allclose(data.objects[0].boxes, [[0, 10, 20, 20], [0, 0, 20, 10]])
    triangle, square = data.read_masks(0, 4)
    np.testing.assert_array_equal(square, np.ones((4, 4)))
    assert triangle[0, 1] == 1 and triangle[3, 0] == 0
    truth = data.ground_truth()["annotations"]
    assert truth[0]["segmentation"] == [[10, 20, 20, 10, 0, 10]]
    assert [one["area"] for one in truth] == [100, 200]  # by hand
    runs = pycocotools.mask.frPyObjects(truth[1]["segmentation"], 20, 40)
    assert pycocotools.mask.area(runs) == [200]


def test_box_instead_of_a_polygon(folder, caplog):
    root = folder({"a": "1 0.5 0.5 0.5 0.2\n0 0 0 0.5 0 0.5 0.5 0 0.5\n"})
    with pytest.raises(DataError, match=r"line 1 is '1 .*allowed: polygons"):
        yolo.load(root, options=MASKS)
    data = yolo.load(root, options=LoadOptions(bad_boxes="skip", masks=True))
    assert data.objects[0].labels.tolist() == [0] and len(data.read_masks(0, 2)) == 1
    assert "dropped 1 objects with bad boxes or segmentations" in caplog.text


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("0 0.5 0.5 0.5", "is '0 0.5 0.5 0.5'; allowed: class x y width height, or"),
        ("0 0.5 0.5 0.5 0.2 0.9", "allowed: class x y width height, or"),
        ("0 0.5 0.5 nan 0.2", "all numbers"),
        ("0 0 0 1 0 inf 1", "all numbers"),
        ("cat 0.5 0.5 0.5 0.2", "is 'cat 0.5 .*all numbers"),
        ("0", "is '0'"),
        (
            "0 20 10 20 4",
            "fractions, from 0 to 1, of an image of height 20 and width 4",
        ),
        ("0 0.5 0.5 1.2 0.2", "fractions"),
        ("0 0.5 0.2 0.5 0.7", "give or take 2 pixels"),
    ],
)
def test_bad_lines_are_named_or_dropped(folder, caplog, line, problem):
    root = folder({"a": f"\n{line}\n1 0.5 0.5 0.5 0.2\n"})
    with pytest.raises(DataError, match=rf"a\.txt: line 2 .*{problem}.*drops it"):
        yolo.load(root)
    data = yolo.load(root, options=SKIP)
    np.testing.assert_allclose(data.objects[0].boxes, [[10, 8, 30, 12]])
    assert len(data.ground_truth()["annotations"]) == 1
    assert "train: dropped 1 objects with bad boxes" in caplog.text


@pytest.mark.parametrize("label", ["2", "-1", "0.5", "nan", "1e99"])
def test_unknown_classes_are_named(folder, label):
    root = folder({"a": f"{label} 0.5 0.5 0.5 0.2\n"})
    problem = (
        rf"a\.txt: line 1 has the class {float(label):g}; allowed: 0 to 1 \(cat, d"
    )
    with pytest.raises(DataError, match=problem.replace("+", r"\+")):
        yolo.load(root, options=SKIP)


def test_boxes_reach_out_a_little_or_have_no_area(folder, caplog):
    text = "0 0.5 0.5 1.05 0.2\n0 0.5 0.5 0 0.2\n1 0.5 0.5 -0.1 0.2\n"
    data = yolo.load(folder({"a": text}))
    np.testing.assert_allclose(data.objects[0].boxes, [[0, 8, 40, 12]])
    assert len(data.ground_truth()["annotations"]) == 1
    assert "train: dropped 2 objects without area" in caplog.text


def test_images_without_a_label_file_are_counted(folder, caplog):
    root = folder({"a": "0 0.5 0.5 0.5 0.2", "b": None, "c": ""})
    with caplog.at_level(logging.WARNING):
        data = yolo.load(root)
    assert [len(one.labels) for one in data.objects] == [1, 0, 0]
    assert "train: 1 of 3 images have no label file" in caplog.text


def test_no_label_file_at_all_is_an_error(folder):
    root = folder({"a": None, "b": None})
    with pytest.raises(DataError, match=r"none of 2 images .*labels/a\.txt"):
        yolo.load(root)


def test_of_two_images_with_one_label_file_none_is_chosen(folder):
    root = folder({"a": "", "b": None})
    (root / "images" / "b.jpg").rename(root / "images" / "a.png")
    with pytest.raises(DataError, match=r"a\.txt: its image is .*a\.jpg or .*a\.png"):
        yolo.load(root)


def test_label_files_beside_the_images(folder):
    root = folder({"a": None})
    (root / "images" / "a.txt").write_text("0 0.5 0.5 0.5 0.2")
    assert len(yolo.load(root).objects[0].labels) == 1


def test_keypoints_are_left_out(folder):
    root = folder({"a": "0 0.5 0.5 0.5 0.2 0.1 0.1 2 0.9 0.9 1"}, "kpt_shape: [2, 3]\n")
    np.testing.assert_allclose(yolo.load(root).objects[0].boxes, [[10, 8, 30, 12]])


def test_sizes_are_of_images_turned_by_exif(folder):
    root = folder({"a": "0 0.5 0.5 0.5 0.2"})
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (20, 40)).save(root / "images" / "a.jpg", exif=exif)
    data = yolo.load(root)
    np.testing.assert_array_equal(data.sizes, [[20, 40]])
    assert data.read_image(0).shape == (20, 40, 3)


def test_broken_images_and_splits_are_named(folder):
    root = folder({"a": ""})
    with pytest.raises(DataError, match=r"no split 'test'; allowed: train"):
        yolo.load(root, "test")
    (root / "images" / "a.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"a\.jpg: not an image"):
        yolo.load(root)
