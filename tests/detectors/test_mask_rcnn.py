"""Mask R-CNN: the laws, and masks learned and predicted."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.detectors import mask_rcnn as file
from jaxdet.detectors.mask_rcnn import MaskRCNNConfig, mask_rcnn
from jaxdet.detectors.roi_heads import SampledRoIs
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.heads import FCHead
from jaxdet.structs import GroundTruth
from tests.detectors import laws, scenes
from tests.detectors.test_faster_rcnn import SMALL as BOXES

SMALL = MaskRCNNConfig(BOXES, mask_pool_size=7, mask_channels=16, mask_depth=1)


def small_mask_rcnn(dtype=jnp.float32, config=SMALL):
    backbone = ResNet(10, 16, norm="group", coarsest=4, dtype=dtype)
    return mask_rcnn(config, backbone, FCHead(64, depth=1, dtype=dtype))


@pytest.mark.slow  # all but the masks is Faster R-CNN's
class TestLaws(laws.DetectorLaws, detector=small_mask_rcnn):
    def test_masks_are_learned(self, compiled, trained):
        variables, batch = trained
        found = compiled.predict(variables, batch)
        assert found.masks.shape == (4, 20, 14, 14)
        count = int(batch.truth.valid[0].sum())
        masks = np.asarray(found.masks[0, :count]) >= 0.5
        corner = masks[:, [0, 0, -1, -1], [0, -1, 0, -1]]
        assert not np.any(corner) and np.all(masks[:, 4:10, 4:10])

    def test_padding_has_no_masks(self, compiled):
        found = compiled.predict(compiled.variables, scenes.batch())
        assert not np.any(np.asarray(found.masks)[~np.asarray(found.valid)])


class _Twos(nn.Module):
    """A mask head whose logits are 2, of the one class there is."""

    @nn.compact
    def __call__(self, crops):
        return jnp.full((len(crops), 4, 4, 1), 2.0)


@pytest.mark.parametrize(("soft_targets", "covered"), [(True, 0.25), (False, 0.0)])
def test_the_mask_loss_by_hand(soft_targets, covered):
    boxes, there = jnp.array([[[0.0, 0, 8, 8], [0, 0, 4, 4]]]), jnp.ones((1, 2), bool)
    labels = jnp.zeros((1, 2), jnp.int32)
    masks = jnp.array([[jnp.full((4, 4), 0.25), jnp.ones((4, 4))]])
    truth = GroundTruth(boxes, labels, there, ~there, masks)
    positive = jnp.array([[True, False]])
    rois = SampledRoIs(boxes, labels, jnp.array([[0, 1]]), boxes, positive, there)
    config = MaskRCNNConfig(
        mask_pool_size=2, mask_weight=3.0, soft_targets=soft_targets
    )
    crops = jnp.zeros((1, 2, 2, 2, 1))
    loss = jax.jit(lambda *a: file.mask_loss(_Twos().bind({}), *a, config))(
        crops, rois, truth
    )
    right, wrong = np.log1p(np.exp(-2)), np.log1p(np.exp(2))
    expected = 3 * (covered * right + (1 - covered) * wrong)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_masks_are_those_of_the_labels():
    def mask_of_each_class(crops):  # class k has k everywhere
        return jnp.broadcast_to(jnp.arange(3.0), (len(crops), 4, 4, 3))

    labels = jnp.array([[2, 0], [1, 3]])  # 3: background
    logits = file.predict_masks(mask_of_each_class, jnp.zeros((2, 2, 2, 2, 8)), labels)
    assert logits.shape == (2, 2, 4, 4)
    np.testing.assert_array_equal(logits[..., 0, 0], [[2, 0], [1, 2]])


def test_a_truth_without_masks_is_refused():
    detector, batch = small_mask_rcnn(), scenes.batch()
    batch = batch.replace(truth=batch.truth.replace(masks=None))
    variables = jax.eval_shape(detector.init, jax.random.key(0), batch)
    with pytest.raises(ValueError, match=r"InputConfig\.mask_size"):
        jax.eval_shape(detector.loss, variables, batch, jax.random.key(0))
