"""Files of weights are read by their suffix, and unreadable ones are named."""

import pickle
import sys

import chex
import numpy as np
import pytest
from safetensors.numpy import save_file
from tensorboardX.proto import graph_pb2, types_pb2

from jaxdet.weights.state_dict import WeightsError, read_state_dict
from tests.weights import torch_files


def _write_graph(state, path):
    """Constants, some of which list their values, among nodes that are none."""
    graph = graph_pb2.GraphDef()
    graph.node.add(name="sum", op="Add")
    values = {**state, "integer": np.arange(3)}
    for name, tensor in values.items():
        kind = types_pb2.DT_FLOAT if name in state else types_pb2.DT_INT32
        node = graph.node.add(name=name, op="Const")
        node.attr["dtype"].type = kind
        for extent in tensor.shape:
            node.attr["value"].tensor.tensor_shape.dim.add(size=extent)
        if (tensor == tensor.flat[0]).all():  # one value stands for all
            node.attr["value"].tensor.float_val.extend([tensor.flat[0]])
        else:
            node.attr["value"].tensor.tensor_content = tensor.tobytes()
    path.write_bytes(graph.SerializeToString())


WRITERS = {
    ".npz": lambda state, path: np.savez(path, **state),
    ".safetensors": save_file,
    ".pth": torch_files.write,
    ".pb": _write_graph,
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_files_hold_named_arrays(tmp_path, suffix):
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    state = {"conv1.weight": kernel, "bn1.bias": np.full((2, 2), 0.5, np.float32)}
    WRITERS[suffix](state, tmp_path / f"some{suffix}")
    chex.assert_trees_all_equal(read_state_dict(tmp_path / f"some{suffix}"), state)


@pytest.mark.parametrize("suffix", WRITERS)
def test_damaged_and_missing_files(tmp_path, suffix):
    path = tmp_path / f"some{suffix}"
    with pytest.raises(WeightsError, match=rf"some\{suffix}: cannot be read"):
        read_state_dict(path)
    WRITERS[suffix]({"weight": np.arange(100, dtype=np.float32)}, path)
    path.write_bytes(path.read_bytes()[:-20])
    zipped = suffix in (".npz", ".pth")
    reason = "it is no zip archive, or was cut short$" if zipped else ""
    with pytest.raises(WeightsError, match=rf"some\{suffix}: cannot be read: {reason}"):
        read_state_dict(path)


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"weights\.txt: allowed are \.npz, \.pth"):
        read_state_dict(tmp_path / "weights.txt")


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(WeightsError, match=r"needs safetensors.*: pip install"):
        read_state_dict(tmp_path / "some.safetensors")


def test_npz_files_of_anything_but_arrays(tmp_path):
    """NumPy's own messages advise to unpickle them."""
    path = tmp_path / "some.npz"
    np.savez(path, weight=np.array([{}]))
    with pytest.raises(WeightsError, match=r"of Python objects, which are not read$"):
        read_state_dict(path)
    torch_files.write({"weight": np.zeros(3)}, path)
    with pytest.raises(WeightsError, match=r"archive/data\.pkl in it is no array$"):
        read_state_dict(path)
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(WeightsError, match=r"no zip archive, or was cut short$"):
        read_state_dict(path)
