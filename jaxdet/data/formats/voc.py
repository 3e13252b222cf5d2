"""Reads data sets in the folders of the Pascal VOC challenges, or in ones like them."""

import collections
import math
import os
import pathlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence

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
from jaxdet.data.files import list_files, open_regular
from jaxdet.data.formats import BadBoxPolicy, Format, LoadOptions

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FLAGS = {"": False, "0": False, "false": False, "unspecified": False}
_FLAGS |= {"1": True, "true": True}


def load(
    folder: str | os.PathLike,
    split: str = "trainval",
    *,
    bad_boxes: BadBoxPolicy = "error",
) -> DataSet:
    """Returns one split of `Annotations/*.xml`, checked; its images must exist.

    VOC counts pixels from 1 and its corners are the first and the last pixel of an
    object; here they become edges, (xmin - 1, ymin - 1, xmax, ymax). Difficult objects
    become crowds, no training targets, and `ground_truth()` has them with iscrowd 1, as
    `tfds` does. Boxes are clipped to their images; objects without area are dropped,
    and their number logged.

    Args:
      folder: such as `VOCdevkit/VOC2007`, with `Annotations/`, `JPEGImages/` and
        `ImageSets/Main/`.
      split: lists the images, `ImageSets/Main/<split>.txt`.
      bad_boxes: what happens to a box that is not four finite numbers, or reaches more
        than `annotations.OVERHANG` pixels out of its image: an error, or it is dropped,
        and logged.

    Returns:
      The data set, with all names found for classes, in alphabetical order, which is
      that of VOC's twenty.

    Raises:
      ValueError: `bad_boxes` is none of the two.
      DataError: a file is missing or not as it should be. `read_image` raises it where
        an image is broken, or its size on disk is not the annotation's.
    """
    folder, bad = pathlib.Path(folder), BadBoxCounter(bad_boxes)
    name = f"{folder.name} {split}"
    entries, images = _list_images(folder, split), []
    for stem, paths in tqdm(entries, name, unit="image", delay=2, leave=False):
        file = str(folder / "Annotations" / f"{stem}.xml")
        root = read_xml(file)
        path = choose_image(paths, root, file)
        images.append(read_annotation(root, file, path, stem, bad))
    class_names = sorted({name for image in images for name in image.categories})
    return make_data_set(name, images, class_names, bad_boxes=bad.count)


def _list_images(folder: pathlib.Path, split: str) -> list[tuple[str, list[str]]]:
    """Lists the images of a split: their names without suffix, and their paths."""
    file = folder / "ImageSets" / "Main" / f"{split}.txt"
    try:
        with open_regular(file) as stream:
            lines = stream.read().decode("utf-8-sig").splitlines()
    except OSError as error:
        splits = sorted(path.stem for path in file.parent.glob("*.txt"))
        # The others, such as cat_trainval, list the images of one class.
        allowed = ", ".join(name for name in splits if "_" not in name) or "none there"
        raise DataError(
            f"{file}: cannot be read ({error.strerror}); allowed splits: {allowed}"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not a text file ({error})") from error
    # One listing: asking file by file is slow on network disks.
    images = images_by_stem(folder / "JPEGImages")
    stems = [_stem_of(line.strip(), images) for line in lines if line.strip()]
    if not stems:
        raise DataError(f"{file}: empty; at least one image is needed")
    if len(set(stems)) < len(stems):
        raise DataError(f"{file}: an image stands there twice; allowed: once")
    missing = [stem for stem in stems if stem not in images]
    if missing:
        raise DataError(
            f"{file}: {len(missing)} of {len(stems)} images do not exist, the first is "
            f"{folder / 'JPEGImages' / missing[0]}.jpg"
        )
    return [(stem, images[stem]) for stem in stems]


def images_by_stem(folder: pathlib.Path) -> dict[str, list[str]]:
    """Lists image files, by their paths from a folder on, without their suffixes.

    Args:
      folder: looked through with the folders in it.

    Returns:
      "sub/a" -> the paths of `sub/a.jpg` and, were it there, `sub/a.png`.
    """
    images = collections.defaultdict(list)
    for path in filter(image_files.has_image_suffix, list_files(folder)):
        images[os.path.splitext(path)[0]].append(str(folder / path))
    return dict(images)


def _stem_of(line: str, images: Mapping[str, Sequence[str]]) -> str:
    """Returns the image of a split's line: "a", "a.jpg" or, in a class's list, "a -1".

    A name may hold spaces, so the flag is cut off only where no image has that name.
    CVAT puts such names in quotes.
    """
    flagless = re.sub(r"\s+-?[01]$", "", line)
    for name in (line, flagless, flagless.strip('"')):
        without_suffix = os.path.splitext(name)[0]
        if name in images:
            return name
        if image_files.has_image_suffix(name) and without_suffix in images:
            return without_suffix
    return flagless


def choose_image(paths: Sequence[str], root: ElementTree.Element, file: str) -> str:
    """Returns the one of several images of the same stem that an xml is about.

    Args:
      paths: of the images.
      root: of the xml.
      file: the xml, for errors.

    Returns:
      The only one, or that which `<filename>` names.

    Raises:
      DataError: it names none of them, or several.
    """
    name = file_name_of(root)
    named = [path for path in paths if os.path.basename(path) == name]
    for choice in (paths, named):
        if len(choice) == 1:
            return choice[0]
    raise DataError(
        f"{file}: its image is {' or '.join(paths)}, and <filename> {name!r} does not "
        "tell which; allowed: one of them"
    )


def file_name_of(root: ElementTree.Element) -> str:
    """Returns the `<filename>` of an xml without folders; "" if there is none."""
    return re.split(r"[/\\]", root.findtext("filename", "").strip())[-1]


def read_xml(file: str) -> ElementTree.Element:
    """Reads the root element of an xml file.

    Expat resolves no external entities, and refuses those that grow without bounds.

    Raises:
      DataError: it cannot be read, or is not xml.
    """
    try:
        with open_regular(file) as stream:
            return ElementTree.parse(stream).getroot()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        # The latter two for encodings that are unknown, or of several bytes.
        raise DataError(f"{file}: not xml ({error})") from error


def read_annotation(
    root: ElementTree.Element, file: str, image: str, image_id: str, bad: BadBoxCounter
) -> AnnotatedImage:
    """Reads the objects of one image.

    Args:
      root: of the xml.
      file: the xml, for errors.
      image: path of the image; its header is read where the xml has no size.
      image_id: the id it gets.
      bad: is told of bad boxes.

    Returns:
      The image with its good objects; its categories are class names.

    Raises:
      DataError: a size, a name or a flag is not as it should be, or a box is bad.
    """
    size = _read_size(root, file) or image_files.read_size(image)
    boxes, names, difficult = [], [], []
    for element in root.iterfind("object"):
        name = element.findtext("name", "").strip()
        if not name:
            raise DataError(f"{file}: an object has no name")
        flag = element.findtext("difficult", "").strip()
        if flag.lower() not in _FLAGS:
            raise DataError(f"{file}: {name} has difficult {flag!r}; allowed: 0, 1")
        box, problem = _read_box(element, name, size)
        if problem:
            bad.add(f"{file}: {problem}")
            continue
        boxes.append(box)
        names.append(name)
        difficult.append(_FLAGS[flag.lower()])
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    return AnnotatedImage(image_id, image, file, size, corners, names, difficult)


def _read_size(root: ElementTree.Element, file: str) -> tuple[int, int] | None:
    """Returns (height, width); None where the file does not say."""
    size = []
    for side in ("height", "width"):
        text = root.findtext(f"size/{side}", "").strip()
        value = _number(text or "0")
        if value is None:
            raise DataError(f"{file}: size/{side} is {text!r}; allowed: a number")
        if value in (0, -1):  # Tools write them where they do not know.
            return None
        size.append(value)
    if not image_files.is_possible(size):
        raise DataError(
            f"{file}: (height, width) is {tuple(size)}; allowed: whole numbers above 0 "
            "of an image that can be read"
        )
    height, width = map(int, size)
    return height, width


def _read_box(
    element: ElementTree.Element, name: str, size: tuple[int, int]
) -> tuple[tuple[float, ...], str | None]:
    """Returns edges (x1, y1, x2, y2), and what is wrong with them."""
    corners, bounds = [], element.find("bndbox")
    for corner in _CORNERS:
        text = None if bounds is None else bounds.findtext(corner)
        corners.append(_number(text))
        if corners[-1] is None:
            return (), f"{name}: bndbox/{corner} is {text!r}; allowed: a finite number"
    xmin, ymin, xmax, ymax = corners
    box = (xmin - 1, ymin - 1, xmax, ymax)
    if fits_image(box, size):
        return box, None
    return (), (
        f"{name} has (xmin, ymin, xmax, ymax) {corners}; allowed: within the image of "
        f"height {size[0]} and width {size[1]}, give or take {OVERHANG:g} pixels"
    )


def _number(text: str | None) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None  # Missing, or no number.
    return value if math.isfinite(value) else None


def _year(source: str) -> pathlib.Path:
    """Returns the folder of one year; of a VOCdevkit that of 2007."""
    path = pathlib.Path(source)
    return path if (path / "ImageSets").is_dir() else path / "VOC2007"


def _splits(source: str) -> tuple[str, ...]:
    lists = sorted((_year(source) / "ImageSets" / "Main").glob("*.txt"))
    # The others, such as cat_trainval, list the images of one class.
    return tuple(file.stem for file in lists if "_" not in file.stem)


def _load(source: str, split: str | None, options: LoadOptions) -> DataSet:
    # Without any list, the error names that of trainval.
    return load(_year(source), split or "trainval", bad_boxes=options.bad_boxes)


DEVKIT = Format(
    name="Pascal VOC",
    description="Pascal VOC's folder with ImageSets/Main, or VOCdevkit with VOC2007",
    recognize=lambda source: (_year(source) / "ImageSets").is_dir(),
    splits=_splits,
    load=_load,
    order_classes=sorted,
)
