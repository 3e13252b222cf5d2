"""DETR: the laws."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxdet.config import ConfigError
from jaxdet.detectors.detr import DETRConfig, detr
from jaxdet.detectors.set_prediction import SetLossConfig
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


# Nothing removes duplicates: boxes of a class may overlap without limit. So few steps
# take less time than optimizing them.
class TestLaws(
    laws.DetectorLaws, detector=small_detr, nms_threshold=1.0, steps=150, jit=jax.jit
):
    """Law 8's limit to overlaps is one of NMS."""


def test_channels_are_shared_by_the_heads():
    with pytest.raises(ConfigError, match=r"channels is 30; .* num_heads, 2"):
        dataclasses.replace(SMALL, channels=30)
    focal = SetLossConfig(class_loss="focal")
    with pytest.raises(ConfigError, match=r"set_loss .* class_loss"):
        dataclasses.replace(SMALL, set_loss=focal)
