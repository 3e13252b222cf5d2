"""Times operators on this machine: python -m experiments.benchmarks.ops

Milliseconds, the median of several calls, of the operators between a detector's layers,
and of a ResNet. "With gradient" is a call with the gradient of the features, or of all
of the ResNet's parameters. With `--compare`, torchvision's take turns with ours on
the same device, its ResNet at the better of two layouts.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments import command_line
from experiments.benchmarks import report, speed
from experiments.benchmarks.timing import medians, random_boxes, with_gradient
from jaxdet.data import files
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.ops import anchors, matching, nms, roi_align, roi_pool

LEVELS = (2, 3, 4, 5)
TIMES = ("forward", "with gradient")
HEADS = ("ms", "of", *(head for time in TIMES for head in (time, "ours / torchvision")))


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much the operators are given."""

    height: int = 800  # of the canvas, pixels
    width: int = 1088  # likewise
    channels: int = 256  # of the features
    boxes: int = 512  # pooled
    candidates: int = 2000  # of non-maximum suppression
    objects: int = 50  # to be matched
    depth: int = 50  # of the ResNet, layers
    side: int = 512  # of the images it is given, pixels


@dataclasses.dataclass(frozen=True)
class Case:
    """An operator and what it is given."""

    name: str  # of the operator
    sizes: str  # of what it is given, for the table
    function: Callable  # the operator
    arguments: tuple  # of it; compiled code must not know their values
    differentiable: bool = False
    """Whether it is timed with the gradient of the first argument, too."""


def main(
    *,
    sizes: Sizes = Sizes(),
    repeats: int = 5,
    compare: bool = False,
    json: pathlib.Path | None = None,
):
    """Times the operators, and prints a table.

    Args:
      sizes: of what they are given.
      repeats: calls of each; one more comes first, in which they are compiled.
      compare: also time torchvision's, if torch and torchvision are installed.
      json: file for the figures.

    Raises:
      ConfigError: if `repeats` is below 1, or torchvision is not installed.
    """
    rivals = speed.import_rivals().operators() if compare else {}
    cases = [*operator_cases(sizes), *backbone_cases(sizes)]
    rows = [measure(case, rivals.get(case.name), repeats) for case in cases]
    machine = report.machine()
    print(report.machine_line(machine))
    print(report.table(HEADS, map(_cells, rows)), end="")
    if json is not None:
        measured = {"machine": machine, "repeats": repeats, "rows": rows}
        files.write_json(json, measured, indent=1)


def operator_cases(sizes: Sizes) -> list[Case]:
    """Returns RoI Align and pooling, non-maximum suppression, and matching."""
    rng = np.random.default_rng(0)
    canvas = (sizes.height, sizes.width)
    pyramid = {
        level: jnp.asarray(
            rng.normal(size=(*(-(-x // 2**level) for x in canvas), sizes.channels)),
            jnp.float32,
        )
        for level in LEVELS
    }
    fine, coarse = pyramid[2], jax.nn.relu(pyramid[4])
    boxes, candidates, objects = (
        jnp.asarray(random_boxes(rng, count, canvas))
        for count in (sizes.boxes, sizes.candidates, sizes.objects)
    )
    scores = jnp.asarray(rng.uniform(size=sizes.candidates), jnp.float32)
    anchor_sizes = [[8 * 2**level] for level in LEVELS]
    grid = anchors.pyramid_anchors(
        canvas, sizes=anchor_sizes, ratios=(0.5, 1.0, 2.0), levels=LEVELS
    )
    align = partial(roi_align.roi_align, stride=4)
    adaptive = partial(roi_align.roi_align, stride=16, sampling_ratio=0)
    pool = partial(roi_pool.roi_max_pool, stride=16)
    pyramid_pool = partial(roi_pool.spatial_pyramid_pool, stride=16)
    suppress = partial(nms.nms, iou_threshold=0.7, max_output_size=sizes.candidates)
    match = partial(matching.match_by_iou, negative_iou=0.3, positive_iou=0.7)

    def pooling(name: str, function: Callable, features) -> Case:
        finest = jax.tree.leaves(features)[0]
        text = f"{len(boxes)} boxes on {report.size_text(finest.shape)}"
        text += f" and {len(LEVELS) - 1} coarser" if features is pyramid else ""
        return Case(name, text, function, (features, boxes), differentiable=True)

    return [
        pooling("RoI Align", align, fine),
        pooling("RoI Align, adaptive", adaptive, coarse),
        pooling("RoI Align, pyramid", roi_align.pyramid_roi_align, pyramid),
        pooling("RoI pooling", pool, coarse),
        pooling("spatial pyramid", pyramid_pool, coarse),
        Case("NMS", f"{len(scores)} boxes, IoU 0.7", suppress, (candidates, scores)),
        Case(
            "matching",
            f"{len(grid)} anchors, {len(objects)} objects",
            match,
            (grid, objects, jnp.ones(len(objects), bool)),
        ),
    ]


def backbone_cases(sizes: Sizes) -> list[Case]:
    """Returns a ResNet on one image, and with gradients on two."""
    network = ResNet(sizes.depth)
    shape = (2, sizes.side, sizes.side, 3)
    pixels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    variables = jax.jit(network.init)(jax.random.key(0), pixels)

    def stages(parameters, constants, pixels):
        return network.apply({"params": parameters, "constants": constants}, pixels)

    return [
        Case(
            f"ResNet-{sizes.depth}, batch {count}",
            f"{sizes.side}x{sizes.side}, stages 2 to 5, frozen norms",
            stages,
            (variables["params"], variables["constants"], jnp.asarray(pixels[:count])),
            differentiable=count > 1,
        )
        for count in (1, 2)
    ]


def measure(case: Case, rival: Callable | None, repeats: int) -> dict:
    """Times a case.

    Args:
      case: what is timed.
      rival: makes torchvision's calls of the case, several by time, of which the best
        counts.
      repeats: calls whose median is taken.

    Returns:
      Medians in milliseconds by `TIMES`, torchvision's under "torchvision forward".
    """
    row = {"name": case.name, "sizes": case.sizes}
    functions = {"forward": case.function}
    if case.differentiable:
        functions["with gradient"] = partial(with_gradient, case.function)
    theirs = {} if rival is None else rival(case)
    for name, function in functions.items():
        call = partial(jax.jit(function), *case.arguments)
        row[name], *others = medians([call, *theirs.get(name, [])], repeats)
        if others:
            row[f"torchvision {name}"] = min(others)
    return row


def _cells(row: dict) -> list[str]:
    cells = [row["name"], row["sizes"]]
    for name in TIMES:
        ours, theirs = row.get(name), row.get(f"torchvision {name}")
        cells.append(f"{ours:.{1 if ours >= 10 else 2}f}" if ours else "")
        cells.append(f"{ours / theirs:.2f}" if theirs else "")
    return cells


if __name__ == "__main__":
    command_line.run(main)
