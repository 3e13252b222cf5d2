"""Speed and memory of the detectors: python -m experiments.benchmark

For each detector, canvas and batch: how long `predict` and a training step take, and
to trace and to compile; memory; and how near they come to what the device can do.

    python -m experiments.benchmark --json cpu.json --markdown cpu.md
    python -m experiments.benchmark --compare --parts --json gpu.json --markdown gpu.md

`--compare` times torchvision's detectors in turns with ours, on the same images and
weights; `--parts` says what the time goes into. Rows that the json file holds already
are not measured again, so an interrupted run goes on where it stopped. Nothing is read:
weights and images are random. Needs jax, flax, optax, orbax and numpy alone; torch and
torchvision for `--compare`.

A step is `train_step` with SGD, in one program, its state donated. FLOPs are those of
the program before XLA optimises it (a loop's body counts once), bytes those that the
compiled one reads and writes; shares are of the best product of square matrices and of
copies of large arrays, both measured first. XLA's files of compiled programs are not
used, since compilation is what is measured.
"""

import argparse
import dataclasses
import datetime
import importlib
import json
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

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments import benchmark_parts
from experiments.timing import medians, random_boxes
from jaxdet.detectors import faster_rcnn, fcos, mask_rcnn, retinanet, ssd
from jaxdet.detectors.detector import Detector
from jaxdet.nn.heads import FCHead
from jaxdet.nn.resnet import ResNet, ResNetHead
from jaxdet.structs import Batch, GroundTruth
from jaxdet.training.config import ConfigError, TrainingConfig
from jaxdet.training.step import create_state, train_step

PRECISIONS = ("bfloat16", "float32")
TASKS = ("predict", "train")
TRAINING = TrainingConfig(learning_rate=1e-4, warmup_steps=0)
MASK_CELLS = 56  # a side of the objects' masks
FOUND = 50  # detections an image
_CLASSES = r".*(class_head/output|head/classes|predictor/classes|classes\d)/kernel"
_BOXES = r".*(box_head/output|head/sides|deltas\d?)/kernel"
_SIDES = "head/sides/bias"
_FIXED = ("device", "platform", "cores", "jax", "torch", "torchvision")


class Model(NamedTuple):
    """A detector as it is measured."""

    title: str
    make: Callable  # (config, backbone) or (config, backbone, region head) -> Detector
    config: Any
    backbone: Callable  # dtype -> module
    region_head: Callable | None = None  # likewise
    rival: str | None = None  # torchvision's function
    canvas: tuple[int, int] | None = None  # the only one

    def layers(self, precision: str) -> list[nn.Module]:
        """Backbone and region head, as `make` takes them."""
        makers = (self.backbone, self.region_head)
        return [make(dtype=jnp.dtype(precision).type) for make in makers if make]

    def detector(self, precision: str) -> Detector:
        """With arithmetic of this precision."""
        return self.make(self.config, *self.layers(precision))


# Torchvision's networks: 91 outputs, of which the R-CNNs and SSD call one background.
_DENSE, _REGIONS = {"num_classes": 91}, {"num_classes": 90}
_FASTER_RCNN = dataclasses.replace(faster_rcnn.TORCHVISION, **_REGIONS)
_RESNET, _HEAD = partial(ResNet, 50), partial(FCHead, 1024)
MODELS = {
    "retinanet": Model(
        "RetinaNet",
        retinanet.retinanet,
        dataclasses.replace(retinanet.TORCHVISION, **_DENSE),
        _RESNET,
        rival="retinanet_resnet50_fpn",
    ),
    "fcos": Model(
        "FCOS",
        fcos.fcos,
        dataclasses.replace(fcos.TORCHVISION, **_DENSE),
        _RESNET,
        rival="fcos_resnet50_fpn",
    ),
    "faster_rcnn": Model(
        "Faster R-CNN",
        faster_rcnn.faster_rcnn,
        _FASTER_RCNN,
        _RESNET,
        _HEAD,
        rival="fasterrcnn_resnet50_fpn",
    ),
    "faster_rcnn_c4": Model(
        "Faster R-CNN, C4",
        faster_rcnn.faster_rcnn,
        dataclasses.replace(faster_rcnn.DETECTRON2_C4, **_REGIONS),
        partial(ResNet, 50, coarsest=4),
        partial(ResNetHead, 50),
    ),
    "mask_rcnn": Model(
        "Mask R-CNN",
        mask_rcnn.mask_rcnn,
        dataclasses.replace(mask_rcnn.TORCHVISION, faster_rcnn=_FASTER_RCNN),
        _RESNET,
        _HEAD,
        rival="maskrcnn_resnet50_fpn",
    ),
    "ssd": Model(
        "SSD",
        ssd.ssd,
        dataclasses.replace(ssd.TORCHVISION, **_REGIONS),
        ssd.vgg16_300,
        rival="ssd300_vgg16",
        canvas=(300, 300),
    ),
}


class Case(NamedTuple):
    """What one row is about."""

    detector: str
    precision: str
    canvas: tuple[int, int]  # (height, width)
    task: str  # one of TASKS
    batch: int

    @property
    def text(self) -> str:
        """For people."""
        return (
            f"{MODELS[self.detector].title}, {self.task}, {self.precision}, "
            f"{_size(self.canvas)}, batch {self.batch}"
        )


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
    report = _report(options, rivals)
    print(_machine_line(report["machine"]), flush=True)
    for case in _cases(options):
        model = MODELS[case.detector]
        wanted = (options.compare and model.rival, options.parts)
        if _is_there(report["rows"], case, *wanted):
            continue
        if case.precision not in report["limits"]:
            report["limits"][case.precision] = limits(case.precision)._asdict()
        limit = Limits(**report["limits"][case.precision])
        try:
            row = measure(case, limit, options, rivals if model.rival else None)
        except jax.errors.JaxRuntimeError as error:  # out of memory, as a rule
            print(f"{case.text}: {str(error).splitlines()[0]}", flush=True)
            continue
        rows = [r for r in report["rows"] if _case_of(r) != case]
        report["rows"] = [*rows, row]
        print(_line(row), flush=True)
        _write(report, options)
    _write(report, options)


def measure(
    case: Case, limit: Limits, options: argparse.Namespace, rivals: Any = None
) -> dict:
    """A row of the report: see `_line` and `markdown` for what it holds.

    Args:
      case: what is measured.
      limit: the device's greatest speeds, of which shares are told.
      options: of the command line.
      rivals: asked for the same with torchvision; None: nobody is.
    """
    model, training = MODELS[case.detector], case.task == "train"
    detector = model.detector(case.precision)
    masks = isinstance(model.config, mask_rcnn.MaskRCNNConfig)
    batch = random_batch(
        case.batch, case.canvas, options.objects, detector.num_classes, masks=masks
    )
    variables = at_rest(jax.jit(detector.init)(jax.random.key(0), batch))
    row = {**case._asdict(), "canvas": list(case.canvas)}
    peak = _peak_bytes()
    if training:
        program, call = training_program(detector, variables, batch)
    else:
        program = compiled(detector.predict, variables, batch)
        variables = with_answers(program.call, variables, batch)
        call = partial(program.call, variables, batch)
        row["found"] = _found(call())
    calls = {"ours": call}
    if rivals is not None:
        given = model.rival, variables, batch, case.precision, training
        calls |= rivals.calls(*given)
        if not training:
            row["rival_found"] = {
                name: rivals.found(call) for name, call in [*calls.items()][1:]
            }
    times = dict(zip(calls, medians([*calls.values()], options.repeats), strict=True))
    milliseconds = row["milliseconds"] = times.pop("ours")
    row["images_per_second"] = 1000 * case.batch / milliseconds
    row |= program.figures
    row["flops_share"] = row["flops"] / (milliseconds / 1000) / limit.flops
    row["bytes_share"] = row["bytes"] / (milliseconds / 1000) / limit.bytes
    if _peak_bytes() > peak:  # else that of an earlier row
        row["device_peak"] = _peak_bytes()
    if times:
        row |= {"rivals": times, "ratio": milliseconds / min(times.values())}
    if options.parts:
        network = benchmark_parts.network(model.config, *model.layers(case.precision))
        row["parts"] = benchmark_parts.measure(
            network, model.config, variables, batch, TRAINING, training, options.repeats
        )
    return row


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


def machine() -> dict[str, Any]:
    """What the figures were measured with, and when."""
    device = jax.devices()[0]
    return {
        "device": _processor() or device.device_kind,
        "platform": device.platform,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
    }


def limits(precision: str) -> Limits:
    """Of the best of several sizes of square matrices, and of copies of one array."""
    on_host = jax.default_backend() == "cpu"
    dtype, flops = jnp.dtype(precision), []
    for side in (1024, 2048) if on_host else (4096, 8192, 16384):
        matrix = jnp.ones((side, side), dtype)
        product = jax.jit(jnp.matmul)
        (milliseconds,) = medians([partial(product, matrix, matrix)], 5)
        flops.append(2 * side**3 / (milliseconds / 1000))
    array = jnp.ones(2**26 if on_host else 2**30, jnp.int8).view(dtype)
    (milliseconds,) = medians([partial(jax.jit(jnp.negative), array)], 5)
    return Limits(max(flops), 2 * array.nbytes / (milliseconds / 1000))


def random_batch(
    count: int,
    canvas: tuple[int, int],
    objects: int,
    num_classes: int,
    *,
    masks: bool = False,
) -> Batch:
    """Images of noise that fill the canvas, with objects anywhere.

    Args:
      count: images.
      canvas: (height, width) in pixels.
      objects: in every image, none of them a crowd.
      num_classes: labels are drawn from all but the last.
      masks: whether objects have masks, all of their boxes.
    """
    rng = np.random.default_rng(0)
    shape = (count, objects)
    boxes = [random_boxes(rng, objects, canvas) for _ in range(count)]
    there = jnp.ones(shape, bool)
    truth = GroundTruth(
        boxes=jnp.asarray(boxes),
        labels=jnp.asarray(rng.integers(0, num_classes - 1, shape), jnp.int32),
        valid=there,
        crowd=~there,
        masks=jnp.ones((*shape, MASK_CELLS, MASK_CELLS)) if masks else None,
    )
    return Batch(
        images=jnp.asarray(rng.integers(0, 256, (count, *canvas, 3)), jnp.uint8),
        sizes=jnp.tile(jnp.array([canvas], jnp.int32), (count, 1)),
        scales=jnp.ones((count, 2)),
        image_ids=jnp.arange(count, dtype=jnp.int32),
        truth=truth,
    )


def at_rest(variables: dict[str, Any]) -> dict[str, Any]:
    """Random variables with which boxes stay where their anchors are.

    Fresh layers on fresh features would send them far out of the image, all to the same
    place, and non-maximum suppression would have nothing to do.
    """

    def rest(path: str, values: jax.Array) -> jax.Array:
        if path == _SIDES:  # FCOS has no anchors: three strides to every side
            return jnp.full_like(values, 3.0)
        return jnp.zeros_like(values) if re.fullmatch(_BOXES, path) else values

    return _mapped(rest, variables)


def with_answers(
    predict: Callable, variables: dict[str, Any], batch: Batch
) -> dict[str, Any]:
    """Variables with which about `FOUND` objects are found in an image.

    The class logits' layers are multiplied by one factor, looked for by bisection; of
    a fresh network no score would be high enough, or all.

    Args:
      predict: the compiled `(variables, batch) -> Detections`.
      variables: fresh ones.
      batch: in which they are to find so many.
    """

    def scaled(power: float) -> dict[str, Any]:
        def scale(path: str, values: jax.Array) -> jax.Array:
            return values * 2**power if re.fullmatch(_CLASSES, path) else values

        return _mapped(scale, variables)

    low, high = -10.0, 10.0
    for _ in range(8):
        middle = (low + high) / 2
        if _found(predict(scaled(middle), batch)) < FOUND:
            low = middle
        else:
            high = middle
    return scaled(high)


def markdown(report: dict) -> str:
    """The rows as a table, those with parts with one more each."""
    rows = report["rows"]
    heads = ["detector", "task", "precision", "canvas", "batch", "ms", "images/s"]
    heads += ["lower + compile, s", "memory, GB", "TFLOP", "of matrix products"]
    heads += ["of copies", "torchvision's best, ms", "ours / its"]
    lines = [_machine_line(report["machine"]), ""]
    for precision, limit in report["limits"].items():
        lines += [
            f"{precision}: {limit['flops'] / 1e12:.3g} TFLOP/s in matrix products, "
            f"{limit['bytes'] / 1e9:.3g} GB/s in copies.",
            "",
        ]
    lines += [_cells(heads), "|---" * len(heads) + "|"]
    lines += [_cells(_row_cells(row)) for row in rows]
    for row in rows:
        if "parts" in row:
            lines += ["", f"{_case_of(row).text}:", "", *_part_lines(row)]
    return "\n".join(lines) + "\n"


def _mapped(change: Callable, variables: dict[str, Any]) -> dict[str, Any]:
    """`change(path, values)` of every parameter."""
    flat = flatten_dict(variables["params"], sep="/")
    changed = {path: change(path, values) for path, values in flat.items()}
    return {**variables, "params": unflatten_dict(changed, sep="/")}


def _found(found: Any) -> float:
    """Detections an image."""
    return float(np.mean(np.sum(np.asarray(found.valid), axis=1)))


def _processor() -> str:
    """Name of the CPU where that is the device, on Linux; JAX calls all of them cpu."""
    listing = pathlib.Path("/proc/cpuinfo")
    if jax.default_backend() != "cpu" or not listing.exists():
        return ""
    name = re.search(r"^model name\s*: (.+)$", listing.read_text(), re.MULTILINE)
    return name[1] if name else ""


def _peak_bytes() -> int:
    """The most that the device has held in this process; 0 where it does not tell."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def _rivals() -> Any:
    try:
        rivals = importlib.import_module("experiments.benchmark_rivals")
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


def _report(options: argparse.Namespace, rivals: Any) -> dict:
    """An empty one, or that of the json file."""
    this = machine() | ({} if rivals is None else rivals.versions())
    if options.json is None or not options.json.exists():
        return {"machine": this, "limits": {}, "rows": []}
    report = json.loads(options.json.read_text())
    old = report["machine"]
    different = [k for k in _FIXED if k in old and this.get(k, old[k]) != old[k]]
    if different:
        raise ConfigError(
            f"--json {options.json} was measured with "
            f"{', '.join(f'{k} {old[k]}' for k in different)}, this is "
            f"{', '.join(f'{this[k]}' for k in different)}: name another file"
        )
    report["machine"] = old | this
    return report


def _is_there(rows: list[dict], case: Case, compare: Any, parts: bool) -> bool:
    wanted = {"rivals"} if compare else set()
    wanted |= {"parts"} if parts else set()
    return any(_case_of(row) == case and wanted <= row.keys() for row in rows)


def _case_of(row: dict) -> Case:
    values = {**row, "canvas": tuple(row["canvas"])}
    return Case(*(values[name] for name in Case._fields))


def _write(report: dict, options: argparse.Namespace) -> None:
    texts = {
        options.json: json.dumps(report, indent=1) + "\n",
        options.markdown: markdown(report),
    }
    for path, text in texts.items():
        if path is not None:
            part = path.with_name(path.name + ".part")  # an interruption leaves the old
            part.write_text(text)
            part.replace(path)


def _machine_line(machine: dict) -> str:
    versions = [
        f"{name} {machine[name]}"
        for name in ("jax", "torch", "torchvision")
        if name in machine
    ]
    device = f"{machine['device']} ({machine['platform']})"
    return ", ".join([device, f"{machine['cores']} cores", *versions, machine["date"]])


def _line(row: dict) -> str:
    text = (
        f"{_case_of(row).text}: {row['milliseconds']:.4g} ms, "
        f"{row['images_per_second']:.3g} images/s, compiled in "
        f"{row['compile_seconds']:.3g} s"
    )
    rivals = [f"{name} {value:.4g}" for name, value in row.get("rivals", {}).items()]
    if rivals:
        text += f"; torchvision {', '.join(rivals)} ms; ours / its {row['ratio']:.2f}"
    return "\n".join([text, *(f"    {line}" for line in _part_lines(row)[2:])])


def _row_cells(row: dict) -> list[str]:
    case, best = _case_of(row), ""
    if "rivals" in row:
        name = min(row["rivals"], key=row["rivals"].get)
        best = f"{row['rivals'][name]:.4g} ({name})"
    return [
        MODELS[case.detector].title,
        case.task,
        case.precision,
        _size(case.canvas),
        str(case.batch),
        f"{row['milliseconds']:.4g}",
        f"{row['images_per_second']:.3g}",
        f"{row['lower_seconds']:.2g} + {row['compile_seconds']:.3g}",
        f"{row['memory'] / 1e9:.3g}",
        f"{row['flops'] / 1e12:.3g}",
        f"{row['flops_share']:.0%}",
        f"{row['bytes_share']:.0%}",
        best,
        f"{row['ratio']:.2f}" if best else "",
    ]


def _part_lines(row: dict) -> list[str]:
    """A table of the parts, and of what they leave of the whole."""
    if "parts" not in row:
        return []
    whole, parts = row["milliseconds"], row["parts"]
    rest = whole - sum(part["milliseconds"] for part in parts if not part["within"])
    rows = [*parts, {"name": "all else", "milliseconds": rest, "within": ""}]
    lines = ["| part | ms | share |", "|---|---|---|"]
    for part in rows:
        name = f"of it {part['name']}" if part["within"] else part["name"]
        cells = [f"{part['milliseconds']:.4g}", f"{part['milliseconds'] / whole:.0%}"]
        lines.append(_cells([name, *cells]))
    return lines


def _cells(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _size(canvas: tuple[int, int]) -> str:
    return "x".join(map(str, canvas))


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
