"""Starts a detector from other weights: keeps what fits, and classes by their names.

weights = transfer.Weights(variables, "runs/quickstart", sha256, class_names)
transferred = transfer.compare(weights, fresh, data_set.class_names)
variables = transfer.apply(weights, fresh, data_set.class_names)

A tensor is kept if it has the same path and shape in both. Layers of which some outputs
belong to each class stand in `CLASS_LAYERS`; of these the outputs of the classes that
have the same name in both are kept, and the others stay as they were drawn.
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdet.config import Preprocessing, Size, checked_dataclass
from jaxdet.weights.state_dict import WeightsError


class Weights(NamedTuple):
    """Variables to start from, and where they come from."""

    variables: Mapping[str, Any]  # by collection
    source: str  # as `--weights` names it
    sha256: str  # of the file, or of the variables of a run
    class_names: tuple[str | None, ...] = ()  # of the outputs; None: never used
    options: Mapping[str, Any] = MappingProxyType({})  # fields of modules they need
    preprocessing: Preprocessing | None = None  # of their pixels; None: not known
    hint: str = ""  # ends the error of a network that they do not fit


@checked_dataclass
class Transfer:
    """What a run has kept of the weights that it started from."""

    source: str
    """The weights, as `--weights` names them."""
    sha256: str
    """Of their file, or of the variables of a run."""
    kept: Size
    """Tensors that are theirs."""
    new: tuple[str, ...]
    """Paths of the tensors that were drawn at random, at least in part."""
    class_names: tuple[str, ...] = ()
    """Classes of the data whose outputs are theirs."""
    options: dict = dataclasses.field(default_factory=dict)
    """Fields of the network's modules that the weights need, such as `epsilon`."""

    def __str__(self) -> str:
        """Returns one line for the log."""
        paths = [path.split("/", 1)[1].rpartition("/")[0] for path in self.new]
        layers = list(dict.fromkeys(paths))
        listed = ", ".join(layers[:6]) + (", ..." if len(layers) > 6 else "")
        classes = f"; kept classes: {', '.join(self.class_names)}"
        return (
            f"started from {self.source} (SHA-256 {self.sha256[:16]}): "
            f"kept {self.kept} tensors, {len(self.new)} new"
            + (f": {listed}" if layers else "")
            + (classes if self.class_names else "")
        )


class ClassLayer(NamedTuple):
    """A layer whose outputs are `[boxes, classes (and background), numbers]`."""

    numbers: int = 1  # for each class
    box_layer: str | None = None  # has four outputs for each box; None: there is one


CLASS_LAYERS = {
    r"class_head/output": ClassLayer(box_layer="box_head/output"),  # RetinaNet
    r"head/classes": ClassLayer(),  # FCOS
    r"classes(\d+)": ClassLayer(box_layer=r"deltas\1"),  # SSD
    r"box_predictor/classes": ClassLayer(),  # R-CNNs
    r"box_predictor/deltas": ClassLayer(numbers=4),
    r"mask_head/output": ClassLayer(),
    r"class_heads_\d+": ClassLayer(),  # Deformable DETR
    r"class_head": ClassLayer(),  # DETR
}
"""Patterns of the paths below "params" of all layers that depend on the classes."""


class _Outputs(NamedTuple):
    """The last axis of a tensor, as `ClassLayer` tells."""

    boxes: int
    classes: int
    background: int  # 1, as the last class, or 0
    numbers: int

    def split(self, tensor: np.ndarray) -> np.ndarray:
        shape = self.boxes, self.classes + self.background, self.numbers
        return tensor.reshape(*tensor.shape[:-1], *shape)


def compare(
    weights: Weights, variables: Mapping[str, Any], class_names: Sequence[str]
) -> Transfer:
    """Returns what `apply` will keep.

    Args:
      weights: to start from.
      variables: of the detector, or their shapes.
      class_names: of its labels; those of the weights are compared without case.

    Raises:
      WeightsError: if less than half of the backbone's tensors fit.
    """
    needed, given = (flatten_dict(x, sep="/") for x in (variables, weights.variables))
    by_class = _class_tensors(needed, given, class_names, weights.class_names)
    fits = {path for path in needed if _shape(needed, path) == _shape(given, path)}
    kept = fits - by_class.keys()
    _require_backbone(weights, needed, given, kept)
    indices = _same_names(class_names, weights.class_names) if by_class else {}
    if len(indices) == len(class_names):
        kept |= by_class.keys()
    return Transfer(
        source=weights.source,
        sha256=weights.sha256,
        kept=len(kept),
        new=tuple(sorted(needed.keys() - kept)),
        class_names=tuple(class_names[index] for index in indices),
        options=dict(weights.options),
    )


def apply(
    weights: Weights, variables: Mapping[str, Any], class_names: Sequence[str]
) -> dict[str, Any]:
    """Returns fresh variables with all that fits of the weights.

    Args:
      weights: to start from.
      variables: fresh ones of the detector.
      class_names: of its labels.

    Raises:
      WeightsError: as `compare`.
    """
    new = set(compare(weights, variables, class_names).new)
    needed, given = (flatten_dict(x, sep="/") for x in (variables, weights.variables))
    by_class = _class_tensors(needed, given, class_names, weights.class_names)
    started = {
        path: fresh if path in new else np.asarray(given[path])
        for path, fresh in needed.items()
    }
    indices = _same_names(class_names, weights.class_names)
    for path, (ours, theirs) in by_class.items():
        if not indices:
            continue
        tensor = np.array(needed[path])
        rows, their_rows = list(indices), list(indices.values())
        if ours.background:
            rows, their_rows = [*rows, ours.classes], [*their_rows, theirs.classes]
        source = theirs.split(np.asarray(given[path]))
        ours.split(tensor)[..., rows, :] = source[..., their_rows, :]
        started[path] = tensor
    return unflatten_dict(started, sep="/")


def hash_variables(variables: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of all names, shapes and numbers, in hexadecimal."""
    digest = hashlib.sha256()
    for path, tensor in sorted(flatten_dict(variables, sep="/").items()):
        array = np.ascontiguousarray(tensor)
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _class_tensors(
    needed: Mapping[str, Any],
    given: Mapping[str, Any],
    class_names: Sequence[str],
    their_class_names: Sequence[str | None],
) -> dict[str, tuple[_Outputs, _Outputs]]:
    """Returns the outputs, ours and theirs, of all tensors that depend on classes."""
    tensors = {}
    for path in needed.keys() & given.keys() if their_class_names else ():
        ours = _outputs_of(needed, path, len(class_names))
        theirs = _outputs_of(given, path, len(their_class_names))
        inputs = _shape(needed, path)[:-1] == _shape(given, path)[:-1]
        if ours and theirs and inputs and ours == theirs._replace(classes=ours.classes):
            tensors[path] = ours, theirs
    return tensors


def _outputs_of(
    flat: Mapping[str, Any], path: str, num_classes: int
) -> _Outputs | None:
    """Returns the outputs of a tensor; None if it does not depend on the classes."""
    place, _, part = path.removeprefix("params/").rpartition("/")
    for pattern, layer in CLASS_LAYERS.items():
        match = re.fullmatch(pattern, place)
        if match is None:
            continue
        boxes = 1
        if layer.box_layer:
            box_path = f"params/{match.expand(layer.box_layer)}/{part}"
            boxes = flat[box_path].shape[-1] // 4
        classes, rest = divmod(flat[path].shape[-1], boxes * layer.numbers)
        background = classes - num_classes
        if not rest and background in (0, 1):  # else one box serves all classes
            return _Outputs(boxes, num_classes, background, layer.numbers)
    return None


def _same_names(
    class_names: Sequence[str], their_class_names: Sequence[str | None]
) -> dict[int, int]:
    """Returns the index of each class that both know: ours -> theirs."""
    theirs = {}
    for index, name in enumerate(their_class_names):
        if name is not None:
            theirs.setdefault(name.casefold(), index)
    names = [name.casefold() for name in class_names]
    return {i: theirs[name] for i, name in enumerate(names) if name in theirs}


def _require_backbone(
    weights: Weights,
    needed: Mapping[str, Any],
    given: Mapping[str, Any],
    kept: set[str],
) -> None:
    """Refuses weights of another network."""
    backbone = [path for path in needed if path.split("/")[1] == "backbone"] or [
        *needed
    ]
    misfits = sorted(path for path in backbone if path not in kept)
    if 2 * len(misfits) <= len(backbone):
        return
    lines = [
        f"{path}: {_shape(given, path) or 'absent'} given, "
        f"{_shape(needed, path)} needed"
        for path in misfits[:5]
    ]
    raise WeightsError(
        f"{weights.source} is of another network: {len(misfits)} of the "
        f"{len(backbone)} tensors of the backbone do not fit:\n  "
        + "\n  ".join(lines)
        + (f"\n{weights.hint}" if weights.hint else "")
    )


def _shape(flat: Mapping[str, Any], path: str) -> tuple[int, ...] | None:
    return tuple(flat[path].shape) if path in flat else None
