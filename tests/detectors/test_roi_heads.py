"""The second stage of the R-CNNs, worked by hand."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.config import Postprocessing
from jaxdet.detectors import roi_heads
from jaxdet.detectors.roi_heads import RoIHeadsConfig, RoIPoolerConfig, SampledRoIs
from jaxdet.structs import GroundTruth, Regions
from tests.detectors import scenes

CONFIG = RoIHeadsConfig(batch_size_per_image=8, positive_fraction=1.0)
losses = jax.jit(roi_heads.losses, static_argnums=3)
postprocess = jax.jit(roi_heads.postprocess, static_argnums=4)
OBJECT = [0, 0, 10, 10]
HALF = [0, 0, 10, 20]  # IoU 0.5
LESS = [0, 0, 10, 21]
FAR = [50, 50, 60, 60]


def truth(boxes, labels, *, crowd=False, slots=3) -> GroundTruth:
    """One image's, padded."""
    padding = ((0, 0), (0, slots - len(labels)))
    valid = jnp.arange(slots)[None] < len(labels)
    return GroundTruth(
        boxes=jnp.pad(jnp.array([boxes], jnp.float32), (*padding, (0, 0))),
        labels=jnp.pad(jnp.array([labels], jnp.int32), padding),
        valid=valid,
        crowd=valid & crowd,
    )


def proposals(*boxes, padding=1) -> Regions:
    count = len(boxes)
    boxes = np.array([[*boxes, *[[0, 0, 0, 0]] * padding]], np.float32)
    valid = np.arange(count + padding)[None] < count
    return Regions(jnp.asarray(boxes), jnp.asarray(valid * 0.5), jnp.asarray(valid))


@partial(jax.jit, static_argnames="config")
def sample(given, objects, config=CONFIG):
    keys = jax.random.split(jax.random.key(0), len(given.valid))
    rois = roi_heads.sample_rois(keys, given, objects, config, num_classes=5)
    return jax.tree.map(lambda x: x[0], rois)


def rows(rois):
    """Of the valid ones."""
    return np.asarray(rois.boxes)[np.asarray(rois.valid)].tolist()


def test_overlap_decides_which_rois_are_positive():
    rois = sample(proposals(HALF, LESS, FAR), truth([OBJECT], [3]))
    labels = {
        tuple(box): int(x) for box, x in zip(rows(rois), rois.labels, strict=False)
    }
    # The object itself is a RoI too.
    expected = {tuple(OBJECT): 3, tuple(HALF): 3, tuple(LESS): 5, tuple(FAR): 5}
    assert labels == expected
    np.testing.assert_array_equal(rois.gt_boxes[:2], [OBJECT, OBJECT])
    np.testing.assert_array_equal(rois.positive, np.arange(8) < 2)


def test_a_roi_is_matched_to_the_object_that_it_overlaps_most():
    other = [0, 0, 10, 16]
    rois = sample(proposals([0, 0, 10, 17]), truth([OBJECT, other], [1, 2]))
    roi = rows(rois).index([0, 0, 10, 17])
    assert (int(rois.labels[roi]), int(rois.gt_index[roi])) == (2, 1)
    np.testing.assert_array_equal(rois.gt_boxes[roi], other)


def test_crowds_are_neither_objects_nor_rois():
    rois = sample(proposals(HALF, FAR), truth([OBJECT], [3], crowd=True))
    assert not np.any(rois.positive) and len(rows(rois)) == 2


def test_hard_negatives_come_alone_where_there_are_some():
    config = dataclasses.replace(CONFIG, hard_negative_iou=0.1)
    assert FAR not in rows(sample(proposals(LESS, FAR), truth([OBJECT], [3]), config))
    assert FAR in rows(sample(proposals(FAR), truth([OBJECT], [3]), config))


@pytest.mark.parametrize("slots", [0, 3])
def test_images_without_objects_or_proposals(slots):
    nothing = truth(np.zeros((0, 4)), np.zeros(0, int), slots=slots)
    rois = sample(proposals(FAR), nothing)
    assert rows(rois) == [FAR] and int(rois.labels[0]) == 5
    assert not np.any(sample(proposals(), nothing).valid)


def test_losses_by_hand():
    rois = SampledRoIs(
        boxes=jnp.array([[[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 0, 0]]]),
        labels=jnp.array([[1, 2, 2]]),
        gt_index=jnp.zeros((1, 3), jnp.int32),
        gt_boxes=jnp.array([[[1.0, 0, 11, 10], [0, 0, 0, 0], [0, 0, 0, 0]]]),
        positive=jnp.array([[True, False, False]]),
        valid=jnp.array([[True, True, False]]),
    )
    logits = jnp.log(jnp.array([[[0.25, 0.5, 0.25], [0.5, 0.25, 0.25], [1e-9, 1, 1]]]))
    deltas = jnp.zeros((1, 3, 2, 4)).at[0, 0, 1].set(jnp.array([0.25, 0, 0, 0]))
    terms = losses(logits, deltas, rois, RoIHeadsConfig(box_weight=3.0))
    # Two RoIs are valid: -log(0.5) for the object, -log(0.25) for the background.
    expected = (np.log(2) + np.log(4)) / 2
    np.testing.assert_allclose(terms["class_loss"], expected, rtol=1e-6)
    # The box is 0.1 to the right, times its weight of 10; 0.25 of that is predicted.
    np.testing.assert_allclose(terms["box_loss"], 3 * 0.75 / 2, rtol=1e-5)
    agnostic = deltas[:, :, 1:]
    terms = losses(logits, agnostic, rois, RoIHeadsConfig(box_weight=3.0))
    np.testing.assert_allclose(terms["box_loss"], 3 * 0.75 / 2, rtol=1e-5)


def test_detections_by_hand():
    given = proposals([0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 40, 40], padding=1)
    scores = [[0.6, 0.3, 0.1], [0.5, 0.01, 0.49], [0.01, 0.9, 0.09], [0.9, 0.05, 0.05]]
    deltas = jnp.zeros((1, 4, 2, 4)).at[0, 2, 1, 0].set(10.0)  # one width to the right
    logits = jnp.log(jnp.array([scores]))
    config = RoIHeadsConfig(postprocessing=Postprocessing(max_detections=4))
    found = postprocess(logits, deltas, given, jnp.array([[40, 50]]), config)
    # The second region is too much like the first for class 0, and below the threshold
    # for class 1; the padded one has the best score and does not count.
    np.testing.assert_allclose(found.scores, [[0.9, 0.6, 0.3, 0]], rtol=1e-5)
    np.testing.assert_array_equal(found.labels, [[1, 0, 1, 0]])
    expected = [[40, 20, 50, 40], [0, 0, 10, 10], [0, 0, 10, 10], [0] * 4]
    np.testing.assert_allclose(found.boxes, [expected], atol=1e-4)
    np.testing.assert_array_equal(found.valid, [[True, True, True, False]])


def test_boxes_that_leave_the_image_are_discarded():
    deltas = jnp.zeros((1, 1, 1, 4)).at[..., 0].set(-30.0)
    logits, sizes = jnp.array([[[5.0, 0.0]]]), jnp.array([[40, 50]])
    given = proposals([0, 0, 10, 10], padding=0)
    assert not np.any(postprocess(logits, deltas, given, sizes, CONFIG).valid)


def test_regions_of_a_batch_are_clipped_to_their_images():
    batch = scenes.batch(counts=(1,), sizes=((40, 50),))
    boxes = [[-5, -5, 10, 10], [60, 0, 70, 10], [5, 5, 5, 9], [10, 10, 90, 90]]
    found = roi_heads.proposals_of(batch.replace(regions=proposals(*boxes)))
    np.testing.assert_array_equal(found.valid, [[True, False, False, True, False]])
    expected = [[0, 0, 10, 10], [0] * 4, [0] * 4, [10, 10, 50, 40], [0] * 4]
    np.testing.assert_array_equal(found.boxes, [expected])


def test_a_batch_without_regions_is_refused():
    with pytest.raises(ValueError, match=r"InputConfig\.max_regions"):
        roi_heads.proposals_of(scenes.batch().replace(regions=None))


def test_features_below_each_box_are_pooled():
    """Features that hold their own place: what is pooled tells where it lay."""
    y, x = np.meshgrid(np.arange(16) + 0.5, np.arange(16) + 0.5, indexing="ij")
    place = np.stack([x, y], axis=-1).astype(np.float32)
    features = {3: 8 * place[None, :8, :8], 4: 16 * place[None, :4, :4]}
    boxes = jnp.array([[[12.0, 20, 28, 36], [8, 8, 40, 40]]])
    pool = jax.jit(roi_heads.pool, static_argnums=(2, 3))
    config = RoIPoolerConfig(levels=(3, 4), output_size=5, canonical_size=32.0)
    crops = pool(features, boxes, None, config)
    assert crops.shape == (1, 2, 5, 5, 2)
    centers = np.array([[20.0, 28], [24, 24]])
    np.testing.assert_allclose(crops[0].mean(axis=(1, 2)), centers, atol=1e-3)
    config = RoIPoolerConfig(method="max", levels=(4,), output_size=5)
    crops = pool(features, boxes, None, config)
    # Cells 1 to 2 across and, as halves round up, 1 to 3.
    np.testing.assert_allclose(crops[0].min(axis=(1, 2))[:, 0], [24, 24])
    np.testing.assert_allclose(crops[0].max(axis=(1, 2))[:, 0], [40, 56])


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (RoIHeadsConfig, {"positive_fraction": 1 / 1024}),
        (RoIHeadsConfig, {"negative_iou": 0.6}),
        (RoIHeadsConfig, {"hard_negative_iou": 0.5}),
        (RoIPoolerConfig, {"method": "max"}),
        (RoIPoolerConfig, {"levels": (2, 4)}),
    ],
)
def test_contradictions_are_refused(kind, wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        kind(**wrong)
