"""COCO's average precision and recall, computed by pycocotools."""

import collections
import contextlib
import functools
import io
import logging
import math
import reprlib
from typing import Any, Literal, NamedTuple

import numpy as np
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jaxdet.data.dataset import DataError
from jaxdet.data.masks import parse_segmentation, to_run_lengths

# The order of COCOeval.stats: AP over IoU .50:.05:.95, at single IoUs, by area of the
# object (small < 32^2 <= medium <= 96^2 < large), then AR by detections an image and,
# at 100 of them, by area.
PRECISIONS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
RECALLS = ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
NAMES = PRECISIONS + RECALLS
MAX_DETECTIONS = 100
"""Detections of an image and class that count, by COCO's rule."""

Backend = Literal["pycocotools", "hotcoco"]

logger = logging.getLogger(__name__)


def coco_metrics(
    ground_truth: dict,
    detections: list[dict],
    *,
    iou_type: Literal["bbox", "segm"] = "bbox",
    max_detections: int = MAX_DETECTIONS,
    backend: Backend = "pycocotools",
) -> dict[str, float]:
    """Returns the twelve COCO numbers, and the AP of each class.

    Args:
      ground_truth: COCO json with `images`, `categories` and `annotations`, every
        annotation with `area`; not modified. Segmentations are looked at for "segm"
        alone.
      detections: COCO results, `image_id`, `category_id` and `score` with a `bbox`
        (x, y, width, height) or, for "segm", a `segmentation` in run lengths; may be
        empty; not modified.
      iou_type: whether boxes or masks are compared.
      max_detections: how many detections of an image and class count, the best ones;
        at least 11.
      backend: which library computes them; see `run_cocoeval`.

    Returns:
      `NAMES` and `AP/<class name>` to fractions in [0, 1]; NaN where there is nothing
      to find: no annotated object, none of that area, none of that class. With another
      `max_detections`, such as 300, all but AR1 and AR10 are at that number, and AR100
      is called AR300.

    Raises:
      DataError: for a detection of an image or category that is not in `ground_truth`,
        or whose numbers are not finite; a broken segmentation in `ground_truth`; and
        `max_detections` out of its range.
    """
    options = {"iou_type": iou_type, "max_detections": max_detections}
    measured = run_cocoeval(ground_truth, detections, backend=backend, **options)
    return summarize(measured)


class CocoEval(NamedTuple):
    """What COCOeval measures; -1 where there is nothing to find.

    The IoUs are 0.5, 0.55, ..., 0.95, the recalls 0, 0.01, ..., 1, the areas all,
    small, medium and large, and the limits 1, 10 and `max_detections` of an image.
    """

    class_names: tuple[str, ...]  # K names, by category id
    precision: np.ndarray  # [IoUs, recalls, K, areas, limits]
    recall: np.ndarray  # [IoUs, K, areas, limits]
    max_detections: int


def run_cocoeval(
    ground_truth: dict,
    detections: list[dict],
    *,
    iou_type: Literal["bbox", "segm"] = "bbox",
    max_detections: int = MAX_DETECTIONS,
    backend: Backend = "pycocotools",
) -> CocoEval:
    """Returns all precisions and recalls of COCOeval.

    Args:
      ground_truth: see `coco_metrics`.
      detections: see `coco_metrics`.
      iou_type: see `coco_metrics`.
      max_detections: see `coco_metrics`.
      backend: which library computes them. `hotcoco` (pip install hotcoco) gives the
        same numbers many times faster.

    Raises:
      DataError: as `coco_metrics`, and if hotcoco is not installed.
    """
    if max_detections <= 10:
        raise DataError(f"max_detections is {max_detections}; it must be at least 11")
    check_detections(ground_truth, detections)
    _warn_of_crowded_images(ground_truth, max_detections)
    annotations = ground_truth["annotations"]
    if iou_type == "segm":
        annotations = with_run_lengths(ground_truth)
        warn_of_empty_masks(annotations)
    # With both kinds of shape in a result, loadRes takes its area from the box.
    unused = "segmentation" if iou_type == "bbox" else "bbox"
    results = [{k: v for k, v in one.items() if k != unused} for one in detections]
    evaluator_class, truth, results = _OPENERS[backend](
        ground_truth, annotations, results
    )
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = evaluator_class(truth, results, iou_type)
        evaluator.params.maxDets = [1, 10, max_detections]
        evaluator.evaluate()
        evaluator.accumulate()
    names = {one["id"]: one["name"] for one in ground_truth["categories"]}
    return CocoEval(
        tuple(names[number] for number in evaluator.params.catIds),
        evaluator.eval["precision"],
        evaluator.eval["recall"],
        max_detections,
    )


def summarize(measured: CocoEval) -> dict[str, float]:
    """Averages what COCOeval measured; its own summary knows no limit but 100.

    Returns:
      As `coco_metrics`.
    """
    class_names, precision, recall, max_detections = measured
    values = [precision[..., 0, -1], precision[0, ..., 0, -1], precision[5, ..., 0, -1]]
    values += [precision[..., area, -1] for area in (1, 2, 3)]
    values += [recall[..., 0, limit] for limit in (0, 1, 2)]
    values += [recall[..., area, -1] for area in (1, 2, 3)]
    names = [name.replace("AR100", f"AR{max_detections}") for name in NAMES]
    values += [precision[:, :, index, 0, -1] for index in range(len(class_names))]
    names += [f"AP/{name}" for name in class_names]
    return {
        name: mean_of_known(array) for name, array in zip(names, values, strict=True)
    }


def mean_of_known(values: np.ndarray) -> float:
    """Returns the mean of what `CocoEval` holds, without -1; NaN if nothing is left."""
    known = values[values > -1]
    return float(np.mean(known)) if known.size else math.nan


def box_and_mask_metrics(
    ground_truth: dict,
    detections: list[dict],
    *,
    max_detections: int = MAX_DETECTIONS,
    backend: Backend = "pycocotools",
) -> dict[str, float]:
    """Returns `coco_metrics` of the boxes and, where there are masks, of these too.

    Args:
      ground_truth: see `coco_metrics`.
      detections: COCO results with `bbox`, and `segmentation` if they have masks.
      max_detections: see `coco_metrics`.
      backend: see `run_cocoeval`.

    Returns:
      The numbers of the boxes under their names; then, if all detections (there may be
      none) and all annotations have masks, those of the masks as `mask/AP`,
      `mask/AP50` and so on. A warning says if only annotations lack some.

    Raises:
      DataError: as `coco_metrics`.
    """
    measure = functools.partial(
        coco_metrics, max_detections=max_detections, backend=backend
    )
    metrics = measure(ground_truth, detections)
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
    # Without detections there is nothing to compare: no segmentation is looked at.
    masks = (
        measure(ground_truth, detections, iou_type="segm") if detections else metrics
    )
    return metrics | {f"mask/{name}": value for name, value in masks.items()}


def check_segmentations(
    ground_truth: dict, *, bad: Literal["error", "skip"] = "error"
) -> dict:
    """Checks the segmentations of all annotations, if all have one.

    Args:
      ground_truth: COCO json; not modified.
      bad: whether a broken one is an error, or its annotation is left out, and logged.

    Returns:
      Ground truth, without the annotations left out.

    Raises:
      DataError: for a broken segmentation, naming its annotation.
    """
    annotations = ground_truth["annotations"]
    if _without_mask(annotations):
        return ground_truth  # no masks are measured
    sizes, kept = _image_sizes(ground_truth), []
    for annotation in annotations:
        try:
            _parse(annotation, sizes)
        except DataError as error:
            if bad == "error":
                raise DataError(f'{error} (bad_boxes="skip" drops it)') from error
        else:
            kept.append(annotation)
    if dropped := len(annotations) - len(kept):
        logger.warning("dropped %d objects with bad segmentations", dropped)
    return ground_truth | {"annotations": kept}


def box_iou(boxes_a: list, boxes_b: list) -> np.ndarray:
    """Returns the intersection over union of boxes as COCO's json has them.

    `[M, 4]` and `[N, 4]` (x, y, width, height) -> `[M, N]` float64; M and N may be 0.
    """
    if not len(boxes_a) or not len(boxes_b):
        return np.zeros((len(boxes_a), len(boxes_b)))
    sets = (np.array(boxes, np.float64) for boxes in (boxes_a, boxes_b))
    return run_lengths.iou(*sets, [False] * len(boxes_b))


def check_detections(ground_truth: dict, detections: list[dict]) -> None:
    """Refuses detections of an unknown image or category, and numbers not finite.

    Args:
      ground_truth: COCO json with `images` and `categories`.
      detections: COCO results with `image_id`, `category_id` and `score`.

    Raises:
      DataError: for the first of them, naming its id or its numbers, and for two
        categories of one name, by which their numbers are returned.
    """
    names = collections.Counter(one["name"] for one in ground_truth["categories"])
    if len(names) < len(ground_truth["categories"]):
        name, count = names.most_common(1)[0]
        raise DataError(
            f"{count} categories of the ground truth have the name {name!r}; allowed: "
            "a name for each"
        )
    for kind, key in (("image_id", "images"), ("category_id", "categories")):
        allowed = {entry["id"] for entry in ground_truth[key]}
        for detection in detections:
            if detection[kind] not in allowed:
                raise DataError(
                    f"a detection has {kind} {detection[kind]!r}, which is none of the "
                    f"{len(allowed)} {key} of the ground truth"
                )
    for one in detections:
        # Of NaN, every order of scores is as right as another.
        if not all(map(math.isfinite, (one["score"], *one.get("bbox", ())))):
            raise DataError(
                f"a detection in image {one['image_id']!r} has score {one['score']!r} "
                f"and bbox {one.get('bbox')!r}; allowed: finite numbers"
            )


def warn_once(message: str) -> None:
    """Logs a warning the first time that a process has it; evaluations are repeated."""
    if message not in _warned:
        _warned.add(message)
        logger.warning(message)


_warned: set[str] = set()


def _warn_of_crowded_images(ground_truth: dict, max_detections: int) -> None:
    counts = collections.Counter(
        (annotation["image_id"], annotation["category_id"])
        for annotation in ground_truth["annotations"]
        if not annotation.get("iscrowd")
    )
    crowded = {image_id for (image_id, _), n in counts.items() if n > max_detections}
    if crowded:
        (image_id, _), most = counts.most_common(1)[0]
        warn_once(
            f"{len(crowded)} images have more than {max_detections} objects of one "
            f"class ({image_id!r} has {most}), but COCO's metrics count only the "
            f"{max_detections} best detections of an image and class, so that even "
            f"perfect ones score less than 1; max_detections={most} counts them all "
            f"(--max-detections {most} of experiments.evaluate)"
        )


def _image_sizes(ground_truth: dict) -> dict[int | str, tuple]:
    return {
        image["id"]: (image.get("height"), image.get("width"))
        for image in ground_truth["images"]
    }


def _parse(annotation: dict, sizes: dict[int | str, tuple]) -> Any:
    """Parses a segmentation, or names the annotation whose segmentation is broken."""
    size, segmentation = sizes[annotation["image_id"]], annotation.get("segmentation")
    try:
        if None in size:
            raise ValueError("allowed: in an image of known height and width")
        # Not rounded: the outline decides about each pixel.
        return parse_segmentation(segmentation, size, np.float64)
    except ValueError as error:
        raise DataError(
            f"annotation {annotation['id']!r} has the segmentation "
            f"{reprlib.repr(segmentation)}; {error}"
        ) from error


def with_run_lengths(ground_truth: dict) -> list[dict]:
    """Returns annotations whose segmentations are checked run lengths.

    pycocotools takes a polygon of two points for a box, and reads run lengths that sum
    up to too much beyond their end.
    """
    sizes = _image_sizes(ground_truth)
    return [
        one
        | {"segmentation": to_run_lengths(_parse(one, sizes), sizes[one["image_id"]])}
        for one in ground_truth["annotations"]
    ]


def warn_of_empty_masks(annotations: list[dict]) -> None:
    """Warns of annotations, with run lengths, whose masks have no pixel."""
    # One by one: of more than 255 at once, pycocotools makes an OverflowError.
    if empty := sum(not run_lengths.area(one["segmentation"]) for one in annotations):
        warn_once(
            f"{empty} of {len(annotations)} objects have masks without a pixel, which "
            "no detection can match: even perfect ones score less than 1"
        )


def all_have_masks(entries: list[dict]) -> bool:
    """Returns whether there are annotations or results, all with a segmentation."""
    return bool(entries) and not _without_mask(entries)


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


def _open_pycocotools(
    ground_truth: dict, annotations: list[dict], results: list[dict]
) -> tuple[type, COCO, COCO]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _index(ground_truth, annotations)
        # loadRes fails on no results.
        found = truth.loadRes(results) if results else _index(truth.dataset, [])
    return COCOeval, truth, found


def _open_hotcoco(
    ground_truth: dict, annotations: list[dict], results: list[dict]
) -> tuple[type, Any, Any]:
    try:
        import hotcoco  # not among the requirements
    except ImportError:
        raise DataError(
            "hotcoco is not installed: pip install hotcoco, or use pycocotools"
        ) from None
    truth = hotcoco.COCO(ground_truth | {"annotations": annotations})
    return hotcoco.COCOeval, truth, truth.load_res(results)


_OPENERS = {"pycocotools": _open_pycocotools, "hotcoco": _open_hotcoco}
