import numpy as np
import PIL.Image
import pytest

from jaxdet.data.dataset import DataError
from jaxdet.data.formats import LoadOptions, voc_flat
from tests.data.formats.test_voc import CAT, thing

SKIP = LoadOptions(bad_boxes="skip")


@pytest.fixture
def folder(tmp_path):
    """Writes images of 60 x 40 pixels, and xml files with what stands in them."""

    def write(**files):
        for path, content in files.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                PIL.Image.new("RGB", (60, 40), "red").save(file)
            else:
                file.write_text(f"<annotation>{content}</annotation>")
        return tmp_path

    return lambda files: write(**files)


def test_labelimg_by_hand(folder, caplog):
    files = {"b.xml": CAT + thing("ant", 11, 21, 60, 40), "b.jpg": None, "a.JPG": None}
    root = folder(files | {"c.xml": "", "c.png": None, "classes.txt": ""})
    assert voc_flat.recognize(root) and voc_flat.splits(root) == ()
    data = voc_flat.load(root)
    assert data.name == root.name and data.class_names == ("ant", "cat")
    assert data.image_ids == ("b.jpg", "c.png")
    np.testing.assert_array_equal(data.sizes, [[40, 60]] * 2)  # of the images
    found, nothing = data.objects
    np.testing.assert_array_equal(found.boxes, [[0, 0, 9, 9], [10, 20, 60, 40]])
    assert found.labels.tolist() == [1, 0] and not len(nothing.boxes)
    assert "left out 1 images without an xml" in caplog.text  # a.JPG


def test_splits_are_folders(folder):
    files = {"images/train/a.jpg": None, "notes/train/a.xml": CAT}
    root = folder(files | {"Test/b.jpg": None, "Test/b.xml": "", "d.jpg": None})
    assert voc_flat.splits(root) == ("train", "Test")
    assert voc_flat.load(root, "train").image_ids == ("images/train/a.jpg",)
    assert voc_flat.load(root, "Test").name == f"{root.name} Test"
    with pytest.raises(DataError, match="split 'val'; allowed: train, Test"):
        voc_flat.load(root, "val")
    folder({"c.xml": "", "c.jpg": None})
    with pytest.raises(DataError, match=r"c\.xml is in no folder of a split"):
        voc_flat.splits(root)


@pytest.mark.parametrize(
    ("files", "image"),
    [
        ({"x/a.xml": "", "i/a.jpg": None}, "i/a.jpg"),
        ({"a.jpg.xml": "", "a.jpg": None}, "a.jpg"),
        ({"1.xml": r"<filename>C:\in\a.jpg</filename>", "a.jpg": None}, "a.jpg"),
        # The name of the xml counts more than what a copy of it may still say.
        (
            {"b.xml": "<filename>a.jpg</filename>", "a.jpg": None, "b.jpg": None},
            "b.jpg",
        ),
        ({"x/a.xml": "", "x/a.jpg": None, "y/a.jpg": None}, "x/a.jpg"),
        ({"l/2/a.xml": "", "i/1/a.jpg": None, "i/2/a.jpg": None}, "i/2/a.jpg"),
        (
            {"a.xml": "<filename>a.png</filename>", "a.jpg": None, "a.png": None},
            "a.png",
        ),
        ({"a.xml": "", "a.jpg": None, "._a.jpg": None}, "a.jpg"),
    ],
)
def test_the_image_of_an_xml(folder, files, image):
    assert voc_flat.load(folder(files)).image_ids == (image,)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"a.xml": "", "a.jpg": None, "a.png": None}, r"a\.jpg or .*a\.png, and"),
        ({"a.xml": "<filename>b.jpg</filename>"}, r"no image a and none .*'b\.jpg'"),
        (
            {"a.xml": "", "b.xml": "<filename>a.jpg</filename>", "a.jpg": None},
            r"b\.xml: .*a\.jpg is the image of .*a\.xml too",
        ),
        (
            {"a.xml": thing("cat", 1, 1, 99, 9), "a.jpg": None},
            r"cat has .* 99.0, 9.0\]",
        ),
        ({"a.xml": CAT + "<object>", "a.jpg": None}, r"a\.xml: not xml"),
    ],
)
def test_bad_folders_are_named(folder, files, problem):
    root = folder(files)
    assert voc_flat.recognize(root)
    with pytest.raises(DataError, match=problem):
        voc_flat.load(root)


def test_other_xml_is_named(folder):
    root = folder({"a.xml": CAT, "a.jpg": None})
    (root / "b.xml").write_text("<annotations/>")
    with pytest.raises(DataError, match=r"b\.xml: its root is <annotations>; allowed"):
        voc_flat.load(root)
    (root / "a.xml").unlink()
    assert not voc_flat.recognize(root)


def test_bad_boxes_and_boxes_without_area(folder, caplog):
    content = thing("cat", 1, 1, 99, 9) + thing("dog", 5, 5, 3, 9) + CAT
    data = voc_flat.load(folder({"a.xml": content, "a.jpg": None}), options=SKIP)
    assert len(data.objects[0].labels) == len(data.ground_truth()["annotations"]) == 1
    assert "dropped 1 objects with bad boxes" in caplog.text
    assert "dropped 1 objects without area" in caplog.text


def test_the_devkit_is_no_flat_folder(folder):
    root = folder({"VOC2007/Annotations/a.xml": "", "VOC2007/JPEGImages/a.jpg": None})
    assert voc_flat.recognize(root)
    lists = root / "VOC2007" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a")
    assert not voc_flat.recognize(root) and not voc_flat.recognize(root / "VOC2007")
    assert not voc_flat.recognize(root / "lost")
