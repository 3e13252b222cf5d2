"""Small data sets as files, shared by the tests of commands and recipes."""

import functools
import json

import numpy as np
import pytest
from PIL import Image

from jaxdet.data.formats import digits


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory):
    """`digits.load` of a few scenes, however many are asked for."""
    load = functools.partial(
        digits.load,
        data_dir=tmp_path_factory.mktemp("digits"),
        train_images=16,
        validation_images=6,
    )
    return lambda split, train_images=16, **options: load(split, **options)


@pytest.fixture(scope="session")
def coco_folder(few_digits, tmp_path_factory):
    """COCO's folder, of a few scenes; masks are their boxes."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "annotations").mkdir()
    for part, split in {"train": "train", "val": "validation"}.items():
        data_set = few_digits(split)
        truth = data_set.ground_truth()
        images = folder / f"{part}2017"
        images.mkdir()
        for position, image in enumerate(truth["images"]):
            image["file_name"] = f"{position}.png"
            pixels = Image.fromarray(data_set.read_image(position))
            pixels.save(images / image["file_name"])
        for annotation in truth["annotations"]:
            x, y, width, height = annotation["bbox"]
            right, bottom = x + width, y + height
            outline = [x, y, right, y, right, bottom, x, bottom]
            annotation["segmentation"] = [outline]
        file = folder / "annotations" / f"instances_{part}2017.json"
        file.write_text(json.dumps(truth))
    return folder


@pytest.fixture(scope="session")
def voc_folder(tmp_path_factory):
    """VOCdevkit: in each year and split, one photograph of one person."""
    folder = tmp_path_factory.mktemp("VOCdevkit")
    corners = {"xmin": 11, "ymin": 21, "xmax": 60, "ymax": 80}
    box = "".join(f"<{side}>{value}</{side}>" for side, value in corners.items())
    thing = f"<object><name>person</name><bndbox>{box}</bndbox></object>"
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    for year in ("VOC2007", "VOC2012"):
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (folder / year / part).mkdir(parents=True)
        for split in ("trainval", "test") if year == "VOC2007" else ("trainval",):
            lists = folder / year / "ImageSets" / "Main" / f"{split}.txt"
            lists.write_text(f"{split}\n")
            image = folder / year / "JPEGImages" / f"{split}.png"
            Image.fromarray(pixels).save(image)
            annotation = folder / year / "Annotations" / f"{split}.xml"
            annotation.write_text(f"<annotation>{thing}</annotation>")
    return folder
