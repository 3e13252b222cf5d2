"""Region proposal networks: the laws, losses and proposals worked by hand."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.config import Anchors
from jaxdet.detectors.mask_rcnn import MaskRCNNConfig
from jaxdet.detectors.rpn import RPNConfig, losses, predict, propose, rpn
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.ops import anchors, box_coding
from jaxdet.ops import boxes as box_ops
from tests.detectors import laws, scenes

# One level, as NMS goes level by level and two levels may both detect one object; no
# ignored anchors, as what those predict is left to chance.
SMALL = RPNConfig(
    levels=(4,),
    anchors=Anchors(((16.0, 32.0),)),
    channels=None,
    negative_iou=0.7,
    pre_nms_topk=100,
    pre_nms_topk_train=100,
    post_nms_topk=20,
    post_nms_topk_train=20,
)
TWO_LEVELS = dataclasses.replace(
    SMALL,
    levels=(3, 4),
    anchors=Anchors(((16.0,), (32.0,))),
    channels=8,
    negative_iou=0.3,
)
BOXES = np.asarray(
    anchors.pyramid_anchors((64, 64), levels=(3, 4), **vars(TWO_LEVELS.anchors))
)
ZEROS = jnp.zeros((1, len(BOXES), 1)), jnp.zeros((1, len(BOXES), 4))


def small_rpn(dtype=jnp.float32, config=SMALL):
    return rpn(config, ResNet(10, 16, norm="group", coarsest=4, dtype=dtype))


@pytest.mark.slow  # Faster R-CNN's laws hold for its parts, too
class TestLaws(laws.DetectorLaws, detector=small_rpn, nms_threshold=0.7):
    pass


def one_object(box=(8, 8, 24, 24), sizes=((64, 64),)):
    """A batch of one 64x64 image."""
    batch = scenes.batch(counts=(1,), slots=2, sizes=sizes)
    boxes = batch.truth.boxes.copy()
    boxes[0, 0] = box
    return batch.replace(truth=batch.truth.replace(boxes=boxes))


@partial(jax.jit, static_argnames="config")
def losses_of(objectness, deltas, batch, config=TWO_LEVELS):
    keys = jax.random.split(jax.random.key(0), 1)
    return losses(keys, objectness, deltas, batch, config)


def objectness_gradient(batch, config):
    def loss(objectness):
        return losses_of(objectness, ZEROS[1], batch, config)["objectness_loss"]

    return np.asarray(jax.grad(loss)(ZEROS[0]))[0, :, 0]


def test_losses_by_hand():
    batch, count = one_object(), len(BOXES)
    iou = np.asarray(box_ops.pairwise_iou(BOXES, batch.truth.boxes[0, :1]))[:, 0]
    positive = (iou >= 0.7) | (iou == iou.max())
    used = positive | (iou < 0.3)
    assert 0 < positive.sum() < used.sum() < count
    config = dataclasses.replace(
        TWO_LEVELS, batch_size_per_image=count, positive_fraction=1.0
    )
    # Every anchor is an object with probability 0.8, and does not move.
    logits = jnp.full((1, count, 1), np.log(4.0))
    terms = losses_of(logits, ZEROS[1], batch, config)
    cross_entropy = np.where(positive, -np.log(0.8), -np.log(0.2))
    expected = cross_entropy[used].sum() / used.sum()
    np.testing.assert_allclose(terms["objectness_loss"], expected, rtol=1e-5)
    targets = np.asarray(box_coding.encode(batch.truth.boxes[0, :1], BOXES))
    expected = np.abs(targets[positive]).sum() / used.sum()
    np.testing.assert_allclose(terms["rpn_box_loss"], expected, rtol=1e-5)


def test_a_softmax_of_two_is_the_sigmoid_of_their_difference(rng):
    logits = jnp.asarray(rng.normal(size=(1, len(BOXES), 2)), jnp.float32)
    softmax = dataclasses.replace(TWO_LEVELS, softmax=True)
    both = losses_of(logits, ZEROS[1], one_object(), softmax)
    one = losses_of(logits[..., 1:] - logits[..., :1], ZEROS[1], one_object())
    np.testing.assert_allclose(both["objectness_loss"], one["objectness_loss"])


def test_only_anchors_inside_are_trained_if_asked():
    batch, inside = one_object([0, 0, 30, 30]), np.all((BOXES >= 0) & (BOXES <= 64), 1)
    everywhere = dataclasses.replace(TWO_LEVELS, batch_size_per_image=len(BOXES))
    inside_only = dataclasses.replace(everywhere, inside_only=True)
    gradient = objectness_gradient(batch, inside_only)
    assert not np.any(gradient[~inside])
    # The object has its best anchor among those inside.
    assert np.sum(gradient[inside] < 0) >= 1
    assert np.any(objectness_gradient(batch, everywhere)[~inside])


def test_no_more_than_the_samples_are_trained():
    config = dataclasses.replace(TWO_LEVELS, batch_size_per_image=10)
    assert np.count_nonzero(objectness_gradient(one_object(), config)) == 10


@partial(jax.jit, static_argnames="config")
def proposals(objectness, deltas, batch, config=TWO_LEVELS):
    found = propose(objectness, deltas, batch, config)
    return jax.tree.map(lambda x: x[0], found)


def test_proposals_by_hand():
    logits = np.full((1, len(BOXES), 1), -20.0, np.float32)
    fine = 3 * (8 * 2 + 2)  # level 3, cell (2, 2), first ratio
    coarse = 3 * 64 + 3 * (4 * 1 + 0)  # level 4, cell (1, 0)
    logits[0, [fine, fine + 1, coarse], 0] = [3.0, 1.0, 2.0]
    deltas = np.zeros((1, len(BOXES), 4), np.float32)
    deltas[0, fine + 1] = box_coding.encode(BOXES[fine], BOXES[fine + 1])
    deltas[0, coarse, 0] = 0.5
    found = proposals(logits, deltas, one_object(sizes=((64, 40),)))
    # The second of the fine ones became the first's twin, and was suppressed by it.
    np.testing.assert_allclose(found.boxes[0], BOXES[fine], atol=1e-4)
    width = BOXES[coarse, 2] - BOXES[coarse, 0]
    moved = BOXES[coarse] + width * np.array([0.5, 0, 0.5, 0])
    expected = np.clip(moved, 0, [40, 64, 40, 64])
    np.testing.assert_allclose(found.boxes[1], expected, atol=1e-4)
    scores = 1 / (1 + np.exp(-np.array([3.0, 2.0])))
    np.testing.assert_allclose(found.scores[:2], scores, rtol=1e-6)


def test_each_level_has_its_own_top_scores():
    logits = ZEROS[0].at[0, : 3 * 64].set(5)  # the fine level's are all better
    config = dataclasses.replace(TWO_LEVELS, pre_nms_topk=2)
    found = proposals(logits, ZEROS[1], one_object(), config)
    assert int(found.valid.sum()) <= 4 and np.any(found.scores == 0.5)


def test_nothing_is_proposed_from_padding_or_with_short_sides():
    config = dataclasses.replace(TWO_LEVELS, post_nms_topk=200)
    batch = one_object(sizes=((64, 32),))
    found = proposals(*ZEROS, batch, config)
    assert np.all(found.boxes[:, 2] <= 32)
    assert np.all(found.boxes[:, 0][found.valid] < 32)
    # 10 pixels of an image that was then enlarged to twice its size.
    config = dataclasses.replace(config, min_box_size=10.0)
    batch = batch.replace(scales=np.full((1, 2), 2.0, np.float32))
    found = proposals(*ZEROS, batch, config)
    sides = (found.boxes[:, 2:] - found.boxes[:, :2])[found.valid]
    assert np.all(sides >= 20) and len(sides) > 0


def test_no_gradient_flows_through_proposals():
    def sides(deltas):
        return jnp.sum(proposals(ZEROS[0], deltas, one_object()).boxes)

    assert not np.any(jax.grad(sides)(ZEROS[1]))


def test_predict_tells_no_classes_apart():
    found = jax.eval_shape(
        lambda batch: predict(lambda *_: ZEROS, batch, config=TWO_LEVELS), one_object()
    )
    assert found.boxes.shape == (1, 20, 4)
    assert small_rpn().num_classes is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"anchors": Anchors(((16.0,),))},
        {"channels": None},
        {"negative_iou": 0.8},
        {"positive_fraction": 1e-3},
    ],
)
def test_contradictions_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        RPNConfig(**wrong)


def test_a_backbone_without_the_level_is_refused():
    detector = rpn(SMALL, ResNet(10, 16, norm="group", coarsest=3))
    with pytest.raises(ValueError, match="level 4"):
        jax.eval_shape(detector.init, jax.random.key(0), scenes.batch())


def test_a_head_has_at_least_one_layer():
    with pytest.raises(ValueError, match=r"head_depth is 0; it must be in \[1, 100\]"):
        RPNConfig(head_depth=0)
    with pytest.raises(ValueError, match=r"mask_depth is 0; it must be in \[1, 100\]"):
        MaskRCNNConfig(mask_depth=0)
