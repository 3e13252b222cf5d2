import json
import logging

import numpy as np
import PIL.Image
import pycocotools.coco
import pycocotools.cocoeval
import pytest

from jaxdet.data.annotations import coco_ground_truth
from jaxdet.data.dataset import DataError
from jaxdet.data.formats import coco


@pytest.fixture
def content():
    """Two images of height 40 and width 60, one below; ids in disorder, with holes."""
    return {
        "images": [
            {"id": 7, "file_name": "b.png", "height": 40, "width": 60},
            {"id": 3, "file_name": "deep/a.png", "height": 40, "width": 60},
        ],
        "annotations": [
            {"id": 5, "image_id": 3, "category_id": 90, "bbox": [1, 2, 30, 4]},
            {"id": 9, "image_id": 3, "category_id": 2, "bbox": [0.5, 0, 8, 9.25]},
        ],
        "categories": [
            {"id": 90, "name": "toothbrush"},
            {"id": 2, "name": "bicycle"},
            {"id": 13, "name": "stop sign"},
        ],
    }


@pytest.fixture
def load(tmp_path):
    """Writes the json and its images, then loads them."""
    (tmp_path / "images" / "deep").mkdir(parents=True)
    for name, color in (("b.png", "blue"), ("deep/a.png", "red")):
        PIL.Image.new("RGB", (60, 40), color).save(tmp_path / "images" / name)

    def load(content, **options):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "boxes.json").write_text(text)
        return coco.load(tmp_path / "boxes.json", tmp_path / "images", **options)

    return load


def test_a_small_json_by_hand(load, content, tmp_path):
    data = load(content)
    assert data.name == "boxes"
    assert data.class_names == ("bicycle", "stop sign", "toothbrush")
    assert data.category_ids == (2, 13, 90)
    assert data.image_ids == (7, 3) and data.file_names == ["b.png", "deep/a.png"]
    np.testing.assert_array_equal(data.sizes, [[40, 60], [40, 60]])
    empty, full = data.objects
    assert empty.boxes.shape == (0, 4)
    np.testing.assert_array_equal(full.boxes, [[1, 2, 31, 6], [0.5, 0, 8.5, 9.25]])
    np.testing.assert_array_equal(full.labels, [2, 0])
    for objects in data.objects:
        kinds = [values.dtype for values in objects]
        assert kinds == [np.float32, np.int32, bool]
    np.testing.assert_array_equal(data.read_image(0)[0, 0], [0, 0, 255])
    np.testing.assert_array_equal(data.read_image(1)[0, 0], [255, 0, 0])
    encoded = (tmp_path / "images" / "deep" / "a.png").read_bytes()
    assert data.read_encoded(1) == encoded


def test_without_sizes_or_any_object(load, content):
    for image in content["images"]:  # sizes are read from the files
        del image["height"], image["width"]
    data = load(content | {"annotations": []})
    np.testing.assert_array_equal(data.sizes, [[40, 60], [40, 60]])
    assert [len(objects.boxes) for objects in data.objects] == [0, 0]
    assert data.ground_truth()["annotations"] == []


@pytest.mark.parametrize("absent", [None, 0, -1, ""])
@pytest.mark.parametrize("side", ["height", "width"])
def test_what_counts_as_absent(load, content, absent, side):
    content["images"][1][side] = absent
    content["annotations"][0] |= {"iscrowd": None, "area": None}
    data = load(content)
    np.testing.assert_array_equal(data.sizes, [[40, 60], [40, 60]])
    first, _ = data.ground_truth()["annotations"]
    assert (first["iscrowd"], first["area"]) == (0, 120)
    assert not data.objects[1].crowd.any()


def test_backslashes_are_taken_for_folders(load, content, caplog):
    content["images"][1]["file_name"] = "deep\\a.png"
    data = load(content)
    np.testing.assert_array_equal(data.read_image(1)[0, 0], [255, 0, 0])
    assert r"1 names of images have backslashes" in caplog.text
    assert caplog.text.count("backslashes") == 1
    content["images"][1]["file_name"] = "gone\\a.png"
    with pytest.raises(DataError, match=r"1 of 2 images do not exist.*gone\\a\.png"):
        load(content)


@pytest.fixture
def exported(content):
    """What Roboflow writes: a root of which no object is, called as a class is, too."""
    for one in content["categories"]:
        one["supercategory"] = "bicycle"
    root = {"id": 0, "name": "bicycle", "supercategory": "none"}
    content["categories"].insert(0, root)
    return content


def test_the_root_category_is_left_out(load, exported, caplog):
    with caplog.at_level(logging.INFO):
        data = load(exported)
    assert data.class_names == ("bicycle", "stop sign", "toothbrush")
    assert data.category_ids == (2, 13, 90)
    assert data.objects[1].labels.tolist() == [2, 0]
    assert data.ground_truth()["categories"] == exported["categories"][1:]
    assert "left out the category 'bicycle'" in caplog.text
    with pytest.raises(DataError, match="'bicycle' stands 2 times in categories"):
        load(exported, keep_empty_classes=True)
    exported["categories"][0]["name"] = "things"
    for one in exported["categories"][1:]:
        one["supercategory"] = "things"
    assert load(exported).class_names == ("bicycle", "stop sign", "toothbrush")
    data = load(exported, keep_empty_classes=True)
    assert data.class_names == ("things", "bicycle", "stop sign", "toothbrush")


def test_a_perfect_answer_is_perfect_where_boxes_have_no_area(load, content):
    content["annotations"][0]["category_id"] = 2
    content["annotations"][1]["bbox"] = [30, 30, -20, -20]
    data = load(content)
    assert average_precision(data.ground_truth(), data) == pytest.approx(1)


def test_objects_stay_with_their_images(load, content, rng):
    size = {"file_name": "b.png", "height": 40, "width": 60}
    content["images"] = [{"id": i, **size} for i in range(20)]
    content["annotations"] = [
        {
            "id": i,
            "image_id": int(rng.integers(20)),
            "category_id": int(rng.choice([2, 13, 90])),
            "bbox": [*rng.uniform(0, 20, 4).tolist()],
            "iscrowd": int(rng.integers(2)),
        }
        for i in range(100)
    ]
    data = load(content)
    for image_id, objects in zip(data.image_ids, data.objects, strict=True):
        own = [a for a in content["annotations"] if a["image_id"] == image_id]
        boxes = np.array([a["bbox"] for a in own]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(objects.boxes, boxes, rtol=1e-6)
        np.testing.assert_array_equal(objects.crowd, [a["iscrowd"] for a in own])
        categories = [data.category_ids[label] for label in objects.labels]
        assert categories == [a["category_id"] for a in own]


def test_slight_overhang_is_clipped_and_no_area_dropped(load, content, caplog):
    boxes = [
        [-1.5, -2, 10, 10],  # clipped to 0, 0
        [50, 30, 12, 12],  # clipped to 60, 40
        [5, 5, 0, 7],
        [5, 5, 7, -1],
        [60, 0, 1, 5],  # nothing of it within the image
        [30, 0, 1e-9, 5],  # no area in float32
    ]
    content["annotations"] = [
        {"id": i, "image_id": 7, "category_id": 2, "bbox": box}
        for i, box in enumerate(boxes, 1)
    ]
    with caplog.at_level(logging.WARNING):
        data = load(content)
    expected = [[0, 0, 8.5, 8], [50, 30, 60, 40]]
    np.testing.assert_array_equal(data.objects[0].boxes, expected)
    assert "boxes.json: dropped 4 objects without area" in caplog.text
    truth = data.ground_truth()
    first, second = truth["annotations"]
    assert (first["bbox"], first["area"]) == ([0, 0, 8.5, 8], 68)
    assert (second["bbox"], second["area"]) == ([50, 30, 10, 10], 100)
    assert average_precision(truth, data) == pytest.approx(1)
    content["annotations"][0]["bbox"] = rounded = [-0.01, 0, 10, 10]
    assert load(content).ground_truth()["annotations"][0]["bbox"] == rounded


BAD_BOXES = [
    *([float("nan"), 0, 5, 5], [0, 0, float("inf"), 5], [5, 5, float("-inf"), 5]),
    *([0, 0, 10**400, 5], ["0", 0, 5, 5], [0, 0, True, 5], [0, 0, 5], {"x": 0}, None),
    *([-2.5, 0, 20, 5], [0, -2.5, 5, 20], [58, 0, 4.5, 5], [0, 38, 5, 4.5]),
    *([100, 100, 5, 5], [100, 10, -60, 5]),
]


@pytest.mark.parametrize("box", BAD_BOXES, ids=str)
def test_bad_boxes_are_errors_or_skipped(load, content, caplog, box):
    content["annotations"][1]["bbox"] = box
    with pytest.raises(DataError, match=r"boxes\.json: annotation 9 .* allowed: "):
        load(content)
    with caplog.at_level(logging.WARNING):
        data = load(content, bad_boxes="skip")
    np.testing.assert_array_equal(data.objects[1].boxes, [[1, 2, 31, 6]])
    assert "dropped 1 objects with bad boxes" in caplog.text
    assert [a["id"] for a in data.ground_truth()["annotations"]] == [5]


def test_ground_truth_is_the_json_itself(load, content):
    content["annotations"][0] |= {"iscrowd": 1, "area": 77.5, "segmentation": [[1, 2]]}
    content["annotations"][1]["bbox"] = [-1, 0, 9.5, 10]
    data = load(content)
    for _ in range(2):  # what the caller does to the first changes no second
        truth = data.ground_truth()
        assert truth["info"] == {}
        assert truth["images"] == content["images"]
        assert truth["categories"] == content["categories"]
        first, second = truth["annotations"]
        assert first == content["annotations"][0]
        filled = {"bbox": [0, 0, 8.5, 10], "area": 85, "iscrowd": 0}
        assert second == content["annotations"][1] | filled
        truth["annotations"].clear()
        first["bbox"].clear(), second["bbox"].clear()


@pytest.mark.parametrize(
    ("key", "fields", "message"),
    [
        ("images", {"id": None}, r"images\[1\] has the id None; allowed: int or str"),
        ("images", {"id": 7}, "id 7 stands 2 times in images"),
        ("images", {"file_name": None}, "image 3 has the file_name None"),
        ("images", {"file_name": "deep/b.png"}, r"1 of 3 images do .*deep/b\.png"),
        ("images", {"file_name": "gone/b.png"}, r"1 of 3 images do .*gone/b\.png"),
        ("images", {"id": "3"}, r"images have the ids 7 and '3'; allowed: either"),
        ("images", {"width": -60}, r"image 3 has \(height, width\) \(40, -60\)"),
        ("images", {"height": "40"}, r"image 3 has .* \('40', 60\)"),
        ("images", {"height": 10**5, "width": 10**5}, r"\(100000, .*can be read"),
        ("annotations", {"id": None}, r"annotations\[1\] has the id None"),
        ("annotations", {"id": 5}, "id 5 stands 2 times in annotations"),
        ("annotations", {"category_id": True}, "category_id True; .* 1, 2, 13, 90$"),
        ("annotations", {"category_id": 4}, "category_id 4; allowed: 1, 2, 13, 90$"),
        ("annotations", {"image_id": False}, "9 has image_id False; allowed: 7, 3, 0$"),
        ("annotations", {"image_id": 4}, "9 has image_id 4; allowed: 7, 3, 0$"),
        ("annotations", {"image_id": [3]}, r"9 has image_id \[3\]; allowed"),
        ("annotations", {"iscrowd": 2}, "9 has iscrowd 2; allowed: 0, 1"),
        *(
            ("annotations", {"area": area}, r"annotation 9 has area .*; a.*: a finite")
            for area in (-1, float("nan"), float("inf"), "60", True, [])
        ),
        ("categories", {"id": 90}, "id 90 stands 2 times in categories"),
        ("categories", {"id": "2"}, r"categories\[1\] has the id '2'; allowed: int"),
        ("categories", {"name": None}, "category 2 has the name None"),
        ("categories", {"name": "stop sign"}, "name 'stop sign' stands 2 .*: once"),
    ],
)
def test_bad_entries_are_one_clear_error(load, content, key, fields, message):
    # 0 and 1 are ids, so that False and True equal some.
    content["images"].append(content["images"][0] | {"id": 0})
    content["categories"].append({"id": 1, "name": "one"})
    content[key][1].update(fields)
    with pytest.raises(DataError, match=rf"boxes\.json.*{message}"):
        load(content)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_json_of_another_format(load, content, key):
    empty = content | {"annotations": [], key: []}
    missing = {name: content[name] for name in content if name != key}
    for bad, message in (
        ("{", "not json"),
        ("[]", "not in COCO's format: a list"),
        (missing, f'"{key}" is missing'),
        (content | {key: {}}, f'"{key}" is not a list of objects'),
        (content | {key: [1]}, f'"{key}" is not a list of objects'),
        *([] if key == "annotations" else [(empty, f'"{key}" is empty')]),
    ):
        with pytest.raises(DataError, match=rf"boxes\.json.*{message}"):
            load(bad)


def test_no_json_and_no_such_option(load, content, tmp_path):
    with pytest.raises(DataError, match=r"gone\.json: cannot be read"):
        coco.load(tmp_path / "gone.json", tmp_path)
    with pytest.raises(ValueError, match='allowed: "error", "skip"'):
        load(content, bad_boxes="drop")


def test_a_size_unlike_the_file_is_an_error_when_read(load, content):
    content["images"][1].update(height=60, width=40)
    data = load(content)
    data.read_image(0)
    with pytest.raises(DataError, match=r"a\.png.*\(40, 60\) on disk.*\(60, 40\)"):
        data.read_image(1)


def test_the_size_that_counts_is_the_one_a_person_sees(load, content, tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "images" / "b.png"
    PIL.Image.new("RGB", (40, 60)).save(path, exif=exif)
    assert load(content).read_image(0).shape == (40, 60, 3)


def average_precision(truth, data):
    """pycocotools' AP of perfect detections, made from the data set's own objects."""
    reference = pycocotools.coco.COCO()
    reference.dataset = truth
    reference.createIndex()
    perfect = coco_ground_truth(
        data.image_ids, data.sizes, data.objects, data.category_ids, data.class_names
    )
    found = reference.loadRes([a | {"score": 1.0} for a in perfect["annotations"]])
    evaluation = pycocotools.cocoeval.COCOeval(reference, found, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[0]


@pytest.mark.parametrize(
    ("annotations", "images", "counts"),
    [  # images, objects, crowds, classes: its README and jq
        ("bccd/annotations/train", "images", (205, 2805, 0, 3)),
        ("bccd/annotations/val", "images", (87, 1138, 0, 3)),
        ("bccd/annotations/test", "images", (72, 945, 0, 3)),
        ("coco128/annotations/instances_train2017", "train2017", (128, 939, 10, 80)),
        ("coco128/annotations/instances_val2017", "val2017", (128, 903, 5, 80)),
    ],
)
def test_real_data_sets(data_folder, annotations, images, counts):
    file = data_folder / f"{annotations}.json"
    data = coco.load(file, file.parents[1] / images)
    objects = [objects.boxes.shape[0] for objects in data.objects]
    crowds = sum(int(objects.crowd.sum()) for objects in data.objects)
    assert (len(data), sum(objects), crowds, len(data.class_names)) == counts
    for position in range(0, len(data), 8):
        height, width = data.sizes[position]
        assert data.read_image(position).shape == (height, width, 3)
        assert (data.objects[position].boxes <= [width, height] * 2).all()
    original = json.loads(file.read_text())
    assert data.ground_truth() == original
    assert average_precision(data.ground_truth(), data) == pytest.approx(1)


SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]
LEFT = {"size": [40, 60], "counts": [0, 40 * 20, 40 * 40]}  # 20 columns of 60


class TestMasks:
    @pytest.fixture
    def outlined(self, content):
        """Of the second image: a thing without area, a square and a crowd."""
        things = [
            (5, [5, 5, 0, 7], 0, [[5, 5, 5, 12, 5, 8]]),
            (7, [10, 10, 20, 20], 0, [SQUARE]),
            (10, [0, 0, 40, 40], 1, LEFT),
        ]
        keys = ("id", "bbox", "iscrowd", "segmentation")
        content["annotations"] = [
            {"image_id": 3, "category_id": 2, **dict(zip(keys, values, strict=True))}
            for values in things
        ]
        return content

    def test_masks_stand_beside_their_objects(self, load, outlined):
        data = load(outlined, masks=True)
        assert len(data.objects[1].boxes) == 2
        grids = data.read_masks(1, 4)
        left = np.tile([1, 1, 0, 0], (4, 1))
        np.testing.assert_array_equal(grids, [np.ones((4, 4)), left])
        assert grids.dtype == np.float32
        assert data.read_masks(0, 4).shape == (0, 4, 4)
        assert data.ground_truth()["annotations"][0]["segmentation"] == [SQUARE]

    def test_they_are_read_on_demand_only(self, load, outlined):
        outlined["annotations"][1]["segmentation"] = "broken"
        assert load(outlined).read_masks is None

    @pytest.mark.parametrize(
        ("segmentation", "problem"),
        [
            (None, r"no segmentation; .* masks=False \(mask_size and copy_paste 0\)"),
            ([], r"the segmentation \[\]; allowed: one or more polygons"),
            ({"size": [60, 40], "counts": [2400]}, r"image, \[40, 60\]"),
        ],
    )
    def test_bad_ones_are_errors_or_skipped(
        self, load, outlined, caplog, segmentation, problem
    ):
        outlined["annotations"][1]["segmentation"] = segmentation
        with pytest.raises(DataError, match=rf"annotation 7 has .*{problem}.*drops it"):
            load(outlined, masks=True)
        data = load(outlined, masks=True, bad_boxes="skip")
        assert data.read_masks(1, 4).shape == (1, 4, 4)
        assert [entry["id"] for entry in data.ground_truth()["annotations"]] == [10]
        assert "dropped 1 objects with bad boxes or segmentations" in caplog.text

    def test_strays_beside_a_polygon_are_left_out_and_counted(
        self, load, outlined, caplog
    ):
        whole = load(outlined, masks=True).read_masks(1, 4)
        outlined["annotations"][1]["segmentation"] = [[1, 2, 3, 4], SQUARE, []]
        data = load(outlined, masks=True)
        np.testing.assert_array_equal(data.read_masks(1, 4), whole)
        assert "dropped 2 parts of under 3 points" in caplog.text
        assert len(data.ground_truth()["annotations"]) == 2
