"""Measures what tiles find in large pictures of small objects.

python -m experiments.benchmarks.tiles --data coco128 --split val2017

Shrinks COCO's pictures, lays them side by side into mosaics, and evaluates the
pretrained SSD-MobileNetV2 on these, as whole images and in tiles.
"""

import json
import pathlib
import time

import cv2
import numpy as np
from PIL import Image

from experiments import command_line
from experiments.data_option import NO_DATA, DataOption, Flat
from jaxdet.data.dataset import DataSet
from jaxdet.data.formats import coco
from jaxdet.evaluation.evaluate import default_metrics
from jaxdet.inference.load import detect_data_set, load_detector, make_detect
from jaxdet.inference.tiles import TilesConfig

COLUMNS = ("AP", "AP50", "APs", "APm", "APl")


def main(
    source: Flat[DataOption] = NO_DATA,
    *,
    side: int = 300,
    mosaic: tuple[int, int] = (1800, 2400),
    tiles: tuple[int, ...] = (640, 320),
    output: pathlib.Path = pathlib.Path("mosaics"),
):
    """Prints a table of AP and seconds an image.

    Args:
      source: COCO's pictures, or some of them.
      side: what the longer side of a picture becomes, in pixels.
      mosaic: (height, width).
      tiles: pixels a side, of each line of the table but the first.
      output: folder for the mosaics and their annotations.
    """
    pictures = source.load(role="validation", class_names=coco.CLASS_NAMES)
    data_set = coco.load(make_mosaics(pictures, side, mosaic, output), output)
    trained = load_detector("ssd_mobilenet_v2")
    measure = default_metrics(trained.detector)
    print(f"| tiles | {' | '.join(COLUMNS)} | s an image |\n|{'---|' * 7}")
    for size in (None, *tiles):
        detect = make_detect(trained, tiles=size and TilesConfig(size=size))
        detect(data_set.read_image(0))  # compiles
        start = time.perf_counter()
        results = detect_data_set(detect, data_set, progress=False)
        seconds = (time.perf_counter() - start) / len(data_set)
        measured = measure(data_set.ground_truth(), results)
        numbers = " | ".join(f"{100 * measured[name]:.1f}" for name in COLUMNS)
        print(f"| {size or 'none'} | {numbers} | {seconds:.1f} |")


def make_mosaics(
    data_set: DataSet, side: int, size: tuple[int, int], output: pathlib.Path
) -> pathlib.Path:
    """Writes mosaics of shrunk pictures, row by row on gray, and their annotations.

    Args:
      data_set: the pictures.
      side: what the longer side of each becomes.
      size: (height, width) of a mosaic.
      output: folder to write to.

    Returns:
      The file of annotations, in COCO's format.
    """
    output.mkdir(parents=True, exist_ok=True)
    rows, columns = size[0] // side, size[1] // side
    truth = data_set.ground_truth()
    positions = {number: place for place, number in enumerate(data_set.image_ids)}
    factors = side / data_set.sizes.max(axis=1)
    images, annotations = [], []
    for first in range(0, len(data_set), rows * columns):
        canvas = np.full((*size, 3), 114, np.uint8)
        inside = range(first, min(first + rows * columns, len(data_set)))
        for position in inside:
            top, left = side * np.array(divmod(position - first, columns))
            height, width = np.round(data_set.sizes[position] * factors[position])
            height, width = int(height), int(width)
            canvas[top : top + height, left : left + width] = cv2.resize(
                data_set.read_image(position),
                (width, height),
                interpolation=cv2.INTER_AREA,
            )
        number = len(images) + 1
        Image.fromarray(canvas).save(output / f"{number}.png")
        entry = {"id": number, "file_name": f"{number}.png"}
        images.append(entry | {"height": size[0], "width": size[1]})
    for one in truth["annotations"]:
        position = positions[one["image_id"]]
        number, cell = divmod(position, rows * columns)
        row, column = divmod(cell, columns)
        factor = factors[position].item()
        x, y, width, height = (factor * value for value in one["bbox"])
        moved = {
            "image_id": number + 1,
            "bbox": [x + side * column, y + side * row, width, height],
            "area": one["area"] * factor**2,
        }
        kept = {key: one[key] for key in ("id", "category_id", "iscrowd")}
        annotations.append(kept | moved)
    file = output / "annotations.json"
    categories = truth["categories"]
    parts = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(parts))
    return file


if __name__ == "__main__":
    command_line.run(main)
