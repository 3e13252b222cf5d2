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
from tests.detectors import laws, scenes

# Half of the RoIs are objects: to tell them apart is harder than to find them.
ROI_HEADS = RoIHeadsConfig(
    # Enough samples for all regions: those left out may be predicted best.
    batch_size_per_image=24,
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


@pytest.mark.slow  # all but the forward pass is Fast R-CNN's
class TestLaws(laws.DetectorLaws, detector=small_rcnn, steps=150):
    pass


def test_chunks_change_nothing():
    batch, key = scenes.batch(), jax.random.key(0)  # of the dropout, too
    outputs = []
    for size in (1, 6, 64):  # one region, some, and those of all images, at a time
        detector = small_rcnn(config=dataclasses.replace(SMALL, chunk_size=size))
        if not outputs:
            variables = laws.noisy(jax.jit(detector.init)(key, batch))
        loss, _ = jax.jit(detector.loss)(variables, batch, key)
        outputs.append((jax.jit(detector.predict)(variables, batch), loss))
    for other in outputs[1:]:
        chex.assert_trees_all_close(other, outputs[0], rtol=1e-3, atol=1e-3)


def test_a_context_without_room_for_the_region_is_refused():
    with pytest.raises(ValueError, match="context is 120"):
        RCNNConfig(context=120)
