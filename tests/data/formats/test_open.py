import logging

import numpy as np
import pytest

from jaxdet.data.dataset import DataError
from jaxdet.data.formats import LoadOptions
from jaxdet.data.formats.open import (
    open_dataset,
    open_for_training,
    open_splits,
    recognize,
)
from tests.data.formats import layouts
from tests.data.in_memory import in_memory_data_set

CAR = (
    "<annotation><object><name>{}</name><bndbox><xmin>1</xmin><ymin>1</ymin>"
    "<xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
)


def write_json(file, images, **names):
    data_set = layouts.example(9, **names)
    layouts.write_coco(file, data_set)
    layouts.write_images(images, data_set)
    return file


def write_voc(folder, splits, name="car"):
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (folder / "Annotations").mkdir()
    for split in splits:
        one = layouts.example(1)
        layouts.write_images(folder / "JPEGImages", one)
        image = folder / "JPEGImages" / "image_0.png"
        image.rename(image.with_stem(f"{split}_0"))
        (folder / "Annotations" / f"{split}_0.xml").write_text(CAR.format(name))
        (lists / f"{split}.txt").write_text(f"{split}_0\n")
    return folder


def test_a_json_with_its_images_here_or_elsewhere(tmp_path):
    here = write_json(tmp_path / "train.json", tmp_path)
    photos = tmp_path / "photos"
    there = write_json(tmp_path / "val.json", photos)
    assert open_dataset(here).class_names == ("cat", "dog")
    elsewhere = LoadOptions(images=photos)
    assert open_dataset(str(there), options=elsewhere).name == "val"
    training, validation = open_for_training(here, validation_share=0)
    assert training.name == "train" and validation is None
    training, validation = open_for_training(here)
    assert 0 < len(validation) < len(training) < 9
    _, validation = open_for_training(here, there, validation_images=photos)
    assert validation.name == "val" and len(validation) == 9
    joined, validation = open_for_training([here, there], validation_share=0.5)
    assert len(joined) + len(validation) == 18
    assert {one.partition("/")[0] for one in joined.image_ids} == {"train", "val"}


def test_voc_folders_and_the_devkit(tmp_path):
    both = [
        write_voc(tmp_path / "VOC2007", ("train", "val", "trainval", "test")),
        write_voc(tmp_path / "VOC2012", ("train", "val", "trainval")),
    ]
    training, validation = open_for_training(both)
    ids = "VOC2007 trainval/trainval_0", "VOC2012 trainval/trainval_0"
    assert training.image_ids == ids
    assert validation.image_ids == ("test_0",)  # that of 2012 is not there
    assert training.class_names == validation.class_names == ("car",)
    assert open_dataset(tmp_path).name == "VOC2007 trainval"
    assert open_dataset(tmp_path, role="validation").name == "VOC2007 test"
    for split, expected in ((None, "val"), ("train", "val"), ("trainval", None)):
        _, validation = open_for_training(both[1], split=split)
        assert validation is expected or validation.name == f"VOC2012 {expected}"


def test_classes_of_formats_that_do_not_list_them(tmp_path):
    folder = write_voc(tmp_path / "photos", ("trainval", "test"), "snail")
    training, validation = open_for_training(folder)
    assert training.class_names == validation.class_names == ("snail",)
    (folder / "Annotations" / "test_0.xml").write_text(CAR.format("ant"))
    for data_set, label in zip(open_for_training(folder), (1, 0), strict=True):
        assert data_set.class_names == ("ant", "snail")
        assert data_set.objects[0].labels.tolist() == [label]
    assert list(open_splits(folder, ("test",))) == ["test"]
    names = "snail", "bee"
    assert open_dataset(folder, class_names=names).class_names == names
    with pytest.raises(DataError, match="'ant' is unknown; allowed: snail, bee"):
        open_dataset(folder, split="test", class_names=names)
    write_json(tmp_path / "a.json", tmp_path, class_names=("snail", "ant"))
    _, validation = open_for_training(tmp_path / "a.json", folder)
    assert validation.class_names == ("snail", "ant")  # the json's own


def test_no_objects_and_no_classes(tmp_path):
    layouts.voc_of_labelimg(tmp_path, {"photos": layouts.example(1)})
    with pytest.raises(DataError, match="photos: there are no objects"):
        open_dataset(tmp_path / "photos")


def test_what_is_recognized_is_said(tmp_path, caplog):
    splits = {"train": layouts.example(5), "test": layouts.example(2, first=5)}
    layouts.coco_folder(tmp_path, splits)
    with caplog.at_level(logging.INFO):
        open_for_training(tmp_path)
    assert caplog.messages == [
        f"{tmp_path}: COCO's folder, with the splits test, train",
        "instances_train: 5 images, 2 of them without objects; 4 objects: cat 1, dog 3",
        "instances_test: 2 images, 1 of them without objects; 2 objects: cat 1, dog 1",
    ]


def test_where_nothing_or_too_much_fits(tmp_path):
    with pytest.raises(DataError, match=r"lost: not there; allowed:\n.*digits"):
        recognize(tmp_path / "lost")
    (tmp_path / "labels").mkdir()
    for i in range(20):
        (tmp_path / f"{i:02}.jpg").touch()
    found = r"layout; it holds 00.jpg, .*09.jpg and 11 more; allowed:\n.*\n.*\n.*COCO"
    with pytest.raises(DataError, match=found):
        recognize(str(tmp_path))
    layouts.roboflow_coco(tmp_path / "outer" / "b", {"train": layouts.example()})
    with pytest.raises(DataError, match=r"has one, Roboflow.*; allowed: .*outer/b$"):
        recognize(tmp_path / "outer")
    write_json(tmp_path / "a.json", tmp_path)
    layouts.roboflow_coco(tmp_path, {"train": layouts.example()})
    with pytest.raises(DataError, match=r"can be read as Roboflow.* and as COCO json"):
        recognize(tmp_path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: open_dataset([]), "at least one"),
        (lambda folder: open_dataset("a.json", split="val"), "'val', but a.json is"),
        (
            lambda folder: open_dataset("digits", options=LoadOptions(images=folder)),
            "only for a json, not for digits",
        ),
        (
            lambda folder: open_for_training("a.json", validation_images=folder),
            "validation_images is .* but validation is not given",
        ),
        (
            lambda folder: open_for_training("a.json", validation_split="val"),
            "validation_split is 'val', but validation is not given",
        ),
    ],
)
def test_what_does_not_go_together_is_named(tmp_path, call, message):
    with pytest.raises(DataError, match=message):
        call(tmp_path)


def test_splits_of_unknown_names(tmp_path):
    splits = {"north": layouts.example(), "south": layouts.example(first=3)}
    layouts.coco_folder(tmp_path, splits)
    with pytest.raises(DataError, match="the splits north, south; name one"):
        open_for_training(tmp_path)
    training, validation = open_for_training(
        tmp_path, split="north", validation_split="south"
    )
    assert (training.name, validation.name) == ("instances_north", "instances_south")
    with pytest.raises(DataError, match="no split 'east'; allowed: north, south"):
        open_dataset(tmp_path, split="east")


def test_capital_letters_do_not_matter(tmp_path):
    splits = {"Validation": layouts.example(2), "Train": layouts.example()}
    layouts.coco_folder(tmp_path, splits)
    training, validation = open_for_training(tmp_path)
    assert training.name == "instances_Train"
    assert validation.name == "instances_Validation"


@pytest.mark.parametrize(
    "write",
    [
        layouts.coco_folder,
        layouts.roboflow_coco,
        layouts.yolo_of_roboflow,
        layouts.voc_devkit,
        layouts.voc_of_roboflow,
        layouts.hugging_face,
        layouts.createml_of_roboflow,
    ],
)
def test_bad_boxes_are_dropped_on_request_in_any_format(tmp_path, write):
    boxes = [(1, 2, 31, 12, 1), (50, 10, 70, 30, 0), (5, 10, 20, 40, 0)]
    data_set = in_memory_data_set([np.zeros((40, 60, 3), np.uint8)], [boxes])
    write(tmp_path, {"train": data_set, "val": data_set})
    with pytest.raises(DataError, match=r'bad_boxes="skip" drops it'):
        open_for_training(tmp_path)
    options = LoadOptions(bad_boxes="skip")
    evaluated = open_dataset(tmp_path, role="validation", options=options)
    for one in (evaluated, *open_for_training(tmp_path, options=options)):
        np.testing.assert_allclose(one.objects[0].boxes[:, 0], [1, 5], atol=1e-4)
        assert len(one.ground_truth()["annotations"]) == 2


def test_the_part_set_aside_is_the_same_the_next_time(tmp_path):
    for name in ("cats", "dogs"):
        layouts.voc_of_labelimg(tmp_path, {name: layouts.example(20)})
    sources = [tmp_path / "cats", tmp_path / "dogs"]
    first, second = (open_for_training(sources) for _ in range(2))
    assert [one.image_ids for one in first] == [one.image_ids for one in second]
    assert len(first[0]) + len(first[1]) == 40
    _, of_one = open_for_training(sources[0])
    evaluated = open_dataset(sources, role="validation", validation_share=0.1)
    assert evaluated.image_ids == first[1].image_ids
    assert len(open_dataset(sources, role="validation")) == 40
    held = {name.rpartition("/")[2] for name in first[1].image_ids}
    assert held == {name.rpartition("/")[2] for name in of_one.image_ids}
