"""Average precision as the Pascal VOC challenges define it."""

import collections
import math

import numpy as np

from jaxdet.evaluation.coco import box_iou, check_detections

# As the devkit's 0:0.1:1 in float64, so 0.6 is 0.6000000000000001, and a recall of
# exactly 6 / 10 does not reach it: the numbers that papers print were made like this.
_ELEVEN_RECALLS = 0.1 * np.arange(11)


def voc_metrics(
    ground_truth: dict,
    detections: list[dict],
    *,
    iou_threshold: float = 0.5,
    eleven_points: bool = False,
) -> dict[str, float]:
    """Returns mean average precision and that of each class (Everingham et al. 2010).

    A detection, best score first, is matched to the object of its class and image that
    it overlaps most (4.2). It is a true positive if their IoU suffices and the object
    has no better detection; else it is a false positive. Difficult objects, `iscrowd`
    in COCO's json, need not be found, and detections matched to them do not count.

    The devkit adds 1 to all widths, xmax - xmin + 1, since its corners are the first
    and last pixel. `data.formats.voc` turns them into edges, (xmin - 1, ymin - 1, xmax,
    ymax), so widths here are the same and nothing is added.

    Args:
      ground_truth: COCO json with `images`, `categories` and `annotations`.
      detections: COCO results with `bbox`.
      iou_threshold: the least IoU of a true positive.
      eleven_points: the mean precision at recalls 0, 0.1, ..., 1, as in VOC 2007;
        otherwise the area under the precision-recall curve, as from VOC 2010 on.
        Precision at a recall is the best at that or any higher one, in both.

    Returns:
      `mAP`, then `AP/<class name>`, in [0, 1]. NaN for a class without objects, which
      the mean leaves out.

    Raises:
      DataError: for a detection of an image or category that is not in `ground_truth`,
        or whose numbers are not finite.
    """
    check_detections(ground_truth, detections)
    objects, results = collections.defaultdict(list), collections.defaultdict(list)
    for annotation in ground_truth["annotations"]:
        objects[annotation["category_id"]].append(annotation)
    for detection in detections:
        results[detection["category_id"]].append(detection)
    by_class = {
        f"AP/{category['name']}": _average_precision(
            objects[category["id"]],
            results[category["id"]],
            iou_threshold,
            eleven_points,
        )
        for category in ground_truth["categories"]
    }
    known = [value for value in by_class.values() if not math.isnan(value)]
    return {"mAP": float(np.mean(known)) if known else math.nan} | by_class


def _average_precision(
    objects: list[dict],
    detections: list[dict],
    iou_threshold: float,
    eleven_points: bool,
) -> float:
    """Returns the average precision of one class."""
    count = sum(not annotation.get("iscrowd") for annotation in objects)
    if not count:
        return math.nan
    matches = match_detections(objects, detections, iou_threshold)
    true, false = np.cumsum(matches, axis=0).T
    recall, precision = true / count, true / np.maximum(true + false, 1)
    # From the right, so that each precision is the best from its recall on.
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    if eleven_points:
        return float(best[np.searchsorted(recall, _ELEVEN_RECALLS)].mean())
    return float(np.sum(np.diff(recall, prepend=0.0) * best[:-1]))


def match_detections(
    objects: list[dict], detections: list[dict], iou_threshold: float
) -> np.ndarray:
    """Matches the detections of one class to its objects.

    Args:
      objects: COCO annotations.
      detections: COCO results.
      iou_threshold: the least IoU of a true positive.

    Returns:
      `[D, 2]` int, best score first: (1, 0) true positive, (0, 1) false positive,
      (0, 0) ignored.
    """
    in_image = collections.defaultdict(list)
    for annotation in objects:
        in_image[annotation["image_id"]].append(annotation)
    taken = {image_id: set() for image_id in in_image}
    matches = np.zeros((len(detections), 2), int)
    best_first = sorted(detections, key=lambda one: -one["score"])
    for rank, detection in enumerate(best_first):
        image_id = detection["image_id"]
        candidates = in_image.get(image_id, [])
        boxes = [one["bbox"] for one in candidates]
        overlap = box_iou([detection["bbox"]], boxes)[0]
        best = int(np.argmax(overlap)) if candidates else None
        if best is None or overlap[best] < iou_threshold:
            matches[rank] = 0, 1
        elif not candidates[best].get("iscrowd"):
            matches[rank] = (0, 1) if best in taken[image_id] else (1, 0)
            taken[image_id].add(best)
    return matches
