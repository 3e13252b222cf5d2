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

from jaxdet.config import ConfigError
from jaxdet.data.dataset import DataSet
from jaxdet.detectors import (
    deformable_detr,
    detr,
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

Config = TypeVar("Config")
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
    deformable_detr.DeformableDETRConfig: deformable_detr.deformable_detr,
    detr.DETRConfig: detr.detr,
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

    Raises:
      ConfigError: for an SPP-net, which never trains its convolutions.
    """
    if isinstance(recipe.detector, sppnet.SPPNetConfig):
        raise ConfigError(
            "SPP-net never trains its convolutions; give --weights, a file of VGG-16's "
            "or the run folder of a Fast R-CNN"
        )
    recipe = with_options(recipe, norm="group")
    detector = _with_group_norm(recipe.detector)
    return dataclasses.replace(recipe, detector=detector, weights=None, frozen=())


def with_classes_of(
    data_set: DataSet, detector: Config, recipe: Config, *, option: str = "--detector"
) -> Config:
    """Returns the detector's config with as many classes as the data.

    Args:
      data_set: what it is trained on.
      detector: a config with `num_classes`, in itself or in its Faster R-CNN; that of
        an RPN has none and stays as it is.
      recipe: the recipe's, whose number of classes nobody has asked for.
      option: under which the detector's numbers are given.

    Raises:
      ConfigError: if it has neither the recipe's number of classes nor the data's: then
        somebody asked for another.
    """
    if isinstance(detector, mask_rcnn.MaskRCNNConfig):
        boxes = with_classes_of(
            data_set,
            detector.faster_rcnn,
            recipe.faster_rcnn,
            option=f"{option}.faster-rcnn",
        )
        return dataclasses.replace(detector, faster_rcnn=boxes)
    if not hasattr(detector, "num_classes"):
        return detector
    count = len(data_set.class_names)
    if detector.num_classes not in (recipe.num_classes, count):
        raise ConfigError(
            f"{option}.num-classes is {detector.num_classes}, but the data set "
            f"{data_set.name!r} has {count} classes; leave the option out, or give "
            f"{count}"
        )
    return dataclasses.replace(detector, num_classes=count)


def _with_group_norm(config: Config) -> Config:
    """Replaces frozen norms in a config and in the configs among its fields."""
    changed = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == "frozen":
            changed[field.name] = "group"
        elif dataclasses.is_dataclass(value):
            changed[field.name] = _with_group_norm(value)
    return dataclasses.replace(config, **changed)


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
