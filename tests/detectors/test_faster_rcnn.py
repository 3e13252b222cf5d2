"""Faster R-CNN: the laws, the four losses, and the references' constants."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.detectors import faster_rcnn as file
from jaxdet.detectors.faster_rcnn import FasterRCNNConfig, faster_rcnn
from jaxdet.detectors.roi_heads import RoIHeadsConfig
from jaxdet.detectors.rpn import RPNConfig
from jaxdet.detectors.serialization import deserialize
from jaxdet.nn.backbones.resnet import ResNet, ResNetHead
from jaxdet.nn.backbones.vgg import VGG16
from jaxdet.nn.heads import FCHead
from tests.detectors import laws, scenes

SMALL = FasterRCNNConfig(
    num_classes=3,
    rpn=RPNConfig(
        levels=(3, 4),
        anchor_sizes=((16.0,), (32.0,)),
        channels=32,
        fpn_norm="group",
        candidates=50,
        train_candidates=50,
        proposals=20,
        train_proposals=20,
    ),
    region=RoIHeadsConfig(per_image=16, positive_fraction=0.5, detections=20),
    pool_levels=(3, 4),
    pool_size=5,
    canonical_size=32.0,
)
C4 = dataclasses.replace(
    SMALL,
    rpn=dataclasses.replace(
        SMALL.rpn, levels=(4,), anchor_sizes=((16.0, 32.0),), channels=None
    ),
    pool_levels=(4,),
    pool_size=6,
)


def small_faster_rcnn(dtype=jnp.float32, config=SMALL):
    backbone = ResNet(10, 16, norm="group", coarsest=4, dtype=dtype)
    return faster_rcnn(config, backbone, FCHead(64, depth=1, dtype=dtype))


class TestLaws(laws.DetectorLaws, detector=small_faster_rcnn):
    def test_all_four_losses_reach_the_backbone(self, compiled):
        _, metrics = compiled.loss(
            compiled.variables, scenes.batch(), jax.random.key(0)
        )
        names = {"objectness_loss", "rpn_box_loss", "class_loss", "box_loss"}
        assert set(metrics) == names
        assert all(value > 0 for value in metrics.values())


def small_c4(dtype=jnp.float32):
    """ResNet-C4: its last stage looks at each region by itself."""
    backbone = ResNet(10, 16, norm="group", coarsest=4, dtype=dtype)
    return faster_rcnn(C4, backbone, ResNetHead(10, 16, norm="group", dtype=dtype))


def small_vgg(dtype=jnp.float32):
    """VGG-16, RoI max pooling, and a softmax over background and object."""
    config = dataclasses.replace(
        C4, rpn=dataclasses.replace(C4.rpn, softmax=True), pool="max", pool_size=4
    )
    backbone = VGG16(width=8, norm="group", dtype=dtype)
    return faster_rcnn(config, backbone, FCHead(64, depth=1, dtype=dtype))


@pytest.mark.slow
class TestLawsOfC4(laws.DetectorLaws, detector=small_c4):
    pass


@pytest.mark.slow
class TestLawsOfVGG(laws.DetectorLaws, detector=small_vgg):
    def test_one_batch_can_be_overfitted(self):
        pytest.skip("at stride 16 max pooling rounds different regions to the same")


VARIANTS = {
    "ResNet-C4": (
        C4,
        ResNet(10, 16, norm="group", coarsest=4),
        ResNetHead(10, 16, norm="group"),
    ),
    "VGG-16": (
        dataclasses.replace(C4, pool="max", pool_size=7),
        VGG16(width=8),
        FCHead(32, dropout=0.5),
    ),
    "torchvision's": (
        dataclasses.replace(file.TORCHVISION, num_classes=3),
        ResNet(10, 16, norm="group"),
        FCHead(32),
    ),
    "detectron2's": (
        dataclasses.replace(file.DETECTRON2, num_classes=3),
        ResNet(10, 16, norm="group"),
        FCHead(32),
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_have_the_shapes_of_detections(name):
    config, backbone, head = VARIANTS[name]
    detector, batch = faster_rcnn(config, backbone, head), scenes.batch()
    variables = jax.eval_shape(detector.init, jax.random.key(0), batch)
    total, metrics = jax.eval_shape(detector.loss, variables, batch, jax.random.key(0))
    assert total.shape == () and len(metrics) == 4
    found = jax.eval_shape(detector.predict, variables, batch)
    assert found.boxes.shape == (4, config.region.detections, 4)
    assert deserialize(detector.recipe).recipe == detector.recipe


def test_a_region_is_cut_from_the_features_below_it():
    """Features that hold their own place: what is cut out tells where it lay."""
    y, x = np.meshgrid(np.arange(16) + 0.5, np.arange(16) + 0.5, indexing="ij")
    place = np.stack([x, y], axis=-1).astype(np.float32)
    pyramid = {3: 8 * place[None, :8, :8], 4: 16 * place[None, :4, :4]}
    boxes = jnp.array([[[12.0, 20, 28, 36], [8, 8, 40, 40]]])
    for pool in ("align", "max"):
        levels = (3, 4) if pool == "align" else (4,)
        config = dataclasses.replace(SMALL, pool=pool, pool_levels=levels)
        crops = jax.jit(lambda *a, c=config: file.crop(*a, None, c))(pyramid, boxes)
        assert crops.shape == (1, 2, 5, 5, 2)
        if pool == "align":
            centres = np.array([[20.0, 28], [24, 24]])
            np.testing.assert_allclose(crops[0].mean(axis=(1, 2)), centres, atol=1e-3)
        else:  # Cells 1 to 2 across and, as halves round up, 1 to 3.
            np.testing.assert_allclose(crops[0].min(axis=(1, 2))[:, 0], [24, 24])
            np.testing.assert_allclose(crops[0].max(axis=(1, 2))[:, 0], [40, 56])


def test_constants_of_the_references():
    paper, torchvision, detectron2 = file.PAPER, file.TORCHVISION, file.DETECTRON2
    assert (paper.pool, paper.pool_size, paper.pool_levels) == ("max", 7, (4,))
    assert (paper.region.per_image, paper.region.nms_threshold) == (128, 0.3)
    assert (torchvision.aligned, torchvision.samples) == (False, 2)
    assert torchvision.region.box_beta == 1 / 9
    assert (detectron2.aligned, detectron2.samples) == (True, 0)
    assert (detectron2.region.per_image, detectron2.region.detections) == (512, 100)
    assert (detectron2.region.box_beta, detectron2.region.min_side) == (0.0, 0.0)
    assert (torchvision.region.per_image, torchvision.region.min_side) == (512, 1e-2)
    assert (paper.region.box_beta, paper.region.hard_negative_iou) == (1.0, 0.0)
    for config in (torchvision, detectron2):
        region = config.region
        assert (region.positive_fraction, region.positive_iou) == (0.25, 0.5)
        assert (region.score_threshold, region.nms_threshold) == (0.05, 0.5)
        assert region.box_weights == (10.0, 10.0, 5.0, 5.0)
        assert (config.pool_size, config.canonical_size) == (7, 224)
    assert (file.DETECTRON2_C4.pool_size, file.DETECTRON2_C4.pool_levels) == (14, (4,))


@pytest.mark.parametrize(
    "wrong",
    [
        {"pool_levels": (1, 2)},
        {"pool_levels": ()},
        {"pool_levels": (2, 4)},
        {"pool": "max"},
        {"pool": "mean"},
        {"samples": -1},
        {"canonical_size": 0.0},
    ],
)
def test_contradictions_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        FasterRCNNConfig(**wrong)
