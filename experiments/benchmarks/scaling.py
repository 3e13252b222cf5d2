"""Measures growth of time and memory: python -m experiments.benchmarks.scaling

RetinaNet and Faster R-CNN with narrow ResNet-10s get more pixels, larger batches, more
anchors, objects, proposals and classes, one of them at a time. Exponents are fitted to
the last three points of each line: 1 is linear, and the report names what is worse.
Memory is what the compiled program takes in, holds and gives back.

    python -m experiments.benchmarks.scaling  # two CPU cores: ten minutes
    python -m experiments.benchmarks.scaling --width 64 --batch 8    # a GPU
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from experiments import command_line
from experiments.benchmarks import models, report, speed
from experiments.benchmarks.models import MODELS
from experiments.benchmarks.timing import medians
from jaxdet.config import Anchors
from jaxdet.detectors.detector import Detector
from jaxdet.detectors.faster_rcnn import FasterRCNNConfig, faster_rcnn
from jaxdet.detectors.retinanet import RetinaNetConfig, retinanet
from jaxdet.detectors.roi_heads import RoIHeadsConfig
from jaxdet.detectors.rpn import RPNConfig
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.heads import FCHead
from jaxdet.ops import anchors

Name = Literal["retinanet", "faster_rcnn"]
Varied = Literal["pixels", "batch", "anchors", "objects", "proposals", "classes"]
Task = Literal["predict", "train"]
STYLES = {"predict": "--", "train": "-"}
LINEAR = 1.15  # the largest exponent that noise may make of 1
HEADS = ("with", "detector", "task", "values", "ms", "MB", "exponent of ms", "of MB")


@dataclasses.dataclass(frozen=True)
class Setting:
    """All numbers that are varied."""

    detector: Name = "retinanet"  # with a narrow ResNet-10
    side: int = 128  # of the square canvas, pixels
    batch: int = 1  # images
    anchor_sizes: int = 3  # in every cell, of three ratios each
    objects: int = 20  # in every image
    proposals: int = 200  # of the RPN; the RoI heads are trained on half of them
    classes: int = 80  # without background
    width: int = 16  # of the ResNet


# The field that is varied, its values, the detectors.
VARIED = {
    "pixels": ("side", (128, 256, 384, 512), get_args(Name)),
    "batch": ("batch", (1, 2, 4, 8), get_args(Name)),
    "anchors": ("anchor_sizes", (3, 9, 27, 81), get_args(Name)),
    "objects": ("objects", (10, 30, 100, 300), get_args(Name)),
    "proposals": ("proposals", (125, 250, 500, 1000), ("faster_rcnn",)),
    "classes": ("classes", (80, 365, 1203), get_args(Name)),
}


class Point(NamedTuple):
    """What one setting takes."""

    varied: Varied
    detector: Name
    task: Task
    value: int  # of what is varied
    milliseconds: float  # the median
    memory: int  # bytes


def main(
    *,
    varied: tuple[Varied, ...] = get_args(Varied),
    batch: int = 1,
    width: int = 16,
    repeats: int = 5,
    output: pathlib.Path = pathlib.Path("runs/scaling"),
):
    """Measures, and writes `scaling.json`, `.md` and `.png` after each line.

    Args:
      varied: what is varied.
      batch: images of a batch, where that is not varied.
      width: channels of the ResNets' first layer.
      repeats: calls whose median is taken.
      output: folder of the files.

    Raises:
      ConfigError: if `repeats` is below 1.
    """
    setting = {"batch": batch, "width": width, "repeats": repeats}
    points = []
    for name in varied:
        field, values, detectors = VARIED[name]
        for detector, value in itertools.product(detectors, values):
            common = Setting(detector, batch=batch, width=width)
            point = dataclasses.replace(common, **{field: value})
            points += measure(name, point, repeats)
        measured = {
            "machine": report.machine(),
            "setting": setting,
            "points": [point._asdict() for point in points],
            "exponents": growth(points),
        }
        report.save(output / "scaling", measured, table(points), figure(points))
        print(table([point for point in points if point.varied == name]), flush=True)


def measure(varied: Varied, setting: Setting, repeats: int) -> list[Point]:
    """Times one setting's `predict` and training step.

    Args:
      varied: objects change nothing in `predict`, which is left out then.
      setting: all numbers.
      repeats: calls whose median is taken.

    Returns:
      A point for each task.
    """
    detector, canvas = make(setting), (setting.side, setting.side)
    batch = models.random_batch(setting.batch, canvas, setting.objects, setting.classes)
    tasks = ("train",) if varied == "objects" else ("train", "predict")
    programs = [speed.prepare(detector, batch, task) for task in tasks]
    times = medians([program.call for program in programs], repeats)
    value = varied_value(varied, setting)
    return [
        Point(varied, setting.detector, task, value, time, program.figures["memory"])
        for task, program, time in zip(tasks, programs, times, strict=True)
    ]


def make(setting: Setting) -> Detector:
    """Returns the detector of a setting."""
    count = setting.anchor_sizes
    sizes = tuple(
        tuple(4 * 2**level * 2 ** (i / count) for i in range(count))
        for level in range(2, 7)
    )
    layers = {"anchors": Anchors(sizes), "channels": 64}
    backbone = ResNet(10, setting.width)
    if setting.detector == "retinanet":
        levels = (3, 4, 5, 6, 7)
        config = RetinaNetConfig(
            num_classes=setting.classes, levels=levels, head_depth=1, **layers
        )
        return retinanet(config, backbone)
    rpn = RPNConfig(
        levels=(2, 3, 4, 5, 6),
        post_nms_topk_train=setting.proposals,
        post_nms_topk=setting.proposals,
        **layers,
    )
    roi_heads = RoIHeadsConfig(batch_size_per_image=setting.proposals // 2)
    config = FasterRCNNConfig(num_classes=setting.classes, rpn=rpn, roi_heads=roi_heads)
    return faster_rcnn(config, backbone, FCHead(128))


def varied_value(varied: Varied, setting: Setting) -> int:
    """Returns what is varied as a number: of pixels, anchors, objects, ..."""
    if varied == "pixels":
        return setting.side**2
    if varied == "anchors":
        levels = range(3, 8) if setting.detector == "retinanet" else range(2, 7)
        canvas, per_cell = (setting.side, setting.side), 3 * setting.anchor_sizes
        return anchors.num_anchors(canvas, levels=levels, per_cell=per_cell)
    return getattr(setting, VARIED[varied][0])


def growth(points: Sequence[Point]) -> list[dict]:
    """Fits the exponents of all lines' time and memory, to their last three points."""
    exponents = []
    for line in _lines(points):
        logs = np.log([[p.value, p.milliseconds, p.memory] for p in line[-3:]])
        time, memory = np.polyfit(logs[:, 0], logs[:, 1:], 1)[0].tolist()
        names = dict(zip(Point._fields[:3], line[0], strict=False))
        exponents.append({**names, "time": time, "memory": memory})
    return exponents


def table(points: Sequence[Point]) -> str:
    """Returns each line's points and exponents, and what is worse than linear."""
    rows, worse = [], []
    for line, exponents in zip(_lines(points), growth(points), strict=True):
        varied, detector, task = line[0][:3]
        title = MODELS[detector].title
        values = " / ".join(f"{point.value:,}" for point in line)
        milliseconds = " / ".join(_rounded(point.milliseconds) for point in line)
        megabytes = " / ".join(_rounded(point.memory / 1e6) for point in line)
        cells = [varied, title, task, values, milliseconds, megabytes]
        rows.append([*cells, *(f"{exponents[x]:.2f}" for x in ("time", "memory"))])
        worse += [
            f"{what} of {title}'s {task} with {varied} ({exponents[what]:.2f})"
            for what in ("time", "memory")
            if exponents[what] > LINEAR
        ]
    text = f"\nWorse than linear: {'; '.join(worse) or 'nothing'}.\n"
    return report.table(HEADS, rows) + text


def figure(points: Sequence[Point]) -> Figure:
    """Draws time above memory against all that is varied, beside linear growth."""
    names = list(dict.fromkeys(point.varied for point in points))
    drawing = Figure(figsize=(3 * len(names) + 1, 6), layout="constrained")
    panels = drawing.subplots(2, len(names), squeeze=False)
    for line in _lines(points):
        varied, detector, task = line[0][:3]
        color = f"C{get_args(Name).index(detector)}"
        values = [point.value for point in line]
        heights = [p.milliseconds for p in line], [p.memory / 1e6 for p in line]
        column = panels[:, names.index(varied)]
        for panel, height, unit in zip(column, heights, ("ms", "MB"), strict=True):
            straight = [height[-1] * value / values[-1] for value in values]
            label = f"{MODELS[detector].title}, {task}"
            panel.loglog(
                values, height, STYLES[task], color=color, marker="o", label=label
            )
            panel.loglog(values, straight, ":", color=color, linewidth=0.7)
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter("{x:,g}")
            panel.tick_params("x", rotation=30)
            panel.minorticks_off()
            panel.set(xlabel=varied, ylabel=unit)
    panels[0, 0].legend(fontsize=7, title="dotted: linear", title_fontsize=7)
    return drawing


def _lines(points: Sequence[Point]) -> list[list[Point]]:
    lines = {}
    for point in points:
        lines.setdefault(point[:3], []).append(point)
    return [*lines.values()]


def _rounded(number: float) -> str:
    """Writes a number with three digits."""
    return f"{float(f'{number:.3g}'):,g}"


if __name__ == "__main__":
    command_line.run(main)
