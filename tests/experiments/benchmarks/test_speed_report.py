"""The report of `benchmarks.speed`: what is kept, refused and shown."""

import json

import pytest

from experiments.benchmarks import speed_report
from experiments.benchmarks.speed_report import Case, add, start
from jaxdet.config import ConfigError

CASE = Case("fcos", "float32", (64, 96), "train", 2)
ROW = {
    **CASE.fields(),
    **{"milliseconds": 20.0, "images_per_second": 100.0},
    **{"lower_seconds": 1.25, "compile_seconds": 10.0, "memory": 2e9},
    **{"flops": 4e12, "bytes": 1e9, "flops_share": 0.25, "bytes_share": 0.125},
}
RIVALS = {"rivals": {"eager": 40.0, "compiled": 25.0}, "ratio": 0.8}
PARTS = {"parts_whole": 25.0, "parts": [{"name": "backbone", "milliseconds": 12.0}]}
MACHINE = {"device": "abacus", "platform": "cpu", "cores": 10, "jax": "0.9"}
MACHINE |= {"date": "2026-01-31", "torch_threads": 1}
SETTINGS = {"objects": 20, "repeats": 5}


def report_of(*rows):
    limits = {"float32": {"flops": 1e9, "bytes": 1e8}}
    parts = {"machine": MACHINE, "settings": SETTINGS, "limits": limits}
    return {**parts, "rows": [*rows]}


def test_the_table():
    failed = {**CASE.fields(), "detector": "ssd", "error": "Out of memory"}
    doubtful = {**ROW, **RIVALS, **PARTS, "warning": "first losses differ"}
    text = speed_report.markdown(report_of(doubtful, failed))
    figures = "20 | 100 | 1.2 + 10 | 2 | 4 | 25% | 12% | 25 (compiled) | 0.80 |"
    assert f"| FCOS | train | float32 | 64x96 | 2 | {figures}" in text
    assert "**SSD, train, float32, 64x96, batch 2: Out of memory**" in text
    assert "**FCOS, train, float32, 64x96, batch 2: first losses differ**" in text
    assert text.endswith("| backbone | 12 | 48% |\n| whole | 25 | 100% |\n")
    # What is printed of them has the same figures.
    assert "20 ms" in speed_report.line(doubtful)
    assert "torchvision eager 40, compiled 25 ms; ours / its 0.80" in speed_report.line(
        doubtful
    )
    assert speed_report.line(failed).startswith("WARNING: SSD")


@pytest.mark.parametrize(
    ("old", "new", "milliseconds"),
    [
        ({}, {}, 10),  # measured again
        (PARTS, RIVALS, 10),
        (RIVALS, PARTS, 20),  # that of the turns with torchvision
    ],
)
def test_a_new_row_keeps_what_is_known(old, new, milliseconds):
    other = {**ROW, "batch": 1}
    report = report_of({**ROW, **old}, other)
    row = add(report, {**ROW, "milliseconds": 10.0, **new})
    assert row == {**ROW, **old, **new, "milliseconds": milliseconds}
    assert report["rows"] == [other, row]
    assert speed_report.row_of(report, CASE) == row
    assert speed_report.row_of(report, CASE._replace(batch=4)) == {}


def test_a_report_continues_where_it_stopped(tmp_path):
    path = tmp_path / "a.json"
    assert start(path, MACHINE, SETTINGS) == {**report_of(), "limits": {}}
    later = {**MACHINE, "date": "2026-02-01", "torch": "2.11"}
    path.write_text(json.dumps({**report_of(ROW), "machine": later}))
    assert start(path, MACHINE, SETTINGS)["machine"]["torch"] == "2.11"  # without torch
    assert start(path, later, SETTINGS) == {**report_of(ROW), "machine": later}


@pytest.mark.parametrize(
    ("machine", "settings", "problem"),
    [
        ({"device": "slide rule"}, {}, "with device abacus, this is slide rule"),
        ({"torch_threads": 2}, {}, "with torch_threads 1, this is 2"),
        ({"jax": "1.0"}, {"objects": 9}, "jax 0.9, objects 20, this is 1.0, 9"),
    ],
)
def test_other_circumstances_are_refused(tmp_path, machine, settings, problem):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(report_of(ROW)))
    with pytest.raises(ConfigError, match=rf"a\.json was measured .*{problem}: name"):
        start(path, {**MACHINE, **machine}, {**SETTINGS, **settings})
