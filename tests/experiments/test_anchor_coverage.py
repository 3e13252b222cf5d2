"""The script that measures and draws what anchors can learn."""

import dataclasses
import functools

import numpy as np
import pytest
import tyro
from PIL import Image

from experiments import anchor_coverage
from experiments.anchor_coverage import Row, RunFolder, by_size, figure, main
from experiments.data_option import DataOption
from experiments.recipe import build
from experiments.recipes.retinanet_digits import RECIPE
from jaxdet.data.dataset import DataError
from jaxdet.data.formats import digits
from jaxdet.detectors.deformable_detr import DeformableDETRConfig, deformable_detr
from jaxdet.detectors.detr import DETRConfig, detr
from jaxdet.detectors.fast_rcnn import FastRCNNConfig, fast_rcnn
from jaxdet.detectors.fcos import FCOSConfig
from jaxdet.detectors.retinanet import RetinaNetConfig
from jaxdet.evaluation.anchor_coverage import Coverage, measure
from jaxdet.nn.heads import FCHead
from jaxdet.training.run_folder import RunError, save_run
from tests.data.in_memory import in_memory_data_set

SIDES = np.array([3.0, 5.0, 6.0, 7.0, 16.0])
FOUND = Coverage(np.array([0.1, 0.3, 0.5, 0.6, 0.9]), 0.4, 0.5, "IoU with an anchor")


@pytest.fixture(autouse=True)
def few_digits(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(
        digits,
        "load",
        functools.partial(
            digits.load,
            data_dir=tmp_path_factory.getbasetemp() / "digits",
            train_images=4,
            validation_images=2,
        ),
    )


def test_rows_are_octaves_that_hold_objects():
    expected = [
        Row(2, 4, 1, 0.1, 0.0, 1.0),
        Row(4, 8, 3, 0.5, 2 / 3, 1 / 3),
        Row(16, 32, 1, 0.9, 1.0, 0.0),
    ]
    np.testing.assert_allclose(by_size(SIDES, FOUND), expected)


def test_the_digits_with_numbers_from_the_command_line(tmp_path, capsys):
    output = tmp_path / "new" / "drawn.png"
    numbers = ["retinanet", "--anchors.ratios", "1", "2"]
    options = ["--canvases", "128", "128", "--output", str(output)]
    tyro.cli(main, args=[*options, *numbers])
    assert Image.open(output).size == (960, 840)
    *_, every, drawn = capsys.readouterr().out.splitlines()
    count = sum(len(objects.labels) for objects in digits.load("train").objects)
    assert every.split()[:2] == ["all", str(count)] and str(output) in drawn


def test_a_run_is_measured_by_its_own_numbers(tmp_path, capsys):
    model = build(RECIPE)
    data_set = digits.load("train")
    save_run(tmp_path, model, data_set, RECIPE.training)
    capsys.readouterr()  # what TFDS prints where it draws them
    main(RunFolder(tmp_path), output=tmp_path / "drawn.svg")
    text, _, _ = capsys.readouterr().out.partition("drawn: ")  # the rest is a path
    assert ">= 0.5" in text and "< 0.4" in text
    assert "32 to 64" in text and "128" not in text  # on the run's own canvas


@pytest.mark.parametrize(
    "detector",
    [
        fast_rcnn(FastRCNNConfig(), RECIPE.backbone, FCHead()),
        detr(DETRConfig(), RECIPE.backbone),
        deformable_detr(DeformableDETRConfig(), RECIPE.backbone),
    ],
    ids=["fast_rcnn", "detr", "deformable_detr"],
)
def test_without_anchors_there_is_nothing_to_cover(detector, tmp_path):
    save_run(tmp_path, detector, digits.load("train"), RECIPE.training)
    with pytest.raises(RunError, match=r"no anchors or points.* nothing to cover"):
        main(RunFolder(tmp_path))


def test_objects_count_at_every_scale_of_training(tmp_path, monkeypatch):
    """On canvases of 96, 128 and 160, where scenes of 128 have 3/4, 1 and 5/4."""
    model = build(RECIPE)
    scales = dataclasses.replace(RECIPE.training.input, multi_scale=(0.75, 1, 1.25))
    training = dataclasses.replace(RECIPE.training, input=scales)
    save_run(tmp_path, model, digits.load("train"), training)
    drawn = []

    def no_figure(sides, found, *, title):
        drawn.append((sides, found, title))
        return figure(SIDES, FOUND, title=title)

    monkeypatch.setattr(anchor_coverage, "figure", no_figure)
    main(RunFolder(tmp_path), output=tmp_path / "drawn.svg")
    ((sides, found, title),) = drawn
    smaller, same, larger = np.split(sides, 3)
    np.testing.assert_allclose(smaller, 0.75 * same, rtol=1e-5)
    np.testing.assert_allclose(larger, 1.25 * same, rtol=1e-5)
    assert len(found.best) == len(sides)
    assert title.endswith(f": {len(same)} objects, at the scales 0.75, 1, 1.25")
    alone = dataclasses.replace(scales, multi_scale=(1.25,))
    _, expected = measure(
        RECIPE.detector, digits.load("train"), alone, max_objects=20_000
    )
    np.testing.assert_array_equal(found.best[-len(larger) :], expected.best[0])


def test_what_contradicts_itself_is_refused(monkeypatch):
    config = RetinaNetConfig()
    with pytest.raises(DataError, match="--objects is 0; it must be at least 1"):
        main(config, objects=0)
    empty = in_memory_data_set([(32, 32)], [[(0, 0, 9, 9, 0, True)]])
    monkeypatch.setattr(DataOption, "load", lambda _: empty)
    with pytest.raises(DataError, match="'in memory' holds no objects but crowds"):
        main(FCOSConfig())
