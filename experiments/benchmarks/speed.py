r"""Speed and memory of the detectors: python -m experiments.benchmarks.speed

For each detector, canvas and batch: how long `predict` and a training step take, and
to trace and to compile; memory; and how near they come to what the device can do.

    # A CPU; two cores take hours. torch and torchvision for --compare are those of
    # pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu
    python -m experiments.benchmarks.speed --compare --parts \
        --json cpu.json --markdown cpu.md
    # A GPU, with the torch and torchvision made for it.
    python -m experiments.benchmarks.speed --compare --parts \
        --json gpu.json --markdown gpu.md
    # Ten minutes of a GPU.
    python -m experiments.benchmarks.speed --detectors faster_rcnn \
        --precisions bfloat16 \
        --canvases 800x1344 --batches 1 8 --train-batches 16 --compare --parts \
        --json gpu.json --markdown gpu.md

`--compare` times torchvision's detectors in turns with ours, on the same images and
weights; `--parts` says what the time goes into. Rows that the json file holds already
are not measured again, so an interrupted run goes on where it stopped; nor are those
that failed, for want of memory as a rule, unless the file is removed. Nothing is read:
weights and images are random. Needs jax, flax, optax, orbax and numpy alone, so that it
runs where nothing can be installed: hence argparse and not tyro.

A step is `train_step` with SGD, in one program, its state donated. FLOPs are those of
the program before XLA optimises it (a loop's body counts once), bytes those that the
compiled one reads and writes; shares are of the best product of square matrices and of
a copy in place of a large array, both measured first. On CPUs large 3x3 convolutions
are computed with fewer products (jaxdet/nn/cpu_convolution.py), and FLOPs count those.
XLA's files of compiled programs are not used, since compilation is what is measured.
"""

import argparse
import importlib
import math
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

# Before JAX is imported: on a GPU it would keep most of the memory from torch.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp

from experiments.benchmarks import parts, report
from experiments.benchmarks.models import (
    MODELS,
    TRAINING,
    at_rest,
    found,
    random_batch,
    with_answers,
)
from experiments.benchmarks.report import Case, fields_of, machine, machine_line, row_of
from experiments.benchmarks.timing import medians
from jaxdet.config import ConfigError
from jaxdet.detectors import mask_rcnn
from jaxdet.detectors.detector import Detector
from jaxdet.structs import Batch
from jaxdet.training.step import create_state, train_step

PRECISIONS = ("bfloat16", "float32")
TASKS = ("predict", "train")


class Program(NamedTuple):
    """A compiled function, and what is known of it before it runs."""

    call: Callable
    figures: dict[str, float]  # lower_seconds, compile_seconds, flops, bytes, memory


class Limits(NamedTuple):
    """What the device can do, in one precision."""

    flops: float  # a second, of a product of matrices
    bytes: float  # a second, read and written by a copy


def main(arguments: list[str] | None = None) -> None:
    """Measures what the command line asks for, and prints it row by row.

    Raises:
      ConfigError: for a json file of another machine, or a torch that does not fit.
    """
    options = _parse(arguments)
    jax.config.update("jax_enable_compilation_cache", False)
    rivals = _rivals() if options.compare else None
    measured = report.start(
        options.json,
        machine() | (rivals.versions() if rivals else {}),
        {"objects": options.objects, "repeats": options.repeats},
    )
    print(machine_line(measured["machine"]), flush=True)
    for case in _cases(options):
        old = row_of(measured, case)
        beside = rivals if MODELS[case.detector].rival and "rivals" not in old else None
        parts = options.parts and "parts" not in old
        if "error" in old or (old and beside is None and not parts):
            continue
        if case.precision not in measured["limits"]:
            measured["limits"][case.precision] = limits(case.precision)._asdict()
        limit = Limits(**measured["limits"][case.precision])
        row = report.add(measured, _tried(case, limit, options, beside))
        print(report.line(row), flush=True)
        report.save(measured, options.json, options.markdown)
        if rivals is not None:
            rivals.release()
    report.save(measured, options.json, options.markdown)


def _tried(case: Case, limit: Limits, options: argparse.Namespace, rivals: Any) -> dict:
    """The row of a case, or one with the `error` that it ends with."""
    try:
        return measure(case, limit, options, rivals)
    except RuntimeError as error:  # out of memory, as a rule; JAX's and torch's are
        told = str(error).partition("\n")[0]
        return {**fields_of(case), "error": told}


def measure(
    case: Case, limit: Limits, options: argparse.Namespace, rivals: Any = None
) -> dict:
    """Returns a row of the report: see `benchmarks.report` for what it holds.

    Args:
      case: what is measured.
      limit: the device's greatest speeds, of which shares are told.
      options: of the command line.
      rivals: asked for the same with torchvision; None: nobody is.
    """
    model, training = MODELS[case.detector], case.task == "train"
    peak = _peak_bytes()
    variables, batch, program, call = _prepared(case, options.objects)
    calls, row = {"ours": call}, fields_of(case)
    answer = "loss" if training else "found"
    row[answer] = float(call()[1]["loss"]) if training else found(call())
    if rivals is not None:
        given = model.rival, variables, batch, case.precision, training
        theirs = rivals.calls(*given)
        calls |= {name: rival.call for name, rival in theirs.items()}
        row[f"rival_{answer}"] = {name: x.answer for name, x in theirs.items()}
        row |= _warning(row, 0.02 if model.box_head is None else 0.2)
    times = dict(zip(calls, medians([*calls.values()], options.repeats), strict=True))
    row |= _speed(program, times.pop("ours"), case.batch, limit)
    if _peak_bytes() > peak:  # else that of an earlier row
        row["device_peak"] = _peak_bytes()
    if rivals is not None:
        row["rivals"] = times
    if times:
        row["ratio"] = row["milliseconds"] / min(times.values())
    if options.parts:
        given = model, case.precision, variables, batch, training
        row |= parts.measure(call, *given, options.repeats)
    return row


def _prepared(case: Case, objects: int) -> tuple[dict, Batch, Program, Callable]:
    """Variables, a batch, the program, and a function of nothing that calls it."""
    model = MODELS[case.detector]
    detector = model.detector(case.precision)
    masks = isinstance(model.config, mask_rcnn.MaskRCNNConfig)
    batch = random_batch(
        case.batch, case.canvas, objects, detector.num_classes, masks=masks
    )
    variables = at_rest(jax.jit(detector.init)(jax.random.key(0), batch))
    if case.task == "train":
        return variables, batch, *training_program(detector, variables, batch)
    program = compiled(detector.predict, variables, batch)
    variables = with_answers(program.call, variables, batch)
    return variables, batch, program, partial(program.call, variables, batch)


def _warning(row: dict, tolerance: float) -> dict[str, str]:
    """Of first losses that show that both sides do not train the same."""
    ours, theirs = row.get("loss", 0.0), row.get("rival_loss", {})

    def alike(loss: float) -> bool:  # never, if one is not finite
        return abs(ours - loss) <= tolerance * min(abs(ours), abs(loss))

    if all(map(alike, theirs.values())):
        return {}
    told = ", ".join(f"{name} {loss:.4g}" for name, loss in theirs.items())
    return {"warning": f"first losses differ: ours {ours:.4g}, torchvision's {told}"}


def _speed(program: Program, milliseconds: float, images: int, limit: Limits) -> dict:
    seconds, figures = milliseconds / 1000, program.figures
    return {
        "milliseconds": milliseconds,
        "images_per_second": images / seconds,
        **figures,
        "flops_share": figures["flops"] / seconds / limit.flops,
        "bytes_share": figures["bytes"] / seconds / limit.bytes,
    }


def compiled(function: Callable, *arguments, donate: tuple[int, ...] = ()) -> Program:
    """A function compiled for such arguments, and what that took.

    Args:
      function: of trees of arrays.
      *arguments: arrays, or their shapes.
      donate: indices of those whose memory the answer may take.
    """
    start = time.perf_counter()
    lowered = jax.jit(function, donate_argnums=donate).lower(*arguments)
    middle = time.perf_counter()
    program = lowered.compile()
    end = time.perf_counter()
    memory = program.memory_analysis()
    figures = {
        "lower_seconds": middle - start,
        "compile_seconds": end - middle,
        "flops": (lowered.cost_analysis() or {}).get("flops", math.nan),
        "bytes": (program.cost_analysis() or {}).get("bytes accessed", math.nan),
        "memory": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes,
    }
    return Program(program, figures)


def training_program(
    detector: Detector, variables: dict[str, Any], batch: Batch
) -> tuple[Program, Callable]:
    """A step, compiled, and a call that goes on from where the last one stopped.

    Args:
      detector: all its layers learn.
      variables: those it starts with; they are copied, since a step's are donated.
      batch: the same for every step.

    Returns:
      The program, and a function of nothing that makes one step.
    """
    state = create_state(
        detector,
        TRAINING,
        batch,
        pretrained=lambda fresh: jax.tree.map(jnp.copy, variables),
    )
    key = jax.random.key(0)
    step = partial(train_step, detector=detector, config=TRAINING)
    program = compiled(step, state, batch, key, donate=(0,))
    states = [state]

    def call():
        state, metrics = program.call(states.pop(), batch, key)
        states.append(state)
        return state, metrics

    return program, call


def limits(precision: str) -> Limits:
    """Of the best of several sizes of square matrices, and of copies of one array."""
    on_host = jax.default_backend() == "cpu"
    dtype, flops = jnp.dtype(precision), []
    for side in (1024, 2048) if on_host else (4096, 8192, 16384):
        matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
        product = jax.jit(jnp.matmul)
        (milliseconds,) = medians([partial(product, matrix, matrix)], 5)
        flops.append(2 * side**3 / (milliseconds / 1000))
    # In place: memory that is new to the process would be the slower by far.
    negate = jax.jit(jnp.negative, donate_argnums=0)
    kept = [jnp.ones((2**29 if on_host else 2**30) // dtype.itemsize, dtype)]

    def call():
        kept.append(negate(kept.pop()))
        return kept[0]

    (milliseconds,) = medians([call], 5)
    return Limits(max(flops), 2 * kept[0].nbytes / (milliseconds / 1000))


def _peak_bytes() -> int:
    """The most that the device has held in this process; 0 where it does not tell."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def _rivals() -> Any:
    try:
        rivals = importlib.import_module("experiments.benchmarks.rivals")
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"--compare needs torch and torchvision with its operators: {error}"
        ) from error
    rivals.require_device(jax.default_backend())
    return rivals


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    on_host = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    several, many = {"nargs": "+"}, {"nargs": "+", "type": _positive}
    canvases = [(512, 512), (800, 1088 if on_host else 1344)]
    add = parser.add_argument
    add("--detectors", choices=MODELS, default=[*MODELS], **several)
    add(
        "--canvases",
        type=_canvas,
        default=canvases,
        help="heights and widths in pixels, such as 800x1344; SSD has its own",
        **several,
    )
    add("--tasks", choices=TASKS, default=TASKS, **several)
    add(
        "--precisions",
        choices=PRECISIONS,
        default=PRECISIONS[1:] if on_host else PRECISIONS,
        help="of the networks' arithmetic; parameters and losses are float32",
        **several,
    )
    add(
        "--batches",
        default=[1, 2] if on_host else [1, 8, 32],
        help="images at once in predict",
        **many,
    )
    add(
        "--train-batches",
        default=[2] if on_host else [2, 16],
        help="images of a step",
        **many,
    )
    add("--objects", type=_positive, default=20, help="in every image")
    add(
        "--repeats",
        type=_positive,
        default=5 if on_host else 20,
        help="calls of which the median is taken",
    )
    switch = {"action": "store_true"}
    add("--compare", help="time torchvision's detectors too", **switch)
    add("--parts", help="time what they consist of too", **switch)
    add("--json", type=pathlib.Path, help="file of all figures; it is added to")
    add("--markdown", type=pathlib.Path, help="file for a table")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: it must be at least 1")
    return int(text)


def _canvas(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    sides = tuple(map(int, match.groups())) if match else ()
    if not sides or min(sides) < 32 or any(side % 32 for side in sides):
        allowed = "height x width, multiples of 32, such as 800x1344"
        raise argparse.ArgumentTypeError(f"{text}: it must be {allowed}")
    return sides


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    batches = {"predict": options.batches, "train": options.train_batches}
    for name in options.detectors:
        own = MODELS[name].canvas
        for precision in options.precisions:
            for canvas in [own] if own else options.canvases:
                for task in options.tasks:
                    for batch in batches[task]:
                        yield Case(name, precision, canvas, task, batch)


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
