"""Finds the images and the class names of data sets in YOLO's format.

A yaml says both; without one, the names stand in a text file, and splits are folders.
"""

import collections
import os
import pathlib
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from jaxdet.data import image_files
from jaxdet.data.dataset import DataError
from jaxdet.data.files import (
    SPLITS,
    FileListings,
    list_files,
    open_regular,
    split_of,
    splits_of,
)

# Of labelImg and Label Studio, of Darknet and CVAT, and of Roboflow.
_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels")
_NOTHING = ("", "null", "~")


class Description(NamedTuple):
    """What a data set says of itself."""

    file: str  # that says it
    folder: str  # of the data set
    class_names: Sequence[str]
    splits: Sequence[str]
    find_images: Callable[[str | None], list[str]]  # split -> paths of its images
    lost: Sequence[str] = ()  # splits that are nowhere, but for the first
    has_keypoints: bool = False  # behind the boxes


def is_described(path: str | os.PathLike) -> bool:
    """Tells whether a path is a yaml, or a folder with one that names train or val.

    A folder without such a yaml needs a list of classes and a label file.
    """
    return _find_yaml(path) is not None or bool(_find_names(path))


def describe(path: str | os.PathLike) -> Description:
    """Reads what a data set says of itself.

    Args:
      path: the yaml, or its folder; or a folder with `classes.txt` or `obj.names`.

    Returns:
      The classes, the splits, and how to list the images of a split.

    Raises:
      DataError: it is not in YOLO's format, or a file is not as it should be.
    """
    file = _find_yaml(path)
    if file is not None:
        return _describe_yaml(file)
    names = _find_names(path)
    if not names:
        raise DataError(
            f"{path}: not in YOLO's format; allowed: a yaml with names, and train or "
            f"val, its folder, or one with {' or '.join(_NAME_FILES)} and label files"
        )
    return _describe_folder(os.path.abspath(path), names)


def _describe_yaml(file: pathlib.Path) -> Description:
    content, folder = _read_yaml(file), os.path.abspath(file.parent)
    entries = {key: content[key] for key in _split_keys(content)}
    for key, value in entries.items():
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(one, str) for one in values):
            raise DataError(
                f"{file}: {key} is {reprlib.repr(value)}; allowed: a folder of images, "
                "a text file that lists images, or a list of them"
            )
        entries[key] = values
    root = content["path"] if _is_given(content, "path") else ""
    if not isinstance(root, str):
        raise DataError(f"{file}: path is {reprlib.repr(root)}; allowed: a folder")
    roots = [os.path.join(folder, os.path.expanduser(root)), folder]
    # Roboflow names splits without images, too. The first is needed, and an error.
    lost = [
        key
        for key in list(entries)[1:]
        if not any(_find_place(entry, roots) for entry in entries[key])
    ]
    return Description(
        file=str(file),
        folder=folder,
        class_names=_read_class_names(content, file),
        splits=tuple(key for key in entries if key not in lost),
        lost=lost,
        find_images=lambda split: _list_images(file, split, entries[split], roots),
        has_keypoints="kpt_shape" in content,
    )


def _describe_folder(folder: str, files: Sequence[str]) -> Description:
    lists = {file: _read_lines(os.path.join(folder, file)) for file in files}
    first, class_names = next(iter(lists.items()))
    for file, other in lists.items():
        if other != class_names:
            raise DataError(f"{folder}: {first} and {file} differ; allowed: one list")
    content = {"names": class_names}
    images = list(filter(image_files.has_image_suffix, list_files(folder)))
    return Description(
        file=os.path.join(folder, first),
        folder=folder,
        class_names=_read_class_names(content, os.path.join(folder, first)),
        splits=splits_of(folder, images),
        find_images=lambda split: [
            os.path.join(folder, image)
            for image in images
            if split in (None, split_of(image))
        ],
    )


def _find_yaml(path: str | os.PathLike) -> pathlib.Path | None:
    path = pathlib.Path(path)
    if path.suffix.lower() in (".yaml", ".yml"):
        return path
    files = [one for one in sorted(path.glob("*.y*ml")) if _names_images(one)]
    if len(files) > 1 and "data.yaml" not in [one.name for one in files]:
        listed = ", ".join(one.name for one in files)
        raise DataError(f"{path}: its yaml may be {listed}; allowed: name one of them")
    return next((one for one in files if one.name == "data.yaml"), (*files, None)[0])


def _names_images(file: pathlib.Path) -> bool:
    try:
        content = _read_yaml(file)
    except DataError:
        return file.name == "data.yaml"  # `load` says what is wrong with it.
    return "names" in content and bool(_split_keys(content))


def _find_names(path: str | os.PathLike) -> list[str]:
    """Lists the files with class names, if there are label files too."""
    files = list_files(path)
    stems = {
        os.path.splitext(os.path.basename(file))[0]
        for file in filter(image_files.has_image_suffix, files)
    }
    names = [file for file in files if os.path.basename(file) in _NAME_FILES]
    labels = (
        os.path.basename(file)[:-4] in stems for file in files if file.endswith(".txt")
    )
    return names if names and any(labels) else []


def _split_keys(content: Mapping[str, Any]) -> list[str]:
    """Lists the keys of a yaml that are splits; CVAT's begin with a capital letter."""
    keys = [key for key in content if key.lower() in SPLITS and _is_given(content, key)]
    return sorted(keys, key=lambda key: SPLITS.index(key.lower()))


def _is_given(content: Mapping[str, Any], key: str) -> bool:
    return content.get(key, "") not in _NOTHING


def _read_yaml(file: pathlib.Path) -> dict:
    """Reads a yaml as texts, lists and dicts: "no" is a name, and nothing is run."""
    try:
        with open_regular(file) as stream:
            content = yaml.load(stream.read(), Loader=yaml.BaseLoader)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise DataError(f"{file}: not yaml ({problem})") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: not a yaml with keys; allowed: names, train, val")
    return content


def _read_class_names(content: Mapping[str, Any], file: Any) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        if set(names) != set(map(str, range(len(names)))):
            raise DataError(
                f"{file}: the keys of names are {reprlib.repr(list(names))}; allowed: "
                f"0 to {len(names) - 1}, all of them"
            )
        names = [names[str(label)] for label in range(len(names))]
    good = isinstance(names, list) and all(isinstance(one, str) for one in names)
    if not good or not names or not all(names):
        raise DataError(
            f"{file}: names is {reprlib.repr(names)}; allowed: a name for each class"
        )
    count = content.get("nc", "")
    if count not in (*_NOTHING, str(len(names))):
        raise DataError(
            f"{file}: nc is {reprlib.repr(count)}, but there are {len(names)} names; "
            "allowed: their number"
        )
    name, times = collections.Counter(names).most_common(1)[0]
    if times > 1:
        raise DataError(
            f"{file}: {name!r} stands {times} times in names; allowed: once"
        )
    return tuple(names)


def _list_images(
    file: pathlib.Path, split: str, entries: Sequence[str], roots: Sequence[str]
) -> list[str]:
    """Lists the images in folders, and those that text files name."""
    paths = []
    for entry in entries:
        place = _find_place(entry, roots)
        if place is None:
            raise DataError(
                f"{file}: {split} is {entry!r}, which does not exist; looked for "
                f"{', '.join(_places(entry, roots))}"
            )
        if os.path.isdir(place):
            inside = filter(image_files.has_image_suffix, list_files(place))
            paths += [os.path.join(place, *image.split("/")) for image in inside]
        elif place.endswith(".txt"):
            paths += _read_list(place, [os.path.dirname(place), *roots])
        else:
            raise DataError(
                f"{file}: {split} is {entry!r}; allowed: folders and .txt files"
            )
    path, times = collections.Counter(paths).most_common(1)[0] if paths else ("", 0)
    if times > 1:
        raise DataError(f"{file}: {path} is {times} times in {split}; allowed: once")
    return paths


def _find_place(entry: str, roots: Iterable[str]) -> str | None:
    return next(filter(os.path.exists, _places(entry, roots)), None)


def _places(entry: str, roots: Iterable[str]) -> Iterable[str]:
    """Lists where a path may lead.

    Roboflow's and CVAT's are wrong by one level; others are of another computer, such
    as /content/cells/train/images of Colab, and "train/images" is all that is left.
    """
    entry = entry.replace("\\", "/") if os.sep == "/" else entry
    shorter = entry.removeprefix("./").removeprefix("../").removeprefix("data/")
    last = "/".join(entry.split("/")[-2:])
    places = [
        os.path.normpath(os.path.join(root, path))
        for path in (entry, shorter, last)
        for root in roots
    ]
    return dict.fromkeys(places)


def _read_list(file: str, roots: Sequence[str]) -> list[str]:
    present, paths = FileListings(), []
    for number, line in enumerate(_read_lines(file), 1):
        place = next((one for one in _places(line, roots) if one in present), None)
        if line and place is None:
            raise DataError(f"{file}: line {number} is {line!r}; no such image")
        if line:
            paths.append(place)
    return paths


def _read_lines(file: str) -> list[str]:
    try:
        with open_regular(file) as stream:
            text = stream.read().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not a text file ({error})") from error
    return [line.strip() for line in text.rstrip().splitlines()]
