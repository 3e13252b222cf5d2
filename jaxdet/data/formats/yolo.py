"""Reads data sets whose annotations are text files, one an image, in YOLO's format.

A yaml names the classes and where the images of each split lie; without one, the names
stand in a text file, and the splits are folders.
"""

import functools
import logging
import math
import os
import reprlib
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from jaxdet.data import image_files
from jaxdet.data.annotations import (
    OVERHANG,
    AnnotatedImage,
    BadBoxCounter,
    fits_image,
    make_data_set,
)
from jaxdet.data.dataset import DataError, DataSet
from jaxdet.data.files import FileListings
from jaxdet.data.formats import DEFAULTS, Format, LoadOptions
from jaxdet.data.formats.yolo_layouts import Description, describe, is_described

logger = logging.getLogger(__name__)


def splits(path: str | os.PathLike) -> tuple[str, ...]:
    """Lists the splits, those to train on first; () if there is one without a name.

    Those that the yaml names but are nowhere are left out, and logged.

    Raises:
      DataError: the yaml is not as it should be.
    """
    source = describe(path)
    if source.lost:
        names = ", ".join(source.lost)
        logger.warning("%s: left out %s, which is nowhere", source.file, names)
    return tuple(source.splits)


def load(
    path: str | os.PathLike,
    split: str | None = None,
    options: LoadOptions = DEFAULTS,
) -> DataSet:
    """Reads the images of a split and their label files; checks all of them.

    A line of a label file is a class and a box, `class x y width height` of its center,
    or a class and a polygon, `class x1 y1 x2 y2 x3 y3 ..`, in fractions of the image.
    `labels/a.txt` is that of `images/a.jpg`; without a folder `images`, or where no
    image has one there, label files lie beside the images. An image without one has no
    objects; their number is logged. Image ids are paths from the data set's folder on.

    Args:
      path: the yaml, or its folder; or a folder with `classes.txt` or `obj.names`.
      split: see `splits`; None: the first, or all images if there are none.
      options: see there; with `masks`, a box instead of a polygon is bad.

    Returns:
      The data set; label k is the class k of the files.

    Raises:
      DataError: a file is missing or not as it should be.
    """
    bad, masks = BadBoxCounter(options.bad_boxes), options.masks
    source = describe(path)
    if split not in source.splits and (split is not None or source.splits):
        if split is not None:
            allowed = ", ".join(source.splits) or "none there"
            raise DataError(f"{source.file}: no split {split!r}; allowed: {allowed}")
        split = next(iter(source.splits))
    paths = source.find_images(split)
    if not paths:
        raise DataError(f"{source.file}: no images of split {split!r}")
    name = " ".join(filter(None, (os.path.basename(source.folder), split)))
    read = functools.partial(_read_image, source, bad, masks)
    pairs = list(zip(paths, _find_labels(paths), strict=True))
    progress = tqdm(pairs, name, unit="image", delay=2, leave=False)
    images = [read(image, file) for image, file in progress]
    missing = sum(file is None for _, file in pairs)
    if missing:
        logger.warning(
            "%s: %d of %d images have no label file, and are taken for images without "
            "objects",
            *(name, missing, len(paths)),
        )
    return make_data_set(
        *(name, images, source.class_names), bad_boxes=bad.count, with_masks=masks
    )


def _find_labels(images: Sequence[str]) -> list[str | None]:
    """Finds the label file of each image; None where there is none.

    Raises:
      DataError: none has one, or two images have the same.
    """
    present = FileListings()
    beside = [os.path.splitext(image)[0] + ".txt" for image in images]
    swapped = [
        f"{os.sep}labels{os.sep}".join(file.rsplit(f"{os.sep}images{os.sep}", 1))
        for file in beside
    ]
    for files in (swapped, beside):
        found = [file if file in present else None for file in files]
        if any(found):
            _check_unshared(images, found)
            return found
    raise DataError(
        f"none of {len(images)} images has a label file; that of {images[0]} should be "
        f"{swapped[0]}"
    )


def _check_unshared(images: Sequence[str], files: Sequence[str | None]) -> None:
    image_of: dict[str, str] = {}
    for image, file in zip(images, files, strict=True):
        if file is not None and image_of.setdefault(file, image) != image:
            raise DataError(
                f"{file}: its image is {image_of[file]} or {image}; allowed: one of "
                "them"
            )


def _read_image(
    source: Description, bad: BadBoxCounter, masks: bool, image: str, file: str | None
) -> AnnotatedImage:
    size, content = image_files.read_size(image), b""
    if file is not None:
        content = image_files.read_encoded(file).removeprefix(b"\xef\xbb\xbf")
    boxes, labels, polygons = [], [], []
    for number, line in enumerate(content.splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        label, values = _parse(fields)
        if source.has_keypoints:
            values = values[:4]
        box = _box(values, size)
        if label is not None and label not in range(len(source.class_names)):
            raise DataError(
                f"{file}: line {number} has the class {label:g}; allowed: 0 to "
                f"{len(source.class_names) - 1} ({', '.join(source.class_names)})"
            )
        if problem := _problem(box, size, masks and len(values) < 6):
            shown = reprlib.repr(line.decode(errors="replace"))
            bad.add(f"{file}: line {number} is {shown}; allowed: {problem}")
            continue
        boxes.append(box)
        labels.append(int(label))
        if masks:
            points = np.array(values, np.float32).reshape(-1, 2) * size[::-1]
            polygons.append((points.astype(np.float32).ravel(),))
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    image_id = os.path.relpath(image, source.folder).replace(os.sep, "/")
    return AnnotatedImage(
        image_id, image, file or image, size, corners, labels, polygons=polygons
    )


def _parse(fields: Sequence[bytes]) -> tuple[float | None, list[float]]:
    """Returns the class and all further numbers; nothing where one is none."""
    try:
        label, *values = map(float, fields)
    except ValueError:
        return None, []
    return label, values if math.isfinite(sum(values)) else []


def _box(values: Sequence[float], size: tuple[int, int]) -> tuple[float, ...]:
    """Returns the edges (x1, y1, x2, y2) in pixels; () where the count is wrong."""
    height, width = size
    if len(values) == 4:
        x, y, w, h = values
        x1, y1, x2, y2 = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    elif len(values) >= 6 and len(values) % 2 == 0:
        xs, ys = values[::2], values[1::2]
        x1, y1, x2, y2 = min(xs), min(ys), max(xs), max(ys)
    else:
        return ()
    return x1 * width, y1 * height, x2 * width, y2 * height


def _problem(
    box: Sequence[float], size: tuple[int, int], lacks_polygon: bool
) -> str | None:
    """Says what a line must be that is bad."""
    if not box:
        return "class x y width height, or class x1 y1 x2 y2 x3 y3 .., all numbers"
    if not fits_image(box, size):
        return (
            "fractions, from 0 to 1, of an image of height "
            f"{size[0]} and width {size[1]}, give or take {OVERHANG:g} pixels"
        )
    return "polygons, class x1 y1 x2 y2 x3 y3 .., for masks" if lacks_polygon else None


YOLO = Format(
    name="YOLO",
    description="YOLO's yaml with names, train and val, or its folder; or a folder "
    "with classes.txt and label files",
    recognize=is_described,
    splits=splits,
    load=load,
)
