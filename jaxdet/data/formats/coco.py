"""Reads data sets whose annotations are a json file in COCO's format."""

import collections
import functools
import logging
import os
import pathlib
import reprlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxdet.data import image_files
from jaxdet.data.annotations import OVERHANG, clip_to_image
from jaxdet.data.dataset import DataError, DataSet, Objects
from jaxdet.data.files import read_json
from jaxdet.data.formats import BadBoxPolicy
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

_LISTED = 10  # of the allowed values, in an error message

logger = logging.getLogger(__name__)


def load(
    annotations: str | os.PathLike,
    images: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    bad_boxes: BadBoxPolicy = "error",
    masks: bool = False,
) -> DataSet:
    """Reads a json in COCO's format; checks all of it, and that every image is there.

    Category ids, in ascending order, become labels 0..K-1. Boxes are clipped to their
    images; objects without area are dropped, and their number logged. Images without
    objects stay. The json is read again whenever `ground_truth()` is called, so that
    polygons do not stay in memory.

    Args:
      annotations: path of the json.
      images: the folder in which its `file_name`s, which may hold subfolders, lie; of
        several folders the first one that holds all of them.
      bad_boxes: what happens to a box that is not four finite numbers, or reaches more
        than `annotations.OVERHANG` pixels out of its image: an error, or it is dropped,
        from `ground_truth()` too, and logged. With `masks`, the same for a bad
        segmentation.
      masks: whether to keep the segmentations, for `read_masks`. They are drawn when
        they are asked for; the outlines stay in memory, as float32 and run lengths
        (COCO's train2017: a few hundred megabytes).

    Returns:
      A data set whose `ground_truth()` holds the annotations as they are in the json;
      only missing `area` and `iscrowd` are filled in, as width x height and 0.

    Raises:
      ValueError: `bad_boxes` is none of the two.
      DataError: the json or an image is not as it should be. `read_image` raises it
        where an image is broken, or its size on disk is not the json's.
    """
    if bad_boxes not in ("error", "skip"):
        raise ValueError(f'bad_boxes is {bad_boxes!r}; allowed: "error", "skip"')
    file = pathlib.Path(annotations)
    folders = [images] if isinstance(images, str | os.PathLike) else images
    content = _read_coco(file)
    try:
        labels, class_names = _read_categories(content["categories"])
        image_ids = _unique_ids(content["images"], "images", (int, str))
        paths = _image_paths(content["images"], folders)
        sizes = _image_sizes(content["images"], paths)
        _unique_ids(content["annotations"], "annotations", (int, str))
        rows, outlines, bad = _read_annotations(
            content["annotations"], image_ids, sizes, labels, bad_boxes, masks
        )
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    objects, kept = _clip_and_group(rows, sizes)
    _warn_of_dropped(file, len(bad), len(rows) - sum(map(len, kept)), masks)
    _warn_of_strays(file, content["annotations"], bad, masks)
    return DataSet(
        name=file.stem,
        class_names=class_names,
        category_ids=tuple(labels),
        image_ids=image_ids,
        sizes=sizes,
        objects=objects,
        read_image=lambda i: image_files.read_sized(paths[i], sizes[i], file),
        ground_truth=functools.partial(_ground_truth, file, bad),
        read_masks=_mask_reader(objects, kept, outlines) if masks else None,
        read_encoded=lambda i: image_files.read_encoded(paths[i]),
    )


def _read_coco(file: pathlib.Path) -> dict:
    content = read_json(file)
    if not isinstance(content, dict):
        raise DataError(
            f"{file}: not in COCO's format: a {type(content).__name__}, not an object "
            "with images, annotations and categories"
        )
    for key in ("images", "annotations", "categories"):
        entries = content.get(key)
        if not isinstance(entries, list) or not all(
            isinstance(entry, dict) for entry in entries
        ):
            problem = "is not a list of objects" if key in content else "is missing"
            raise DataError(f'{file}: not in COCO\'s format: "{key}" {problem}')
    for key in ("images", "categories"):
        if not content[key]:
            raise DataError(f'{file}: "{key}" is empty; at least one is needed')
    return content


def _unique_ids(entries: list[dict], key: str, types: tuple[type, ...]) -> tuple:
    ids = tuple(entry.get("id") for entry in entries)
    for position, value in enumerate(ids):
        if not isinstance(value, types) or isinstance(value, bool):
            allowed = " or ".join(kind.__name__ for kind in types)
            raise DataError(
                f"{key}[{position}] has the id {value!r}; allowed: {allowed}"
            )
    _check_unique(ids, "id", key)
    return ids


def _check_unique(values: tuple, what: str, key: str) -> None:
    if len(set(values)) < len(values):
        value, count = collections.Counter(values).most_common(1)[0]
        raise DataError(
            f"{what} {value!r} stands {count} times in {key}; allowed: once"
        )


def _read_categories(categories: list[dict]) -> tuple[dict[int, int], tuple[str, ...]]:
    """Reads labels by category id, and their names."""
    _unique_ids(categories, "categories", (int,))
    categories = sorted(categories, key=lambda category: category["id"])
    for category in categories:
        if not isinstance(category.get("name"), str):
            raise DataError(
                f"category {category['id']} has the name {category.get('name')!r}; "
                "allowed: a string"
            )
    names = tuple(category["name"] for category in categories)
    _check_unique(names, "name", "categories")
    labels = {category["id"]: label for label, category in enumerate(categories)}
    return labels, names


def _image_paths(
    images: list[dict], folders: Sequence[str | os.PathLike]
) -> tuple[str, ...]:
    """Finds the images in the first folder that holds all of them."""
    for image in images:
        name = image.get("file_name")
        if not isinstance(name, str) or not name:
            raise DataError(
                f"image {image['id']!r} has the file_name {name!r}; allowed: a path "
                "within the image folder"
            )
    # One listing a folder: asking file by file is slow on network disks.
    listed = functools.cache(_listing)
    candidates = []
    for folder in folders:
        paths = [os.path.join(folder, image["file_name"]) for image in images]
        missing = [
            path
            for path in paths
            if os.path.basename(path) not in listed(os.path.dirname(path))
        ]
        if not missing:
            return tuple(paths)
        candidates.append(missing)
    missing = min(candidates, key=len)
    raise DataError(
        f"{len(missing)} of {len(images)} images do not exist, the first is "
        f"{missing[0]}"
    )


def _listing(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def _image_sizes(images: list[dict], paths: Sequence[str]) -> np.ndarray:
    sizes = np.zeros((len(images), 2), np.int32)
    for position, image in enumerate(images):
        size = image.get("height"), image.get("width")
        if size == (None, None):
            size = image_files.read_size(paths[position])
        if not (all(map(_is_number, size)) and image_files.is_possible(size)):
            raise DataError(
                f"image {image['id']!r} has (height, width) {size}; allowed: whole "
                "numbers above 0, of an image that can be read, or none"
            )
        sizes[position] = size
    return sizes


def _is_number(value: Any) -> bool:
    """Tells whether a value is a finite number; the bound refuses NaN and infinity."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < 1e9
    )


def _read_annotations(
    annotations: list[dict],
    image_ids: tuple,
    sizes: np.ndarray,
    labels: dict[int, int],
    bad_boxes: str,
    masks: bool,
) -> tuple[np.ndarray, list, frozenset]:
    """Checks all annotations.

    Returns:
      Of the good ones `[M, 7]` (position of the image, label, crowd, x, y, width,
      height) and M segmentations, None without `masks`; and the ids of bad ones.
    """
    positions = {image_id: position for position, image_id in enumerate(image_ids)}
    sizes_as_tuples = list(map(tuple, sizes.tolist()))  # NumPy is slow one by one
    rows, outlines, bad = [], [], set()
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
        elif bad_boxes == "skip":
            bad.add(annotation["id"])
        else:
            raise DataError(
                f"annotation {annotation['id']!r} has {problem} "
                '(bad_boxes="skip" drops it)'
            )
    return np.array(rows).reshape(-1, 7), outlines, frozenset(bad)


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
    """Reads `iscrowd`, and checks the area by the way."""
    crowd, area = annotation.get("iscrowd", 0), annotation.get("area")
    if crowd not in (0, 1):
        raise DataError(
            f"annotation {annotation['id']!r} has iscrowd {crowd!r}; allowed: 0, 1"
        )
    if area is not None and not (_is_number(area) and area >= 0):
        raise DataError(
            f"annotation {annotation['id']!r} has area {area!r}; allowed: a finite "
            "number from 0 on"
        )
    return crowd


def _box_problem(box: Any, height: int, width: int) -> str | None:
    """Says what is wrong with a box. Plain Python: NumPy is slow one box at a time."""
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
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
        return None, "no segmentation; allowed: one in every annotation, or masks=False"
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


def _warn_of_dropped(file: pathlib.Path, bad: int, empty: int, masks: bool) -> None:
    if bad:
        what = "boxes or segmentations" if masks else "boxes"
        logger.warning("%s: dropped %d objects with bad %s", file, bad, what)
    if empty:
        logger.warning("%s: dropped %d objects without area", file, empty)


def _warn_of_strays(
    file: pathlib.Path, annotations: list[dict], bad: frozenset, masks: bool
) -> None:
    """Counts the parts of polygons that `parse_segmentation` leaves out."""
    polygons = [
        one["segmentation"]
        for one in annotations
        if masks and one["id"] not in bad and isinstance(one["segmentation"], list)
    ]
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


def _ground_truth(file: pathlib.Path, bad: frozenset) -> dict:
    content = _read_coco(file)
    content.setdefault("info", {})  # COCO.loadRes copies it
    kept = [entry for entry in content["annotations"] if entry["id"] not in bad]
    for annotation in kept:
        if annotation.get("area") is None:
            _, _, width, height = annotation["bbox"]
            annotation["area"] = max(width, 0) * max(height, 0)
        annotation.setdefault("iscrowd", 0)
    return {**content, "annotations": kept}
