import math

import numpy as np
import pytest

from jaxdet.data.dataset import DataError
from jaxdet.evaluation import voc
from tests.evaluation.test_coco import detection, truth


def test_precision_and_recall_by_hand():
    """True, false, true positive; one of three objects is not detected."""
    objects = [(image, 0, 0, 0, 50, 50) for image in range(3)]
    detections = [
        detection(0, 0, 0.9, 0, 0, 50, 50),
        detection(0, 0, 0.8, 200, 200, 50, 50),
        detection(1, 0, 0.7, 0, 0, 50, 50),
    ]
    ground_truth = truth(*objects, categories=("cat",))
    # Precision 1 up to recall 1/3, then 2/3 up to 2/3.
    metrics = voc.voc_metrics(ground_truth, detections)
    assert metrics == {
        "mAP": pytest.approx(1 / 3 + 2 / 9),
        "AP/cat": pytest.approx(1 / 3 + 2 / 9),
    }
    # Recalls 0 to 0.3 see precision 1; 0.4, 0.5 and 0.6 see 2/3; four see nothing.
    metrics = voc.voc_metrics(ground_truth, detections, eleven_points=True)
    assert metrics["mAP"] == pytest.approx((4 + 3 * 2 / 3) / 11)
    # The order in which they come does not matter, their scores do.
    assert voc.voc_metrics(ground_truth, detections[::-1]) == voc.voc_metrics(
        ground_truth, detections
    )


def test_a_second_detection_is_false_even_where_another_object_is_near():
    """It is matched to the object that it overlaps most, though that has another."""
    objects = truth((0, 0, 0, 0, 100, 100), (0, 0, 0, 30, 100, 100))
    first = detection(0, 0, 0.9, 0, 0, 100, 100)
    second = detection(
        0, 0, 0.8, 0, 10, 100, 100
    )  # 90/110 of the one, 80/120 of the other
    metrics = voc.voc_metrics(objects, [first, second])
    assert metrics["AP/cat"] == pytest.approx(0.5)
    elsewhere = detection(0, 0, 0.8, 0, 20, 100, 100)
    assert voc.voc_metrics(objects, [first, elsewhere])["AP/cat"] == pytest.approx(1)


def test_difficult_objects_are_ignored():
    ground_truth = truth((0, 0, 0, 0, 50, 50), (0, 0, 100, 100, 50, 50))
    ground_truth["annotations"][1]["iscrowd"] = 1
    hit = detection(0, 0, 0.5, 0, 0, 50, 50)
    difficult = [detection(0, 0, score, 100, 100, 50, 50) for score in (0.8, 0.9)]
    assert voc.voc_metrics(ground_truth, [hit])["AP/cat"] == pytest.approx(1)
    metrics = voc.voc_metrics(ground_truth, [hit, *difficult])
    assert metrics["AP/cat"] == pytest.approx(1)
    # A crowd is no umbrella: what is small within it overlaps it little.
    inside = detection(0, 0, 0.9, 100, 100, 10, 10)
    assert voc.voc_metrics(ground_truth, [hit, inside])["AP/cat"] == pytest.approx(0.5)
    ground_truth["annotations"][0]["iscrowd"] = 1
    assert math.isnan(voc.voc_metrics(ground_truth, [hit])["AP/cat"])


def test_widths_are_those_of_the_devkit():
    """Pixels 1 to 10 against 6 to 10, inclusive: 5 of 10 in the devkit, so 1/2 here."""
    devkit = (10 - 6 + 1) / (10 - 1 + 1)
    ground_truth = truth((0, 0, 1 - 1, 0, 10 - (1 - 1), 10))
    result = detection(0, 0, 0.9, 6 - 1, 0, 10 - (6 - 1), 10)
    for iou, expected in ((devkit, 1), (devkit + 0.01, 0)):
        metrics = voc.voc_metrics(ground_truth, [result], iou_threshold=iou)
        assert metrics["AP/cat"] == expected


def test_the_mean_is_over_classes_that_exist():
    objects = [(0, 0, 0, 0, 50, 50), (0, 1, 0, 0, 50, 50)]
    ground_truth = truth(*objects, categories=("cat", "dog", "emu"))
    detections = [
        detection(0, 0, 0.5, 0, 0, 50, 50),
        detection(0, 2, 0.5, 0, 0, 50, 50),
    ]
    metrics = voc.voc_metrics(ground_truth, detections)
    assert list(metrics) == ["mAP", "AP/cat", "AP/dog", "AP/emu"]
    np.testing.assert_allclose(list(metrics.values()), [0.5, 1, 0, np.nan])
    assert all(map(math.isnan, voc.voc_metrics(truth(), []).values()))
    with pytest.raises(DataError, match="image_id 77"):
        voc.voc_metrics(ground_truth, [detection(77, 0, 0.5, 0, 0, 5, 5)])


def pascal_case(data_folder):
    """Ground truth and detections of one class; widths as the devkit counts them."""
    folder = data_folder / "cocoeval_reference" / "voc_case1"
    rows = {}
    for part in ("gts", "dets"):
        rows[part] = [
            (int(file.stem), *map(float, line.split()[1:]))
            for file in sorted((folder / part).glob("*.txt"))
            for line in file.read_text().splitlines()
            if line.strip()
        ]
    # Their last pixel is x + width, so that their edges are one further apart.
    objects = [(i, 0, x, y, w + 1, h + 1) for i, x, y, w, h in rows["gts"]]
    ground_truth = truth(*objects, categories=("object",))
    ground_truth["images"] = [{"id": i} for i in range(1, 8)]
    detections = [
        detection(i, 0, score, x, y, w + 1, h + 1)
        for i, score, x, y, w, h in rows["dets"]
    ]
    return ground_truth, detections


@pytest.mark.parametrize(
    ("iou", "area", "eleven_points"),
    [
        (0.1, 0.3371980676, 0.3333333333),
        (0.3, 0.2456866804, 0.2683982683),
        (0.5, 0.0222222222, 0.0303030303),
    ],
)
def test_the_numbers_of_the_review_of_metrics(data_folder, iou, area, eleven_points):
    case = pascal_case(data_folder)
    assert voc.voc_metrics(*case, iou_threshold=iou)["mAP"] == pytest.approx(
        area, abs=1e-9
    )
    metrics = voc.voc_metrics(*case, iou_threshold=iou, eleven_points=True)
    assert metrics["AP/object"] == pytest.approx(eleven_points, abs=1e-9)
