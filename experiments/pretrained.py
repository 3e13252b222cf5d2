"""Loads what training starts from: a file, a run folder or a published name."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.recipe import Recipe
from jaxdet.detectors.sppnet import SPPNetConfig
from jaxdet.inference.load import load_detector
from jaxdet.nn.backbones.alexnet import AlexNet
from jaxdet.nn.backbones.resnet import ResNet, ResNetHead
from jaxdet.nn.backbones.vgg import VGG16
from jaxdet.nn.extra_stages import ExtraStages
from jaxdet.weights import backbones, published
from jaxdet.weights.mapping import load_submodule, select_submodules
from jaxdet.weights.state_dict import WeightsError, read_state_dict

NAMES = {"efficientnet_lite0": published.efficientnet_lite0}
Replace = Callable[[dict], dict]


def load(recipe: Recipe, source: str) -> Replace:
    """Returns the function that puts pretrained weights into fresh variables.

    Args:
      recipe: which backbone and heads they are for.
      source: a name of `NAMES`; a run folder, of which the backbone is taken; or a file
        of torchvision's AlexNet, VGG-16 or ResNet-50 for ImageNet (.pth, .npz).

    Raises:
      WeightsError: if they cannot be read, or are not for this network.
    """
    if source in NAMES:
        return load_submodule("backbone", NAMES[source]())
    if pathlib.Path(source).is_dir():
        variables = load_detector(source, step="latest").variables
        backbone = {name: parts["backbone"] for name, parts in variables.items()}
        return load_submodule("backbone", backbone)
    if not pathlib.Path(source).is_file():
        raise WeightsError(
            f"--weights {source}: no such file or run folder; allowed: a file, a run "
            f"folder, scratch, {', '.join(NAMES)}"
        )
    return _of_torchvision(recipe, read_state_dict(source))


def _of_torchvision(recipe: Recipe, state: Mapping[str, np.ndarray]) -> Replace:
    """Puts a classification network's layers into the backbone and the box head."""
    backbone, head = recipe.backbone, None
    if isinstance(backbone, ExtraStages):
        return _into_ssd(state)
    if isinstance(backbone, AlexNet):
        weights = backbones.load(state, "alexnet")
        head = backbones.load(state, "alexnet_head")
    elif isinstance(backbone, VGG16):
        weights = backbones.load(state, "vgg16")
        # No published network comes with layers for a spatial pyramid.
        if not isinstance(recipe.detector, SPPNetConfig):
            head = backbones.load(state, "vgg16_head")
    elif isinstance(backbone, ResNet):
        weights = backbones.load(state, f"resnet{backbone.depth}")
        if any(isinstance(part, ResNetHead) for part in recipe.heads):
            head = select_submodules(weights, r"stage5_.*")
            weights = select_submodules(weights, r"stem_.*|stage[2-4]_.*")
    else:
        raise WeightsError(
            f"no file is known with weights for a {type(backbone).__name__}; allowed: "
            "those for AlexNet, VGG16, ResNet"
        )
    into_backbone = load_submodule("backbone", weights)
    if head is None:
        return into_backbone
    into_head = load_submodule("box_head", head)
    return lambda variables: into_head(into_backbone(variables))


def _into_ssd(state: Mapping[str, np.ndarray]) -> Replace:
    """Puts VGG-16's layers into SSD's backbone, in which some others are new.

    The fully connected layers take 7x7 cells; every third is kept, which dilation
    puts back in about its place, and every fourth channel (3, after Chen et al. 2015).
    """
    layers = backbones.load(state, "vgg16")["params"]
    head = backbones.load(state, "vgg16_head")["params"]
    fc6 = head["fc0"]["kernel"]
    layers["conv6"] = {
        "kernel": fc6.reshape(7, 7, -1, fc6.shape[-1])[::3, ::3, :, ::4],
        "bias": head["fc0"]["bias"][::4],
    }
    layers["conv7"] = {
        "kernel": head["fc1"]["kernel"][None, None, ::4, ::4],
        "bias": head["fc1"]["bias"][::4],
    }

    def replace(variables: dict[str, Any]) -> dict[str, Any]:
        backbone = variables["params"]["backbone"]
        vgg16 = {**backbone["backbone"], **layers}
        weights = {"params": {**backbone, "backbone": vgg16}}
        return load_submodule("backbone", weights)(variables)

    return replace
