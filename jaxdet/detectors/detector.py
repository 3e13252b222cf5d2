"""A detector is three pure functions, and the recipe that rebuilds them."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.config import Preprocessing
from jaxdet.ops import images
from jaxdet.structs import Batch


class Detector(NamedTuple):
    """All that training, evaluation and inference know of a detector."""

    init: Callable  # (key, batch) -> variables
    loss: Callable  # (variables, batch, key, axis_name=None) -> (scalar, metrics)
    predict: Callable  # (variables, batch) -> Detections, in canvas pixels
    num_classes: int | None = None  # K; None: it does not classify
    recipe: dict | None = None  # JSON; `rebuild(recipe)` makes the same detector again
    # (canvas, boxes [N, 4], true sizes [N, 2] of their images) -> Coverage, in NumPy;
    # None: it has neither anchors nor points
    coverage: Callable | None = None


def from_network(
    network: nn.Module,
    *,
    loss: Callable,
    predict: Callable,
    num_classes: int | None = None,
    made_by: partial | None = None,
    coverage: Callable | None = None,
) -> Detector:
    """A detector of functions of a bound network, lifted to functions of its variables.

    Args:
      network: the module; calling it on `[B, H, W, 3]` float pixels must run every
        learned stage, so that `init` makes every parameter.
      loss: `(network, batch, key, axis_name=None) -> (scalar, metrics)`.
      predict: `(network, batch) -> Detections`.
      num_classes: see `Detector`.
      made_by: the call that makes this detector; its recipe, unless it holds values
        that no recipe can hold.
      coverage: see `Detector`.
    """

    def init(key: jax.Array, batch: Batch) -> dict[str, Any]:
        return network.init(key, jnp.zeros((1, *batch.images.shape[1:]), jnp.float32))

    try:
        recipe = describe(made_by)
    except TypeError:
        recipe = None
    functions = init, nn.apply(loss, network), nn.apply(predict, network)
    return Detector(*functions, num_classes, recipe, coverage)


def require(config: Any, name: str, right: bool, allowed: str) -> None:
    """For a config's checks of itself.

    Args:
      config: the dataclass.
      name: of its field.
      right: whether the field's value is allowed.
      allowed: what would be, to end "it must be ...".

    Raises:
      ValueError: unless `right`, naming the field, its value and what is allowed.
    """
    if not right:
        value = getattr(config, name)
        raise ValueError(f"{name} is {value!r}; it must be {allowed}")


def require_colours(config: Any) -> None:
    """For a config's `mean` and `std` of red, green and blue.

    Raises:
      ValueError: unless they are three numbers each, those of `std` above 0.
    """
    require(config, "mean", len(config.mean) == 3, "three numbers")
    right = len(config.std) == 3 and min(config.std) > 0
    require(config, "std", right, "three numbers above 0")


def preprocess(
    batch: Batch, config: Preprocessing, *, mask_padding: bool = True
) -> tuple[jax.Array, jax.Array | None]:
    """Returns what networks take: normalized pixels, and where the true images end.

    Args:
      batch: `[B, H, W, 3]` images from 0 to 255.
      config: see `Preprocessing`.
      mask_padding: whether networks keep the padding empty.

    Returns:
      `[B, H, W, 3]` float32, 0 outside the images; `[B, 2]` (height, width), or None
      without `mask_padding`: all of the canvas is image.
    """
    pixels = images.normalise(
        batch.images, batch.sizes, mean=config.mean, std=config.std
    )
    return pixels, batch.sizes if mask_padding else None


def of_level(stages: dict[int, jax.Array], level: int) -> jax.Array:
    """The backbone's features of one level, `{level: [B, H, W, C]}` -> `[B, H, W, C]`.

    Raises:
      ValueError: if it has none of that level.
    """
    if level not in stages:
        raise ValueError(f"level {level}; the backbone has {[*stages]}")
    return stages[level]


def describe(value: Any) -> Any:
    """A builder's call as JSON: `describe(partial(retinanet, config, backbone))`.

    Dataclasses and Flax modules become the import path of their type and all their
    fields, so that a later change of a default changes no recipe; dtypes become names.

    Raises:
      TypeError: for a value that JSON and this rule cannot hold, naming it.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [describe(item) for item in value]
    if isinstance(value, Mapping):
        return {"mapping": [[describe(k), describe(v)] for k, v in value.items()]}
    if isinstance(value, partial):
        arguments = [describe(argument) for argument in value.args]
        return {"call": _path(value.func), "arguments": arguments} | (
            {"keywords": {k: describe(v) for k, v in value.keywords.items()}}
            if value.keywords
            else {}
        )
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {}
        for field in dataclasses.fields(value):
            if field.name in ("parent", "name") and isinstance(value, nn.Module):
                continue
            fields[field.name] = describe(getattr(value, field.name))
        return {"call": _path(type(value)), "keywords": fields}
    try:
        return {"dtype": jnp.dtype(value).name}
    except TypeError:
        raise TypeError(f"a recipe cannot hold {value!r}") from None


def rebuild(recipe: Any, *, packages: tuple[str, ...] = ("jaxdet",)) -> Any:
    """The inverse of `describe`; imports only from `packages`.

    Raises:
      ValueError: if the recipe names something outside `packages` or that is not there.
    """
    again = partial(rebuild, packages=packages)
    if isinstance(recipe, list):
        return tuple(again(item) for item in recipe)
    if not isinstance(recipe, dict):
        return recipe
    if "dtype" in recipe:
        return jnp.dtype(recipe["dtype"]).type
    if "mapping" in recipe:
        return {again(key): again(value) for key, value in recipe["mapping"]}
    module, _, name = recipe["call"].partition(":")
    if module.partition(".")[0] not in packages:
        allowed = ", ".join(packages)
        raise ValueError(
            f"recipe calls {recipe['call']!r}; allowed packages: {allowed}"
        )
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"recipe calls {recipe['call']!r}: {error}") from error
    keywords = {key: again(value) for key, value in recipe.get("keywords", {}).items()}
    return function(*(again(item) for item in recipe.get("arguments", [])), **keywords)


def _path(value: Any) -> str:
    return f"{value.__module__}:{value.__qualname__}"
