"""Nothing that a pickle asks for is done, whatever is in it."""

import os
import pickle
import tracemalloc

import numpy as np
import pytest

from jaxdet.weights.state_dict import WeightsError, read_state_dict
from tests.weights import torch_files
from tests.weights.torch_files import name, storage, tensor, value


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.pth"


class _Call:
    """A pickle of it calls a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


CALLS = {
    "posix.mkdir": lambda at: _Call(os.mkdir, at),
    "posix.system": lambda at: _Call(os.system, f"mkdir {at}"),
    "eval": lambda at: _Call(eval, f"__import__('os').mkdir({at!r})"),
    "__import__": lambda at: _Call(getattr, _Call(__import__, "os"), "mkdir"),
    "pickle.loads": lambda at: _Call(pickle.loads, pickle.dumps(_Call(os.mkdir, at))),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("problem", CALLS)
@pytest.mark.parametrize("write", [torch_files.write_zip, torch_files.write_legacy])
def test_malicious_pickles_run_nothing(path, tmp_path, problem, protocol, write):
    called = CALLS[problem](str(tmp_path / "made"))
    write(path, pickle.dumps({"a": called}, protocol)[2:-1])
    with pytest.raises(WeightsError, match=rf"{problem}|getattr"):
        read_state_dict(path)
    assert not (tmp_path / "made").exists()


def _part_of(**changes):
    """A tensor of a storage of 12 numbers, but for what is changed."""
    parts = {"numbers": storage("0", 12), "offset": 0, "shape": (2,), "strides": (1,)}
    return {"a": tensor(**(parts | changes))}


HOSTILE = {
    "beyond its storage": _part_of(offset=11),
    "more than its storage": _part_of(shape=(10**9,), strides=(0,)),
    "giant sides": _part_of(shape=(2**40, 2**40), strides=(0, 0)),
    "negative side": _part_of(shape=(-1,)),
    "negative stride": _part_of(offset=5, strides=(-1,)),
    "negative offset": _part_of(offset=-1),
    "fewer strides": _part_of(strides=()),
    "sides of text": _part_of(shape=("2",)),
    "giant storage": _part_of(numbers=storage("0", 2**40)),
    "negative storage": _part_of(numbers=storage("0", -1), shape=(0,)),
    "absent storage": _part_of(numbers=storage("1", 12)),
    "storage in a storage": _part_of(numbers=storage(storage("0", 12), 12)),
    "view of a storage": _part_of(numbers=storage("0", 12, view=(("1", 0, 2),))),
    "no storage": _part_of(numbers=value(7)),
    "storage of another kind": _part_of(numbers=value(("module", 1, 2, 3, 4)) + b"Q"),
    "called text": b"X\x01\x00\x00\x00a)R",
    "called storage": storage("0", 12) + b")R",
    "called type": name("torch.FloatStorage") + b")R",
    "state of a name": name("torch.Size") + value({"path": "os.system"}) + b"b)R",
    "empty stack": b"R",
    "no mark": b"t",
    "absent memo": b"h\x07",
    "extension": b"\x82\x01",
    "giant text": b"X\xff\xff\xff\x7fabc",
    "key of nested tuples": value({"a": 1})[:-1]
    + b")"
    + b"q\x00h\x00\x86" * 80
    + b"Nu",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "zip"])
def test_hostile_files_are_refused_in_little_memory(path, content, legacy):
    if legacy:
        torch_files.write_legacy(path, content, {"0": np.zeros(12, np.float32)})
    else:
        torch_files.write_zip(path, content, {"0": bytes(48)})
    tracemalloc.start()
    with pytest.raises(WeightsError, match="cannot be read: ") as caught:
        read_state_dict(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**20 and "\n" not in str(caught.value)
