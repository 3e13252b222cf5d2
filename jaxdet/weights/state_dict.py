"""Reads files of weights into flat dicts of NumPy arrays."""

import os
import pathlib
import zipfile

import numpy as np

from jaxdet.weights import torch_file


class WeightsError(ValueError):
    """Weights cannot be read or do not fit; the message names them."""


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the tensors of a file by name.

    Args:
      path: ends with `.npz`; with `.pth` or `.pt`, as torch saves state dicts, alone or
        in a dict; with `.safetensors`; or with `.pb`, a binary `GraphDef` of
        TensorFlow, of which the float32 constants are read with the protobuf classes of
        tensorboardX.

    Raises:
      WeightsError: if the file is missing, of another kind, or cannot be read.
    """
    path = pathlib.Path(path)
    if path.suffix not in _READERS:
        raise WeightsError(f"{path}: allowed are {', '.join(SUFFIXES)}")
    try:
        return _READERS[path.suffix](path)
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"{path}: reading it needs {error.name}: pip install {error.name}"
        ) from None
    except zipfile.BadZipFile as error:
        raise WeightsError(
            f"{path}: cannot be read: it is no zip archive, or was cut short"
        ) from error
    except Exception as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from error


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
        for name in archive.namelist():
            if not name.endswith(".npy"):
                raise ValueError(f"{name} in it is no array")
    with np.load(path, allow_pickle=False) as arrays:
        try:
            return dict(arrays)
        except ValueError as error:
            raise ValueError(
                "an array in it is damaged, or of Python objects, which are not read"
            ) from error


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


def _read_frozen_graph(path: pathlib.Path) -> dict[str, np.ndarray]:
    from tensorboardX.proto import graph_pb2, types_pb2

    graph = graph_pb2.GraphDef()
    graph.ParseFromString(path.read_bytes())
    return {
        node.name: _constant(node.attr["value"].tensor)
        for node in graph.node
        if node.op == "Const" and node.attr["dtype"].type == types_pb2.DT_FLOAT
    }


def _constant(tensor) -> np.ndarray:
    shape = [axis.size for axis in tensor.tensor_shape.dim]
    if tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, "<f4").reshape(shape)
    # Few values are listed; one stands for all.
    return np.broadcast_to(np.array(tensor.float_val, np.float32), shape or (1,))


_READERS = {
    ".npz": _read_npz,
    ".pth": torch_file.read,
    ".pt": torch_file.read,
    ".safetensors": _read_safetensors,
    ".pb": _read_frozen_graph,
}
SUFFIXES = tuple(_READERS)
"""Of the files that can be read."""
