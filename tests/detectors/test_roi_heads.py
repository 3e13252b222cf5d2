"""What all R-CNNs share, worked by hand."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.detectors import roi_heads
from jaxdet.detectors.roi_heads import RoIHeadsConfig, Samples
from jaxdet.structs import GroundTruth, Regions
from tests.detectors import scenes

CONFIG = RoIHeadsConfig(per_image=8)


def truth(boxes, labels, *, crowd=None, slots=3) -> GroundTruth:
    """One image's, padded."""
    count = len(labels)
    padding = ((0, 0), (0, slots - count))
    valid = np.pad(np.ones((1, count), bool), padding)
    crowd = [False] * count if crowd is None else crowd
    return GroundTruth(
        boxes=jnp.pad(jnp.array([boxes], jnp.float32), (*padding, (0, 0))),
        labels=jnp.pad(jnp.array([labels], jnp.int32), padding),
        valid=jnp.asarray(valid),
        crowd=jnp.pad(jnp.array([crowd], bool), padding),
    )


def proposals(*boxes, padding=1) -> Regions:
    count = len(boxes)
    boxes = np.array([[*boxes, *[[0, 0, 0, 0]] * padding]], np.float32)
    valid = np.arange(count + padding)[None] < count
    return Regions(jnp.asarray(boxes), jnp.asarray(valid * 0.5), jnp.asarray(valid))


@partial(jax.jit, static_argnames="config")
def sample(given, objects, config=CONFIG):
    keys = jax.random.split(jax.random.key(0), len(given.valid))
    return roi_heads.sample(keys, given, objects, num_classes=5, config=config)


@partial(jax.jit, static_argnames="config")
def detections(logits, deltas, given, sizes, config):
    return roi_heads.detections(logits, deltas, given, sizes, config=config)


@partial(jax.jit, static_argnames="config")
def region_losses(logits, deltas, samples, config):
    return roi_heads.region_losses(
        logits, deltas, samples, config=config, axis_name=None
    )


OBJECT = [0, 0, 10, 10]
HALF = [0, 0, 10, 20]  # IoU 0.5
LESS = [0, 0, 10, 21]
FAR = [50, 50, 60, 60]


def test_overlap_decides_what_a_region_is():
    config = dataclasses.replace(CONFIG, positive_fraction=1.0)
    samples = sample(proposals(HALF, LESS, FAR), truth([OBJECT], [3]), config)
    found = {
        tuple(box): (int(label), bool(positive))
        for box, label, positive, valid in zip(
            np.asarray(samples.boxes[0]).tolist(),
            samples.labels[0],
            samples.positive[0],
            samples.valid[0],
            strict=True,
        )
        if valid
    }
    assert found == {
        tuple(OBJECT): (3, True),  # the object itself is a region too
        tuple(HALF): (3, True),
        tuple(LESS): (5, False),
        tuple(FAR): (5, False),
    }
    np.testing.assert_array_equal(samples.targets[0, :2], [OBJECT, OBJECT])
    np.testing.assert_array_equal(samples.positive[0], np.arange(8) < 2)


def test_a_region_answers_for_the_object_it_overlaps_most():
    config = dataclasses.replace(CONFIG, positive_fraction=1.0)
    other = [0, 0, 10, 16]
    samples = sample(proposals([0, 0, 10, 17]), truth([OBJECT, other], [1, 2]), config)
    region = np.flatnonzero(np.asarray(samples.boxes[0, :, 3]) == 17)[0]
    assert int(samples.labels[0, region]) == 2
    assert int(samples.objects[0, region]) == 1
    np.testing.assert_array_equal(samples.targets[0, region], other)


def test_crowds_are_neither_objects_nor_regions():
    samples = sample(proposals(HALF, FAR), truth([OBJECT], [3], crowd=[True]))
    assert not np.any(samples.positive)
    assert int(samples.valid.sum()) == 2


def test_hard_negatives_come_alone_where_there_are_some():
    config = dataclasses.replace(CONFIG, hard_negative_iou=0.1)
    samples = sample(proposals(LESS, FAR), truth([OBJECT], [3]), config)
    chosen = np.asarray(samples.boxes[0][samples.valid[0]]).tolist()
    assert LESS in chosen and FAR not in chosen
    without = sample(proposals(FAR), truth([OBJECT], [3]), config)
    assert FAR in np.asarray(without.boxes[0][without.valid[0]]).tolist()


@pytest.mark.parametrize("slots", [0, 3])
def test_images_without_objects_or_regions(slots):
    nothing = truth(np.zeros((0, 4)), np.zeros(0, int), slots=slots)
    samples = sample(proposals(FAR), nothing)
    assert int(samples.valid.sum()) == 1 and not np.any(samples.positive)
    assert int(samples.labels[0, 0]) == 5
    assert not np.any(sample(proposals(), nothing).valid)


def test_losses_by_hand():
    samples = Samples(
        boxes=jnp.array([[[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 0, 0]]]),
        labels=jnp.array([[1, 2, 2]]),
        objects=jnp.zeros((1, 3), jnp.int32),
        targets=jnp.array([[[1.0, 0, 11, 10], [0, 0, 0, 0], [0, 0, 0, 0]]]),
        positive=jnp.array([[True, False, False]]),
        valid=jnp.array([[True, True, False]]),
    )
    logits = jnp.log(jnp.array([[[0.25, 0.5, 0.25], [0.5, 0.25, 0.25], [1e-9, 1, 1]]]))
    deltas = jnp.zeros((1, 3, 2, 4)).at[0, 0, 1].set(jnp.array([0.25, 0, 0, 0]))
    config = RoIHeadsConfig(box_weight=3.0)
    terms = region_losses(logits, deltas, samples, config)
    # Two samples count: -log(0.5) for the object, -log(0.25) for the background.
    expected = (np.log(2) + np.log(4)) / 2
    np.testing.assert_allclose(terms["class_loss"], expected, rtol=1e-6)
    # The box is 0.1 to the right, times its weight of 10; 0.25 of that was said.
    np.testing.assert_allclose(terms["box_loss"], 3 * 0.75 / 2, rtol=1e-5)


def test_class_agnostic_boxes_learn_from_every_class():
    batch = Samples(
        boxes=jnp.array([[[0.0, 0, 10, 10]]]),
        labels=jnp.array([[4]]),
        objects=jnp.zeros((1, 1), jnp.int32),
        targets=jnp.array([[[1.0, 0, 11, 10]]]),
        positive=jnp.array([[True]]),
        valid=jnp.array([[True]]),
    )
    logits, deltas = jnp.zeros((1, 1, 6)), jnp.zeros((1, 1, 1, 4))
    terms = region_losses(logits, deltas, batch, RoIHeadsConfig(class_agnostic=True))
    np.testing.assert_allclose(terms["box_loss"], 1.0, rtol=1e-5)


def test_detections_by_hand():
    given = proposals([0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 40, 40], padding=1)
    scores = [[0.6, 0.3, 0.1], [0.5, 0.01, 0.49], [0.01, 0.9, 0.09], [0.9, 0.05, 0.05]]
    deltas = jnp.zeros((1, 4, 2, 4)).at[0, 2, 1, 0].set(10.0)  # one width to the right
    found = detections(
        jnp.log(jnp.array([scores])),
        deltas,
        given,
        jnp.array([[40, 50]]),
        config=RoIHeadsConfig(detections=4),
    )
    # The second region is too much like the first for class 0, and below the threshold
    # for class 1; the padded one has the best score and does not count.
    np.testing.assert_allclose(found.scores, [[0.9, 0.6, 0.3, 0]], rtol=1e-5)
    np.testing.assert_array_equal(found.labels, [[1, 0, 1, 0]])
    expected = [[40, 20, 50, 40], [0, 0, 10, 10], [0, 0, 10, 10], [0] * 4]
    np.testing.assert_allclose(found.boxes, [expected], atol=1e-4)
    np.testing.assert_array_equal(found.valid, [[True, True, True, False]])


def test_boxes_that_leave_the_image_are_no_answers():
    given = proposals([0, 0, 10, 10], padding=0)
    deltas = jnp.zeros((1, 1, 1, 4)).at[..., 0].set(-30.0)
    found = detections(
        jnp.array([[[5.0, 0.0]]]),
        deltas,
        given,
        jnp.array([[40, 50]]),
        config=RoIHeadsConfig(),
    )
    assert not np.any(found.valid)


def test_given_regions_are_clipped_to_their_images():
    batch = scenes.batch(counts=(1,), sizes=((40, 50),))
    boxes = [[-5, -5, 10, 10], [60, 0, 70, 10], [5, 5, 5, 9], [10, 10, 90, 90]]
    batch = batch.replace(regions=proposals(*boxes))
    found = roi_heads.given(batch)
    np.testing.assert_array_equal(found.valid, [[True, False, False, True, False]])
    np.testing.assert_array_equal(found.boxes[0, 0], [0, 0, 10, 10])
    np.testing.assert_array_equal(found.boxes[0, 3], [10, 10, 50, 40])
    assert not np.any(found.boxes[0, [1, 2, 4]])


def test_a_batch_without_regions_is_refused():
    with pytest.raises(ValueError, match=r"InputConfig\.max_regions"):
        roi_heads.given(scenes.batch().replace(regions=None))


def test_keys_belong_to_images_not_to_slots():
    batch = scenes.batch()
    keys = roi_heads.image_keys(jax.random.key(1), batch, 2)
    turned = batch.replace(image_ids=batch.image_ids[::-1])
    again = roi_heads.image_keys(jax.random.key(1), turned, 2)
    data = jax.random.key_data
    for here, there in zip(keys, again, strict=True):
        chex.assert_trees_all_equal(data(here), data(there)[::-1])
    assert np.any(data(keys[0]) != data(keys[1]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"per_image": 0},
        {"positive_fraction": 1.5},
        {"positive_fraction": 1 / 1024},
        {"negative_iou": 0.6},
        {"hard_negative_iou": 0.5},
        {"box_weights": (1.0, 1.0, 0.0, 1.0)},
        {"detections": 0},
        {"score_threshold": -0.1},
        {"min_side": -1.0},
    ],
)
def test_contradictions_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        RoIHeadsConfig(**wrong)
