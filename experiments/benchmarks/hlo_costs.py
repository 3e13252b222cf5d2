"""Reads what a program costs from the text that the TPU's compiler makes of it.

The text is `compiled.as_text()`. Most operations carry the compiler's own
`estimated_cycles`, here multiplied by the trip counts of the loops around them.
Gathers and scatters carry none: they are priced by the (8, 128) tiles that each row
touches, as in the compiler's count of bytes. Sorts and top-k carry none either, and
have no price; they are counted.
"""

import collections
import itertools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

CLOCK = 1.5e9  # cycles a second of one TPU v5e
BANDWIDTH = 819e9  # bytes a second of its memory
_SUBLANES, _LANES = 8, 128  # of a tile
# At most, of loops that end where data says: 128 positive RoIs an image, 16 at a time.
_ROUNDS = {"ops/chunks": 8}
_FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast"}
_COPIES = {"copy", "transpose", "reshape", "concatenate", "pad", "slice"}
_HEAD = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
# The first that fits: part of a file's name in the stack of calls, kinds of operations.
_GROUPS = (
    ("sorts and top-k", None, {"sort", "topk"}),
    ("RoI Align", "ops/roi_align", None),
    ("NMS", "ops/nms", None),
    ("matching", "ops/matching", None),
    ("convolutions", None, {"convolution", "dot"}),
    ("losses", "losses", None),
    ("copies and layouts", None, _COPIES),
)
GROUPS = (*(name for name, _, _ in _GROUPS), "other")


class Operation(NamedTuple):
    """An operation that is executed, with all its repetitions."""

    name: str
    group: str  # of GROUPS
    kinds: set[str]  # of HLO operations in it
    seconds: float  # without those of rows
    row_seconds: float  # of the rows that it gathers and scatters
    trips: int  # of the loops around it
    place: str  # file:line function, of the innermost call in jaxdet or experiments


class _Instruction(NamedTuple):
    name: str
    shape: str
    kind: str
    operands: list[str]  # their shapes
    rest: str  # operands and attributes


def operations(text: str) -> list[Operation]:
    """Returns the operations of a compiled program, in order.

    Branches of a conditional all count. Loops whose length depends on data count once,
    but for those of `_ROUNDS`.

    Args:
      text: of the HLO module, after optimization.
    """
    computations, entry = _computations(text)
    stacks = _stacks(text)
    return list(_walk(entry, 1, computations, stacks))


def all_reduces(text: str) -> list[tuple[str, int]]:
    """Returns type and bytes of each sum over devices, as `operations`, the most first.

    Args:
      text: as in `operations`.
    """
    computations, _ = _computations(text)
    sums = []
    for one in itertools.chain(*computations.values()):
        if one.kind in ("all-reduce", "all-reduce-start"):
            dtypes, dims = zip(
                *re.findall(r"(\w+)\[([\d,]*)\]", one.shape), strict=True
            )
            values = sum(math.prod(_dims(x)) for x in dims)
            sums.append((dtypes[0], values * _bytes(dtypes[0])))
    return sorted(sums, key=lambda x: -x[1])


def convolutions(text: str) -> dict[str, int]:
    """Returns how many convolutions a GPU's program leaves to each call of cuDNN.

    Args:
      text: as in `operations`, but of a GPU's compiler; "convolution" are those that
        are no calls.
    """
    calls = re.findall(r'custom_call_target="__cudnn\$(conv\w+)"', text)
    calls += re.findall(r" (convolution)\(", text)
    return dict(collections.Counter(calls).most_common())


def _walk(name: str, trips: int, computations: dict, stacks: dict) -> Iterator:
    for one in computations[name]:
        if one.kind == "while":
            (body,) = re.findall(r"body=%([\w.\-]+)", one.rest)
            inner = trips * _trip_count(one, computations, stacks)
            yield from _walk(body, inner, computations, stacks)
        elif one.kind in ("conditional", "call"):
            branches = r"(?:branch_computations=\{([^}]*)\}|to_apply=(%[\w.\-]+))"
            for names in re.findall(branches, one.rest):
                for branch in re.findall(r"%([\w.\-]+)", "".join(names)):
                    yield from _walk(branch, trips, computations, stacks)
        elif one.kind not in _FREE and not one.kind.endswith(("-start", "-done")):
            yield _operation(one, trips, computations, stacks)


def _trip_count(loop: _Instruction, computations: dict, stacks: dict) -> int:
    if count := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(count[1])
    condition = re.search(r"condition=%([\w.\-]+)", loop.rest)[1]
    condition = computations.get(condition, [])
    limits = [x.rest for x in condition if x.kind == "constant"]
    below = [x for x in condition if "direction=LT" in x.rest]
    kinds = {x.kind for x in condition} - _FREE
    if len(limits) == 1 and below and kinds == {"compare"}:
        return int(limits[0].partition(")")[0])  # if it counts from 0 to this
    stack = "".join(_stack(loop, stacks))
    return next((rounds for file, rounds in _ROUNDS.items() if file in stack), 1)


def _stack(one: _Instruction, stacks: dict[str, list[str]]) -> list[str]:
    frame = re.search(r"stack_frame_id=(\d+)", one.rest)
    return stacks[frame[1]] if frame else []


def _operation(one: _Instruction, trips: int, computations: dict, stacks: dict):
    inner = [one, *_inside(one, computations)]
    kinds = {x.kind for x in inner} - _FREE - {"fusion"}
    if 'custom_call_target="TopK"' in one.rest:
        kinds.add("topk")
    cycles = re.search(r'"estimated_cycles":"(\d+)"', one.rest)
    cycles = float(cycles[1]) if cycles else 0.0
    cycles = cycles if cycles < 1e15 else 0.0  # the compiler's way to say unknown
    stack = _stack(one, stacks)
    ours = [place for place in stack if re.match(r"(jaxdet|experiments)/", place)]
    return Operation(
        name=one.name,
        group=_group(stack, kinds),
        kinds=kinds,
        seconds=trips * cycles / CLOCK,
        row_seconds=trips * sum(map(_row_bytes, inner)) / BANDWIDTH,
        trips=trips,
        place=ours[0] if ours else "",
    )


def _group(stack: list[str], kinds: set[str]) -> str:
    for name, file, own in _GROUPS:
        if own and (kinds <= own if own is _COPIES else kinds & own):
            return name
        if file and any(file in place for place in stack):
            return name
    return "other"


def _inside(one: _Instruction, computations: dict) -> Iterator[_Instruction]:
    """Yields what a fusion consists of."""
    for name in re.findall(r"\bcalls=%([\w.\-]+)", one.rest):
        for part in computations[name]:
            yield part
            yield from _inside(part, computations)


def _row_bytes(one: _Instruction) -> int:
    """Returns what a gather or scatter moves: the tiles that rows lie in, and rows."""
    if one.kind == "gather":
        dtype, moved = _shape(one.shape)
        window = _dims(re.search(r"slice_sizes=\{([\d,]*)\}", one.rest)[1])
        tiles = 1  # read
    elif one.kind == "scatter":
        dtype, moved = _shape(one.operands[2])
        places = _dims(re.search(r"update_window_dims=\{([\d,]*)\}", one.rest)[1])
        window = [moved[i] for i in places]
        tiles = 2  # read and written
    else:
        return 0
    size = _bytes(dtype)
    values = math.prod(window)
    rows = math.prod(moved) // max(values, 1)
    if values == 1:  # packed densely
        return rows * size * (1 + tiles)
    return rows * -(-values // _LANES) * _LANES * size * (tiles * _SUBLANES + 1)


def _bytes(dtype: str) -> int:
    return max(int(re.sub(r"\D", "", dtype) or 8) // 8, 1)  # "pred" is a byte


def _shape(text: str) -> tuple[str, list[int]]:
    """Returns type and dimensions of the first array of a shape."""
    dtype, dims = re.search(r"(\w+)\[([\d,]*)\]", text).groups()
    return dtype, _dims(dims)


def _dims(text: str) -> list[int]:
    return [int(x) for x in text.split(",") if x]


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Returns the instructions of each computation, and the name of the first."""
    computations, entry, shapes = {}, "", {}
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name, shapes = head[2], {}
            computations[name] = []
            entry = name if head[1] else entry
        elif found := _INSTRUCTION.match(line):
            one, shape, kind, rest = found.groups()
            shapes[one] = shape
            operands = re.findall(r"%([\w.\-]+)", rest.partition(")")[0])
            operands = [shapes.get(operand, "") for operand in operands]
            computations[name].append(_Instruction(one, shape, kind, operands, rest))
    return computations, entry


def _stacks(text: str) -> dict[str, list[str]]:
    """Returns the calls of each stack frame, the innermost first."""
    tables: dict[str, dict[str, str]] = {}
    for line in text.partition("\n%")[0].splitlines():
        if re.fullmatch(r"[A-Z]\w+", line):
            table = tables[line] = {}
        elif tables and re.match(r"\d+ ", line):
            number, _, value = line.partition(" ")
            table[number] = value
    places = {}
    for number, value in tables.get("FileLocations", {}).items():
        file, function, line = re.findall(r"(?:_id| line)=(\d+)", value)
        path = re.sub(r".*/(?=(jaxdet|experiments)/)", "", tables["FileNames"][file])
        name = tables["FunctionNames"][function]
        places[number] = f"{path}:{line} {name}".replace('"', "")
    stacks = {}
    for number, value in tables.get("StackFrames", {}).items():
        location, parent = re.findall(r"=(\d+)", value)
        # Parents come before, and are printed one too high: 1 where there is none.
        stacks[number] = [places[location], *stacks.get(str(int(parent) - 1), [])]
    return stacks
