"""Maps tensors of other libraries to variables of ours, and back.

A `NetworkMap` lists each tensor of a network once: its name in the other library, its
path here, and the `Layout` that reorders its numbers. `to_variables` and
`to_state_dict` read the same list in either direction:

norm = mapping.torch_batch_norm("bn1", "stem_norm")
network = NetworkMap("a stem", (*mapping.torch_layer("conv1", "stem_conv"), *norm))
variables = mapping.to_variables(state, network)
state = mapping.to_state_dict(variables, network)
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdet.weights.state_dict import WeightsError


class Layout(NamedTuple):
    """Reorders the numbers of a tensor."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]

    def then(self, following: "Layout") -> "Layout":
        """Applies another layout after this one, and before it on the way back."""
        return Layout(
            lambda tensor: following.to_ours(self.to_ours(tensor)),
            lambda tensor: self.to_theirs(following.to_theirs(tensor)),
        )


class TensorMap(NamedTuple):
    """Relates one tensor of the other library to one of ours.

    Where several of ours are parts of one of theirs, each has a map with its name, and
    layouts that leave zeros for the other parts, as `select_outputs` does.
    """

    theirs: str
    ours: str  # "collection/module/.../name"
    layout: Layout
    former: str | None = None  # its name in other files of the other library


class NetworkMap(NamedTuple):
    """Lists all tensors that a network of another library and ours share."""

    name: str  # for messages
    tensors: tuple[TensorMap, ...]
    unused: str = r".*\.num_batches_tracked"  # pattern of whole names that are ignored


SAME = Layout(lambda tensor: tensor, lambda tensor: tensor)
TORCH_KERNEL = Layout(
    lambda kernel: np.moveaxis(kernel, (1, 0), (-2, -1)),
    lambda kernel: np.moveaxis(kernel, (-2, -1), (1, 0)),
)
"""OIHW to HWIO, or OI to IO."""
TORCH_TRANSPOSED_KERNEL = Layout(
    lambda kernel: kernel.transpose(2, 3, 0, 1),
    lambda kernel: kernel.transpose(2, 3, 0, 1),
)
"""IOHW of a transposed convolution to HWIO."""


def flattened_inputs(channels: int, size: int) -> Layout:
    """Reorders the inputs of a layer on a flattened map from CHW to HWC.

    Args:
      channels: of the map.
      size: rows of the map, and columns.

    Returns:
      For kernels `[channels * size * size, outputs]`.
    """

    def reorder(kernel, shape, axes):
        grouped = kernel.reshape(*shape, kernel.shape[-1])
        return grouped.transpose(*axes, 3).reshape(-1, kernel.shape[-1])

    return Layout(
        lambda kernel: reorder(kernel, (channels, size, size), (1, 2, 0)),
        lambda kernel: reorder(kernel, (size, size, channels), (2, 0, 1)),
    )


def select_outputs(indices: Sequence[int], group: int) -> Layout:
    """Keeps some outputs of each group of outputs, in a new order.

    Args:
      indices: which of the other library's outputs ours are.
      group: outputs of a group, such as the classes of one default box.

    Returns:
      For kernels and biases, on their last axis. Outputs that are not kept become zeros
      on the way back.
    """
    indices = list(indices)

    def to_ours(tensor):
        grouped = tensor.reshape(*tensor.shape[:-1], -1, group)
        return grouped[..., indices].reshape(*tensor.shape[:-1], -1)

    def to_theirs(tensor):
        grouped = tensor.reshape(*tensor.shape[:-1], -1, len(indices))
        whole = np.zeros((*grouped.shape[:-1], group), tensor.dtype)
        whole[..., indices] = grouped
        return whole.reshape(*tensor.shape[:-1], -1)

    return Layout(to_ours, to_theirs)


def torch_layer(
    theirs: str,
    ours: str,
    kernel: Layout = TORCH_KERNEL,
    bias: Layout | None = SAME,
    *,
    former: str | None = None,
) -> Iterator[TensorMap]:
    """Yields the maps of a convolution or a fully connected layer of torch.

    Args:
      theirs: the layer's name in the state dict, such as "features.0".
      ours: its path below "params".
      kernel: the layout of the kernel.
      bias: the layout of the bias; None: the layer has none.
      former: the layer's name in older state dicts; None: the same.
    """
    parts = {"weight": ("kernel", kernel)}
    if bias is not None:
        parts["bias"] = ("bias", bias)
    for part, (our_part, layout) in parts.items():
        old_name = f"{former}.{part}" if former else None
        our_name = f"params/{ours}/{our_part}"
        yield TensorMap(f"{theirs}.{part}", our_name, layout, old_name)


def torch_batch_norm(theirs: str, ours: str) -> Iterator[TensorMap]:
    """Yields the maps of a batch norm of torch, which is frozen here.

    Args:
      theirs: the norm's name in the state dict.
      ours: its path below "constants".
    """
    parts = {"weight": "scale", "bias": "bias"}
    parts |= {"running_mean": "mean", "running_var": "var"}
    for part, our_part in parts.items():
        yield TensorMap(f"{theirs}.{part}", f"constants/{ours}/frozen/{our_part}", SAME)


def torch_conv_norm(conv: str, norm: str, ours: str) -> Iterator[TensorMap]:
    """Yields the maps of a convolution without bias and of its batch norm.

    Args:
      conv: its name in the state dict.
      norm: its name in the state dict.
      ours: the start of both paths; they end with "_conv" and "_norm".
    """
    yield from torch_layer(conv, f"{ours}_conv", bias=None)
    yield from torch_batch_norm(norm, f"{ours}_norm")


def to_variables(
    state: Mapping[str, np.ndarray],
    network: NetworkMap,
    *,
    template: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Converts tensors of another library to our variables.

    Args:
      state: tensors by the other library's names.
      network: lists them.
      template: variables of the shapes that are needed; None: any that fit the layouts.

    Returns:
      float32 variables by collection.

    Raises:
      WeightsError: if tensors are missing, left over, or of other shapes; it names the
        first of them.
    """
    state = _current_names(state, network)
    missing, surplus = _differences(state, network)
    problems = [f"{name} is missing" for name in missing[:3]]
    problems += [f"{name} is left over" for name in surplus[:3]]
    _raise_if_any(problems, len(missing) + len(surplus), network)
    needed = None if template is None else flatten_dict(template, sep="/")
    variables = {}
    for theirs, ours, layout, _ in network.tensors:
        tensor = np.asarray(state[theirs], np.float32)
        if needed is not None:
            blank = np.broadcast_to(np.float32(0), needed[ours].shape)
            shape = layout.to_theirs(blank).shape
            if tensor.shape != shape:
                problems.append(f"{theirs} has shape {tensor.shape}, {shape} is needed")
                continue
        try:
            variables[ours] = layout.to_ours(tensor)
        except ValueError:  # of NumPy: so many numbers, or axes, have no such layout
            problems.append(f"{theirs} has shape {tensor.shape}")
    _raise_if_any(problems[:5], len(problems), network)
    return unflatten_dict(variables, sep="/")


def to_state_dict(
    variables: Mapping[str, Any], network: NetworkMap
) -> dict[str, np.ndarray]:
    """Converts our variables to tensors of the other library.

    Args:
      variables: by collection, or gradients: dtypes stay.
      network: lists them.

    Returns:
      Contiguous arrays by the other library's names.

    Raises:
      WeightsError: if the variables are others than those listed, naming the first.
    """
    ours = flatten_dict(variables, sep="/")
    different = {tensor.ours for tensor in network.tensors} ^ ours.keys()
    if different:
        raise WeightsError(
            f"{len(different)} variables do not fit {network.name}: "
            f"{sorted(different)[:5]}"
        )
    state: dict[str, np.ndarray] = {}
    for theirs, path, layout, _ in network.tensors:
        tensor = np.ascontiguousarray(layout.to_theirs(np.asarray(ours[path])))
        state[theirs] = state[theirs] + tensor if theirs in state else tensor
    return state


def recognize(
    state: Mapping[str, np.ndarray], networks: Iterable[NetworkMap]
) -> NetworkMap:
    """Returns the network whose tensors have the same names.

    Args:
      state: tensors by their names.
      networks: those that it may be.

    Raises:
      WeightsError: if it is none of them; it names the nearest, and what differs.
    """
    different = {
        network: _differences(_current_names(state, network), network)
        for network in networks
    }
    count = {network: sum(map(len, names)) for network, names in different.items()}
    nearest = min(count, key=count.get)
    if count[nearest]:
        missing, surplus = different[nearest]
        raise WeightsError(
            f"no checkpoint of {', '.join(network.name for network in count)}; the "
            f"nearest is {nearest.name}, but {count[nearest]} tensors are in one and "
            f"not in the other: {[*missing, *surplus][:5]}"
        )
    return nearest


def select_submodules(variables: Mapping[str, Any], pattern: str) -> dict[str, Any]:
    """Returns the submodules whose whole name matches a regular expression.

    `r"stage5_.*"` of a ResNet is a `ResNetHead`, and `r"stem_.*|stage[2-4]_.*"` a
    `ResNet(coarsest=4)`.

    Args:
      variables: by collection.
      pattern: of the names right below the collections.
    """
    return {
        collection: {n: tree for n, tree in trees.items() if re.fullmatch(pattern, n)}
        for collection, trees in variables.items()
    }


def _current_names(
    state: Mapping[str, np.ndarray], network: NetworkMap
) -> dict[str, np.ndarray]:
    current = {t.former: t.theirs for t in network.tensors if t.former}
    return {current.get(name, name): tensor for name, tensor in state.items()}


def _differences(
    state: Mapping[str, np.ndarray], network: NetworkMap
) -> tuple[list[str], list[str]]:
    """Returns the names that a state dict lacks, and those that it has too many."""
    names = dict.fromkeys(tensor.theirs for tensor in network.tensors)
    surplus = sorted(state.keys() - names)
    return (
        [name for name in names if name not in state],
        [name for name in surplus if not re.fullmatch(network.unused, name)],
    )


def _raise_if_any(problems: list[str], count: int, network: NetworkMap) -> None:
    if problems:
        raise WeightsError(
            f"{count} tensors do not fit {network.name}:\n  " + "\n  ".join(problems)
        )
