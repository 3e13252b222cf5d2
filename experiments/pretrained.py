"""Loads what training starts from: a file, a run folder or a published name."""

import hashlib
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from experiments import recipe as recipes
from experiments.recipe import Recipe
from jaxdet.config import Preprocessing
from jaxdet.data.formats.coco import CATEGORY_IDS, CLASS_NAMES
from jaxdet.detectors.detector import Detector
from jaxdet.detectors.serialization import deserialize, serialize
from jaxdet.detectors.sppnet import SPPNetConfig
from jaxdet.inference.load import load_detector
from jaxdet.nn.backbones import efficientnet
from jaxdet.nn.backbones.alexnet import AlexNet
from jaxdet.nn.backbones.mobilenet import MobileNetV2
from jaxdet.nn.backbones.resnet import ResNet, ResNetHead
from jaxdet.nn.backbones.vgg import VGG16, VGG16SSD
from jaxdet.nn.extra_stages import ExtraStages
from jaxdet.training.run_folder import load_run
from jaxdet.weights import backbones, detectors, mapping, published, transfer
from jaxdet.weights.state_dict import WeightsError, read_state_dict
from jaxdet.weights.transfer import Weights

OPTIONS = ("epsilon", "padding")
"""Fields of backbones that change what the same parameters compute."""


def load(recipe: Recipe, source: str) -> Weights:
    """Returns the weights that a recipe is to start from.

    Args:
      recipe: which backbone and heads a file for ImageNet is for.
      source: a name of `published.FILES` or `PACKAGES`; a run folder, whose best
        checkpoint is taken; or a file of one of `detectors.MODELS`, of any number of
        classes, or of torchvision's AlexNet, VGG-16, ResNets or MobileNetV2 for
        ImageNet (.pth, .safetensors, .npz).

    Raises:
      WeightsError: if they cannot be read, or are of no known network.
      RunError: if the folder holds no run.
    """
    named = source in published.FILES or source in published.PACKAGES
    if not named and pathlib.Path(source).is_dir():
        return _of_run(source)
    if not named and not pathlib.Path(source).is_file():
        names = ", ".join([*published.PACKAGES, *published.FILES])
        raise WeightsError(
            f"--weights {source}: no such file, run folder or name; allowed: a file, a "
            f"run folder, scratch, {names}"
        )
    file = published.weights_file(source) if named else pathlib.Path(source)
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if source == "ssd_mobilenet_v2":
        trained = published.ssd_mobilenet_v2()
        return Weights(
            trained.variables,
            source,
            sha256,
            trained.class_names,
            preprocessing=_preprocessing(trained.detector),
            hint=_hint(source),
        )
    if source == "efficientnet_lite0":
        variables = _below("backbone", published.efficientnet_lite0())
        if isinstance(recipe.backbone, ExtraStages):
            variables = _below("backbone", variables)
        pixels = Preprocessing(efficientnet.MEAN, efficientnet.STD)
        hint = _hint(source)
        return Weights(variables, source, sha256, preprocessing=pixels, hint=hint)
    state = read_state_dict(file)
    try:
        if any(name.startswith(("backbone.", "model.backbone.")) for name in state):
            return _of_coco_detector(state, source, sha256)
        weights = Weights({}, source, sha256, preprocessing=Preprocessing())
        return _of_classifier(recipe, state, weights)
    except WeightsError as error:  # which names no file
        raise WeightsError(f"--weights {source}: {error}") from error


def warn_of_other_pixels(recipe: Recipe, weights: Weights) -> None:
    """Warns where a recipe normalizes pixels otherwise than its weights need it."""
    ours = _preprocessing(recipes.build(recipe))
    if weights.preprocessing not in (None, ours):
        needed = weights.preprocessing
        logging.getLogger("jaxdet").warning(
            "%s needs pixels normalized by mean %s and std %s, but the recipe has %s "
            "and %s: set its options that end with preprocessing.mean and .std",
            *(weights.source, needed.mean, needed.std, ours.mean, ours.std),
        )


def _of_run(folder: str) -> Weights:
    trained = load_detector(folder)
    classifies = trained.detector.num_classes is not None
    norms = "its norms are group norms, which a recipe with weights may not have"
    from_scratch = load_run(folder).weights is None
    return Weights(
        trained.variables,
        folder,
        transfer.hash_variables(trained.variables),
        trained.class_names if classifies else (),
        _options(trained.detector),
        _preprocessing(trained.detector),
        f"{folder} was trained from scratch: {norms}" if from_scratch else "",
    )


def _options(detector: Detector) -> dict[str, Any]:
    """Returns those of `OPTIONS` that a module of a detector has."""
    calls = ({name: x[name] for name in OPTIONS if name in x} for x in _parts(detector))
    return next(filter(None, calls), {})


def _preprocessing(detector: Detector) -> Preprocessing | None:
    """Returns how a detector normalizes pixels; None: its recipe does not tell."""
    call = serialize(Preprocessing())["call"]
    found = (deserialize(part) for part in _parts(detector) if part.get("call") == call)
    return next(found, None)


def _parts(detector: Detector) -> Iterator[dict[str, Any]]:
    """Yields all objects in the recipe of a detector, outer ones first."""
    rest = [detector.recipe]
    while rest:
        part = rest.pop()
        if isinstance(part, dict):
            yield part
            part = list(part.values())
        rest += part if isinstance(part, list) else ()


def _of_coco_detector(
    state: Mapping[str, np.ndarray], source: str, sha256: str
) -> Weights:
    name = detectors.recognize(state)
    model = detectors.MODELS[name]
    names = dict(zip(CATEGORY_IDS, CLASS_NAMES, strict=True))
    numbers = range(model.first_id, detectors.OUTPUTS)
    class_names = tuple(map(names.get, numbers))
    try:
        variables = detectors.load(state, name)
    except WeightsError:  # fine-tuned on other classes, whose names no file tells
        variables, class_names = mapping.to_variables(state, model.network), ()
    fields = vars(model.backbone)
    return Weights(
        variables,
        source,
        sha256,
        class_names,
        {option: fields[option] for option in OPTIONS if option in fields},
        _preprocessing(detectors.build(name)),
        _hint(name),
    )


def _hint(name: str) -> str:
    """Names the recipe of a published network."""
    fitting = [x for x in recipes.summaries() if recipes.load(x).weights == name]
    return f"{name} is for the recipe {' or '.join(fitting)}" if fitting else ""


def _of_classifier(
    recipe: Recipe, state: Mapping[str, np.ndarray], weights: Weights
) -> Weights:
    """Takes a classification network's layers for the backbone and the box head."""
    backbone, head, options = recipe.backbone, None, {}
    backbone = getattr(backbone, "backbone", backbone)  # that of `ExtraStages`
    if isinstance(backbone, VGG16SSD):
        return weights._replace(variables=_below("backbone", _for_ssd(state)))
    if isinstance(backbone, AlexNet):
        layers = backbones.load(state, "alexnet")
        head = backbones.load(state, "alexnet_head")
    elif isinstance(backbone, VGG16):
        layers = backbones.load(state, "vgg16")
        # No published network comes with layers for a spatial pyramid.
        if not isinstance(recipe.detector, SPPNetConfig):
            head = backbones.load(state, "vgg16_head")
    elif isinstance(backbone, ResNet):
        layers = backbones.load(state, f"resnet{backbone.depth}")
        if any(isinstance(part, ResNetHead) for part in recipe.heads):
            head = mapping.select_submodules(layers, r"stage5_.*")
            layers = mapping.select_submodules(layers, r"stem_.*|stage[2-4]_.*")
    elif isinstance(backbone, MobileNetV2):
        wide = "_wide" if backbone.wide else ""
        layers = backbones.load(state, f"mobilenet_v2{wide}")
        options = {"epsilon": 1e-5, "padding": "centered"}
    else:
        raise WeightsError(
            f"no file is known with weights for a {type(backbone).__name__}; allowed: "
            "those for AlexNet, VGG16, ResNet, MobileNetV2"
        )
    if isinstance(recipe.backbone, ExtraStages):
        layers = _below("backbone", layers)
    variables = _below("backbone", layers)
    for collection, parameters in (head or {}).items():
        variables[collection]["box_head"] = parameters
    return weights._replace(variables=variables, options=options)


def _for_ssd(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Takes VGG-16's layers for SSD's backbone, in which some others are new.

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
    return {"params": {"backbone": layers}}


def _below(name: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    return {collection: {name: tree} for collection, tree in variables.items()}
