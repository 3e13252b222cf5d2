import contextlib
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jaxdet.data.masks import encode_rle
from jaxdet.evaluation import matches
from tests.evaluation.scenes import detection, random_scene, truth


def test_better_detections_choose_first_and_crowds_take_what_is_left():
    ground_truth = truth(
        (0, 0, 0, 0, 10, 10),
        (0, 1, 0, 2, 10, 10),
        (0, 0, 100, 0, 40, 40, "crowd"),
        (1, 0, 0, 0, 10, 10),
    )
    found = matches.match_to_objects(
        ground_truth,
        [
            detection(0, 0, 0.5, 0, 0, 10, 10),  # the best place, but second
            detection(0, 0, 0.9, 0, 1, 10, 10),
            detection(0, 0, 0.4, 110, 10, 10, 10),  # within the crowd
            detection(0, 1, 0.3, 110, 10, 10, 10),  # in a crowd of another class
        ],
    )
    assert found.index.tolist() == [1, 0, 2, 3]
    assert found.matched.tolist() == [0, -1, -1, -1]
    # Of the first, the IoUs with the cat and the dog are the same, 9 / 11.
    assert found.matched_any.tolist() == [1, 0, -1, -1]
    assert found.ignored.tolist() == [False, False, True, False]
    np.testing.assert_allclose(found.same_iou, [9 / 11, 1, 0, 0])
    np.testing.assert_allclose(found.other_iou, [9 / 11, 8 / 12, 0, 0])
    assert found.other_class.tolist() == [1, 1, -1, -1]
    assert found.counts.tolist() == [2, 1]
    assert found.found_at(0.9).tolist() == [True, False, False, False]
    assert not found.found_at(0.91).any()


def test_masks_overlap_where_boxes_do_not():
    pixels = np.zeros((20, 20), np.uint8)
    pixels[:10, :5] = 1
    ground_truth = truth((0, 0, 0, 0, 10, 10))
    ground_truth["images"] = [{"id": 0, "height": 20, "width": 20}]
    half = encode_rle(pixels)
    ground_truth["annotations"][0]["segmentation"] = half
    results = [detection(0, 0, 0.5, 0, 0, 10, 10) | {"segmentation": half}]
    pixels[:10, 5:20] = 1
    results[0]["bbox"], results[0]["segmentation"] = [0, 0, 20, 10], encode_rle(pixels)
    found = matches.match_to_objects(ground_truth, results, iou_type="segm")
    assert found.same_iou.tolist() == [0.25] and found.matched.tolist() == [-1]
    found = matches.match_to_objects(ground_truth, results)
    assert found.same_iou.tolist() == [0.5] and found.matched.tolist() == [0]


def test_only_the_best_detections_of_an_image_and_class_count():
    results = [detection(0, k % 2, k / 10, 0, 0, 9, 9) for k in range(8)]
    found = matches.match_to_objects(
        truth((0, 0, 0, 0, 9, 9)), results, max_detections=2
    )
    assert found.index.tolist() == [7, 6, 5, 4]


def test_matches_are_those_of_cocoeval(rng):
    ground_truth, results = random_scene(rng, crowds=0.2)
    found = matches.match_to_objects(ground_truth, results)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = ground_truth
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluator.evaluate()
    of_all_areas = [
        one
        for one in evaluator.evalImgs
        if one is not None and one["aRng"] == evaluator.params.areaRng[0]
    ]
    expected = {}
    for one in of_all_areas:
        kinds = np.where(one["dtIgnore"][0], 2, one["dtMatches"][0] > 0)
        for number, kind in zip(one["dtIds"], kinds, strict=True):
            expected[number - 1] = kind  # loadRes counts from 1
    kinds = np.where(found.ignored, 2, found.matched >= 0)
    assert dict(zip(found.index.tolist(), kinds, strict=True)) == expected
    assert len(set(expected.values())) == 3
