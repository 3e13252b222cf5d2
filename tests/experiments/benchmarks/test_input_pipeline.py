"""The benchmark of training's input, on a few photographs that it makes itself."""

import cv2
import numpy as np
import pytest

from experiments.benchmarks import input_pipeline
from experiments.data_option import DataOption
from jaxdet.config import ConfigError
from jaxdet.data import batching
from jaxdet.data.dataset import DataError
from jaxdet.data.formats import coco
from jaxdet.data.input_config import InputConfig

TINY = InputConfig(canvases=((48, 96), (96, 64)), workers=2)


def test_speeds_are_medians_and_the_ratio_is_taken_turn_by_turn():
    # Ratios are 1/2, 3/4 and 1/4 by the clock, and 1 of CPU time.
    turns = [[(10, 8), (5, 8)], [(20, 4), (15, 4)], [(40, 2), (10, 2)]]
    *_, alone, whole, ratio = input_pipeline.speed_table(turns).splitlines()
    assert alone.endswith("| 20 | 4 |")
    assert whole.endswith("| 10 | 4 |")
    assert ratio.endswith("| 0.50 | 1.00 |")


def test_decoding_alone_is_the_work_of_the_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(input_pipeline, "PHOTOGRAPHS", 4)
    data_set = coco.load(input_pipeline.make_photographs(tmp_path), tmp_path)
    resize, sizes = cv2.resize, []

    def noted(image, size, **options):
        sizes.append(size)
        return resize(image, size, **options)

    monkeypatch.setattr(cv2, "resize", noted)
    input_pipeline.decode_and_resize(data_set, TINY, 6)()
    (batch,) = batching.evaluation_batches(data_set, TINY, batch_size=4)
    assert sizes[:6] == [(64, 48)] * 6  # files of 640 x 480 go to the first canvas
    np.testing.assert_array_equal(batch.sizes, [(48, 64)] * 4)


@pytest.mark.parametrize(
    ("options", "error", "problem"),
    [
        ({"repeats": -1}, ConfigError, "--repeats is -1"),
        ({"source": DataOption(("a.json",))}, DataError, "cannot be read"),
    ],
)
def test_refused(options, error, problem):
    with pytest.raises(error, match=problem):
        input_pipeline.main(**options)


@pytest.mark.slow
def test_the_command(monkeypatch, capsys):
    monkeypatch.setattr(input_pipeline, "PHOTOGRAPHS", 4)
    input_pipeline.main(input_config=TINY, batch_size=4, batches=1, repeats=1)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == "photographs: 4 images, 2 threads"
    assert last.startswith("| ratio | ")
