"""A data set of yours for TFDS, once: python -m experiments.prepare --source train.json

Turns COCO-format json files, or Pascal VOC folders, and their images into one data set
of ArrayRecord files, with an index of its image sizes and objects: a start then reads a
few files, not all. `tfds.load` (with TensorFlow not even installed) and every
`--tfds-directory` and `--data` here take it. A split a json, or a split of the folders:

    python -m experiments.prepare --source train.json val.json --images train val \\
        --splits train validation --tfds-dir ~/tensorflow_datasets --name photos
    python -m experiments.prepare --source VOCdevkit/VOC2007 --splits train val test \\
        --tfds-dir ~/tensorflow_datasets
"""

import functools
import pathlib
import re
from typing import Literal

from experiments import command_line
from jaxdet.data import prepare
from jaxdet.data.dataset import DataError, DataSet
from jaxdet.data.formats import coco, voc


def main(
    *,
    source: tuple[pathlib.Path, ...],
    tfds_dir: pathlib.Path,
    images: tuple[pathlib.Path, ...] = (),
    splits: tuple[str, ...] = (),
    name: str | None = None,
    masks: bool = False,
    bad_boxes: Literal["error", "skip"] = "error",
):
    """Writes the data set and prints its folder.

    Args:
      source: COCO-format json files, one a split; or Pascal VOC folders, such as
        VOCdevkit/VOC2007, of which several are joined.
      tfds_dir: where TFDS keeps data sets; the new one becomes its folder NAME/1.0.0.
      images: a folder of image files for each json; by default that of the json.
      splits: what each json is called, by default train and validation; or which of
        the splits of the VOC folders to take, by default trainval. val becomes
        validation, as in TFDS's own sets.
      name: of the data set; by default the first source's.
      masks: keep the segmentations of the json files.
      bad_boxes: of the json files, such as reach out of their images; skip drops them.

    Raises:
      DataError: for options that do not go together; before anything is read if the
        folder is there already.
    """
    if not source:
        raise DataError("--source is empty; allowed: json files, or VOC folders")
    name = name or re.sub(r"\W+", "_", source[0].stem).lower()
    prepare.new_folder(tfds_dir, name)  # before anything is read
    if source[0].is_dir():
        data_sets = _load_voc(source, images, splits, masks)
    else:
        data_sets = _load_coco(source, images, splits, masks, bad_boxes)
    folder = prepare.save(data_sets, tfds_dir, name)
    for split, data_set in data_sets.items():
        print(f"{split:>12} {len(data_set):8} images")
    print(folder)


def _load_voc(folders, images, splits, masks) -> dict[str, DataSet]:
    if images or masks:
        raise DataError("--images and --masks are for json files, not for VOC folders")
    splits = splits or ("trainval",)
    load = functools.partial(
        voc.load, *folders, class_names=voc.find_class_names(*folders, splits=splits)
    )
    return {_tfds_name(split): load(split=split) for split in splits}


def _load_coco(files, images, splits, masks, bad_boxes) -> dict[str, DataSet]:
    images = images or [file.parent for file in files]
    splits = splits or ("train", "validation")[: len(files)]
    if not len(files) == len(images) == len(set(splits)) == len(splits):
        raise DataError(
            f"--source names {len(files)} json files, --images {len(images)} folders, "
            f"--splits {', '.join(splits)}; allowed: as many of each, splits all unlike"
        )
    return {
        _tfds_name(split): coco.load(file, folder, masks=masks, bad_boxes=bad_boxes)
        for split, file, folder in zip(splits, files, images, strict=True)
    }


def _tfds_name(split: str) -> str:
    return {"val": "validation"}.get(split, split)


if __name__ == "__main__":
    command_line.run(main)
