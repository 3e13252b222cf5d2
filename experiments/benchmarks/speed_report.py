"""Writes the report of `benchmarks.speed`: what json holds, and its tables.

It has `machine`, `settings`, `limits` by precision, and `rows`. A row has the fields of
a `Case` and what was measured of it, or the `error` that it ended with; a `warning` if
the figures must not be compared. `parts_whole` was timed in turns with `parts`.
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

    @classmethod
    def of(cls, row: dict) -> "Case":
        """Returns the case of a row."""
        return cls(*(row[name] for name in cls._fields))._replace(
            canvas=tuple(row["canvas"])
        )

    def fields(self) -> dict[str, Any]:
        """Returns the fields of its row."""
        return {**self._asdict(), "canvas": list(self.canvas)}


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
        return {**this, "limits": {}, "rows": []}
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


def row_of(report: dict, case: Case) -> dict:
    """Returns the row of a case, which is empty if it has not been measured."""
    return next((row for row in report["rows"] if Case.of(row) == case), {})


def add(report: dict, row: dict) -> dict:
    """Adds a row in place of the old one of its case, whose other fields it keeps.

    Times that were taken in turns with torchvision's are kept, too.
    """
    case = Case.of(row)
    old = row_of(report, case)
    row = {**row, **old} if "rivals" in old else {**old, **row}
    report["rows"] = [r for r in report["rows"] if Case.of(r) != case] + [row]
    return row


def line(row: dict) -> str:
    """Writes a row as text, with its parts and warnings on lines of their own."""
    notes = [f"WARNING: {note}" for note in _notes(row)]
    if "milliseconds" not in row:
        return "\n".join(notes)
    text = (
        f"{Case.of(row)}: {row['milliseconds']:.4g} ms, "
        f"{row['images_per_second']:.3g} images/s, compiled in "
        f"{row['compile_seconds']:.3g} s"
    )
    rivals = [f"{name} {value:.4g}" for name, value in row.get("rivals", {}).items()]
    if rivals:
        text += f"; torchvision {', '.join(rivals)} ms; ours / its {row['ratio']:.2f}"
    parts = ["    {}: {} ms, {}".format(*cells) for cells in _part_cells(row)]
    return "\n".join([text, *notes, *parts])


def markdown(report: dict) -> str:
    """Returns the rows as a table, and a table of the parts of each row with parts."""
    blocks = [machine_line(report["machine"])]
    blocks += [
        f"{precision}: {limit['flops'] / 1e12:.3g} TFLOP/s in matrix products, "
        f"{limit['bytes'] / 1e9:.3g} GB/s in copies."
        for precision, limit in report["limits"].items()
    ]
    rows = report["rows"]
    blocks.append(table(HEADS, map(_row_cells, rows)).strip())
    blocks += [f"**{note}**" for row in rows for note in _notes(row)]
    for row in rows:
        if "parts" in row:
            parts = table(("part", "ms", "share"), _part_cells(row))
            blocks += [f"{Case.of(row)}:", parts.strip()]
    return "\n\n".join(blocks) + "\n"


def _notes(row: dict) -> list[str]:
    """Returns the failure and the warning of a row."""
    kinds = ("error", "warning")
    return [f"{Case.of(row)}: {row[kind]}" for kind in kinds if kind in row]


def _row_cells(row: dict) -> list[str]:
    case, best = Case.of(row), ""
    cells = [MODELS[case.detector].title, case.task, case.precision]
    cells += [size_text(case.canvas), str(case.batch)]
    if "milliseconds" not in row:
        return [*cells, "failed", *8 * [""]]
    if "ratio" in row:
        name = min(row["rivals"], key=row["rivals"].get)
        best = f"{row['rivals'][name]:.4g} ({name})"
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
        f"{row['ratio']:.2f}" if best else "",
    ]


def _part_cells(row: dict) -> list[list[str]]:
    """Returns name, milliseconds and share of each part, and of the whole."""
    if "parts" not in row:
        return []
    whole = row["parts_whole"]
    times = [(part["name"], part["milliseconds"]) for part in row["parts"]]
    return [
        [name, f"{milliseconds:.4g}", f"{milliseconds / whole:.0%}"]
        for name, milliseconds in [*times, ("whole", whole)]
    ]
