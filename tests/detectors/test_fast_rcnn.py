"""Fast R-CNN: the laws, and what becomes of unusual regions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.detectors.fast_rcnn import FastRCNNConfig, fast_rcnn
from jaxdet.detectors.roi_heads import RoIPoolerConfig
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.heads import FCHead
from tests.detectors import laws, scenes
from tests.detectors.test_rcnn import ROI_HEADS

SMALL = FastRCNNConfig(
    num_classes=3,
    # On coarser levels max pooling rounds different RoIs to the same.
    pooler=RoIPoolerConfig(method="max", levels=(2,), output_size=4),
    roi_heads=ROI_HEADS,
)


def small_fast_rcnn(dtype=jnp.float32, config=SMALL):
    backbone = ResNet(10, 16, norm="group", coarsest=3, dtype=dtype)
    return fast_rcnn(config, backbone, FCHead(64, depth=1, dtype=dtype))


class TestLaws(laws.DetectorLaws, detector=small_fast_rcnn):
    def test_identical_regions_give_one_detection(self, compiled, trained):
        variables, batch = trained
        found = batch.regions
        boxes = np.repeat(batch.truth.boxes[:, :1], found.boxes.shape[1], axis=1)
        batch = batch.replace(regions=found.replace(boxes=boxes))
        detections = compiled.predict(variables, batch)
        sure = np.asarray(detections.scores) > 0.5
        np.testing.assert_array_equal(sure.sum(axis=1), [1, 1, 1, 0])

    def test_no_regions_give_no_detections(self, compiled, trained):
        variables, batch = trained
        nothing = jax.tree.map(np.zeros_like, batch.regions)
        batch = batch.replace(regions=nothing)
        assert not np.any(compiled.predict(variables, batch).valid)
        loss, _ = compiled.loss(variables, batch, jax.random.key(0))
        assert np.isfinite(loss)  # the objects are RoIs still


def test_a_backbone_without_the_level_is_refused():
    pooler = dataclasses.replace(SMALL.pooler, levels=(5,))
    detector = small_fast_rcnn(config=dataclasses.replace(SMALL, pooler=pooler))
    with pytest.raises(ValueError, match=r"level 5; the backbone has \[2, 3\]"):
        jax.eval_shape(detector.init, jax.random.key(0), scenes.batch())
