import shutil

import pytest

from jaxdet.data.formats import LoadOptions
from jaxdet.data.formats.open import open_dataset, open_for_training, recognize
from tests.data.formats import layouts

NAMES = {
    layouts.coco_folder: "COCO's folder",
    layouts.coco_folder_of_cvat: "COCO's folder",
    layouts.roboflow_coco: "Roboflow's COCO export",
}


@pytest.mark.parametrize("write", NAMES)
def test_a_small_folder(tmp_path, write):
    splits = {"train": layouts.example(5), "val": layouts.example(2, first=5)}
    write(tmp_path, splits)
    assert recognize(tmp_path).name == NAMES[write]
    for data_set, expected in zip(
        open_for_training(tmp_path), splits.values(), strict=True
    ):
        layouts.assert_same(data_set, expected)


def test_one_split_of_another_name(tmp_path):
    layouts.coco_folder_of_cvat(tmp_path, {"default": layouts.example(20)})
    training, validation = open_for_training(tmp_path)
    assert len(training) + len(validation) == 20 and 1 <= len(validation) <= 5


def test_one_json_and_its_images(tmp_path):
    data_set = layouts.example()
    layouts.images_and_json(tmp_path, {"photos": data_set})
    folder = tmp_path / "photos"
    layouts.assert_same(open_dataset(folder), data_set)
    layouts.assert_same(open_dataset(folder / "result.json"), data_set)
    (folder / "images").rename(folder / "data")
    layouts.assert_same(open_dataset(folder), data_set)
    for image in (folder / "data").iterdir():
        shutil.move(image, folder)
    layouts.assert_same(open_dataset(folder), data_set)
    (folder / "detections.json").write_text("[]")  # is none
    layouts.assert_same(open_dataset(folder), data_set)


def test_a_split_of_roboflow_alone_and_two_exports(tmp_path):
    for name, first in (("cats", 0), ("dogs", 3)):
        layouts.roboflow_coco(tmp_path / name, {"train": layouts.example(first=first)})
    assert open_dataset(tmp_path / "cats" / "train").name == "train"
    kept = open_dataset(tmp_path / "cats", options=LoadOptions(keep_empty_classes=True))
    assert kept.class_names == ("things", "cat", "dog")
    joined = open_dataset([tmp_path / "cats", tmp_path / "dogs"])
    assert len(joined) == 6 and joined.image_ids[0] == "cats train/image_0"


def test_the_devkit_of_coco_of_two_years(tmp_path):
    names = "train2014", "val2014", "train2017", "val2017"
    layouts.coco_folder(tmp_path, {name: layouts.example() for name in names})
    (tmp_path / "annotations" / "captions_train2017.json").touch()
    training, validation = open_for_training(tmp_path)
    assert training.name == "instances_train2017"
    assert validation.name == "instances_val2017"
    _, validation = open_for_training(tmp_path, split="train2014")
    assert validation.name == "instances_val2014"


@pytest.mark.parametrize("write", [*NAMES, layouts.images_and_json])
def test_blood_cells_are_the_same_in_any_layout(data_folder, tmp_path, write):
    splits = layouts.blood_cells(data_folder)
    write(tmp_path, splits)
    for split, expected in splits.items():
        if write is layouts.images_and_json:
            data_set = open_dataset(tmp_path / split)
        else:
            name = (
                "valid" if (write, split) == (layouts.roboflow_coco, "val") else split
            )
            data_set = open_dataset(tmp_path, split=name)
        layouts.assert_same(data_set, expected)
