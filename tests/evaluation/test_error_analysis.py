import numpy as np
import pytest

from jaxdet.data.dataset import DataError
from jaxdet.evaluation import coco, error_analysis
from jaxdet.evaluation.matches import match_to_objects
from tests.evaluation.scenes import detection, random_scene, truth


@pytest.fixture(scope="module")
def scene():
    return random_scene(np.random.RandomState(3), crowds=0.1)


@pytest.fixture(scope="module")
def numbers(scene):
    return error_analysis.analyze(*scene)


def test_curves_average_to_cocos_numbers(scene, numbers):
    metrics = coco.coco_metrics(*scene)
    assert numbers["metrics"] == pytest.approx(metrics, nan_ok=True)
    boxes = numbers["boxes"]
    curves = boxes["precision_recall"]
    for name, key in (("mean", "AP"), ("0.5", "AP50"), ("0.75", "AP75")):
        assert np.mean(curves["all"][name]) == pytest.approx(metrics[key], abs=1e-4)
    for name, one in boxes["by_class"].items():
        ap = pytest.approx(metrics[f"AP/{name}"])
        assert one["AP"] == ap
        mean = np.mean(curves["classes"][name]["mean"])
        assert mean == pytest.approx(one["AP"], abs=1e-4)
    values = [one["APm"] for one in boxes["by_class"].values()]
    assert np.mean(values) == pytest.approx(metrics["APm"])


def test_counts_agree_with_each_other(numbers):
    boxes = numbers["boxes"]
    objects = sum(one["objects"] for one in numbers["objects"].values())
    errors, histogram = boxes["errors"], boxes["score_histogram"]
    assert sum(histogram["true"]) + errors["false negatives"]["count"] == objects
    assert sum(histogram["false"]) == errors["false positives"]["count"]
    matrix = np.array(boxes["confusion"]["matrix"])
    assert matrix[:-1].sum() == objects
    best, curve = boxes["best_f1"], boxes["score_curves"]["all"]
    assert best["min_score"] == boxes["min_score"] == boxes["confusion"]["min_score"]
    assert best["f1"] >= max(curve["f1"]) - 1e-5
    assert "masks" not in numbers


def test_objects_are_counted_by_class_and_size():
    ground_truth = truth(
        (0, 0, 0, 0, 10, 10),
        (1, 0, 0, 0, 32, 32),
        (1, 0, 0, 0, 96, 96),
        (2, 0, 0, 0, 10, 10, "crowd"),
    )
    counts = error_analysis.count_objects(ground_truth)
    assert counts["cat"] == {
        "small": 1,
        "medium": 1,
        "large": 1,
        "objects": 3,
        "crowds": 1,
        "images": 3,
    }
    assert not any(counts["dog"].values())


def test_the_worst_image_has_most_missed_and_false():
    ground_truth = truth((0, 0, 0, 0, 9, 9), (0, 0, 50, 0, 9, 9), (1, 0, 0, 0, 9, 9))
    results = [
        detection(0, 0, 0.9, 0, 0, 9, 9),
        detection(1, 0, 0.4, 0, 0, 9, 9),
        detection(1, 1, 0.8, 80, 0, 9, 9),
        detection(2, 1, 0.3, 80, 0, 9, 9),
    ]
    matches = match_to_objects(ground_truth, results)
    worst = error_analysis.worst_images(matches, ground_truth, 0.5, 20)
    assert worst == [
        {"image_id": 1, "missed": 1, "false": 1},
        {"image_id": 0, "missed": 1, "false": 0},
    ]
    assert len(error_analysis.worst_images(matches, ground_truth, 0.5, 1)) == 1


def test_without_detections_or_objects_there_are_numbers_all_the_same():
    for ground_truth in (truth((0, 0, 0, 0, 9, 9)), truth()):
        for results in ([], [detection(0, 1, 0.5, 80, 0, 9, 9)]):
            boxes = error_analysis.analyze(ground_truth, results)["boxes"]
            assert boxes["best_f1"] is None and boxes["min_score"] == 0.3
            false = boxes["errors"]["false positives"]["count"]
            assert false == boxes["errors"]["background"]["count"] == len(results)


@pytest.mark.parametrize("score", [7.5, -0.1, float("nan")])
def test_scores_are_shares(scene, score):
    """The curves and the histogram would leave others out."""
    ground_truth, detections = scene
    other = detections[0] | {"score": score}
    rounded = detections[0] | {"score": 1 + 1e-7}
    error_analysis.analyze(ground_truth, [rounded])
    with pytest.raises(DataError, match=r"has score .* must be in \[0, 1\]"):
        error_analysis.analyze(ground_truth, [*detections, other])
