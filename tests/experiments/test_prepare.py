"""Preparing data sets: the script `experiments.prepare`."""

import pathlib
import shutil

import numpy as np
import pytest

from experiments import prepare
from experiments.data_option import DataOption
from jaxdet.data.dataset import DataError
from jaxdet.data.formats import tfds


@pytest.mark.parametrize("masks", [False, True])
def test_coco(coco_folder, few_digits, tmp_path, capsys, masks):
    parts = "train", "val"
    annotations = coco_folder / "annotations"
    files = [annotations / f"instances_{part}2017.json" for part in parts]
    folders = [coco_folder / f"{part}2017" for part in parts]
    source = DataOption(tuple(map(str, files)), tuple(folders))
    prepare.main(source, tfds_dir=tmp_path, masks=masks)
    folder = tmp_path / "instances_train2017" / "1.0.0"
    assert capsys.readouterr().out.endswith(f"6 images\n{folder}\n")
    for split in ("train", "validation"):
        data_set = tfds.load_directory(folder, split)
        expected = few_digits(split)
        assert len(data_set) == len(expected)
        assert data_set.class_names == expected.class_names
        pixels = data_set.read_image(1), expected.read_image(1)
        np.testing.assert_array_equal(*pixels)
        assert (data_set.read_masks is not None) == masks


def test_voc(voc_folder, tmp_path):
    source = DataOption((str(voc_folder / "VOC2007"),))
    options = {"source": source, "tfds_dir": tmp_path}
    prepare.main(**options, splits=("trainval", "test"))
    for split in ("trainval", "test"):
        data_set = tfds.load("voc2007", split, data_dir=tmp_path)
        assert data_set.image_ids == (split,)
        assert data_set.class_names == ("person",)
        (objects,) = data_set.objects
        np.testing.assert_allclose(objects.boxes, [[10, 20, 60, 80]], rtol=1e-6)
        assert data_set.class_names[objects.labels[0]] == "person"
    with pytest.raises(DataError, match=r"voc2007/1\.0\.0: prepared already"):
        prepare.main(**options)


def test_classes_that_voc_does_not_have(voc_folder, tmp_path):
    copy = tmp_path / "VOC2007"
    shutil.copytree(voc_folder / "VOC2007", copy)
    file = copy / "Annotations" / "test.xml"
    file.write_text(file.read_text().replace("person", "zebu"))
    splits = "trainval", "test"
    source = DataOption((str(copy),))
    prepare.main(source=source, tfds_dir=tmp_path, splits=splits, name="zoo")
    for split in splits:
        found = tfds.load("zoo", split, data_dir=tmp_path)
        assert found.class_names == ("person", "zebu")


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ((), {}, "--data is missing"),
        (("a.json", "b.json", "c.json"), {}, "3 json files"),
        (("a.json",), {"images": ("a", "b")}, "--images 2 folders"),
        (
            ("a.json", "b.json"),
            {"splits": ("val", "val")},
            "--splits val, val; allowed: as many of each, splits all unlike",
        ),
        (("a.json",), {}, r"a\.json: cannot be read"),
        (("voc.json",), {}, "one of TFDS's own"),
    ],
)
def test_what_cannot_be_prepared(tmp_path, data, options, message):
    images = tuple(map(pathlib.Path, options.pop("images", ())))
    with pytest.raises(DataError, match=message):
        prepare.main(DataOption(data, images), tfds_dir=tmp_path, **options)
