"""Images are put on canvases, and detections moved back into the images."""

import sys

import numpy as np
import pytest

from jaxdet.data.dataset import DataError, Proposals
from jaxdet.inference import preprocess
from tests.optional import need

SPEC = preprocess.ResizeSpec(canvases=((64, 64), (32, 96)))


def test_a_wide_image_by_hand():
    """100x200 fits the wide canvas at 0.32: 32x64, black to its right."""
    arrays = preprocess.preprocess(np.full((100, 200, 3), 7, np.uint8), SPEC)
    assert arrays["images"].shape == (1, 32, 96, 3)
    assert arrays["images"].dtype == np.uint8
    assert (arrays["images"][0, :, :64] == 7).all()
    assert not arrays["images"][0, :, 64:].any()
    np.testing.assert_array_equal(arrays["sizes"], [[32, 64]])
    np.testing.assert_allclose(arrays["scales"], [[0.32, 0.32]])
    assert "regions" not in arrays


def test_an_image_that_fills_its_canvas_with_float_pixels():
    spec = preprocess.ResizeSpec(((64, 64),), keep_aspect=False, float_pixels=True)
    arrays = preprocess.preprocess(np.full((32, 128, 3), 7, np.uint8), spec)
    assert arrays["images"].dtype == np.float32 and (arrays["images"] == 7).all()
    np.testing.assert_array_equal(arrays["sizes"], [[64, 64]])
    np.testing.assert_array_equal(arrays["scales"], [[2.0, 0.5]])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_proposals_move_with_the_image_and_are_padded(count):
    boxes = np.array([[10, 20, 30, 40], [0, 0, 8, 8], [4, 4, 6, 6]], np.float32)
    scores = np.array([0.9, 0.8, 0.7], np.float32)

    def propose(image):
        assert image.shape == (128, 128, 3)
        return Proposals(boxes[:count], scores[:count])

    spec = SPEC._replace(max_regions=2)
    image = np.zeros((128, 128, 3), np.uint8)
    regions = preprocess.preprocess(image, spec, propose)["regions"]
    kept = min(count, 2)
    np.testing.assert_array_equal(regions["valid"], [np.arange(2) < kept])
    np.testing.assert_array_equal(regions["boxes"][0, :kept], boxes[:kept] / 2)
    np.testing.assert_array_equal(regions["scores"][0, :kept], scores[:kept])
    assert not regions["boxes"][0, kept:].any()
    assert not regions["scores"][0, kept:].any()
    if count == 0:
        without = preprocess.preprocess(image, spec)["regions"]
        np.testing.assert_array_equal(without["valid"], regions["valid"])


def test_canvases_that_are_too_small():
    spec = preprocess.ResizeSpec(((64, 64),), min_max_size=(60, 100))
    with pytest.raises(DataError, match=r"canvases is .* resized to 60x90"):
        preprocess.preprocess(np.zeros((20, 30, 3), np.uint8), spec)


def test_detections_by_hand():
    """Half of the scale each way; what is padding, unsure or outside is cut off."""
    boxes = [[2, 4, 6, 8], [-2, 0, 60, 30], [1, 1, 2, 2], [0, 0, 0, 0]]
    detections = (
        np.array(boxes, np.float32),
        np.array([0.9, 0.5, 0.2, 0.0], np.float32),
        np.array([1, 0, 1, 0]),
        np.array([True, True, True, False]),
        None,
    )
    found = preprocess.postprocess(
        detections,
        (50, 100),
        np.array([0.5, 0.25], np.float32),
        class_names=("cat", "dog"),
        min_score=0.5,
    )
    np.testing.assert_array_equal(found.boxes, [[8, 8, 24, 16], [0, 0, 100, 50]])
    assert found.boxes.dtype == np.float32
    np.testing.assert_array_equal(found.scores, np.array([0.9, 0.5], np.float32))
    assert found.names == ("dog", "cat") and found.masks is None


@pytest.mark.parametrize("count", [0, 2])
def test_masks_are_of_the_whole_image(count):
    boxes = np.array([[0, 0, 8, 8], [8, 0, 16, 8]], np.float32)[:count]
    cells = np.ones((count, 28, 28), np.float32)
    found = preprocess.ImageDetections(
        boxes, np.ones(count), np.zeros(count, int), ("cat",) * count, cells
    )
    found = preprocess.paste_masks(found, (10, 20))
    assert found.masks.shape == (count, 10, 20) and found.masks.dtype == bool
    for mask, left in zip(found.masks, (0, 8), strict=False):
        assert mask[:8, left : left + 8].all()
        mask[:9, max(left - 1, 0) : left + 9] = False  # pasting blurs edges by a cell
        assert not mask.any()


@pytest.mark.optional
@pytest.mark.parametrize("count", [0, 2])
def test_detections_of_supervision_are_the_same(count):
    need("supervision", "supervision")
    boxes = np.array([[0, 0, 10, 20], [30, 40, 50, 60]], np.float32)[:count]
    scores, labels = np.array([0.9, 0.8], np.float32)[:count], np.array([1, 0])[:count]
    masks = np.zeros((count, 70, 80), bool)
    found = preprocess.ImageDetections(
        boxes, scores, labels.astype(np.int32), ("dog", "cat")[:count], masks
    )
    converted = found.to_supervision()
    np.testing.assert_array_equal(converted.xyxy, boxes)
    np.testing.assert_array_equal(converted.confidence, scores)
    np.testing.assert_array_equal(converted.class_id, labels)
    assert list(converted.data["class_name"]) == list(found.names)
    assert converted.mask.shape == masks.shape
    without = found._replace(masks=None).to_supervision()
    assert without.mask is None


@pytest.mark.optional
def test_objects_that_stay_are_tracked():
    need("trackers", "supervision; pip install --no-deps trackers")
    import trackers

    boxes = np.array([[0, 0, 10, 20], [30, 40, 50, 60]], np.float32)
    scores, labels = np.array([0.9, 0.8], np.float32), np.array([1, 0], np.int32)
    found = preprocess.ImageDetections(boxes, scores, labels, ("dog", "cat"))
    tracker = trackers.ByteTrackTracker()
    numbers = [tracker.update(found.to_supervision()).tracker_id for _ in range(3)]
    assert set(numbers[2]) == {0, 1}  # known from the second frame on
    np.testing.assert_array_equal(numbers[1], numbers[2])


def test_supervision_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    empty = preprocess.ImageDetections(np.zeros((0, 4)), np.zeros(0), np.zeros(0), ())
    with pytest.raises(ImportError, match="pip install supervision"):
        empty.to_supervision()
