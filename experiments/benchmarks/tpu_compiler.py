"""Compiles for a TPU without a TPU: python -m experiments.benchmarks.tpu_compiler

The TPU's own compiler runs on any machine (pip install "jax[tpu]"). For each detector,
`predict` and a training step, at 800x1344 (SSD 300x300) and in bfloat16: how long they
compile, the memory they take of one TPU v5e's 16 GiB, and what they would cost there.

    # Functions alone: five minutes of one core.
    python -m experiments.benchmarks.tpu_compiler --small --output small
    # 3 to 13 minutes of two cores each:
    python -m experiments.benchmarks.tpu_compiler --detectors retinanet \
        --tasks train --batches 2
    # The same on each of four chips, and what they add up.
    python -m experiments.benchmarks.tpu_compiler --detectors retinanet \
        --tasks train --batches 2 --devices 4
    # Memory and cuDNN's calls on one H100; needs no GPU, but jax-cuda13-plugin and
    # jax-cuda13-pjrt of jax's own version (pip install --no-deps).
    python -m experiments.benchmarks.tpu_compiler --target h100 --detectors ssd

Rows that the json file has of the same versions are not compiled again. Nothing is
executed, so nothing is measured: times are FLOPs at 197 TFLOP/s, bytes at 819 GB/s, and
the compiler's estimate of all operations, see `hlo_costs.py`. Ratios are worth more
than milliseconds. The largest batch is extrapolated: what lives outside the program
(parameters, optimizer) stays, and temporaries grow with the images.
"""

import importlib.metadata
import importlib.util
import itertools
import multiprocessing
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import command_line
from experiments.benchmarks import hlo_costs, models, report
from experiments.benchmarks.models import MODELS
from experiments.benchmarks.speed_report import Case
from experiments.benchmarks.timing import with_gradient
from jaxdet.config import ConfigError
from jaxdet.data import files
from jaxdet.detectors import dense, mask_rcnn
from jaxdet.detectors.detector import Detector
from jaxdet.ops import lookup, nms, roi_align
from jaxdet.structs import Batch, GroundTruth
from jaxdet.training.step import create_state, make_train_step, train_step

Name = Literal[
    "retinanet",
    "fcos",
    "faster_rcnn",
    "faster_rcnn_c4",
    "mask_rcnn",
    "ssd",
    "detr",
    "deformable_detr",
]
Task = Literal["predict", "train"]
Target = Literal["v5e", "h100"]
H100 = pathlib.Path(__file__).with_name("h100.txtpb")  # its limits, for XLA
H100_MEMORY = 0.75 * 84_942_979_072  # bytes, of which JAX takes three quarters
FLOPS = 197e12  # bfloat16, a second of one TPU v5e
MEMORY = 15.75 * 2**30  # bytes that the compiler gives to a program, of 16 GiB
OBJECTS = 20  # in every image
COMPILERS = {  # module, package and extra of jax
    "v5e": ("libtpu", "libtpu", "tpu"),
    "h100": ("jax_cuda13_plugin", "jax-cuda13-plugin", "cuda13"),
}
HEADS = ("program", "compiled in, s (of CPU)", "peak, GiB", "temporaries, GiB")
HEADS += ("largest batch", "TFLOP", "GB", "arithmetic / memory, ms")
HEADS += ("operations + rows, ms", "sorts (no price)")
# Without these the compiler asks a cloud's server which TPU it has, or is locked.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is held, so others may compile too
    "JAX_PLATFORMS": "cpu",
}


class Program(NamedTuple):
    """What is compiled."""

    function: Callable
    arguments: tuple  # shapes
    donated: tuple[int, ...] = ()
    mapped: bool = False  # over devices


def main(
    *,
    detectors: tuple[Name, ...] = get_args(Name),
    tasks: tuple[Task, ...] = get_args(Task),
    batches: tuple[int, ...] = (8,),
    canvas: tuple[int, int] = (800, 1344),
    devices: int = 1,
    small: bool = False,
    target: Target = "v5e",
    output: pathlib.Path = pathlib.Path("runs/tpu"),
):
    """Compiles, and writes a json file and a table after each row.

    Args:
      detectors: those with ResNet-50, and SSD.
      tasks: what of them.
      batches: images, on each device.
      canvas: (height, width) in pixels; SSD has its own.
      devices: chips of a training step, at most 4.
      small: functions between a detector's layers instead, one by one.
      target: a TPU v5e, or an H100, of which the compiler tells less.
      output: the two files, without their endings.

    Raises:
      ConfigError: if the target's compiler is not installed, for several H100s, or if
        the json file is of another form.
    """
    if target == "h100" and devices > 1:
        raise ConfigError(f"devices is {devices}; it must be 1 for an H100")
    module, package, extra = COMPILERS[target]
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f'the compiler is needed: pip install "jax[{extra}]"')
    cases = small_functions() if small else _cases(detectors, tasks, batches, canvas)
    cases = {_name(case, devices, target): case for case in cases}
    path = output.with_suffix(".json")
    rows = _read_rows(path) if path.exists() else {}
    versions = {x: importlib.metadata.version(x) for x in ("jax", package)}
    planned = {name: {} for name in cases}
    for name, case in cases.items():
        if rows.get(name, {}).get("versions") != versions:
            row = in_a_process(compile_row, case, devices, target)
            rows[name] = row = row | {"versions": versions}
            report.write_text(output.with_suffix(".md"), markdown(planned | rows))
            files.write_json(path, {"rows": rows}, indent=1)
            print(markdown({name: row}), flush=True)


def _read_rows(path: pathlib.Path) -> dict[str, dict]:
    """Returns the rows of an earlier run."""
    contents = files.read_json(path)
    try:
        rows = contents["rows"]
        markdown(rows)  # as it will be written
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} is not of this form, and perhaps of an older one; move it away "
            "or give another --output"
        ) from error
    return rows


def in_a_process(function: Callable, *arguments) -> dict[str, Any]:
    """Calls a function in a process of its own; how it fails becomes an `error`."""
    os.environ.update(_ENVIRONMENT)  # before JAX is imported there
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        try:
            return process.submit(function, *arguments).result()
        except (RuntimeError, ValueError) as error:  # often out of memory
            return {"error": str(error).partition("\n")[0] or type(error).__name__}


def compile_row(
    case: Case | str, devices: int = 1, target: Target = "v5e"
) -> dict[str, Any]:
    """Returns what the compiler tells of a detector, or of a small function.

    Args:
      case: a detector with its setting, or a name of `small_functions`.
      devices: chips that share the batch of a detector.
      target: the kind of chip.

    Returns:
      Seconds, bytes, and what the compiled text holds, by name.
    """
    jax.config.update("jax_traceback_in_locations_limit", -1)  # of places in our code
    jax.config.update("jax_enable_compilation_cache", False)
    if isinstance(case, str):
        program = small_functions()[case]
    else:
        model = MODELS[case.detector]
        detector = model.detector(case.precision)
        masks = isinstance(model.config, mask_rcnn.MaskRCNNConfig)
        size = (case.batch, case.canvas, OBJECTS, detector.num_classes)
        batch = jax.eval_shape(partial(models.random_batch, *size, masks=masks))
        program = of_detector(detector, batch, case.task, devices)
    start, cpu_start = time.perf_counter(), time.process_time()
    compiled = compile_for(program, target)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    memory = compiled.memory_analysis()
    fixed = memory.argument_size_in_bytes + memory.output_size_in_bytes
    fixed -= memory.alias_size_in_bytes  # the donated state
    limit = MEMORY if target == "v5e" else H100_MEMORY
    free = (limit - fixed) * getattr(case, "batch", 0)
    text = compiled.as_text()
    row = {
        "compile_seconds": seconds,
        "compile_cpu_seconds": cpu_seconds,
        "peak": memory.peak_memory_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "largest_batch": int(free / max(memory.temp_size_in_bytes, 1)),
    }
    if target == "h100":
        return row | {"convolutions": hlo_costs.convolutions(text)}
    costs = compiled.cost_analysis()
    operations = hlo_costs.operations(text)
    groups = {name: [0, 0.0, 0.0] for name in hlo_costs.GROUPS}
    for one in operations:
        group = groups[one.group]
        groups[one.group] = np.add(group, [1, one.seconds, one.row_seconds]).tolist()
    heaviest = sorted(operations, key=lambda x: -x.seconds - x.row_seconds)[:10]
    return row | {
        "flops": costs.get("flops", 0.0),
        "bytes": costs.get("bytes accessed", 0.0),
        "all_reduces": hlo_costs.all_reduces(text),  # types and bytes
        "groups": groups,  # operations, seconds, seconds of rows
        "heaviest": [{**x._asdict(), "kinds": sorted(x.kinds)} for x in heaviest],
    }


def compile_for(program: Program, target: Target = "v5e") -> Any:
    """Compiles for one chip, or for those it is mapped over; see `in_a_process`."""
    if program.mapped:
        return program.function.lower(*program.arguments).compile()
    mesh = Mesh(np.array(_chips(target)[:1]), ("device",))
    jitted = jax.jit(
        program.function,
        in_shardings=NamedSharding(mesh, PartitionSpec()),
        donate_argnums=program.donated,
    )
    return jitted.lower(*program.arguments).compile()


def _chips(target: Target = "v5e") -> list:
    options = {"platform": "tpu", "topology_name": "v5e:2x2"}
    if target == "h100":
        one = dict.fromkeys(("topology_name", "topology"), "1x1x1")
        options = {"platform": "cuda", "target_config": H100.read_text()} | one
    return topologies.get_topology_desc(**options).devices


def of_detector(
    detector: Detector, batch: Batch, task: Task, devices: int = 1
) -> Program:
    """Returns a detector's `predict`, or its training step on some of four chips.

    Args:
      detector: what is compiled.
      batch: of one device, or its shapes.
      task: which of the two.
      devices: of the training step.
    """
    if task == "predict":
        variables = jax.eval_shape(detector.init, jax.random.key(0), batch)
        return Program(detector.predict, (variables, batch))
    state = jax.eval_shape(partial(create_state, detector, models.TRAINING), batch)
    key = jax.eval_shape(jax.random.key, 0)
    if devices > 1:
        step = make_train_step(detector, models.TRAINING, _chips()[:devices])
        pieces = jax.eval_shape(
            partial(jax.tree.map, lambda x: jnp.stack(devices * [x])), batch
        )
        return Program(step, (state, pieces, key), mapped=True)
    step = partial(train_step, detector=detector, config=models.TRAINING)
    return Program(step, (state, batch, key), donated=(0,))


def small_functions() -> dict[str, Program]:
    """Returns functions of detectors at 800x1344 by name (RoIs: two images)."""
    shape = jax.ShapeDtypeStruct
    images, anchors, rois, classes = 8, 201_600, 1024, 91

    def floats(*dims, dtype=jnp.float32):
        return shape(dims, dtype)

    boxes = floats(images, OBJECTS, 4)
    objects = shape((images, OBJECTS), jnp.bool_)
    labels = shape((images, OBJECTS), jnp.int32)
    truth = GroundTruth(boxes, labels, objects, objects)
    each = shape((images, anchors), jnp.int32), shape((images, anchors), jnp.bool_)
    pyramid = {
        x: floats(2, -(-800 // 2**x), 1344 // 2**x, 256, dtype=jnp.bfloat16)
        for x in range(2, 6)
    }
    align = jax.vmap(roi_align.pyramid_roi_align)
    match = partial(dense.match_anchors, negative_iou=0.4, positive_iou=0.5)
    suppress = partial(nms.nms, iou_threshold=0.7, max_output_size=1000)
    targets = partial(dense.matched_targets, num_classes=classes)
    masks = (floats(rois, 28, 28, classes), shape((rois,), jnp.int32))
    aligned = (pyramid, floats(2, 512, 4))
    crop = partial(roi_align.roi_align, stride=16, output_size=14, sampling_ratio=0)
    crops = (floats(2, 50, 84, 1024, dtype=jnp.bfloat16), aligned[1])
    return {
        "targets of matched anchors": Program(targets, (truth, *each)),
        "matching": Program(match, (floats(anchors, 4), each[1], truth)),
        "masks of own classes": Program(lookup.lookup_channel, masks),
        "masks of own classes, with gradient": Program(
            partial(with_gradient, lookup.lookup_channel), masks
        ),
        "RoI Align, 2 x 512 boxes": Program(align, aligned),
        "RoI Align, with gradient": Program(partial(with_gradient, align), aligned),
        "C4's crops with gradient": Program(
            partial(with_gradient, jax.vmap(crop)), crops
        ),
        "NMS, 2 x 4,000 boxes": Program(
            jax.vmap(suppress), (floats(2, 4000, 4), floats(2, 4000))
        ),
    }


def markdown(rows: dict[str, dict]) -> str:
    """Returns the table, and for each row its groups and its heaviest operations."""
    text = report.table(HEADS, itertools.starmap(_cells, rows.items()))
    for name, row in rows.items():
        if "convolutions" in row:
            calls = (f"{n} {call}" for call, n in row["convolutions"].items())
            text += f"\n{name}: convolutions: {', '.join(calls)}.\n"
        if "groups" not in row:
            continue
        if row["all_reduces"]:
            sums = (f"{dtype} {n / 2**20:.3g} MiB" for dtype, n in row["all_reduces"])
            text += f"\n{name}: sums over devices: {', '.join(sums)}.\n"
        shares = ", ".join(
            f"{group} {1e3 * seconds:.3g} + {1e3 * row_seconds:.3g}"
            for group, (count, seconds, row_seconds) in row["groups"].items()
            if count
        )
        text += f"\n{name}: operations + rows, ms: {shares}.\n\n"
        text += report.table(("ms", "times", "heaviest", "at"), _heaviest(row))
    return text


def _heaviest(row: dict) -> Iterator[tuple[str, ...]]:
    for x in row["heaviest"]:
        milliseconds = 1e3 * (x["seconds"] + x["row_seconds"])
        yield f"{milliseconds:.3g}", str(x["trips"]), x["name"], x["place"]


def _cells(name: str, row: dict) -> list[str]:
    if "peak" not in row:
        return [name, row.get("error", "not yet run"), *(len(HEADS) - 2) * [""]]
    cells = [
        name,
        f"{row['compile_seconds']:.0f} ({row['compile_cpu_seconds']:.0f})",
        *(f"{row[key] / 2**30:.2f}" for key in ("peak", "temporaries")),
        f"{row['largest_batch'] or ''}",
    ]
    if "groups" not in row:
        return cells + (len(HEADS) - len(cells)) * [""]
    sums = np.sum([*row["groups"].values()], axis=0)
    return [
        *cells,
        f"{row['flops'] / 1e12:.3g}",
        f"{row['bytes'] / 1e9:.3g}",
        f"{1e3 * row['flops'] / FLOPS:.3g} / "
        f"{1e3 * row['bytes'] / hlo_costs.BANDWIDTH:.3g}",
        f"{1e3 * sums[1]:.3g} + {1e3 * sums[2]:.3g}",
        f"{row['groups']['sorts and top-k'][0]:.0f}",
    ]


def _cases(detectors, tasks, batches, canvas) -> list[Case]:
    return [
        Case(name, "bfloat16", MODELS[name].canvas or canvas, task, batch)
        for name, task, batch in itertools.product(detectors, tasks, batches)
    ]


def _name(case: Case | str, devices: int, target: Target) -> str:
    many = devices > 1 and getattr(case, "task", "") == "train"
    name = f"{case} on each of {devices} chips" if many else str(case)
    return name if target == "v5e" else f"{name}, {target}"


if __name__ == "__main__":
    command_line.run(main)
