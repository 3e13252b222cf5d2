import functools
import io
import json
import logging
import os
import types

import numpy as np
import PIL.Image
import pycocotools.mask
import pytest
import tensorflow_datasets
import tensorflow_datasets.object_detection.coco

from jaxdet.data.dataset import DataError
from jaxdet.data.formats import tfds

FEATURES = tensorflow_datasets.features
COCO = {
    "image": FEATURES.Image(encoding_format="jpeg"),
    "image/filename": FEATURES.Text(),
    "image/id": np.int64,
    "objects": FEATURES.Sequence(
        {
            "id": np.int64,
            "area": np.int64,
            "bbox": FEATURES.BBoxFeature(),
            "label": FEATURES.ClassLabel(num_classes=80),
            "is_crowd": np.bool_,
        }
    ),
}


BOX = FEATURES.BBox(ymin=0.25, xmin=0.5, ymax=0.5, xmax=1.0)
BELOW = FEATURES.BBox(ymin=0.5, xmin=0.25, ymax=1.0, xmax=0.5)


class TinySet(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
    """Any features, any examples."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")
    url_infos = None  # nothing to download

    def __init__(self, features, examples, **options):
        self.given_features, self.given_examples = features, examples
        super().__init__(**options)

    def _info(self):
        return tensorflow_datasets.core.DatasetInfo(
            builder=self,
            features=FEATURES.FeaturesDict(self.given_features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield from enumerate(self.given_examples)


def prepare_in(folder, features, examples):
    options = {"data_dir": folder, "file_format": "array_record"}
    builder = TinySet(features, examples, **options)
    builder.download_and_prepare()
    return builder.data_path


@pytest.fixture
def prepare(tmp_path):
    return functools.partial(prepare_in, tmp_path)


def encoded(height, width, format="JPEG", mode="RGB", color="red", **options):
    buffer = io.BytesIO()
    PIL.Image.new(mode, (width, height), color).save(buffer, format, **options)
    return io.BytesIO(buffer.getvalue())


def coco_example(image_id, image, *objects):
    keys = ("id", "area", "bbox", "label", "is_crowd")
    return {
        "image": image,
        "image/filename": "000.jpg",
        "image/id": image_id,
        "objects": [dict(zip(keys, values, strict=True)) for values in objects],
    }


def test_the_layout_of_coco(prepare):
    line = FEATURES.BBox(ymin=0.25, xmin=0.5, ymax=0.25, xmax=1.0)
    objects = [
        (1, 77, BOX, 79, False),
        (2, 5, line, 3, False),
        (3, 6, FEATURES.BBox(0.0, 0.0, 1.0, 0.125), 0, True),
    ]
    gray = encoded(16, 32, mode="L", color=9)
    examples = [coco_example(139, encoded(40, 80)), coco_example(42, gray, *objects)]
    data = tfds.load_directory(prepare(COCO, examples), "train")
    assert data.image_ids == (139, 42)
    assert data.category_ids == tuple(range(80)) and len(data.class_names) == 80
    np.testing.assert_array_equal(data.sizes, [[40, 80], [16, 32]])
    empty, full = data.objects
    assert empty.boxes.shape == (0, 4)
    np.testing.assert_array_equal(full.boxes, [[16, 4, 32, 8], [0, 0, 4, 16]])
    np.testing.assert_array_equal(full.labels, [79, 0])
    np.testing.assert_array_equal(full.crowd, [False, True])
    for objects in data.objects:
        kinds = [values.dtype for values in objects]
        assert kinds == [np.float32, np.int32, bool]
    assert data.read_image(0).shape == (40, 80, 3)
    np.testing.assert_array_equal(data.read_image(1), np.full((16, 32, 3), 9))
    first, second = json.loads(json.dumps(data.ground_truth()))["annotations"]
    assert (first["image_id"], first["category_id"], first["area"]) == (42, 79, 77)
    assert (first["bbox"], first["iscrowd"]) == ([16, 4, 16, 4], 0)
    assert (second["area"], second["iscrowd"]) == (6, 1)


POSE = {"pose": "rear", "is_truncated": True}
BIRD = {"label": "bird", "bbox": BELOW, "is_difficult": False, **POSE}
TV = {"label": "tvmonitor", "bbox": BELOW, "is_difficult": True, **POSE}
VOC = {"objects": [BIRD, TV], "labels": [], "labels_no_difficult": []}
CROWD = {"id": 1, "area": 7, "bbox": BOX, "label": 79, "is_crowd": True}
FACE = {"blur": 2, "occlusion": 1, "expression": True, "illumination": True}
FACES = [
    {"bbox": BOX, "invalid": False, "pose": True, **FACE},
    {"bbox": BELOW, "invalid": True, "pose": True, **FACE},
]
# Upside down: of 8 rows the car has the four topmost.
CAR = {"type": "Car", "bbox": BELOW, "occluded": "unknown"}
CAR |= dict.fromkeys(("truncated", "alpha", "rotation_y"), 0.5)
CAR |= {"dimensions": [1.0, 2.0, 3.0], "location": [1.0, 2.0, 3.0]}
UNKNOWN = ("is_occluded", "is_truncated", "is_depiction", "is_inside")
PLANT = {"source": "xclick", "bbox": BOX, **dict.fromkeys(UNKNOWN, -1)}
GROUPS = [{"label": n, "is_group_of": g} for n, g in ((5, 1), (600, 0), (7, -1))]
OPEN = {"bobjects": [group | PLANT for group in GROUPS]}
OPEN |= {"objects": [], "objects_trainable": []}
SETS_OF_TFDS = {
    # The devkit's xmin 4, ymin 4, xmax 8, ymax 8.
    "voc/2007": (VOC, [[3, 3, 8, 8]] * 2, [2, 19], [0, 1], 20),
    "voc/2012": (VOC, [[3, 3, 8, 8]] * 2, [2, 19], [0, 1], 20),
    "coco/2014": ({"objects": [CROWD]}, [[8, 2, 16, 4]], [79], [1], 80),
    "coco/2017": ({"objects": [CROWD]}, [[8, 2, 16, 4]], [79], [1], 80),
    "wider_face": ({"faces": FACES}, [[8, 2, 16, 4], [4, 4, 8, 8]], [0, 0], [0, 1], 1),
    "kitti": ({"objects": [CAR]}, [[4, 0, 8, 4]], [0], [0], 8),
    "open_images_v4": (OPEN, [[8, 2, 16, 4]] * 3, [5, 600, 7], [1, 0, 0], 601),
}


@pytest.mark.parametrize("name", SETS_OF_TFDS)
def test_sets_of_tfds(tmp_path, monkeypatch, name):
    """TFDS's own builders, of an image of height 8 and width 16."""
    example, boxes, labels, crowd, num_classes = SETS_OF_TFDS[name]
    file_name = "image/file_name" if name == "kitti" else "image/filename"
    example = {"image": encoded(8, 16), file_name: "a.jpg", **example}
    if name.startswith("coco"):  # whose features need TensorFlow for a type only
        module = tensorflow_datasets.object_detection.coco
        monkeypatch.setattr(module, "tf", types.SimpleNamespace(int64=np.int64))
        example["image/id"] = 42
    options = {"data_dir": tmp_path, "file_format": "array_record"}
    builder = tensorflow_datasets.builder(name, **options)
    builder._split_generators = lambda dl_manager: {"train": [(0, example)]}
    builder.download_and_prepare()
    data = tfds.load(name, "train", data_dir=tmp_path)
    (objects,) = data.objects
    np.testing.assert_array_equal(objects.boxes, boxes)
    np.testing.assert_array_equal(objects.labels, labels)
    np.testing.assert_array_equal(objects.crowd, np.array(crowd, bool))
    assert len(data.class_names) == num_classes
    if name.startswith("voc"):
        assert data.class_names[::19] == ("aeroplane", "tvmonitor")
        assert data.image_ids == (0,)
    if name.startswith("coco"):
        assert data.image_ids == (42,)
        assert data.ground_truth()["annotations"][0]["area"] == 7
    if name in ("wider_face", "kitti"):
        assert data.class_names[0] == {"wider_face": "face", "kitti": "Car"}[name]


def read_mask_set(folder, **options):
    """Two images without and with objects, of which that between has no area."""
    inner = {
        "bbox": FEATURES.BBoxFeature(),
        "label": FEATURES.ClassLabel(num_classes=3),
        "mask": FEATURES.Tensor(shape=(2, 2), dtype=np.uint8, **options),
    }
    left = np.array([[255, 0], [255, 0]], np.uint8)
    top = np.array([[255, 255], [51, 51]], np.uint8)
    values = [
        (FEATURES.BBox(ymin=0.25, xmin=0.5, ymax=0.75, xmax=1.0), 0, left),
        (FEATURES.BBox(ymin=0.25, xmin=0.5, ymax=0.25, xmax=1.0), 2, left),
        (FEATURES.BBox(ymin=0.5, xmin=0.0, ymax=1.0, xmax=0.25), 1, top),
    ]
    objects = [dict(zip(inner, value, strict=True)) for value in values]
    examples = [{"image": encoded(16, 32), "objects": o} for o in ([], objects)]
    features = {"image": FEATURES.Image(), "objects": FEATURES.Sequence(inner)}
    return tfds.load_directory(prepare_in(folder, features, examples), "train")


class TestMasks:
    @pytest.fixture(scope="class")
    def data(self, tmp_path_factory):
        return read_mask_set(tmp_path_factory.mktemp("masks"))

    @pytest.mark.parametrize("encoding", ["bytes", "zlib"])
    def test_encodings(self, data, tmp_path, encoding):
        masks = read_mask_set(tmp_path, encoding=encoding).read_masks(1, 2)
        np.testing.assert_array_equal(masks, data.read_masks(1, 2))

    def test_they_stand_beside_their_objects(self, data):
        np.testing.assert_array_equal(data.objects[1].labels, [0, 1])
        masks = data.read_masks(1, 2)
        left, top = [[1, 0], [1, 0]], [[1, 1], [0.2, 0.2]]
        np.testing.assert_array_equal(masks, np.array([left, top], np.float32))
        assert masks.dtype == np.float32
        none = data.read_masks(0, 2)
        assert none.shape == (0, 2, 2) and none.dtype == np.float32

    def test_other_grids_take_shares_of_the_cells_they_cover(self, data):
        for left, top in (
            ([0.5], [0.6]),
            ([1, 0.5, 0], [1, 0.6, 0.2]),
            ([1, 1, 0, 0], [1, 1, 0.2, 0.2]),
        ):
            cells = len(left)
            expected = [np.tile(left, (cells, 1)), np.tile(top, (cells, 1)).T]
            masks = data.read_masks(1, cells)
            np.testing.assert_allclose(masks, expected, rtol=1e-6)

    def test_the_ground_truth_has_them_in_the_image(self, data):
        annotations = json.loads(json.dumps(data.ground_truth()))["annotations"]
        # The left half of (16, 4, 32, 12), the upper one of (0, 8, 8, 16).
        corners = [(16, 4, 24, 12), (0, 8, 8, 12)]
        for annotation, (x1, y1, x2, y2) in zip(annotations, corners, strict=True):
            pixels = pycocotools.mask.decode(annotation["segmentation"])
            assert pixels.shape == (16, 32)
            # Pasting may be a pixel off along the border.
            assert pixels[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].all()
            pixels[max(y1 - 1, 0) : y2 + 1, max(x1 - 1, 0) : x2 + 1] = 0
            assert not pixels.any()
        found = [(a["area"], a["category_id"]) for a in annotations]
        assert found == [(128.0, 0), (64.0, 1)]


def test_sizes_are_those_a_person_sees(prepare):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    folder = prepare(COCO, [coco_example(1, encoded(40, 80, exif=exif))])
    data = tfds.load_directory(folder, "train")
    np.testing.assert_array_equal(data.sizes, [[80, 40]])
    assert data.read_image(0).shape == (80, 40, 3)


def test_by_name_with_slices_and_names_in_the_errors(prepare, tmp_path):
    prepare(COCO, [coco_example(i, encoded(8, 8)) for i in range(10)])
    data = tfds.load("tiny_set", "train[:30%]", data_dir=tmp_path)
    assert data.image_ids == (0, 1, 2)
    with pytest.raises(DataError, match=r"tiny_set/1.0.0: no split 'test'.* train"):
        tfds.load("tiny_set", "test", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["voc/2007", "coco/2017", "no_such_set"])
def test_sets_that_are_not_prepared(tmp_path, name):
    command = f"tfds build {name} --file_format=array_record --data_dir={tmp_path}"
    with pytest.raises(DataError, match=command):
        tfds.load(name, "train", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wider_face", r'pip install "tensorflow-datasets\[tensorflow,wider-face\]"'),
        ("voc/2007", r'pip install "tensorflow-datasets\[tensorflow\]"'),
        ("voc 2007", r"'voc 2007'.*allowed: name"),
    ],
)
def test_what_tfds_needs_and_what_is_no_name(tmp_path, name, message):
    with pytest.raises(DataError, match=message):
        tfds.load(name, "train", data_dir=tmp_path)
    with pytest.raises(DataError, match=rf"{tmp_path}: .*allowed: a folder"):
        tfds.load_directory(tmp_path, "train")


def test_a_file_format_that_needs_tensorflow(prepare):
    folder = prepare(COCO, [coco_example(1, encoded(8, 8))])
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match=f"{folder}: .*needs TensorFlow; convert"):
        tfds.load_directory(folder, "train")


def test_bad_boxes_can_be_dropped(prepare, caplog):
    inner = dict(COCO["objects"].feature.items())
    inner["bbox"] = FEATURES.BBoxFeature(bbox_format=None)
    boxes = [(0.0, 0.0, 0.5, 0.5), (-0.125, 0.0, 0.5, 0.5)]  # (y1, x1, y2, x2)
    boxes += [(float("nan"), 0.0, 0.5, 0.5), (0.5, 0.0, 0.5, 0.5)]
    objects = [(i, 9, FEATURES.BBox(*box), i, False) for i, box in enumerate(boxes)]
    example = coco_example(7, encoded(20, 40), *objects)
    folder = prepare(COCO | {"objects": FEATURES.Sequence(inner)}, [example])
    with caplog.at_level(logging.WARNING):
        data = tfds.load_directory(folder, "train", bad_boxes="skip")
    np.testing.assert_array_equal(data.objects[0].boxes, [[0, 0, 20, 10]])
    assert len(data.ground_truth()["annotations"]) == 1
    assert "dropped 3 objects without area, or bad boxes" in caplog.text
    with pytest.raises(DataError, match="image 7"):  # no index of the other kind
        tfds.load_directory(folder, "train")
    with pytest.raises(ValueError, match="bad_boxes is 'no'"):
        tfds.load_directory(folder, "train", bad_boxes="no")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([encoded(8, 8), encoded(8, 8)], "image/id are not unique"),
        ([io.BytesIO(b"\xff\xd8 no image")], r"tiny_set/1\.0\.0 train, image 7"),
    ],
)
def test_broken_images_and_repeated_ids(prepare, images, message):
    folder = prepare(COCO, [coco_example(7, image) for image in images])
    with pytest.raises(DataError, match=message):
        tfds.load_directory(folder, "train")


class TestTheNextStart:
    @pytest.fixture
    def folder(self, prepare):
        objects = [(1, 77, BOX, 79, False), (2, 5, BELOW, 3, True)]
        examples = [coco_example(i, encoded(8, 16), *objects[:i]) for i in range(3)]
        return prepare(COCO, examples)

    @pytest.mark.parametrize("file", ["features.json", "tiny_set-train.array_record*"])
    def test_reads_nothing_but_the_index_of_the_same_files(
        self, folder, monkeypatch, file
    ):
        passes = []
        read = tfds._read_index
        monkeypatch.setattr(
            tfds, "_read_index", lambda *args: passes.append(args[2]) or read(*args)
        )
        first, second = (tfds.load_directory(folder, "train") for _ in range(2))
        assert passes == ["tiny_set/1.0.0 train"]
        assert second.ground_truth() == first.ground_truth()
        assert second.image_ids == first.image_ids == (0, 1, 2)
        np.testing.assert_array_equal(second.sizes, first.sizes)
        assert second.read_image(2).shape == (8, 16, 3)
        assert second.read_encoded(2) == first.read_encoded(2)
        (changed,) = folder.glob(file)
        os.utime(changed, (1, 1))
        tfds.load_directory(folder, "train")
        assert len(passes) == 2

    def test_a_slice_has_its_own(self, folder):
        whole, start, end, again = (
            tfds.load_directory(folder, f"train{part}").image_ids
            for part in ("", "[:1]", "[1:]", "[1:]")
        )
        assert start + end == whole and again == end
        assert len(list(folder.glob("index-*.npz"))) == 3


def test_broken_descriptions_are_errors(prepare, tmp_path):
    folder = prepare(COCO, [coco_example(7, encoded(8, 8))])
    for file in (folder / "dataset_info.json", folder / "features.json"):
        whole = file.read_text()
        for content in ('{"name": [', ""):
            file.write_text(content)
            message = f"tiny_set: cannot be read from {tmp_path} "
            with pytest.raises(DataError, match=message):
                tfds.load("tiny_set", "train", data_dir=tmp_path)
            with pytest.raises(DataError, match=f"{folder}: no data set that TFDS"):
                tfds.load_directory(folder, "train")
        file.write_text(whole)


def test_broken_shards_are_errors(prepare):
    folder = prepare(COCO, [coco_example(7, encoded(8, 8))])
    (shard,) = folder.glob("*.array_record*")
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"train, position 0: cannot be read \(.*"):
        tfds.load_directory(folder, "train")
    shard.unlink()
    with pytest.raises(DataError, match=f"{shard}: cannot be read"):
        tfds.load_directory(folder, "train")
