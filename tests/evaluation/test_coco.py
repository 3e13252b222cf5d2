import copy
import json
import logging
import math
import sys

import numpy as np
import pytest
from pycocotools import mask as run_lengths

from jaxdet.data.dataset import DataError
from jaxdet.data.masks import encode_rle
from jaxdet.evaluation import coco
from tests.evaluation.scenes import random_scene
from tests.optional import need


def truth(*objects, categories=("cat", "dog")):
    """Ground truth of (image, label, x, y, width, height); ids: 10 + label, from 0."""
    return {
        "images": [{"id": image, "height": 500, "width": 500} for image in range(3)],
        "categories": [{"id": 10 + k, "name": v} for k, v in enumerate(categories)],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": 10 + label,
                "bbox": [x, y, width, height],
                "area": width * height,
                "iscrowd": 0,
            }
            for number, (image, label, x, y, width, height) in enumerate(objects)
        ],
    }


def detection(image, label, score, *box):
    return {
        "image_id": image,
        "category_id": 10 + label,
        "score": score,
        "bbox": list(box),
    }


def reference(data_folder, name):
    return json.loads((data_folder / "cocoeval_reference" / name).read_text())


def test_iou_of_62_hundredths_passes_three_of_ten_thresholds():
    metrics = coco.coco_metrics(
        truth((0, 0, 0, 0, 100, 100)), [detection(0, 0, 0.9, 0, 0, 62, 100)]
    )
    assert metrics["AP50"] == pytest.approx(1) and metrics["AP75"] == 0
    assert [metrics["AP"], metrics["AR100"]] == pytest.approx([0.3, 0.3])


@pytest.mark.optional
def test_hotcoco_gives_the_same_numbers():
    need("hotcoco", "hotcoco")
    ground_truth, detections = random_scene(np.random.RandomState(0), crowds=0.1)
    for one in (*ground_truth["annotations"], *detections):
        x, y, width, height = map(int, one["bbox"])
        pixels = np.zeros((500, 500), np.uint8)
        pixels[max(y, 0) : y + height, max(x, 0) : x + width : 2] = 1
        one["segmentation"] = encode_rle(pixels)
    for results in (detections, []):
        for limit in (100, 11):
            expected, actual = (
                coco.box_and_mask_metrics(
                    ground_truth, results, max_detections=limit, backend=backend
                )
                for backend in ("pycocotools", "hotcoco")
            )
            assert "mask/AP" in expected
            assert actual == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_without_hotcoco_it_cannot_be_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    with pytest.raises(DataError, match="pip install hotcoco"):
        coco.coco_metrics(truth(), [], backend="hotcoco")


def test_one_object_found_exactly():
    metrics = coco.coco_metrics(
        truth((0, 1, 10, 10, 50, 50)), [detection(0, 1, 0.3, 10, 10, 50, 50)]
    )
    perfect = {"AP", "AP50", "AP75", "APm", "AR1", "AR10", "AR100", "ARm", "AP/dog"}
    ones = {name for name, value in metrics.items() if value == pytest.approx(1)}
    assert ones == perfect
    no_objects = {"APs", "APl", "ARs", "ARl", "AP/cat"}
    assert {name for name, x in metrics.items() if math.isnan(x)} == no_objects


def test_half_of_the_objects_after_a_false_positive():
    objects = truth((0, 0, 0, 0, 50, 50), (1, 0, 0, 0, 50, 50))
    false, true = detection(2, 0, 0.9, 0, 0, 50, 50), detection(0, 0, 0.8, 0, 0, 50, 50)
    # Recall reaches 1/2 at precision 1/2: 51 of the 101 recalls 0, 0.01, ..., 1.
    metrics = coco.coco_metrics(objects, [false, true])
    assert metrics["AP"] == pytest.approx(0.5 * 51 / 101)
    metrics = coco.coco_metrics(objects, [false | {"score": 0.1}, true])
    assert metrics["AP"] == pytest.approx(51 / 101)


def test_ap_is_the_mean_over_classes_that_exist():
    objects = [(0, 0, 0, 0, 50, 50), (0, 1, 0, 0, 50, 50)]
    metrics = coco.coco_metrics(
        truth(*objects, categories=("cat", "dog", "emu")),
        [detection(0, 0, 0.5, 0, 0, 50, 50), detection(0, 1, 0.5, 200, 200, 50, 50)],
    )
    actual = [metrics[name] for name in ("AP/cat", "AP/dog", "AP/emu", "AP")]
    assert actual == pytest.approx([1, 0, math.nan, 0.5], nan_ok=True)


def test_without_detections_ap_is_zero_and_without_objects_not_a_number():
    metrics = coco.coco_metrics(truth((0, 0, 0, 0, 50, 50)), [])
    assert metrics["AP"] == metrics["APm"] == metrics["AR100"] == metrics["AP/cat"] == 0
    assert math.isnan(metrics["APs"]) and math.isnan(metrics["AP/dog"])
    for detections in ([], [detection(0, 0, 0.5, 0, 0, 5, 5)]):
        assert all(map(math.isnan, coco.coco_metrics(truth(), detections).values()))


def test_a_hundred_detections_of_an_image_and_class_count_unless_more_are_asked_for(
    caplog, monkeypatch
):
    monkeypatch.setattr(coco, "_warned", set())
    boxes = [
        (20 * row, 20 * column, 15, 15) for row in range(20) for column in range(15)
    ]
    ground_truth = truth(*[(0, 0, *box) for box in boxes])
    perfect = [detection(0, 0, 1 - rank / 1000, *box) for rank, box in enumerate(boxes)]
    with caplog.at_level(logging.WARNING, "jaxdet"):
        metrics = coco.coco_metrics(ground_truth, perfect)
        assert coco.coco_metrics(ground_truth, perfect) == metrics
    # Recall ends at 100 / 300: 34 of the recalls 0, 0.01, ..., 1.
    assert metrics["AP"] == pytest.approx(34 / 101)
    assert metrics["AR100"] == metrics["ARs"] == pytest.approx(1 / 3)
    (message,) = caplog.messages
    assert message.startswith("1 images have more than 100 objects of one class (0 has")
    assert "max_detections=300" in message
    metrics = coco.coco_metrics(ground_truth, perfect, max_detections=300)
    assert len(caplog.messages) == 1 and "AR100" not in metrics
    assert metrics["AP"] == metrics["AR300"] == metrics["APs"] == pytest.approx(1)
    assert metrics["AR10"] == pytest.approx(10 / 300)
    with pytest.raises(DataError, match="max_detections is 10; it must be at least 11"):
        coco.coco_metrics(ground_truth, perfect, max_detections=10)


def test_detections_in_a_crowd_are_ignored():
    ground_truth = truth((0, 0, 0, 0, 50, 50), (0, 0, 100, 100, 200, 200))
    ground_truth["annotations"][1]["iscrowd"] = 1
    in_crowd = [detection(0, 0, 0.9, 110 + x, 120, 20, 20) for x in range(5)]
    detections = [*in_crowd, detection(0, 0, 0.5, 0, 0, 50, 50)]
    assert coco.coco_metrics(ground_truth, detections)["AP"] == pytest.approx(1)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_the_numbers_of_the_coco_demo(data_folder, iou_type):
    metrics = coco.coco_metrics(
        reference(data_folder, "instances_val2014_100.json"),
        reference(data_folder, f"instances_val2014_fake{iou_type}100_results.json"),
        iou_type=iou_type,
    )
    expected = reference(data_folder, "expected_pycocotools.json")[f"{iou_type}_all"]
    actual = [metrics[name] for name in coco.NAMES]
    np.testing.assert_allclose(actual, expected, atol=5e-7)


def test_the_numbers_of_the_review_of_metrics(data_folder):
    metrics = coco.coco_metrics(
        reference(data_folder, "review_sampled/sampled_gts_bbox_area.json"),
        reference(data_folder, "review_sampled/cocoapi_results.json"),
    )
    precisions = [0.503647, 0.696973, 0.571667, 0.593252, 0.557991, 0.489363]
    recalls = [0.386813, 0.593680, 0.595353, 0.654764, 0.603130, 0.553744]
    actual = [metrics[name] for name in coco.NAMES]
    assert actual == pytest.approx(precisions + recalls, abs=1e-6)


def ell(height, width):
    """Run lengths of the left and upper borders of a 500 x 500 image's corner."""
    mask = np.zeros((500, 500), np.uint8, order="F")
    mask[0, :width] = mask[:height, 0] = 1
    return run_lengths.encode(mask)


def test_boxes_and_masks_have_numbers_of_their_own():
    ground_truth = truth((0, 0, 0, 0, 100, 100))
    ground_truth["annotations"][0] |= {"area": 199, "segmentation": ell(100, 100)}
    # The right box, but 50 + 99 of the 199 pixels.
    true = detection(0, 0, 0.9, 0, 0, 100, 100) | {"segmentation": ell(50, 100)}
    # Small as a mask, so it counts among the small ones.
    false = detection(1, 0, 0.95, 0, 0, 100, 100) | {"segmentation": ell(100, 100)}
    metrics = coco.box_and_mask_metrics(ground_truth, [true])
    names = [*coco.NAMES, "AP/cat", "AP/dog"]
    assert list(metrics) == names + [f"mask/{name}" for name in names]
    # 149 / 199 = 0.749 passes five of ten thresholds.
    expected = {"AP": 1, "mask/AP50": 1, "mask/AP75": 0, "mask/AP": 0.5}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    metrics = coco.box_and_mask_metrics(ground_truth, [true, false])
    assert metrics["mask/APs"] == metrics["mask/AP"] == pytest.approx(0.25)
    metrics = coco.box_and_mask_metrics(ground_truth, [])
    assert metrics["mask/AP"] == metrics["mask/AP/cat"] == metrics["mask/AR100"] == 0


@pytest.mark.parametrize("segmentation", [[[0, 0, 9, 9]], [0, 0, 9, 0, 9, 9]])
def test_boxes_are_compared_whatever_the_segmentations_are(segmentation):
    ground_truth = truth((0, 0, 0, 0, 9, 9))
    ground_truth["annotations"][0]["segmentation"] = segmentation
    assert coco.box_and_mask_metrics(ground_truth, [])["AP"] == 0
    box = detection(0, 0, 0.9, 0, 0, 9, 9)
    metrics = coco.box_and_mask_metrics(ground_truth, [box])
    assert metrics["AP"] == pytest.approx(1) and "mask/AP" not in metrics


def small_image(segmentation):
    """Ground truth of two objects in 60 x 80 pixels, the first one whole."""
    ground_truth = truth((0, 0, 0, 0, 30, 20), (0, 0, 30, 20, 30, 20))
    ground_truth["images"][0] |= {"height": 60, "width": 80}
    whole = [[0, 0, 30, 0, 30, 20, 0, 20]]
    for annotation, value in zip(
        ground_truth["annotations"], (whole, segmentation), strict=True
    ):
        annotation["segmentation"] = value
    return ground_truth


@pytest.mark.parametrize(
    ("segmentation", "problem"),
    [
        ({"size": [60, 80], "counts": [610, 20]}, "sum up to 60"),
        ({"size": [60, 80], "counts": [4800, 20]}, "sum up to 60"),
        ({"size": [80, 60], "counts": [4800]}, r"that of the image, \[60, 80\]"),
        ({"size": [60, 80], "counts": ""}, "sum up to 60"),
        ([[1, 2, math.nan, 4, 5, 6]], "finite coordinates"),
        ([[10, 10, 20, 20]], "3 or more points"),
        ([1, 2, 3, 4, 5, 6], "3 or more points"),
    ],
)
def test_broken_segmentations_are_named(segmentation, problem, caplog):
    ground_truth = small_image(segmentation)
    result = detection(0, 0, 0.5, 0, 0, 30, 20)
    result["segmentation"] = run_lengths.encode(np.ones((60, 80), np.uint8, order="F"))
    message = f"annotation 1 has the segmentation .*; allowed: .*{problem}"
    with pytest.raises(DataError, match=message):
        coco.box_and_mask_metrics(ground_truth, [result])
    with pytest.raises(DataError, match=message):
        coco.check_segmentations(ground_truth)
    with caplog.at_level(logging.WARNING, "jaxdet"):
        kept = coco.check_segmentations(ground_truth, bad="skip")["annotations"]
    assert [annotation["id"] for annotation in kept] == [0]
    assert caplog.messages == ["dropped 1 objects with bad segmentations"]


def test_strays_beside_a_polygon_are_no_masks():
    square = [30, 20, 60, 20, 60, 40, 30, 40]
    ground_truth = small_image([[5, 5, 5, 6], square, []])
    results = []
    for annotation in ground_truth["annotations"]:
        x, y, width, height = annotation["bbox"]
        pixels = np.zeros((60, 80), np.uint8, order="F")
        pixels[y : y + height, x : x + width] = 1
        result = detection(0, 0, 0.5, *annotation["bbox"])
        results.append(result | {"segmentation": run_lengths.encode(pixels)})
    metrics = coco.coco_metrics(ground_truth, results, iou_type="segm")
    assert metrics["AP"] == pytest.approx(1)
    del ground_truth["images"][0]["width"]
    with pytest.raises(DataError, match="in an image of known height and width"):
        coco.coco_metrics(ground_truth, results, iou_type="segm")


def test_masks_without_a_pixel_are_named(caplog, monkeypatch):
    monkeypatch.setattr(coco, "_warned", set())
    ground_truth = small_image([[30, 20, 30, 20, 30, 20]])
    result = detection(0, 0, 0.5, 0, 0, 30, 20)
    result["segmentation"] = run_lengths.encode(np.ones((60, 80), np.uint8, order="F"))
    coco.coco_metrics(ground_truth, [result], iou_type="segm")
    (message,) = caplog.messages
    assert message.startswith("1 of 2 objects have masks without a pixel")


def test_more_masks_than_a_byte_counts():
    ground_truth = small_image([[30, 20, 60, 20, 60, 40, 30, 40]])
    ground_truth["annotations"] *= 150
    annotations = coco.with_run_lengths(ground_truth)
    assert len(annotations) == 300
    coco.warn_of_empty_masks(annotations)  # no error


def test_without_masks_on_both_sides_only_boxes_are_measured(caplog):
    ground_truth = truth(*[(image, 0, 0, 0, 9, 9) for image in range(3)])
    box = detection(0, 0, 0.9, 0, 0, 9, 9)
    mask = box | {"segmentation": ell(9, 9)}
    expected = coco.coco_metrics(ground_truth, [box]).keys()
    with caplog.at_level(logging.WARNING, "jaxdet"):
        assert coco.box_and_mask_metrics(ground_truth, []).keys() == expected
        ground_truth["annotations"][1]["segmentation"] = ell(9, 9)
        assert coco.box_and_mask_metrics(ground_truth, [box]).keys() == expected
        assert not caplog.messages
        assert coco.box_and_mask_metrics(ground_truth, [mask]).keys() == expected
    (message,) = caplog.messages
    assert message.endswith("2 of 3 annotations have no segmentation")


def test_box_iou_by_hand():
    unit, tall, beside = [0, 0, 1, 1], [0, 0, 1, 2], [1, 0, 1, 1]
    iou = coco.box_iou([unit, tall], [unit, tall, beside])
    np.testing.assert_allclose(iou, [[1, 0.5, 0], [0.5, 1, 0]])
    assert coco.box_iou([], [unit]).shape == (0, 1)
    assert coco.box_iou([unit, tall], []).shape == (2, 0)


def test_nothing_is_printed_and_nothing_of_the_caller_changes(capsys):
    ground_truth = truth((0, 0, 0, 0, 50, 50))
    detections = [detection(0, 0, 0.5, 0, 0, 50, 50)]
    before = copy.deepcopy((ground_truth, detections))
    coco.coco_metrics(ground_truth, detections)
    assert (ground_truth, detections) == before
    assert capsys.readouterr().out == ""


def test_two_categories_of_one_name():
    ground_truth = truth((0, 0, 0, 0, 50, 50), categories=("cat", "cat"))
    with pytest.raises(DataError, match=r"2 categories .* have the name 'cat'"):
        coco.coco_metrics(ground_truth, [])


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_detections_of_unknown_images_or_categories(key):
    unknown = detection(0, 0, 0.5, 0, 0, 50, 50) | {key: 77}
    with pytest.raises(DataError, match=f"{key} 77, which is none of the"):
        coco.coco_metrics(truth((0, 0, 0, 0, 50, 50)), [unknown])


@pytest.mark.parametrize(
    "numbers", [{"score": math.nan}, {"bbox": [0, 0, math.inf, 50]}]
)
def test_numbers_that_are_not_finite(numbers):
    broken = detection(0, 0, 0.5, 0, 0, 50, 50) | numbers
    with pytest.raises(DataError, match=r"in image 0 has score .*; allowed: finite"):
        coco.coco_metrics(truth((0, 0, 0, 0, 50, 50)), [broken])
