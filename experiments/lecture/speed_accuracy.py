"""Draws speed against accuracy: python -m experiments.lecture.speed_accuracy

RetinaNet, FCOS, SSD and Faster R-CNN on the same backbones, each trained once on
canvases of several sizes, then evaluated and timed on each of them: AP against
milliseconds an image, as a figure and a table. The Pareto front joins the points
that no other beats in both.

    python -m experiments.lecture.speed_accuracy  # digits, for two CPU cores
    python -m experiments.lecture.speed_accuracy \
        --depths 18 34 50 --training.steps 4800 \
        --training.input.multi-scale 0.5 0.75 1 1.25 1.5    # a GPU

A time is that from an image in the host's memory to its detections, after NMS, on the
device. The detectors take turns, so that a busy machine is fair to all of them.
Measured numbers stand in experiments/README.md.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from experiments import command_line
from experiments import recipe as recipes
from experiments.benchmarks import report
from experiments.benchmarks.models import MODELS
from experiments.benchmarks.timing import medians
from experiments.command_line import Precision
from experiments.data_option import (
    DIGITS,
    VALIDATION,
    DataOption,
    Flat,
    ValidationOption,
)
from experiments.recipes import (
    faster_rcnn_digits,
    fcos_digits,
    retinanet_digits,
    ssd_digits,
)
from jaxdet.config import ConfigError
from jaxdet.data import batching
from jaxdet.data.dataset import DataSet
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.detector import Detector
from jaxdet.detectors.faster_rcnn import FasterRCNNConfig
from jaxdet.detectors.fcos import FCOSConfig
from jaxdet.detectors.retinanet import RetinaNetConfig
from jaxdet.detectors.ssd import SSDConfig
from jaxdet.evaluation.evaluate import evaluate
from jaxdet.training.config import TrainingConfig
from jaxdet.training.train import train

Name = Literal["retinanet", "fcos", "ssd", "faster_rcnn"]
NAMES: tuple[Name, ...] = get_args(Name)
BESIDE = {"textcoords": "offset points", "xytext": (5, -10), "fontsize": 8}
RECIPES = {
    "retinanet": retinanet_digits.RECIPE,
    "fcos": fcos_digits.RECIPE,
    "ssd": ssd_digits.RECIPE,
    "faster_rcnn": faster_rcnn_digits.RECIPE,
}
BASE = retinanet_digits.RECIPE.training
TRAINING = dataclasses.replace(
    BASE,
    input=dataclasses.replace(BASE.input, multi_scale=(0.75, 1.0, 1.25)),
)


@dataclasses.dataclass(frozen=True)
class Detectors:
    """The numbers of all four, by default those of the recipes on digits."""

    retinanet: RetinaNetConfig = retinanet_digits.RECIPE.detector
    """Numbers of RetinaNet; the classes are those of the data."""
    fcos: FCOSConfig = fcos_digits.RECIPE.detector  # numbers of FCOS
    ssd: SSDConfig = ssd_digits.RECIPE.detector  # numbers of SSD
    faster_rcnn: FasterRCNNConfig = faster_rcnn_digits.RECIPE.detector
    """Numbers of Faster R-CNN."""


class Point(NamedTuple):
    """Speed and accuracy of one detector on one canvas."""

    detector: Name
    depth: int  # of its ResNet
    canvas: tuple[int, int]  # (height, width); of several, the first
    milliseconds: float  # an image, the median
    ap: float  # in [0, 1], as `ap50`
    ap50: float


def main(
    detector: Detectors = Detectors(),
    training: TrainingConfig = TRAINING,
    source: Flat[DataOption] = DIGITS,
    validation_source: Flat[ValidationOption] = VALIDATION,
    *,
    names: tuple[Name, ...] = NAMES,
    depths: tuple[int, ...] = (10, 18),
    timed: int = 50,
    precision: Precision = "float32",
    workdir: pathlib.Path = pathlib.Path("runs/speed_accuracy"),
):
    """Trains and measures; leaves `speed_accuracy.json`, `.md` and `.png`.

    Args:
      detector: numbers of the detectors; the classes are those of the data.
      training: numbers of each training; the sizes are its canvases, times each factor
        of `input.multi_scale`.
      source: the images to train on.
      validation_source: the images to evaluate on.
      names: which detectors.
      depths: of the ResNets of half width; each detector is trained with each.
      timed: how many validation images are timed, one at a time.
      precision: of the networks' arithmetic; parameters and losses are float32.
      workdir: holds the run folder of each; started again, they go on where they
        stopped.

    Raises:
      ConfigError: if no image is to be timed, or options of a data set are missing.
    """
    if timed < 1:
        raise ConfigError(f"--timed is {timed}; it must be at least 1")
    data_set, validation = validation_source.load(source)
    if validation is None:
        raise ConfigError("--validation-data is missing: what to evaluate on")
    rows, calls = [], []
    for name, depth in itertools.product(names, depths):
        model = make(name, depth, detector, data_set, precision)
        folder = workdir / f"{name}_resnet{depth}"
        state = train(model, data_set, training, workdir=folder, validation=validation)
        variables = jax.device_get(state.variables)
        for one_size in sizes(training.input):
            metrics = evaluate(model, variables, validation, one_size)
            rows.append((name, depth, one_size.canvases[0], metrics))
            calls.append(predictions(model, variables, validation, one_size, timed))
    points = [
        Point(name, depth, canvas, time, metrics["AP"], metrics["AP50"])
        for (name, depth, canvas, metrics), time in zip(
            rows, medians(calls, timed), strict=True
        )
    ]
    if jax.process_index() > 0:
        return  # every host has all points, and the first one writes them
    setting = {"steps": training.steps, "precision": precision, "timed": timed}
    measured = {"machine": report.machine(), "setting": setting}
    measured["points"] = [point._asdict() for point in points]
    text = table(points)
    report.save(workdir / "speed_accuracy", measured, text, figure(points))
    print(text, end="")


def make(
    name: Name,
    depth: int,
    configs: Detectors,
    data_set: DataSet,
    precision: Precision,
) -> Detector:
    """Returns a detector of the data set's classes.

    Args:
      name: of the detector.
      depth: of its ResNet, made as far as the detector needs it.
      configs: its numbers are among them.
      data_set: what it is trained on.
      precision: of its arithmetic.

    Raises:
      ConfigError: if its config asks for another number of classes.
    """
    recipe = RECIPES[name]
    config = recipes.with_classes_of(
        data_set,
        getattr(configs, name),
        recipe.detector,
        option=f"--detector.{name.replace('_', '-')}",
    )
    levels = config.rpn.levels if name == "faster_rcnn" else config.levels
    backbone = recipe.backbone.clone(depth=depth, coarsest=min(5, max(levels)))
    recipe = dataclasses.replace(recipe, detector=config, backbone=backbone)
    return recipes.build(recipes.with_options(recipe, dtype=jnp.dtype(precision).type))


def sizes(config: InputConfig) -> list[InputConfig]:
    """Returns a config for each size of the canvases, from small to large."""
    every = {
        dataclasses.replace(config, multi_scale=(factor,)).training_canvases
        for factor in config.multi_scale
    }
    return [
        dataclasses.replace(config, canvases=canvases, multi_scale=(1.0,))
        for canvases in sorted(every)
    ]


def predictions(
    detector: Detector,
    variables: Any,
    data_set: DataSet,
    config: InputConfig,
    count: int,
) -> Callable[[], Any]:
    """Returns a function that predicts the next image.

    Args:
      detector: with a compiled `predict`.
      variables: of it.
      data_set: of the images, which are repeated.
      config: how they come onto a canvas.
      count: how many of them are used, the first ones.
    """
    variables, predict = jax.device_put(variables), jax.jit(detector.predict)
    nothing_ahead = dataclasses.replace(config, workers=0)
    images = batching.evaluation_batches(data_set, nothing_ahead, batch_size=1)
    images = list(itertools.islice(images, count))
    for image in images:  # compiles for every canvas
        jax.block_until_ready(predict(variables, image))
    images = itertools.cycle(images)
    return lambda: predict(variables, next(images))


def table(points: Sequence[Point]) -> str:
    """Returns a row for each point, its APs in percent."""
    heads = "detector", "backbone", "canvas, pixels", "ms an image", "AP", "AP50"
    return report.table(
        heads,
        [
            [
                MODELS[point.detector].title,
                f"ResNet-{point.depth}",
                _size(point.canvas),
                f"{point.milliseconds:.3g}",
                f"{100 * point.ap:.1f}",
                f"{100 * point.ap50:.1f}",
            ]
            for point in points
        ],
    )


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Returns the points that no other beats in speed and accuracy at once.

    Args:
      points: in any order.

    Returns:
      From the fastest to the most accurate.
    """
    front: list[Point] = []
    for point in sorted(points, key=lambda x: (x.milliseconds, -x.ap)):
        if not front or point.ap > front[-1].ap:
            front.append(point)
    return front


def figure(points: Sequence[Point]) -> Figure:
    """Draws a line through the sizes of each detector and backbone."""
    drawing = Figure(figsize=(8, 5), layout="constrained")
    panel = drawing.subplots()
    depths = sorted({point.depth for point in points})
    markers = dict(zip(depths, itertools.cycle("os^Dv*"), strict=False))
    for (name, depth), line in itertools.groupby(points, lambda point: point[:2]):
        line = list(line)
        color = f"C{NAMES.index(name)}"
        places = [(point.milliseconds, 100 * point.ap) for point in line]
        style = {"color": color, "marker": markers[depth]}
        label = f"{MODELS[name].title}, ResNet-{depth}"
        panel.plot(*zip(*places, strict=True), **style, label=label)
        for point, place in zip(line, places, strict=True):
            panel.annotate(_size(point.canvas), place, color=color, **BESIDE)
    front = [(point.milliseconds, 100 * point.ap) for point in pareto_front(points)]
    panel.plot(*zip(*front, strict=True), "--", color="gray", label="Pareto front")
    panel.set(xlabel="ms an image (median, one at a time)", ylabel="AP, %")
    panel.set_title("Speed against accuracy, by pixels of the canvas")
    panel.grid(alpha=0.3)
    panel.legend()
    return drawing


def _size(canvas: tuple[int, int]) -> str:
    height, width = canvas
    return f"{height}" if height == width else f"{height}x{width}"


if __name__ == "__main__":
    command_line.run(main)
