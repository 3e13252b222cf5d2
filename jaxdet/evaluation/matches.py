"""Matches the detections of a data set with its objects, for all that explains errors.

A match takes an IoU of 0.5. Detections choose in the order of their scores, so those
above any score are matched as if there were no others.
"""

from typing import Literal, NamedTuple

import numpy as np
from pycocotools import mask as run_lengths

from jaxdet.evaluation.coco import (
    MAX_DETECTIONS,
    check_detections,
    with_run_lengths,
)

IOU = 0.5
"""The least IoU of a match."""


class Matches(NamedTuple):
    """D detections, by image and within it best first, and N objects, by image.

    Indices of objects are in [0, N), and -1 where there is none.
    """

    class_names: tuple[str, ...]  # K names, by category id
    images: int  # in the data set
    # Of each detection:
    image: np.ndarray  # [D] position in `ground_truth["images"]`
    label: np.ndarray  # [D] in [0, K)
    score: np.ndarray  # [D] float64
    # [D] position among the results; tuples' own `index` is not needed
    index: np.ndarray  # type: ignore[assignment]
    matched: np.ndarray  # [D] the object of its class that it is matched to
    matched_any: np.ndarray  # [D] the one that it is matched to if classes are ignored
    in_crowd: np.ndarray  # [D] bool: within a crowd of its class
    same_class: np.ndarray  # [D] the object of its class that it overlaps most
    same_iou: np.ndarray  # [D] and how much
    other_class: np.ndarray  # [D] the object of another class that it overlaps most
    other_iou: np.ndarray  # [D] and how much
    # Of each object:
    object_image: np.ndarray  # [N] position in `ground_truth["images"]`
    object_label: np.ndarray  # [N] in [0, K)
    object_area: np.ndarray  # [N] float64, COCO's `area`
    crowd: np.ndarray  # [N] bool: crowd or difficult; need not be found

    @property
    def ignored(self) -> np.ndarray:
        """Detections that COCO does not count, unmatched and in a crowd; `[D]` bool."""
        return (self.matched < 0) & self.in_crowd

    @property
    def counts(self) -> np.ndarray:
        """Objects of each class that have to be found; `[K]` int."""
        labels = self.object_label[~self.crowd]
        return np.bincount(labels, minlength=len(self.class_names))

    def found_at(self, min_score: float) -> np.ndarray:
        """Returns which objects have a match of this score or more; `[N]` bool."""
        found = np.zeros(len(self.object_label), bool)
        found[self.matched[(self.matched >= 0) & (self.score >= min_score)]] = True
        return found


def match_to_objects(
    ground_truth: dict,
    detections: list[dict],
    *,
    iou_type: Literal["bbox", "segm"] = "bbox",
    max_detections: int = MAX_DETECTIONS,
) -> Matches:
    """Matches detections with objects, and measures which objects they are close to.

    The detections of a class are matched as COCOeval does at an IoU of 0.5: best score
    first, each to the remaining object of its class that it overlaps most. What is left
    over and lies within a crowd is not counted.

    Args:
      ground_truth: COCO json with `images`, `categories` and `annotations`.
      detections: COCO results with `bbox`, or `segmentation` in run lengths.
      iou_type: whether boxes or masks are compared.
      max_detections: how many detections of an image and class count, the best ones.

    Returns:
      The matches. Detections beyond `max_detections` are left out.

    Raises:
      DataError: as `coco.coco_metrics`.
    """
    check_detections(ground_truth, detections)
    annotations = ground_truth["annotations"]
    if iou_type == "segm":
        annotations = with_run_lengths(ground_truth)
    categories = sorted(ground_truth["categories"], key=lambda one: one["id"])
    labels = {one["id"]: label for label, one in enumerate(categories)}
    positions = {one["id"]: place for place, one in enumerate(ground_truth["images"])}
    found = _columns(detections, positions, labels)
    score = np.array([one["score"] for one in detections], np.float64)
    order = np.lexsort((-score, found[:, 0]))
    order = order[_rank_in_group(found[order]) < max_detections]
    image, label = found[order].T
    objects = _columns(annotations, positions, labels)
    object_order = np.argsort(objects[:, 0], kind="stable")
    object_image, object_label = objects[object_order].T
    crowd = np.array([bool(one.get("iscrowd")) for one in annotations], bool)
    key = "bbox" if iou_type == "bbox" else "segmentation"
    matches = Matches(
        class_names=tuple(one["name"] for one in categories),
        images=len(positions),
        image=image,
        label=label,
        score=score[order],
        index=order,
        **{name: np.full(len(order), -1) for name in _INDICES},
        **{name: np.zeros(len(order)) for name in ("same_iou", "other_iou")},
        in_crowd=np.zeros(len(order), bool),
        object_image=object_image,
        object_label=object_label,
        object_area=np.array([one["area"] for one in annotations])[object_order],
        crowd=crowd[object_order],
    )
    shapes = [detections[i][key] for i in order]
    object_shapes = [annotations[i][key] for i in object_order]
    _compare_by_image(matches, shapes, object_shapes)
    return matches


_INDICES = ("matched", "matched_any", "same_class", "other_class")


def _columns(entries: list[dict], positions: dict, labels: dict) -> np.ndarray:
    """Returns the image's position and the label of each entry, `[entries, 2]`."""
    rows = [(positions[x["image_id"]], labels[x["category_id"]]) for x in entries]
    return np.array(rows, int).reshape(-1, 2)


def _rank_in_group(groups: np.ndarray) -> np.ndarray:
    """Returns how many earlier rows of `[D, 2]` are the same as each row; `[D]`."""
    order = np.lexsort(groups.T)
    ordered = groups[order]
    first = np.ones(len(groups), bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    starts = np.flatnonzero(first)
    rank = np.empty(len(groups), int)
    rank[order] = np.arange(len(groups)) - starts[np.cumsum(first) - 1]
    return rank


def _compare_by_image(matches: Matches, shapes: list, object_shapes: list) -> None:
    """Fills in the arrays of detections that depend on the objects of their images."""
    images = np.arange(matches.images)
    first, last = _bounds(matches.image, images)
    begin, end = _bounds(matches.object_image, images)
    for position in np.flatnonzero((first < last) & (begin < end)):
        own = slice(first[position], last[position])
        objects = slice(begin[position], end[position])
        crowd = matches.crowd[objects]
        overlap = _overlap(shapes[own], object_shapes[objects], crowd)
        same = matches.label[own, None] == matches.object_label[None, objects]
        matches.in_crowd[own] = ((overlap >= IOU) & same & crowd).any(axis=1)
        overlap = np.where(crowd, 0.0, overlap)
        of_same, of_other = np.where(same, overlap, 0.0), np.where(same, 0.0, overlap)
        start = objects.start
        matches.matched[own] = _match_greedily(of_same, start)
        matches.matched_any[own] = _match_greedily(overlap, start)
        matches.same_iou[own], matches.same_class[own] = _closest(of_same, start)
        matches.other_iou[own], matches.other_class[own] = _closest(of_other, start)


def _bounds(groups: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where each image begins and ends in ascending `groups`."""
    return np.searchsorted(groups, images), np.searchsorted(groups, images, "right")


def _overlap(shapes: list, object_shapes: list, crowd: np.ndarray) -> np.ndarray:
    """Returns `[D, N]` IoU; for a crowd, the share of the detection within it."""
    if isinstance(shapes[0], dict):  # run lengths
        return run_lengths.iou(shapes, object_shapes, crowd.tolist())
    boxes, objects = np.array(shapes, float), np.array(object_shapes, float)
    return run_lengths.iou(boxes, objects, crowd.tolist())


def _match_greedily(overlap: np.ndarray, start: int) -> np.ndarray:
    """Gives each row, the first one first, the remaining column of the highest IoU.

    Args:
      overlap: `[D, N]` IoU.
      start: added to the columns' numbers.

    Returns:
      `[D]` columns; -1 where none has an IoU of `IOU`.
    """
    left = np.where(overlap >= IOU, overlap, 0.0)
    matched = np.full(len(overlap), -1)
    for row in np.flatnonzero(left.any(axis=1)):
        # Of objects with the same IoU, COCOeval takes the last.
        best = left.shape[1] - 1 - left[row, ::-1].argmax()
        if left[row, best] > 0:
            matched[row] = start + best
            left[:, best] = 0.0
    return matched


def _closest(overlap: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the highest IoU of each row, `[D]`, and its column, -1 if that is 0."""
    best, column = overlap.max(axis=1), overlap.argmax(axis=1)
    return best, np.where(best > 0, start + column, -1)
