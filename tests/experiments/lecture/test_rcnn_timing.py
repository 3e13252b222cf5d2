"""The command that times R-CNN, SPP-net, Fast R-CNN and Faster R-CNN."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from experiments.data_option import DataOption
from experiments.lecture import rcnn_timing
from experiments.lecture.rcnn_timing import (
    Times,
    detectors,
    main,
    table,
)
from jaxdet.config import ConfigError
from jaxdet.data.dataset import Proposals
from jaxdet.data.formats import digits
from jaxdet.detectors import sppnet
from jaxdet.nn.backbones.alexnet import AlexNet
from jaxdet.nn.heads import FCHead
from jaxdet.structs import Batch, Regions
from tests.data.in_memory import in_memory_data_set

ROWS = {
    "rcnn": Times(training_image=9.0, test_image=12.0, proposals=2.0),
    "sppnet": Times(training_image=0.225, test_image=3.0, proposals=2.0),
    "fast_rcnn": Times(training_image=0.9, test_image=0.5, proposals=2.0),
    "faster_rcnn": Times(training_image=1.8, test_image=0.625, proposals=0.0),
}


def test_the_table_has_what_was_measured_beside_what_was_published():
    # 16 x 5,011 images at 9 s are 721,584 s, or 200.4 hours.
    assert table(ROWS).splitlines()[2:] == [
        "| R-CNN | 9 | 200 | 84 | 12 | 14 | 47 | 49 |",
        "| SPP-net | 0.225 | 5.01 | 25 | 3 | 5 | 2.3 | 4.3 |",
        "| Fast R-CNN | 0.9 | 20 | 9.5 | 0.5 | 2.5 | 0.32 | 2.32 |",
        "| Faster R-CNN | 1.8 | 40.1 |  | 0.625 | 0.625 | 0.198 | 0.198 |",
    ]


@pytest.mark.parametrize(
    ("backbone", "inputs"),
    [
        ("alexnet", {"rcnn": 36 * 256, "sppnet": 50 * 256, "fast_rcnn": 36 * 256}),
        ("vgg16", {"rcnn": 49 * 512, "sppnet": 50 * 512, "fast_rcnn": 49 * 512}),
    ],
)
def test_the_fully_connected_layers_are_the_published(backbone, inputs):
    # 6x6 cells for AlexNet, 7x7 for VGG-16; SPP-net's pyramid has 36 + 9 + 4 + 1.
    inputs = inputs | {"faster_rcnn": inputs["fast_rcnn"]}
    regions = Regions(np.zeros((1, 2, 4)), np.zeros((1, 2)), np.zeros((1, 2), bool))
    batch = Batch(
        images=np.zeros((1, 64, 64, 3), np.uint8),
        sizes=np.full((1, 2), 64, np.int32),
        scales=np.ones((1, 2), np.float32),
        image_ids=np.zeros(1, np.int32),
        regions=regions,
    )
    for name, detector in detectors(backbone, 3, "float32").items():
        made = jax.eval_shape(detector.init, jax.random.key(0), batch)
        shapes = {
            leaf.shape
            for path, leaf in jax.tree.leaves_with_path(made)
            if "box_head" in jax.tree_util.keystr(path)
        }
        assert {(inputs[name], 4096), (4096, 4096)} <= shapes, name


def test_proposals_are_made_of_the_image_on_its_canvas(monkeypatch):
    """An image of 32 x 64 on a canvas of 128 is 64 x 128."""
    seen = []

    def search(image, *, max_proposals):
        seen.append((image.shape, max_proposals))
        return Proposals(np.float32([[0, 8, 128, 64]]), np.float32([1]))

    clock = iter([0.0, 1.0, 5.0, 8.0, 10.0, 12.0])
    monkeypatch.setattr(rcnn_timing, "selective_search", search)
    monkeypatch.setattr(rcnn_timing.time, "perf_counter", lambda: next(clock))
    data_set = in_memory_data_set([np.zeros((32, 64, 3), np.uint8)] * 3)
    data_set, seconds = rcnn_timing._with_timed_proposals(data_set, 128, 7)
    assert seen == [((64, 128, 3), 7)] * 3
    np.testing.assert_array_equal(data_set.proposals[2].boxes, [[0, 4, 64, 32]])
    assert seconds == 2  # the median of 1, 3 and 2


def test_refused(monkeypatch):
    with pytest.raises(
        ConfigError, match="--num-images is 3; it must be an even number"
    ):
        main(num_images=3)
    one = in_memory_data_set([(32, 32)])
    monkeypatch.setattr(DataOption, "load", lambda self: one)
    with pytest.raises(ConfigError, match="--num-images 4, but in memory has 1"):
        main(DataOption(("a.json",)), num_images=4)


@pytest.mark.slow
def test_all_four_are_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(
        digits, "load", functools.partial(digits.load, data_dir=tmp_path)
    )
    one_scale = dataclasses.replace(sppnet.PAPER, scales=(1.0,))
    monkeypatch.setattr(sppnet, "PAPER", one_scale)
    monkeypatch.setattr(rcnn_timing, "REGIONS_AN_IMAGE", 4)
    monkeypatch.setattr(rcnn_timing, "AlexNet", functools.partial(AlexNet, width=4))
    monkeypatch.setattr(rcnn_timing, "FCHead", lambda _, **more: FCHead(16, **more))
    main(num_images=2, side=128, regions=8, output=tmp_path / "out")
    report = json.loads((tmp_path / "out" / "timing.json").read_text())
    assert report["setting"]["regions"] == 8
    seconds = report["seconds"]
    assert list(seconds) == list(rcnn_timing.NAMES)
    assert all(times["training_image"] > 0 for times in seconds.values())
    assert all(times["test_image"] > 0 for times in seconds.values())
    waits = [times["proposals"] for times in seconds.values()]
    assert waits[0] == waits[1] == waits[2] > waits[3] == 0
    assert "Faster R-CNN proposes fewer" in (tmp_path / "out" / "timing.md").read_text()
    assert (tmp_path / "out" / "timing.png").stat().st_size > 10_000
