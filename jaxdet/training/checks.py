"""Checks that a run can be trained, before anything is compiled or written."""

import dataclasses
from functools import partial
from typing import Any

import jax

from jaxdet import parallel
from jaxdet.config import ConfigError
from jaxdet.data import batching
from jaxdet.data.dataset import DataError, DataSet, digests
from jaxdet.detectors.detector import Detector
from jaxdet.evaluation import anchor_coverage
from jaxdet.evaluation.evaluate import load_ground_truth
from jaxdet.structs import Batch
from jaxdet.training.config import TrainingConfig
from jaxdet.training.run_folder import identity
from jaxdet.training.step import TrainState, create_state


def check_run(
    detector: Detector,
    data_set: DataSet,
    config: TrainingConfig,
    validation: DataSet | None,
) -> None:
    """Checks that detector, data, config and hosts fit together; reads no pixels.

    Args:
      detector: what will be trained.
      data_set: its training images.
      config: how it will be trained.
      validation: what will be evaluated.

    Raises:
      DataError: if data and config, or the classes, do not fit together.
      ConfigError: if the detector's anchors reach no object, if the devices' images
        cannot be accumulated, if there is patience but nothing to evaluate, or if hosts
        have different configs or data.
    """
    _check_classes(detector, data_set, validation)
    check = partial(
        batching.check, batch_size=config.batch_size, devices=jax.device_count()
    )
    check(data_set, config.input)
    if validation is not None:
        # Metrics take their objects from the data set itself, however many they are.
        unmixed = dataclasses.replace(config.input, mosaic=0.0, copy_paste=0.0)
        check(validation, dataclasses.replace(unmixed, too_many_objects="drop"))
        if detector.has_masks:
            load_ground_truth(detector, validation)  # broken masks are refused now
    elif config.patience:
        raise ConfigError(
            f"patience is {config.patience}; it must be 0 without validation data"
        )
    images = config.batch_size // jax.device_count()
    if images % config.accumulation_steps:
        raise ConfigError(
            f"accumulation_steps is {config.accumulation_steps}; it must divide the "
            f"{images} images of each device, {config.batch_size} over "
            f"{jax.device_count()} devices"
        )
    anchor_coverage.check(detector, data_set, config.input)
    parallel.require_same(
        partial(_fingerprints, detector, data_set, config, validation)
    )


def trace_state(detector: Detector, config: TrainingConfig, batch: Batch) -> TrainState:
    """Returns the shapes of the train state; traces `loss` and `predict`, runs nothing.

    Tracing finds what a detector lacks in its batches, such as regions or masks, or on
    a canvas, before the run folder is written.

    Args:
      detector: what will be trained.
      config: its canvases are tried.
      batch: any training batch.

    Raises:
      ConfigError: with the detector's message, if it refuses a batch or a canvas.
    """
    try:
        state = jax.eval_shape(partial(create_state, detector, config), batch)
        key = jax.eval_shape(jax.random.key, config.seed)
        for canvas in config.input.training_canvases:
            view = _on_canvas(batch, canvas)
            jax.eval_shape(detector.loss, state.variables, view, key)
        for canvas in config.input.canvases:
            view = _on_canvas(batch, canvas)
            jax.eval_shape(detector.predict, state.variables, view)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return state


def _check_classes(
    detector: Detector, data_set: DataSet, validation: DataSet | None
) -> None:
    names = data_set.class_names
    if detector.num_classes not in (None, len(names)):
        raise DataError(
            f"the detector has {detector.num_classes} classes, but "
            f"{data_set.name!r} has {len(names)}: {names}"
        )
    if validation is not None and validation.class_names != names:
        raise DataError(
            f"{data_set.name!r} has the classes {names}, but the validation set "
            f"{validation.name!r} has {validation.class_names}; they must be the same"
        )


def _on_canvas(batch: Batch, canvas: tuple[int, int]) -> Batch:
    """Returns a batch of as many images, of which only the shape is known."""
    shape = (len(batch.images), *canvas, 3)
    return batch.replace(images=jax.ShapeDtypeStruct(shape, batch.images.dtype))


def _fingerprints(
    detector: Detector,
    data_set: DataSet,
    config: TrainingConfig,
    validation: DataSet | None,
) -> dict[str, Any]:
    """Returns what must be the same on all hosts, by name."""
    values = identity(detector, data_set, config)
    if validation is not None:
        values |= {f"validation {k}": x for k, x in digests(validation).items()}
    return values
