"""Region proposal networks: the laws, losses and proposals worked by hand."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.detectors import rpn as rpn_file
from jaxdet.detectors.rpn import RPNConfig, loss, predict, propose, rpn
from jaxdet.detectors.serialization import deserialize
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.ops import anchors, box_coding
from jaxdet.ops import boxes as box_ops
from tests.detectors import laws, scenes

# One level, as NMS goes level by level and two levels may answer for one object; no
# ignored anchors, as what those learn to say is left to chance.
SMALL = RPNConfig(
    levels=(4,),
    anchor_sizes=((16.0, 32.0),),
    channels=None,
    low_iou=0.7,
    candidates=100,
    train_candidates=100,
    proposals=20,
    train_proposals=20,
)
TWO_LEVELS = dataclasses.replace(
    SMALL, levels=(3, 4), anchor_sizes=((16.0,), (32.0,)), channels=8, low_iou=0.3
)


def small_rpn(dtype=jnp.float32, config=SMALL):
    return rpn(config, ResNet(10, 16, norm="group", coarsest=4, dtype=dtype))


class TestLaws(laws.DetectorLaws, detector=small_rpn, nms_threshold=0.7):
    pass


def answers(logits, deltas):
    """A network that always says the same, for tests of what is not learned."""
    return lambda pixels, sizes=None: (logits, deltas)


def one_object(box, config=TWO_LEVELS, sizes=((64, 64),)):
    """A batch of one 64x64 image, and its anchors."""
    batch = scenes.batch(counts=(1,), slots=2, sizes=sizes)
    boxes = batch.truth.boxes.copy()
    boxes[0, 0] = box
    batch = batch.replace(truth=batch.truth.replace(boxes=boxes))
    return batch, np.asarray(anchors.pyramid_anchors((64, 64), **config.anchors))


def run(logits, deltas, batch, config):
    function = partial(loss, config=config)
    return jax.jit(lambda *a: function(answers(*a), batch, jax.random.key(0)))(
        logits, deltas
    )


def test_losses_by_hand():
    batch, boxes = one_object([8, 8, 24, 24])
    count = len(boxes)
    config = dataclasses.replace(TWO_LEVELS, per_image=count, positive_fraction=1.0)
    iou = np.asarray(box_ops.pairwise_iou(boxes, batch.truth.boxes[0, :1]))[:, 0]
    positive = (iou >= 0.7) | (iou == iou.max())
    used = positive | (iou < 0.3)
    assert 0 < positive.sum() < used.sum() < count
    # Everything says "object" with probability 0.8, and deltas of nothing.
    logits = jnp.full((1, count, 1), np.log(4.0))
    total, metrics = run(logits, jnp.zeros((1, count, 4)), batch, config)
    surprise = np.where(positive, -np.log(0.8), -np.log(0.2))
    expected = surprise[used].sum() / used.sum()
    np.testing.assert_allclose(metrics["objectness_loss"], expected, rtol=1e-5)
    targets = np.asarray(box_coding.encode(batch.truth.boxes[0, :1], boxes))
    expected = np.abs(targets[positive]).sum() / used.sum()
    np.testing.assert_allclose(metrics["rpn_box_loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(total, sum(metrics.values()))


def test_a_softmax_of_two_is_the_sigmoid_of_their_difference():
    batch, boxes = one_object([8, 8, 24, 24])
    noise = np.random.default_rng(0).normal(size=(1, len(boxes), 2)).astype(np.float32)
    deltas = jnp.zeros((1, len(boxes), 4))
    softmax = dataclasses.replace(TWO_LEVELS, softmax=True)
    both = run(jnp.asarray(noise), deltas, batch, softmax)
    one = run(jnp.asarray(noise[..., 1:] - noise[..., :1]), deltas, batch, TWO_LEVELS)
    np.testing.assert_allclose(both[0], one[0], rtol=1e-5)


def test_only_anchors_inside_teach_if_asked():
    batch, boxes = one_object([0, 0, 30, 30])
    config = dataclasses.replace(TWO_LEVELS, inside_only=True, per_image=len(boxes))
    inside = np.all((boxes >= 0) & (boxes <= 64), axis=1)

    def gradient(config):
        def total(logits):
            return run(logits, jnp.zeros((1, len(boxes), 4)), batch, config)[0]

        return np.asarray(jax.grad(total)(jnp.zeros((1, len(boxes), 1))))[0, :, 0]

    of_some = gradient(config)
    assert not np.any(of_some[~inside])
    # The object has its best anchor among those inside.
    assert np.sum(of_some[inside] < 0) >= 1
    everywhere = dataclasses.replace(config, inside_only=False)
    assert np.any(gradient(everywhere)[~inside])


def test_no_more_than_the_samples_teach():
    batch, boxes = one_object([8, 8, 24, 24])
    config = dataclasses.replace(TWO_LEVELS, per_image=10)

    def total(logits):
        return run(logits, jnp.zeros((1, len(boxes), 4)), batch, config)[0]

    gradient = jax.grad(total)(jnp.zeros((1, len(boxes), 1)))
    assert int(np.count_nonzero(gradient)) == 10


def proposals(logits, deltas, batch, config=TWO_LEVELS, candidates=100, count=6):
    function = partial(propose, config=config, candidates=candidates, proposals=count)
    return jax.jit(function)(logits, deltas, batch)


def test_proposals_by_hand():
    batch, boxes = one_object([8, 8, 24, 24], sizes=((64, 40),))
    logits = np.full((1, len(boxes), 1), -20.0, np.float32)
    fine = 3 * (8 * 2 + 2)  # level 3, cell (2, 2), first ratio
    coarse = 3 * 64 + 3 * (4 * 1 + 0)  # level 4, cell (1, 0)
    logits[0, [fine, fine + 1, coarse], 0] = [3.0, 1.0, 2.0]
    deltas = np.zeros((1, len(boxes), 4), np.float32)
    deltas[0, fine + 1] = box_coding.encode(boxes[fine], boxes[fine + 1])
    deltas[0, coarse, 0] = 0.5
    found = proposals(jnp.asarray(logits), jnp.asarray(deltas), batch)
    # The second of the fine ones became the first's twin, and was suppressed by it.
    width = boxes[coarse, 2] - boxes[coarse, 0]
    moved = boxes[coarse] + width * np.array([0.5, 0, 0.5, 0])
    np.testing.assert_allclose(found.boxes[0, 0], boxes[fine], atol=1e-4)
    np.testing.assert_allclose(
        found.boxes[0, 1], np.clip(moved, 0, [40, 64, 40, 64]), atol=1e-4
    )
    scores = 1 / (1 + np.exp(-np.array([3.0, 2.0])))
    np.testing.assert_allclose(found.scores[0, :2], scores, rtol=1e-6)


def test_candidates_are_the_best_of_each_level():
    batch, boxes = one_object([8, 8, 24, 24])
    logits = np.zeros((1, len(boxes), 1), np.float32)
    logits[0, : 3 * 64] = 5  # all of the fine level is better than all of the coarse
    found = proposals(
        jnp.asarray(logits), jnp.zeros((1, len(boxes), 4)), batch, candidates=2, count=9
    )
    assert int(found.valid.sum()) <= 4
    assert np.any(np.asarray(found.scores[0]) == 0.5)


def test_nothing_is_proposed_from_padding_or_with_short_sides():
    batch, boxes = one_object([8, 8, 24, 24], sizes=((64, 32),))
    zeros = jnp.zeros((1, len(boxes), 1)), jnp.zeros((1, len(boxes), 4))
    found = proposals(*zeros, batch, count=200)
    assert np.all(np.asarray(found.boxes)[..., 2] <= 32)
    assert np.all(np.asarray(found.boxes[0, :, 0])[np.asarray(found.valid[0])] < 32)
    # 10 pixels of an image that was then enlarged to twice its size.
    long = dataclasses.replace(TWO_LEVELS, min_side=10.0)
    batch = batch.replace(scales=np.full((1, 2), 2.0, np.float32))
    found = proposals(*zeros, batch, config=long, count=200)
    sides = np.asarray(found.boxes[0, :, 2:] - found.boxes[0, :, :2])
    assert np.all(sides[np.asarray(found.valid[0])] >= 20) and np.any(found.valid)


def test_no_gradient_flows_through_proposals():
    batch, boxes = one_object([8, 8, 24, 24])

    def sides(deltas):
        found = proposals(jnp.zeros((1, len(boxes), 1)), deltas, batch)
        return jnp.sum(found.boxes)

    assert not np.any(jax.grad(sides)(jnp.zeros((1, len(boxes), 4))))


def test_predict_tells_no_classes_apart():
    batch, boxes = one_object([8, 8, 24, 24])
    network = answers(jnp.zeros((1, len(boxes), 1)), jnp.zeros((1, len(boxes), 4)))
    found = jax.jit(lambda batch: predict(network, batch, config=TWO_LEVELS))(batch)
    assert not np.any(found.labels) and found.boxes.shape == (1, 20, 4)
    assert small_rpn().num_classes is None


@pytest.mark.parametrize(
    "name", ["PAPER", "TORCHVISION", "DETECTRON2", "DETECTRON2_C4"]
)
def test_the_references_configs_are_recipes(name):
    config = getattr(rpn_file, name)
    detector = rpn(config, ResNet(18))
    assert deserialize(detector.recipe).recipe == detector.recipe


def test_constants_of_the_references():
    paper = rpn_file.PAPER
    assert (paper.high_iou, paper.low_iou, paper.per_image) == (0.7, 0.3, 256)
    assert (paper.nms_threshold, paper.proposals, paper.softmax) == (0.7, 300, True)
    assert paper.anchors_per_cell == 9 and paper.positive_fraction == 0.5
    assert (paper.inside_only, paper.min_side, paper.box_beta) == (True, 16.0, 1 / 9)
    assert (paper.train_candidates, paper.train_proposals) == (12000, 2000)
    assert paper.candidates == 6000
    torchvision = rpn_file.TORCHVISION
    assert (torchvision.anchor_offset, torchvision.anchor_rounded) == (0.0, True)
    assert (torchvision.box_beta, torchvision.min_side) == (1 / 9, 1e-3)
    assert (torchvision.train_candidates, torchvision.train_proposals) == (2000, 2000)
    assert (torchvision.candidates, torchvision.proposals) == (1000, 1000)
    detectron2 = rpn_file.DETECTRON2
    assert (detectron2.anchor_offset, detectron2.anchor_rounded) == (0.0, False)
    assert (detectron2.box_beta, detectron2.min_side) == (0.0, 0.0)
    assert (detectron2.train_candidates, detectron2.train_proposals) == (2000, 1000)
    c4 = rpn_file.DETECTRON2_C4
    assert (c4.anchors_per_cell, c4.candidates, c4.proposals) == (15, 6000, 1000)
    assert (c4.train_candidates, c4.train_proposals) == (12000, 2000)
    for config in (paper, torchvision, detectron2, c4):
        assert (config.low_iou, config.high_iou) == (0.3, 0.7)
        assert (config.per_image, config.nms_threshold) == (256, 0.7)


@pytest.mark.parametrize("inside_only", [False, True])
def test_coverage_is_by_the_anchors_that_are_trained(inside_only):
    config = dataclasses.replace(TWO_LEVELS, inside_only=inside_only)
    objects = np.array([[0, 2, 20, 30], [20, 20, 56, 56]], np.float32)
    boxes = np.asarray(anchors.pyramid_anchors((64, 64), **config.anchors))
    if inside_only:
        boxes = boxes[np.all((boxes >= 0) & (boxes <= 56), axis=1)]
    found = small_rpn(config=config).coverage((64, 64), objects, np.full((2, 2), 56))
    expected = box_ops.pairwise_iou(boxes, objects).max(axis=0)
    np.testing.assert_allclose(found.best, expected, rtol=1e-5)
    assert (found.low, found.high) == (0.3, 0.7)


@pytest.mark.parametrize(
    "wrong",
    [
        {"anchor_sizes": ((16.0,),)},
        {"levels": (2, 4, 5, 6, 7)},
        {"channels": None},
        {"low_iou": 0.8},
        {"proposals": 0},
        {"per_image": 0},
        {"box_weight": -1.0},
        {"nms_threshold": 1.1},
        {"anchor_ratios": (0.0, 1.0)},
        {"anchor_ratios": ()},
        {"channels": 0},
        {"head_channels": 0},
        {"fpn_norm": "batch"},
        {"anchor_offset": 16.0},
        {"high_iou": 0.0},
        {"positive_fraction": 1e-3},
        {"mean": (0.5,)},
        {"std": (0.5, 0.5)},
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
