"""RetinaNet: the laws, and its loss and detections worked by hand."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.config import Anchors, Postprocessing
from jaxdet.detectors.retinanet import RetinaNetConfig, loss, predict, retinanet
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.ops import anchors
from tests.detectors import laws, scenes

SMALL = RetinaNetConfig(
    num_classes=3,
    levels=(3, 4),
    anchors=Anchors(((16.0, 22.0), (32.0, 45.0))),
    channels=32,
    head_depth=1,
    head_norm="group",
    postprocessing=Postprocessing(max_detections=20),
)


def small_retinanet(dtype=jnp.float32, config=SMALL):
    backbone = ResNet(depth=10, width=16, norm="group", coarsest=4, dtype=dtype)
    return retinanet(config, backbone)


class TestLaws(laws.DetectorLaws, detector=small_retinanet):
    def test_prior_sets_the_first_scores(self, compiled):
        bias = compiled.variables["params"]["class_head"]["output"]["bias"]
        np.testing.assert_allclose(jax.nn.sigmoid(bias), 0.01, rtol=1e-5)

    def test_a_canvas_that_no_stride_divides_is_one_with_less_padding(self, compiled):
        sizes = ((76, 100), (75, 60), (64, 97), (33, 50))
        odd, whole = (
            scenes.batch(canvas=canvas, slots=9, sizes=sizes)
            for canvas in ((76, 100), (96, 128))
        )
        totals = [
            compiled.loss(compiled.variables, batch, jax.random.key(0))[0]
            for batch in (odd, whole)
        ]
        assert np.isfinite(totals[0])
        np.testing.assert_allclose(*totals, rtol=1e-5)
        variables = laws.noisy(compiled.variables)
        found, expected = (compiled.predict(variables, batch) for batch in (odd, whole))
        assert np.all(np.any(found.valid, axis=1))
        assert np.all(found.boxes >= 0)
        assert np.all(found.boxes[..., 2:] <= odd.sizes[:, None, ::-1])
        chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-3)


def constant_network(logits, deltas):
    """A network of constant outputs."""
    return lambda pixels, sizes=None: (logits, deltas)


ONE_ANCHOR = dataclasses.replace(
    SMALL, levels=(5,), anchors=Anchors(((32.0,),), ratios=(1.0,))
)


def test_loss_worked_by_hand():
    # Four anchors, the quarters of the image; the object is the first quarter itself.
    batch = scenes.one_object([0, 0, 32, 32])
    network = constant_network(jnp.zeros((1, 4, 3)), jnp.full((1, 4, 4), 0.5))
    run = jax.jit(partial(loss, network, key=None, config=ONE_ANCHOR))
    total, metrics = run(batch)
    # Scores of 1/2: the object's class costs .25 * (1/2)**2 * ln 2, each of the other
    # eleven class scores .75 * (1/2)**2 * ln 2; all over one positive anchor.
    expected = (0.25 + 11 * 0.75) * 0.25 * np.log(2)
    np.testing.assert_allclose(metrics["class_loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["box_loss"], 4 * 0.5, rtol=1e-5)
    np.testing.assert_allclose(metrics["positives"], 1)
    np.testing.assert_allclose(total, expected + 2, rtol=1e-5)


def test_ignored_anchors_cost_nothing():
    # One object, most like the second size of the first cell: there its IoU is 1 and
    # with the first size (28.8 / 32)**2 = .81, between the thresholds: ignored.
    config = dataclasses.replace(
        ONE_ANCHOR,
        anchors=Anchors(((28.8, 32.0),), ratios=(1.0,)),
        negative_iou=0.5,
        positive_iou=0.9,
    )
    batch = scenes.one_object([0, 0, 32, 32])
    network = constant_network(jnp.zeros((1, 8, 3)), jnp.zeros((1, 8, 4)))
    _, metrics = jax.jit(partial(loss, network, key=None, config=config))(batch)
    np.testing.assert_allclose(metrics["positives"], 1)
    # Of 24 class scores three are ignored; see above for what the others cost.
    expected = (0.25 + 20 * 0.75) * 0.25 * np.log(2)
    np.testing.assert_allclose(metrics["class_loss"], expected, rtol=1e-5)


def test_normalizing_by_image_is_the_mean_of_single_images(rng):
    config = dataclasses.replace(SMALL, normalize_by="image")
    batch = scenes.batch()
    count = anchors.num_anchors((64, 64), levels=SMALL.levels, per_cell=6)
    logits = jnp.asarray(rng.normal(size=(4, count, 3)), jnp.float32)
    deltas = jnp.asarray(rng.normal(size=(4, count, 4)), jnp.float32)

    @jax.jit
    def total(logits, deltas, batch):
        return loss(constant_network(logits, deltas), batch, None, config=config)[0]

    whole = total(logits, deltas, batch)
    one = [jax.tree.map(lambda x, i=i: x[i : i + 1], batch) for i in range(4)]
    singles = [total(logits[i : i + 1], deltas[i : i + 1], one[i]) for i in range(4)]
    np.testing.assert_allclose(whole, np.mean(singles), rtol=1e-5)


def test_predict_takes_the_best_and_clips():
    config = dataclasses.replace(
        ONE_ANCHOR, postprocessing=Postprocessing(max_detections=3)
    )
    logits = jnp.full((1, 4, 3), -9.0).at[0, 0, 2].set(2.0).at[0, 3, 1].set(3.0)
    deltas = jnp.zeros((1, 4, 4)).at[0, 0, 0].set(-0.5)  # half a width to the left
    batch = scenes.batch(counts=(1,))
    found = jax.jit(partial(predict, constant_network(logits, deltas), config=config))(
        batch
    )
    expected = jnp.array([[32.0, 32, 64, 64], [0, 0, 16, 32], [0, 0, 0, 0]])
    chex.assert_trees_all_close(found.boxes[0], expected)
    np.testing.assert_array_equal(found.labels[0], [1, 2, 0])
    np.testing.assert_array_equal(found.valid[0], [True, True, False])
    np.testing.assert_allclose(found.scores[0, :2], jax.nn.sigmoid(jnp.array([3.0, 2])))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"levels": (3,)}, r"anchors is .* sizes for each of the levels \(3,\)"),
        ({"levels": (4, 3)}, r"levels is \(4, 3\); .* consecutive"),
        ({"levels": ()}, r"levels is \(\); .* not empty"),
        ({"negative_iou": 0.6}, "negative_iou is 0.6; .* at most positive_iou, 0.5"),
        ({"prior": 0.0}, r"prior is 0.0; it must be in \(0, 1\)"),
    ],
)
def test_contradictions_are_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(SMALL, **change)
