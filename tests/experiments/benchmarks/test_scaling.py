"""The experiment that fits how time and memory grow."""

import json

import pytest

from experiments.benchmarks import scaling
from experiments.benchmarks.scaling import Point, Setting, figure, growth, main, table
from jaxdet.config import ConfigError

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
    assert curve[:3] == ("pixels", "retinanet", "predict")
    assert curve.time == pytest.approx(1.5) and curve.memory == pytest.approx(1)
    assert flat[:3] == ("classes", "faster_rcnn", "train")
    assert [flat.time, flat.memory] == pytest.approx([0, 0], abs=1e-6)


def test_all_points_are_tabled_and_what_is_worse_than_linear_is_named():
    steep = [
        Point("objects", "faster_rcnn", "train", value, milliseconds, memory)
        for value, milliseconds, memory in (
            (100, 12.345, 2_000_000),
            (1000, 123.45, 64_000_000),
            (10_000, 1234.5, 2_048_000_000),
        )
    ]
    turns = [CURVE[0], steep[0], *CURVE[1:], *steep[1:]]
    assert table(turns).splitlines() == [
        "| with | detector | task | values | ms | MB | exponent of ms | of MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| pixels | RetinaNet | predict | 10 / 100 / 400 / 900 | 7 / 8 / 64 / 216 "
        "| 0.0001 / 0.001 / 0.004 / 0.009 | 1.50 | 1.00 |",
        "| objects | Faster R-CNN | train | 100 / 1,000 / 10,000 | 12.3 / 123 / 1,230 "
        "| 2 / 64 / 2,050 | 1.00 | 1.51 |",
        "",
        "Worse than linear: time of RetinaNet's predict with pixels (1.50); memory of "
        "Faster R-CNN's train with objects (1.51).",
    ]
    assert table([]).endswith("Worse than linear: nothing.\n")


def test_the_figure_has_a_line_for_each_and_one_that_is_linear():
    time, classes, memory, _ = figure([*CURVE, *FLAT]).axes
    assert time.get_xscale() == time.get_yscale() == "log"
    line, straight = (x.get_xydata().tolist() for x in time.lines)
    assert line == [[10, 7], [100, 8], [400, 64], [900, 216]]
    assert [y for _, y in straight] == pytest.approx([2.4, 24, 96, 216])
    assert memory.lines[0].get_xydata()[-1] == pytest.approx([900, 0.009])
    assert memory.get_ylabel() == "MB"
    assert len(classes.lines) == 2 and memory.get_xlabel() == "pixels"


def test_the_legend_tells_colours_and_styles():
    drawing = figure([*CURVE, *FLAT])
    told = {line.get_label(): line for line in drawing.axes[0].get_legend().get_lines()}
    assert [*told] == ["RetinaNet", "Faster R-CNN", "predict", "train", "linear"]
    predict, linear = drawing.axes[0].lines
    train, _ = drawing.axes[1].lines
    assert predict.get_color() == told["RetinaNet"].get_color()
    assert train.get_color() == told["Faster R-CNN"].get_color()
    for line, name in ((predict, "predict"), (train, "train"), (linear, "linear")):
        assert line.get_linestyle() == told[name].get_linestyle()


@pytest.mark.parametrize(
    ("varied", "setting", "value"),
    [
        ("pixels", Setting(side=64), 64 * 64),
        # Cells of 8 to 128 pixels: 256, 64, 16, 4 and 1, of 3 x 3 anchors each.
        ("anchors", Setting(side=128), 341 * 9),
        # Cells of 4 to 64 pixels: 256, 64, 16, 4 and 1 on half the side.
        ("anchors", Setting("faster_rcnn", side=64, shapes=1), 341 * 3),
        ("proposals", Setting("faster_rcnn", proposals=50), 50),
        ("classes", Setting(classes=365), 365),
    ],
)
def test_values(varied, setting, value):
    assert scaling._value(varied, setting) == value


def test_settings_reach_their_detectors():
    text = json.dumps(scaling.make(Setting("faster_rcnn", classes=7)).recipe)
    assert '"num_classes": 7' in text and '"width": 16' in text
    setting = Setting("faster_rcnn", proposals=60, shapes=1, width=8)
    text = json.dumps(scaling.make(setting).recipe)
    assert '"post_nms_topk": 60' in text and '"post_nms_topk_train": 60' in text
    assert '"batch_size_per_image": 30' in text and '"width": 8' in text
    detector = scaling.make(Setting(shapes=2))
    assert detector.num_classes == 80
    assert '"sizes": [[16.0, 22.6' in json.dumps(detector.recipe)


def test_every_setting_is_measured(monkeypatch, tmp_path, capsys):
    settings = []

    def measure(varied, setting, repeats):
        settings.append(setting)
        value = scaling._value(varied, setting)
        return [Point(varied, setting.detector, "train", value, value**2, value)]

    monkeypatch.setattr(scaling, "measure", measure)
    main(varied=("batch", "proposals"), width=8, output=tmp_path)
    assert [s.batch for s in settings[:8]] == 2 * [1, 2, 4, 8]
    assert [s.proposals for s in settings[8:]] == [125, 250, 500, 1000]
    assert {s.width for s in settings} == {8}
    report = json.loads((tmp_path / "scaling.json").read_text())
    assert len(report["points"]) == 12 and report["machine"]["jax"]
    first, second, third = report["exponents"]
    assert first["detector"] == "retinanet" and first["time"] == pytest.approx(2)
    assert second["detector"] == third["detector"] == "faster_rcnn"
    text = (tmp_path / "scaling.md").read_text()
    assert capsys.readouterr().out.endswith(text) and "with batch (2.00)" in text
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_no_repeats_are_refused():
    with pytest.raises(ConfigError, match="--repeats is 0"):
        main(repeats=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_a_setting_is_measured(name):
    setting = Setting(name, side=64, proposals=20, classes=5, width=4)
    train, predict = scaling.measure("classes", setting, repeats=1)
    assert train[:4] == ("classes", name, "train", 5)
    assert predict[:4] == ("classes", name, "predict", 5)
    assert min(train.milliseconds, predict.milliseconds) > 0
    assert train.memory > predict.memory > 0
    (alone,) = scaling.measure("objects", setting, repeats=1)
    assert alone.task == "train"  # predict does not see them
