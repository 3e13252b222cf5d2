"""SPP-net: the laws, frozen convolutions, and regions pooled at their own scale."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.detectors.sppnet import SPPNetConfig, pool_at_best_scale, sppnet
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.heads import FCHead
from tests.detectors import laws, scenes
from tests.detectors.test_rcnn import ROI_HEADS

SMALL = SPPNetConfig(num_classes=3, roi_heads=ROI_HEADS, level=3, bins=(4, 2, 1))


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


def test_each_region_is_pooled_at_the_scale_nearest_to_its_size():
    class Network:
        """Features that tell the scale: the height of the image in every cell."""

        @staticmethod
        def features(pixels, sizes=None):
            batch, height, width, _ = pixels.shape
            return jnp.full((batch, -(-height // 8), -(-width // 8), 4), float(height))

    config = dataclasses.replace(SMALL, scales=(0.5, 1.0, 2.0), region_size=32.0)
    pixels, sizes = jnp.zeros((1, 64, 64, 3)), jnp.array([[64, 64]])
    boxes = jnp.array([[[0.0, 0, 60, 60], [0, 0, 30, 34], [8, 8, 24, 24]]])
    pool = jax.jit(lambda *a: pool_at_best_scale(Network, *a, config))
    heights = pool(pixels, sizes, boxes)[0, :, 0, 0]
    np.testing.assert_array_equal(heights, [32, 64, 128])
