"""Region proposals by selective search: python -m experiments.proposals

Makes and keeps what R-CNN, SPP-net and Fast R-CNN look at, and prints how many of the
objects they find. On the digits' training split by default, on a COCO-format folder,
Pascal VOC folders or a TFDS data set if one is named; started again, it goes on where
it stopped.
Target: recall 0.99 at 0.5 with 10,097 proposals an image of VOC 2007 (Uijlings et al.
2013, abstract; their "quality"). Measured on 100 images of digits: "fast" 0.97 with 158
proposals, "quality" 1.00 with 421.
"""

import pathlib
from typing import Literal

from experiments import command_line
from jaxdet.data import proposals
from jaxdet.data.dataset import DataError, DataSet
from jaxdet.data.formats import coco, digits, tfds, voc


def main(
    *,
    annotations: pathlib.Path | None = None,
    images: pathlib.Path | None = None,
    voc_folders: tuple[pathlib.Path, ...] = (),
    tfds_name: str | None = None,
    split: str | None = None,
    mode: Literal["fast", "quality"] = "fast",
    max_per_image: int = 2000,
    cache: pathlib.Path | None = None,
    output: pathlib.Path | None = None,
):
    """Makes proposals and prints their recall.

    Args:
      annotations: COCO-format json.
      images: folder of its image files; by default that of the json.
      voc_folders: Pascal VOC folders, such as VOCdevkit/VOC2007.
      tfds_name: of a data set that TFDS has prepared, such as voc/2007.
      split: "trainval" of VOC, "train" of TFDS data sets and of the digits if not
        given.
      mode: "quality" finds more, and takes about four times as long.
      max_per_image: proposals, at most.
      cache: folder for them; by default one of their own, where training finds them.
      output: .npz or .json file to write them to, besides.

    Raises:
      DataError: for options that do not go together or are out of their range.
    """
    if images is not None and annotations is None:
        raise DataError(f"--images {images} without --annotations, the json on them")
    command_line.at_most_one(
        {
            "--annotations": annotations,
            "--voc-folders": voc_folders,
            "--tfds-name": tfds_name,
        }
    )
    if max_per_image < 1:
        raise DataError(f"--max-per-image is {max_per_image}; it must be at least 1")
    data_set = proposals.with_selective_search(
        _load(annotations, images, voc_folders, tfds_name, split),
        mode=mode,
        max_per_image=max_per_image,
        cache_dir=cache,
    )
    if output is not None:
        proposals.save(output, data_set)
    for name, value in proposals.recall(data_set).items():
        print(f"{name:>12} {value:8.3f}")


def _load(annotations, images, voc_folders, tfds_name, split) -> DataSet:
    if annotations is not None:
        return coco.load(annotations, images or annotations.parent)
    if voc_folders:
        return voc.load(*voc_folders, split=split or "trainval", class_names=None)
    if tfds_name is not None:
        return tfds.load(tfds_name, split or "train")
    return digits.load(split or "train")


if __name__ == "__main__":
    command_line.run(main)
