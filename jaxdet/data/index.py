"""Keeps what one pass over a prepared data set finds, for every later start."""

import hashlib
import json
import logging
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from jaxdet.data.dataset import DataError, Objects
from jaxdet.data.files import cache_folder, write_atomically

_VERSION = 1  # to be raised with every change of what a pass finds

logger = logging.getLogger(__name__)


class Index(NamedTuple):
    """Describes a split's images, in their order: everything but pixels and masks."""

    image_ids: tuple[int | str, ...]
    sizes: np.ndarray  # [number of images, 2] int32 (height, width)
    objects: tuple[Objects, ...]  # one an image
    areas: tuple[np.ndarray, ...]  # [N] float64 an image, as the source has them
    # [objects in the source] bool an image: which of them are among `objects`
    kept: tuple[np.ndarray, ...]


def load(
    folder: pathlib.Path,
    key: str,
    files: Iterable[pathlib.Path],
    make: Callable[[], Index],
) -> Index:
    """Returns the index in `folder`, and makes it where it is absent or outdated.

    Where nothing can be written to `folder`, the index is kept in a folder below
    `cache_folder()`.

    Args:
      folder: that of the prepared data set.
      key: what is indexed, and how, such as the name of a split.
      files: what `make` reads: if one has another size or time, the index is old.
      make: reads all of them.

    Raises:
      DataError: one of `files` is missing.
    """
    identity = json.dumps([_VERSION, key, sorted(map(_state, files))])
    digest = hashlib.sha256(key.encode()).hexdigest()[:8]
    name = f"index-{re.sub('[^a-zA-Z0-9]+', '_', key)}-{digest}.npz"
    root = folder.absolute()
    folders = (root, cache_folder() / "indexes" / root.relative_to(root.anchor))
    for directory in folders:
        index = _read(directory / name, identity)
        if index is not None:
            return index
    index = make()
    arrays = {"identity": np.array(identity), **_flatten(index)}
    for directory in folders:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_atomically(
                directory / name, lambda stream: np.savez(stream, **arrays)
            )
            return index
        except OSError as error:
            problem = error
    logger.warning(
        "%s: no index can be kept (%s); every start reads the whole split",
        folder,
        problem,
    )
    return index


def _state(file: pathlib.Path) -> tuple[str, int, int]:
    try:
        status = file.stat()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    return file.name, status.st_size, status.st_mtime_ns


def _read(file: pathlib.Path, identity: str) -> Index | None:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return _unflatten(arrays) if arrays["identity"] == identity else None
    except Exception:  # Missing, or broken in whatever way: it can be made anew.
        return None


def _flatten(index: Index) -> dict[str, np.ndarray]:
    fields = zip(*index.objects, strict=True)
    boxes, labels, crowd = map(np.concatenate, fields)
    return {
        "image_ids": np.array(index.image_ids),
        "sizes": index.sizes,
        "boxes": boxes,
        "labels": labels,
        "crowd": crowd,
        "areas": np.concatenate(index.areas),
        "kept": np.concatenate(index.kept),
        "counts": np.array([(len(kept), kept.sum()) for kept in index.kept]),
    }


def _unflatten(arrays: dict[str, np.ndarray]) -> Index:
    all_ends, kept_ends = np.cumsum(arrays["counts"], axis=0)[:-1].T
    boxes, labels, crowd, areas = (
        np.split(arrays[key], kept_ends)
        for key in ("boxes", "labels", "crowd", "areas")
    )
    return Index(
        image_ids=tuple(arrays["image_ids"].tolist()),
        sizes=arrays["sizes"],
        objects=tuple(map(Objects, boxes, labels, crowd)),
        areas=tuple(areas),
        kept=tuple(np.split(arrays["kept"], all_ends)),
    )
