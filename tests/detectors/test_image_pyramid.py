"""Image pyramids: detections by hand, and what may not change them."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.config import Anchors, ConfigError, Postprocessing
from jaxdet.detectors.detector import Detector
from jaxdet.detectors.image_pyramid import (
    AllScalesConfig,
    ImagePyramidConfig,
    at_all_scales,
    image_pyramid,
)
from jaxdet.detectors.retinanet import RetinaNetConfig, retinanet
from jaxdet.detectors.serialization import deserialize
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.structs import Batch, Detections, GroundTruth, Regions
from tests.detectors import laws, scenes

TINY = RetinaNetConfig(
    num_classes=3,
    levels=(3,),
    anchors=Anchors(((16.0,),)),
    channels=8,
    head_depth=0,
    postprocessing=Postprocessing(
        score_threshold=0.01, pre_nms_topk=60, max_detections=20
    ),
)
TWICE = ImagePyramidConfig(scales=(1.0,), flip=True)


def tiny_retinanet():
    return retinanet(TINY, ResNet(depth=10, width=8, norm="group", coarsest=3))


def test_neither_padding_nor_mirroring_changes_anything():
    detector = tiny_retinanet()
    variables = jax.jit(detector.init)(jax.random.key(0), scenes.batch())
    variables = laws.noisy(variables)
    config = ImagePyramidConfig(scales=(0.6, 1.0), flip=True, max_detections=20)
    predict = jax.jit(image_pyramid(detector, config).predict)
    batch = scenes.batch(counts=(3, 1), sizes=((64, 64), (48, 41)))
    found = predict(variables, batch)
    padded = scenes.batch(counts=(3, 1), sizes=((64, 64), (48, 41)), canvas=(80, 96))
    chex.assert_trees_all_close(predict(variables, padded), found, atol=2e-3)
    images = batch.images.copy()
    for image, (height, width) in zip(images, batch.sizes, strict=True):
        image[:height, :width] = image[:height, :width][:, ::-1].copy()
    x1, y1, x2, y2 = np.moveaxis(np.asarray(found.boxes), -1, 0)
    width = batch.sizes[:, 1:]
    boxes = np.stack([width - x2, y1, width - x1, y2], axis=-1)
    expected = found.replace(boxes=np.where(found.valid[..., None], boxes, 0))
    assert np.all(np.sum(found.valid, axis=1) > 5)
    mirrored = predict(variables, batch.replace(images=images))
    chex.assert_trees_all_close(mirrored, expected, atol=2e-3)


def find_white(variables, batch, *, sides=(0, 1000)):
    """One box around all white pixels, if both its sides are in the range.

    Its score is `variables`; the regions that came with the batch are answers too.
    """
    white = jnp.all(batch.images == 255, axis=-1)
    boxes = jax.vmap(_extent)(white)[:, None]
    height, width = boxes[..., 3] - boxes[..., 1], boxes[..., 2] - boxes[..., 0]
    low, high = sides
    valid = (jnp.minimum(height, width) >= low) & (jnp.maximum(height, width) <= high)
    scores = jnp.full(valid.shape, variables)
    if batch.regions is not None:
        boxes = jnp.concatenate([boxes, batch.regions.boxes], axis=1)
        valid = jnp.concatenate([valid, batch.regions.valid], axis=1)
        scores = jnp.concatenate([scores, batch.regions.scores], axis=1)
    return Detections(
        boxes=jnp.where(valid[..., None], boxes, 0.0),
        scores=jnp.where(valid, scores, 0.0),
        labels=jnp.zeros(valid.shape, jnp.int32),
        valid=valid,
    )


LOWER_HALF = np.tri(3, dtype=np.float32)


def find_at_the_left(variables, batch):
    """What of it ends left of column 10, with a mask that is the lower left half."""
    found = find_white(variables, batch)
    valid = found.valid & (found.boxes[..., 2] < 10)
    masks = valid[..., None, None] * LOWER_HALF[None, None]
    return found.replace(valid=valid, masks=masks)


def _extent(white):
    def range_of(axis):
        there = jnp.any(white, axis=axis)
        count = jnp.sum(there)
        start = jnp.argmax(there)
        return start, start + count

    (y1, y2), (x1, x2) = range_of(1), range_of(0)
    return jnp.array([x1, y1, x2, y2], jnp.float32)


def toy(**options):
    """A detector that has learned nothing."""
    return Detector(None, None, partial(find_white, **options), num_classes=1)


def squares(*boxes, canvas=(24, 32), sizes=None, regions=None):
    """For each box an image that is black, and white there."""
    images = np.zeros((len(boxes), *canvas, 3), np.uint8)
    for image, (x1, y1, x2, y2) in zip(images, boxes, strict=True):
        image[y1:y2, x1:x2] = 255
    return Batch(
        images=images,
        sizes=np.array(sizes or [canvas] * len(boxes), np.int32),
        scales=np.ones((len(boxes), 2), np.float32),
        image_ids=np.arange(len(boxes), dtype=np.int32),
        regions=regions,
    )


def found_by(detector, batch, **config):
    """Boxes and scores of each image."""
    pyramid = image_pyramid(detector, ImagePyramidConfig(**config, max_detections=9))
    found = jax.jit(pyramid.predict)(0.5, batch)
    assert found.boxes.shape == (len(batch.images), 9, 4)
    assert not np.any(found.boxes[~found.valid])
    assert not np.any(found.scores[~found.valid])
    return [
        (np.asarray(boxes[valid]), np.asarray(scores[valid]))
        for boxes, scores, valid in zip(
            found.boxes, found.scores, found.valid, strict=True
        )
    ]


@pytest.mark.parametrize("flip", [False, True])
def test_a_detector_of_one_size_finds_all(flip):
    # It sees squares of 6 to 9 pixels alone: the first at scale 2, where its outermost
    # pixels are gray, the second at 1, the third at 0.5.
    batch = squares((8, 4, 12, 8), (8, 4, 16, 12), (8, 4, 24, 20))
    detector = toy(sides=(6, 9))
    found = found_by(detector, batch, scales=(0.5, 1.0, 2.0), flip=flip)
    expected = [[8.5, 4.5, 11.5, 7.5], [8, 4, 16, 12], [8, 4, 24, 20]]
    for (boxes, scores), box in zip(found, expected, strict=True):
        np.testing.assert_array_equal(boxes, [box])
        np.testing.assert_array_equal(scores, [0.5])
    found = found_by(detector, batch, scales=(1.0,), flip=flip)
    assert [len(boxes) for boxes, _ in found] == [0, 1, 0]


def test_the_mirror_is_at_the_images_own_border():
    batch = squares((14, 4, 18, 8), sizes=[(24, 20)])  # of 32 columns
    detector = Detector(None, None, find_at_the_left)
    assert not np.any(find_at_the_left(0.5, batch).valid)
    ((boxes, _),) = found_by(detector, batch, scales=(1.0,), flip=True)
    np.testing.assert_array_equal(boxes, [[14, 4, 18, 8]])


def test_a_white_image_is_white_in_every_size_up_to_its_border():
    batch = squares((0, 0, 23, 17), sizes=[(17, 23)])
    for scale in (0.3, 0.77, 1.3):
        ((boxes, _),) = found_by(toy(), batch, scales=(scale,))
        looked_at = np.round(np.array([23, 17]) * scale)
        expected = [0, 0, *np.minimum(looked_at / scale, [23, 17])]
        np.testing.assert_allclose(boxes, [expected], rtol=1e-6)


def test_views_have_the_sizes_they_claim():
    batches = []

    def note(variables, batch):
        jax.debug.callback(batches.append, batch, ordered=True)
        return find_white(variables, batch)

    batch = squares((0, 0, 9, 9), (4, 4, 8, 8), sizes=[(24, 32), (9, 10)])
    config = ImagePyramidConfig(scales=(0.5, 1.0), flip=True)
    pyramid = image_pyramid(Detector(None, None, note), config)
    jax.jit(pyramid.predict)(0.5, batch)
    jax.effects_barrier()
    half, whole = batches
    assert half.images.shape == (4, 12, 16, 3) and whole.images.shape == (4, 24, 32, 3)
    assert half.images.dtype == whole.images.dtype == np.uint8
    np.testing.assert_array_equal(half.sizes, [[12, 16], [4, 5]] * 2)
    np.testing.assert_array_equal(half.scales, np.full((4, 2), 0.5))
    np.testing.assert_array_equal(whole.images[:2], batch.images)
    np.testing.assert_array_equal(whole.image_ids, [0, 1, 0, 1])
    assert not np.any(half.images[1, 4:]) and not np.any(half.images[1, :, 5:])


def test_the_better_of_two_views_stays_or_both_vote():
    # In its mirror image the same square is seen two pixels further to the left.
    def shaky(variables, batch):
        found = find_white(variables, batch)
        second = jnp.arange(len(batch.images)) >= len(batch.images) // 2
        move = jnp.where(second, 2.0, 0.0)[:, None, None]
        scores = jnp.where(second, 0.75, 0.25)[:, None]
        return found.replace(boxes=found.boxes + move, scores=scores)

    detector, batch = Detector(None, None, shaky), squares((8, 4, 16, 12))
    options = {"scales": (1.0,), "flip": True, "nms_threshold": 0.3}
    ((boxes, scores),) = found_by(detector, batch, **options)
    np.testing.assert_array_equal(boxes, [[6, 6, 14, 14]])
    np.testing.assert_array_equal(scores, [0.75])
    # Overlap: 6 * 6 of 64 + 64 - 36; three parts of one box, one of the other.
    ((voted, scores),) = found_by(detector, batch, **options, voting_iou=0.3)
    np.testing.assert_allclose(voted, [[6.5, 5.5, 14.5, 13.5]])
    np.testing.assert_array_equal(scores, [0.75])
    options["scales"] = (1.0, 1.0)  # and each a second time
    ((fused, scores),) = found_by(detector, batch, **options, fusion_iou=0.3)
    np.testing.assert_allclose(fused, [[6.5, 5.5, 14.5, 13.5]])
    np.testing.assert_allclose(scores, [0.5])
    assert 0 < found_by(detector, batch, **options, fusion_iou=0.5)[0][1][0] < 0.5


def test_as_many_slots_as_one_view_has():
    pyramid = image_pyramid(toy(), ImagePyramidConfig(scales=(0.5, 1.0), flip=True))
    found = jax.eval_shape(pyramid.predict, 0.5, squares((4, 4, 12, 12)))
    assert found.boxes.shape == (1, 1, 4)


def test_regions_follow_their_image():
    regions = Regions(
        boxes=np.array([[[2, 4, 10, 8], [0, 0, 0, 0]]], np.float32),
        scores=np.array([[0.25, 0]], np.float32),
        valid=np.array([[True, False]]),
    )
    batch = squares((20, 12, 28, 20), regions=regions)
    ((boxes, scores),) = found_by(toy(), batch, scales=(0.5, 2.0), flip=True)
    np.testing.assert_array_equal(boxes[1], [2, 4, 10, 8])
    np.testing.assert_array_equal(scores, [0.5, 0.25])


def test_masks_are_mirrored_with_their_boxes():
    batch = squares((4, 4, 8, 8), (24, 4, 28, 8))
    pyramid = image_pyramid(Detector(None, None, find_at_the_left), TWICE)
    found = jax.jit(pyramid.predict)(0.5, batch)
    np.testing.assert_array_equal(found.boxes[:, 0], [[4, 4, 8, 8], [24, 4, 28, 8]])
    np.testing.assert_array_equal(found.masks[0, 0], LOWER_HALF)
    np.testing.assert_array_equal(found.masks[1, 0], LOWER_HALF[:, ::-1])
    assert not np.any(found.masks[:, 1:])


def test_a_scale_that_the_detector_does_not_take():
    def predict(variables, batch):
        if batch.images.shape[1] > 24:
            raise ConfigError("strides is 8")
        return find_at_the_left(variables, batch)

    pyramid = image_pyramid(Detector(None, None, predict), ImagePyramidConfig())
    with pytest.raises(ConfigError, match=r"scales is .* of 2 times .*: strides is 8"):
        jax.eval_shape(pyramid.predict, 0.5, squares((4, 4, 12, 12)))


@pytest.mark.parametrize("name", ["voting_iou", "fusion_iou"])
def test_masks_refuse_averaged_boxes(name):
    config = ImagePyramidConfig(**{name: 0.5})
    pyramid = image_pyramid(Detector(None, None, find_at_the_left), config)
    with pytest.raises(ConfigError, match=rf"{name} is 0\.5.*masks.*None"):
        jax.eval_shape(pyramid.predict, 0.5, squares((4, 4, 12, 12)))


def receptive_boxes(**fields):
    """What the loss is given at each scale: its batch; and the mean of all losses."""
    views = []

    def loss(variables, batch, key, axis_name=None):
        views.append(batch)
        count = jnp.sum(batch.truth.valid, dtype=jnp.float32)
        return count, {"canvas": jnp.float32(batch.images.shape[1])}

    detector = at_all_scales(Detector(None, loss, None), AllScalesConfig(**fields))
    truth = GroundTruth(
        boxes=np.array([[[0, 0, 4, 4], [8, 8, 16, 16], [0, 0, 0, 0]]], np.float32),
        labels=np.zeros((1, 3), np.int32),
        valid=np.array([[True, True, False]]),
        crowd=np.zeros((1, 3), bool),
    )
    batch = squares((0, 0, 4, 4)).replace(truth=truth)
    return views, detector.loss(None, batch, jax.random.key(0))


def test_every_scale_is_learned_and_objects_follow():
    views, (count, metrics) = receptive_boxes(scales=(0.5, 1.0, 2.0))
    assert [view.images.shape[1] for view in views] == [12, 24, 48]
    for view, scale in zip(views, (0.5, 1, 2), strict=True):
        boxes = np.array([[0, 0, 4, 4], [8, 8, 16, 16], [0, 0, 0, 0]]) * scale
        np.testing.assert_array_equal(view.truth.boxes[0], boxes)
    assert count == 2 and metrics["canvas"] == 28


def test_only_objects_of_the_right_size_are_targets():
    # Squares of 4 and 8 pixels: at scale 2 the first fits the range, at 1 the second.
    views, (count, _) = receptive_boxes(scales=(0.5, 1.0, 2.0), object_sizes=(6.0, 8.0))
    expected = [[False, False, False], [False, True, False], [True, False, False]]
    np.testing.assert_array_equal([view.truth.valid[0] for view in views], expected)
    np.testing.assert_allclose(count, 2 / 3, rtol=1e-6)


def test_the_recipe_makes_the_same_detector_again():
    fitted = AllScalesConfig(scales=(1.0, 2.0), object_sizes=(4.0, 90.0))
    detector = image_pyramid(at_all_scales(tiny_retinanet(), fitted), TWICE)
    again = deserialize(detector.recipe)
    assert again.recipe == detector.recipe and again.num_classes == 3
    assert again.predict.keywords["config"] == TWICE
    inner = again.predict.keywords["detector"]
    assert inner.recipe == at_all_scales(tiny_retinanet(), fitted).recipe
    assert image_pyramid(toy(), TWICE).recipe is None


@pytest.mark.parametrize("low", [5.0, 6.0])
def test_object_sizes_must_rise(low):
    with pytest.raises(ValueError, match=r"object_sizes is .* least < greatest"):
        AllScalesConfig(object_sizes=(low, 5.0))


def test_boxes_are_averaged_in_one_way():
    with pytest.raises(ConfigError, match=r"fusion_iou is 0\.5"):
        ImagePyramidConfig(voting_iou=0.5, fusion_iou=0.5)
