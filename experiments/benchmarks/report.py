"""Describes the machine, formats Markdown tables and writes files, for all reports."""

import datetime
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from jaxdet.data import files


def machine() -> dict[str, Any]:
    """Returns what the figures were measured with, and when."""
    device = jax.devices()[0]
    return {
        "device": _cpu_name() or device.device_kind,
        "platform": device.platform,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
    }


def machine_line(machine: dict[str, Any]) -> str:
    """Writes a machine, and the versions of packages with it, as one line."""
    names = [name for name in ("jax", "torch", "torchvision") if name in machine]
    versions = [f"{name} {machine[name]}" for name in names]
    device = f"{machine['device']} ({machine['platform']})"
    return ", ".join([device, f"{machine['cores']} cores", *versions, machine["date"]])


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table, which ends with a line break."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def size_text(size: tuple[int, int]) -> str:
    """Writes (height, width) as heightxwidth."""
    return "x".join(map(str, size))


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file, which an interruption leaves as it was, and makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, lambda file: file.write(text.encode()))


def save(path: pathlib.Path, measured: Any, text: str, figure: Any) -> None:
    """Writes the figures as json, their table and their drawing.

    Args:
      path: of the three files, without their endings.
      measured: what json can hold.
      text: the table.
      figure: of Matplotlib.
    """
    write_text(path.with_suffix(".md"), text)
    files.write_json(path.with_suffix(".json"), measured, indent=1)
    figure.savefig(path.with_suffix(".png"), dpi=110)


def _cpu_name() -> str:
    """Returns the name of the CPU if JAX runs on it, on Linux, else ""."""
    listing = pathlib.Path("/proc/cpuinfo")
    if jax.default_backend() != "cpu" or not listing.exists():
        return ""
    name = re.search(r"^model name\s*: (.+)$", listing.read_text(), re.MULTILINE)
    return name[1] if name else ""
