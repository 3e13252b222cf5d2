"""How long the operators take on this machine: python -m experiments.benchmarks.ops

Milliseconds, the median of several calls, of the operators between a detector's layers,
and of a ResNet; "both" is a call with the gradient of the features, or of all of the
ResNet's parameters. With `--compare`, torchvision's on the CPU take turns with ours,
its ResNet at the better of two layouts. `OMP_WAIT_POLICY=passive` must be set then, or
torch's waiting threads keep the cores from ours.
"""

import dataclasses
import functools
import importlib
import pathlib
from collections.abc import Callable
from json import dumps

import jax
import jax.numpy as jnp
import numpy as np

from experiments import command_line
from experiments.benchmarks.timing import medians, random_boxes, with_gradient
from jaxdet.config import ConfigError
from jaxdet.detectors import rpn
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.ops import anchors, matching, nms, roi_align, roi_pool, sampling
from jaxdet.structs import Batch

LEVELS = (2, 3, 4, 5)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much the operators are given."""

    height: int = 800  # of the canvas, pixels
    width: int = 1088  # likewise
    channels: int = 256  # of the features
    boxes: int = 512  # pooled
    candidates: int = 2000  # of non-maximum suppression
    objects: int = 50  # to be matched
    rpn_height: int = 800  # of the canvas that the RPN's levels 2 to 6 cover, pixels
    rpn_width: int = 1344  # likewise
    photo: int = 512  # side of the picture that proposals are made for, at most 512
    depth: int = 50  # of the ResNet, layers
    side: int = 512  # of the pictures it is given, pixels


@dataclasses.dataclass(frozen=True)
class Case:
    """An operator and what it is given.

    Attributes:
      name: the operator's.
      sizes: of what it is given, for the table.
      function: the operator.
      arguments: of it; compiled code must not know their values.
      differentiable: whether it is, in the first argument.
    """

    name: str
    sizes: str
    function: Callable
    arguments: tuple
    differentiable: bool = False


def main(
    *,
    sizes: Sizes = Sizes(),
    repeats: int = 5,
    compare: bool = False,
    json: pathlib.Path | None = None,
):
    """Times the operators, and prints a table.

    Args:
      sizes: of what they are given.
      repeats: calls of each; one more comes first, in which they are compiled.
      compare: also time torchvision's, if torch and torchvision are installed.
      json: file for the figures.

    Raises:
      ConfigError: if `repeats` is below 1, or torchvision is not there to compare.
    """
    if repeats < 1:
        raise ConfigError(f"--repeats is {repeats}; it must be at least 1")
    rivals = _torchvision_operators() if compare else {}
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}")
    print(f"{'ms':<22}{'forward':>9}{'both':>9}  sizes")
    rows = []
    makers = (_array_cases, _rpn_cases, _proposal_cases, _backbone_cases)
    for case in (case for make in makers for case in make(sizes)):
        row = _measured(case, rivals.get(case.name), repeats)
        print(_line(row), flush=True)
        rows.append(row)
    if json is not None:
        report = {"device": device.device_kind, "repeats": repeats, "rows": rows}
        json.write_text(dumps(report, indent=2))


def _array_cases(sizes: Sizes) -> list[Case]:
    rng = np.random.default_rng(0)
    canvas = (sizes.height, sizes.width)
    pyramid = {
        level: jnp.asarray(
            rng.normal(size=(*(-(-x // 2**level) for x in canvas), sizes.channels)),
            jnp.float32,
        )
        for level in LEVELS
    }
    fine, coarse = pyramid[2], jax.nn.relu(pyramid[4])
    boxes, candidates, objects = (
        jnp.asarray(random_boxes(rng, count, canvas))
        for count in (sizes.boxes, sizes.candidates, sizes.objects)
    )
    scores = jnp.asarray(rng.uniform(size=sizes.candidates), jnp.float32)
    grid = anchors.pyramid_anchors(
        canvas,
        sizes=[[8 * 2**level] for level in LEVELS],
        ratios=(0.5, 1.0, 2.0),
        levels=LEVELS,
    )
    align = functools.partial(roi_align.roi_align, stride=4)
    adaptive = functools.partial(roi_align.roi_align, stride=16, sampling_ratio=0)
    pool = functools.partial(roi_pool.roi_max_pool, stride=16)
    pyramid_pool = functools.partial(roi_pool.spatial_pyramid_pool, stride=16)

    def maps(features):
        return f"{len(boxes)} boxes on {'x'.join(map(str, features.shape))}"

    pooling = [
        ("RoI Align", maps(fine), align, fine),
        ("RoI Align, adaptive", maps(coarse), adaptive, coarse),
        (
            "RoI Align, pyramid",
            f"{maps(fine)} and {len(LEVELS) - 1} coarser",
            roi_align.pyramid_roi_align,
            pyramid,
        ),
        ("RoI pooling", maps(coarse), pool, coarse),
        ("spatial pyramid", maps(coarse), pyramid_pool, coarse),
    ]
    return [
        *(
            Case(name, text, function, (features, boxes), differentiable=True)
            for name, text, function, features in pooling
        ),
        Case(
            "NMS",
            f"{sizes.candidates} boxes, threshold 0.7",
            functools.partial(
                nms.nms, iou_threshold=0.7, max_output_size=sizes.candidates
            ),
            (candidates, scores),
        ),
        Case(
            "matching",
            f"{len(grid)} anchors, {sizes.objects} objects",
            functools.partial(
                matching.match_by_iou, negative_iou=0.3, positive_iou=0.7
            ),
            (grid, objects, jnp.ones(sizes.objects, bool)),
        ),
    ]


def _rpn_cases(sizes: Sizes) -> list[Case]:
    """What the RPN of the FPN paper does with its answers on one image."""
    rng = np.random.default_rng(0)
    config = rpn.RPNConfig()
    canvas = (sizes.rpn_height, sizes.rpn_width)
    layout = {"levels": config.levels, **vars(config.anchors)}
    grid = anchors.pyramid_anchors(canvas, **layout)
    logits = jnp.asarray(rng.normal(size=(1, len(grid), 1)), jnp.float32)
    deltas = jnp.asarray(rng.normal(0, 0.3, (1, len(grid), 4)), jnp.float32)
    batch = Batch(
        images=jnp.zeros((1, *canvas, 3), jnp.uint8),
        sizes=jnp.array([canvas]),
        scales=jnp.ones((1, 2)),
        image_ids=jnp.zeros(1, jnp.int32),
    )
    positive = rng.uniform(size=len(grid)) < 0.001
    subset = functools.partial(
        sampling.balanced_subset,
        size=config.batch_size_per_image,
        positive_fraction=config.positive_fraction,
    )
    labelled = (
        sampling.hash_boxes(grid),
        jnp.asarray(positive),
        jnp.asarray(~positive),
    )
    return [
        *(
            Case(
                f"RPN, {count} a level",
                f"{len(grid)} anchors, {config.post_nms_topk} proposals",
                functools.partial(
                    rpn.propose, config=dataclasses.replace(config, pre_nms_topk=count)
                ),
                (logits, deltas, batch),
            )
            for count in (config.pre_nms_topk, config.pre_nms_topk_train)
        ),
        Case(
            "sampling",
            f"{config.batch_size_per_image} of {len(grid)} anchors",
            subset,
            (jax.random.key(0), *labelled),
        ),
    ]


def _proposal_cases(sizes: Sizes) -> list[Case]:
    from skimage import data

    from jaxdet.data.selective_search import selective_search

    photo = data.astronaut()[: sizes.photo, : sizes.photo]
    shape = "x".join(map(str, photo.shape[:2]))
    return [
        Case(
            f"selective search, {mode[:4]}.",
            f"{shape} photograph, {mode}",
            functools.partial(selective_search, mode=mode),
            (photo,),
        )
        for mode in ("fast", "quality")
    ]


def _backbone_cases(sizes: Sizes) -> list[Case]:
    """One picture for the answer, two to learn from."""
    network = ResNet(sizes.depth)
    shape = (2, sizes.side, sizes.side, 3)
    pixels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    variables = jax.jit(network.init)(jax.random.key(0), pixels)

    def stages(parameters, constants, pixels):
        return network.apply({"params": parameters, "constants": constants}, pixels)

    return [
        Case(
            f"ResNet-{sizes.depth}, batch {count}",
            f"{sizes.side}x{sizes.side}, stages 2 to 5, frozen norms",
            stages,
            (variables["params"], variables["constants"], jnp.asarray(pixels[:count])),
            differentiable=count > 1,
        )
        for count in (1, 2)
    ]


def _measured(case: Case, rival: Callable | None, repeats: int) -> dict:
    """Medians in milliseconds, by name; of a rival, that of its best setting."""
    row = {"name": case.name, "sizes": case.sizes}
    on_device = isinstance(jax.tree.leaves(case.arguments)[0], jax.Array)
    forward = jax.jit(case.function) if on_device else case.function
    ours = {"forward": functools.partial(forward, *case.arguments)}
    if case.differentiable:
        both = jax.jit(functools.partial(with_gradient, case.function))
        ours["both"] = functools.partial(both, *case.arguments)
    theirs = {} if rival is None else rival(case)
    for name, call in ours.items():
        row[name], *others = medians([call, *theirs.get(name, [])], repeats)
        if others:
            row[f"torchvision {name}"] = min(others)
    return row


def _line(row: dict) -> str:
    cells = [f"{row[k]:9.1f}" if k in row else " " * 9 for k in ("forward", "both")]
    line = f"{row['name']:<22}{''.join(cells)}  {row['sizes']}"
    theirs = [
        f"{name} {row[f'torchvision {name}']:.1f} ms, "
        f"ours / its {row[name] / row[f'torchvision {name}']:.2f}"
        for name in ("forward", "both")
        if f"torchvision {name}" in row
    ]
    return "\n".join([line, *(f"{'':<4}torchvision {text}" for text in theirs)])


def _torchvision_operators() -> dict[str, Callable]:
    """What makes calls of a case, settings by what is timed; by the cases' names."""
    try:
        ops = importlib.import_module("torchvision").ops
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"--compare needs torch and torchvision with its operators: {error}"
        ) from error

    def roi_align(features, boxes, scale, samples):
        return ops.roi_align(features[None], [boxes], 7, scale, samples, aligned=True)

    operators = {
        "RoI Align": functools.partial(roi_align, scale=1 / 4, samples=2),
        "RoI Align, adaptive": functools.partial(roi_align, scale=1 / 16, samples=-1),
        "RoI pooling": lambda features, boxes: ops.roi_pool(
            features[None], [boxes], 7, 1 / 16
        ),
        "NMS": functools.partial(ops.nms, iou_threshold=0.7),
    }
    return {
        **{name: functools.partial(_calls, rival) for name, rival in operators.items()},
        **dict.fromkeys(("ResNet-50, batch 1", "ResNet-50, batch 2"), _backbone_calls),
    }


def _calls(rival: Callable, case: Case) -> dict[str, list[Callable]]:
    """Of an operator on copies of the arguments, features as it likes: `[C, H, W]`."""
    torch = importlib.import_module("torch")
    first, second = (torch.tensor(np.asarray(x)) for x in case.arguments)
    if not case.differentiable:
        return {"forward": [functools.partial(rival, first, second)]}
    first = first.permute(2, 0, 1).contiguous()
    features = first.clone().requires_grad_()

    def both():
        features.grad = None
        value = rival(features, second)
        value.backward(value.detach())

    return {"forward": [functools.partial(rival, first, second)], "both": [both]}


def _backbone_calls(case: Case) -> dict[str, list[Callable]]:
    """Of a ResNet-50 with weights of its own, its norms frozen; then channels last."""
    torch = importlib.import_module("torch")
    torchvision = importlib.import_module("torchvision")
    extraction = importlib.import_module("torchvision.models.feature_extraction")
    pixels = torch.tensor(np.asarray(case.arguments[-1])).permute(0, 3, 1, 2)
    norm = torchvision.ops.FrozenBatchNorm2d

    def calls(layout):
        whole = torchvision.models.resnet50(norm_layer=norm).to(memory_format=layout)
        names = [f"layer{index}" for index in range(1, 5)]
        network = extraction.create_feature_extractor(whole, names)
        images = pixels.contiguous(memory_format=layout)

        def both():
            network.zero_grad()
            values = [*network(images).values()]
            torch.autograd.backward(values, [value.detach() for value in values])

        return torch.inference_mode()(functools.partial(network, images)), both

    layouts = (torch.contiguous_format, torch.channels_last)
    forward, both = zip(*map(calls, layouts), strict=True)
    return {"forward": [*forward], "both": [*both]}


if __name__ == "__main__":
    command_line.run(main)
