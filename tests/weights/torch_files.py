"""Writes files as `torch.save` does, without torch, and others that it never would."""

import pickle
import struct
import zipfile

import numpy as np

KINDS = {"float32": "Float", "float16": "Half", "float64": "Double", "int64": "Long"}
KINDS |= {"bfloat16": "BFloat16", "bool": "Bool", "int32": "Int"}
SHORT = b")", b"\x85", b"\x86", b"\x87"  # tuples of up to three
MAGIC = 0x1950A86A20F9469CFC6C


def value(item) -> bytes:
    """The instructions that put a plain value on the stack."""
    match item:
        case bytes():  # instructions
            return item
        case str():
            return b"X" + struct.pack("<i", len(item.encode())) + item.encode()
        case tuple():
            items = b"".join(map(value, item))
            return items + SHORT[len(item)] if item[3:] == () else b"(" + items + b"t"
        case dict():
            pairs = [value(key) + value(each) for key, each in item.items()]
            return b"}(" + b"".join(pairs) + b"u"
        case _:
            return pickle.dumps(item, 2)[2:-1]


def call(path: str, *arguments) -> bytes:
    """The instructions that call a function, named with dots."""
    return name(path) + value(arguments) + b"R"


def name(path: str) -> bytes:
    return b"c" + "\n".join([*path.rsplit(".", 1), ""]).encode()


def storage(key, size, kind="Float", view=()) -> bytes:
    identity = "storage", name(f"torch.{kind}Storage"), key, "cpu", size, *view
    return value(identity) + b"Q"


def tensor(numbers: bytes, offset=0, shape=(), strides=()) -> bytes:
    """The instructions that make a tensor of a storage."""
    arguments = numbers, offset, shape, strides, False, call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", *arguments)


def write_zip(path, content, storages=None, *, byteorder="little", compressed=False):
    """Writes the format of torch 1.6 and later; `storages` are bytes by their keys."""
    with zipfile.ZipFile(path, "w", 8 if compressed else 0) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + value(content) + b".")
        archive.writestr("archive/byteorder", byteorder)
        for key, numbers in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", numbers)


def write_legacy(path, content, storages=None):
    """Writes the format before torch 1.6; `storages` are float32 arrays."""
    storages = storages or {}
    about = {"protocol_version": 1001, "little_endian": True}
    parts = [pickle.dumps(each, 2) for each in (MAGIC, 1001, about)]
    parts += [b"\x80\x02" + value(content) + b".", pickle.dumps(list(storages), 2)]
    for numbers in storages.values():
        parts += [struct.pack("<q", numbers.size), numbers.tobytes()]
    path.write_bytes(b"".join(parts))


def write(state, path):
    """Writes a dict of arrays, each with a storage of its own."""
    state = {each: np.array(array, order="C") for each, array in state.items()}
    content = {
        each: tensor(
            storage(str(i), array.size, KINDS[array.dtype.name]),
            shape=array.shape,
            strides=tuple(step // array.itemsize for step in array.strides),
        )
        for i, (each, array) in enumerate(state.items())
    }
    numbers = {str(i): array.tobytes() for i, array in enumerate(state.values())}
    write_zip(path, content, numbers)
