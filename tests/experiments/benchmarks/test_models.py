"""The detectors that benchmarks time, and the same with tiny networks for tests."""

import dataclasses
import functools
import math
import re
import types
from functools import partial

import chex
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from experiments.benchmarks import models
from experiments.benchmarks.models import MODELS
from jaxdet.detectors import deformable_detr, detr, faster_rcnn, ssd
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.extra_stages import ExtraStages
from jaxdet.nn.heads import FCHead
from jaxdet.structs import Batch
from jaxdet.weights import detectors

RPN = {"pre_nms_topk": 12, "pre_nms_topk_train": 12}
RPN |= {"post_nms_topk": 6, "post_nms_topk_train": 6, "channels": 4}


def small_ssd_backbone(dtype):
    return ExtraStages(ResNet(10, 4, coarsest=4, dtype=dtype), ((4, 8),), dtype=dtype)


TINY = {
    "faster_rcnn": {
        "config": dataclasses.replace(
            faster_rcnn.TORCHVISION,
            num_classes=4,
            rpn=dataclasses.replace(faster_rcnn.TORCHVISION.rpn, **RPN),
            roi_heads=dataclasses.replace(
                faster_rcnn.TORCHVISION.roi_heads, batch_size_per_image=8
            ),
        ),
        "backbone": partial(ResNet, 10, 4),
        "box_head": partial(FCHead, 8, depth=1),
    },
    "ssd": {
        "config": ssd.SSDConfig(
            num_classes=4,
            levels=(4, 5),
            strides=(16.0, 32.0),
            default_box_sizes=(((20.0, 20.0),), ((40.0, 40.0), (50.0, 25.0))),
            postprocessing=dataclasses.replace(
                ssd.PAPER.postprocessing, pre_nms_topk=8, max_detections=8
            ),
        ),
        "backbone": small_ssd_backbone,
        "canvas": (64, 64),
    },
    "detr": {
        "config": detr.DETRConfig(
            num_classes=4,
            num_queries=8,
            channels=8,
            num_heads=2,
            hidden=8,
            encoder_depth=1,
            decoder_depth=1,
        ),
        "backbone": partial(ResNet, 10, 4),
    },
    "deformable_detr": {
        "config": deformable_detr.DeformableDETRConfig(
            num_classes=4,
            levels=(3, 4),
            num_queries=8,
            channels=8,
            num_heads=2,
            num_points=2,
            hidden=8,
            encoder_depth=1,
            decoder_depth=1,
        ),
        "backbone": partial(ResNet, 10, 4),
    },
}


def any_batch(name):
    canvas = MODELS[name].canvas or (64, 64)
    return Batch(jax.ShapeDtypeStruct((1, *canvas, 3), np.uint8), None, None, None)


@functools.cache
def shapes(name):
    """Of the variables of a detector as it is measured."""
    init = MODELS[name].detector("float32").init
    return jax.eval_shape(init, jax.random.key(0), any_batch(name))


@pytest.mark.parametrize("name", MODELS)
def test_boxes_and_class_scores_and_residuals_are_scaled(name):
    """The names of the layers, in the networks as they are measured."""
    ones = jax.tree.map(lambda x: np.ones(x.shape[-1:], np.float32), shapes(name))
    calibrated = flatten_dict(models.calibrate_boxes(ones), sep="/")
    still = {path for path, values in calibrated.items() if not np.any(values)}
    expected = {
        "retinanet": {"box_head/output"},
        "fcos": {"head/ltrb"},
        "ssd": {f"deltas{level}" for level in range(3, 9)},
        "detr": set(),
        "deformable_detr": set(),
    }.get(name, {"rpn_head/deltas", "box_predictor/deltas"})
    assert still == {f"params/{layer}/kernel" for layer in expected}
    moved = {path for path, values in calibrated.items() if np.all(values == 3)}
    assert moved == ({"params/head/ltrb/bias"} if name == "fcos" else set())
    residuals = {path for path, values in calibrated.items() if np.all(values == 0.25)}
    blocks = {path.split("/")[2] for path in residuals}
    assert len(residuals) == len(blocks) == (0 if name == "ssd" else 3 + 4 + 6 + 3)
    assert all(re.fullmatch(r"params/.*_block\d/conv3/kernel", x) for x in residuals)
    scaled = {path for path in calibrated if re.fullmatch(models._CLASSES, path)}
    expected = {
        "retinanet": {"class_head/output"},
        "fcos": {"head/classes"},
        "ssd": {f"classes{level}" for level in range(3, 9)},
        "detr": {"class_head"},
        "deformable_detr": {"class_heads_0"},
    }.get(name, {"box_predictor/classes"})
    assert scaled == {f"params/{layer}/kernel" for layer in expected}


@pytest.mark.parametrize("name", [name for name, m in MODELS.items() if m.rival])
def test_the_networks_are_torchvisions(name):
    """So that its weights are ours."""
    theirs = detectors.build(MODELS[name].rival).init
    theirs = jax.eval_shape(theirs, jax.random.key(0), any_batch(name))
    chex.assert_trees_all_equal_shapes(shapes(name), theirs)


def test_bisection_detects_about_fifty():
    """If each doubling of the scores detects ten more, 2**5 detects fifty."""
    powers = []

    def predict(variables, batch):
        power = np.log2(variables["params"]["head"]["classes"]["kernel"])
        powers.append(float(power))
        return types.SimpleNamespace(valid=np.ones((1, max(0, math.floor(10 * power)))))

    variables = {"params": {"head": {"classes": {"kernel": 1.0, "bias": 7.0}}}}
    scaled = models.calibrate_scores(predict, variables, None)
    scaled = scaled["params"]["head"]
    assert np.log2(scaled["classes"]["kernel"]) == pytest.approx(5, abs=20 / 2**8)
    assert scaled["classes"]["bias"] == 7.0 and len(powers) == 8
    assert np.log2(scaled["classes"]["kernel"]) >= 5  # at least so many
