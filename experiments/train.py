r"""Trains a recipe: python -m experiments.train RECIPE --data SOURCE

    python -m experiments.train faster_rcnn_digits
    python -m experiments.train retinanet_small --data train.json --images photos \
        --validation-data test.json
    python -m experiments.train retinanet_coco --data coco --weights resnet50.pth

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
from jaxdet.training.step import TrainState
from jaxdet.training.train import train

OPTIONS = """

Args:
  detector: numbers of the detector; the classes are those of the data.
  training: numbers of the training.
  source: the images to train on.
  validation: the images to evaluate on.
  weights: what the network starts from: a file of torchvision's AlexNet, VGG-16 or
    ResNet-50 for ImageNet (.pth or .npz), a run folder, whose backbone is taken,
    efficientnet_lite0, or scratch: random numbers, with group norm and nothing frozen.
  proposal_files: region proposals (.npz or .json) for the images to train on, then for
    those to evaluate on; selective search makes and keeps some if not given.
  metrics: what is measured; if not given, recall for a detector that tells no classes
    apart, COCO's for others.
  precision: of the network's arithmetic; parameters and losses are float32.
  remat: compute a ResNet again for the gradients, block by block: less memory, more
    arithmetic.
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
        proposal_files: tuple[pathlib.Path, ...] = (),
        metrics: MetricsName | None = recipe.metrics,
        precision: Precision = "float32",
        remat: bool = False,
        workdir: pathlib.Path = workdir or pathlib.Path("runs", name),
        accept_changed_data: bool = False,
    ) -> None:
        if weights in (None, "scratch"):
            weights, training = None, _without_frozen(training, recipe)
        data_sets = validation.load(source, masks=training.input.mask_size > 0)
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
    accept_changed_data: bool = False,
) -> TrainState:
    """Trains a recipe on a data set, or goes on where the run stopped.

    Args:
      recipe: from `recipe.load`, or changed by `dataclasses.replace`.
      data_set: its training images; the detector gets its classes. Selective search
        makes proposals where the detector needs some and the data set has none.
      validation: see `jaxdet.training.train.train`.
      workdir: the run folder.
      accept_changed_data: see `jaxdet.training.train.train`.

    Returns:
      The state after the last step.

    Raises:
      ConfigError: for an SPP-net without weights; and as `train`.
      WeightsError: if the weights cannot be read, or are not for this network.
    """
    detector = recipes.with_classes_of(data_set, recipe.detector, recipe.detector)
    recipe = dataclasses.replace(recipe, detector=detector)
    if recipe.weights is None:
        recipe = recipes.from_scratch(recipe)
    replace = pretrained.load(recipe, recipe.weights) if recipe.weights else None
    data_set = search_proposals(data_set, recipe.training.input)
    if validation is not None:
        validation = search_proposals(validation, recipe.training.input)
    return train(
        recipes.build(recipe),
        data_set,
        dataclasses.replace(recipe.training, frozen=recipe.frozen),
        workdir=workdir,
        validation=validation,
        pretrained=replace,
        metrics=METRICS[recipe.metrics] if recipe.metrics else None,
        accept_changed_data=accept_changed_data,
    )


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
