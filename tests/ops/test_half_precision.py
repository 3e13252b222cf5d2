"""Boxes in half precision: what is computed from them is computed in float32."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops import (
    box_coding,
    boxes,
    images,
    losses,
    masks,
    matching,
    nms,
    receptive_field,
    roi_align,
    roi_pool,
)

# Whole pixels that float16 holds; their areas overflow it.
BOXES = np.array(
    [[0, 0, 1000, 992], [8, 0, 1000, 992], [200, 240, 520, 480], [500, 0, 760, 300]]
)
OTHERS = np.add(BOXES[::-1], [4, 0, 16, 0])
POINTS = np.array([[496.0, 480], [640, 120], [352, 352], [880, 880]])
SCORES = np.array([0.5, 0.75, 0.25, 0.125])
LABELS, VALID = jnp.zeros(4, jnp.int32), jnp.ones(4, bool)
FEATURES = jax.random.uniform(jax.random.key(0), (64, 64, 3))
MASKS = FEATURES[:4, :14].repeat(5, 2)[..., :14]
FIELD = receptive_field.Field(99, 16, 7.5)
KEEP = jnp.array([1, 3])
NMS = {"iou_threshold": 0.5}

OPS = {
    "area": lambda a, *_: boxes.area(a),
    "nonempty": lambda a, *_: boxes.nonempty(a, 260.5),
    "iou": lambda a, b, *_: boxes.pairwise_iou(a, b),
    "giou": lambda a, b, *_: boxes.pairwise_giou(a, b),
    "clip": lambda a, *_: boxes.clip(a, (701, 903)),
    "centers": lambda a, *_: boxes.xyxy_to_cxcywh(a),
    "corners": lambda a, *_: boxes.cxcywh_to_xyxy(a),
    "encode": lambda a, b, *_: box_coding.encode(a, b),
    "decode": lambda a, b, *_: box_coding.decode(a / 512, b),
    "ltrb": lambda a, _, points, __: box_coding.encode_ltrb(a, points),
    "from ltrb": lambda a, _, points, __: box_coding.decode_ltrb(a, points),
    "nms": lambda a, *_: nms.nms(a, SCORES, max_output_size=4, **NMS),
    "detections": lambda a, _, __, scores: nms.select_detections(
        a, scores, LABELS, max_detections=4, valid=VALID, **NMS
    ),
    "voting": lambda a, _, __, scores: nms.box_voting(
        a, scores, LABELS, keep=KEEP, valid=VALID, **NMS
    ),
    "match boxes": lambda a, b, *_: matching.match_by_iou(
        a, b, VALID, negative_iou=0.3, positive_iou=0.7
    ),
    "match points": lambda a, _, points, __: matching.match_points(
        points, a, VALID, regression_ranges=jnp.array([[0, 1e8]] * 4)
    ),
    "focal loss": lambda a, *_: losses.focal_loss(a / 64, a > 9, alpha=0.3, gamma=2),
    "giou loss": lambda a, b, *_: losses.giou_loss(a, b),
    "iou loss": lambda a, b, *_: losses.iou_loss(a, b),
    "centerness": lambda a, *_: losses.centerness(jnp.maximum(a, 8)),
    "crop masks": lambda a, b, *_: masks.crop_and_resize_masks(MASKS, a, b, LABELS),
    "paste masks": lambda a, *_: masks.paste_masks(MASKS, a, canvas=(64, 1000)),
    "warp": lambda a, *_: images.crop_and_warp(FEATURES, a / 16, output_size=5),
    "align": lambda a, *_: roi_align.roi_align(FEATURES, a, stride=15.9),
    "align on levels": lambda a, *_: roi_align.pyramid_roi_align(
        {3: FEATURES, 4: FEATURES}, a
    ),
    "max pool": lambda a, *_: roi_pool.roi_max_pool(FEATURES, a, stride=15.9),
    "project": lambda a, *_: receptive_field.project(a, FIELD),
    "unproject": lambda a, *_: receptive_field.unproject(a, FIELD),
}


@pytest.mark.parametrize("name", OPS)
def test_what_is_computed_from_halves_is_as_exact_as_from_float32(name):
    given = [jnp.asarray(x, jnp.float16) for x in (BOXES, OTHERS, POINTS, SCORES)]
    same = [x.astype(jnp.float32) for x in given]
    op = jax.jit(OPS[name])
    actual, expected = op(*given), op(*same)
    chex.assert_trees_all_equal_dtypes(actual, expected)
    chex.assert_trees_all_equal(actual, expected)
    chex.assert_tree_all_finite(jax.tree.leaves(actual))


@pytest.mark.parametrize("half", [jnp.float16, jnp.bfloat16])
def test_large_boxes_suppress_each_other(half):
    large = jnp.array([[0, 0, 992, 992], [0, 0, 1000, 992], [0, 0, 8, 8]], half)
    keep, valid = nms.nms(
        large, jnp.array([0.5, 0.9, 0.1], half), iou_threshold=0.5, max_output_size=3
    )
    np.testing.assert_array_equal(keep[valid], [1, 2])
