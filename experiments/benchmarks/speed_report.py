"""Writes the report of `benchmarks.speed`: what json holds, and its tables.

It has `machine`, `settings`, `limits` by precision, and `rows` by the text of their
`Case`. A row has the fields of its case and what was measured of it, or the `error`
that it ended with; a `warning` if the figures must not be compared. The times of
`parts` were taken in turns, and sum up to that of the "whole".
"""

import pathlib
from typing import Any, NamedTuple

from experiments.benchmarks.models import MODELS
from experiments.benchmarks.report import machine_line, size_text, table
from jaxdet.config import ConfigError
from jaxdet.data import files

HEADS = (
    *("detector", "task", "precision", "canvas", "batch", "ms", "images/s"),
    *("lower + compile, s", "memory, GB", "TFLOP", "of matrix products"),
    *("of copies", "torchvision's best, ms", "ours / its"),
)
# What all rows of a file share, of the machine and of the settings.
_FIXED = ("device", "platform", "cores", "jax", "torch", "torchvision", "torch_threads")
_FIXED += ("objects", "repeats")


class Case(NamedTuple):
    """What one row is about."""

    detector: str
    precision: str
    canvas: tuple[int, int]  # (height, width)
    task: str  # "predict" or "train"
    batch: int

    def __str__(self) -> str:
        return (
            f"{MODELS[self.detector].title}, {self.task}, {self.precision}, "
            f"{size_text(self.canvas)}, batch {self.batch}"
        )


def start(
    path: pathlib.Path | None, machine: dict[str, Any], settings: dict[str, int]
) -> dict:
    """Returns a report without rows, or that of a json file.

    Args:
      path: of the file, which may not exist yet; None: there is none.
      machine: of `report.machine`, and versions of other packages.
      settings: `objects` and `repeats`.

    Raises:
      ConfigError: if the file is of another machine, or of other settings.
    """
    this = {"machine": machine, "settings": settings}
    if path is None or not path.exists():
        return {**this, "limits": {}, "rows": {}}
    report = files.read_json(path)
    old, new = ({**r["machine"], **r["settings"]} for r in (report, this))
    different = [k for k in _FIXED if k in old and new.get(k, old[k]) != old[k]]
    if different:
        raise ConfigError(
            f"--json {path} was measured with "
            f"{', '.join(f'{k} {old[k]}' for k in different)}, this is "
            f"{', '.join(f'{new[k]}' for k in different)}: name another file"
        )
    report["machine"] |= machine
    return report


def add(report: dict, case: Case, measured: dict) -> dict:
    """Adds what was measured of a case to its row, `{name: figure}` -> the row.

    Args:
      report: see above.
      case: of the row, which may be there already.
      measured: new figures; times that were taken in turns with torchvision's stay.
    """
    old = report["rows"].get(str(case), {})
    new = {**measured, **old} if "rivals" in old else {**old, **measured}
    report["rows"][str(case)] = row = {**case._asdict(), **new}
    return row


def line(name: str, row: dict) -> str:
    """Writes a row as text, with its parts and warnings on lines of their own."""
    lines = [f"WARNING: {note}" for note in _notes(name, row)]
    if "milliseconds" in row:
        text = (
            f"{name}: {row['milliseconds']:.4g} ms, {row['images_per_second']:.3g} "
            f"images/s, compiled in {row['compile_seconds']:.3g} s"
        )
        times = ", ".join(f"{key} {x:.4g}" for key, x in row.get("rivals", {}).items())
        if times:
            text += f"; torchvision {times} ms; ours / its {row['ratio']:.2f}"
        lines = [text, *lines]
    parts = ["    {}: {} ms, {}".format(*cells) for cells in _parts(row)]
    return "\n".join([*lines, *parts])


def markdown(report: dict) -> str:
    """Returns the rows as a table, and a table of the parts of each row with parts."""
    blocks = [machine_line(report["machine"])]
    blocks += [
        f"{precision}: {limit['flops'] / 1e12:.3g} TFLOP/s in matrix products, "
        f"{limit['bytes'] / 1e9:.3g} GB/s in copies."
        for precision, limit in report["limits"].items()
    ]
    rows = report["rows"]
    blocks.append(table(HEADS, map(_cells, rows.values())).strip())
    for name, row in rows.items():
        blocks += [f"**{note}**" for note in _notes(name, row)]
    for name, row in rows.items():
        if "parts" in row:
            parts = table(("part", "ms", "share"), _parts(row))
            blocks += [f"{name}:", parts.strip()]
    return "\n\n".join(blocks) + "\n"


def _notes(name: str, row: dict) -> list[str]:
    """Returns the failure and the warning of a row."""
    return [f"{name}: {row[kind]}" for kind in ("error", "warning") if kind in row]


def _cells(row: dict) -> list[str]:
    cells = [MODELS[row["detector"]].title, row["task"], row["precision"]]
    cells += [size_text(row["canvas"]), str(row["batch"])]
    if "milliseconds" not in row:
        return [*cells, "failed", *8 * [""]]
    best, ratio = "", ""
    if "ratio" in row:
        name = min(row["rivals"], key=row["rivals"].get)
        best, ratio = f"{row['rivals'][name]:.4g} ({name})", f"{row['ratio']:.2f}"
    return [
        *cells,
        f"{row['milliseconds']:.4g}",
        f"{row['images_per_second']:.3g}",
        f"{row['lower_seconds']:.2g} + {row['compile_seconds']:.3g}",
        f"{row['memory'] / 1e9:.3g}",
        f"{row['flops'] / 1e12:.3g}",
        f"{row['flops_share']:.0%}",
        f"{row['bytes_share']:.0%}",
        best,
        ratio,
    ]


def _parts(row: dict) -> list[tuple[str, str, str]]:
    """Returns name, milliseconds and share of each part, and of the whole."""
    return [
        (name, f"{milliseconds:.4g}", f"{milliseconds / row['parts']['whole']:.0%}")
        for name, milliseconds in row.get("parts", {}).items()
    ]
