"""Preparing data sets: the script `experiments.prepare`."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from experiments import prepare
from experiments.data_option import DataOption
from jaxdet.data.dataset import DataError
from jaxdet.data.formats import tfds, voc
from tests.data.in_memory import in_memory_data_set


@pytest.fixture
def voc_folder(tmp_path):
    """Two splits; each shows one class of its own."""
    folder = tmp_path / "VOC2007"
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for split, name in (("train", "cat"), ("val", "bus")):
        Image.new("RGB", (20, 10)).save(folder / "JPEGImages" / f"{split}.jpg")
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(split)
        corners = {"xmin": 3, "ymin": 1, "xmax": 20, "ymax": 9}
        box = "".join(f"<{tag}>{n}</{tag}>" for tag, n in corners.items())
        (folder / "Annotations" / f"{split}.xml").write_text(
            "<annotation><size><width>20</width><height>10</height></size>"
            f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"
            "</annotation>"
        )
    return folder


@pytest.fixture
def coco_files(tmp_path):
    """Two json files, each with two images, and the folders of these."""
    files, folders = [], []
    for part in ("train", "val"):
        images = [np.full((10, 20, 3), shade, np.uint8) for shade in (9, 99)]
        data_set = in_memory_data_set(images, [[(2, 1, 9, 9, 1)], []])
        truth = data_set.ground_truth()
        folders.append(tmp_path / part)
        folders[-1].mkdir()
        for image, pixels in zip(truth["images"], images, strict=True):
            image["file_name"] = f"{image['id']}.png"
            Image.fromarray(pixels).save(folders[-1] / image["file_name"])
        for annotation in truth["annotations"]:
            annotation["segmentation"] = [[2, 1, 9, 1, 9, 9, 2, 9]]
        files.append(tmp_path / f"instances_{part}2017.json")
        files[-1].write_text(json.dumps(truth))
    return files, folders


@pytest.mark.parametrize("masks", [False, True])
def test_coco(coco_files, tmp_path, capsys, masks):
    files, folders = coco_files
    source = DataOption(tuple(map(str, files)), tuple(folders))
    prepare.main(source, tfds_dir=tmp_path, masks=masks)
    folder = tmp_path / "instances_train2017" / "1.0.0"
    assert capsys.readouterr().out.endswith(f"2 images\n{folder}\n")
    for split in ("train", "validation"):
        data_set = tfds.load_directory(folder, split)
        assert len(data_set) == 2 and data_set.class_names == ("cat", "dog")
        assert (data_set.read_image(1) == 99).all()
        assert (data_set.read_masks is not None) == masks


def test_voc(voc_folder, tmp_path):
    options = {"source": DataOption((str(voc_folder),)), "tfds_dir": tmp_path}
    prepare.main(**options, splits=("train", "val"))
    for split, label in (("train", "cat"), ("validation", "bus")):
        data_set = tfds.load("voc2007", split, data_dir=tmp_path)
        assert data_set.image_ids == (split[:5].removesuffix("id"),)
        assert data_set.class_names == voc.CLASS_NAMES
        (objects,) = data_set.objects
        np.testing.assert_allclose(objects.boxes, [[2, 0, 20, 9]], rtol=1e-6)
        assert data_set.class_names[objects.labels[0]] == label
    with pytest.raises(DataError, match=r"voc2007/1\.0\.0: prepared already"):
        prepare.main(**options)


def test_classes_that_voc_does_not_have(voc_folder, tmp_path):
    for file in voc_folder.glob("Annotations/*.xml"):
        file.write_text(file.read_text().replace("cat", "zebu"))
    prepare.main(
        source=DataOption((str(voc_folder),)),
        tfds_dir=tmp_path,
        splits=("train", "val"),
        name="zoo",
    )
    for split in ("train", "validation"):
        found = tfds.load("zoo", split, data_dir=tmp_path)
        assert found.class_names == ("bus", "zebu")


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
