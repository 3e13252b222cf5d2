import contextlib
import io
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jaxdet.data.dataset import DataError
from jaxdet.evaluation import recall
from tests.evaluation.test_coco import detection, reference, truth


def test_recall_by_hand():
    objects = [(0, 0, 0, 0, 100, 100), (0, 1, 200, 0, 100, 100)]
    results = [
        detection(
            0, 1, 0.9, 0, 0, 62, 100
        ),  # passes 0.5, 0.55 and 0.6; its class is wrong
        detection(0, 0, 0.8, 0, 300, 100, 100),
        detection(0, 0, 0.7, 200, 0, 100, 100),
    ]
    metrics = recall.proposal_recall(truth(*objects), results, counts=(1, 2, 3))
    assert metrics == pytest.approx(
        {
            "AR1": 0.15,
            "AR2": 0.15,
            "AR3": 0.65,
            "recall@0.5/3": 1.0,
            "recall@0.7/3": 0.5,
        }
    )


def test_one_proposal_covers_one_object():
    twice = truth((0, 0, 0, 0, 50, 50), (0, 0, 0, 0, 50, 50))
    one, another = (detection(0, 0, score, 0, 0, 50, 50) for score in (0.9, 0.8))
    assert recall.proposal_recall(twice, [one])["AR100"] == pytest.approx(0.5)
    assert recall.proposal_recall(twice, [one, another])["AR100"] == pytest.approx(1)


def test_nothing_to_find_and_nothing_found():
    assert all(map(math.isnan, recall.proposal_recall(truth(), []).values()))
    metrics = recall.proposal_recall(truth((0, 0, 0, 0, 50, 50)), [])
    assert set(metrics.values()) == {0.0}
    assert list(metrics)[:3] == ["AR100", "AR300", "AR1000"]
    with pytest.raises(DataError, match="image_id 9"):
        recall.proposal_recall(truth(), [detection(9, 0, 0.5, 0, 0, 5, 5)])


def by_class(entry):
    return entry["category_id"]


def with_cocoeval(ground_truth, results, counts):
    """AR at each count and the recall at each IoU for the last, classes ignored."""
    with contextlib.redirect_stdout(io.StringIO()):
        objects = COCO()
        objects.dataset = {"info": {}, **ground_truth}
        objects.createIndex()
        evaluator = COCOeval(objects, objects.loadRes(results), "bbox")
        evaluator.params.useCats = 0
        evaluator.params.maxDets = list(counts)
        evaluator.evaluate()
        evaluator.accumulate()
    recalls = evaluator.eval["recall"][:, 0, 0]  # [IoUs, counts], all areas
    return recalls.mean(axis=0), recalls[:, -1]


def check(ground_truth, results, counts):
    # COCOeval goes from class to class, and what comes first decides ties.
    annotations = sorted(ground_truth["annotations"], key=by_class)
    ground_truth = ground_truth | {"annotations": annotations}
    results = sorted(results, key=by_class)
    metrics = recall.proposal_recall(ground_truth, results, counts=counts)
    means, by_iou = with_cocoeval(ground_truth, results, counts)
    expected = {f"AR{count}": mean for count, mean in zip(counts, means, strict=True)}
    expected |= {f"recall@0.5/{counts[-1]}": by_iou[0]}
    expected |= {f"recall@0.7/{counts[-1]}": by_iou[4]}
    assert list(metrics) == list(expected)  # the first decides which state is best
    assert metrics == pytest.approx(expected, abs=1e-12)


def test_the_numbers_of_the_coco_demo(data_folder):
    ground_truth = reference(data_folder, "instances_val2014_100.json")
    results = reference(data_folder, "instances_val2014_fakebbox100_results.json")
    check(ground_truth, results, (1, 10, 100))


@pytest.mark.parametrize("seed", range(3))
def test_cocoeval_agrees_on_crowded_images_of_whole_numbers(seed):
    """Where ties, crowds and competition for objects are frequent."""
    rng = np.random.default_rng(seed)

    def boxes(count):
        return np.concatenate(
            [rng.integers(0, 6, (count, 2)), rng.integers(4, 9, (count, 2))], axis=1
        ).tolist()

    objects = [(int(rng.integers(3)), int(rng.integers(2)), *box) for box in boxes(30)]
    ground_truth = truth(*objects)
    for annotation in ground_truth["annotations"]:
        annotation["id"] += 1  # COCOeval takes the object of id 0 for missed
        annotation["iscrowd"] = int(rng.random() < 0.2)
    results = [
        detection(int(rng.integers(3)), int(rng.integers(2)), float(rng.random()), *box)
        for box in boxes(120)
    ]
    check(ground_truth, results, (5, 20, 100))


def test_of_objects_with_the_same_iou_the_last_is_matched():
    """By the first proposal, of IoU 9 / 11 with both; so nothing is left at 0.7."""
    objects = truth((0, 0, 0, 0, 100, 100), (0, 0, 20, 0, 100, 100))
    for number, annotation in enumerate(objects["annotations"], 1):
        annotation["id"] = number
    results = [
        detection(0, 0, 0.9, 10, 0, 100, 100),
        detection(0, 0, 0.8, 20, 0, 100, 100),
    ]
    check(objects, results, (1, 2))
    metrics = recall.proposal_recall(objects, results, counts=(1, 2))
    assert (metrics["recall@0.5/2"], metrics["recall@0.7/2"]) == (1.0, 0.5)
