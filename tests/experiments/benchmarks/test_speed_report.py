"""The report of `benchmarks.speed`: what is kept, refused and shown."""

import json

import pytest

from experiments.benchmarks import speed_report
from experiments.benchmarks.speed_report import Case, add, start
from jaxdet.config import ConfigError

CASE = Case("fcos", "float32", (64, 96), "train", 2)
ROW = {
    **CASE._asdict(),
    **{"milliseconds": 20.0, "images_per_second": 100.0},
    **{"lower_seconds": 1.25, "compile_seconds": 10.0, "memory": 2e9},
    **{"flops": 4e12, "bytes": 1e9, "flops_share": 0.25, "bytes_share": 0.125},
}
RIVALS = {"rivals": {"eager": 40.0, "compiled": 25.0}, "ratio": 0.8}
PARTS = {"parts": {"backbone": 12.0, "all else": 13.0, "whole": 25.0}}
MACHINE = {"device": "abacus", "platform": "cpu", "cores": 10, "jax": "0.9"}
MACHINE |= {"date": "2026-01-31", "torch_threads": 1}
SETTINGS = {"objects": 20, "repeats": 5}


def report_of(**rows):
    limits = {"float32": {"flops": 1e9, "bytes": 1e8}}
    parts = {"machine": MACHINE, "settings": SETTINGS, "limits": limits}
    return {**parts, "rows": rows}


def test_the_table():
    failed = {**CASE._asdict(), "detector": "ssd", "error": "Out of memory"}
    doubtful = {**ROW, **RIVALS, **PARTS, "warning": "first losses differ"}
    text = speed_report.markdown(report_of(one=doubtful, other=failed))
    figures = "20 | 100 | 1.2 + 10 | 2 | 4 | 25% | 12% | 25 (compiled) | 0.80 |"
    assert f"| FCOS | train | float32 | 64x96 | 2 | {figures}" in text
    assert "**other: Out of memory**" in text
    assert "**one: first losses differ**" in text
    rows = "| backbone | 12 | 48% |\n| all else | 13 | 52% |\n| whole | 25 | 100% |\n"
    assert text.endswith(f"one:\n\n| part | ms | share |\n| --- | --- | --- |\n{rows}")
    # What is printed of them has the same figures.
    line = speed_report.line("one", doubtful)
    assert line.startswith("one: 20 ms, 100 images/s, compiled in 10 s; torchvision ")
    assert "torchvision eager 40, compiled 25 ms; ours / its 0.80\nWARNING: one" in line
    assert line.endswith("all else: 13 ms, 52%\n    whole: 25 ms, 100%")
    assert speed_report.line("other", failed) == "WARNING: other: Out of memory"


@pytest.mark.parametrize(
    ("old", "new", "milliseconds"),
    [
        ({}, {}, 10),  # measured again
        (PARTS, RIVALS, 10),
        (RIVALS, PARTS, 20),  # that of the turns with torchvision
    ],
)
def test_a_new_row_keeps_what_is_known(old, new, milliseconds):
    report = report_of(**{str(CASE): {**ROW, **old}, "other": {**ROW, "batch": 1}})
    row = add(report, CASE, {"milliseconds": 10.0, **new})
    assert row == {**ROW, **old, **new, "milliseconds": milliseconds}
    assert report["rows"] == {str(CASE): row, "other": {**ROW, "batch": 1}}


def test_a_report_continues_where_it_stopped(tmp_path):
    path = tmp_path / "a.json"
    assert start(path, MACHINE, SETTINGS) == {**report_of(), "limits": {}}
    later = {**MACHINE, "date": "2026-02-01", "torch": "2.11"}
    row = {**ROW, "canvas": [64, 96]}  # json has no tuples
    path.write_text(json.dumps({**report_of(one=row), "machine": later}))
    assert start(path, MACHINE, SETTINGS)["machine"]["torch"] == "2.11"  # without torch
    assert start(path, later, SETTINGS) == {**report_of(one=row), "machine": later}


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
    path.write_text(json.dumps(report_of()))
    with pytest.raises(ConfigError, match=rf"a\.json was measured .*{problem}: name"):
        start(path, {**MACHINE, **machine}, {**SETTINGS, **settings})
