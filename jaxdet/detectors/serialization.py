"""Turns the call that builds a detector into JSON, its recipe, and builds it again.

Run folders are shared as weights are, so what a recipe may call stands in `ALLOWED`,
and all of a recipe is checked before anything is called.
"""

import dataclasses
import importlib
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

ALLOWED = frozenset(
    f"jaxdet.{module}:{name}"
    for module, names in {
        "config": "Anchors Postprocessing Preprocessing",
        "detectors.deformable_detr": "DeformableDETRConfig deformable_detr",
        "detectors.detr": "DETRConfig detr",
        "detectors.fast_rcnn": "FastRCNNConfig fast_rcnn",
        "detectors.faster_rcnn": "FasterRCNNConfig faster_rcnn",
        "detectors.fcos": "FCOSConfig fcos",
        "detectors.image_pyramid": "AllScalesConfig ImagePyramidConfig "
        "at_all_scales image_pyramid",
        "detectors.mask_rcnn": "MaskRCNNConfig mask_rcnn",
        "detectors.rcnn": "RCNNConfig rcnn",
        "detectors.roi_heads": "RoIHeadsConfig RoIPoolerConfig",
        "detectors.retinanet": "RetinaNetConfig retinanet",
        "detectors.rpn": "RPNConfig rpn",
        "detectors.set_prediction": "SetLossConfig SetPostprocessing",
        "detectors.sppnet": "SPPNetConfig sppnet",
        "detectors.ssd": "SSDConfig ssd",
        "nn.backbones.alexnet": "AlexNet",
        "nn.backbones.efficientnet": "EfficientNetLite0",
        "nn.backbones.mobilenet": "MobileNetV2",
        "nn.backbones.resnet": "ResNet ResNetHead",
        "nn.backbones.vgg": "VGG16 VGG16SSD",
        "nn.extra_stages": "ExtraStages",
        "nn.heads": "ConvFCHead FCHead",
        "weights.detectors": "with_coco_labels",
    }.items()
    for name in names.split()
)
"""All that a recipe may call: detectors' builders, their configs and network parts."""
DTYPES = ("bfloat16", "float16", "float32", "float64")
MAX_DEPTH = 64  # of nesting; today's deepest recipe has 13
MAX_VALUES = 10_000  # of a recipe; today's longest has some 300
MAX_LAYERS = 1000  # one after the other, in fields named `depth`
MAX_NUMBER = 2**31
MAX_NAME = 1000  # characters


def serialize(value: Any) -> Any:
    """Returns a builder's call as JSON: `serialize(partial(retinanet, config, net))`.

    Dataclasses and Flax modules become the import path of their type and all their
    fields, so that a later change of a default changes no recipe; dtypes become names.

    Raises:
      TypeError: for a value that JSON and this rule cannot hold, naming it.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [serialize(item) for item in value]
    if isinstance(value, Mapping):
        return {"mapping": [[serialize(k), serialize(v)] for k, v in value.items()]}
    if isinstance(value, partial):
        arguments = [serialize(argument) for argument in value.args]
        keywords = {name: serialize(item) for name, item in value.keywords.items()}
        call = {"call": _path(value.func), "arguments": arguments}
        return call | ({"keywords": keywords} if keywords else {})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hidden = ("parent", "name") if isinstance(value, nn.Module) else ()
        names = [field.name for field in dataclasses.fields(value)]
        fields = {n: serialize(getattr(value, n)) for n in names if n not in hidden}
        return {"call": _path(type(value)), "keywords": fields}
    try:
        return {"dtype": jnp.dtype(value).name}
    except TypeError:
        raise TypeError(f"a recipe cannot hold {value!r}") from None


def deserialize(recipe: Any, *, allowed: Collection[str] = ALLOWED) -> Any:
    """Returns what a recipe describes, the inverse of `serialize`.

    Args:
      recipe: JSON from a file that anybody may have written.
      allowed: what it may call, as "module:name".

    Raises:
      ValueError: if any part of the recipe is not what `serialize` writes or calls what
        is not allowed, before anything is called; and if a call refuses its arguments.
    """
    for number, (value, depth) in enumerate(_walk(recipe)):
        if number >= MAX_VALUES:
            raise ValueError(f"a recipe of more than {MAX_VALUES:,} values")
        if depth > MAX_DEPTH:
            raise ValueError(f"a recipe nested more than {MAX_DEPTH} deep")
        _check(value, allowed)
    return _build(recipe)


def _walk(recipe: Any) -> Iterator[tuple[Any, int]]:
    """Yields every value of a recipe and how deep it lies; without recursion."""
    rest = [(recipe, 0)]
    while rest:
        value, depth = rest.pop()
        yield value, depth
        inner = value if isinstance(value, list) else ()
        if isinstance(value, dict):
            inner = [*value.get("mapping", ()), *value.get("arguments", ())]
            inner += value.get("keywords", {}).values()
        rest += [(item, depth + 1) for item in inner]


def _check(value: Any, allowed: Collection[str]) -> None:
    """Refuses one value, whose parts are checked by themselves."""
    if isinstance(value, dict):
        _check_object(value, allowed)
    elif isinstance(value, str):
        if len(value) > MAX_NAME:
            raise ValueError(f"a recipe with a text of {len(value):,} characters")
    elif isinstance(value, int | float):
        if not abs(value) <= MAX_NUMBER:  # NaN neither
            raise ValueError(f"a recipe with the number {_short(value)}")
    elif value is not None and not isinstance(value, list):
        raise ValueError(f"a recipe with {_short(value)}, which is no JSON")


def _check_object(value: dict, allowed: Collection[str]) -> None:
    if value.keys() == {"dtype"}:
        if value["dtype"] not in DTYPES:
            raise ValueError(f"dtype {_short(value['dtype'])}; allowed: {DTYPES}")
    elif value.keys() == {"mapping"}:
        pairs = value["mapping"]
        fits = isinstance(pairs, list) and all(
            isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str | int)
            for pair in pairs
        )
        if not fits:
            raise ValueError(
                f"mapping {_short(pairs)}; it must be [[name, value], ...]"
            )
    else:
        _check_call(value, allowed)


def _check_call(value: dict, allowed: Collection[str]) -> None:
    unknown = [_short(key) for key in value if key not in _CALL]
    if unknown or "call" not in value:
        raise ValueError(
            f"a recipe with {', '.join(unknown) or 'an object without call'}; allowed "
            f"are {', '.join(_CALL)}, or mapping, or dtype"
        )
    name = value["call"]
    if not isinstance(name, str) or name not in allowed:
        raise ValueError(
            f"a recipe that calls {_short(name)}, which is no detector, config or "
            "network of this jaxdet"
        )
    for part, kind in (("arguments", list), ("keywords", dict)):
        if not isinstance(value.get(part, kind()), kind):
            raise ValueError(f"{name} with {part} {_short(value[part])}")
    for key, number in value.get("keywords", {}).items():
        deep = key.endswith("depth") and isinstance(number, int | float)
        if deep and number > MAX_LAYERS:
            raise ValueError(f"{name} with {key} {number}; at most {MAX_LAYERS}")


def _build(recipe: Any) -> Any:
    """Returns what a recipe that has been checked describes."""
    if isinstance(recipe, list):
        return tuple(_build(item) for item in recipe)
    if not isinstance(recipe, dict):
        return recipe
    if "dtype" in recipe:
        return jnp.dtype(recipe["dtype"]).type
    if "mapping" in recipe:
        return {key: _build(value) for key, value in recipe["mapping"]}
    arguments = [_build(item) for item in recipe.get("arguments", [])]
    keywords = {key: _build(item) for key, item in recipe.get("keywords", {}).items()}
    module, _, name = recipe["call"].partition(":")
    function = getattr(importlib.import_module(module), name)
    try:
        return function(*arguments, **keywords)
    except Exception as error:  # whatever a value of the wrong kind leads to
        raise ValueError(
            f"{recipe['call']}: {error or type(error).__name__}"
        ) from error


def _path(value: Any) -> str:
    return f"{value.__module__}:{value.__qualname__}"


def _short(value: Any) -> str:
    if isinstance(value, list | dict):  # its text may be nested too deep
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_CALL = ("call", "arguments", "keywords")
