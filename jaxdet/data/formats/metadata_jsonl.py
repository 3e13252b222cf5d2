"""Reads folders of images with a `metadata.jsonl`, as Hugging Face's datasets do.

A line names an image and its objects: {"file_name": "a.jpg", "objects": {"bbox": [[x,
y, width, height], ..], "categories": ["cat", ..]}}.
"""

import json
import logging
import os
import pathlib
import reprlib
from collections.abc import Iterable, Sequence, Set
from typing import Any, NamedTuple

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
from jaxdet.data.files import (
    FileListings,
    list_files,
    open_regular,
    split_of,
    splits_of,
)
from jaxdet.data.formats import DEFAULTS, Format, LoadOptions
from jaxdet.data.formats.coco_json import is_number

_NAME = "metadata.jsonl"
_BEGINNING = 2**16  # bytes, in which one line at least has objects

logger = logging.getLogger(__name__)


class Record(NamedTuple):
    """What a json says of an image."""

    where: str  # it stands: the file and, perhaps, the line
    image: str  # path from the data set's folder on
    categories: Sequence[str]
    boxes: Sequence[tuple[Any, tuple[float, ...]]]
    """As the json has them, and as edges (x1, y1, x2, y2); () for no four numbers."""


def recognize(path: str | os.PathLike) -> bool:
    """Tells whether a path is a `.jsonl`, or a folder with one that has objects."""
    if str(path).endswith(".jsonl"):
        return True
    files = _find_files(path)[1]
    try:
        with open_regular(files[0]) as stream:
            return b'"objects"' in stream.read(_BEGINNING)
    except (IndexError, OSError):
        return bool(files)  # `load` says what is wrong with it.


def splits(path: str | os.PathLike) -> tuple[str, ...]:
    """Lists the folders in `files.SPLITS` that hold images; () if there are none.

    Raises:
      DataError: a file is not as it should be, or some images are in no such folder.
    """
    return splits_of(path, (record.image for record in _read_records(path)))


def load(
    path: str | os.PathLike,
    split: str | None = None,
    options: LoadOptions = DEFAULTS,
) -> DataSet:
    """Reads the images that `metadata.jsonl` names, in its folder or those below.

    Image ids are paths from the folder on. Images that it does not name are left out.

    Args:
      path: the folder, in which each split may have a folder and a `metadata.jsonl` of
        its own; or the file.
      split: only images in folders of this name; None: all.
      options: see there; there are no masks.

    Returns:
      The data set, with all names found for classes, in the order of `order_classes`.

    Raises:
      DataError: a file is missing or not as it should be.
    """
    return load_records(_find_files(path)[0], split, _read_records(path), options)


def load_records(
    folder: pathlib.Path,
    split: str | None,
    records: Sequence[Record],
    options: LoadOptions,
) -> DataSet:
    """Makes a data set of images that are in a folder.

    Args:
      folder: of the data set.
      split: see `load`.
      records: of all splits.
      options: see `load`.

    Returns:
      The data set.

    Raises:
      DataError: see `load`.
    """
    bad = BadBoxCounter(options.bad_boxes)
    name = " ".join(filter(None, (folder.resolve().name, split)))
    records = [one for one in records if split in (None, split_of(one.image))]
    if not records:
        raise DataError(
            f"{folder}: no images of split {split!r}; at least one is needed"
        )
    _check_images(folder, records)
    progress = tqdm(records, name, unit="image", delay=2, leave=False)
    images = [_read_image(folder, record, bad) for record in progress]
    names = {str(name) for image in images for name in image.categories}
    class_names = order_classes(names)
    return make_data_set(name, images, class_names, bad_boxes=bad.count)


def order_classes(names: Set[str]) -> tuple[str, ...]:
    """Orders class names: numbers by value, then texts in alphabetical order."""
    numbers = sorted(filter(str.isdecimal, names), key=lambda one: (len(one), one))
    return (*numbers, *sorted(names.difference(numbers)))


def edges_of(values: Any, *, centered: bool = False) -> tuple[float, ...]:
    """Returns the edges (x1, y1, x2, y2) of a box in a json.

    Args:
      values: [x, y, width, height].
      centered: whether x and y are those of the center, not of the first corner.

    Returns:
      Four numbers; () where `values` are not four finite numbers.
    """
    good = isinstance(values, list) and len(values) == 4
    if not good or not all(map(is_number, values)):
        return ()
    x, y, width, height = values
    if centered:
        x, y = x - width / 2, y - height / 2
    return x, y, x + width, y + height


def path_of(folder: pathlib.Path, inner: str, name: str) -> str:
    """Returns the path of an image from the data set's folder on.

    Args:
      folder: of the data set.
      inner: path of the json's folder from there on; "." if it is that.
      name: of the image in the json; "\\" is taken for "/" where there is no such file.
    """
    path = name if inner == "." else f"{inner}/{name}"
    if "\\" in path and not os.path.exists(os.path.join(folder, path)):
        return path.replace("\\", "/")
    return path


def read_category(value: Any, where: str) -> str:
    """Returns a class name, or a whole number as one.

    Raises:
      DataError: it is none of them.
    """
    if isinstance(value, int | str) and not isinstance(value, bool) and value != "":
        return str(value)
    raise DataError(
        f"{where}: the category is {reprlib.repr(value)}; allowed: a name or a number"
    )


def _find_files(path: str | os.PathLike) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """Returns the data set's folder, and the files in it."""
    path = pathlib.Path(path)
    if path.suffix == ".jsonl":
        return path.parent, [path]
    files = [file for file in list_files(path) if file.split("/")[-1] == _NAME]
    return path, [path / file for file in files]


def _read_records(path: str | os.PathLike) -> list[Record]:
    folder, files = _find_files(path)
    return [record for file in files for record in _read_file(folder, file)]


def _read_file(folder: pathlib.Path, file: pathlib.Path) -> Iterable[Record]:
    inner = file.parent.relative_to(folder).as_posix()
    content = image_files.read_encoded(file).removeprefix(b"\xef\xbb\xbf")
    for number, line in enumerate(content.split(b"\n"), 1):
        where = f"{file}: line {number}"
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not json ({error})") from error
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            raise DataError(
                f"{where}: file_name is {reprlib.repr(name)}; allowed: an image's path"
            )
        categories, boxes = _read_objects(entry.get("objects"), where)
        yield Record(where, path_of(folder, inner, name), categories, boxes)


def _read_objects(objects: Any, where: str) -> tuple[list[str], list]:
    if objects is None:
        return [], []
    if not isinstance(objects, dict):
        raise DataError(
            f"{where}: objects is {reprlib.repr(objects)}; allowed: "
            '{"bbox": [..], "categories": [..]}'
        )
    key = "category" if "category" in objects else "categories"
    boxes, categories = objects.get("bbox"), objects.get(key)
    for name, values in (("bbox", boxes), (key, categories)):
        if not isinstance(values, list):
            raise DataError(
                f"{where}: objects: {name} is {reprlib.repr(values)}; allowed: a list"
            )
    if len(boxes) != len(categories):
        raise DataError(
            f"{where}: objects: bbox has {len(boxes)} boxes, {key} {len(categories)}; "
            "allowed: one for each"
        )
    names = [read_category(value, where) for value in categories]
    return names, [(box, edges_of(box)) for box in boxes]


def _check_images(folder: pathlib.Path, records: Sequence[Record]) -> None:
    present, seen = FileListings(), {}
    for record in records:
        if os.path.join(folder, record.image) not in present:
            raise DataError(
                f"{record.where}: there is no image {folder / record.image}"
            )
        if record.image in seen:
            raise DataError(
                f"{record.where}: {record.image} stands in {seen[record.image]} too; "
                "allowed: once"
            )
        seen[record.image] = record.where


def _read_image(
    folder: pathlib.Path, record: Record, bad: BadBoxCounter
) -> AnnotatedImage:
    path = os.path.join(folder, record.image)
    size = image_files.read_size(path)
    boxes, names = [], []
    for name, (shown, box) in zip(record.categories, record.boxes, strict=True):
        if box and fits_image(box, size):
            boxes.append(box)
            names.append(name)
        else:
            bad.add(
                f"{record.where}: {name} has the box {reprlib.repr(shown)}; allowed: "
                f"four finite numbers within the image of height {size[0]} and width "
                f"{size[1]}, give or take {OVERHANG:g} pixels"
            )
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    return AnnotatedImage(record.image, path, record.where, size, corners, names)


METADATA_JSONL = Format(
    name="Hugging Face's metadata.jsonl",
    description="a folder with metadata.jsonl, or with one in the folder of each split",
    recognize=recognize,
    splits=splits,
    load=load,
    order_classes=order_classes,
)
