"""R-CNN: the laws, and that chunks change nothing."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import pytest

from jaxdet.config import Postprocessing
from jaxdet.detectors.rcnn import RCNNConfig, rcnn
from jaxdet.detectors.roi_heads import RoIHeadsConfig
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.heads import FCHead
from tests.detectors import laws

# Half of the RoIs are objects: to tell them apart is harder than to find them.
ROI_HEADS = RoIHeadsConfig(
    batch_size_per_image=16,
    positive_fraction=0.5,
    postprocessing=Postprocessing(max_detections=20),
)
SMALL = RCNNConfig(
    num_classes=3,
    crop_size=24,
    context=4,
    level=3,
    pool_size=3,
    chunk_size=6,
    roi_heads=ROI_HEADS,
)


def small_rcnn(dtype=jnp.float32, config=SMALL):
    backbone = ResNet(10, 16, norm="group", coarsest=3, dtype=dtype)
    return rcnn(config, backbone, FCHead(64, depth=1, dropout=0.1, dtype=dtype))


class TestLaws(laws.DetectorLaws, detector=small_rcnn, steps=150):
    def test_chunks_change_nothing(self, compiled, trained):
        variables, batch = trained
        key = jax.random.key(0)  # of the dropout, too
        for size in (1, 64):  # one region, and those of all images, at a time
            other = small_rcnn(config=dataclasses.replace(SMALL, chunk_size=size))
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


def test_a_context_without_room_for_the_region_is_refused():
    with pytest.raises(ValueError, match="context is 120"):
        RCNNConfig(context=120)
