"""Faster R-CNN: the laws, the four losses, and its variants."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxdet.config import Anchors
from jaxdet.detectors import faster_rcnn as file
from jaxdet.detectors.faster_rcnn import FasterRCNNConfig, faster_rcnn
from jaxdet.detectors.roi_heads import RoIPoolerConfig
from jaxdet.detectors.rpn import RPNConfig
from jaxdet.detectors.serialization import deserialize
from jaxdet.nn.backbones.resnet import ResNet, ResNetHead
from jaxdet.nn.backbones.vgg import VGG16
from jaxdet.nn.heads import FCHead
from tests.detectors import laws, scenes
from tests.detectors.test_rcnn import ROI_HEADS

SMALL = FasterRCNNConfig(
    num_classes=3,
    rpn=RPNConfig(
        levels=(3, 4),
        anchors=Anchors(((16.0,), (32.0,))),
        channels=32,
        fpn_norm="group",
        pre_nms_topk=50,
        pre_nms_topk_train=50,
        post_nms_topk=20,
        post_nms_topk_train=20,
    ),
    pooler=RoIPoolerConfig(levels=(3, 4), output_size=5, canonical_size=32.0),
    roi_heads=ROI_HEADS,
)
C4 = dataclasses.replace(
    SMALL,
    rpn=dataclasses.replace(
        SMALL.rpn, levels=(4,), anchors=Anchors(((16.0, 32.0),)), channels=None
    ),
    pooler=RoIPoolerConfig(levels=(4,), output_size=6),
)


def small_faster_rcnn(dtype=jnp.float32, config=SMALL):
    backbone = ResNet(10, 16, norm="group", coarsest=4, dtype=dtype)
    return faster_rcnn(config, backbone, FCHead(64, depth=1, dtype=dtype))


class TestLaws(laws.DetectorLaws, detector=small_faster_rcnn):
    def test_all_four_losses_are_positive(self, compiled):
        _, losses = compiled.loss(compiled.variables, scenes.batch(), jax.random.key(0))
        names = {"objectness_loss", "rpn_box_loss", "class_loss", "box_loss"}
        assert set(losses) == names
        assert all(value > 0 for value in losses.values())


def small_c4(dtype=jnp.float32):
    """ResNet-C4: its last stage runs on each RoI by itself."""
    backbone = ResNet(10, 16, norm="group", coarsest=4, dtype=dtype)
    return faster_rcnn(C4, backbone, ResNetHead(10, 16, norm="group", dtype=dtype))


def small_vgg(dtype=jnp.float32):
    """VGG-16, RoI max pooling, and a softmax over background and object."""
    config = dataclasses.replace(
        C4,
        rpn=dataclasses.replace(C4.rpn, softmax=True),
        pooler=RoIPoolerConfig(method="max", levels=(4,), output_size=4),
    )
    backbone = VGG16(width=8, norm="group", dtype=dtype)
    return faster_rcnn(config, backbone, FCHead(64, depth=1, dtype=dtype))


@pytest.mark.slow
class TestLawsOfC4(laws.DetectorLaws, detector=small_c4, steps=400):
    pass


@pytest.mark.slow
class TestLawsOfVGG(laws.DetectorLaws, detector=small_vgg):
    def test_one_batch_can_be_overfitted(self):
        pytest.skip("at stride 16 max pooling rounds different RoIs to the same")


@pytest.mark.parametrize("name", ["PAPER", "TORCHVISION", "DETECTRON2"])
def test_variants_have_the_shapes_of_detections(name):
    config = dataclasses.replace(getattr(file, name), num_classes=3)
    backbone = VGG16(width=8) if name == "PAPER" else ResNet(10, 16)
    detector, batch = faster_rcnn(config, backbone, FCHead(32)), scenes.batch()
    variables = jax.eval_shape(detector.init, jax.random.key(0), batch)
    total, metrics = jax.eval_shape(detector.loss, variables, batch, jax.random.key(0))
    assert total.shape == () and len(metrics) == 4
    found = jax.eval_shape(detector.predict, variables, batch)
    assert found.boxes.shape == (4, 100, 4)
    assert deserialize(detector.recipe).recipe == detector.recipe


def test_levels_to_pool_from_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="pooler"):
        FasterRCNNConfig(pooler=RoIPoolerConfig(levels=(1, 2)))
