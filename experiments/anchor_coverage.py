"""Draws which objects anchors can match: python -m experiments.anchor_coverage

Of every object, the IoU with the best anchor (RetinaNet, RPN, SSD) or the number of
positive points (FCOS), by the object's size on the canvas: a table, and a figure.
On the digits by default, or on any data set that `--data` takes; for a detector's own
numbers, or for those of a run, whose objects count once for every scale
(`--training.input.multi-scale`) that training sees them at:

python -m experiments.anchor_coverage --data train.json --images photos \
    retinanet --anchors.ratios 0.25 1 4
python -m experiments.anchor_coverage run runs/quickstart
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from experiments import command_line
from experiments.data_option import DIGITS, DataOption, Flat
from jaxdet.data.dataset import DataError
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors import fcos, retinanet, rpn, ssd
from jaxdet.detectors.image_pyramid import AllScalesConfig
from jaxdet.detectors.serialization import deserialize
from jaxdet.evaluation.anchor_coverage import (
    ONE_SCALE,
    Coverage,
    DenseConfig,
    dense_config_of,
    measure,
)
from jaxdet.training.run_folder import RunError, load_run

MATCHED, BETWEEN, MISSED = "#2a7f9e", "#e8b04a", "#b3402e"


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
    matched: float  # share from `Coverage.high_threshold` on
    missed: float  # share below `Coverage.low_threshold`


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
    """Measures the coverage, prints and draws it; no image is resized or augmented.

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
    dense_config, config, scales = _configs(detector)
    if canvases:
        config = dataclasses.replace(config, canvases=canvases)
    data_set = source.load()
    sides, coverage = measure(
        dense_config, data_set, config, max_objects=objects, scales=scales
    )
    if sides.size == 0:
        raise DataError(f"{data_set.name!r} holds no objects but crowds")
    count = sides.shape[1]
    sides, coverage = sides.ravel(), coverage._replace(best=coverage.best.ravel())
    print(table(sides, coverage), end="")
    output.parent.mkdir(parents=True, exist_ok=True)
    title = f"{data_set.name}: {count:,} objects"
    if config.multi_scale != (1.0,):
        factors = dict.fromkeys(config.multi_scale)
        title += f", at the scales {', '.join(f'{factor:g}' for factor in factors)}"
    figure(sides, coverage, title=title).savefig(output)
    print(f"drawn: see {output}")


def by_size(sides: np.ndarray, coverage: Coverage) -> list[Row]:
    """Returns a row for each octave of sides, from the smallest object up."""
    octaves = np.floor(np.log2(sides)).astype(int)
    return [
        _row(
            2.0**octave, 2.0 ** (octave + 1), coverage.best[octaves == octave], coverage
        )
        for octave in np.unique(octaves).tolist()
    ]


def table(sides: np.ndarray, coverage: Coverage) -> str:
    """Returns the rows, and one of all objects; shares are in percent."""
    columns = (
        f"{f'>= {coverage.high_threshold:g}':>8} {f'< {coverage.low_threshold:g}':>8}"
    )
    lines = [
        f"{coverage.measure}; sides are square roots of areas in canvas pixels",
        f"{'sides':>14} {'objects':>8} {'median':>7} {columns}",
    ]
    every = _row(sides.min(), sides.max(), coverage.best, coverage)
    named = [(f"{row.low:g} to {row.high:g}", row) for row in by_size(sides, coverage)]
    for name, row in [*named, ("all", every)]:
        shares = f"{row.matched:>8.1%} {row.missed:>8.1%}"
        lines.append(f"{name:>14} {row.count:8d} {row.median:7.2f} {shares}")
    return "\n".join(lines) + "\n"


def figure(sides: np.ndarray, coverage: Coverage, *, title: str) -> Figure:
    """Returns a figure of objects by size and best anchor, and of how many are matched.

    Args:
      sides: `[N]` canvas pixels, the square roots of the objects' areas.
      coverage: `Coverage` `[N]` of these objects.
      title: above the figure.
    """
    drawn = Figure(figsize=(8, 7), layout="constrained", dpi=120)
    above, below = drawn.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    above.set_title(title)
    rows = by_size(sides, coverage)
    _draw_objects(above, sides, coverage, rows)
    _draw_counts(below, coverage, rows)
    below.set_xlabel("side of the object: square root of its area, canvas pixels")
    below.set_xscale("log", base=2)
    below.xaxis.set_major_formatter(FuncFormatter(lambda side, _: f"{side:g}"))
    return drawn


def _row(low: float, high: float, best: np.ndarray, coverage: Coverage) -> Row:
    matched, missed = (
        np.mean(best >= coverage.high_threshold),
        np.mean(best < coverage.low_threshold),
    )
    return Row(low, high, len(best), np.median(best), matched, missed)


def _draw_objects(
    axes, sides: np.ndarray, coverage: Coverage, rows: Sequence[Row]
) -> None:
    axes.plot(sides, coverage.best, ".", color="gray", markersize=3, alpha=0.3)
    axes.plot([], [], ".", color="gray", label="an object")
    medians = [row.median for row in rows]
    middles = [(row.low * row.high) ** 0.5 for row in rows]
    axes.plot(middles, medians, "k_", markersize=30, label="median of an octave")
    axes.axhline(coverage.low_threshold, color=MISSED)
    axes.axhline(coverage.high_threshold, color=MATCHED)
    if coverage.high_threshold == 1:  # Points, from none to many.
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(-0.2, 1.5 * coverage.best.max() + 1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:g}"))
    axes.set_ylabel(coverage.measure)
    axes.legend(loc="lower right")


def _draw_counts(axes, coverage: Coverage, rows: Sequence[Row]) -> None:
    counts, matched, missed = (
        np.array([getattr(row, name) for row in rows])
        for name in ("count", "matched", "missed")
    )
    low, high = f"{coverage.low_threshold:g}", f"{coverage.high_threshold:g}"
    parts = [
        (matched, MATCHED, f"at least {high} (share)"),
        (1 - matched - missed, BETWEEN, f"{low} to {high}"),
        (missed, MISSED, f"below {low}"),
    ]
    edges, bottom = np.array([row.low for row in rows]), np.zeros(len(rows))
    for share, color, label in parts if low != high else parts[::2]:
        style = {"align": "edge", "color": color, "edgecolor": "white"}
        axes.bar(edges, counts * share, edges, bottom, label=label, **style)
        bottom += counts * share
    for row in rows:
        place = ((row.low * row.high) ** 0.5, row.count)
        text = f"{row.matched:.0%}"
        axes.annotate(text, place, (0, 3), textcoords="offset points", ha="center")
    axes.set_ylim(0, 1.15 * counts.max())
    axes.set_ylabel("objects")
    above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 3}
    axes.legend(**above, frameon=False, title=coverage.measure)


def _configs(detector: Choice) -> tuple[DenseConfig, InputConfig, AllScalesConfig]:
    if not isinstance(detector, RunFolder):
        stretched = InputConfig(canvases=((300, 300),), keep_aspect=False)
        fills = isinstance(detector, ssd.SSDConfig)
        return detector, stretched if fills else InputConfig(), ONE_SCALE
    run = load_run(detector.workdir)
    config = None
    if run.recipe is not None:
        config, scales = dense_config_of(deserialize(run.recipe))
    if config is None:
        raise RunError(
            f"{detector.workdir}: its detector has no anchors or points, as DETRs and "
            "R-CNNs without an RPN; there is nothing to cover"
        )
    return config, run.training.input, scales


if __name__ == "__main__":
    command_line.run(main)
