"""Weights of other libraries as variables of ours."""

import os
import pathlib
import re
from collections.abc import Callable, Mapping
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
    params, constants, strange = {}, {}, []
    for name, tensor in state.items():
        if re.fullmatch(_RESNET_UNUSED, name):
            continue
        ours = name
        for pattern, replacement in _RESNET_NAMES:
            ours = re.sub(pattern, replacement, ours)
        tensor = np.asarray(tensor, np.float32)
        if ours.endswith(".kernel") and tensor.ndim == 4:
            params[ours] = tensor.transpose(2, 3, 1, 0)  # OIHW to HWIO
        elif ".frozen." in ours and tensor.ndim == 1:
            constants[ours] = tensor
        else:
            strange.append(name)
    if strange:
        raise WeightsError(f"no tensors of a torchvision ResNet: {strange[:5]}")
    return {
        "params": unflatten_dict(params, sep="."),
        "constants": unflatten_dict(constants, sep="."),
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
