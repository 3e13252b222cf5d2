"""The command that draws speed against accuracy."""

import dataclasses
import functools
import json
import types

import numpy as np
import pytest

from experiments.lecture import speed_accuracy
from experiments.lecture.speed_accuracy import (
    TRAINING,
    Detectors,
    Point,
    main,
    make,
    pareto_front,
    sizes,
)
from jaxdet.config import ConfigError
from jaxdet.data.formats import digits
from jaxdet.data.input_config import InputConfig
from tests.data.in_memory import in_memory_data_set

FIRST_FOUR = {"steps": 4, "warmup_steps": 1, "log_every": 2}


@pytest.fixture(autouse=True)
def few_digits(monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "digits"
    few = {"data_dir": folder, "train_images": 16, "validation_images": 6}
    monkeypatch.setattr(digits, "load", functools.partial(digits.load, **few))


def test_sizes_are_those_of_training():
    assert [one.canvases for one in sizes(TRAINING.input)] == [
        ((96, 96),),
        ((128, 128),),
        ((160, 160),),
    ]
    both = ((64, 128), (128, 64))
    config = InputConfig(canvases=both, multi_scale=(1.0, 0.5, 1.01), flip=0.0)
    half, whole = sizes(config)  # 1.01 is the same multiple of 32
    assert half == InputConfig(canvases=((32, 64), (64, 32)), flip=0.0)
    assert whole == InputConfig(canvases=both, flip=0.0)


def test_the_backbone_reaches_as_far_as_the_levels():
    levels = {"levels": (3, 4, 5, 6), "regression_ranges": (24.0, 48.0, 96.0)}
    configs = Detectors(fcos=dataclasses.replace(Detectors().fcos, **levels))
    data_set = in_memory_data_set([(32, 32)], class_names=[*"0123456789"])
    detector = make("fcos", 10, configs, data_set, "float32")
    assert '"coarsest": 5' in json.dumps(detector.recipe)


def test_each_is_trained_once_and_evaluated_at_each_size(monkeypatch, tmp_path, capsys):
    folders, canvases = [], []

    def no_train(model, *data, workdir, validation):
        workdir.mkdir()
        folders.append(workdir.name)
        return types.SimpleNamespace(variables={})

    def no_evaluation(model, variables, data_set, config):
        canvases.append(config.canvases)
        return {"AP": 0.25, "AP50": 0.5}

    def no_predictions(model, variables, data_set, config, count):
        return lambda: None

    monkeypatch.setattr(speed_accuracy, "train", no_train)
    monkeypatch.setattr(speed_accuracy, "evaluate", no_evaluation)
    monkeypatch.setattr(speed_accuracy, "predictions", no_predictions)
    digits.load("train")
    capsys.readouterr()  # what TFDS says where it draws them
    main(names=("fcos", "ssd"), depths=(10, 18), timed=2, workdir=tmp_path)
    expected = ["fcos_resnet10", "fcos_resnet18", "ssd_resnet10", "ssd_resnet18"]
    assert folders == expected
    assert canvases == 4 * [((side, side),) for side in (96, 128, 160)]
    text = (tmp_path / "speed_accuracy.md").read_text()
    assert text == capsys.readouterr().out and len(text.splitlines()) == 2 + 12
    points = json.loads((tmp_path / "speed_accuracy.json").read_text())["points"]
    assert points[4]["depth"] == 18 and points[4]["canvas"] == [128, 128]
    assert points[4]["ap"] == 0.25 and points[4]["milliseconds"] >= 0
    assert (tmp_path / "speed_accuracy.png").stat().st_size > 10_000


def test_the_pareto_front_holds_what_none_beats():
    values = [(5, 0.4), (4, 0.3), (6, 0.4), (7, 0.35), (4, 0.2), (9, 0.5)]
    points = [Point("ssd", 10, (96, 96), *value, ap50=1.0) for value in values]
    assert [point[3:5] for point in pareto_front(points)] == [
        (4, 0.3),
        (5, 0.4),
        (9, 0.5),
    ]


def test_refused():
    with pytest.raises(ConfigError, match="--timed is 0; it must be at least 1"):
        main(timed=0)


@pytest.mark.slow
def test_a_detector_is_trained_and_timed(tmp_path, capsys):
    two = dataclasses.replace(
        TRAINING.input, canvases=((64, 64),), multi_scale=(0.5, 1.0)
    )
    training = dataclasses.replace(TRAINING, **FIRST_FOUR, input=two)
    main(training=training, names=("ssd",), depths=(10,), timed=2, workdir=tmp_path)
    assert "evaluation at step 4" in (tmp_path / "ssd_resnet10" / "log.txt").read_text()
    points = json.loads((tmp_path / "speed_accuracy.json").read_text())["points"]
    assert [point["canvas"] for point in points] == [[32, 32], [64, 64]]
    assert all(point["milliseconds"] > 0 for point in points)
    assert np.isfinite([point["ap"] for point in points]).all()
