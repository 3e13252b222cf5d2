"""The same images and objects in each layout are the same data set."""

import pytest

from jaxdet.data.formats.open import open_dataset, open_for_training, recognize
from tests.data.formats import layouts

YOLO, VOC, FLAT = "YOLO", "Pascal VOC", "VOC's xml without ImageSets"
HUGGING_FACE, CREATEML = "Hugging Face's metadata.jsonl", "CreateML"
WITH_SPLITS = {
    layouts.yolo_of_roboflow: YOLO,
    layouts.yolo_of_ultralytics: YOLO,
    layouts.yolo_of_darknet: YOLO,
    layouts.voc_devkit: VOC,
    layouts.voc_of_roboflow: FLAT,
    layouts.hugging_face: HUGGING_FACE,
    layouts.hugging_face_in_one_file: HUGGING_FACE,
    layouts.createml_of_roboflow: CREATEML,
}
WITHOUT_SPLITS = {
    layouts.yolo_of_label_studio: YOLO,
    layouts.voc_of_labelimg: FLAT,
    layouts.voc_of_kaggle: FLAT,
}
NAMES = "ant", "my gnu"
ROUNDING = 2e-3  # pixels: six digits of a fraction, and what VOC's corners add


@pytest.mark.parametrize("write", WITH_SPLITS)
def test_small_folders_with_splits(tmp_path, write):
    splits = {
        "train": layouts.example(5, class_names=NAMES),
        "val": layouts.example(3, first=5, class_names=NAMES),
    }
    write(tmp_path, splits)
    assert recognize(tmp_path).name == WITH_SPLITS[write]
    data_sets = open_for_training(tmp_path)
    for data_set, expected in zip(data_sets, splits.values(), strict=True):
        layouts.assert_same(data_set, expected, ROUNDING)
        assert data_set.class_names == NAMES


@pytest.mark.parametrize("write", WITHOUT_SPLITS)
def test_small_folders_without_splits(tmp_path, write):
    expected = layouts.example(9)
    write(tmp_path, {"photos": expected})
    folder = tmp_path / "photos"
    assert recognize(folder).name == WITHOUT_SPLITS[write]
    layouts.assert_same(open_dataset(folder), expected, ROUNDING)
    training, validation = open_for_training(folder)
    assert len(training) + len(validation) == 9 and len(validation) > 0


@pytest.mark.parametrize("write", [*WITH_SPLITS, *WITHOUT_SPLITS])
def test_blood_cells(tmp_path, data_folder, write):
    splits = layouts.blood_cells(data_folder)
    write(tmp_path, splits)
    for split, expected in splits.items():
        if write in WITHOUT_SPLITS:
            data_set = open_dataset(tmp_path / split)
        else:
            names = recognize(tmp_path).splits(str(tmp_path))
            assert len(names) == 3
            (name,) = (one for one in names if one.startswith(split))
            data_set = open_dataset(tmp_path, split=name)
        layouts.assert_same(data_set, expected, ROUNDING)
