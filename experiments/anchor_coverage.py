"""Which objects can a detector's anchors learn? python -m experiments.anchor_coverage

Of every object, the IoU with the best anchor (RetinaNet, RPN, SSD) or the number of
points that learn it (FCOS), by the object's size on the canvas: a table, and a figure.
On the digits by default, or on any data set that `--data` takes; for a detector's own
numbers, or for those of a run, whose objects count once for every scale
(`--training.input.multi-scale`) that training sees them at:

python -m experiments.anchor_coverage --data train.json --images photos \
    retinanet --anchor-ratios 0.25 1 4
python -m experiments.anchor_coverage run runs/quickstart
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, NamedTuple

import numpy as np
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from experiments import command_line
from experiments.data_option import DIGITS, DataOption, Flat
from jaxdet.data.dataset import DataError, DataSet
from jaxdet.data.input_config import InputConfig, scale_canvas
from jaxdet.detectors import fcos, retinanet, rpn, ssd
from jaxdet.detectors.serialization import deserialize
from jaxdet.evaluation.anchor_coverage import measure, place
from jaxdet.ops.coverage import Coverage
from jaxdet.training.run_folder import RunError, load_run

LEARNED, BETWEEN, MISSED = "#2a7f9e", "#e8b04a", "#b3402e"


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The detector of a run, and its canvases."""

    workdir: tyro.conf.Positional[pathlib.Path]
    """That training wrote."""


class Row(NamedTuple):
    """The objects of one octave of sizes."""

    low: float  # canvas pixels, the least side: the square root of an object's area
    high: float  # the greatest side, itself in the next row
    count: int
    median: float  # of `Coverage.best`
    learned: float  # share from `Coverage.high` on
    missed: float  # share below `Coverage.low`


Choice = (
    Annotated[
        retinanet.RetinaNetConfig,
        tyro.conf.subcommand("retinanet", default=retinanet.RetinaNetConfig()),
    ]
    | Annotated[rpn.RPNConfig, tyro.conf.subcommand("rpn", default=rpn.RPNConfig())]
    | Annotated[ssd.SSDConfig, tyro.conf.subcommand("ssd", default=ssd.PAPER)]
    | Annotated[
        fcos.FCOSConfig, tyro.conf.subcommand("fcos", default=fcos.FCOSConfig())
    ]
    | Annotated[RunFolder, tyro.conf.subcommand("run")]
)


def main(
    detector: Flat[Choice],
    source: Flat[DataOption] = DIGITS,
    *,
    canvases: tuple[tuple[int, int], ...] = (),
    objects: int = 20_000,
    output: pathlib.Path = pathlib.Path("anchor_coverage.png"),
):
    """Measures, prints and draws; no image is resized, and none is augmented.

    Args:
      detector: whose anchors or points.
      source: the images.
      canvases: (height, width) of each, at the scale 1; those of the run, 300x300,
        which images fill, for SSD, 800x1344 and 1344x800 for others if not given.
      objects: how many to look at, about, on random images.
      output: the figure, .png, .svg or .pdf.

    Raises:
      DataError: for options that do not go together, and data without objects.
    """
    if objects < 1:
        raise DataError(f"--objects is {objects}; it must be at least 1")
    coverage, config = _coverage_and_input(detector)
    if canvases:
        config = dataclasses.replace(config, canvases=canvases)
    data_set = source.load()
    factors = tuple(dict.fromkeys(config.multi_scale))
    sides, found = at_all_scales(data_set, coverage, config, factors, most=objects)
    print(table(sides, found), end="")
    output.parent.mkdir(parents=True, exist_ok=True)
    title = f"{data_set.name}: {len(sides) // len(factors):,} objects"
    if factors != (1.0,):
        title += f", at the scales {', '.join(f'{factor:g}' for factor in factors)}"
    figure(sides, found, title=title).savefig(output)
    print(f"drawn: see {output}")


def at_all_scales(
    data_set: DataSet,
    coverage: Callable,
    config: InputConfig,
    factors: Sequence[float],
    *,
    most: int,
) -> tuple[np.ndarray, Coverage]:
    """Every object at every scale.

    Args:
      data_set: of the objects; crowds are none.
      coverage: of a detector.
      config: how images become batches.
      factors: of its canvases.
      most: see `training.coverage.place`.

    Returns:
      `[F * N]` sides in canvas pixels, of all objects by the first factor, then by the
      next, and what each object finds.

    Raises:
      DataError: if there are no objects.
    """
    sides, best = [], []
    for factor in factors:
        placed = place(data_set, config, most=most, factor=factor)
        if len(placed.boxes) == 0:
            raise DataError(f"{data_set.name!r} holds no objects but crowds")
        canvases = [scale_canvas(canvas, factor) for canvas in config.canvases]
        found = measure(coverage, placed, canvases)
        sides.append(placed.sides)
        best.append(found.best)
    return np.concatenate(sides), found._replace(best=np.concatenate(best))


def by_size(sides: np.ndarray, found: Coverage) -> list[Row]:
    """A row for each octave of sides from the smallest object to the largest."""
    octaves = np.floor(np.log2(sides)).astype(int)
    return [
        _row(2.0**octave, 2.0 ** (octave + 1), found.best[octaves == octave], found)
        for octave in np.unique(octaves).tolist()
    ]


def table(sides: np.ndarray, found: Coverage) -> str:
    """The rows, and one of all objects; shares in per cent."""
    columns = f"{f'>= {found.high:g}':>8} {f'< {found.low:g}':>8}"
    lines = [
        f"{found.measure}; sides are square roots of areas in canvas pixels",
        f"{'sides':>14} {'objects':>8} {'median':>7} {columns}",
    ]
    every = _row(sides.min(), sides.max(), found.best, found)
    named = [(f"{row.low:g} to {row.high:g}", row) for row in by_size(sides, found)]
    for name, row in [*named, ("all", every)]:
        shares = f"{row.learned:>8.1%} {row.missed:>8.1%}"
        lines.append(f"{name:>14} {row.count:8d} {row.median:7.2f} {shares}")
    return "\n".join(lines) + "\n"


def figure(sides: np.ndarray, found: Coverage, *, title: str) -> Figure:
    """Every object by size and best anchor, and how many of each size are learned.

    Args:
      sides: `[N]` canvas pixels, the square roots of the objects' areas.
      found: `Coverage` `[N]` of these objects.
      title: above the figure.
    """
    drawn = Figure(figsize=(8, 7), layout="constrained", dpi=120)
    above, below = drawn.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    above.set_title(title)
    rows = by_size(sides, found)
    _draw_objects(above, sides, found, rows)
    _draw_counts(below, found, rows)
    below.set_xlabel("side of the object: square root of its area, canvas pixels")
    below.set_xscale("log", base=2)
    below.xaxis.set_major_formatter(FuncFormatter(lambda side, _: f"{side:g}"))
    return drawn


def _row(low: float, high: float, best: np.ndarray, found: Coverage) -> Row:
    learned, missed = np.mean(best >= found.high), np.mean(best < found.low)
    return Row(low, high, len(best), np.median(best), learned, missed)


def _draw_objects(
    axes, sides: np.ndarray, found: Coverage, rows: Sequence[Row]
) -> None:
    axes.plot(sides, found.best, ".", color="grey", markersize=3, alpha=0.3)
    axes.plot([], [], ".", color="grey", label="an object")
    medians = [row.median for row in rows]
    middles = [(row.low * row.high) ** 0.5 for row in rows]
    axes.plot(middles, medians, "k_", markersize=30, label="median of an octave")
    axes.axhline(found.low, color=MISSED)
    axes.axhline(found.high, color=LEARNED)
    if found.high == 1:  # Points, from none to many.
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(-0.2, 1.5 * found.best.max() + 1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:g}"))
    axes.set_ylabel(found.measure)
    axes.legend(loc="lower right")


def _draw_counts(axes, found: Coverage, rows: Sequence[Row]) -> None:
    counts, learned, missed = (
        np.array([getattr(row, name) for row in rows])
        for name in ("count", "learned", "missed")
    )
    low, high = f"{found.low:g}", f"{found.high:g}"
    parts = [
        (learned, LEARNED, f"at least {high} (share)"),
        (1 - learned - missed, BETWEEN, f"{low} to {high}"),
        (missed, MISSED, f"below {low}"),
    ]
    edges, bottom = np.array([row.low for row in rows]), np.zeros(len(rows))
    for share, colour, label in parts if low != high else parts[::2]:
        style = {"align": "edge", "color": colour, "edgecolor": "white"}
        axes.bar(edges, counts * share, edges, bottom, label=label, **style)
        bottom += counts * share
    for row in rows:
        place = ((row.low * row.high) ** 0.5, row.count)
        text = f"{row.learned:.0%}"
        axes.annotate(text, place, (0, 3), textcoords="offset points", ha="center")
    axes.set_ylim(0, 1.15 * counts.max())
    axes.set_ylabel("objects")
    above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 3}
    axes.legend(**above, frameon=False, title=found.measure)


def _coverage_and_input(detector: Choice) -> tuple[Callable, InputConfig]:
    if isinstance(detector, RunFolder):
        run = load_run(detector.workdir)
        coverage = None if run.recipe is None else deserialize(run.recipe).coverage
        if coverage is None:
            raise RunError(f"{detector.workdir}: its detector has no anchors or points")
        return coverage, run.training.input
    file = {
        retinanet.RetinaNetConfig: retinanet,
        rpn.RPNConfig: rpn,
        ssd.SSDConfig: ssd,
        fcos.FCOSConfig: fcos,
    }[type(detector)]
    stretched = InputConfig(canvases=((300, 300),), keep_aspect=False)
    config = stretched if file is ssd else InputConfig()
    return partial(file.coverage, config=detector), config


if __name__ == "__main__":
    command_line.run(main)
