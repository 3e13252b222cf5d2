"""The command that compares three ways to find objects of all sizes."""

import dataclasses
import json
import pathlib
import types

import pytest

from experiments.lecture import scale_comparison
from jaxdet.data.formats import digits
from jaxdet.detectors.serialization import deserialize
from jaxdet.inference.load import load_detector
from tests.experiments.test_recipes import SHORT, trace


def test_sizes_are_those_of_small_scenes():
    # Of 10, 20 and 40 pixels: small, medium and large; the middle one is not found.
    boxes = [[0, 0, 10, 10], [20, 0, 20, 20], [60, 0, 40, 40]]
    truth = {
        "info": {},
        "images": [{"id": 1, "width": 128, "height": 128}],
        "categories": [{"id": 1, "name": "0"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": 0}
            | {"area": float(box[2] * box[3])}
            for i, box in enumerate(boxes, 1)
        ],
    }
    found = [
        {"image_id": 1, "category_id": 1, "bbox": boxes[i], "score": 0.9}
        for i in (0, 2)
    ]
    numbers = scale_comparison.metrics_by_size(truth, found)
    by_size = [numbers[name] for name in ("APs", "APm", "APl")]
    assert by_size == pytest.approx([1, 0, 1])


@pytest.mark.slow
@pytest.mark.parametrize("way", scale_comparison.WAYS)
def test_ways_to_find_all_sizes_fit_their_data(way, few_digits):
    data_set = few_digits("train", digit_sides=scale_comparison.DIGIT_SIDES)
    detector = scale_comparison.detector(way)
    assert deserialize(detector.recipe).recipe == detector.recipe
    state = trace(detector, data_set, scale_comparison.TRAINING)
    assert ("stage4_block0" in state.variables["params"]["backbone"]) == (
        way != "image_pyramid"
    )
    assert ("lateral2" in state.variables["params"]["fpn"]) == (way != "image_pyramid")


def test_the_scale_comparison_leaves_a_table(tmp_path, few_digits, monkeypatch, capsys):
    folders = []

    def no_train(*parts, workdir, metrics, **more):
        workdir.mkdir()
        folders.append(workdir.name)
        if workdir.name == "fpn":  # the other has nothing left to do
            metrics({}, [])
        return types.SimpleNamespace(variables={})

    def no_evaluation(*parts, metrics, **more):
        assert folders == ["plain_stages"]
        metrics({}, [])

    measured = dict.fromkeys(scale_comparison.PRECISIONS, 0.25) | {"AR1": 0.5}
    monkeypatch.setattr(scale_comparison, "train", no_train)
    monkeypatch.setattr(scale_comparison, "evaluate", no_evaluation)
    monkeypatch.setattr(scale_comparison, "metrics_by_size", lambda *_: measured)
    monkeypatch.setattr(digits, "load", few_digits)
    few_digits("train", digit_sides=scale_comparison.DIGIT_SIDES)
    capsys.readouterr()  # what TFDS says where it draws them
    scale_comparison.main(workdir=tmp_path, ways=("plain_stages", "fpn"))
    assert folders == ["plain_stages", "fpn"]
    text = (tmp_path / "scales.md").read_text()
    assert text == capsys.readouterr().out
    assert "| plain stages | 25.0 | 25.0 |" in text
    rows = json.loads((tmp_path / "scales.json").read_text())
    assert rows["fpn"] == dict.fromkeys(scale_comparison.PRECISIONS, 0.25)
    assert (tmp_path / "scales.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_image_pyramid_is_trained(few_digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digits, "load", lambda split, **_: few_digits(split))
    narrow = scale_comparison.SMALL.backbone.clone(width=8)
    small = dataclasses.replace(scale_comparison.SMALL, backbone=narrow)
    monkeypatch.setattr(scale_comparison, "SMALL", small)
    training = dataclasses.replace(scale_comparison.TRAINING, **SHORT)
    # The other two are RetinaNets, which the recipes train.
    scale_comparison.main(training, ways=("image_pyramid",))
    run = pathlib.Path("runs/scale_comparison/image_pyramid")
    assert "evaluation at step 2" in (run / "log.txt").read_text()
    assert load_detector(run).detector.num_classes == 10
