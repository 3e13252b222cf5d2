"""Weights of other libraries as variables of ours."""

import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
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
_VGG16_CONVS = {0: "1_1", 2: "1_2", 5: "2_1", 7: "2_2", 10: "3_1", 12: "3_2"}
_VGG16_CONVS |= {14: "3_3", 17: "4_1", 19: "4_2", 21: "4_3"}
_VGG16_CONVS |= {24: "5_1", 26: "5_2", 28: "5_3"}
_VGG16_NAMES = _layers("features", {i: f"conv{n}" for i, n in _VGG16_CONVS.items()})
# The fully connected layers that a region head takes over.
_ALEXNET_HEAD_NAMES = _layers("classifier", {1: "fc0", 4: "fc1"})
_VGG16_HEAD_NAMES = _layers("classifier", {0: "fc0", 3: "fc1"})
_CLASSIFIER, _ALL_BUT_HEAD = r"classifier\..*", r"features\..*|classifier\.6\..*"


class WeightsError(ValueError):
    """A file of weights does not fit; the message names it and the first tensors."""


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Tensors by name from a `.npz` file, or from a `.pth` file (which needs torch).

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
    except ImportError:
        raise WeightsError(
            f"{path}: reading it needs torch (pip install torch), once: "
            "np.savez keeps the tensors as .npz"
        ) from None
    except Exception as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from error
    raise WeightsError(f"{path}: allowed are .npz, .pth and .pt")


def resnet_from_torchvision(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """torchvision's classification ResNet as variables of `ResNet(norm="frozen")`.

    Args:
      state: its state dict; the classifier is left out.

    Raises:
      WeightsError: for tensors that are no ResNet's, naming the first.
    """
    return _renamed(state, _RESNET_NAMES, _RESNET_UNUSED, "ResNet")


def alexnet_from_torchvision(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """torchvision's AlexNet as variables of `AlexNet()`.

    Args:
      state: its state dict; the classifier is left out.

    Raises:
      WeightsError: for tensors that are no AlexNet's, naming the first.
    """
    return _renamed(state, _ALEXNET_NAMES, _CLASSIFIER, "AlexNet")


def vgg16_from_torchvision(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """torchvision's VGG-16 (without batch norm) as variables of `VGG16()`.

    Args:
      state: its state dict; the classifier is left out.

    Raises:
      WeightsError: for tensors that are no VGG-16's, naming the first.
    """
    return _renamed(state, _VGG16_NAMES, _CLASSIFIER, "VGG-16")


def alexnet_head_from_torchvision(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """fc6 and fc7 of torchvision's AlexNet as variables of `FCHead(4096)`.

    Args:
      state: its state dict; of the classifier, the last layer is left out.

    Raises:
      WeightsError: for tensors that are no AlexNet's, naming the first; if fc6 is
        missing.
    """
    return _head(state, _ALEXNET_HEAD_NAMES, 256, "AlexNet")


def vgg16_head_from_torchvision(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """fc6 and fc7 of torchvision's VGG-16 as variables of `FCHead(4096)`.

    Args:
      state: its state dict; of the classifier, the last layer is left out.

    Raises:
      WeightsError: for tensors that are no VGG-16's, naming the first; if fc6 is
        missing.
    """
    return _head(state, _VGG16_HEAD_NAMES, 512, "VGG-16")


def _head(
    state: Mapping[str, np.ndarray],
    names: Iterable[tuple[str, str]],
    channels: int,
    network: str,
) -> dict[str, Any]:
    weights = _renamed(state, names, _ALL_BUT_HEAD, network)
    fc6 = weights.get("params", {}).get("fc0", {})
    if "kernel" not in fc6:
        raise WeightsError(f"no fc6 of a torchvision {network}: {sorted(state)[:5]}")
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
) -> dict[str, Any]:
    """Variables by collection, from tensors in torch's names and layout."""
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
            # OIHW to HWIO, or OI to IO.
            tensor = np.moveaxis(tensor, (1, 0), (-2, -1))
        collection = "constants" if ".frozen." in ours else "params"
        collections.setdefault(collection, {})[ours] = tensor
    if strange:
        raise WeightsError(f"no tensors of a torchvision {network}: {strange[:5]}")
    return {
        collection: unflatten_dict(tensors, sep=".")
        for collection, tensors in collections.items()
    }


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
