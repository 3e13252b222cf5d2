import json

import numpy as np

from jaxdet.data.annotations import clip_to_image, coco_ground_truth, inside_image
from jaxdet.data.dataset import Objects


def test_boxes_and_an_image_of_10_by_20():
    boxes = np.array(
        [
            [-2, -2, 22, 12],  # two pixels more on all sides
            [-2.1, 0, 5, 5],
            [0, 0, 5, 12.1],
            [5, 5, 5, 9],  # no width
            [20, 3, 21, 4],  # beside the image
            [np.nan, 0, 5, 5],
        ]
    )
    inside = inside_image(boxes, (10, 20))
    assert inside.tolist() == [True, False, False, True, True, False]
    clipped, has_area = clip_to_image(boxes[inside], (10, 20))
    assert clipped.tolist() == [[0, 0, 20, 10], [5, 5, 5, 9], [20, 3, 20, 4]]
    assert has_area.tolist() == [True, False, False] and clipped.dtype == np.float32
    each, _ = clip_to_image(boxes[:2], np.array([[10, 20], [4, 5]]))
    assert each.tolist() == [[0, 0, 20, 10], [0, 0, 5, 4]]


def test_ground_truth_by_hand():
    boxes = np.array([[1, 2, 4, 4], [0, 0, 2.5, 2]], np.float32)
    full = Objects(boxes, np.array([1, 0], np.int32), np.array([False, True]))
    objects = [Objects(*(values[:0] for values in full)), full]
    sizes = np.array([[10, 20], [30, 40]])
    truth = coco_ground_truth(["a", "b"], sizes, objects, (5, 8), "xy")
    assert truth["images"] == [
        {"id": "a", "height": 10, "width": 20},
        {"id": "b", "height": 30, "width": 40},
    ]
    assert truth["categories"] == [{"id": 5, "name": "x"}, {"id": 8, "name": "y"}]
    first, second = truth["annotations"]
    expected = {"id": 1, "image_id": "b", "category_id": 8, "bbox": [1, 2, 3, 2]}
    assert first == expected | {"area": 6, "iscrowd": 0}
    assert (second["id"], second["category_id"], second["iscrowd"]) == (2, 5, 1)
    json.dumps(truth)
    areas = [np.zeros(0), np.array([4.5, 3])]
    truth = coco_ground_truth(["a", "b"], sizes, objects, (5, 8), "xy", areas=areas)
    assert [a["area"] for a in truth["annotations"]] == [4.5, 3]
