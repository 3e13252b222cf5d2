"""COCO's average precision and recall, computed by pycocotools."""

import contextlib
import io
import logging
import math
from typing import Literal

import numpy as np
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jaxdet.data.dataset import DataError

# The order of COCOeval.stats: AP over IoU .50:.05:.95, at single IoUs, by area of the
# object (small < 32^2 <= medium <= 96^2 < large), then AR by detections an image and,
# at 100 of them, by area.
PRECISIONS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
RECALLS = ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
NAMES = PRECISIONS + RECALLS

logger = logging.getLogger(__name__)


def coco_metrics(
    ground_truth: dict,
    detections: list[dict],
    *,
    iou_type: Literal["bbox", "segm"] = "bbox",
) -> dict[str, float]:
    """Returns the twelve COCO numbers, and the AP of each class.

    Args:
      ground_truth: COCO json with `images`, `categories` and `annotations`, every
        annotation with `area`; not modified.
      detections: COCO results, `image_id`, `category_id` and `score` with a `bbox`
        (x, y, width, height) or, for "segm", a `segmentation` in run lengths; may be
        empty; not modified.
      iou_type: whether boxes or masks are compared.

    Returns:
      `NAMES` and `AP/<class name>` to fractions in [0, 1]; NaN where there is nothing
      to find: no annotated object, none of that area, none of that class.

    Raises:
      DataError: for a detection of an image or category that is not in `ground_truth`.
    """
    check_ids(ground_truth, detections)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _index(ground_truth, ground_truth["annotations"])
        evaluator = COCOeval(truth, _results(truth, detections, iou_type), iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    metrics = {
        name: math.nan if value < 0 else float(value)
        for name, value in zip(NAMES, evaluator.stats, strict=True)
    }
    # [IoUs, recalls, classes, areas, detections an image]: all areas, 100 detections.
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    for index, category_id in enumerate(evaluator.params.catIds):
        of_class = precision[:, :, index]
        has_objects = (of_class >= 0).all()
        average = float(np.mean(of_class)) if has_objects else math.nan
        metrics[f"AP/{truth.cats[category_id]['name']}"] = average
    return metrics


def box_and_mask_metrics(
    ground_truth: dict, detections: list[dict]
) -> dict[str, float]:
    """Returns `coco_metrics` of the boxes and, where there are masks, of these too.

    Args:
      ground_truth: see `coco_metrics`.
      detections: COCO results with `bbox`, and `segmentation` if they have masks.

    Returns:
      The numbers of the boxes under their names; then, if all detections (there may be
      none) and all annotations have masks, those of the masks as `mask/AP`,
      `mask/AP50` and so on. A warning says if only annotations lack some.
    """
    metrics = coco_metrics(ground_truth, detections)
    annotations = ground_truth["annotations"]
    if not annotations or _without_mask(detections):
        return metrics
    if lacking := _without_mask(annotations):
        if detections:
            logger.warning(
                "no numbers of masks: %d of %d annotations have no segmentation",
                lacking,
                len(annotations),
            )
        return metrics
    masks = coco_metrics(ground_truth, detections, iou_type="segm")
    return metrics | {f"mask/{name}": value for name, value in masks.items()}


def box_iou(boxes_a: list, boxes_b: list) -> np.ndarray:
    """Returns the intersection over union of boxes as COCO's json has them.

    `[M, 4]` and `[N, 4]` (x, y, width, height) -> `[M, N]` float64; M and N may be 0.
    """
    if not len(boxes_a) or not len(boxes_b):
        return np.zeros((len(boxes_a), len(boxes_b)))
    sets = (np.array(boxes, np.float64) for boxes in (boxes_a, boxes_b))
    return run_lengths.iou(*sets, [False] * len(boxes_b))


def check_ids(ground_truth: dict, detections: list[dict]) -> None:
    """Refuses detections of an unknown image or category.

    Args:
      ground_truth: COCO json with `images` and `categories`.
      detections: COCO results with `image_id` and `category_id`.

    Raises:
      DataError: for the first of them, naming its id.
    """
    for kind, key in (("image_id", "images"), ("category_id", "categories")):
        allowed = {entry["id"] for entry in ground_truth[key]}
        for detection in detections:
            if detection[kind] not in allowed:
                raise DataError(
                    f"a detection has {kind} {detection[kind]!r}, which is none of the "
                    f"{len(allowed)} {key} of the ground truth"
                )


def _without_mask(entries: list[dict]) -> int:
    return sum(not entry.get("segmentation") for entry in entries)


def _index(ground_truth: dict, annotations: list[dict]) -> COCO:
    indexed = COCO()
    # Copies, as pycocotools writes into annotations; renumbered, as it takes the object
    # of id 0 for missed.
    annotations = [
        annotation | {"id": number} for number, annotation in enumerate(annotations, 1)
    ]
    indexed.dataset = ground_truth | {"annotations": annotations}
    indexed.createIndex()
    return indexed


def _results(truth: COCO, detections: list[dict], iou_type: str) -> COCO:
    if not detections:  # loadRes fails on none.
        return _index(truth.dataset, [])
    # With both kinds of shape in a result, loadRes takes its area from the box.
    unused = "segmentation" if iou_type == "bbox" else "bbox"
    return truth.loadRes(
        [{k: v for k, v in one.items() if k != unused} for one in detections]
    )
