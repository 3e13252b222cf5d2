"""Lists files, writes them whole or not at all, and names the cache folder."""

import errno
import json
import os
import pathlib
import secrets
import stat
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

from jaxdet.data.dataset import DataError

CACHE_VARIABLE = "JAXDET_CACHE"  # names the folder of what is made once and kept

SPLITS = ("train", "training", "trainval", "val", "valid", "validation", "test")
"""Names of folders that hold a part of a data set."""


def cache_folder() -> pathlib.Path:
    """Returns the folder `$JAXDET_CACHE`, else `~/.cache/jaxdet`."""
    folder = os.environ.get(CACHE_VARIABLE) or "~/.cache/jaxdet"
    return pathlib.Path(folder).expanduser()


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a regular file; a pipe would be waited for, and a device never end.

    Args:
      path: of the file.

    Returns:
      The open file, to read bytes.

    Raises:
      OSError: it cannot be opened, or is no regular file.
    """
    waiting, binary = getattr(os, "O_NONBLOCK", 0), getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, os.O_RDONLY | waiting | binary)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return os.fdopen(descriptor, "rb")


def read_json(file: pathlib.Path) -> Any:
    """Reads a json file.

    Raises:
      DataError: it cannot be read, or is not json.
    """
    try:
        with open_regular(file) as stream:
            return json.loads(stream.read())
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not json ({error})") from error


def list_files(folder: str | os.PathLike) -> list[str]:
    """Lists the files in a folder and below, but for hidden ones.

    What macOS leaves in zip files, `._a.jpg` and `__MACOSX`, is left out.

    Returns:
      Their paths from the folder on, with "/", in alphabetical order.
    """
    found = []
    for parent, folders, files in os.walk(os.fspath(folder)):
        folders[:] = [one for one in folders if not one.startswith((".", "__MACOSX"))]
        inner = os.path.relpath(parent, folder).replace(os.sep, "/")
        prefix = "" if inner == "." else f"{inner}/"
        found += [prefix + file for file in files if not file.startswith(".")]
    return sorted(found)


class FileListings:
    """Knows which files exist; lists each folder once, as network disks are slow."""

    def __init__(self):
        self._files: dict[str, frozenset[str]] = {}

    def __contains__(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._files:
            listed = os.listdir(folder) if os.path.isdir(folder) else ()
            self._files[folder] = frozenset(listed)
        return name in self._files[folder]


def split_of(path: str) -> str | None:
    """Returns the name of a split that the first folder so called in a path has.

    "images/train/a.jpg" and CVAT's "obj_train_data/a.jpg" -> "train"; "a.jpg" -> None.
    """
    folders = path.split("/")[:-1]
    names = (one.removeprefix("obj_").removesuffix("_data") for one in folders)
    return next((name for name in names if name.lower() in SPLITS), None)


def splits_of(folder: str | os.PathLike, paths: Iterable[str]) -> tuple[str, ...]:
    """Lists the splits that files are in, those to train on first.

    Args:
      folder: for errors.
      paths: of the files, from the folder on.

    Returns:
      Names of folders; () where no file is in a folder of a split.

    Raises:
      DataError: some files are in one, and others are not.
    """
    found = {split_of(path): path for path in paths}
    if None in found and len(found) > 1:
        raise DataError(
            f"{folder}: {found.pop(None)} is in no folder of a split, "
            f"{next(iter(found.values()))} is; allowed: all or none of them"
        )
    return tuple(sorted(filter(None, found), key=lambda one: SPLITS.index(one.lower())))


def write_json(file: pathlib.Path, content: Any, *, indent: int | None = None) -> None:
    """Writes a json file by `write_atomically`.

    Args:
      file: its path; the folder is there.
      content: what json can hold.
      indent: spaces a level; None: all on one line.
    """
    text = json.dumps(content, indent=indent) + "\n"
    write_atomically(file, lambda stream: stream.write(text.encode()))


def write_atomically(file: pathlib.Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file under another name first, so that it is whole or not there.

    Args:
      file: its path; the folder is there.
      write: puts the content into an open file.
    """
    unfinished = file.with_name(f"{file.name}.{secrets.token_hex(4)}.unfinished")
    try:
        with open(unfinished, "wb") as stream:
            write(stream)
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)
