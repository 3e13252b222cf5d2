import json

import numpy as np
import PIL.Image
import pytest

from jaxdet.data.dataset import DataError
from jaxdet.data.formats import LoadOptions, createml

SKIP = LoadOptions(bad_boxes="skip")


@pytest.fixture
def write(tmp_path):
    def write(content, name="boxes.json"):
        PIL.Image.new("RGB", (40, 20), "red").save(tmp_path / "a.jpg")
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path

    return write


def entry(**changes):
    coordinates = {"x": 10, "y": 8.5, "width": 4, "height": 5} | changes
    one = {"label": "cat", "coordinates": coordinates}
    return {"image": "a.jpg", "annotations": [one]}


def test_by_hand(write):
    root = write([entry()])
    assert createml.recognize(root) and createml.recognize(root / "boxes.json")
    assert createml.CREATEML.splits(root) == ()
    for path in (root, root / "boxes.json"):
        data = createml.load(path)
        assert data.image_ids == ("a.jpg",) and data.class_names == ("cat",)
        np.testing.assert_array_equal(data.objects[0].boxes, [[8, 6, 12, 11]])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([entry(), 3], "entry 1 is 3; allowed: an image's path and a list"),
        ([{"image": "a.jpg", "annotations": {}}], "entry 0 is .*allowed"),
        ([{"image": "a.jpg", "annotations": [3]}], "entry 0: the category is None"),
        (
            [entry(x="wide")],
            r"entry 0: cat has the box {.*'wide'.*allowed: four finite",
        ),
        ([entry(x=99)], r"cat has the box .*height 20 and width 40"),
        ([entry(), entry()], "entry 1: a.jpg stands in .*entry 0 too"),
    ],
)
def test_what_is_bad_is_named(write, content, problem):
    with pytest.raises(DataError, match=rf"boxes\.json: .*{problem}"):
        createml.load(write(content))


def test_bad_boxes_are_dropped(write, caplog):
    assert not len(createml.load(write([entry(x=99)]), options=SKIP).objects[0].boxes)
    assert "dropped 1 objects with bad boxes" in caplog.text


def test_other_json_is_not_recognized(write):
    root = write({"images": [], "annotations": []})
    write([{"image_id": 1, "bbox": [1, 2, 3, 4]}], "results.json")
    assert not createml.recognize(root)
    assert not createml.recognize(root / "results.json")
    assert not createml.recognize(root / "lost.json")
