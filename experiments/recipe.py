"""A recipe is data: the numbers and modules of one result, without code.

Recipes lie in `experiments/recipes`, one file a result; each defines `RECIPE`, and its
docstring says how to run it, what is expected and what was measured.
"""

import ast
import dataclasses
import importlib
import pathlib
from typing import Any, TypeVar

import flax.linen as nn
import jax.numpy as jnp

from jaxdet.detectors import (
    fast_rcnn,
    faster_rcnn,
    fcos,
    mask_rcnn,
    rcnn,
    retinanet,
    rpn,
    sppnet,
    ssd,
)
from jaxdet.detectors.detector import Detector
from jaxdet.training.config import TrainingConfig

Module = TypeVar("Module", bound=nn.Module)

FOLDER = pathlib.Path(__file__).with_name("recipes")
BUILDERS = {
    rcnn.RCNNConfig: rcnn.rcnn,
    sppnet.SPPNetConfig: sppnet.sppnet,
    fast_rcnn.FastRCNNConfig: fast_rcnn.fast_rcnn,
    rpn.RPNConfig: rpn.rpn,
    faster_rcnn.FasterRCNNConfig: faster_rcnn.faster_rcnn,
    mask_rcnn.MaskRCNNConfig: mask_rcnn.mask_rcnn,
    fcos.FCOSConfig: fcos.fcos,
    ssd.SSDConfig: ssd.ssd,
    retinanet.RetinaNetConfig: retinanet.retinanet,
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything about a result but the data and the first weights."""

    detector: Any
    """The detector's config; a key of `BUILDERS`."""
    backbone: nn.Module
    """The feature extractor; float32."""
    training: TrainingConfig
    """Numbers of the training and of its input."""
    heads: tuple[nn.Module, ...] = ()
    """What the builder takes after the backbone, such as the layers of a box head."""
    weights: str | None = None
    """What training starts from, as `--weights` takes it; None: random numbers."""
    frozen: tuple[str, ...] = ()
    """Regular expressions; parameters that keep their pretrained weights."""
    data: tuple[str, ...] = ()
    """The data set, as `--data` takes it, where the recipe is made for one."""
    metrics: str | None = None
    """What is measured, as `evaluate --metrics` takes it; None: the detector's own."""


def summaries() -> dict[str, str]:
    """Returns the first line of every recipe's docstring by the recipe's name."""
    texts = {}
    for file in sorted(FOLDER.glob("[!_]*.py")):
        texts[file.stem] = ast.get_docstring(ast.parse(file.read_text())).split("\n")[0]
    return texts


def load(name: str) -> Recipe:
    """Returns the recipe of `experiments/recipes/<name>.py`."""
    return importlib.import_module(f"experiments.recipes.{name}").RECIPE


def build(recipe: Recipe) -> Detector:
    """Returns the recipe's detector."""
    builder = BUILDERS[type(recipe.detector)]
    return builder(recipe.detector, recipe.backbone, *recipe.heads)


def with_options(recipe: Recipe, **options: Any) -> Recipe:
    """Returns the recipe with fields of its modules replaced, such as `dtype`."""
    return dataclasses.replace(
        recipe,
        backbone=_replace(recipe.backbone, options),
        heads=tuple(_replace(head, options) for head in recipe.heads),
    )


def from_scratch(recipe: Recipe) -> Recipe:
    """Returns the recipe without weights: nothing is frozen, group norm everywhere.

    Pretrained networks come with frozen batch norm, or with none at all; neither can be
    trained from random numbers.
    """
    recipe = with_options(recipe, norm="group")
    return dataclasses.replace(recipe, weights=None, frozen=())


def in_precision(recipe: Recipe, precision: str) -> Recipe:
    """Returns the recipe with the arithmetic of its backbone and heads in a dtype."""
    return with_options(recipe, dtype=jnp.dtype(precision).type)


def _replace(module: Module, options: dict[str, Any]) -> Module:
    """Replaces fields of a module and of the modules among its fields."""
    values = {field.name: getattr(module, field.name, None) for field in _own(module)}
    inner = {
        name: _replace(value, options)
        for name, value in values.items()
        if isinstance(value, nn.Module)
    }
    known = {name: options[name] for name in options.keys() & values.keys()}
    return module.clone(**inner | known)


def _own(module: nn.Module) -> list[dataclasses.Field]:
    fields = dataclasses.fields(module)
    return [field for field in fields if field.name not in ("parent", "name")]
