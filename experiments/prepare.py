"""Prepares a data set for TFDS, once: python -m experiments.prepare --data train.json

Turns any data set that `--data` takes into ArrayRecord files with an index of its image
sizes and objects: a start then reads a few files, not all. `tfds.load` (with TensorFlow
not even installed) and every `--data` here take it. Each json becomes a split; of other
sources `--splits` names those to take:

    python -m experiments.prepare --data train.json val.json --images train val \\
        --splits train validation --tfds-dir ~/tensorflow_datasets --name photos
    python -m experiments.prepare --data VOCdevkit/VOC2007 --splits train val test \\
        --tfds-dir ~/tensorflow_datasets
"""

import dataclasses
import pathlib
import re

from experiments import command_line
from experiments.data_option import DataOption, Flat
from jaxdet.data import prepare
from jaxdet.data.dataset import DataError, DataSet


def main(
    source: Flat[DataOption],
    *,
    tfds_dir: pathlib.Path,
    splits: tuple[str, ...] = (),
    name: str | None = None,
    masks: bool = False,
):
    """Writes the data set and prints its folder.

    Args:
      source: the images; of several json files each is a split, other sources are
        joined.
      tfds_dir: where TFDS keeps data sets; the new one becomes its folder NAME/1.0.0.
      splits: what each json is called, by default train and validation; or which splits
        of the source to take, by default its own to train on. val becomes validation,
        as in TFDS's own sets.
      name: of the data set; by default the first source's.
      masks: keep the segmentations of COCO's formats.

    Raises:
      DataError: for options that do not go together; before anything is read if the
        folder is there already.
    """
    if not source.data:
        raise DataError("--data is missing: the data set; --help tells what it takes")
    name = name or re.sub(r"\W+", "_", pathlib.Path(source.data[0]).stem).lower()
    prepare.new_folder(tfds_dir, name)  # before anything is read
    load = _load_files if source.data[0].endswith(".json") else _load_splits
    data_sets = load(source, splits, masks)
    folder = prepare.save(data_sets, tfds_dir, name)
    for split, data_set in data_sets.items():
        print(f"{split:>12} {len(data_set):8} images")
    print(folder)


def _load_files(source: DataOption, splits, masks) -> dict[str, DataSet]:
    """Loads each json as a split."""
    splits = splits or ("train", "validation")[: len(source.data)]
    images = source.images or [None] * len(source.data)
    if not len(source.data) == len(images) == len(set(splits)) == len(splits):
        raise DataError(
            f"--data names {len(source.data)} json files, --images {len(images)} "
            f"folders, --splits {', '.join(splits)}; allowed: as many of each, splits "
            "all unlike"
        )
    data_sets = {}
    for split, file, folder in zip(splits, source.data, images, strict=True):
        folders = () if folder is None else (folder,)
        part = dataclasses.replace(source, data=(file,), images=folders)
        data_sets[_tfds_name(split)] = part.load(masks=masks)
    return data_sets


def _load_splits(source: DataOption, splits, masks) -> dict[str, DataSet]:
    """Loads splits of the same sources, with the classes of all of them."""
    data_sets = source.load_splits(splits, masks=masks)
    return {_tfds_name(split): data_set for split, data_set in data_sets.items()}


def _tfds_name(split: str) -> str:
    return {"val": "validation", "val2017": "validation", "train2017": "train"}.get(
        split, split
    )


if __name__ == "__main__":
    command_line.run(main)
