"""Average precision as the Pascal VOC challenges define it."""

import collections
import math

import numpy as np

from jaxdet.evaluation.coco import box_iou, check_ids

# As the devkit's 0:0.1:1 in float64, so 0.6 is 0.6000000000000001, and a recall of
# exactly 6 / 10 does not reach it: the numbers that papers print were made like this.
_ELEVEN_RECALLS = 0.1 * np.arange(11)


def voc_metrics(
    ground_truth: dict,
    detections: list[dict],
    *,
    iou: float = 0.5,
    eleven_points: bool = False,
) -> dict[str, float]:
    """Mean average precision and that of each class (Everingham et al. 2010, 4.2).

    A detection, best score first, belongs to the object of its class and image that it
    overlaps most. It is right if they overlap enough and the object was not found yet;
    a second detection of an object is wrong. Difficult objects, `iscrowd` in COCO's
    json, need not be found, and detections that belong to them do not count.

    The devkit adds 1 to all widths, xmax - xmin + 1, as its corners are the first and
    last pixel. Boxes here have edges, `data.voc` makes them of those corners as
    (xmin - 1, ymin - 1, xmax, ymax), so their widths are the same and nothing is added.

    Args:
      ground_truth: COCO json with `images`, `categories` and `annotations`.
      detections: COCO results with `bbox`.
      iou: the least overlap of a right detection.
      eleven_points: the mean precision at recalls 0, 0.1, ..., 1, as in VOC 2007;
        otherwise the area under the precision-recall curve, as from VOC 2010 on.
        Precision at a recall is the best at that or any higher one, in both.

    Returns:
      `mAP`, then `AP/<class name>`, in [0, 1]. NaN for a class without objects, which
      the mean leaves out.

    Raises:
      DataError: for a detection of an image or category that is not in `ground_truth`.
    """
    check_ids(ground_truth, detections)
    objects, found = collections.defaultdict(list), collections.defaultdict(list)
    for annotation in ground_truth["annotations"]:
        objects[annotation["category_id"]].append(annotation)
    for detection in detections:
        found[detection["category_id"]].append(detection)
    by_class = {
        f"AP/{category['name']}": _average_precision(
            objects[category["id"]], found[category["id"]], iou, eleven_points
        )
        for category in ground_truth["categories"]
    }
    known = [value for value in by_class.values() if not math.isnan(value)]
    return {"mAP": float(np.mean(known)) if known else math.nan} | by_class


def _average_precision(
    objects: list[dict], detections: list[dict], iou: float, eleven_points: bool
) -> float:
    """Of one class."""
    count = sum(not annotation["iscrowd"] for annotation in objects)
    if not count:
        return math.nan
    right, wrong = np.cumsum(_judge(objects, detections, iou), axis=0).T
    recall, precision = right / count, right / np.maximum(right + wrong, 1)
    # From the right, so that each precision is the best from its recall on.
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    if eleven_points:
        return float(best[np.searchsorted(recall, _ELEVEN_RECALLS)].mean())
    return float(np.sum(np.diff(recall, prepend=0.0) * best[:-1]))


def _judge(objects: list[dict], detections: list[dict], iou: float) -> np.ndarray:
    """`[D, 2]` int, best score first: (1, 0) right, (0, 1) wrong, (0, 0) no matter."""
    in_image = collections.defaultdict(list)
    for annotation in objects:
        in_image[annotation["image_id"]].append(annotation)
    taken = {image_id: set() for image_id in in_image}
    verdicts = np.zeros((len(detections), 2), int)
    best_first = sorted(detections, key=lambda found: -found["score"])
    for rank, detection in enumerate(best_first):
        image_id = detection["image_id"]
        rivals = in_image.get(image_id, [])
        overlap = box_iou([detection["bbox"]], [one["bbox"] for one in rivals])[0]
        nearest = int(np.argmax(overlap)) if rivals else None
        if nearest is None or overlap[nearest] < iou:
            verdicts[rank] = 0, 1
        elif not rivals[nearest]["iscrowd"]:
            verdicts[rank] = (0, 1) if nearest in taken[image_id] else (1, 0)
            taken[image_id].add(nearest)
    return verdicts
