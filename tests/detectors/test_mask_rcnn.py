"""Mask R-CNN: the laws, and masks learned and painted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.detectors import mask_rcnn as file
from jaxdet.detectors.mask_rcnn import MaskRCNNConfig, mask_rcnn
from jaxdet.detectors.serialization import deserialize
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.heads import FCHead
from tests.detectors import laws, scenes
from tests.detectors.test_faster_rcnn import SMALL as BOXES

SMALL = MaskRCNNConfig(BOXES, mask_pool_size=7, mask_channels=16, mask_depth=1)


def small_mask_rcnn(dtype=jnp.float32, config=SMALL):
    backbone = ResNet(10, 16, norm="group", coarsest=4, dtype=dtype)
    return mask_rcnn(config, backbone, FCHead(64, depth=1, dtype=dtype))


def with_mask_output(variables, *, bias):
    """The last layer of the mask head without weights: it always says its bias."""
    head = dict(variables["params"]["mask_head"])
    values = {"kernel": 0.0, "bias": bias}
    head["output"] = {
        name: np.full_like(head["output"][name], value)
        for name, value in values.items()
    }
    return {**variables, "params": {**variables["params"], "mask_head": head}}


class TestLaws(laws.DetectorLaws, detector=small_mask_rcnn):
    def test_masks_are_learned(self, compiled, trained):
        variables, batch = trained
        found = compiled.predict(variables, batch)
        assert found.masks.shape == (4, 20, 14, 14)
        count = int(batch.truth.valid[0].sum())
        painted = np.asarray(found.masks[0, :count]) >= 0.5
        corner = painted[:, [0, 0, -1, -1], [0, -1, 0, -1]]
        assert not np.any(corner) and np.all(painted[:, 4:10, 4:10])

    def test_padding_has_no_masks(self, compiled):
        found = compiled.predict(compiled.variables, scenes.batch())
        assert not np.any(np.asarray(found.masks)[~np.asarray(found.valid)])

    def test_the_mask_loss_by_hand(self, compiled):
        # A mask head whose last layer is zero says 0.5 everywhere.
        variables = with_mask_output(compiled.variables, bias=0.0)
        _, metrics = compiled.loss(variables, scenes.batch(), jax.random.key(0))
        np.testing.assert_allclose(metrics["mask_loss"], np.log(2), rtol=1e-5)

    def test_other_classes_masks_are_not_judged(self, compiled):
        batch = scenes.batch()
        labels = np.zeros_like(batch.truth.labels)
        batch = batch.replace(truth=batch.truth.replace(labels=labels))
        _, gradients = compiled.gradients(compiled.variables, batch)
        kernel = np.asarray(gradients["mask_head"]["output"]["kernel"])
        assert np.any(kernel[..., 0]) and not np.any(kernel[..., 1:])

    def test_cells_that_an_object_covers_in_part(self, compiled, monkeypatch):
        def quarter(masks, boxes, regions, index, output_size):
            return jnp.full((len(regions), output_size, output_size), 0.25)

        monkeypatch.setattr(file.masks, "crop_and_resize_masks", quarter)
        # A mask head that says 2 everywhere.
        variables = with_mask_output(compiled.variables, bias=2.0)
        soft = small_mask_rcnn(config=dataclasses.replace(SMALL, soft_targets=True))
        _, metrics = jax.jit(soft.loss)(variables, scenes.batch(), jax.random.key(0))
        right, wrong = np.log1p(np.exp(-2)), np.log1p(np.exp(2))
        expected = 0.25 * right + 0.75 * wrong
        np.testing.assert_allclose(metrics["mask_loss"], expected, rtol=1e-5)


def test_a_truth_without_masks_is_refused():
    detector, batch = small_mask_rcnn(), scenes.batch()
    batch = batch.replace(truth=batch.truth.replace(masks=None))
    variables = jax.eval_shape(detector.init, jax.random.key(0), batch)
    with pytest.raises(ValueError, match=r"InputConfig\.mask_size"):
        jax.eval_shape(detector.loss, variables, batch, jax.random.key(0))


@pytest.mark.parametrize(
    "name", ["PAPER", "TORCHVISION", "TORCHVISION_V2", "DETECTRON2"]
)
def test_the_references_configs_are_recipes(name):
    config = getattr(file, name)
    assert (config.mask_pool_size, config.mask_channels, config.mask_depth) == (
        14,
        256,
        4,
    )
    detector = mask_rcnn(config, ResNet(18), FCHead())
    assert deserialize(detector.recipe).recipe == detector.recipe


@pytest.mark.parametrize(
    "wrong", [{"mask_depth": 0}, {"mask_weight": -1.0}, {"mask_norm": "batch"}]
)
def test_contradictions_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(SMALL, **wrong)
