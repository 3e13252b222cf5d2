"""Fast R-CNN: the laws, and that it reads the features below each region."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.detectors.fast_rcnn import PAPER, FastRCNNConfig, fast_rcnn
from jaxdet.detectors.roi_heads import RoIHeadsConfig
from jaxdet.detectors.serialization import deserialize
from jaxdet.nn.backbones.resnet import ResNet, ResNetHead
from jaxdet.nn.heads import FCHead
from tests.detectors import laws, scenes

SMALL = FastRCNNConfig(
    num_classes=3,
    region=RoIHeadsConfig(per_image=16, positive_fraction=0.5, detections=20),
    level=3,
    pool_size=4,
)


def small_fast_rcnn(dtype=jnp.float32, config=SMALL):
    backbone = ResNet(10, 16, norm="group", coarsest=3, dtype=dtype)
    return fast_rcnn(config, backbone, FCHead(64, depth=1, dtype=dtype))


class TestLaws(laws.DetectorLaws, detector=small_fast_rcnn):
    def test_identical_regions_are_answered_once(self, compiled, trained):
        variables, batch = trained
        found = batch.regions
        boxes = np.repeat(batch.truth.boxes[:, :1], found.boxes.shape[1], axis=1)
        batch = batch.replace(regions=found.replace(boxes=boxes))
        detections = compiled.predict(variables, batch)
        sure = np.asarray(detections.scores) > 0.5
        np.testing.assert_array_equal(sure.sum(axis=1), [1, 1, 1, 0])

    def test_no_regions_no_answers(self, compiled, trained):
        variables, batch = trained
        found = batch.regions
        nothing = found.replace(
            boxes=np.zeros_like(found.boxes), valid=np.zeros_like(found.valid)
        )
        batch = batch.replace(regions=nothing)
        assert not np.any(compiled.predict(variables, batch).valid)
        loss, _ = compiled.loss(variables, batch, jax.random.key(0))
        assert np.isfinite(loss)  # the objects are regions still


def test_the_other_ways_to_pool():
    batch = scenes.batch()
    c4 = dataclasses.replace(SMALL, pool="align", level=4, pool_size=6)
    head = ResNetHead(10, 16, norm="group")
    detector = fast_rcnn(c4, ResNet(10, 16, norm="group", coarsest=4), head)
    variables = jax.eval_shape(detector.init, jax.random.key(0), batch)
    assert "stage5_block0" in variables["params"]["box_head"]
    loss = jax.eval_shape(detector.loss, variables, batch, jax.random.key(0))
    assert loss[0].shape == ()


def test_a_batch_without_regions_is_refused():
    detector, batch = small_fast_rcnn(), scenes.batch().replace(regions=None)
    variables = jax.eval_shape(detector.init, jax.random.key(0), batch)
    with pytest.raises(ValueError, match="max_regions"):
        jax.eval_shape(detector.predict, variables, batch)


def test_a_backbone_without_the_level_is_refused():
    detector = small_fast_rcnn(config=dataclasses.replace(SMALL, level=5))
    with pytest.raises(ValueError, match=r"level 5; the backbone has \[2, 3\]"):
        jax.eval_shape(detector.init, jax.random.key(0), scenes.batch())


def test_the_papers_constants_and_the_recipe():
    region = PAPER.region
    assert (region.per_image, region.positive_fraction) == (64, 0.25)
    assert (region.positive_iou, region.hard_negative_iou) == (0.5, 0.1)
    assert (region.box_beta, region.nms_threshold) == (1.0, 0.3)
    assert (PAPER.pool, PAPER.pool_size) == ("max", 7)
    detector = small_fast_rcnn()
    assert deserialize(detector.recipe).recipe == detector.recipe


@pytest.mark.parametrize(
    "wrong",
    [
        {"pool": "mean"},
        {"pool_size": 0},
        {"level": -1},
        {"num_classes": 0},
        {"mean": (0.5,)},
        {"std": (0.0,) * 3},
    ],
)
def test_contradictions_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        FastRCNNConfig(**wrong)
