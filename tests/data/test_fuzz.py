"""Files with mistakes: each is read, or refused with an error that names it."""

import copy
import dataclasses
import io
import json
import shutil

import numpy as np
import PIL.Image
import pytest

from jaxdet.data import image_files, prepare, proposal_files
from jaxdet.data.dataset import DataError, Proposals
from jaxdet.data.formats import (
    DEFAULTS,
    LoadOptions,
    coco,
    createml,
    metadata_jsonl,
    tfds,
    voc,
    voc_flat,
    yolo,
)

WIDTH, HEIGHT = 24, 16
SQUARE = [2, 3, 9, 3, 9.5, 11, 2, 11]
COCO = {
    "info": {},
    "images": [
        {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
        {"id": 2, "file_name": "b.png"},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [2, 3, 7.5, 8], "area": 60}
        | {"iscrowd": 0, "segmentation": [SQUARE]},
        {"id": 2, "image_id": 1, "category_id": 5, "bbox": [0, 0, 24, 2], "iscrowd": 1}
        | {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [2, 10, 372]}},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
}
HOSTILE = [
    *(None, True, 0, -1, -0.5, 1e-30, 1e9, 1e18, 1e308, 2**31, 2**63, 10**400),
    *(float("nan"), float("inf"), float("-inf")),
    *("", "1", "nan", "../a.png", "a\0.png", "\ud800", "x" * 10_000, "~~~", "o" * 999),
    *([], [[]], {}, [0] * 9, [1e7] * 8, [[1e5, 0, 0, 1e5, -1e5, 3]], {"size": []}),
    *([[[[1]]]], [None] * 4, [1, 2, 3, 4], {"size": [16, 24], "counts": "PPYo0"}),
]
VOC = """<annotation>
<size><width>24</width><height>16</height><depth>3</depth></size>
<object><name>cat</name><pose>Left</pose><difficult>0</difficult>
<bndbox><xmin>3</xmin><ymin>2</ymin><xmax>20</xmax><ymax>9.5</ymax></bndbox></object>
<object><name>dog</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>24</xmax><ymax>16</ymax></bndbox></object>
</annotation>"""
SKIP = LoadOptions(bad_boxes="skip", masks=True)
HOSTILE_XML = [
    *("", " ", "nan", "inf", "-1", "0", "1e9", "1e400", "25", "0x10", "½", "9" * 5000),
    *("<a/>", "<object/>", "<size></size>", "<![CDATA[3]]>", "&lt;", "&nothing;"),
    *("<bndbox/>", "<" * 50, "<a>" * 3000, "<?xml version='1.0' encoding='x'?>"),
]


@pytest.fixture
def picture(rng):
    pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return PIL.Image.fromarray(pixels)


def mutated_bytes(rng, content):
    """A few bytes changed, cut, put in or repeated."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 3)):
        start = int(rng.integers(len(content) + 1))
        stop = start + int(rng.integers(1, 9))
        of_text = rng.random() < 0.5
        noise = rng.integers(*((32, 127) if of_text else (0, 256)), stop - start)
        match rng.integers(5):
            case 0:
                del content[start:]
            case 1:
                del content[start:stop]
            case 2:
                content[start:start] = content[start : start + 400]
            case 3:
                content[start:start] = bytes(noise.tolist())
            case 4:
                content[start : start + 1] = bytes(noise[:1].tolist())
    return bytes(content)


def mutated_json(rng, content):
    """One or two values replaced, left out or repeated, at any depth."""
    content = copy.deepcopy(content)
    for _ in range(rng.integers(1, 3)):
        places = list(places_in(content))
        if not places:
            break
        container, key = places[rng.integers(len(places))]
        match rng.integers(4):
            case 0:
                del container[key]
            case 1 if isinstance(container, list):
                container.append(copy.deepcopy(container[key]))
            case _:
                container[key] = copy.deepcopy(HOSTILE[rng.integers(len(HOSTILE))])
    return json.dumps(content).encode()


def places_in(content):
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in list(items):
            yield content, key
            yield from places_in(value)


def mutated_xml(rng, text):
    """One or two texts or tags replaced by something else."""
    for _ in range(rng.integers(1, 3)):
        parts = text.replace("<", "\n<").replace(">", ">\n").split("\n")
        parts[rng.integers(len(parts))] = HOSTILE_XML[rng.integers(len(HOSTILE_XML))]
        text = "".join(parts)
    return text.encode()


def assert_read_or_refused(read, count, *, never_refused=False):
    """Calls `read` with `count` random streams: some are read, the others refused."""
    successes = 0
    for seed in range(count):
        try:
            read(np.random.default_rng(seed))
            successes += 1
        except DataError:
            pass
        except Exception as error:
            raise AssertionError(f"of seed {seed}: {error!r}") from error
    assert 0 < successes <= count and (never_refused or successes < count)


def assert_sound(data_set):
    """Whatever was read can be trained on and evaluated; reads all pixels and masks."""
    count = len(data_set.class_names)
    assert len(data_set) == len(data_set.sizes) == len(data_set.objects) > 0
    assert (data_set.sizes >= 1).all() and data_set.sizes.dtype == np.int32
    for position, (height, width) in enumerate(data_set.sizes.tolist()):
        boxes, labels, crowd = data_set.objects[position]
        assert len(boxes) == len(labels) == len(crowd)
        assert (boxes >= 0).all() and (boxes <= [width, height] * 2).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert ((labels >= 0) & (labels < count)).all()
    for annotation in data_set.ground_truth()["annotations"]:
        assert np.isfinite([*annotation["bbox"], annotation["area"]]).all()
        assert annotation["area"] >= 0 and annotation["iscrowd"] in (0, 1)
    for position, size in enumerate(data_set.sizes.tolist()):
        if data_set.read_masks is not None:
            masks = data_set.read_masks(position, 7)
            assert len(masks) == len(data_set.objects[position].boxes)
            assert ((masks >= 0) & (masks <= 1)).all()
        assert data_set.read_image(position).shape == (*size, 3)


@pytest.fixture
def folder(tmp_path, picture):
    """Of two pictures and their boxes in COCO's format."""
    for name in ("a.png", "b.png"):
        picture.save(tmp_path / name)
    (tmp_path / "boxes.json").write_text(json.dumps(COCO))
    return tmp_path


@pytest.mark.parametrize("mutated", [mutated_json, mutated_bytes])
@pytest.mark.parametrize(
    "options", [{}, {"masks": True}, {"masks": True, "bad_boxes": "skip"}], ids=str
)
def test_coco(folder, mutated, options):
    file = folder / "boxes.json"
    content = COCO if mutated is mutated_json else file.read_bytes()

    def read(rng):
        file.write_bytes(mutated(rng, content))
        assert_sound(coco.load(file, folder, **options))

    assert_read_or_refused(read, 150)


@pytest.fixture
def voc_folder(tmp_path, picture):
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / part).mkdir(parents=True)
    for stem in ("000012", "000013"):
        picture.save(tmp_path / "JPEGImages" / f"{stem}.png")
        (tmp_path / "Annotations" / f"{stem}.xml").write_text(VOC)
    (tmp_path / "ImageSets/Main/trainval.txt").write_text("000012\n")
    return tmp_path


@pytest.mark.parametrize("mutated", [mutated_xml, mutated_bytes])
def test_voc(voc_folder, mutated):
    file = voc_folder / "Annotations" / "000012.xml"
    content = VOC if mutated is mutated_xml else VOC.encode()

    def read(rng):
        file.write_bytes(mutated(rng, content))
        assert_sound(voc.load(voc_folder))

    assert_read_or_refused(read, 250)


def test_voc_splits(voc_folder):
    file = voc_folder / "ImageSets/Main/trainval.txt"

    def read(rng):
        file.write_bytes(mutated_bytes(rng, b"000012\n000013  1\n"))
        assert_sound(voc.load(voc_folder))

    assert_read_or_refused(read, 100)


def test_voc_flat(voc_folder):
    shutil.rmtree(voc_folder / "ImageSets")
    file = voc_folder / "Annotations" / "000012.xml"

    def read(rng):
        file.write_bytes(mutated_xml(rng, VOC))
        assert_sound(voc_flat.load(voc_folder, options=SKIP))

    assert_read_or_refused(read, 150)


YAML = b"train: images\nnc: 2\nnames:\n  0: cat\n  1: dog\n"
LABELS = b"0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.9 0.1 0.5 0.75\n"


@pytest.mark.parametrize("options", [DEFAULTS, SKIP], ids=["plain", "masks"])
@pytest.mark.parametrize("name", ["data.yaml", "labels/a.txt"])
def test_yolo(tmp_path, picture, name, options):
    contents = {"data.yaml": YAML, "labels/a.txt": LABELS}
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    for file, content in contents.items():
        (tmp_path / file).write_bytes(content)
    picture.save(tmp_path / "images" / "a.png")

    def read(rng):
        (tmp_path / name).write_bytes(mutated_bytes(rng, contents[name]))
        assert_sound(yolo.load(tmp_path, options=options))

    assert_read_or_refused(read, 250)


BOXES = {"bbox": [[2, 3, 7.5, 8], [0, 0, 24, 2]], "categories": ["cat", 3]}
COORDINATES = {"x": 12, "y": 8.5, "width": 4, "height": 5}


@pytest.mark.parametrize(
    ("name", "load", "content"),
    [
        (
            "metadata.jsonl",
            metadata_jsonl.load,
            {"file_name": "a.png", "objects": BOXES},
        ),
        (
            "boxes.json",
            createml.load,
            [
                {"image": name}
                | {"annotations": [{"label": "cat", "coordinates": COORDINATES}]}
                for name in ("a.png", "b.png")
            ],
        ),
    ],
)
def test_json_of_other_tools(tmp_path, picture, name, load, content):
    file = tmp_path / name
    for image in ("a.png", "b.png"):
        picture.save(tmp_path / image)

    def read(rng):
        mutated = mutated_json(rng, content)
        if rng.random() < 0.3:
            mutated = mutated_bytes(rng, json.dumps(content).encode())
        file.write_bytes(mutated)
        assert_sound(load(file))

    assert_read_or_refused(read, 200)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of COCO's json, prepared, and its index beside it."""
    root = tmp_path_factory.mktemp("prepared")
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    for name in ("a.png", "b.png"):
        PIL.Image.fromarray(pixels).save(root / name)
    (root / "boxes.json").write_text(json.dumps(COCO))
    data_set = coco.load(root / "boxes.json", root, masks=True)
    return prepare.save({"train": data_set}, root, "tiny")


@pytest.mark.parametrize(
    "name",
    [
        "features.json",
        "dataset_info.json",
        "tiny-train.array_record-00000",
        "objects-label.labels.txt",
        "index-train-*.npz",
    ],
)
def test_tfds(tmp_path, prepared, name):
    folder = tmp_path / "tiny" / prepared.name
    shutil.copytree(prepared, folder)  # with its times, so that the index holds
    (file,) = folder.glob(name)
    content = file.read_bytes()

    def read(rng):
        if file.suffix == ".json" and rng.random() < 0.7:
            file.write_bytes(mutated_json(rng, json.loads(content)))
        else:
            # An ArrayRecord's blocks of 64 KiB are mostly padding.
            start = 2**16 * int(rng.integers(len(content) // 2**16 + 1))
            part = mutated_bytes(rng, content[start : start + 3000])
            file.write_bytes(content[:start] + part + content[start + 3000 :])
        if rng.random() < 0.3:
            data_set = tfds.load("tiny", "train", data_dir=tmp_path)
        else:
            data_set = tfds.load_directory(folder, "train")
        assert_sound(data_set)

    # A broken index is made anew.
    assert_read_or_refused(read, 40, never_refused=name.startswith("index"))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_images(picture, format):
    buffer = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    picture.save(buffer, format, exif=exif.tobytes())

    def read(rng):
        encoded = mutated_bytes(rng, buffer.getvalue())
        pixels = image_files.decode(encoded, "a picture")
        assert pixels.dtype == np.uint8 and pixels.shape[2:] == (3,)
        assert pixels.shape[:2] == image_files.decode_size(encoded, "a picture")

    assert_read_or_refused(read, 150)


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_proposals(folder, suffix):
    data_set = coco.load(folder / "boxes.json", folder)
    boxes = np.array([[1, 2, 3, 4], [0, 0, 24, 16], [5.5, 1, 9, 9]], np.float32)
    found = [Proposals(boxes[:count], np.ones(count, np.float32)) for count in (3, 1)]
    file = folder / f"proposals{suffix}"
    proposal_files.save(file, dataclasses.replace(data_set, proposals=found))
    content = file.read_bytes()

    def read(rng):
        if suffix == ".json" and rng.random() < 0.7:
            file.write_bytes(mutated_json(rng, json.loads(content)))
        else:
            file.write_bytes(mutated_bytes(rng, content))
        (loaded,) = proposal_files.load(file, data_set)
        for boxes, scores in loaded.proposals:
            assert len(boxes) == len(scores) and np.isfinite(scores).all()
            assert (boxes >= 0).all() and (boxes <= [WIDTH, HEIGHT] * 2).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()

    assert_read_or_refused(read, 250)
