"""Reads `.pth` files, as `torch.save` writes them, without torch.

Such a file is a pickle of containers and tensors (`torch_pickle.py`), with the tensors'
numbers behind it (before torch 1.6) or beside it in a zip archive. Sizes are checked,
so that what is read is never larger than the file.
"""

import io
import pathlib
import struct
import zipfile
from typing import Any

import numpy as np

from jaxdet.weights.torch_pickle import Storage, Tensor, unpickle

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file before torch 1.6


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the state dict of a `.pth` file.

    Args:
      path: holds a dict of tensors, or a dict of which one value is such a dict, as in
        `{"model": model.state_dict(), "epoch": 3}`.

    Raises:
      ValueError: if it holds anything else, or is damaged.
    """
    data = path.read_bytes()
    try:
        if data.startswith(b"PK"):
            content, places, byteorder = _read_zip(data)
        else:
            content, places, byteorder = _read_before_1_6(data)
        tensors = _find_state_dict(content)
        storages = {tensor.storage for tensor in tensors.values()}
        if sum(each.size * each.dtype.itemsize for each in storages) > len(data):
            raise ValueError("its tensors are larger than the file")
        numbers = {
            each: _read_numbers(data, places[each.key], each, byteorder)
            for each in storages
        }
        return {name: _view(x, numbers[x.storage]) for name, x in tensors.items()}
    except (
        AttributeError,
        LookupError,
        OverflowError,
        TypeError,
        struct.error,
    ) as error:
        raise ValueError("it is damaged, or not written by torch.save") from error


def _read_zip(data: bytes) -> tuple[Any, dict[str, range], str]:
    """Returns the unpickled content, where each storage is, and the byte order."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {member.filename: member for member in archive.infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"{len(pickles)} data.pkl in its zip archive, 1 is needed")
    folder = pickles[0].removesuffix("data.pkl")
    places = {
        name.removeprefix(f"{folder}data/"): _place(data, member)
        for name, member in members.items()
        if name.startswith(f"{folder}data/")
    }
    byteorder = b"little"
    if f"{folder}byteorder" in members:
        byteorder = _cut(data, _place(data, members[f"{folder}byteorder"]))
    pickle = io.BytesIO(_cut(data, _place(data, members[pickles[0]])))
    return unpickle(pickle)[0], places, byteorder.decode()


def _place(data: bytes, member: zipfile.ZipInfo) -> range:
    """Returns where a member of a zip archive is; torch compresses none."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} in it is compressed")
    lengths = struct.unpack_from("<HH", data, member.header_offset + 26)
    start = member.header_offset + 30 + sum(lengths)  # behind name and padding
    return range(start, start + member.file_size)


def _cut(data: bytes, place: range) -> bytes:
    return data[place.start : place.stop]


def _read_before_1_6(data: bytes) -> tuple[Any, dict[str, range], str]:
    """Returns the same of a file of pickles in a row, then storages in a row."""
    if data[257:262] == b"ustar":
        raise ValueError("it is a tar archive of torch 0.1; save it with a newer torch")
    stream = io.BytesIO(data)
    if not data.startswith(b"\x80") or unpickle(stream)[0] != _MAGIC:
        raise ValueError("it is not written by torch.save")
    unpickle(stream)  # the version of the format, of which there is one
    unpickle(stream)  # about the machine; numbers are little-endian on all
    content, storages = unpickle(stream)
    places = {}
    keys, _ = unpickle(stream)
    position = stream.tell()
    for key in keys:
        (size,) = struct.unpack_from("<q", data, position)
        start = position + 8
        position = start + size * storages[key].dtype.itemsize
        places[key] = range(start, position)
    return content, places, "little"


def _find_state_dict(content: Any) -> dict[str, Tensor]:
    """Returns the dict of tensors that the content is, or the only one in it."""
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {_kind(content)}, no dict of tensors")
    dicts = [x for x in (content, *content.values()) if isinstance(x, dict) and x]
    state_dicts = [x for x in dicts if all(isinstance(y, Tensor) for y in x.values())]
    if len(state_dicts) != 1:
        parts = [f"{name} ({_kind(part)})" for name, part in content.items()]
        others = [part for part in parts if not part.endswith("(Tensor)")]
        listed = ", ".join(others[:5]) or "nothing"
        raise ValueError(
            f"{len(state_dicts)} dicts of tensors in it, 1 is needed; besides tensors "
            f"it has {listed}"
        )
    for name in state_dicts[0]:
        if not isinstance(name, str):
            raise ValueError(f"the name of a tensor in it is the number {name}")
    return state_dicts[0]


def _kind(part: Any) -> str:
    return type(part).__name__


def _read_numbers(
    data: bytes, place: range, storage: Storage, byteorder: str
) -> np.ndarray:
    size = storage.dtype.itemsize
    if storage.size * size > len(place):
        raise ValueError(f"a storage of {storage.size} numbers is cut short")
    raw = np.frombuffer(data, f"u{size}", storage.size, place.start)
    raw = raw.byteswap() if byteorder == "big" else raw.copy()
    return raw.view(storage.dtype)


def _view(tensor: Tensor, numbers: np.ndarray) -> np.ndarray:
    strides = [stride * numbers.itemsize for stride in tensor.strides]
    start = numbers[tensor.offset :]
    return np.lib.stride_tricks.as_strided(start, tensor.shape, strides)
