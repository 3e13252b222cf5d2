"""What the scripts share: their command line, and options that depend on the data."""

import dataclasses
import logging
from collections.abc import Callable

import tyro

from jaxdet.data.dataset import DataError, DataSet
from jaxdet.detectors.retinanet import RetinaNetConfig
from jaxdet.training.checkpoint import RunError
from jaxdet.training.config import ConfigError
from jaxdet.training.metrics import NonFiniteLossError
from jaxdet.weights import WeightsError

MENDABLE = (ConfigError, DataError, NonFiniteLossError, RunError, WeightsError)


def run(main: Callable) -> None:
    """Calls `main` with the command line's arguments.

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
        tyro.cli(main)
    except KeyboardInterrupt:
        raise SystemExit(130) from None  # training has said how to go on
    except MENDABLE as error:
        raise SystemExit(f"error: {error}") from None


def with_classes_of(
    data_set: DataSet, detector: RetinaNetConfig, *, recipe: RetinaNetConfig
) -> RetinaNetConfig:
    """The detector with as many classes as the data.

    Raises:
      ConfigError: if it has neither the recipe's number of classes nor the data's: then
        somebody asked for another.
    """
    count = len(data_set.class_names)
    if detector.num_classes not in (recipe.num_classes, count):
        raise ConfigError(
            f"--detector.num-classes is {detector.num_classes}, but the data set "
            f"{data_set.name!r} has {count} classes; leave the option out, or give "
            f"{count}"
        )
    return dataclasses.replace(detector, num_classes=count)
