"""R-CNN: the laws, and that chunks change nothing."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import pytest

from jaxdet.detectors.rcnn import PAPER, RCNNConfig, rcnn
from jaxdet.detectors.roi_heads import RoIHeadsConfig
from jaxdet.detectors.serialization import deserialize
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.heads import FCHead
from tests.detectors import laws, scenes

SMALL = RCNNConfig(
    num_classes=3,
    region=RoIHeadsConfig(per_image=16, positive_fraction=0.5, detections=20),
    size=24,
    context=4,
    level=3,
    pool_size=3,
    chunk=6,
)


def small_rcnn(dtype=jnp.float32, config=SMALL):
    backbone = ResNet(10, 16, norm="group", coarsest=3, dtype=dtype)
    return rcnn(config, backbone, FCHead(64, depth=1, dropout=0.1, dtype=dtype))


class TestLaws(laws.DetectorLaws, detector=small_rcnn, steps=150):
    def test_chunks_change_nothing(self, compiled, trained):
        variables, batch = trained
        key = jax.random.key(0)  # of the dropout, too
        for chunk in (1, 64):  # one region, and those of all images, at a time
            other = small_rcnn(config=dataclasses.replace(SMALL, chunk=chunk))
            chex.assert_trees_all_close(
                jax.jit(other.predict)(variables, batch),
                compiled.predict(variables, batch),
                rtol=1e-3,
                atol=1e-3,
            )
            chex.assert_trees_all_close(
                jax.jit(other.loss)(compiled.variables, batch, key),
                compiled.loss(compiled.variables, batch, key),
                rtol=1e-4,
            )


def test_a_batch_without_regions_is_refused():
    detector, batch = small_rcnn(), scenes.batch().replace(regions=None)
    variables = jax.eval_shape(detector.init, jax.random.key(0), batch)
    with pytest.raises(ValueError, match="max_regions"):
        jax.eval_shape(detector.loss, variables, batch, jax.random.key(0))


def test_the_papers_constants_and_the_recipe():
    assert (PAPER.size, PAPER.context, PAPER.pool_size) == (227, 16, 6)
    assert PAPER.region.nms_threshold == 0.3
    detector = small_rcnn()
    assert deserialize(detector.recipe).recipe == detector.recipe


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"context": 120},
        {"chunk": 0},
        {"mean": (0.5,)},
        {"std": (1.0, 1.0)},
    ],
)
def test_contradictions_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        RCNNConfig(**wrong)
