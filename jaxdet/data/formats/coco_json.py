"""Reads and checks what a json in COCO's format says of its images and classes."""

import collections
import functools
import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxdet.data import image_files
from jaxdet.data.dataset import DataError
from jaxdet.data.files import read_json

_ABSENT = (None, "", 0, -1)  # what tools write where they do not know a size
_NO_PARENT = (None, "", "none", "None")

logger = logging.getLogger(__name__)


def read_coco(file: pathlib.Path) -> dict:
    """Reads a json of lists of images, annotations and categories.

    Raises:
      DataError: it is none.
    """
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


def find_root_categories(content: dict) -> list[dict]:
    """Finds the categories that only hold others together.

    Roboflow writes one. No annotation is of it, it has no supercategory, and it is the
    supercategory of another.
    """
    used = [one.get("category_id") for one in content["annotations"]]
    used = {number for number in used if isinstance(number, int)}
    categories = content["categories"]
    return [
        one
        for one in categories
        if isinstance(one.get("id"), int)
        and one["id"] not in used
        and one.get("supercategory") in _NO_PARENT
        and one.get("name") not in _NO_PARENT
        and any(
            other is not one and other.get("supercategory") == one["name"]
            for other in categories
        )
    ]


def unique_ids(entries: list[dict], key: str, types: tuple[type, ...]) -> tuple:
    """Reads the id of each entry.

    Args:
      entries: images, annotations or categories.
      key: which of them, for errors.
      types: allowed.

    Returns:
      The ids, all unlike.

    Raises:
      DataError: an id is of another type, or stands there twice.
    """
    ids = tuple(entry.get("id") for entry in entries)
    for position, value in enumerate(ids):
        if not isinstance(value, types) or isinstance(value, bool):
            allowed = " or ".join(kind.__name__ for kind in types)
            raise DataError(
                f"{key}[{position}] has the id {value!r}; allowed: {allowed}"
            )
    _check_unique(ids, "id", key)
    return ids


def read_categories(categories: list[dict]) -> tuple[dict[int, int], tuple[str, ...]]:
    """Returns labels by category id, and their names.

    Raises:
      DataError: an id or a name is missing, or stands there twice.
    """
    unique_ids(categories, "categories", (int,))
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


def read_image_ids(images: list[dict]) -> tuple[int | str, ...]:
    """Returns the id of each image.

    Raises:
      DataError: an id is no number and no text, or stands there twice; or some are
        numbers and some are texts, which cannot be sorted.
    """
    ids = unique_ids(images, "images", (int, str))
    texts = [value for value in ids if isinstance(value, str)]
    if 0 < len(texts) < len(ids):
        number = next(value for value in ids if not isinstance(value, str))
        raise DataError(
            f"images have the ids {number!r} and {texts[0]!r}; allowed: either numbers "
            "or texts"
        )
    return ids


def find_images(
    images: list[dict], folders: Sequence[str | os.PathLike]
) -> tuple[str, ...]:
    """Returns the paths of the images in the first folder that holds all of them.

    Raises:
      DataError: no folder does.
    """
    for image in images:
        name = image.get("file_name")
        if not isinstance(name, str) or not name:
            raise DataError(
                f"image {image['id']!r} has the file_name {name!r}; allowed: a path "
                "within the image folder"
            )
    names = [image["file_name"] for image in images]
    listed = functools.cache(_list_folder)  # asking file by file is slow on disks afar
    missing = {}
    # Those without the first image last, as looking for all takes long.
    for folder in sorted(
        folders, key=lambda one: _find_image(one, names[0], listed) is None
    ):
        paths = [_find_image(folder, name, listed) for name in names]
        missing[folder] = [
            name for name, path in zip(names, paths, strict=True) if path is None
        ]
        if not missing[folder]:
            _warn_of_backslashes(names, paths)
            return tuple(paths)
    folder = min(missing, key=lambda folder: len(missing[folder]))
    raise DataError(
        f"{len(missing[folder])} of {len(names)} images do not exist, the first is "
        f"{os.path.join(folder, missing[folder][0])}"
    )


def read_sizes(images: list[dict], paths: Sequence[str]) -> np.ndarray:
    """Returns the size of each image, read from its file where the json has none.

    Args:
      images: of the json.
      paths: of their files.

    Returns:
      `[number of images, 2]` int32 (height, width).

    Raises:
      DataError: a size is not possible.
    """
    sizes = np.zeros((len(images), 2), np.int32)
    for position, image in enumerate(images):
        size = image.get("height"), image.get("width")
        if any(side in _ABSENT for side in size):
            size = image_files.read_size(paths[position])
        if not (all(map(is_number, size)) and image_files.is_possible(size)):
            raise DataError(
                f"image {image['id']!r} has (height, width) {size}; allowed: whole "
                "numbers above 0, of an image that can be read, or none"
            )
        sizes[position] = size
    return sizes


def is_number(value: Any) -> bool:
    """Tells whether a value is a finite number; the bound refuses NaN and infinity."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < 1e9
    )


def _check_unique(values: tuple, what: str, key: str) -> None:
    if len(set(values)) < len(values):
        value, count = collections.Counter(values).most_common(1)[0]
        raise DataError(
            f"{what} {value!r} stands {count} times in {key}; allowed: once"
        )


def _list_folder(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except (OSError, ValueError):  # The latter of names with a zero in them.
        return frozenset()


def _find_image(
    folder: str | os.PathLike, name: str, listed: Callable[[str], frozenset[str]]
) -> str | None:
    """Returns the path of a file; Windows's way to write it counts, too."""
    for inner in (name, name.replace("\\", "/")):
        path = os.path.join(folder, inner)
        if os.path.basename(path) in listed(os.path.dirname(path)):
            return path
    return None


def _warn_of_backslashes(names: Sequence[str], paths: Sequence[str]) -> None:
    turned = [
        name
        for name, path in zip(names, paths, strict=True)
        if "\\" in name and not path.endswith(name)
    ]
    if turned:
        logger.warning(
            "%d names of images have backslashes, which are taken for folders; the "
            "first is %s",
            *(len(turned), turned[0]),
        )
