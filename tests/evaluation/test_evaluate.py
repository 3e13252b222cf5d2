import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as run_lengths

from jaxdet.data.dataset import DataError
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.detector import Detector
from jaxdet.evaluation import coco, evaluate
from jaxdet.structs import Detections
from tests.data.in_memory import in_memory_data_set

CONFIG = InputConfig(canvases=((24, 48), (48, 24)), max_objects=4, workers=2)
SIZES = [(20, 30), (31, 17), (9, 40), (50, 90), (24, 48), (40, 20), (13, 29)]
OBJECTS = [
    [(1, 2, 11, 12, 0), (15, 3, 30, 20, 2)],
    [(0, 0, 17, 31, 1)],
    [],
    [(10, 10, 80, 45, 2), (0, 0, 9, 9, 2), (20, 30, 40, 50, 0)],
    [(3, 4, 30, 20, 1)],
    [(2, 2, 18, 9, 0), (2, 12, 18, 19, 0), (2, 22, 18, 39, 1)],
    [(5, 5, 6, 6, 2)],
]


@pytest.fixture(scope="module")
def data_set():
    rng = np.random.default_rng(0)
    return in_memory_data_set(
        [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES],
        OBJECTS,
        image_ids=[139, 7, 40_000, 5, 12, 1_000_000_007, 64],
        class_names=("cup", "fork", "spoon"),
        category_ids=(90, 3, 17),
    )


def detector(predict, num_classes=3):
    """A detector without variables that returns `predict(batch)`."""
    return Detector(None, None, lambda variables, batch: predict(batch), num_classes)


def the_truth(batch):
    """All that is annotated; on padding images, a box that must never come out."""
    truth = batch.truth
    padding = batch.image_ids < 0
    first = jnp.arange(truth.valid.shape[1]) == 0
    return Detections(
        boxes=jnp.where(padding[:, None, None], 9.0, truth.boxes),
        scores=jnp.full(truth.valid.shape, 0.75),
        labels=truth.labels,
        valid=truth.valid | (padding[:, None] & first[None]),
    )


def detect_all(predict, data_set, batch_size=4):
    return evaluate.detect_all(
        detector(predict), {}, data_set, CONFIG, batch_size=batch_size, progress=False
    )


def test_rescale_to_original_by_hand():
    boxes = np.array([[[2.0, 4.0, 6.0, 8.0]], [[2.0, 4.0, 6.0, 8.0]]])
    scales = np.array([[2.0, 0.5], [1.0, 1.0]])  # (height, width)
    expected = [[[4.0, 2.0, 12.0, 4.0]], [[2.0, 4.0, 6.0, 8.0]]]
    np.testing.assert_array_equal(evaluate.rescale_to_original(boxes, scales), expected)


def by_image(results):
    grouped = {}
    for result in results:
        row = (result["category_id"], *np.round(result["bbox"], 3).tolist())
        grouped.setdefault(result["image_id"], []).append(row)
    return grouped


@pytest.mark.parametrize("batch_size", [1, 5, 32])  # rounded up to 4, 8, 32
def test_the_truth_comes_back_in_original_pixels(data_set, batch_size):
    assert jax.local_device_count() == 4
    results = detect_all(the_truth, data_set, batch_size)
    expected = {
        image_id: [
            (data_set.category_ids[label], x1, y1, x2 - x1, y2 - y1)
            for x1, y1, x2, y2, label in rows
        ]
        for image_id, rows in zip(data_set.image_ids, OBJECTS, strict=True)
        if rows
    }
    actual = by_image(results)
    assert actual.keys() == expected.keys()
    for image_id, rows in expected.items():
        np.testing.assert_allclose(actual[image_id], rows, atol=2e-3)
    json.dumps(results)  # plain numbers, not NumPy's


def no_detections(batch):
    return the_truth(batch).replace(valid=jnp.zeros_like(batch.truth.valid))


def wrong_labels(batch):
    return the_truth(batch).replace(labels=(batch.truth.labels + 1) % 3)


@pytest.mark.parametrize(
    ("predict", "num_classes", "expected"),
    [
        (the_truth, 3, {"AP": 1, "AR100": 1, "AP/spoon": 1}),
        (wrong_labels, 3, {"AP": 0}),
        (no_detections, 3, {"AP": 0, "AP/cup": 0}),
        (the_truth, None, {"AR100": 1}),  # the recall of proposals
    ],
)
def test_metrics_of_the_data_set(data_set, predict, num_classes, expected):
    metrics = evaluate.evaluate(
        detector(predict, num_classes), {}, data_set, CONFIG, batch_size=4
    )
    assert next(iter(metrics)) == next(iter(expected))
    assert {name: metrics[name] for name in expected} == pytest.approx(
        expected, abs=0.05 if predict is wrong_labels else 1e-6
    )


def test_metrics_of_ones_own(data_set):
    counted = evaluate.evaluate(
        detector(the_truth),
        {},
        data_set,
        CONFIG,
        progress=False,
        metrics=lambda truth, results: {"both": len(truth["images"] + results)},
    )
    assert counted == {"both": len(SIZES) + sum(map(len, OBJECTS))}


def test_boxes_are_clipped_to_the_original_image(data_set):
    def too_large(batch):
        everywhere = jnp.array([[[-5.0, -7.0, 99.0, 99.0]]])
        boxes = jnp.broadcast_to(everywhere, batch.truth.boxes.shape)
        return the_truth(batch).replace(boxes=boxes)

    results = detect_all(too_large, data_set)
    sizes = dict(zip(data_set.image_ids, SIZES, strict=True))
    assert len(results) == sum(map(len, OBJECTS))
    for result in results:
        height, width = sizes[result["image_id"]]
        assert result["bbox"] == [0, 0, width, height]


def test_variables_reach_the_detector_and_each_canvas_compiles_once(data_set):
    traces = []

    def predict(variables, batch):
        traces.append(batch.images.shape)
        found = the_truth(batch)
        return found.replace(scores=found.scores * variables["params"]["weight"])

    weighted = Detector(None, None, predict)
    variables = {"params": {"weight": np.float32(0.5)}}
    for _ in range(2):  # training evaluates again and again
        results = evaluate.detect_all(
            weighted, variables, data_set, CONFIG, batch_size=4, progress=False
        )
        assert {result["score"] for result in results} == {0.375}
    assert sorted(traces) == [(1, 24, 48, 3), (1, 48, 24, 3)]


def check_filled(mask, x1, y1, x2, y2):
    """Pasting, as torchvision does it, rounds boxes: by a pixel all around."""
    assert mask[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].all() and mask.any()
    around = slice(max(y1 - 1, 0), y2 + 1), slice(max(x1 - 1, 0), x2 + 1)
    assert mask.sum() == mask[around].sum()


def test_masks_become_run_lengths_of_the_original_image(data_set):
    def with_masks(batch):
        found = the_truth(batch)
        return found.replace(masks=jnp.ones((*found.valid.shape, 28, 28)))

    results = detect_all(with_masks, data_set)
    sizes = dict(zip(data_set.image_ids, SIZES, strict=True))
    json.dumps(results)
    for result in results:
        mask = run_lengths.decode(result["segmentation"])
        assert mask.shape == sizes[result["image_id"]]
        x, y, width, height = np.round(result["bbox"]).astype(int)
        check_filled(mask, x, y, x + width, y + height)


def test_each_mask_is_pasted_in_its_box():
    boxes = np.array([[2.0, 1, 22, 11], [30, 5, 40, 35]])
    whole = evaluate.paste_masks(np.ones((2, 14, 14), np.float32), boxes, (40, 50))
    assert whole.shape == (2, 40, 50) and whole.dtype == bool
    for mask, (x1, y1, x2, y2) in zip(whole, boxes.astype(int), strict=True):
        check_filled(mask, x1, y1, x2, y2)
    none = evaluate.paste_masks(np.ones((0, 14, 14)), boxes[:0], (4, 5))
    assert none.shape == (0, 4, 5)


def test_the_names_of_labels(data_set):
    names = data_set.class_names
    assert evaluate.label_names(detector(the_truth, None), names) == ("object",)
    assert evaluate.label_names(detector(the_truth), names) == names


def test_an_image_that_cannot_be_read_is_named():
    data_set = in_memory_data_set([(20, 30)], image_ids=["gone"])
    with pytest.raises(DataError, match="'gone' cannot be read"):
        detect_all(the_truth, data_set)


def with_segmentations(data_set, segmentation):
    """The data set with one segmentation for all objects, and images without sizes."""

    def ground_truth():
        truth = data_set.ground_truth()
        for annotation in truth["annotations"]:
            annotation["segmentation"] = segmentation
        return truth | {"images": [{"id": one["id"]} for one in truth["images"]]}

    return dataclasses.replace(data_set, ground_truth=ground_truth)


def test_a_detector_of_boxes_has_no_numbers_of_masks(data_set):
    masked = with_segmentations(data_set, [[1, 1, 9, 1, 9, 9]])
    for predict, expected in ((no_detections, 0), (the_truth, 1)):
        metrics = evaluate.evaluate(detector(predict), {}, masked, CONFIG)
        assert metrics["AP"] == pytest.approx(expected) and "mask/AP" not in metrics


def test_broken_segmentations_are_refused_before_detection_starts(data_set):
    def never(batch):
        raise AssertionError("an image was read")

    broken = with_segmentations(data_set, [[1, 1, 9, 9]])
    masked = detector(never)._replace(has_masks=True)
    with pytest.raises(DataError, match=r"has the segmentation .* 3 or more points"):
        evaluate.evaluate(masked, {}, broken, CONFIG)
    truth = evaluate.load_ground_truth(masked, broken, bad_masks="skip")
    assert truth["annotations"] == []


def test_masks_are_compared_at_the_sizes_of_the_data_set(data_set):
    def with_masks(batch):
        found = the_truth(batch)
        return found.replace(masks=jnp.ones((*found.valid.shape, 28, 28)))

    masked = with_segmentations(data_set, [[1, 1, 9, 1, 9, 9]])
    found = evaluate.evaluate(
        detector(with_masks)._replace(has_masks=True), {}, masked, CONFIG
    )
    assert 0 <= found["mask/AP"] < 1


def test_a_detector_with_too_few_slots_is_named_once(data_set, caplog, monkeypatch):
    monkeypatch.setattr(coco, "_warned", set())

    def one_slot(batch):
        return jax.tree.map(lambda values: values[:, :1], the_truth(batch))

    for _ in range(2):
        detect_all(one_slot, data_set)
    (message,) = caplog.messages
    assert "an image of 3 objects" in message and "at most 1 detections" in message
