"""The benchmark of training's input, on a few photographs that it makes itself."""

import dataclasses

import cv2
import numpy as np
import pytest

from experiments.benchmarks import input_pipeline
from experiments.data_option import DataOption
from experiments.recipes import retinanet_small
from jaxdet.config import Anchors, ConfigError
from jaxdet.data import batching
from jaxdet.data.dataset import DataError
from jaxdet.data.formats import coco
from jaxdet.data.input_config import InputConfig
from jaxdet.nn.backbones.resnet import ResNet

TINY = InputConfig(canvases=((48, 96), (96, 64)), workers=2)


@pytest.fixture
def photographs(monkeypatch, tmp_path):
    monkeypatch.setattr(input_pipeline, "PHOTOGRAPHS", 4)
    return input_pipeline._make_photographs(tmp_path)


def test_both_speeds_and_their_ratio_are_told(photographs, capsys):
    source = DataOption((str(photographs),))
    input_pipeline.main(source, TINY, batch_size=2, batches=2, repeats=1, steps=0)
    first, _, *rows = capsys.readouterr().out.splitlines()
    assert first == "photographs: 4 images, 2 threads"
    # A ratio, told with two decimals, is that of the batches to the bare work.
    alone, ours, ratio = (np.array(row.split()[-2:], float) for row in rows)
    np.testing.assert_allclose(ratio, ours / alone, rtol=0.05, atol=0.01)


def test_the_bare_work_is_that_of_the_batches(photographs, monkeypatch):
    data_set = coco.load(photographs, photographs.parent)
    resize, sizes = cv2.resize, []

    def noted(image, size, **options):
        sizes.append(size)
        return resize(image, size, **options)

    monkeypatch.setattr(cv2, "resize", noted)
    input_pipeline._decode_and_resize(data_set, TINY, 6)()
    (batch,) = batching.evaluation_batches(data_set, TINY, batch_size=4)
    assert sizes[:6] == [(64, 48)] * 6  # files of 640 x 480 go to the first canvas
    np.testing.assert_array_equal(batch.sizes, [(48, 64)] * 4)


def test_speed_is_work_by_time(monkeypatch):
    clock, processor = iter([10.0, 12.0]), iter([1.0, 1.5])
    monkeypatch.setattr(input_pipeline.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(input_pipeline.time, "process_time", lambda: next(processor))
    assert input_pipeline._speed(lambda: None, 8) == (4.0, 16.0)


@pytest.mark.parametrize(
    ("options", "error", "problem"),
    [
        ({"batches": 0}, ConfigError, "--batches is 0"),
        ({"repeats": -1}, ConfigError, "--repeats is -1"),
        ({"source": DataOption(("a.json",))}, DataError, "cannot be read"),
    ],
)
def test_refused(options, error, problem):
    with pytest.raises(error, match=problem):
        input_pipeline.main(**options)


@pytest.mark.slow
def test_the_share_that_training_waits(monkeypatch, capsys):
    monkeypatch.setattr(input_pipeline, "PHOTOGRAPHS", 4)
    backbone = ResNet(depth=10, width=8, norm="group")
    small = dataclasses.replace(
        retinanet_small.RECIPE.detector,
        channels=16,
        head_depth=1,
        levels=(4, 5),
        anchors=Anchors(((16.0,), (32.0,))),
    )
    recipe = dataclasses.replace(
        retinanet_small.RECIPE, backbone=backbone, detector=small
    )
    monkeypatch.setattr(retinanet_small, "RECIPE", recipe)
    input_pipeline.main(input_config=TINY, batch_size=4, batches=1, repeats=1, steps=2)
    last = capsys.readouterr().out.splitlines()[-1]
    share = float(last.removeprefix("training waits for ").split("%")[0])
    assert 0 <= share < 100
