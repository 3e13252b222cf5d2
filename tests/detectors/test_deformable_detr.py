"""Deformable DETR: the laws, and what it starts out with."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.config import ConfigError
from jaxdet.detectors.deformable_detr import (
    DeformableDETRConfig,
    DeformableDETRNetwork,
    deformable_detr,
)
from jaxdet.detectors.set_prediction import SetLossConfig
from jaxdet.nn.backbones.resnet import ResNet
from tests.detectors import laws

SMALL = DeformableDETRConfig(
    num_classes=3,
    levels=(3, 4),
    num_queries=8,
    channels=32,
    num_heads=2,
    num_points=2,
    hidden=64,
    encoder_depth=1,
    decoder_depth=2,
    dropout=0.0,
    refine_boxes=True,
)


def small_deformable_detr(dtype=jnp.float32, config=SMALL):
    backbone = ResNet(depth=10, width=16, norm="group", coarsest=3, dtype=dtype)
    return deformable_detr(config, backbone)


def network_of(config):
    return DeformableDETRNetwork(config, ResNet(depth=10, width=16, coarsest=3))


# As of DETR.
class TestLaws(
    laws.DetectorLaws,
    detector=small_deformable_detr,
    nms_threshold=1.0,
    steps=150,
    jit=jax.jit,
):
    """Law 8's limit to overlaps is one of NMS."""


def test_boxes_start_out_at_the_reference_points():
    """Of 0.12 of the image's sides; the second layer leaves them as they are."""
    network = network_of(SMALL)
    (logits, boxes), variables = jax.jit(network.init_with_output)(
        jax.random.key(0), jnp.ones((1, 32, 64, 3))
    )
    params = variables["params"]
    points = params["query_positions"] @ params["reference_points"]["kernel"]
    for layer in boxes:
        np.testing.assert_allclose(layer[0, :, :2], nn.sigmoid(points), atol=1e-5)
        np.testing.assert_allclose(layer[0, :, 2:], 1 / (1 + np.exp(2)), rtol=1e-5)
    scores = nn.sigmoid(logits)
    assert jnp.all((scores > 0.001) & (scores < 0.1))  # 0.01, about


@pytest.mark.parametrize("refine", [False, True])
def test_layers_have_heads_of_their_own_to_refine_boxes(refine):
    network = network_of(dataclasses.replace(SMALL, refine_boxes=refine))
    (logits, boxes), variables = jax.eval_shape(
        network.init_with_output, jax.random.key(0), jnp.ones((2, 32, 64, 3))
    )
    assert logits.shape == (2, 2, 8, 3) and boxes.shape == (2, 2, 8, 4)
    for heads in ("class_heads_1", "box_heads_1"):
        assert (heads in variables["params"]) == refine


def test_queries_of_other_losses_are_refused():
    with pytest.raises(ConfigError, match=r'set_loss .* of class_loss "focal"'):
        DeformableDETRConfig(set_loss=SetLossConfig())
