"""Measures why a detector fails: all numbers of `evaluate --report`.

numbers = analyze(data_set.ground_truth(), detections)
print(numbers["boxes"]["errors"]["localization"])  # how many, and the AP50 they cost
"""

from typing import Any

import numpy as np

from jaxdet.data.dataset import DataError
from jaxdet.evaluation import coco, confusion, curves
from jaxdet.evaluation.coco import MAX_DETECTIONS, Backend
from jaxdet.evaluation.matches import IOU, Matches, match_to_objects
from jaxdet.evaluation.tide import tide_errors

SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}
"""COCO's ranges of area, in pixels of the original image."""
FALLBACK_MIN_SCORE = 0.3
"""Where no minimum score is best, as no detection is right."""
_DIGITS = 5  # of the numbers of curves


def analyze(
    ground_truth: dict,
    detections: list[dict],
    *,
    max_detections: int = MAX_DETECTIONS,
    backend: Backend = "pycocotools",
    worst: int = 20,
) -> dict[str, Any]:
    """Returns all numbers of a report, as json can hold them, but for NaN in `metrics`.

    Args:
      ground_truth: COCO json; see `coco.coco_metrics`.
      detections: COCO results with `bbox`, and `segmentation` if they have masks.
      max_detections: how many detections of an image and class count, the best ones.
      backend: which library computes COCO's numbers.
      worst: how many images to name that have most errors.

    Returns:
      `metrics` as `coco.box_and_mask_metrics`, NaN where there is nothing to find;
      `objects`, counted by class and size; `boxes`, and where masks are measured
      `masks`, each with `by_class`, `precision_recall`, `score_curves`, `best_f1`,
      `min_score`, `confusion`, `errors`, `score_histogram` and `worst_images`.

    Raises:
      DataError: as `coco.run_cocoeval`, and for a score not in [0, 1].
    """
    for one in detections:
        if not 0 <= round(one["score"], 3) <= 1:  # a little more is rounding
            raise DataError(
                f"a detection in image {one['image_id']!r} has score {one['score']!r}; "
                "it must be in [0, 1]"
            )
    types = {"boxes": "bbox"}
    annotated = coco.all_have_masks(ground_truth["annotations"])
    if annotated and (not detections or coco.all_have_masks(detections)):
        types["masks"] = "segm"
    numbers: dict[str, Any] = {"metrics": {}, "objects": count_objects(ground_truth)}
    for part, iou_type in types.items():
        options = {"iou_type": iou_type, "max_detections": max_detections}
        measured = coco.run_cocoeval(
            ground_truth, detections, backend=backend, **options
        )
        prefix = "" if part == "boxes" else "mask/"
        numbers["metrics"] |= {
            f"{prefix}{name}": value for name, value in coco.summarize(measured).items()
        }
        matches = match_to_objects(ground_truth, detections, **options)
        numbers[part] = _explain(measured, matches, ground_truth, worst)
    return numbers


def count_objects(ground_truth: dict) -> dict[str, dict[str, int]]:
    """Counts the objects of each class by size, crowds apart, and images with some.

    Args:
      ground_truth: COCO json; the size is that of `area`.

    Returns:
      Numbers of objects by the names of `SIZES`, of all `objects`, of `crowds`, which
      are none of them, and of `images`, by the name of the class.
    """
    counts = {}
    for category in sorted(ground_truth["categories"], key=lambda one: one["id"]):
        own = [
            one
            for one in ground_truth["annotations"]
            if one["category_id"] == category["id"]
        ]
        areas = np.array([one["area"] for one in own if not one.get("iscrowd")])
        counts[category["name"]] = {
            size: int(((areas >= low) & (areas < high)).sum())
            for size, (low, high) in SIZES.items()
        } | {
            "objects": len(areas),
            "crowds": len(own) - len(areas),
            "images": len({one["image_id"] for one in own}),
        }
    return counts


def worst_images(
    matches: Matches, ground_truth: dict, min_score: float, count: int
) -> list[dict[str, Any]]:
    """Names the images with most missed objects and false detections together.

    Args:
      matches: of detections and objects.
      ground_truth: COCO json, for the ids of images.
      min_score: detections that score lower are left out.
      count: how many images, at most; those without errors are left out.

    Returns:
      `image_id`, and how many objects are `missed` and how many detections `false`.
    """
    missed = ~matches.found_at(min_score) & ~matches.crowd
    false = (matches.matched < 0) & ~matches.in_crowd & (matches.score >= min_score)
    missed = np.bincount(matches.object_image[missed], minlength=matches.images)
    false = np.bincount(matches.image[false], minlength=matches.images)
    order = np.argsort(-(missed + false), kind="stable")[:count]
    return [
        {
            "image_id": ground_truth["images"][position]["id"],
            "missed": int(missed[position]),
            "false": int(false[position]),
        }
        for position in order
        if missed[position] + false[position]
    ]


def _explain(
    measured: coco.CocoEval, matches: Matches, ground_truth: dict, worst: int
) -> dict[str, Any]:
    """Returns the numbers of boxes or of masks."""
    counted, true = ~matches.ignored, matches.matched >= 0
    names, counts = matches.class_names, matches.counts
    whole = (matches.score[counted], true[counted], int(counts.sum()))
    parts = {}
    for label, name in enumerate(names):
        own = counted & (matches.label == label)
        parts[name] = (matches.score[own], true[own], int(counts[label]))
    best = curves.best_f1(*whole)
    min_score = best.min_score if best else FALLBACK_MIN_SCORE
    histogram = curves.histogram(*whole[:2])
    return {
        "by_class": {
            name: _ap_of_class(measured, label)
            | {"best_f1": _as_dict(curves.best_f1(*parts[name]))}
            for label, name in enumerate(names)
        },
        "precision_recall": _precision_recall(measured),
        "score_curves": {
            "score": _rounded(curves.GRID),
            "all": _score_curve(*whole),
            "classes": {name: _score_curve(*part) for name, part in parts.items()},
        },
        "best_f1": _as_dict(best),
        "min_score": min_score,
        "confusion": {
            "iou": IOU,
            "min_score": min_score,
            "classes": [*names, "background"],
            "matrix": confusion.confusion_matrix(matches, min_score).tolist(),
        },
        "errors": {kind: cost._asdict() for kind, cost in tide_errors(matches).items()},
        "score_histogram": dict(
            zip(("true", "false"), histogram.tolist(), strict=True)
        ),
        "worst_images": worst_images(matches, ground_truth, min_score, worst),
    }


def _ap_of_class(measured: coco.CocoEval, label: int) -> dict[str, float | None]:
    precision = measured.precision[:, :, label, :, -1]
    values = [precision[..., 0], precision[0, :, 0], precision[5, :, 0]]
    values += [precision[..., area] for area in (1, 2, 3)]
    return {
        name: _known(coco.mean_of_known(value))
        for name, value in zip(coco.PRECISIONS, values, strict=True)
    }


def _precision_recall(measured: coco.CocoEval) -> dict[str, Any]:
    """Returns precision at 101 recalls, the mean over classes and that of each."""
    precision = measured.precision[:, :, :, 0, -1]  # [IoUs, recalls, K]
    known = precision[0, 0] > -1
    by_class = {
        name: _three_curves(precision[:, :, label]) if known[label] else None
        for label, name in enumerate(measured.class_names)
    }
    mean = _three_curves(precision[:, :, known].mean(axis=2)) if known.any() else None
    recall = _rounded(np.linspace(0, 1, 101))
    return {"recall": recall, "all": mean, "classes": by_class}


def _three_curves(precision: np.ndarray) -> dict[str, list]:
    """From `[IoUs, recalls]`: the curves at IoU 0.5 and 0.75, and the mean of all."""
    values = {"0.5": precision[0], "0.75": precision[5], "mean": precision.mean(axis=0)}
    return {name: _rounded(curve) for name, curve in values.items()}


def _score_curve(scores: np.ndarray, true: np.ndarray, count: int) -> dict[str, list]:
    values = curves.precision_recall_f1(scores, true, count, curves.GRID)
    return {
        name: _rounded(curve)
        for name, curve in zip(("precision", "recall", "f1"), values, strict=True)
    }


def _as_dict(best: curves.BestF1 | None) -> dict[str, float] | None:
    return None if best is None else best._asdict()


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _rounded(values: np.ndarray) -> list[float | None]:
    return [_known(value) for value in np.round(values, _DIGITS).tolist()]
