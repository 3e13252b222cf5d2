"""The benchmark that fits how time and memory grow."""

import json

import pytest

from experiments.benchmarks import scaling
from experiments.benchmarks.scaling import Point, Setting, growth, main, table

# Time as pixels to the power of 1.5 from the second point on, memory linear.
CURVE = [
    Point("pixels", "retinanet", "predict", value, milliseconds, memory)
    for value, milliseconds, memory in (
        (10, 7.0, 100),
        (100, 8.0, 1000),
        (400, 64.0, 4000),
        (900, 216.0, 9000),
    )
]
FLAT = [Point("classes", "faster_rcnn", "train", value, 5.0, 64) for value in (80, 365)]


def test_exponents_are_those_of_the_last_three_points():
    curve, flat = growth([*CURVE, *FLAT])
    names = {"varied": "pixels", "detector": "retinanet", "task": "predict"}
    assert curve == pytest.approx({**names, "time": 1.5, "memory": 1})
    names = {"varied": "classes", "detector": "faster_rcnn", "task": "train"}
    assert flat == pytest.approx({**names, "time": 0, "memory": 0}, abs=1e-6)


def test_what_is_worse_than_linear_is_named():
    text = table([CURVE[0], FLAT[0], *CURVE[1:], FLAT[1]])  # in any order
    row = "| 10 / 100 / 400 / 900 | 7 / 8 / 64 / 216 | 0.0001 / 0.001 / 0.004 / 0.009 |"
    assert f"| pixels | RetinaNet | predict {row} 1.50 | 1.00 |" in text
    worse = "Worse than linear: time of RetinaNet's predict with pixels (1.50).\n"
    assert text.endswith(worse)


@pytest.mark.parametrize(
    ("varied", "setting", "value"),
    [
        ("pixels", Setting(side=64), 64 * 64),
        # Cells of 8 to 128 pixels: 256, 64, 16, 4 and 1, of 3 x 3 anchors each.
        ("anchors", Setting(side=128), 341 * 9),
        # Cells of 4 to 64 pixels: 256, 64, 16, 4 and 1 on half the side.
        ("anchors", Setting("faster_rcnn", side=64, anchor_sizes=1), 341 * 3),
        ("proposals", Setting("faster_rcnn", proposals=50), 50),
    ],
)
def test_values(varied, setting, value):
    assert scaling.varied_value(varied, setting) == value


def test_the_command(monkeypatch, tmp_path):
    settings = []

    def measure(varied, setting, repeats):
        settings.append(setting)
        value = scaling.varied_value(varied, setting)
        return [Point(varied, setting.detector, "train", value, value**2, value)]

    monkeypatch.setattr(scaling, "measure", measure)
    main(varied=("batch", "proposals"), width=8, output=tmp_path)
    assert [s.batch for s in settings[:8]] == 2 * [1, 2, 4, 8]
    assert [s.proposals for s in settings[8:]] == [125, 250, 500, 1000]
    assert {s.width for s in settings} == {8}
    measured = json.loads((tmp_path / "scaling.json").read_text())
    assert len(measured["points"]) == 12 and measured["machine"]["jax"]
    assert [line["time"] for line in measured["exponents"]] == pytest.approx([2] * 3)
    assert "with batch (2.00)" in (tmp_path / "scaling.md").read_text()
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_setting_is_measured():
    name = "faster_rcnn"
    setting = Setting(name, side=64, proposals=20, classes=5, width=4)
    train, predict = scaling.measure("classes", setting, repeats=1)
    assert train[:4] == ("classes", name, "train", 5)
    assert predict[:4] == ("classes", name, "predict", 5)
    assert min(train.milliseconds, predict.milliseconds) > 0
    assert train.memory > predict.memory > 0
    (alone,) = scaling.measure("objects", setting, repeats=1)
    assert alone.task == "train"  # predict does not see them
