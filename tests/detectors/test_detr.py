"""DETR: the laws."""

import jax.numpy as jnp

from jaxdet.detectors.detr import DETRConfig, detr
from jaxdet.nn.backbones.resnet import ResNet
from tests.detectors import laws

SMALL = DETRConfig(
    num_classes=3,
    num_queries=8,
    channels=32,
    num_heads=2,
    hidden=64,
    encoder_depth=1,
    decoder_depth=2,
    dropout=0.0,
)


def small_detr(dtype=jnp.float32, config=SMALL):
    backbone = ResNet(depth=10, width=16, norm="group", coarsest=3, dtype=dtype)
    return detr(config, backbone)


# Nothing removes duplicates: boxes of a class may overlap without limit.
class TestLaws(laws.DetectorLaws, detector=small_detr, nms_threshold=1.0, steps=300):
    """Law 8's limit to overlaps is one of NMS."""
