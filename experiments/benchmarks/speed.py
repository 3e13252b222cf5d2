"""Times detectors: python -m experiments.benchmarks.speed

For each detector, canvas and batch: how long `predict` and a training step take, and
tracing and compiling them; their memory; and how close they are to the device's limits.

    # Two CPU cores: hours. torch and torchvision for --compare:
    # pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu
    python -m experiments.benchmarks.speed --compare \
        --json cpu.json --markdown cpu.md
    # Ten minutes of a GPU, with the torch and torchvision made for it.
    python -m experiments.benchmarks.speed --detectors faster_rcnn \
        --precisions bfloat16 --canvases 800x1344 --batches 1 8 --train-batches 16 \
        --compare --parts --json gpu.json --markdown gpu.md

`--compare` times torchvision's detectors in turns with ours, on the same images and
weights; `--parts` times what they consist of. Rows that the json file has are not
measured again, so an interrupted run continues where it stopped; nor are those that
failed, usually for lack of memory, unless the file is removed. Weights and images are
random. Needs jax, flax, optax, orbax and numpy alone, hence argparse and not tyro; with
`--compare` all of requirements.txt.

A step is `train_step` with SGD, in one program, its state donated. FLOPs are those of
the program before XLA optimizes it (a loop's body counts once), bytes those that the
compiled one reads and writes, on GPUs outside of cuDNN; shares are of the best product
of square matrices and of a copy in place of a large array, both measured first. On CPUs
large 3x3 convolutions are computed with fewer products (jaxdet/nn/cpu_convolution.py),
and FLOPs count those.
XLA's cache of compiled programs is not used, since compilation is measured.
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

from experiments.benchmarks import models, parts, report, speed_report
from experiments.benchmarks.models import MODELS, mean_detections
from experiments.benchmarks.speed_report import Case
from experiments.benchmarks.timing import medians
from jaxdet.config import ConfigError
from jaxdet.data import files
from jaxdet.detectors import mask_rcnn
from jaxdet.detectors.detector import Detector
from jaxdet.structs import Batch
from jaxdet.training.step import create_state, train_step

PRECISIONS = ("bfloat16", "float32")
TASKS = ("predict", "train")


class Program(NamedTuple):
    """A compiled `predict` or training step, ready to be timed."""

    call: Callable  # without arguments; a step continues where the last one stopped
    figures: dict[str, float]  # see `compiled`
    variables: dict[str, Any]  # that it starts with


def main(arguments: list[str] | None = None) -> None:
    """Measures what the command line asks for, and prints it row by row.

    Raises:
      ConfigError: for a json file of another machine, or a torch that does not fit.
    """
    options = _parse(arguments)
    jax.config.update("jax_enable_compilation_cache", False)
    rivals = import_rivals() if options.compare else None
    measured = speed_report.start(
        options.json,
        report.machine() | (rivals.versions() if rivals else {}),
        {"objects": options.objects, "repeats": options.repeats},
    )
    print(report.machine_line(measured["machine"]), flush=True)
    for case in _cases(options):
        old = measured["rows"].get(str(case), {})
        beside = rivals if MODELS[case.detector].rival and "rivals" not in old else None
        parts = options.parts and "parts" not in old
        if "error" in old or (old and beside is None and not parts):
            continue
        if case.precision not in measured["limits"]:
            measured["limits"][case.precision] = limits(case.precision)
        try:
            row = measure(case, measured["limits"][case.precision], options, beside)
        except RuntimeError as error:  # JAX's and torch's, usually out of memory
            row = {"error": str(error).partition("\n")[0]}
        row = speed_report.add(measured, case, row)
        print(speed_report.line(str(case), row), flush=True)
        _save(measured, options)
        if rivals is not None:
            rivals.release()
    _save(measured, options)


def measure(
    case: Case, limit: dict, options: argparse.Namespace, rivals: Any = None
) -> dict:
    """Returns what is measured of a case: see `speed_report` for what it holds.

    Args:
      case: what is measured.
      limit: see `limits`.
      options: of the command line.
      rivals: the module that does the same with torchvision; None: no comparison.
    """
    model, training = MODELS[case.detector], case.task == "train"
    detector = model.detector(case.precision)
    masks = isinstance(model.config, mask_rcnn.MaskRCNNConfig)
    size = (case.batch, case.canvas, options.objects)
    batch = models.random_batch(*size, detector.num_classes, masks=masks)
    call, figures, variables = prepare(detector, batch, case.task)
    calls, output = {"ours": call}, "loss" if training else "detections"
    first = call()
    row = {output: first[1]["loss"].item() if training else mean_detections(first)}
    if rivals is not None:
        arguments = model.rival, variables, batch, case.precision, training
        theirs = rivals.calls(*arguments)
        calls |= {name: rival.call for name, rival in theirs.items()}
        row[f"rival_{output}"] = {name: x.output for name, x in theirs.items()}
        row |= _warning(row, 0.02 if model.box_head is None else 0.2)
    times = dict(zip(calls, medians([*calls.values()], options.repeats), strict=True))
    row |= _speed(figures, times.pop("ours"), case.batch, limit)
    if rivals is not None:
        row["rivals"] = times
    if times:
        row["ratio"] = row["milliseconds"] / min(times.values())
    if options.parts:
        arguments = model, case.precision, variables, batch, training
        row["parts"] = parts.measure(call, *arguments, options.repeats)
    return row


def prepare(detector: Detector, batch: Batch, task: str) -> Program:
    """Returns a compiled prediction or training step, with fresh variables.

    Args:
      detector: what is timed.
      batch: of every call.
      task: "predict" or "train".
    """
    variables = jax.jit(detector.init)(jax.random.key(0), batch)
    variables = models.calibrate_boxes(variables)
    if task == "predict":
        predict, figures = compiled(detector.predict, variables, batch)
        variables = models.calibrate_scores(predict, variables, batch)
        return Program(partial(predict, variables, batch), figures, variables)

    def copied(fresh):  # a step's variables are donated
        del fresh
        return jax.tree.map(jnp.copy, variables)

    states = [create_state(detector, models.TRAINING, batch, pretrained=copied)]
    step = partial(train_step, detector=detector, config=models.TRAINING)
    key = jax.random.key(0)
    step, figures = compiled(step, *states, batch, key, donate=(0,))

    def call():
        state, metrics = step(states.pop(), batch, key)
        states.append(state)
        return state, metrics

    return Program(call, figures, variables)


def compiled(
    function: Callable, *arguments, donate: tuple[int, ...] = ()
) -> tuple[Callable, dict[str, float]]:
    """Compiles a function for such arguments.

    Args:
      function: of trees of arrays.
      *arguments: arrays, or their shapes.
      donate: indices of those whose memory the output may take.

    Returns:
      The compiled function, and its `lower_seconds`, `compile_seconds`, `flops`,
      `bytes` and `memory`.
    """
    start = time.perf_counter()
    lowered = jax.jit(function, donate_argnums=donate).lower(*arguments)
    middle = time.perf_counter()
    program = lowered.compile()
    end = time.perf_counter()
    memory = program.memory_analysis()
    return program, {
        "lower_seconds": middle - start,
        "compile_seconds": end - middle,
        "flops": _flops(function, arguments, lowered),
        "bytes": (program.cost_analysis() or {}).get("bytes accessed", math.nan),
        "memory": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes,
    }


def _flops(function: Callable, arguments: tuple, lowered: Any) -> float:
    """Returns a program's FLOPs.

    A GPU's plugin does not count them. Then the CPU's client counts the GPU's program.
    """
    costs = lowered.cost_analysis()
    if costs is None:
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments
        )
        platform = "cuda" if jax.default_backend() == "gpu" else jax.default_backend()
        try:
            host = jax.local_devices(backend="cpu")[0]
        except RuntimeError:  # JAX_PLATFORMS leaves it out
            return math.nan
        with jax.default_device(host):
            traced = jax.jit(function).trace(*shapes)
            costs = traced.lower(lowering_platforms=(platform,)).cost_analysis()
    return (costs or {}).get("flops", math.nan)


def limits(precision: str) -> dict[str, float]:
    """Measures what the device can do a second, for `flops_share` and `bytes_share`.

    That is `flops`, the best of several square matrix products, and `bytes`, read and
    written by a copy in place.
    """
    on_host = jax.default_backend() == "cpu"
    dtype, flops = jnp.dtype(precision), []
    for side in (1024, 2048) if on_host else (4096, 8192, 16384):
        matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
        product = jax.jit(jnp.matmul)
        (milliseconds,) = medians([partial(product, matrix, matrix)], 5)
        flops.append(2 * side**3 / (milliseconds / 1000))
    # In place: memory that is new to the process would be far slower.
    negate = jax.jit(jnp.negative, donate_argnums=0)
    kept = [jnp.ones((2**29 if on_host else 2**30) // dtype.itemsize, dtype)]

    def call():
        kept.append(negate(kept.pop()))
        return kept[0]

    (milliseconds,) = medians([call], 5)
    return {"flops": max(flops), "bytes": 2000 * kept[0].nbytes / milliseconds}


def import_rivals() -> Any:
    """Imports torch and torchvision, as the module that times them.

    Raises:
      ConfigError: if they are not installed, or do not use the device of JAX.
    """
    try:
        rivals = importlib.import_module("experiments.benchmarks.rivals")
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"--compare needs torch and torchvision with its operators: {error}"
        ) from error
    rivals.require_device(jax.default_backend())
    return rivals


def _warning(row: dict, tolerance: float) -> dict[str, str]:
    """Returns a `warning` if first losses show that both sides train differently."""
    ours, theirs = row.get("loss", 0.0), row.get("rival_loss", {})

    def alike(loss: float) -> bool:  # never, if one is not finite
        return abs(ours - loss) <= tolerance * min(abs(ours), abs(loss))

    if all(map(alike, theirs.values())):
        return {}
    text = ", ".join(f"{name} {loss:.4g}" for name, loss in theirs.items())
    return {"warning": f"first losses differ: ours {ours:.4g}, torchvision's {text}"}


def _speed(figures: dict, milliseconds: float, images: int, limit: dict) -> dict:
    seconds = milliseconds / 1000
    return {
        "milliseconds": milliseconds,
        "images_per_second": images / seconds,
        **figures,
        "flops_share": figures["flops"] / seconds / limit["flops"],
        "bytes_share": figures["bytes"] / seconds / limit["bytes"],
    }


def _save(measured: dict, options: argparse.Namespace) -> None:
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(options.json, measured, indent=1)
    if options.markdown:
        report.write_text(options.markdown, speed_report.markdown(measured))


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    batches = {"predict": options.batches, "train": options.train_batches}
    for name in options.detectors:
        own = MODELS[name].canvas
        for precision in options.precisions:
            for canvas in [own] if own else options.canvases:
                for task in options.tasks:
                    for batch in batches[task]:
                        yield Case(name, precision, canvas, task, batch)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    on_host = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(name: str, default: Any, text: str = "", **more) -> None:
        more |= {"nargs": "+"} if isinstance(default, list) else {}
        parser.add_argument(name, default=default, help=text, **more)

    canvases = [(512, 512), (800, 1088 if on_host else 1344)]
    sizes = "heights and widths in pixels, such as 800x1344; SSD has its own"
    add("--detectors", [*MODELS], choices=MODELS)
    add("--canvases", canvases, sizes, type=_canvas)
    add("--tasks", [*TASKS], choices=TASKS)
    dtypes = "of the networks' arithmetic; parameters and losses are float32"
    precisions = [*PRECISIONS[1:]] if on_host else [*PRECISIONS]
    add("--precisions", precisions, dtypes, choices=PRECISIONS)
    batches, steps = ([1, 2], [2]) if on_host else ([1, 8, 32], [2, 16])
    add("--batches", batches, "images of a prediction", type=_positive)
    add("--train-batches", steps, "images of a step", type=_positive)
    add("--objects", 20, "in every image", type=_positive)
    repeats = 5 if on_host else 20
    add("--repeats", repeats, "calls whose median is taken", type=_positive)
    compare = "time torchvision's detectors, too"
    add("--compare", False, compare, action="store_true")
    add("--parts", False, "time their parts, too", action="store_true")
    add("--json", None, "file of all figures; it is added to", type=pathlib.Path)
    add("--markdown", None, "file for a table", type=pathlib.Path)
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


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
