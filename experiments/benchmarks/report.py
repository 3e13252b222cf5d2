"""The report of `benchmarks.speed`: its rows, their file, and a table of them.

A report is what json holds: `machine`, `settings`, `limits` by precision, and `rows`. A
row has the fields of a `Case` and what was measured of it, or the `error` that it ended
with; a `warning` where the figures must not be compared. `parts_whole` is the time that
was taken in turns with its `parts`.
"""

import datetime
import json
import os
import pathlib
import re
from typing import Any, NamedTuple

import jax

from experiments.benchmarks.models import MODELS
from jaxdet.config import ConfigError

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

    @property
    def text(self) -> str:
        """For people."""
        return (
            f"{MODELS[self.detector].title}, {self.task}, {self.precision}, "
            f"{_size(self.canvas)}, batch {self.batch}"
        )


def machine() -> dict[str, Any]:
    """What the figures were measured with, and when."""
    device = jax.devices()[0]
    return {
        "device": _processor() or device.device_kind,
        "platform": device.platform,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
    }


def start(
    path: pathlib.Path | None, machine: dict[str, Any], settings: dict[str, int]
) -> dict:
    """A report without rows, or that of a json file.

    Args:
      path: of the file, which may be there; None: there is none.
      machine: of `machine`, and versions of other packages.
      settings: `objects` and `repeats`.

    Raises:
      ConfigError: if the file is of another machine, or of other settings.
    """
    this = {"machine": machine, "settings": settings}
    if path is None or not path.exists():
        return {**this, "limits": {}, "rows": []}
    report = json.loads(path.read_text())
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
    """What is known of a case; empty at first."""
    return next((row for row in report["rows"] if case_of(row) == case), {})


def add(report: dict, row: dict) -> dict:
    """The row, with what is known of its case already; it takes its place.

    Args:
      report: which the row is added to.
      row: new.
    """
    case = case_of(row)
    old = row_of(report, case)
    # Times that were taken in turns with torchvision's stay.
    row = {**row, **old} if "rivals" in old else {**old, **row}
    report["rows"] = [r for r in report["rows"] if case_of(r) != case] + [row]
    return row


def fields_of(case: Case) -> dict:
    """Of a row."""
    return {**case._asdict(), "canvas": list(case.canvas)}


def case_of(row: dict) -> Case:
    """What a row is about."""
    values = {**row, "canvas": tuple(row["canvas"])}
    return Case(*(values[name] for name in Case._fields))


def markdown(report: dict) -> str:
    """The rows as a table, those with parts with one more each."""
    rows = report["rows"]
    heads = ["detector", "task", "precision", "canvas", "batch", "ms", "images/s"]
    heads += ["lower + compile, s", "memory, GB", "TFLOP", "of matrix products"]
    heads += ["of copies", "torchvision's best, ms", "ours / its"]
    lines = [machine_line(report["machine"]), ""]
    for precision, limit in report["limits"].items():
        lines += [
            f"{precision}: {limit['flops'] / 1e12:.3g} TFLOP/s in matrix products, "
            f"{limit['bytes'] / 1e9:.3g} GB/s in copies.",
            "",
        ]
    lines += [_cells(heads), "|---" * len(heads) + "|"]
    lines += [_cells(_row_cells(row)) for row in rows]
    for row in rows:
        lines += [text for note in _notes(row) for text in ("", f"**{note}**")]
    for row in rows:
        if "parts" in row:
            lines += ["", f"{case_of(row).text}:", "", *_part_lines(row)]
    return "\n".join(lines) + "\n"


def _processor() -> str:
    """Name of the CPU where that is the device, on Linux; JAX calls all of them cpu."""
    listing = pathlib.Path("/proc/cpuinfo")
    if jax.default_backend() != "cpu" or not listing.exists():
        return ""
    name = re.search(r"^model name\s*: (.+)$", listing.read_text(), re.MULTILINE)
    return name[1] if name else ""


def save(
    report: dict, json_path: pathlib.Path | None, table_path: pathlib.Path | None
) -> None:
    """Writes the files that there are to be, and their folders.

    Args:
      report: all of it.
      json_path: of the file that `start` reads, if any.
      table_path: of that of `markdown`, if any.
    """
    texts = {
        json_path: json.dumps(report, indent=1) + "\n",
        table_path: markdown(report),
    }
    for path, text in texts.items():
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".part")  # an interruption leaves the old
            part.write_text(text)
            part.replace(path)


def machine_line(machine: dict) -> str:
    """What `machine` says, and versions, for people."""
    versions = [
        f"{name} {machine[name]}"
        for name in ("jax", "torch", "torchvision")
        if name in machine
    ]
    device = f"{machine['device']} ({machine['platform']})"
    return ", ".join([device, f"{machine['cores']} cores", *versions, machine["date"]])


def line(row: dict) -> str:
    """A row for people, with its parts on lines of their own."""
    notes = [f"WARNING: {note}" for note in _notes(row)]
    if "milliseconds" not in row:
        return "\n".join(notes)
    text = (
        f"{case_of(row).text}: {row['milliseconds']:.4g} ms, "
        f"{row['images_per_second']:.3g} images/s, compiled in "
        f"{row['compile_seconds']:.3g} s"
    )
    rivals = [f"{name} {value:.4g}" for name, value in row.get("rivals", {}).items()]
    if rivals:
        text += f"; torchvision {', '.join(rivals)} ms; ours / its {row['ratio']:.2f}"
    parts = [f"    {line}" for line in _part_lines(row)[2:] if line]
    return "\n".join([text, *notes, *parts])


def _notes(row: dict) -> list[str]:
    """What must not be overlooked."""
    kinds = ("error", "warning")
    return [f"{case_of(row).text}: {row[kind]}" for kind in kinds if kind in row]


def _row_cells(row: dict) -> list[str]:
    case, best = case_of(row), ""
    cells = [MODELS[case.detector].title, case.task, case.precision]
    cells += [_size(case.canvas), str(case.batch)]
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


def _part_lines(row: dict) -> list[str]:
    """Returns the lines of a table of the parts."""
    if "parts" not in row:
        return []
    whole = row["parts_whole"]
    lines = ["| part | ms | share |", "|---|---|---|"]
    for part in [*row["parts"], {"name": "whole", "milliseconds": whole}]:
        milliseconds = part["milliseconds"]
        cells = [part["name"], f"{milliseconds:.4g}", f"{milliseconds / whole:.0%}"]
        lines.append(_cells(cells))
    return lines


def _cells(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _size(canvas: tuple[int, int]) -> str:
    return "x".join(map(str, canvas))
