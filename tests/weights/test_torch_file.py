"""torch's files are read without torch, and never allocate more than their size."""

import io
import pickle
import tarfile

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.weights.state_dict import WeightsError, read_state_dict
from tests import optional
from tests.weights import torch_files
from tests.weights.torch_files import call, name, storage, tensor, value

NUMBERS = np.arange(12, dtype=np.float32)
CONTENT = {
    "whole": tensor(storage("0", 12), 0, (3, 4), (4, 1)),
    "transposed": tensor(storage("0", 12), 0, (4, 3), (1, 4)),
    "part": tensor(storage("0", 12), 5, (2, 2), (4, 2)),
    "scalar": tensor(storage("0", 12), 7),
    "empty": tensor(storage("0", 12), 12, (0, 3), (3, 1)),
}
WANTED = {
    "whole": NUMBERS.reshape(3, 4),
    "transposed": NUMBERS.reshape(3, 4).T,
    "part": [[5, 7], [9, 11]],
    "scalar": 7,
    "empty": np.zeros((0, 3)),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.pth"


@pytest.mark.parametrize("order", ["little", "big", "legacy"])
def test_tensors_are_views_of_storages(path, order):
    if order == "legacy":
        torch_files.write_legacy(path, CONTENT, {"0": NUMBERS})
    else:
        written = NUMBERS.astype("<f4" if order == "little" else ">f4").tobytes()
        torch_files.write_zip(path, CONTENT, {"0": written}, byteorder=order)
    state = read_state_dict(path)
    assert state.keys() == WANTED.keys()
    for key, wanted in WANTED.items():
        assert state[key].dtype == np.float32
        np.testing.assert_array_equal(state[key], wanted)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int64", "bool", jnp.bfloat16])
def test_dtypes(path, dtype):
    state = {"weight": np.array([[1.5, -2], [0, 3]]).astype(dtype)}
    torch_files.write(state, path)
    read = read_state_dict(path)["weight"]
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, state["weight"])


def test_one_dict_of_tensors_within_another_is_taken(path):
    tensors = {"weight": call("torch._utils._rebuild_parameter", CONTENT["part"])}
    content = {
        "epoch": 3,
        "optimizer": {"state": {0: tensors}, "groups": (0.1, None, 2**80)},
        "args": name("argparse.Namespace") + b")\x81" + value({"lr": 0.1}) + b"b",
        "model": call("collections.OrderedDict", tuple(tensors.items()))
        + value({"_metadata": {}})
        + b"b",
    }
    torch_files.write_zip(path, content, {"0": NUMBERS.tobytes()})
    np.testing.assert_array_equal(read_state_dict(path)["weight"], WANTED["part"])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({}, "0 dicts of tensors in it, 1 is needed; besides tensors it has nothing"),
        ({"a": 1, "b": CONTENT["part"]}, r"0 dicts .* it has a \(int\)"),
        ({"a": CONTENT, "b": CONTENT}, r"2 dicts .* it has a \(dict\), b \(dict\)"),
        (CONTENT["part"], "it holds a Tensor, no dict"),
        ({3: CONTENT["part"]}, "the name of a tensor in it is the number 3"),
        ({(1, 2): CONTENT["part"]}, "it is damaged"),
        ({"a": call("torch.nn.Linear")}, r"it holds torch\.nn\.Linear; only dicts"),
    ],
)
@pytest.mark.parametrize(
    "write", [torch_files.write_legacy, torch_files.write_zip], ids=["legacy", "zip"]
)
def test_other_contents_are_named(path, write, content, problem):
    write(path, content)
    with pytest.raises(WeightsError, match=rf"some\.pth: cannot be read: {problem}"):
        read_state_dict(path)


def test_storages_that_are_shorter_than_they_say(path):
    content = {"a": CONTENT["part"], "b": tensor(storage("1", 12))}
    for write, numbers in (
        (torch_files.write_zip, {"0": bytes(40), "1": bytes(48)}),
        (torch_files.write_legacy, {"0": NUMBERS[:10], "1": NUMBERS}),
    ):
        write(path, content, numbers)
        with pytest.raises(WeightsError, match="a storage of 12 numbers is cut short"):
            read_state_dict(path)


def test_zip_bombs_are_refused(path):
    torch_files.write_zip(path, CONTENT, {"0": NUMBERS.tobytes()}, compressed=True)
    with pytest.raises(WeightsError, match="archive/data/0 in it is compressed"):
        read_state_dict(path)
    # Storages that lie on one another are larger together than the file.
    content = {str(i): tensor(storage(str(i), 9000), 0, (9,), (1,)) for i in range(9)}
    torch_files.write_zip(path, content, {"0": bytes(36000)})
    data = path.read_bytes()
    entry = data[data.rindex(b"PK\1\2") : data.rindex(b"PK\5\6")]
    entries = [entry.replace(b"data/0", b"data/%d" % i) for i in range(1, 9)]
    end = bytearray(data[data.rindex(b"PK\5\6") :])
    for place in (8, 10):
        end[place] += len(entries)
    end[12:16] = (int.from_bytes(end[12:16], "little") + 8 * len(entry)).to_bytes(
        4, "little"
    )
    path.write_bytes(data[: data.rindex(b"PK\5\6")] + b"".join(entries) + end)
    with pytest.raises(WeightsError, match="its tensors are larger than the file"):
        read_state_dict(path)


def test_files_of_other_formats_are_named(path):
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("sys_info"), io.BytesIO())
    with pytest.raises(WeightsError, match=r"a tar archive of torch 0\.1"):
        read_state_dict(path)
    for data in (b"", b"<html>", pickle.dumps({"a": 1})):
        path.write_bytes(data)
        with pytest.raises(WeightsError, match=r"not written by torch\.save"):
            read_state_dict(path)


@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "zip"])
def test_files_that_are_cut_short(path, legacy):
    if legacy:
        torch_files.write_legacy(path, CONTENT, {"0": NUMBERS})
    else:
        torch_files.write_zip(path, CONTENT, {"0": NUMBERS.tobytes()})
    data = path.read_bytes()
    for end in range(0, len(data), 7):
        path.write_bytes(data[:end])
        with pytest.raises(WeightsError, match="cannot be read: "):
            read_state_dict(path)


@pytest.mark.optional
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_reads_the_same(path, zipped):
    optional.need("torch", optional.TORCH)
    import torch

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = network.state_dict()
    state["transposed"] = torch.randn(4, 5).T
    state["part"] = torch.randn(40)[3:30:4]
    state["parameter"] = torch.nn.Parameter(torch.randn(2))
    for dtype in (torch.float64, torch.bfloat16, torch.int8, torch.bool):
        state[str(dtype)] = torch.randn(7).mul(9).to(dtype)
    optimizer = torch.optim.Adam(network.parameters())
    content = {"model": state, "optimizer": optimizer.state_dict(), "epoch": 1}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    loaded = torch.load(path, weights_only=True)["model"]
    read = read_state_dict(path)
    assert read.keys() == loaded.keys()
    for key, wanted in loaded.items():
        assert read[key].dtype.name == str(wanted.dtype).removeprefix("torch.")
        numbers = wanted.detach().double().numpy()
        np.testing.assert_array_equal(read[key].astype(np.float64), numbers)
