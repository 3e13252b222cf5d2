"""Reads data sets in the folders of the Pascal VOC challenges, or in ones like them."""

import functools
import logging
import os
import pathlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from jaxdet.data import image_files
from jaxdet.data.annotations import (
    OVERHANG,
    clip_to_image,
    coco_ground_truth,
    inside_image,
)
from jaxdet.data.dataset import DataError, DataSet, Objects

_NAMES = """
aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike
person pottedplant sheep sofa train tvmonitor
"""
CLASS_NAMES = tuple(_NAMES.split())
"""The twenty of VOC 2007 to 2012."""

_CORNERS = ("xmin", "ymin", "xmax", "ymax")

logger = logging.getLogger(__name__)


def load(
    *folders: str | os.PathLike,
    split: str = "trainval",
    class_names: Sequence[str] | None = CLASS_NAMES,
) -> DataSet:
    """Returns one split of `Annotations/*.xml`, checked; its images must exist.

    VOC counts pixels from 1 and its corners are the first and the last pixel of an
    object; here they become edges, (xmin - 1, ymin - 1, xmax, ymax). Difficult objects
    become crowds, no training targets, and `ground_truth()` has them with iscrowd 1, as
    `tfds` does. Boxes are clipped to their images; objects without area are dropped,
    and their number logged.

    Args:
      *folders: such as `VOCdevkit/VOC2007`, with `Annotations/`, `JPEGImages/` and
        `ImageSets/Main/`. Several, such as 2007 and 2012, become one data set; its
        image ids then begin with the name of the folder, `VOC2007/000005`.
      split: lists the images, `ImageSets/Main/<split>.txt`.
      class_names: label k is `class_names[k]`; None: the twenty of VOC if no other name
        is found, else all names found, in alphabetical order.

    Raises:
      ValueError: no folder is given.
      DataError: a file is missing or not as it should be. `read_image` raises it where
        an image is broken, or its size on disk is not the annotation's.
    """
    if not folders:
        raise ValueError(
            "no folders; at least one is needed, such as VOCdevkit/VOC2007"
        )
    paths = [pathlib.Path(folder) for folder in folders]
    if len({path.name for path in paths}) < len(paths):
        raise DataError(
            f"{', '.join(map(str, paths))}: image ids begin with the names of the "
            "folders; allowed: folders of different names"
        )
    name = f"{'+'.join(path.name for path in paths)} {split}"
    entries, annotations = _read_split(paths, split, name)
    if class_names is None:
        class_names = _order_names(annotations)
    labels = {name: label for label, name in enumerate(class_names)}
    objects = [_objects(annotation, labels) for annotation in annotations]
    dropped = sum(len(annotation.rows) for annotation in annotations)
    dropped -= sum(len(of_image.labels) for of_image in objects)
    if dropped:
        logger.warning("%s: dropped %d objects without area", name, dropped)
    image_ids = tuple(
        f"{entry.folder.name}/{entry.stem}" if len(paths) > 1 else entry.stem
        for entry in entries
    )
    sizes = np.array([annotation.size for annotation in annotations], np.int32)
    category_ids = tuple(range(len(labels)))
    return DataSet(
        name=name,
        class_names=tuple(class_names),
        category_ids=category_ids,
        image_ids=image_ids,
        sizes=sizes,
        objects=tuple(objects),
        read_image=lambda i: image_files.read_sized(
            entries[i].image, sizes[i], entries[i].annotation
        ),
        ground_truth=functools.partial(
            coco_ground_truth,
            image_ids,
            sizes,
            objects,
            category_ids,
            tuple(class_names),
        ),
        read_encoded=lambda i: image_files.read_encoded(entries[i].image),
    )


def find_class_names(
    *folders: str | os.PathLike, splits: Sequence[str]
) -> tuple[str, ...]:
    """Finds the classes of several splits together.

    Args:
      *folders: see `load`.
      splits: which of them to read.

    Returns:
      The twenty of VOC if no other name is found, else all names found, in alphabetical
      order.

    Raises:
      DataError: see `load`.
    """
    paths = [pathlib.Path(folder) for folder in folders]
    read = [_read_split(paths, split, split)[1] for split in splits]
    return _order_names(
        [annotation for annotations in read for annotation in annotations]
    )


class _Entry(NamedTuple):
    """One image of a split."""

    folder: pathlib.Path
    stem: str
    image: pathlib.Path

    @property
    def annotation(self) -> pathlib.Path:
        return self.folder / "Annotations" / f"{self.stem}.xml"


class _Row(NamedTuple):
    """One object, its box already in edges."""

    name: str
    box: np.ndarray  # [4] (x1, y1, x2, y2)
    difficult: bool


class _Annotation(NamedTuple):
    file: pathlib.Path
    size: tuple[int, int]  # (height, width)
    rows: list[_Row]


def _read_split(
    folders: Sequence[pathlib.Path], split: str, name: str
) -> tuple[list[_Entry], list[_Annotation]]:
    entries = [entry for folder in folders for entry in _list_images(folder, split)]
    progress = tqdm(entries, name, unit="image", delay=2, leave=False)
    return entries, [_read_annotation(entry) for entry in progress]


def _order_names(annotations: Sequence[_Annotation]) -> tuple[str, ...]:
    names = {row.name for annotation in annotations for row in annotation.rows}
    return CLASS_NAMES if names <= set(CLASS_NAMES) else tuple(sorted(names))


def _list_images(folder: pathlib.Path, split: str) -> list[_Entry]:
    file = folder / "ImageSets" / "Main" / f"{split}.txt"
    try:
        lines = file.read_text().splitlines()
    except OSError as error:
        splits = sorted(path.stem for path in file.parent.glob("*.txt"))
        # The others, such as cat_trainval, list the images of one class.
        allowed = ", ".join(name for name in splits if "_" not in name) or "none there"
        raise DataError(
            f"{file}: cannot be read ({error.strerror}); allowed splits: {allowed}"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not a text file ({error})") from error
    stems = [line.split()[0] for line in lines if line.strip()]
    if not stems:
        raise DataError(f"{file}: empty; at least one image is needed")
    if len(set(stems)) < len(stems):
        raise DataError(f"{file}: an image stands there twice; allowed: once")
    # One listing: asking file by file is slow on network disks.
    images = {path.stem: path for path in sorted(folder.glob("JPEGImages/*"))}
    missing = [stem for stem in stems if stem not in images]
    if missing:
        raise DataError(
            f"{file}: {len(missing)} of {len(stems)} images do not exist, the first is "
            f"{folder / 'JPEGImages' / missing[0]}.jpg"
        )
    return [_Entry(folder, stem, images[stem]) for stem in stems]


def _read_annotation(entry: _Entry) -> _Annotation:
    file = entry.annotation
    try:
        root = ElementTree.parse(file).getroot()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        # The latter two for encodings that are unknown, or of several bytes.
        raise DataError(f"{file}: not xml ({error})") from error
    size = _read_size(root, file) or image_files.read_size(entry.image)
    rows = [_read_row(element, size, file) for element in root.iterfind("object")]
    return _Annotation(file, size, rows)


def _read_size(root: ElementTree.Element, file: pathlib.Path) -> tuple[int, int] | None:
    """Returns (height, width); None where the file does not say."""
    if root.find("size") is None:
        return None
    size = tuple(_number(root, f"size/{side}", file) for side in ("height", "width"))
    if not image_files.is_possible(size):
        raise DataError(
            f"{file}: (height, width) is {size}; allowed: whole numbers above 0 of an "
            "image that can be read"
        )
    height, width = map(int, size)
    return height, width


def _read_row(
    element: ElementTree.Element, size: tuple[int, int], file: pathlib.Path
) -> _Row:
    name = element.findtext("name", "").strip()
    if not name:
        raise DataError(f"{file}: an object has no name")
    corners = [_number(element, f"bndbox/{corner}", file) for corner in _CORNERS]
    box = np.array(corners) - (1, 1, 0, 0)
    if not inside_image(box, size):
        raise DataError(
            f"{file}: {name} has (xmin, ymin, xmax, ymax) {corners}; allowed: within "
            f"the image of height {size[0]} and width {size[1]}, give or take "
            f"{OVERHANG:g} pixels"
        )
    difficult = element.findtext("difficult", "0").strip()
    if difficult not in ("0", "1"):
        raise DataError(f"{file}: {name} has difficult {difficult!r}; allowed: 0, 1")
    return _Row(name, box, difficult == "1")


def _number(element: ElementTree.Element, path: str, file: pathlib.Path) -> float:
    text = element.findtext(path)
    try:
        value = float(text)
        if np.isfinite(value):
            return value
    except (TypeError, ValueError):
        pass  # Missing, or no number.
    raise DataError(f"{file}: {path} is {text!r}; allowed: a finite number")


def _objects(annotation: _Annotation, labels: dict[str, int]) -> Objects:
    """Returns the objects of one image that have area."""
    for row in annotation.rows:
        if row.name not in labels:
            raise DataError(
                f"{annotation.file}: the class {row.name!r} is unknown; allowed: "
                f"{', '.join(labels)}"
            )
    boxes = np.array([row.box for row in annotation.rows]).reshape(-1, 4)
    boxes, has_area = clip_to_image(boxes, annotation.size)
    own_labels = np.array([labels[row.name] for row in annotation.rows], np.int32)
    crowd = np.array([row.difficult for row in annotation.rows], bool)
    return Objects(boxes[has_area], own_labels[has_area], crowd[has_area])
