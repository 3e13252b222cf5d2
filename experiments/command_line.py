"""What the scripts share: their command line, and options that depend on the data."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Literal, TypeVar

import tyro

from jaxdet.data.dataset import DataError, DataSet
from jaxdet.detectors.mask_rcnn import MaskRCNNConfig
from jaxdet.training.checkpoint import RunError
from jaxdet.training.config import ConfigError, TrainingConfig
from jaxdet.training.metrics import NonFiniteLossError
from jaxdet.weights import WeightsError

Config = TypeVar("Config")
Precision = Literal["float32", "bfloat16"]

MENDABLE = (ConfigError, DataError, NonFiniteLossError, RunError, WeightsError)


def run(main: Callable | dict[str, Callable]) -> None:
    """Calls `main`, or that of the name that comes first, with the command line.

    What a user can mend becomes one message and exit code 1 (2 where an argument cannot
    be parsed); Ctrl-C becomes exit code 130. Any other error keeps its traceback.
    """
    logger = logging.getLogger("jaxdet")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # libraries put handlers of their own on the root
    try:
        if isinstance(main, dict):
            tyro.extras.subcommand_cli_from_dict(main)
        else:
            tyro.cli(main)
    except KeyboardInterrupt:
        raise SystemExit(130) from None  # training has said how to go on
    except MENDABLE as error:
        raise SystemExit(f"error: {error}") from None


def with_classes_of(data_set: DataSet, detector: Config, *, recipe: Config) -> Config:
    """The detector with as many classes as the data.

    Args:
      data_set: what it is trained on.
      detector: a config with `num_classes`, or one of which a part has them.
      recipe: that of the script, where nobody has asked for anything.

    Raises:
      ConfigError: if it has neither the recipe's number of classes nor the data's: then
        somebody asked for another.
    """
    return _with_classes_of(data_set, detector, recipe, "--detector")


def from_scratch(training: TrainingConfig, *, recipe: TrainingConfig) -> TrainingConfig:
    """The training without pretrained weights, where nothing can be frozen.

    Raises:
      ConfigError: if somebody asked for other layers to be frozen than the recipe does.
    """
    if training.frozen not in ((), recipe.frozen):
        raise ConfigError(
            f"--training.frozen {training.frozen} without pretrained weights; "
            "a network from scratch has nothing worth freezing: leave it out"
        )
    return dataclasses.replace(training, frozen=())


def at_most_one(sources: dict[str, object]) -> None:
    """Refuses a command that names several data sets.

    Args:
      sources: options and their values, None or empty where an option is not given.

    Raises:
      DataError: naming those given.
    """
    named = [f"{option} {value}" for option, value in sources.items() if value]
    if len(named) > 1:
        raise DataError(f"{' and '.join(named)}; one data set at a time: leave one out")


def _with_classes_of(
    data_set: DataSet, detector: Config, recipe: Config, option: str
) -> Config:
    if isinstance(detector, MaskRCNNConfig):
        boxes = _with_classes_of(
            data_set, detector.faster_rcnn, recipe.faster_rcnn, f"{option}.faster-rcnn"
        )
        return dataclasses.replace(detector, faster_rcnn=boxes)
    count = len(data_set.class_names)
    if detector.num_classes not in (recipe.num_classes, count):
        raise ConfigError(
            f"{option}.num-classes is {detector.num_classes}, but the data set "
            f"{data_set.name!r} has {count} classes; leave the option out, or give "
            f"{count}"
        )
    return dataclasses.replace(detector, num_classes=count)
