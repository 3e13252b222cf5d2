import re

import numpy as np
import pytest
import tensorflow_datasets

from jaxdet.data.dataset import DataError
from jaxdet.data.formats.tfds_features import find_layout, read_id, read_objects

FEATURES = tensorflow_datasets.features
SIZE = (8, 16)  # height and width of the image
TWO_LABELS = {
    "bbox": FEATURES.BBoxFeature(),
    "mood": FEATURES.ClassLabel(num_classes=3),
    "pose": FEATURES.ClassLabel(num_classes=2),
}
THING = {"bbox": FEATURES.BBoxFeature(), "label": FEATURES.ClassLabel(num_classes=3)}


def layout_of(thing, **others):
    things = FEATURES.Sequence(thing)
    features = {"image": FEATURES.Image(), "faces": things, **others}
    return find_layout(FEATURES.FeaturesDict(features), "tiny_set/1.0.0")


def read(raw, thing=THING, bad_boxes="error"):
    return read_objects(raw, layout_of(thing), SIZE, "image 7", bad_boxes)


@pytest.mark.parametrize(
    ("box_format", "box"),
    [
        ("REL_YXYX", (0.25, 0.5, 0.5, 1.0)),
        ("REL_XYXY", (0.5, 0.25, 1.0, 0.5)),
        ("YXYX", (2.0, 8.0, 4.0, 16.0)),
        ("XYXY", (8.0, 2.0, 16.0, 4.0)),
        ("XYWH", (8.0, 2.0, 8.0, 2.0)),
        (None, (0.25, 0.5, 0.5, 1.0)),
    ],
)
def test_boxes_in_all_formats(box_format, box):
    thing = {"bbox": FEATURES.BBoxFeature(bbox_format=box_format)}
    objects, areas, kept = read({"bbox": [box]}, thing)
    np.testing.assert_array_equal(objects.boxes, [[8, 2, 16, 4]])
    assert areas.tolist() == [16] and kept.tolist() == [True]
    assert layout_of(thing).class_names == ("face",)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"bbox": FEATURES.BBoxFeature()}, "no image feature among bbox"),
        ({"image": FEATURES.Image()}, "no detection data set.* among image"),
        (
            {"image": FEATURES.Image(), "faces": FEATURES.Sequence(TWO_LABELS)},
            "faces has the classes of mood, pose; allowed: .* label or type",
        ),
    ],
)
def test_sets_that_are_no_detection_data(features, message):
    with pytest.raises(DataError, match=f"tiny_set/1.0.0: {message}"):
        find_layout(FEATURES.FeaturesDict(features), "tiny_set/1.0.0")


@pytest.mark.parametrize(
    ("dtype", "shape", "side"),
    [
        (np.uint8, (2, 2), 2),
        (np.uint8, (2, 3), None),
        (np.uint8, (4,), None),
        (np.float32, (2, 2), None),
    ],
)
def test_masks_are_square_bytes(dtype, shape, side):
    mask = FEATURES.Tensor(shape=shape, dtype=dtype)
    assert layout_of({**THING, "mask": mask}).mask_side == side


def test_overhang_is_clipped_and_what_has_no_area_left_out():
    boxes = [
        (-0.22, -0.11, 0.5, 0.5),  # 1.76 pixels above and left of the image
        (0.5, 0.5, 1.22, 1.11),
        (0.5, 0.25, 0.5, 0.75),  # no height
        (0.5, 0.75, 0.75, 0.25),  # the wrong way round
        (0.5, 1.0, 0.75, 1.1),  # nothing of it within the image
    ]
    objects, areas, kept = read({"bbox": boxes, "label": [0, 1, 2, 2, 2]})
    np.testing.assert_array_equal(objects.boxes, [[0, 0, 8, 4], [8, 4, 16, 8]])
    assert objects.labels.tolist() == [0, 1] and areas.tolist() == [32, 32]
    assert kept.tolist() == [True, True, False, False, False]


@pytest.mark.parametrize(
    "bad",
    [
        (-0.5, 0.0, 0.5, 0.5),  # 4 pixels above the image
        (0.0, -0.25, 0.5, 0.5),
        (0.0, 0.0, 1.5, 0.5),
        (0.0, 0.0, 0.5, 1.25),
        (0.0, 0.0, 15.0, 30.0),  # pixels
        (float("nan"), 0.0, 0.5, 0.5),
        (0.0, float("-inf"), 0.5, 0.5),
    ],
    ids=str,
)
def test_bad_boxes_are_named_or_left_out(bad):
    raw = {"bbox": [(0.0, 0.0, 0.5, 0.5), bad], "label": [0, 1]}
    with pytest.raises(DataError, match=rf"image 7: .*{re.escape(str(list(bad)))}; al"):
        read(raw)
    objects, _, kept = read(raw, bad_boxes="skip")
    assert objects.labels.tolist() == [0] and kept.tolist() == [True, False]


def test_bad_labels_areas_and_ids_are_named():
    raw = {"bbox": [(0.0, 0.0, 1.0, 1.0)], "label": [-1]}
    with pytest.raises(DataError, match=r"image 7: labels are \[-1\]; allowed: 0 to 2"):
        read(raw)
    thing = {**THING, "area": np.float32}
    for area in (float("nan"), float("inf"), -1.0):
        message = rf"image 7: areas are \[{area}\]; allowed"
        with pytest.raises(DataError, match=message):
            read({**raw, "label": [1], "area": [area]}, thing)
    with pytest.raises(DataError, match=r"here: image/id is b'a\\xff'; allowed"):
        read_id(b"a\xff", "here")
