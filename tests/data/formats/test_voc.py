import logging
import time

import numpy as np
import PIL.Image
import pytest

from jaxdet.data.dataset import DataError
from jaxdet.data.formats import voc

SIZE = "<size><width>60</width><height>40</height><depth>3</depth></size>"


def thing(name, *corners, difficult=None, inside=""):
    tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    flag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{flag}<bndbox>{box}</bndbox>{inside}</object>"


CAT = thing("cat", 1, 1, 9, 9)


@pytest.fixture
def folder(tmp_path):
    """Writes a VOC folder; by stem, what stands in its annotation."""

    def write(contents, name="VOC2007", split="trainval", size=SIZE):
        root = tmp_path / name
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / part).mkdir(parents=True, exist_ok=True)
        for stem, content in contents.items():
            text = f"<annotation>{size}{content}</annotation>"
            (root / "Annotations" / f"{stem}.xml").write_text(text)
            image = PIL.Image.new("RGB", (60, 40), "red")
            image.save(root / "JPEGImages" / f"{stem}.jpg")
        lines = "".join(f"{stem}\n" for stem in contents)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(lines)
        return root

    return write


def test_a_small_folder_by_hand(folder):
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    root = folder(
        {
            "000012": thing("person", 1, 1, 60, 40, difficult=0, inside=part)
            + thing("cat", 11, 21, 11.5, 30, difficult=1),
            "000005": "",
        }
    )
    data = voc.load(root)
    assert data.name == "VOC2007 trainval"
    assert data.class_names == ("cat", "person")  # those found, in order
    assert data.category_ids == (0, 1)
    assert data.image_ids == ("000012", "000005")  # in the order of the split
    np.testing.assert_array_equal(data.sizes, [[40, 60], [40, 60]])
    found, nothing = data.objects
    # Pixels 1 to 60 of 60 are the edges 0 and 60.
    np.testing.assert_array_equal(found.boxes, [[0, 0, 60, 40], [10, 20, 11.5, 30]])
    np.testing.assert_array_equal(found.labels, [1, 0])
    np.testing.assert_array_equal(found.crowd, [False, True])
    assert nothing.boxes.shape == (0, 4)
    for objects in data.objects:
        kinds = [values.dtype for values in objects]
        assert kinds == [np.float32, np.int32, bool]
    assert data.read_image(1).shape == (40, 60, 3)
    encoded = (root / "JPEGImages" / "000005.jpg").read_bytes()
    assert data.read_encoded(1) == encoded
    truth = data.ground_truth()
    assert truth["images"][1] == {"id": "000005", "height": 40, "width": 60}
    plain, difficult = truth["annotations"]
    assert plain["iscrowd"] == 0 and plain["bbox"] == [0, 0, 60, 40]
    assert plain["area"] == 2400 and plain["category_id"] == found.labels[0]
    assert difficult["iscrowd"] == 1 and difficult["bbox"] == [10, 20, 1.5, 10]


def test_boxes_that_reach_out_a_little_are_clipped(folder, caplog):
    outside = thing("cat", -1, 0, 62, 42) + thing("dog", 61, 5, 62, 9)
    with caplog.at_level(logging.WARNING):
        data = voc.load(folder({"a": outside}))
    np.testing.assert_array_equal(data.objects[0].boxes, [[0, 0, 60, 40]])
    assert "VOC2007 trainval: dropped 1 objects without area" in caplog.text


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (thing("cat", -2, 1, 9, 9), r"cat has .*-2.0, 1.0, 9.0, 9.0\].*height 40"),
        (thing("cat", 1, 1, 9, 43), r"43.0\]; allowed: within .* 2 pixels"),
        (thing("cat", 1, 1, "wide", 9), "bndbox/xmax is 'wide'; allowed: a finite"),
        (thing("cat", 1, 1, "nan", 9), "bndbox/xmax is 'nan'"),
        ("<object><name>cat</name></object>", "bndbox/xmin is None"),
        (thing("", 1, 1, 9, 9), "an object has no name"),
        (thing("cat", 1, 1, 9, 9, difficult="a bit"), "difficult 'a bit'; allowed: 0"),
        ("<object>", "not xml"),
    ],
)
def test_bad_annotations_are_named(folder, content, problem):
    with pytest.raises(DataError, match=rf"a\.xml: .*{problem}"):
        voc.load(folder({"a": content}))


@pytest.mark.parametrize("encoding", ["x", "utf-7"])
def test_encodings_that_are_unknown_are_named(folder, encoding):
    root = folder({"a": ""})
    text = f"<?xml version='1.0' encoding='{encoding}'?><annotation/>"
    (root / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(DataError, match=r"a\.xml: not xml .*encoding"):
        voc.load(root)


@pytest.mark.parametrize("side", ["-2", "40.5", "tall", "1e9", "1e300"])
def test_bad_sizes_are_named(folder, side):
    with pytest.raises(DataError, match=r"a\.xml: .*height.*allowed"):
        voc.load(folder({"a": ""}, size=SIZE.replace("40", side)))


def test_sizes_are_those_of_the_images(folder):
    data = voc.load(folder({"a": CAT}, size=""))
    np.testing.assert_array_equal(data.sizes, [[40, 60]])
    for side in ("0", "-1", "", "0.0", " "):
        for replaced in ("40", "60"):
            size = SIZE.replace(replaced, side)
            data = voc.load(folder({"a": CAT}, size=size))
            np.testing.assert_array_equal(data.sizes, [[40, 60]])
    data = voc.load(folder({"a": ""}, size=SIZE.replace("40", "50")))
    with pytest.raises(DataError, match=r"a\.jpg: .*\(40, 60\).*\(50, 60\), as in .*a"):
        data.read_image(0)


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("Annotations/a.xml", r"a\.xml: cannot be read"),
        ("JPEGImages/a.jpg", r"1 of 2 images do not exist, .*JPEGImages/a\.jpg"),
        ("ImageSets/Main/trainval.txt", r"trainval\.txt: cannot .* splits: test"),
    ],
)
def test_missing_files_are_named(folder, file, problem):
    root = folder({"a": "", "b": ""})
    (root / "ImageSets" / "Main" / "test.txt").write_text("a\n")
    (root / "ImageSets" / "Main" / "cat_test.txt").write_text("a -1\n")
    (root / file).unlink()
    with pytest.raises(DataError, match=problem):
        voc.load(root)


@pytest.mark.parametrize(
    ("lines", "problem"), [("", "empty"), ("\n", "empty"), ("a\na\n", "twice")]
)
def test_bad_splits_are_named(folder, lines, problem):
    root = folder({"a": ""})
    (root / "ImageSets" / "Main" / "trainval.txt").write_text(lines)
    with pytest.raises(DataError, match=rf"trainval\.txt: .*{problem}"):
        voc.load(root)


def test_splits_of_one_class_and_images_of_another_kind(folder):
    root = folder({"a": "", "b": ""})
    (root / "ImageSets" / "Main" / "cat_test.txt").write_text("b  1\na -1\n")
    assert voc.load(root, split="cat_test").image_ids == ("b", "a")
    (root / "JPEGImages" / "a.jpg").unlink()
    PIL.Image.new("RGB", (60, 40), "blue").save(root / "JPEGImages" / "a.png")
    np.testing.assert_array_equal(voc.load(root).read_image(0)[0, 0], [0, 0, 255])


@pytest.mark.parametrize(
    ("flag", "crowd"),
    [("", False), ("False", False), ("Unspecified", False), ("True", True)],
)
def test_flags_as_tools_write_them(folder, flag, crowd):
    data = voc.load(folder({"a": thing("cat", 1, 1, 9, 9, difficult=flag)}))
    assert data.objects[0].crowd.tolist() == [crowd]


def test_only_images_are_images(folder):
    root = folder({"a": ""})
    for name in ("a.xml", "a.txt", "._a.jpg"):
        (root / "JPEGImages" / name).write_text("no image")
    assert voc.load(root).read_image(0).shape == (40, 60, 3)


def test_of_two_images_the_file_name_tells_which(folder):
    blue = PIL.Image.new("RGB", (60, 40), "blue")
    root = folder({"a": r"<filename>C:\photos\a.png</filename>"})
    blue.save(root / "JPEGImages" / "a.png")
    np.testing.assert_array_equal(voc.load(root).read_image(0)[0, 0], [0, 0, 255])
    root = folder({"a": "<filename>a</filename>"})
    with pytest.raises(DataError, match=r"a\.xml: .*a\.jpg or .*a\.png, and .* 'a'"):
        voc.load(root)


@pytest.mark.parametrize(
    "text",
    [
        "my img 1\nb\n",
        "my img 1  1\nb -1\n",
        '"my img 1"\nb\n',
        "\ufeffmy img 1.jpg \r\nb.jpg\r\n",
    ],
)
def test_lines_of_splits(folder, text):
    root = folder({"my img 1": CAT, "b": ""})
    file = root / "ImageSets" / "Main" / "trainval.txt"
    file.write_text(text, "utf-8", newline="")
    assert voc.load(root).image_ids == ("my img 1", "b")


def test_bad_boxes_are_dropped(folder, caplog):
    bad = thing("dog", 1, 1, "wide", 9) + thing("dog", -9, 1, 9, 9)
    root = folder({"a": bad + thing("cat", 5, 5, 4, 4) + CAT})
    with pytest.raises(DataError, match=r'"skip" drops it'):
        voc.load(root)
    data = voc.load(root, bad_boxes="skip")
    np.testing.assert_array_equal(data.objects[0].boxes, [[0, 0, 9, 9]])
    assert len(data.ground_truth()["annotations"]) == 1
    assert "trainval: dropped 2 objects with bad boxes" in caplog.text
    assert "trainval: dropped 1 objects without area" in caplog.text
    with pytest.raises(ValueError, match="bad_boxes is 'drop'; allowed"):
        voc.load(root, bad_boxes="drop")


def entities(*definitions):
    return f"<!DOCTYPE a [{''.join(definitions)}]>"


@pytest.mark.parametrize(
    "text",
    [
        entities(
            '<!ENTITY x0 "ha">',
            *(f'<!ENTITY x{i} "{f"&x{i - 1};" * 10}">' for i in range(1, 10)),
        )
        + "<annotation>&x9;</annotation>",
        entities(f'<!ENTITY x "{"ha" * 50_000}">')
        + f"<annotation>{'&x;' * 30_000}</annotation>",
        entities('<!ENTITY x SYSTEM "{secret}">')
        + "<annotation><filename>&x;</filename></annotation>",
    ],
    ids=["exponential", "quadratic", "external"],
)
def test_entities_of_strangers_are_refused(folder, text):
    root = folder({"a": ""})
    secret = root / "secret.txt"
    secret.write_text("secret")
    (root / "Annotations" / "a.xml").write_text(text.replace("{secret}", str(secret)))
    start = time.monotonic()
    with pytest.raises(DataError, match=r"a\.xml: not xml") as caught:
        voc.load(root)
    assert "secret" not in str(caught.value).replace(str(root), "")
    assert time.monotonic() - start < 10
