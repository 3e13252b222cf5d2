"""COCO numbers of a trained detector: python -m experiments.evaluate runs/quickstart

On the digits' validation split by default, on a COCO-format folder or on a prepared
TFDS data set if one is named. `--pictures 20` also draws as many of its images, the
truth beside the detections.
"""

import collections
import json
import pathlib
import re
from typing import Literal

import numpy as np
import tyro
from PIL import Image

from experiments import command_line
from jaxdet.data import coco, digits, tfds
from jaxdet.data.dataset import DataError, DataSet
from jaxdet.evaluation.coco import coco_metrics, format_metrics
from jaxdet.evaluation.evaluate import detect_all
from jaxdet.inference import load_trained
from jaxdet.visualize import truth_beside_detections


def main(
    workdir: tyro.conf.Positional[pathlib.Path],
    *,
    annotations: pathlib.Path | None = None,
    images: pathlib.Path | None = None,
    tfds_directory: pathlib.Path | None = None,
    split: str = "validation",
    step: int | Literal["best", "latest"] = "best",
    batch_size: int = 8,
    json_file: pathlib.Path | None = None,
    pictures: int = 0,
    output: pathlib.Path = pathlib.Path("detections"),
    min_score: float = 0.3,
):
    """Evaluates a run.

    Args:
      workdir: the run folder that training wrote.
      annotations: COCO-format json.
      images: folder of its image files; by default that of the json.
      tfds_directory: folder of a prepared TFDS data set, with dataset_info.json.
      split: of the TFDS data set, or of the digits.
      step: which checkpoint; "best" is that of highest AP.
      batch_size: images at a time.
      json_file: where to write the detections in COCO's format.
      pictures: how many images to draw, the first ones.
      output: folder for these pictures.
      min_score: lower scores are not drawn; they count in the numbers.
    """
    if images is not None and annotations is None:
        raise DataError(f"--images {images} without --annotations, the json on them")
    if annotations is not None and tfds_directory is not None:
        raise DataError(
            f"--annotations {annotations} and --tfds-directory {tfds_directory}; "
            "one data set is evaluated: leave one out"
        )
    for name, value, least in (
        ("batch-size", batch_size, 1),
        ("pictures", pictures, 0),
    ):
        if value < least:
            raise DataError(f"--{name} is {value}; it must be at least {least}")
    trained = load_trained(workdir, step=step)
    data_set = _load(annotations, images, tfds_directory, split)
    if trained.run.class_names != data_set.class_names:
        raise DataError(
            f"{workdir} knows the classes {trained.run.class_names}, "
            f"{data_set.name} has {data_set.class_names}"
        )
    detections = detect_all(
        trained.detector,
        trained.variables,
        data_set,
        trained.run.training.input,
        batch_size=batch_size,
    )
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(detections))
    print(format_metrics(coco_metrics(data_set.ground_truth(), detections)))
    if pictures:
        shown = [found for found in detections if found["score"] >= min_score]
        _draw_first(pictures, data_set, shown, output)


def _load(annotations, images, tfds_directory, split) -> DataSet:
    if annotations is not None:
        return coco.load(annotations, images or annotations.parent)
    if tfds_directory is not None:
        return tfds.load_directory(tfds_directory, split)
    return digits.load(split)


def _draw_first(
    count: int, data_set: DataSet, detections: list[dict], output: pathlib.Path
) -> None:
    """Writes `POSITION_ID.png` for the first images; detections are COCO's results."""
    found_in = collections.defaultdict(list)
    for found in detections:
        found_in[found["image_id"]].append(found)
    labels = {number: label for label, number in enumerate(data_set.category_ids)}
    output.mkdir(parents=True, exist_ok=True)
    for position, image_id in enumerate(data_set.image_ids[:count]):
        try:
            image = data_set.read_image(position)
        except DataError as error:
            print(f"left out: {error}")
            continue
        found = found_in[image_id]
        boxes = np.array([one["bbox"] for one in found], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        picture = truth_beside_detections(
            image,
            data_set.objects[position],
            (
                boxes,
                np.array([labels[one["category_id"]] for one in found], int),
                np.array([one["score"] for one in found], float),
            ),
            class_names=data_set.class_names,
        )
        name = re.sub(r"[^\w.-]+", "_", str(image_id))
        Image.fromarray(picture).save(output / f"{position:06d}_{name}.png")
    print(f"pictures of the first {min(count, len(data_set))} images: see {output}")


if __name__ == "__main__":
    command_line.run(main)
