"""SSD: the laws, its loss and its detections worked by hand, its default boxes."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.config import Postprocessing, Preprocessing
from jaxdet.detectors.ssd import (
    PAPER,
    TORCHVISION,
    SSDConfig,
    SSDNetwork,
    loss,
    paper_box_sizes,
    predict,
    ssd,
    tensorflow_box_sizes,
    vgg16_300,
)
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.extra_stages import ExtraStages
from tests.detectors import laws, scenes

SMALL = SSDConfig(
    num_classes=3,
    levels=(3, 4),
    strides=(8.0, 16.0),
    default_box_sizes=paper_box_sizes((16, 26, 42), ((2,),) * 2),
    preprocessing=Preprocessing(),
    postprocessing=dataclasses.replace(PAPER.postprocessing, max_detections=20),
)


def small_ssd(dtype=jnp.float32, config=SMALL):
    backbone = ResNet(depth=10, width=16, norm="group", coarsest=3, dtype=dtype)
    return ssd(config, ExtraStages(backbone, ((16, 32),), norm="group", dtype=dtype))


class TestLaws(laws.DetectorLaws, detector=small_ssd, nms_threshold=0.45):
    pass


def constant_network(logits, deltas):
    """A network of constant outputs of level 5, two by two cells."""
    return lambda pixels, sizes=None: (
        {5: logits.reshape(len(logits), 2, 2, -1, logits.shape[-1])},
        {5: deltas.reshape(len(deltas), 2, 2, -1, 4)},
    )


@partial(jax.jit, static_argnames="config")
def loss_of(logits, deltas, batch, *, config):
    """The loss of a network that always says the same."""
    return loss(constant_network(logits, deltas), batch, None, config=config)


@partial(jax.jit, static_argnames="config")
def found_by(logits, deltas, batch, *, config):
    """The answers of a network that always says the same."""
    return predict(constant_network(logits, deltas), batch, config=config)


# Four default boxes, the quarters of a 64x64 image.
ONE_LEVEL = dataclasses.replace(
    SMALL,
    levels=(5,),
    strides=(32.0,),
    default_box_sizes=(((32.0, 32.0),),),
    box_weights=(1.0,) * 4,
)


def softmax_losses():
    """Of class 1, then of the background, at logits (0, 0, 0, level of background)."""
    levels = np.array([0.0, 1.0, 0.5, 2.0])  # of the four boxes
    others = np.log(3 + np.exp(levels))
    return levels, others[0], others - levels


@pytest.mark.parametrize(
    ("ratio", "hard"), [(1.0, [2]), (2.0, [2, 1]), (9.0, [1, 2, 3])]
)
def test_softmax_loss_worked_by_hand(ratio, hard):
    # The object is the first quarter; of the others the box least sure that it is
    # background teaches first.
    levels, own, background = softmax_losses()
    logits = jnp.zeros((1, 4, 4)).at[0, :, 3].set(levels)
    config = dataclasses.replace(
        ONE_LEVEL, negatives_per_positive=ratio, min_negatives=0
    )
    total, metrics = loss_of(
        logits,
        jnp.full((1, 4, 4), 0.5),
        scenes.one_object([0, 0, 32, 32]),
        config=config,
    )
    expected = own + background[hard].sum()
    np.testing.assert_allclose(metrics["class_loss"], expected, rtol=1e-5)
    # Half of .5**2 for each of four deltas.
    np.testing.assert_allclose(metrics["box_loss"], 4 * 0.125, rtol=1e-5)
    np.testing.assert_allclose(metrics["positives"], 1)
    np.testing.assert_allclose(total, expected + 0.5, rtol=1e-5)


def test_sigmoid_loss_worked_by_hand():
    # Scores of 1/2 everywhere: each of three classes costs ln 2, of the object's box
    # and of three background boxes.
    config = dataclasses.replace(ONE_LEVEL, score_function="sigmoid")
    nothing = jnp.zeros((1, 4, 3)), jnp.zeros((1, 4, 4))
    _, metrics = loss_of(*nothing, scenes.one_object([0, 0, 32, 32]), config=config)
    np.testing.assert_allclose(metrics["class_loss"], 12 * np.log(2), rtol=1e-5)
    np.testing.assert_allclose(metrics["box_loss"], 0, atol=1e-6)


@pytest.mark.parametrize("least", [0, 1, 2])
def test_an_image_without_objects_teaches_the_hardest(least):
    levels, _, background = softmax_losses()
    logits = jnp.zeros((1, 4, 4)).at[0, :, 3].set(levels)
    config = dataclasses.replace(ONE_LEVEL, min_negatives=least)
    batch = scenes.batch(counts=(0,))
    total, _ = loss_of(logits, jnp.zeros((1, 4, 4)), batch, config=config)
    np.testing.assert_allclose(total, background[[0, 2][:least]].sum(), rtol=1e-5)


def test_box_weights_scale_the_deltas():
    config = dataclasses.replace(ONE_LEVEL, box_weights=(10.0, 10.0, 5.0, 5.0))
    # The object lies an eighth of a box to the right: its delta is 10 / 8.
    batch = scenes.one_object([4, 0, 36, 32])
    nothing = jnp.zeros((1, 4, 4))
    _, metrics = loss_of(nothing, nothing, batch, config=config)
    np.testing.assert_allclose(metrics["box_loss"], 1.25 - 0.5, rtol=1e-5)
    deltas = jnp.zeros((1, 4, 4)).at[0, 0, 0].set(1.25)
    logits = jnp.full((1, 4, 4), -9.0).at[0, :, 3].set(9.0).at[0, 0].set([0, 9.0, 0, 0])
    found = found_by(logits, deltas, batch, config=config)
    np.testing.assert_array_equal(found.boxes[0, 0], [4, 0, 36, 32])


@pytest.mark.parametrize("score_function", ["softmax", "sigmoid"])
def test_predict_takes_the_best_of_each_class_and_clips(score_function):
    postprocessing = Postprocessing(pre_nms_topk=1, max_detections=4)
    config = dataclasses.replace(
        ONE_LEVEL, score_function=score_function, postprocessing=postprocessing
    )
    # Of the first class two boxes are seen, of the last one; one candidate a class.
    logits = jnp.full((1, 4, 3), -9.0).at[0, 0, 0].set(2.0).at[0, 1, 0].set(1.0)
    logits = logits.at[0, 3, 2].set(3.0)
    if score_function == "softmax":
        logits = jnp.concatenate([logits, jnp.zeros((1, 4, 1))], axis=-1)
    deltas = jnp.zeros((1, 4, 4)).at[0, 3, 0].set(0.5)  # half a width to the right
    batch = scenes.batch(counts=(1,))
    found = found_by(logits, deltas, batch, config=config)
    expected = jnp.array([[48.0, 32, 64, 64], [0, 0, 32, 32], [0] * 4, [0] * 4])
    chex.assert_trees_all_close(found.boxes[0], expected)
    np.testing.assert_array_equal(found.labels[0], [2, 0, 0, 0])
    np.testing.assert_array_equal(found.valid[0], [True, True, False, False])
    best = jax.nn.sigmoid(jnp.array([3.0, 2.0]))  # the others' weight is e**-9
    np.testing.assert_allclose(found.scores[0, :2], best, atol=1e-4)


def test_paper_box_sizes_worked_by_hand():
    first, second = paper_box_sizes((30, 60, 111), ((2,), (2, 3)))
    root, between = np.sqrt(2), np.sqrt(30 * 60)
    np.testing.assert_allclose(
        first,
        [
            [30, 30],
            [between, between],
            [30 / root, 30 * root],  # lies
            [30 * root, 30 / root],  # stands
        ],
    )
    assert len(second) == 6
    np.testing.assert_allclose(second[5], [60 * np.sqrt(3), 60 / np.sqrt(3)])
    ((*_, lying, _),) = paper_box_sizes((200, 300), ((4,),), longest=300)
    assert lying == (100, 300)


def test_tensorflow_box_sizes_worked_by_hand():
    maps = tensorflow_box_sizes()
    assert [len(shapes) for shapes in maps] == [3, 6, 6, 6, 6, 6]
    root = np.sqrt(2)
    first = [[30, 30], [60 / root, 60 * root], [60 * root, 60 / root]]
    np.testing.assert_allclose(maps[0], first)
    # Shares of the canvas: .2, .35, .5, .65, .8, .95, and 1 after the last.
    np.testing.assert_allclose(maps[1][0], [105, 105])
    np.testing.assert_allclose(maps[1][5], [300 * np.sqrt(0.35 * 0.5)] * 2)
    np.testing.assert_allclose(maps[5][5], [300 * np.sqrt(0.95)] * 2)
    # Areas stay, and the fourth lies three times as wide as high.
    np.testing.assert_allclose(np.prod(maps[2], axis=1)[:5], 150**2)
    np.testing.assert_allclose(np.divide(*maps[2][3]), 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(np.divide(*maps[2][4]), 3, rtol=1e-3)  # they say .3333


def test_vgg16_has_the_published_maps_and_parameters():
    # torchvision's documented total for its 91 classes.
    config = dataclasses.replace(TORCHVISION, num_classes=90)
    network = SSDNetwork(config, vgg16_300())
    pixels = jnp.zeros((1, 300, 300, 3))
    variables = jax.eval_shape(network.init, jax.random.key(0), pixels)
    sizes = [np.prod(leaf.shape) for leaf in jax.tree.leaves(variables)]
    assert sum(sizes) == 35_641_826
    logits, deltas = jax.eval_shape(network.apply, variables, pixels)
    cells = {3: 38, 4: 19, 5: 10, 6: 5, 7: 3, 8: 1}
    for level, side in cells.items():
        shapes = 4 if level in (3, 7, 8) else 6
        assert logits[level].shape == (1, side, side, shapes, 91)
        assert deltas[level].shape == (1, side, side, shapes, 4)
    boxes = sum(np.prod(maps.shape[1:4]) for maps in deltas.values())
    assert boxes == 8732


def test_strides_of_another_canvas_are_refused():
    batch = scenes.batch()
    config = dataclasses.replace(SMALL, strides=(8.0, 32.0))
    detector = small_ssd(config=config)
    variables = jax.eval_shape(detector.init, jax.random.key(0), batch)
    words = (
        r"strides is \(8.0, 32.0\); .* level 4 has 4 x 4 cells, .* about 16 .* not 32"
    )
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(detector.predict, variables, batch)


def test_a_level_that_the_backbone_lacks_is_named():
    config = dataclasses.replace(SMALL, levels=(3, 6))
    with pytest.raises(ValueError, match="level 6; the backbone has"):
        detector = small_ssd(config=config)
        jax.eval_shape(detector.init, jax.random.key(0), scenes.batch())


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("levels", (4, 3), "rising"),
        ("strides", (8.0,), "one for each of the levels"),
        ("default_box_sizes", (((8.0, 8.0),),), "one for each of the levels"),
    ],
)
def test_contradictions_are_refused(field, value, allowed):
    with pytest.raises(ValueError) as caught:
        dataclasses.replace(SMALL, **{field: value})
    assert str(caught.value).startswith(f"{field} is {value!r}; it must be ")
    assert allowed in str(caught.value)
