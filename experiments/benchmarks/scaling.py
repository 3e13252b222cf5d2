"""How time and memory grow with the task: python -m experiments.benchmarks.scaling

RetinaNet and Faster R-CNN with narrow ResNet-10s look at more pixels, larger batches,
more anchors, objects, proposals and classes, one of them at a time. The exponents are
fitted to the last three points of each line: 1 is linear, and what is worse than that
is named. Memory is what the compiled program takes in, holds and gives back.

    python -m experiments.benchmarks.scaling  # two CPU cores: ten minutes
    python -m experiments.benchmarks.scaling --width 64 --batch 8    # a GPU
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from experiments import command_line
from experiments.benchmarks import models, report, speed
from experiments.benchmarks.timing import medians
from jaxdet.config import Anchors, ConfigError
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
TITLES = {"retinanet": "RetinaNet", "faster_rcnn": "Faster R-CNN"}
COLOURS = {"retinanet": "C0", "faster_rcnn": "C1"}
STYLES = {"predict": "--", "train": "-", "linear": ":"}
LINEAR = 1.15  # largest exponent that noise may make of 1


@dataclasses.dataclass(frozen=True)
class Setting:
    """All that is varied."""

    detector: Name = "retinanet"  # with a narrow ResNet-10
    side: int = 128  # of the square canvas, pixels
    batch: int = 1  # images at once
    shapes: int = 3  # sizes of anchors in every cell, of three ratios each
    objects: int = 20  # in every image
    proposals: int = 200  # of the first stage; Faster R-CNN learns from half of them
    classes: int = 80  # told apart
    width: int = 16  # of the ResNet


# The field that is varied, its values, the detectors.
VARIED = {
    "pixels": ("side", (128, 256, 384, 512), get_args(Name)),
    "batch": ("batch", (1, 2, 4, 8), get_args(Name)),
    "anchors": ("shapes", (3, 9, 27, 81), get_args(Name)),
    "objects": ("objects", (10, 30, 100, 300), get_args(Name)),
    "proposals": ("proposals", (125, 250, 500, 1000), ("faster_rcnn",)),
    "classes": ("classes", (80, 365, 1203), get_args(Name)),
}


class Point(NamedTuple):
    """What one setting takes."""

    varied: Varied
    detector: Name
    task: Literal["predict", "train"]
    value: int  # of what is varied
    milliseconds: float  # the median
    memory: int  # bytes


class Growth(NamedTuple):
    """Exponents of one line."""

    varied: Varied
    detector: Name
    task: Literal["predict", "train"]
    time: float
    memory: float


def main(
    *,
    varied: tuple[Varied, ...] = get_args(Varied),
    batch: int = 1,
    width: int = 16,
    repeats: int = 5,
    output: pathlib.Path = pathlib.Path("runs/scaling"),
):
    """Measures, and leaves `scaling.json`, `.md` and `.png`, renewed line by line.

    Args:
      varied: what is varied.
      batch: images at once, where that is not varied.
      width: channels of the ResNets' first layer.
      repeats: calls of which the median is taken.
      output: folder of the files.

    Raises:
      ConfigError: if nothing is to be repeated.
    """
    if repeats < 1:
        raise ConfigError(f"--repeats is {repeats}; it must be at least 1")
    setting = {"batch": batch, "width": width, "repeats": repeats}
    output.mkdir(parents=True, exist_ok=True)
    points = []
    for name in varied:
        field, values, detectors = VARIED[name]
        for detector in detectors:
            for value in values:
                changes = {"detector": detector, "batch": batch, "width": width}
                asked = dataclasses.replace(Setting(**changes), **{field: value})
                for point in measure(name, asked, repeats):
                    print(_line(point), flush=True)
                    points.append(point)
            _save(points, setting, output)  # an interruption leaves whole lines
    print(table(points), end="")


def _save(points: list[Point], setting: dict[str, int], output: pathlib.Path) -> None:
    measured = {
        "machine": report.machine(),
        "setting": setting,
        "points": [point._asdict() for point in points],
        "exponents": [line._asdict() for line in growth(points)],
    }
    (output / "scaling.json").write_text(json.dumps(measured, indent=1) + "\n")
    (output / "scaling.md").write_text(table(points))
    figure(points).savefig(output / "scaling.png", dpi=110)


def measure(varied: Varied, setting: Setting, repeats: int) -> list[Point]:
    """One setting's `predict` and training step, where what is varied counts.

    Args:
      varied: the objects of an image are nothing to `predict`, which is left out then.
      setting: all numbers.
      repeats: calls of which the median is taken.

    Returns:
      A point for each task.
    """
    detector = make(setting)
    canvas = (setting.side, setting.side)
    batch = models.random_batch(setting.batch, canvas, setting.objects, setting.classes)
    variables = jax.jit(detector.init)(jax.random.key(0), batch)
    variables = models.at_rest(variables)
    programs = {"train": speed.training_program(detector, variables, batch)}
    if varied != "objects":
        program = speed.compiled(detector.predict, variables, batch)
        ready = models.with_answers(program.call, variables, batch)
        programs["predict"] = program, partial(program.call, ready, batch)
    times = medians([call for _, call in programs.values()], repeats)
    value = _value(varied, setting)
    return [
        Point(varied, setting.detector, task, value, time, program.figures["memory"])
        for (task, (program, _)), time in zip(programs.items(), times, strict=True)
    ]


def make(setting: Setting) -> Detector:
    """The detector of a setting."""
    sizes = tuple(
        tuple(4 * 2**level * 2 ** (i / setting.shapes) for i in range(setting.shapes))
        for level in range(2, 7)
    )
    if setting.detector == "retinanet":
        config = RetinaNetConfig(
            num_classes=setting.classes,
            levels=(3, 4, 5, 6, 7),
            anchors=Anchors(sizes),
            channels=64,
            head_depth=1,
        )
        return retinanet(config, ResNet(10, setting.width))
    rpn = RPNConfig(
        levels=(2, 3, 4, 5, 6),
        anchors=Anchors(sizes),
        channels=64,
        post_nms_topk_train=setting.proposals,
        post_nms_topk=setting.proposals,
    )
    config = FasterRCNNConfig(
        num_classes=setting.classes,
        rpn=rpn,
        roi_heads=RoIHeadsConfig(batch_size_per_image=setting.proposals // 2),
    )
    return faster_rcnn(config, ResNet(10, setting.width), FCHead(128))


def growth(points: Sequence[Point]) -> list[Growth]:
    """The exponents of all lines, each fitted to its last three points."""
    answer = []
    for line in _lines(points):
        last = line[-3:]
        logs = np.log([[p.value, p.milliseconds, p.memory] for p in last])
        time, memory = np.polyfit(logs[:, 0], logs[:, 1:], 1)[0]
        answer.append(Growth(*line[0][:3], float(time), float(memory)))
    return answer


def table(points: Sequence[Point]) -> str:
    """Markdown: each line's points and exponents, and what is worse than linear."""
    heads = "with", "detector", "task", "values", "ms", "MB", "exponent of ms", "of MB"
    rows = [heads, ["---"] * len(heads)]
    grown = growth(points)
    for line, exponents in zip(_lines(points), grown, strict=True):
        varied, detector, task = line[0][:3]
        rows.append(
            [
                varied,
                TITLES[detector],
                task,
                " / ".join(f"{point.value:,}" for point in line),
                " / ".join(_rounded(point.milliseconds) for point in line),
                " / ".join(_rounded(point.memory / 1e6) for point in line),
                f"{exponents.time:.2f}",
                f"{exponents.memory:.2f}",
            ]
        )
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    worse = [
        f"{what} of {TITLES[line.detector]}'s {line.task} with {line.varied} "
        f"({getattr(line, what):.2f})"
        for line in grown
        for what in ("time", "memory")
        if getattr(line, what) > LINEAR
    ]
    lines += ["", f"Worse than linear: {'; '.join(worse) or 'nothing'}."]
    return "\n".join(lines) + "\n"


def figure(points: Sequence[Point]) -> Figure:
    """A column for all that is varied, time above memory, beside linear growth."""
    names = list(dict.fromkeys(point.varied for point in points))
    drawing = Figure(figsize=(3 * len(names) + 1, 6), layout="constrained")
    panels = drawing.subplots(2, len(names), squeeze=False)
    for line in _lines(points):
        varied, detector, task = line[0][:3]
        column = panels[:, names.index(varied)]
        values = [point.value for point in line]
        colour = COLOURS[detector]
        heights = [p.milliseconds for p in line], [p.memory / 1e6 for p in line]
        for panel, height in zip(column, heights, strict=True):
            straight = [height[-1] * value / values[-1] for value in values]
            panel.loglog(values, height, STYLES[task], color=colour, marker="o")
            panel.loglog(values, straight, STYLES["linear"], color=colour, lw=0.7)
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter("{x:,g}")
            panel.tick_params("x", rotation=30)
            panel.minorticks_off()
        column[1].set_xlabel(varied)
    panels[0, 0].set_ylabel("ms")
    panels[1, 0].set_ylabel("MB")
    panels[0, 0].legend(handles=_legend(), fontsize=7)
    return drawing


def _legend() -> list[Line2D]:
    """What the colours and the styles stand for."""
    colours = [Line2D([], [], color=COLOURS[x], label=TITLES[x]) for x in TITLES]
    styles = [
        Line2D([], [], color="gray", linestyle=style, label=name)
        for name, style in STYLES.items()
    ]
    return colours + styles


def _value(varied: Varied, setting: Setting) -> int:
    if varied == "pixels":
        return setting.side**2
    if varied == "anchors":
        levels = range(3, 8) if setting.detector == "retinanet" else range(2, 7)
        canvas = (setting.side, setting.side)
        return anchors.num_anchors(canvas, levels=levels, per_cell=3 * setting.shapes)
    return getattr(setting, VARIED[varied][0])


def _lines(points: Sequence[Point]) -> list[list[Point]]:
    lines = {}
    for point in points:
        lines.setdefault(point[:3], []).append(point)
    return [*lines.values()]


def _rounded(number: float) -> str:
    """To three digits."""
    return f"{float(f'{number:.3g}'):,g}"


def _line(point: Point) -> str:
    return (
        f"{TITLES[point.detector]}, {point.task}, {point.value} {point.varied}: "
        f"{point.milliseconds:.4g} ms, {point.memory / 1e6:.4g} MB"
    )


if __name__ == "__main__":
    command_line.run(main)
