"""SPP-net: the laws, frozen convolutions, and regions read at their own scale."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.detectors.roi_heads import RoIHeadsConfig
from jaxdet.detectors.serialization import deserialize
from jaxdet.detectors.sppnet import PAPER, SPPNetConfig, sppnet
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.heads import FCHead
from tests.detectors import laws, scenes

SMALL = SPPNetConfig(
    num_classes=3,
    region=RoIHeadsConfig(per_image=16, positive_fraction=0.5, detections=20),
    level=3,
    bins=(4, 2, 1),
)


def small_sppnet(dtype=jnp.float32, config=SMALL):
    backbone = ResNet(10, 16, norm="group", coarsest=3, dtype=dtype)
    return sppnet(config, backbone, FCHead(64, depth=1, dtype=dtype))


class TestLaws(laws.DetectorLaws, detector=small_sppnet):
    def test_convolutions_get_no_gradient(self, compiled):
        _, gradients = compiled.gradients(compiled.variables, scenes.batch())
        assert not any(map(np.any, jax.tree.leaves(gradients["backbone"])))
        assert all(map(np.any, jax.tree.leaves(gradients["box_head"])))

    def test_scales_change_where_regions_lie(self, compiled):
        """A region of half the image has the features of half the region."""
        config = dataclasses.replace(SMALL, scales=(0.5,))
        detector, batch = small_sppnet(config=config), scenes.batch()
        variables = laws.noisy(compiled.variables)
        small = batch.replace(
            images=batch.images.reshape(4, 32, 2, 32, 2, 3).mean(axis=(2, 4)),
            sizes=batch.sizes // 2,
            regions=batch.regions.replace(boxes=batch.regions.boxes / 2),
        )
        large = jax.jit(detector.predict)(variables, batch)
        again = compiled.predict(variables, small)
        assert large.scores.std() > 0.1
        np.testing.assert_allclose(large.scores, again.scores, atol=1e-4)
        np.testing.assert_allclose(large.boxes, 2 * again.boxes, atol=1e-2)


def test_each_region_is_read_at_the_scale_nearest_to_its_side():
    class Eye:
        """Features that tell the scale: the height of the image in every cell."""

        box_head = staticmethod(lambda crops, keys=None: crops.mean(axis=1))
        box_predictor = staticmethod(lambda hidden: (hidden, hidden[:, None, :]))

        @staticmethod
        def features(pixels, sizes=None):
            batch, height, width, _ = pixels.shape
            return jnp.full((batch, -(-height // 8), -(-width // 8), 4), float(height))

    from jaxdet.detectors import sppnet as file

    config = dataclasses.replace(SMALL, scales=(0.5, 1.0, 2.0), region_side=32.0)
    batch = scenes.batch(counts=(1,))
    boxes = jnp.array([[[0.0, 0, 60, 60], [0, 0, 30, 34], [8, 8, 24, 24]]])
    pixels = jax.jit(lambda batch: file._pool(Eye, batch, boxes, config))(batch)
    np.testing.assert_array_equal(pixels[0, :, 0, 0], [32, 64, 128])


def test_the_papers_constants_and_the_recipe():
    assert PAPER.bins == (6, 3, 2, 1) and len(PAPER.scales) == 5
    assert PAPER.region.nms_threshold == 0.3
    assert PAPER.region.hard_negative_iou == 0.1
    detector = small_sppnet()
    assert deserialize(detector.recipe).recipe == detector.recipe


@pytest.mark.parametrize(
    "wrong",
    [
        {"bins": ()},
        {"scales": (0.0,)},
        {"level": -1},
        {"mean": (0.5,)},
        {"std": (0.0,) * 3},
    ],
)
def test_contradictions_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        SPPNetConfig(**wrong)
