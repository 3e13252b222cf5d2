"""Set prediction: matching, losses and detections worked by hand."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.detectors import set_prediction
from jaxdet.detectors.set_prediction import SetLossConfig, SetPostprocessing
from tests.detectors import scenes, test_deformable_detr, test_detr

# One image of 64x64, one object of class 1, and three queries: on the object, half as
# wide, and far off. In fractions of the image the object is 0.25 wide and 0.5 high.
TRUTH = scenes.one_object([16, 16, 32, 48]).truth
SIZES = jnp.array([[64, 64]])
BOXES = jnp.array(
    [[0.375, 0.5, 0.25, 0.5], [0.375, 0.5, 0.125, 0.5], [0.9, 0.9, 0.1, 0.1]]
)[None]
FOCAL = SetLossConfig(class_loss="focal", class_cost=2.0, class_weight=2.0)


DETR = SetLossConfig()
run = jax.jit(set_prediction.losses, static_argnums=4)
match = jax.jit(set_prediction.match_queries, static_argnums=3)


def losses(logits, boxes=BOXES, config=DETR, **changes):
    """Of one decoder layer, or of several."""
    if logits.ndim == 3:
        logits, boxes = logits[None], boxes[None]
    config = dataclasses.replace(config, **changes)
    total, metrics = run(logits, boxes, TRUTH, SIZES, config)
    return float(total), {name: float(value) for name, value in metrics.items()}


def test_losses_worked_by_hand():
    # Undecided among two classes and no object; the second query's box is wrong by an
    # eighth, and its GIoU with the object is its IoU, a half.
    logits, boxes = jnp.zeros((1, 3, 3)), BOXES.at[:, 0].set(BOXES[:, 2])
    total, metrics = losses(logits, boxes)
    # All cost ln 3, whatever the weights of queries without object.
    expected = {"class_loss": np.log(3), "l1_loss": 1 / 8, "giou_loss": 1 / 2}
    assert metrics == pytest.approx(expected | {"auxiliary_loss": 0.0}, rel=1e-5)
    assert total == pytest.approx(np.log(3) + 5 / 8 + 1, rel=1e-5)
    heavy, _ = losses(logits, boxes, class_weight=0.0, l1_weight=0.0, giou_weight=3.0)
    assert heavy == pytest.approx(1.5, rel=1e-5)


def test_queries_without_object_weigh_a_tenth():
    # The first query is the object's and sure of it; the others say class 0, not none.
    logits = jnp.array([[[0.0, 9.0, 0.0], [0.0, -np.inf, 0.0], [0.0, -np.inf, 0.0]]])
    _, metrics = losses(logits)
    sure = np.log(np.exp(9) + 2) - 9
    expected = (sure + 0.2 * np.log(2)) / 1.2
    assert metrics["class_loss"] == pytest.approx(expected, rel=1e-5)


def test_focal_losses_worked_by_hand():
    # Scores of 1/2: .25 * (1/2)**2 * ln 2 for the object's class, .75 for the others.
    total, metrics = losses(jnp.zeros((1, 3, 2)), config=FOCAL)
    expected = (0.25 + 5 * 0.75) * 0.25 * np.log(2)
    assert metrics["class_loss"] == pytest.approx(expected, rel=1e-5)
    assert total == pytest.approx(2 * expected, rel=1e-5)  # the box is right


@pytest.mark.parametrize("config", [DETR, FOCAL])
def test_costs_decide_between_class_and_box(config):
    # The first query has the right box, the second the right class.
    nothing = [0.0] * (config.class_loss == "cross_entropy")
    logits = jnp.array([[[0.0, -2.0], [0.0, 2.0], [0.0, 0.0]]])
    logits = jnp.concatenate([logits, jnp.zeros((1, 3, len(nothing)))], axis=-1)
    truth = TRUTH.replace(boxes=TRUTH.boxes / 64)

    def matched(**changes):
        changed = dataclasses.replace(config, **changes)
        index, positive = match(logits, BOXES, truth, changed)
        assert not np.any(index)
        return np.flatnonzero(positive).tolist()

    assert matched(class_cost=0.0) == [0]
    assert matched(l1_cost=0.0, giou_cost=0.0) == [1]
    # By 1/8 of L1 or 1/2 of GIoU, against a class cost of less than 1 or some 2.5.
    assert matched(class_cost=1.0, l1_cost=30.0, giou_cost=0.0) == [0]
    assert matched(class_cost=1.0, l1_cost=0.0, giou_cost=9.0) == [0]
    assert matched(class_cost=1.0, l1_cost=0.1, giou_cost=0.1) == [1]


def test_all_layers_learn_and_each_has_its_own_matching():
    logits, boxes = jnp.zeros((2, 1, 3, 3)), jnp.stack([BOXES[:, ::-1], BOXES])
    one, metrics = losses(logits[0], BOXES)
    assert metrics["l1_loss"] == pytest.approx(0.0, abs=1e-6)
    total, metrics = losses(logits, boxes)
    assert metrics["auxiliary_loss"] == pytest.approx(one, rel=1e-5)
    assert total == pytest.approx(2 * one, rel=1e-5)
    total, metrics = losses(logits, boxes, auxiliary=False)
    assert total == pytest.approx(one, rel=1e-5)
    assert "auxiliary_loss" not in metrics


def test_detections_worked_by_hand():
    sizes = jnp.array([[40, 80]])  # height, width
    config = SetPostprocessing(max_detections=3)
    logits = jnp.log(jnp.array([[[0.2, 0.1, 0.7], [0.3, 0.6, 0.1], [0.5, 0.2, 0.3]]]))
    found = set_prediction.postprocess(
        logits, BOXES, sizes, config, class_loss="cross_entropy"
    )
    np.testing.assert_allclose(found.scores, [[0.6, 0.5, 0.2]], rtol=1e-5)
    assert found.labels.tolist() == [[1, 0, 0]]
    boxes = [[25, 10, 35, 30], [68, 34, 76, 38], [20, 10, 40, 30]]
    np.testing.assert_allclose(found.boxes[0], boxes, atol=1e-4)
    # Sigmoids: the second query gives two of the three.
    scores = np.array([[[0.2, 0.1], [0.7, 0.9], [0.8, 0.3]]])
    logits = jnp.asarray(np.log(scores / (1 - scores)), jnp.float32)
    found = set_prediction.postprocess(logits, BOXES, sizes, config, class_loss="focal")
    np.testing.assert_allclose(found.scores, [[0.9, 0.8, 0.7]], rtol=1e-5)
    assert found.labels.tolist() == [[1, 0, 0]]
    np.testing.assert_allclose(found.boxes[0, [0, 2]], [boxes[0]] * 2, atol=1e-4)
    strict = SetPostprocessing(score_threshold=0.75)
    found = set_prediction.postprocess(logits, BOXES, sizes, strict, class_loss="focal")
    assert found.valid.tolist() == [[True, True, False, False, False, False]]
    assert not np.any(found.boxes[0, 2:])


def test_boxes_that_are_not_finite_are_discarded():
    found = set_prediction.postprocess(
        jnp.zeros((1, 3, 3)),
        BOXES.at[0, 0, 2].set(jnp.nan),
        SIZES,
        SetPostprocessing(),
        class_loss="cross_entropy",
    )
    assert found.valid.tolist() == [[True, True, False]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "make, config",
    [
        (test_detr.small_detr, test_detr.SMALL),
        (test_deformable_detr.small_deformable_detr, test_deformable_detr.SMALL),
    ],
    ids=["detr", "deformable_detr"],
)
def test_padding_changes_nothing_with_dropout(make, config):
    """Some points are cells' centers at first, where rounding picks the cell."""
    detector = make(config=dataclasses.replace(config, dropout=0.6))
    batch, large = scenes.batch(), scenes.batch(canvas=(96, 128), slots=9)
    variables = jax.jit(detector.init)(jax.random.key(0), batch)
    loss = jax.jit(detector.loss)
    losses = []
    for key in map(jax.random.key, range(4)):
        small = loss(variables, batch, key)
        chex.assert_trees_all_close(small, loss(variables, large, key), rtol=1e-5)
        losses.append(float(small[0]))
    assert np.ptp(losses) > 1e-3 * losses[0]
