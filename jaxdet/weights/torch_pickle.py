"""Follows the pickles of `.pth` files; nothing that they name is imported or called.

A pickle can ask for any function to be called. Here the few functions and classes that
state dicts need are names, and an interpreter of a few instructions puts plain values
in their place.
"""

import math
import pickletools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

_MOST_BYTES = 2**24  # those of large networks have a few hundred thousand
_DTYPES = {
    "torch.DoubleStorage": np.float64,
    "torch.FloatStorage": np.float32,
    "torch.HalfStorage": np.float16,
    "torch.BFloat16Storage": jnp.bfloat16,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
    "torch.ShortStorage": np.int16,
    "torch.CharStorage": np.int8,
    "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
}


class _Name(NamedTuple):
    """A function or class that a pickle names, for instance "torch.FloatStorage"."""

    path: str


class Storage(NamedTuple):
    """Numbers that tensors are views of."""

    key: str
    dtype: np.dtype
    size: int  # count of numbers


class Tensor(NamedTuple):
    """A view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in numbers


def unpickle(stream: BinaryIO) -> tuple[Any, dict[str, Storage]]:
    """Follows one pickle, and leaves the stream behind it.

    Returns:
      Its value, of dicts, lists, tuples, strings, numbers and `Tensor`s; and all
      storages that it names, by their keys.

    Raises:
      ValueError: for instructions and names that state dicts do not need, and tensors
        that do not fit their storages.
      AttributeError, LookupError, TypeError: for a damaged one.
    """
    stack, outer, memo, storages = [], [], {}, {}
    for opcode, argument, position in pickletools.genops(stream):
        name = opcode.name
        if position > _MOST_BYTES:
            raise ValueError(f"its pickle is larger than {_MOST_BYTES} bytes")
        if name in _LITERALS:
            stack.append(argument)
        elif name in _FRESH:
            stack.append(_FRESH[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            outer.append(stack)
            stack = []
        elif name in _OF_MARKED:
            items, stack = stack, outer.pop()
            _OF_MARKED[name](stack, items)
        elif name in _OF_STACK:
            _OF_STACK[name](stack)
        elif name == "GLOBAL":
            stack.append(_known(argument.replace(" ", ".", 1)))
        elif name == "BINPERSID":
            stack.append(_storage(*stack.pop()))
            storages[stack[-1].key] = stack[-1]
        elif name == "STOP":
            return stack.pop(), storages
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"its pickle has the instruction {name}, not allowed here")
    raise ValueError("its pickle is cut short")


def _known(path: str) -> _Name:
    if path not in _VALUES and path not in _DTYPES:
        raise ValueError(
            f"it holds {path}; only dicts of tensors are read, such as a state_dict()"
        )
    return _Name(path)


def _append_tuple(size: int, stack: list) -> None:
    items = [stack.pop() for _ in range(size)]
    stack.append(tuple(reversed(items)))


def _append(stack: list) -> None:
    item = stack.pop()
    stack[-1].append(item)


def _set_item(stack: list) -> None:
    value, key = stack.pop(), stack.pop()
    _set_items(stack, [key, value])


def _set_items(stack: list, items: list) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int):  # other keys may take long to hash
            raise TypeError(f"a key is a {type(key).__name__}")
        stack[-1][key] = value


def _stack_name(stack: list) -> None:
    name, module = stack.pop(), stack.pop()
    stack.append(_known(f"{module}.{name}"))


def _reduce(stack: list) -> None:
    """Puts a plain value where a pickle wants a function called."""
    arguments, function = stack.pop(), stack.pop()
    stack.append(_VALUES[function.path](*arguments))


def _mapping(items: Iterable = ()) -> dict:
    """Returns the dict that stands for one of another class."""
    pairs = items.items() if isinstance(items, dict) else items
    stack = [{}]
    _set_items(stack, [x for key, value in pairs for x in (key, value)])
    return stack[0]


def _storage(kind: str, name: _Name, key: str, device: str, size: int, view=None):
    """Returns a storage, given its persistent id."""
    del device
    if kind != "storage" or view is not None:
        raise ValueError("it has a storage of an unknown kind")
    if not isinstance(key, str) or not isinstance(size, int) or size < 0:
        raise TypeError("a storage has no key or no size")
    return Storage(key, np.dtype(_DTYPES[name.path]), size)


def _tensor(
    storage: Storage, offset: int, shape: tuple, strides: tuple, *attributes
) -> Tensor:
    """Returns a tensor that lies within its storage."""
    del attributes  # whether it has a gradient, for instance
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        raise TypeError("a tensor has no storage, or not as many strides as sides")
    fits = all(isinstance(x, int) and x >= 0 for x in (offset, *shape, *strides))
    if fits and 0 not in shape:
        steps = zip(shape, strides, strict=True)
        last = offset + sum((side - 1) * stride for side, stride in steps)
        fits = last < storage.size and math.prod(shape) <= storage.size
    if not fits:
        raise ValueError(f"a tensor does not fit its storage of {storage.size} numbers")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


_LITERALS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"}
_LITERALS |= {"FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE"}
_LITERALS |= {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES"}
_FRESH: dict[str, Callable] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_OF_STACK: dict[str, Callable] = {
    "TUPLE1": partial(_append_tuple, 1),
    "TUPLE2": partial(_append_tuple, 2),
    "TUPLE3": partial(_append_tuple, 3),
    "APPEND": _append,
    "SETITEM": _set_item,
    "STACK_GLOBAL": _stack_name,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "BUILD": list.pop,  # attributes, for instance versions in a state dict
}
_OF_MARKED: dict[str, Callable] = {
    "TUPLE": lambda stack, items: stack.append(tuple(items)),
    "APPENDS": lambda stack, items: stack[-1].extend(items),
    "SETITEMS": _set_items,
}
_VALUES: dict[str, Callable] = {
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "argparse.Namespace": _mapping,
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
}
"""What stands for the result of each function and class that may be asked for."""
