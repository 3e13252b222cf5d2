"""Checksums of trees of arrays, by their names, shapes, types and values."""

import zlib
from typing import Any

import jax


def digest(arrays: Any) -> str:
    """Returns a checksum of names, shapes, types and values of all arrays in a tree."""
    return f"{checksum(by_path(jax.device_get(arrays))):08x}"


def checksum(arrays: dict[str, Any]) -> int:
    """Returns what `digest` writes, of NumPy arrays by name."""
    value = 0
    for name, array in sorted(arrays.items()):
        for part in (f"{name} {format_shape(arrays, name)}".encode(), array.tobytes()):
            value = zlib.crc32(part, value)
    return value


def by_path(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths, such as `params/stem/bias`."""
    paths, _ = jax.tree.flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in paths
    }


def format_shape(arrays: dict[str, Any], name: str) -> str:
    """Returns type and shape of an array, such as `float32[4]`, or "absent"."""
    if name not in arrays:
        return "absent"
    return f"{arrays[name].dtype}{list(arrays[name].shape)}"
