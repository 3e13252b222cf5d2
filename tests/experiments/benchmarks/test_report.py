"""The report of the benchmark: what is kept, refused, written and shown."""

import json

import pytest

from experiments.benchmarks import report
from experiments.benchmarks.report import Case, add, markdown, save, start
from jaxdet.config import ConfigError

CASE = Case("fcos", "float32", (64, 96), "train", 2)
FIELDS = report.fields_of(CASE)
ROW = {
    **FIELDS,
    **{"milliseconds": 20.0, "images_per_second": 100.0},
    **{"lower_seconds": 1.25, "compile_seconds": 10.0, "memory": 2e9},
    **{"flops": 4e12, "bytes": 1e9, "flops_share": 0.25, "bytes_share": 0.125},
}
RIVALS = {"rivals": {"eager": 40.0, "compiled": 25.0}, "ratio": 0.8}
PARTS = [
    {"name": "backbone", "milliseconds": 12.0},
    {"name": "neck and heads", "milliseconds": 5.0},
    {"name": "all else", "milliseconds": 8.0},
]
IN_TURNS = {"parts_whole": 25.0, "parts": PARTS}
MACHINE = {"device": "abacus", "platform": "cpu", "cores": 10, "jax": "0.9"}
MACHINE |= {"date": "2026-01-31"}
SETTINGS = {"objects": 20, "repeats": 5}
HEAD = "| FCOS | train | float32 | 64x96 | 2 |"


def report_of(*rows):
    limits = {"float32": {"flops": 1e9, "bytes": 1e8}}
    parts = {"machine": MACHINE, "settings": SETTINGS, "limits": limits}
    return {**parts, "rows": [*rows]}


def test_the_table():
    other = {**ROW, "detector": "faster_rcnn_c4"}  # torchvision has none
    lines = markdown(report_of({**ROW, **RIVALS, **IN_TURNS}, other)).splitlines()
    assert lines[0] == report.machine_line(MACHINE)
    assert "float32: 0.001 TFLOP/s in matrix products, 0.1 GB/s in copies." in lines
    figures = "20 | 100 | 1.2 + 10 | 2 | 4 | 25% | 12% |"
    assert f"{HEAD} {figures} 25 (compiled) | 0.80 |" in lines
    assert f"{HEAD} {figures}  |  |".replace("FCOS", "Faster R-CNN, C4") in lines
    assert lines[-4:] == [
        "| backbone | 12 | 48% |",
        "| neck and heads | 5 | 20% |",
        "| all else | 8 | 32% |",
        "| whole | 25 | 100% |",
    ]


def test_failures_and_doubts_are_shown():
    failed = {**FIELDS, "detector": "ssd", "error": "Out of memory"}
    doubtful = {**ROW, "warning": "first losses differ"}
    lines = markdown(report_of(failed, doubtful)).splitlines()
    heads = next(line for line in lines if line.startswith("| detector"))
    row = next(line for line in lines if "failed" in line)
    assert row.startswith(f"{HEAD} failed |".replace("FCOS", "SSD"))
    assert row.count("|") == heads.count("|")
    told = "train, float32, 64x96, batch 2:"
    assert f"**SSD, {told} Out of memory**" in lines
    assert f"**FCOS, {told} first losses differ**" in lines
    line = report.line(failed)
    assert line == f"WARNING: SSD, {told} Out of memory"
    first, second = report.line(doubtful).splitlines()
    assert first.startswith(f"FCOS, {told} 20 ms, 100 images/s")
    assert second == f"WARNING: FCOS, {told} first losses differ"


@pytest.mark.parametrize(
    ("old", "new", "milliseconds"),
    [
        ({}, {}, 10),  # measured again
        ({}, IN_TURNS, 10),
        (IN_TURNS, RIVALS, 10),
        (RIVALS, IN_TURNS, 20),  # that of the turns with torchvision
        (RIVALS, {}, 20),
    ],
)
def test_a_new_row_keeps_what_is_known(old, new, milliseconds):
    other = {**ROW, "batch": 1}
    told = report_of({**ROW, **old}, other)
    row = add(told, {**ROW, "milliseconds": 10.0, **new})
    assert row == {**ROW, **old, **new, "milliseconds": milliseconds}
    assert told["rows"] == [other, row]
    assert report.row_of(told, CASE) == row
    assert report.row_of(told, CASE._replace(batch=4)) == {}


def test_a_failure_keeps_what_is_known():
    told = report_of({**ROW, **RIVALS})
    row = add(told, {**FIELDS, "error": "Out of memory"})
    assert row == {**ROW, **RIVALS, "error": "Out of memory"}


def test_a_report_goes_on_where_it_stopped(tmp_path):
    path, table = tmp_path / "new" / "a.json", tmp_path / "tables" / "a.md"
    assert start(path, MACHINE, SETTINGS) == {**report_of(), "limits": {}}
    save(report_of(ROW), path, table)
    assert table.read_text() == markdown(report_of(ROW))
    assert [*path.parent.iterdir()] == [path]
    later = {**MACHINE, "date": "2026-02-01", "torch": "2.11"}
    report = start(path, later, SETTINGS)
    assert report == {**report_of(ROW), "machine": later}
    save(report, path, None)
    again = start(path, MACHINE, SETTINGS)  # without torch
    assert again["machine"]["torch"] == "2.11"
    assert report == start(None, later, SETTINGS) | report_of(ROW) | {"machine": later}


@pytest.mark.parametrize(
    ("machine", "settings", "problem"),
    [
        ({"device": "slide rule"}, {}, "with device abacus, this is slide rule"),
        ({"torch_threads": 2}, {}, "with torch_threads 1, this is 2"),
        ({}, {"repeats": 7}, "with repeats 5, this is 7"),
        ({"jax": "1.0"}, {"objects": 9}, "jax 0.9, objects 20, this is 1.0, 9"),
    ],
)
def test_other_circumstances_are_refused(tmp_path, machine, settings, problem):
    path = tmp_path / "a.json"
    report = report_of(ROW)
    report["machine"] = {**MACHINE, "torch_threads": 1}
    path.write_text(json.dumps(report))
    with pytest.raises(ConfigError, match=rf"a\.json was measured .*{problem}: name"):
        start(path, {**MACHINE, **machine}, {**SETTINGS, **settings})
