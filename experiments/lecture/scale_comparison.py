"""Compares three ways to find all sizes.

    python -m experiments.lecture.scale_comparison

Digits of 10 to 64 pixels on scenes of 128, and one RetinaNet, for as many steps each:

    image_pyramid  one level of features, for objects of one octave, trained on images
                   of half, of their own and of twice their size, and predicting on
                   all three
    plain_stages   three levels, each a stage of the backbone: the finer, the shallower
    fpn            the same three levels, joined by the top-down path

The heads, the anchors' sizes in the pixels that they see, and all else are the same;
the image pyramid is trained on three views of each image, so its steps take longer. AP
by size is COCO's with boxes three times as large, since a scene is about a third of a
photograph: small objects have areas below 10.7 x 10.7 pixels, large ones above 32 x 32.
Measured numbers stand in experiments/README.md.
"""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Literal

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments import command_line
from experiments.benchmarks import report
from experiments.recipes import retinanet_digits
from jaxdet.config import Anchors
from jaxdet.data.formats import digits
from jaxdet.detectors.detector import Detector
from jaxdet.detectors.image_pyramid import (
    AllScalesConfig,
    ImagePyramidConfig,
    at_all_scales,
    image_pyramid,
)
from jaxdet.detectors.retinanet import retinanet
from jaxdet.evaluation.coco import PRECISIONS, coco_metrics
from jaxdet.evaluation.evaluate import evaluate
from jaxdet.training.config import TrainingConfig
from jaxdet.training.train import train

DIGIT_SIDES = (10, 64)
MAGNIFIED = 3.0  # before COCO's evaluator, whose ranges end at 32 and 96 pixels
SMALL = retinanet_digits.RECIPE
LEVELS = dataclasses.replace(
    SMALL.detector,
    levels=(2, 3, 4),
    anchors=Anchors(
        ((8.0, 11.3), (16.0, 22.6), (32.0, 45.3)),
        ratios=SMALL.detector.anchors.ratios,
    ),
)
ONE_LEVEL = dataclasses.replace(
    LEVELS,
    levels=(3,),
    anchors=dataclasses.replace(LEVELS.anchors, sizes=((16.0, 22.6),)),
)
SCALES = (0.5, 1.0, 2.0)
# An octave and a little more, so that objects between two scales train both.
TRAINED_ON = AllScalesConfig(scales=SCALES, object_sizes=(11.3, 32.0))
PREDICTING = ImagePyramidConfig(scales=SCALES, max_detections=50)
TRAINING = dataclasses.replace(SMALL.training, steps=1600)

Way = Literal["image_pyramid", "plain_stages", "fpn"]
WAYS: tuple[Way, ...] = ("image_pyramid", "plain_stages", "fpn")
TITLES: dict[Way, str] = {
    "image_pyramid": "image pyramid",
    "plain_stages": "plain stages",
    "fpn": "feature pyramid",
}
DRAWN = {
    "AP": "all",
    "APs": "small\nbelow 10.7 x 10.7 pixels",
    "APm": "medium",
    "APl": "large\nabove 32 x 32 pixels",
}


def main(
    training: TrainingConfig = TRAINING,
    *,
    ways: tuple[Way, ...] = WAYS,
    workdir: pathlib.Path = pathlib.Path("runs/scale_comparison"),
):
    """Trains all three and writes their APs: `scales.json`, `scales.md`, `scales.png`.

    Args:
      training: numbers of each training.
      ways: which to train; table and figure are of these.
      workdir: holds the run folder of each; started again, they go on where they
        stopped.
    """
    data_set, validation = (
        digits.load(split, digit_sides=DIGIT_SIDES) for split in ("train", "validation")
    )
    rows = {}
    for way in ways:

        def metrics(truth: dict, detections: list[dict], way=way) -> dict[str, float]:
            numbers = metrics_by_size(truth, detections)
            rows[way] = {name: numbers[name] for name in PRECISIONS}
            return numbers

        model = detector(way)
        state = train(
            model,
            data_set,
            training,
            workdir=workdir / way,
            validation=validation,
            metrics=metrics,
        )
        if way not in rows:  # there was nothing left to train
            evaluate(
                model,
                state.variables,
                validation,
                training.input,
                batch_size=training.batch_size,
                metrics=metrics,
            )
    text = table(rows)
    if jax.process_index() > 0:
        return  # every host has all rows, and the first one writes them
    report.save(workdir / "scales", rows, text, figure(rows))
    print(text, end="")


def detector(way: Way) -> Detector:
    """Returns one of the three, on the quickstart's backbone."""
    if way == "image_pyramid":
        backbone = dataclasses.replace(SMALL.backbone, coarsest=3)
        one_level = at_all_scales(retinanet(ONE_LEVEL, backbone), TRAINED_ON)
        return image_pyramid(one_level, PREDICTING)
    levels = dataclasses.replace(LEVELS, top_down=way == "fpn")
    return retinanet(levels, SMALL.backbone)


def metrics_by_size(ground_truth: dict, detections: list[dict]) -> dict[str, float]:
    """Returns COCO's metrics of magnified boxes, so that its sizes fit small scenes."""
    annotations = list(_magnified(ground_truth["annotations"]))
    truth = ground_truth | {"annotations": annotations}
    return coco_metrics(truth, list(_magnified(detections)))


def table(rows: dict[str, dict[str, float]]) -> str:
    """Returns a row for each way, its APs in percent."""
    cells = [
        [TITLES[way], *(f"{100 * numbers[name]:.1f}" for name in PRECISIONS)]
        for way, numbers in rows.items()
    ]
    return report.table(["", *PRECISIONS], cells)


def figure(rows: dict[str, dict[str, float]]) -> Figure:
    """Draws AP by the size of objects, a bar for each way."""
    drawn = Figure(figsize=(8, 4.5), layout="constrained", dpi=110)
    axes = drawn.subplots()
    places, width = np.arange(len(DRAWN)), 0.8 / len(rows)
    for index, (way, numbers) in enumerate(rows.items()):
        precisions = [100 * numbers[name] for name in DRAWN]
        shift = (index - (len(rows) - 1) / 2) * width
        bars = axes.bar(places + shift, precisions, width, label=TITLES[way])
        axes.bar_label(bars, fmt="%.1f", fontsize="small")
    axes.set_xticks(places, DRAWN.values())
    axes.set(ylim=(0, 100), xlabel="size of the object", ylabel="AP, %")
    axes.set_title("Three ways to find all sizes")
    axes.legend(ncols=len(rows))
    return drawn


def _magnified(entries: Iterable[dict]) -> Iterable[dict]:
    for entry in entries:
        larger = {"bbox": [MAGNIFIED * value for value in entry["bbox"]]}
        if "area" in entry:
            larger["area"] = MAGNIFIED**2 * entry["area"]
        yield entry | larger


if __name__ == "__main__":
    command_line.run(main)
