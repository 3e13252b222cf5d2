"""Recall of region proposals: the share of objects that they cover."""

import collections
from collections.abc import Sequence

import numpy as np

from jaxdet.evaluation.coco import box_iou, check_detections

IOUS = np.linspace(0.5, 0.95, 10)
"""COCO's thresholds, over which recall is averaged."""


def proposal_recall(
    ground_truth: dict,
    results: list[dict],
    *,
    counts: Sequence[int] = (100, 300, 1000),
) -> dict[str, float]:
    """Returns the recall of the best proposals of each image, classes ignored.

    Proposals are matched as COCOeval does with `useCats = 0`: best score first, each to
    the object it overlaps most among those that no better one is matched to. Crowds
    need not be found.

    Args:
      ground_truth: COCO json with `images`, `categories` and `annotations`.
      results: COCO results with `bbox`; their `category_id` must exist, but is ignored.
      counts: how many proposals an image may have.

    Returns:
      `AR<count>` for each count, the mean recall over `IOUS` (AR@100 in papers); then
      `recall@0.5/<count>` and `recall@0.7/<count>`, the recall at an IoU of 0.5 and of
      0.7, for the largest count. Fractions in [0, 1]; NaN if there are no objects.

    Raises:
      DataError: for a result of an image or category that is not in `ground_truth`,
        or whose numbers are not finite.
    """
    check_detections(ground_truth, results)
    objects, proposals = collections.defaultdict(list), collections.defaultdict(list)
    for annotation in ground_truth["annotations"]:
        if not annotation.get("iscrowd"):
            objects[annotation["image_id"]].append(annotation["bbox"])
    for result in results:
        proposals[result["image_id"]].append(result)
    ranks = [np.zeros((len(IOUS), 0))]
    for image_id, boxes in objects.items():
        best_first = sorted(proposals[image_id], key=lambda one: -one["score"])
        best_first = best_first[: max(counts)]
        overlap = box_iou([one["bbox"] for one in best_first], boxes)
        ranks.append(np.stack([_ranks(overlap, iou) for iou in IOUS]))
    ranks = np.concatenate(ranks, axis=1)

    def recall(count: int, ious: slice | int = slice(None)) -> float:
        return float((ranks[ious] < count).mean()) if ranks.size else float("nan")

    most = max(counts)
    return {f"AR{count}": recall(count) for count in counts} | {
        f"recall@0.5/{most}": recall(most, 0),
        f"recall@0.7/{most}": recall(most, 4),
    }


def _ranks(overlap: np.ndarray, iou: float) -> np.ndarray:
    """Returns the rank, from 0, of each object's proposal; infinite without one.

    Args:
      overlap: `[P, N]` IoU of proposals, best first, with objects.
      iou: of a match, at least.
    """
    ranks = np.full(overlap.shape[1], np.inf)
    left = np.where(overlap >= iou, overlap, 0.0)
    for rank in np.flatnonzero(left.any(axis=1)):
        # Of objects with the same IoU, COCOeval takes the last.
        best = -1 - left[rank, ::-1].argmax()
        if left[rank, best] > 0:
            ranks[best] = rank
            left[:, best] = 0.0
    return ranks
