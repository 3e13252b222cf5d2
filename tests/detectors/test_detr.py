"""DETR: the laws, with dropout too."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxdet.config import ConfigError
from jaxdet.detectors.detr import DETRConfig, detr
from jaxdet.detectors.set_prediction import SetLossConfig
from jaxdet.nn.backbones.resnet import ResNet
from tests.detectors import laws, scenes

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


@pytest.mark.slow
def test_dropout_depends_neither_on_the_canvas_nor_on_the_batch():
    config = dataclasses.replace(SMALL, dropout=0.3)
    detector, batch, key = small_detr(config=config), scenes.batch(), jax.random.key(0)
    variables = jax.jit(detector.init)(key, batch)
    loss = jax.jit(detector.loss)
    small, _ = loss(variables, batch, key)
    large, _ = loss(variables, scenes.batch(canvas=(96, 128), slots=9), key)
    other, _ = loss(variables, batch, jax.random.key(1))
    assert float(large) == pytest.approx(float(small), rel=1e-5)
    assert float(other) != pytest.approx(float(small), rel=1e-3)


def test_channels_are_shared_by_the_heads():
    with pytest.raises(ConfigError, match=r"channels is 30; .* num_heads, 2"):
        dataclasses.replace(SMALL, channels=30)
    focal = SetLossConfig(class_loss="focal")
    with pytest.raises(ConfigError, match=r"set_loss .* class_loss"):
        dataclasses.replace(SMALL, set_loss=focal)
