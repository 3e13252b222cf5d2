"""Reads data sets whose annotations are a json file in COCO's format."""

import functools
import logging
import os
import pathlib
import reprlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdet.data import image_files
from jaxdet.data.annotations import (
    OVERHANG,
    BadBoxCounter,
    clip_to_image,
    warn_of_dropped,
)
from jaxdet.data.dataset import DataError, DataSet, Objects
from jaxdet.data.formats import BadBoxPolicy
from jaxdet.data.formats.coco_json import (
    find_images,
    find_root_categories,
    is_number,
    read_categories,
    read_coco,
    read_image_ids,
    read_sizes,
    unique_ids,
)
from jaxdet.data.masks import parse_segmentation, rasterize_all

_LEFT_OUT = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
CATEGORY_IDS = tuple(i for i in range(1, 91) if i not in _LEFT_OUT)
"""Of COCO's 80 classes, in its order."""
_NAMES = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,
fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow,
elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee,
skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana,
apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair,
couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard,
cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase,
scissors, teddy bear, hair drier, toothbrush
"""
CLASS_NAMES = tuple(_NAMES.strip().replace("\n", " ").split(", "))
"""Of the same."""

_ROUNDING = 0.1  # pixels; boxes that reach out less stay in the truth as they are
_LISTED = 10  # of the allowed values, in an error message

logger = logging.getLogger(__name__)


def load(
    annotations: str | os.PathLike,
    images: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    bad_boxes: BadBoxPolicy = "error",
    masks: bool = False,
    keep_empty_classes: bool = False,
) -> DataSet:
    """Reads a json in COCO's format; checks all of it, and that every image is there.

    Category ids, in ascending order, become labels 0..K-1. Boxes are clipped to their
    images; objects without area are dropped, and their number logged. `ground_truth()`
    reads the json again, so that polygons do not stay in memory.

    Args:
      annotations: path of the json.
      images: the folder in which its `file_name`s, which may hold subfolders, lie; of
        several folders the first one that holds all of them.
      bad_boxes: see `LoadOptions`.
      masks: whether to keep the segmentations in memory, as float32 and run lengths
        (COCO's train2017: a few hundred megabytes), for `read_masks` to draw.
      keep_empty_classes: see `LoadOptions`.

    Returns:
      A data set whose `ground_truth()` holds the annotations of the objects as they are
      in the json, but for boxes that reach out of their images, which are clipped, and
      an absent `area` or `iscrowd`, which is filled in as width x height and 0.

    Raises:
      ValueError: `bad_boxes` is none of the two.
      DataError: the json or an image is not as it should be. `read_image` raises it
        where an image is broken, or its size on disk is not the json's.
    """
    file = pathlib.Path(annotations)
    folders = [images] if isinstance(images, str | os.PathLike) else images
    content = read_coco(file)
    roots = [] if keep_empty_classes else find_root_categories(content)
    _leave_out(roots, content)
    try:
        read = _read_entries(content, folders, bad_boxes, masks)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    paths, sizes = read.paths, read.sizes
    objects, kept = _clip_and_group(read.rows, sizes)
    dropped = frozenset(one["id"] for one in content["annotations"])
    dropped -= {read.ids[row] for own in kept for row in own}
    _log_left_out(file, roots, content["annotations"], dropped, len(read.rows), masks)
    return DataSet(
        name=file.stem,
        class_names=read.class_names,
        category_ids=tuple(read.labels),
        image_ids=read.image_ids,
        sizes=sizes,
        objects=objects,
        read_image=lambda i: image_files.read_sized(paths[i], sizes[i], file),
        ground_truth=functools.partial(
            _ground_truth, file, roots, dropped, _clip_overhanging(read)
        ),
        read_masks=_mask_reader(objects, kept, read.outlines) if masks else None,
        read_encoded=lambda i: image_files.read_encoded(paths[i]),
        file_names=[one["file_name"].replace("\\", "/") for one in content["images"]],
    )


class _Entries(NamedTuple):
    """What stands in a json, checked."""

    labels: dict[int, int]  # by category id
    class_names: tuple[str, ...]
    image_ids: tuple[int | str, ...]
    paths: Sequence[str]  # of the images
    sizes: np.ndarray  # [number of images, 2] (height, width)
    # of good annotations: position of the image, label, crowd, x, y, width, height
    rows: np.ndarray  # [M, 7]
    outlines: list  # M segmentations, None without masks
    ids: list  # M


def _read_entries(
    content: dict, folders: Sequence[str | os.PathLike], bad_boxes: str, masks: bool
) -> _Entries:
    labels, class_names = read_categories(content["categories"])
    image_ids = read_image_ids(content["images"])
    paths = find_images(content["images"], folders)
    sizes = read_sizes(content["images"], paths)
    annotations = content["annotations"]
    unique_ids(annotations, "annotations", (int, str))
    read = _read_annotations(annotations, image_ids, sizes, labels, bad_boxes, masks)
    return _Entries(labels, class_names, image_ids, paths, sizes, *read)


def _leave_out(categories: list[dict], content: dict) -> None:
    content["categories"] = [
        one for one in content["categories"] if one not in categories
    ]


def _read_annotations(
    annotations: list[dict],
    image_ids: tuple,
    sizes: np.ndarray,
    labels: dict[int, int],
    bad_boxes: str,
    masks: bool,
) -> tuple[np.ndarray, list, list]:
    """Checks all annotations.

    Returns:
      Of the good ones `[M, 7]` (position of the image, label, crowd, x, y, width,
      height), M segmentations, None without `masks`, and M ids.
    """
    positions = {image_id: position for position, image_id in enumerate(image_ids)}
    sizes_as_tuples = list(map(tuple, sizes.tolist()))  # NumPy is slow one by one
    bad = BadBoxCounter(bad_boxes)
    rows, outlines, good = [], [], []
    for annotation in annotations:
        position = _look_up(annotation, "image_id", positions)
        label = _look_up(annotation, "category_id", labels)
        crowd = _read_crowd(annotation)
        size, outline = sizes_as_tuples[position], None
        problem = _box_problem(annotation.get("bbox"), *size)
        if masks and not problem:
            outline, problem = _read_outline(annotation.get("segmentation"), size)
        if not problem:
            rows.append((position, label, crowd, *annotation["bbox"]))
            outlines.append(outline)
            good.append(annotation["id"])
        else:
            bad.add(f"annotation {annotation['id']!r} has {problem}")
    return np.array(rows).reshape(-1, 7), outlines, good


def _look_up(annotation: dict, key: str, known: dict) -> int:
    value = annotation.get(key)
    right_type = isinstance(value, int | str) and not isinstance(value, bool)
    if right_type and value in known:
        return known[value]
    allowed = ", ".join(map(repr, list(known)[:_LISTED]))
    more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
    raise DataError(
        f"annotation {annotation['id']!r} has {key} {value!r}; allowed: {allowed}{more}"
    )


def _read_crowd(annotation: dict) -> int:
    """Reads `iscrowd`, and checks the area by the way; null counts as absent."""
    crowd, area = annotation.get("iscrowd"), annotation.get("area")
    crowd = 0 if crowd is None else crowd
    if crowd not in (0, 1):
        raise DataError(
            f"annotation {annotation['id']!r} has iscrowd {crowd!r}; allowed: 0, 1"
        )
    if area is not None and not (is_number(area) and area >= 0):
        raise DataError(
            f"annotation {annotation['id']!r} has area {area!r}; allowed: a finite "
            "number from 0 on"
        )
    return crowd


def _box_problem(box: Any, height: int, width: int) -> str | None:
    """Says what is wrong with a box. Plain Python: NumPy is slow one box at a time."""
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        return f"the bbox {box!r}; allowed: four finite numbers [x, y, width, height]"
    x, y, box_width, box_height = box
    outside = max(-x, -y, x - width, y - height)
    if max(outside, x + box_width - width, y + box_height - height) > OVERHANG:
        return (
            f"the bbox {box!r}; allowed: within its image of height {height} and width "
            f"{width}, give or take {OVERHANG:g} pixels"
        )
    return None


def _read_outline(segmentation: Any, size: tuple[int, int]) -> tuple[Any, str | None]:
    """Reads a segmentation in its compact form, or says what is wrong with it."""
    if segmentation is None:
        allowed = "one in every annotation, or masks=False (mask_size and copy_paste 0)"
        return None, f"no segmentation; allowed: {allowed}"
    try:
        return parse_segmentation(segmentation, size), None
    except ValueError as error:
        return None, f"the segmentation {reprlib.repr(segmentation)}; {error}"


def _clip_and_group(
    rows: np.ndarray, sizes: np.ndarray
) -> tuple[tuple[Objects, ...], list[np.ndarray]]:
    """Groups rows by image: the objects that have area, and which rows they were.

    Args:
      rows: `[M, 7]`, see `_read_annotations`.
      sizes: `[number of images, 2]` (height, width).
    """
    positions, labels = rows[:, 0].astype(np.int32), rows[:, 1].astype(np.int32)
    crowd = rows[:, 2].astype(bool)
    corners = np.concatenate([rows[:, 3:5], rows[:, 3:5] + rows[:, 5:]], axis=-1)
    boxes, has_area = clip_to_image(corners, sizes[positions])
    order = np.argsort(positions, kind="stable")  # keeps the json's order in an image
    order = order[has_area[order]]
    ends = np.cumsum(np.bincount(positions[order], minlength=len(sizes)))[:-1]
    groups = [np.split(array[order], ends) for array in (boxes, labels, crowd)]
    return tuple(map(Objects, *groups)), np.split(order, ends)


def _clip_overhanging(read: _Entries) -> dict[int | str, list[float]]:
    """Returns the clipped boxes, by annotation id, of those that reach out."""
    starts, sides = read.rows[:, 3:5], read.rows[:, 5:]
    limits = read.sizes[read.rows[:, 0].astype(np.int32), ::-1]
    outside = np.maximum(-starts, starts + sides - limits).max(axis=-1) > _ROUNDING
    first = starts.clip(0)
    boxes = np.concatenate([first, np.minimum(starts + sides, limits) - first], axis=-1)
    return {read.ids[row]: boxes[row].tolist() for row in np.flatnonzero(outside)}


def _log_left_out(
    file: pathlib.Path,
    roots: list[dict],
    annotations: list[dict],
    dropped: frozenset,
    good: int,
    masks: bool,
) -> None:
    """Logs which categories, how many objects and how many parts are left out."""
    for root in roots:
        logger.info(
            "%s: left out the category %r, which has no objects and holds others "
            "together (keep_empty_classes keeps it)",
            *(file, root["name"]),
        )
    bad = len(annotations) - good
    warn_of_dropped(str(file), bad, len(dropped) - bad, masks)
    outlines = [
        one["segmentation"] for one in annotations if masks and one["id"] not in dropped
    ]
    polygons = [parts for parts in outlines if isinstance(parts, list)]
    strays = sum(len(part) < 6 for parts in polygons for part in parts)
    if strays:
        logger.warning("%s: dropped %d parts of under 3 points", file, strays)


def _mask_reader(
    objects: Sequence[Objects], kept: Sequence[np.ndarray], outlines: list
) -> Callable[[int, int], np.ndarray]:
    segmentations = [[outlines[row] for row in own] for own in kept]
    return lambda i, mask_size: rasterize_all(
        segmentations[i], objects[i].boxes, mask_size
    )


def _ground_truth(
    file: pathlib.Path, roots: list[dict], dropped: frozenset, clipped: dict
) -> dict:
    content = read_coco(file)
    _leave_out(roots, content)
    content.setdefault("info", {})  # COCO.loadRes copies it
    kept = [entry for entry in content["annotations"] if entry["id"] not in dropped]
    for annotation in kept:
        annotation["bbox"] = list(clipped.get(annotation["id"], annotation["bbox"]))
        if annotation.get("area") is None:
            _, _, width, height = annotation["bbox"]
            annotation["area"] = width * height
        if annotation.get("iscrowd") is None:
            annotation["iscrowd"] = 0
    return {**content, "annotations": kept}
