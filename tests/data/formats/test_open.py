import json

import PIL.Image
import pytest

from jaxdet.data.dataset import DataError
from jaxdet.data.formats import digits, tfds, voc
from jaxdet.data.formats.open import layout_of, open_dataset, open_for_training

CAR = (
    "<annotation><object><name>{}</name><bndbox><xmin>1</xmin><ymin>1</ymin>"
    "<xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
)


def write_image(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (20, 10), "red").save(file)


def write_json(file, images):
    write_image(images / "a.png")
    box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]}
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [box],
        "categories": [{"id": 3, "name": "car"}],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def write_voc(folder, splits, name="car"):
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (folder / "Annotations").mkdir()
    for split in splits:
        write_image(folder / "JPEGImages" / f"{split}_0.png")
        (folder / "Annotations" / f"{split}_0.xml").write_text(CAR.format(name))
        (lists / f"{split}.txt").write_text(f"{split}_0\n")
    return folder


def test_a_json_with_its_images_here_or_elsewhere(tmp_path):
    here = write_json(tmp_path / "train.json", tmp_path)
    there = write_json(tmp_path / "val.json", tmp_path / "photos")
    assert open_dataset(here).class_names == ("car",)
    assert open_dataset(str(there), images=tmp_path / "photos").name == "val"
    training, validation = open_for_training(here)
    assert training.name == "train" and validation is None
    photos = tmp_path / "photos"
    _, validation = open_for_training(here, there, validation_images=photos)
    assert validation.name == "val"
    assert open_dataset([here, there]).image_ids == ("train/1", "val/1")


def test_a_coco_folder(tmp_path):
    for split in ("train2017", "val2017"):
        annotations = tmp_path / "annotations" / f"instances_{split}.json"
        write_json(annotations, tmp_path / split)
    training, validation = open_for_training(tmp_path)
    assert training.name == "instances_train2017"
    assert validation.name == "instances_val2017"
    assert open_dataset(tmp_path, split="val2017").name == "instances_val2017"


def test_voc_folders_and_the_devkit(tmp_path):
    both = [
        write_voc(tmp_path / "VOC2007", ("trainval", "test")),
        write_voc(tmp_path / "VOC2012", ("trainval", "val")),
    ]
    training, validation = open_for_training(both)
    assert training.image_ids == ("VOC2007/trainval_0", "VOC2012/trainval_0")
    assert validation.image_ids == ("test_0",)  # that of 2012 is not there
    assert training.class_names == validation.class_names == voc.CLASS_NAMES
    devkit = open_dataset(tmp_path)
    assert devkit.name == "VOC2007 trainval"
    with pytest.raises(DataError, match=r"splits: trainval, val"):
        open_for_training(both[1])
    folder = write_voc(tmp_path / "photos", ("trainval", "test"), "snail")
    training, validation = open_for_training(folder)  # of classes of its own
    assert training.class_names == validation.class_names == ("snail",)


def test_digits_and_tfds(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(digits, "load", calls.append)
    for name in ("load", "load_directory"):
        monkeypatch.setattr(
            tfds, name, lambda *args, bad_boxes: calls.append((*args, bad_boxes))
        )
    (tmp_path / "dataset_info.json").touch()
    open_dataset("digits", split="validation")
    open_dataset("tfds:voc/2007", split="train+validation", bad_boxes="skip")
    open_dataset(tmp_path)
    assert calls == [
        "validation",
        ("voc/2007", "train+validation", "skip"),
        (tmp_path, "train", "error"),
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: layout_of(folder / "lost"), "lost: not there; allowed: "),
        (lambda folder: open_dataset(folder), "none of the known layouts; allowed"),
        (lambda folder: open_dataset([]), "at least one"),
        (lambda folder: open_dataset("a.json", split="val"), "'val', but the json a"),
        (lambda folder: open_dataset("digits", images=folder), "only for a json, not"),
        (
            lambda folder: open_for_training(
                write_json(folder / "a.json", folder), validation_images=folder
            ),
            "but validation is not given",
        ),
    ],
)
def test_what_does_not_go_together_is_named(tmp_path, call, message):
    with pytest.raises(DataError, match=message):
        call(tmp_path)
