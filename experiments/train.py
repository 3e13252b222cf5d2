r"""Trains a recipe: python -m experiments.train RECIPE --data SOURCE

    python -m experiments.train faster_rcnn_digits
    python -m experiments.train retinanet_small --data train.json --images photos \
        --validation-data test.json
    python -m experiments.train faster_rcnn --data photos
    python -m experiments.train retinanet_coco --data coco --weights resnet50

`--help` lists the recipes; `RECIPE --help` explains every number, each of which is an
option. The classes come from the data. Ctrl-C, a kill or a power cut costs the steps
since the last checkpoint: the same command goes on.
"""

import dataclasses
import importlib
import inspect
import pathlib
import sys
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp

from experiments import command_line, pretrained
from experiments import recipe as recipes
from experiments.command_line import Precision
from experiments.data_option import (
    VALIDATION,
    DataOption,
    Flat,
    ValidationOption,
    read_proposals,
    search_proposals,
)
from experiments.evaluate import METRICS, MetricsName
from experiments.recipe import Recipe
from jaxdet.config import ConfigError
from jaxdet.data.dataset import DataSet
from jaxdet.training.config import TrainingConfig
from jaxdet.training.log import OnMetrics
from jaxdet.training.run_folder import RunError, resumed_weights
from jaxdet.training.step import TrainState
from jaxdet.training.train import train
from jaxdet.weights.transfer import Weights

WeightsClasses = Literal["by-name", "fresh"]

OPTIONS = """

Args:
  detector: numbers of the detector; the classes are those of the data.
  training: numbers of the training.
  source: the images to train on.
  validation: the images to evaluate on.
  weights: what the network starts from: a published name, of a detector for COCO
    (fasterrcnn_resnet50_fpn) or a network for ImageNet (resnet50),
    ssd_mobilenet_v2 or efficientnet_lite0; such a file (.pth, .safetensors, .npz), also
    one that torchvision has fine-tuned; a run folder; or scratch: random numbers, with
    group norm and nothing frozen. What does not fit, such as layers for other classes,
    is drawn at random.
  weights_classes: by-name keeps what the weights know of classes that have the same
    name in the data, or, where a file does not tell its names, of as many classes as
    the data has; fresh draws all layers for classes at random.
  proposal_files: region proposals (.npz or .json) for the images to train on, then for
    those to evaluate on; selective search makes and keeps some if not given.
  metrics: what is measured; if not given, recall for a detector that tells no classes
    apart, COCO's for others.
  precision: of the network's arithmetic; parameters and losses are float32.
  remat: compute the backbone, block by block, and dense heads again for the gradients:
    less memory, more arithmetic.
  workdir: the run folder; started again, a run goes on where it stopped.
  accept_changed_data: go on with other images or objects than the run began with.
"""


def commands(arguments: list[str]) -> dict[str, Callable]:
    """Returns a function for each recipe; only those of named recipes have options.

    Args:
      arguments: of the command line.
    """
    return {
        name: command(name) if name in arguments else _summary(text)
        for name, text in recipes.summaries().items()
    }


def command(name: str, *, workdir: pathlib.Path | None = None) -> Callable:
    """Returns the function that trains a recipe; its options are the recipe's numbers.

    Args:
      name: of the recipe.
      workdir: the run folder if none is asked for; by default `runs/<name>`.
    """
    recipe = recipes.load(name)
    numbers = dataclasses.replace(recipe.training, frozen=recipe.frozen)
    own_data = DataOption(recipe.data)

    def main(
        detector: type(recipe.detector) = recipe.detector,
        training: TrainingConfig = numbers,
        source: Flat[DataOption] = own_data,
        validation: Flat[ValidationOption] = VALIDATION,
        *,
        weights: str | None = recipe.weights,
        weights_classes: WeightsClasses = "by-name",
        proposal_files: tuple[pathlib.Path, ...] = (),
        metrics: MetricsName | None = recipe.metrics,
        precision: Precision = "float32",
        remat: bool = False,
        workdir: pathlib.Path = workdir or pathlib.Path("runs", name),
        accept_changed_data: bool = False,
    ) -> None:
        if weights in (None, "scratch"):
            weights, training = None, _without_frozen(training, recipe)
        masks = training.input.mask_size > 0 or training.input.copy_paste > 0
        data_sets = validation.load(source, masks=masks)
        data_sets = read_proposals(data_sets, proposal_files, training.input)
        asked = dataclasses.replace(
            recipe,
            detector=recipes.with_classes_of(data_sets[0], detector, recipe.detector),
            training=training,
            weights=weights,
            frozen=training.frozen,
            metrics=metrics,
        )
        if remat:
            asked = recipes.with_options(asked, remat=True)
        asked = recipes.with_options(asked, dtype=jnp.dtype(precision).type)
        train_recipe(
            asked,
            *data_sets,
            workdir=workdir,
            weights_classes=weights_classes,
            accept_changed_data=accept_changed_data,
        )

    text = inspect.getdoc(importlib.import_module(f"experiments.recipes.{name}"))
    main.__doc__ = text + OPTIONS
    return main


def train_recipe(
    recipe: Recipe,
    data_set: DataSet,
    validation: DataSet | None = None,
    *,
    workdir: pathlib.Path,
    weights_classes: WeightsClasses = "by-name",
    on_metrics: OnMetrics | None = None,
    accept_changed_data: bool = False,
) -> TrainState:
    """Trains a recipe on a data set, or goes on where the run stopped.

    Args:
      recipe: from `recipe.load`, or changed by `dataclasses.replace`.
      data_set: its training images; the detector gets its classes. Selective search
        makes proposals where the detector needs some and the data set has none.
      validation: see `jaxdet.training.train.train`.
      workdir: the run folder.
      weights_classes: whether layers for classes keep what the weights know of classes
        of the same name.
      on_metrics: see `jaxdet.training.train.train`.
      accept_changed_data: see `jaxdet.training.train.train`.

    Returns:
      The state after the last step.

    Raises:
      ConfigError: for an SPP-net without weights; and as `train`.
      WeightsError: if the weights cannot be read, or are not for this network.
      RunError: if the folder holds a run that started from others; and as `train`.
    """
    detector = recipes.with_classes_of(data_set, recipe.detector, recipe.detector)
    recipe = dataclasses.replace(recipe, detector=detector)
    recipe, weights = _first_weights(recipe, workdir)
    if weights and weights_classes == "fresh":
        count = len(weights.class_names or data_set.class_names)  # if they do not tell
        weights = weights._replace(class_names=(None,) * count)
    data_set = search_proposals(data_set, recipe.training.input)
    if validation is not None:
        validation = search_proposals(validation, recipe.training.input)
    return train(
        recipes.build(recipe),
        data_set,
        dataclasses.replace(recipe.training, frozen=recipe.frozen),
        workdir=workdir,
        validation=validation,
        weights=weights,
        metrics=METRICS[recipe.metrics] if recipe.metrics else None,
        on_metrics=on_metrics,
        accept_changed_data=accept_changed_data,
    )


def _first_weights(
    recipe: Recipe, workdir: pathlib.Path
) -> tuple[Recipe, Weights | None]:
    """Returns the recipe as its weights need it, and the weights.

    A run that is resumed with the same name needs none: they are not read again.
    """
    before = resumed_weights(workdir)
    if recipe.weights is None:
        if before:
            raise RunError(f"{workdir} started from {before.source}, not from scratch")
        return recipes.from_scratch(recipe), None
    if before and before.source == recipe.weights:
        return recipes.with_options(recipe, **before.options), None
    weights = pretrained.load(recipe, recipe.weights)
    pretrained.warn_of_other_pixels(recipe, weights)
    return recipes.with_options(recipe, **weights.options), weights


def _without_frozen(training: TrainingConfig, recipe: Recipe) -> TrainingConfig:
    """Freezes nothing, as random numbers are not worth it.

    Raises:
      ConfigError: if somebody asked for other layers to be frozen than the recipe does.
    """
    if training.frozen not in ((), recipe.frozen):
        raise ConfigError(
            f"--training.frozen {training.frozen} without pretrained weights; a "
            "network from scratch has nothing worth freezing: leave it out"
        )
    return dataclasses.replace(training, frozen=())


def _summary(text: str) -> Callable:
    """Returns a function without options, whose docstring `--help` lists."""

    def main() -> None:
        pass

    main.__doc__ = text
    return main


if __name__ == "__main__":
    command_line.run(commands(sys.argv[1:]))
