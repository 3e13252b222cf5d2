"""Reads a json in the form that Apple's CreateML takes.

It is a list: [{"image": "a.jpg", "annotations": [{"label": "cat", "coordinates": {"x":
.., "y": .., "width": .., "height": ..}}]}], x and y of the box's center, in pixels.
"""

import os
import pathlib
import reprlib
from typing import Any

from jaxdet.data.dataset import DataError, DataSet
from jaxdet.data.files import list_files, open_regular, read_json, splits_of
from jaxdet.data.formats import DEFAULTS, Format, LoadOptions
from jaxdet.data.formats.metadata_jsonl import (
    Record,
    edges_of,
    load_records,
    order_classes,
    path_of,
    read_category,
)

_SIDES = ("x", "y", "width", "height")
_BEGINNING = 2**16  # bytes, in which the first annotation begins


def recognize(path: str | os.PathLike) -> bool:
    """Tells whether a path is such a json, or a folder with one in it or below."""
    return bool(_find_files(path)[1])


def load(
    path: str | os.PathLike,
    split: str | None = None,
    options: LoadOptions = DEFAULTS,
) -> DataSet:
    """Reads the images that the json names, which are beside it.

    Args:
      path: the json, or a folder with one, or with one in the folder of each split.
      split: see `metadata_jsonl.load`.
      options: see `metadata_jsonl.load`.

    Returns:
      The data set.

    Raises:
      DataError: a file is missing or not as it should be.
    """
    return load_records(_find_files(path)[0], split, _read_records(path), options)


def _find_files(path: str | os.PathLike) -> tuple[pathlib.Path, list[pathlib.Path]]:
    path = pathlib.Path(path)
    if path.suffix == ".json":
        return path.parent, [path] if _is_createml(path) else []
    files = [path / file for file in list_files(path) if file.endswith(".json")]
    return path, list(filter(_is_createml, files))


def _is_createml(file: pathlib.Path) -> bool:
    try:
        with open_regular(file) as stream:
            start = stream.read(_BEGINNING).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError:
        return False
    return start.startswith(b"[") and b'"annotations"' in start and b'"image"' in start


def _read_records(path: str | os.PathLike) -> list[Record]:
    folder, files = _find_files(path)
    return [record for file in files for record in _read_file(folder, file)]


def _read_file(folder: pathlib.Path, file: pathlib.Path) -> list[Record]:
    inner, records = file.parent.relative_to(folder).as_posix(), []
    for position, entry in enumerate(read_json(file)):
        where = f"{file}: entry {position}"
        name, annotations = _get(entry, "image"), _get(entry, "annotations")
        if not isinstance(name, str) or not name or not isinstance(annotations, list):
            raise DataError(
                f"{where} is {reprlib.repr(entry)}; allowed: an image's path and a "
                "list of annotations"
            )
        names = [read_category(_get(one, "label"), where) for one in annotations]
        boxes = [_get(one, "coordinates") for one in annotations]
        values = [[_get(box, side) for side in _SIDES] for box in boxes]
        edges = [edges_of(one, centered=True) for one in values]
        pairs = list(zip(boxes, edges, strict=True))
        records.append(Record(where, path_of(folder, inner, name), names, pairs))
    return records


def _get(entry: Any, key: str) -> Any:
    return entry.get(key) if isinstance(entry, dict) else None


CREATEML = Format(
    name="CreateML",
    description="CreateML's json, or a folder with one or with one for each split",
    recognize=recognize,
    splits=lambda source: splits_of(source, [x.image for x in _read_records(source)]),
    load=load,
    order_classes=order_classes,
)
