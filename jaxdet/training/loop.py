"""Training from the first step to the last, through kills and interruptions."""

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np

from jaxdet.data import batching
from jaxdet.data.dataset import DataError, DataSet
from jaxdet.detectors.detector import Detector
from jaxdet.evaluation.evaluate import (
    Metrics,
    evaluate,
    fetch,
    names_of_labels,
    paste_all,
    predict_on_devices,
)
from jaxdet.structs import Batch, Detections
from jaxdet.training.checkpoint import Checkpoints, save_run
from jaxdet.training.config import ConfigError, TrainingConfig
from jaxdet.training.log import Log
from jaxdet.training.metrics import RecentMetrics
from jaxdet.training.optimizer import partition, scaled_learning_rate
from jaxdet.training.step import (
    TrainState,
    create_state,
    make_train_step,
    replicate,
    shard,
)
from jaxdet.visualize import truth_beside_detections

SHOWN_SCORE = 0.3  # of detections in the example pictures, at least


def train(
    detector: Detector,
    data_set: DataSet,
    config: TrainingConfig,
    *,
    workdir: str | os.PathLike,
    validation: DataSet | None = None,
    pretrained: Callable[[dict], dict] | None = None,
    metrics: Metrics | None = None,
) -> TrainState:
    """Trains a detector, or goes on where the run in `workdir` stopped.

    A run that was killed and started again ends with the parameters of an unbroken one,
    bit for bit where the device's arithmetic is deterministic. Ctrl-C and SIGTERM let
    the step finish and save it first; a second one acts at once. (Of several hosts none
    could stop alone, so there they act at once, and the newest checkpoint counts.)

    Args:
      detector: what to train.
      data_set: its training images.
      config: everything else about the run.
      workdir: the run folder: config.json, checkpoints/, log.txt, TensorBoard's event
        files and pictures/. Several hosts share it.
      validation: evaluated every `config.evaluate_every` steps and at the end; the
        checkpoint of the highest first number, such as AP, is kept.
      pretrained: from freshly made variables to those to start from, for example with
        the weights of a backbone read from a file.
      metrics: what `evaluate` measures on the validation set; None: its default.

    Returns:
      The state after the last step; `state.variables` is what `evaluate` wants.

    Raises:
      DataError: if data and config do not fit together, before anything is compiled.
      ConfigError: if the detector fits neither of them, before anything is written.
      RunError: if `workdir` holds another run.
      NonFiniteLossError: naming the loss terms, the step and the images of its batch.
    """
    _require_same_classes(detector, data_set, validation)
    check = partial(
        batching.check, batch_size=config.batch_size, devices=jax.device_count()
    )
    check(data_set, config.input)
    if validation is not None:
        # Metrics take their objects from the data set itself, however many they are.
        check(validation, dataclasses.replace(config.input, too_many_objects="drop"))
    first = next(_batches(data_set, config, start=0, stop=1))
    template = _traced(detector, config, first)
    if jax.process_index() == 0:
        save_run(workdir, detector, data_set, config)
    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(workdir, config.keep_checkpoints)
        stack.callback(checkpoints.close)
        start = checkpoints.latest_step() or 0
        if start:
            state = checkpoints.restore(template)
        else:
            state = create_state(detector, config, first, pretrained=pretrained)
        state = replicate(state)
        if start == config.steps:
            if jax.process_index() == 0:
                print(f"{workdir}: nothing left to do, all {start} steps are made")
            return state
        log = Log(workdir, start=start, config=config)
        stack.callback(log.close)
        log.line(_effective_values(template, data_set, config, start))
        batches = _batches(data_set, config, start=start, stop=config.steps)
        stack.callback(batches.close)
        signals = stack.enter_context(_HeldSignals())

        update = make_train_step(detector, config)
        key = jax.random.key(config.seed)
        recent = RecentMetrics(data_set, config)
        for step in range(start + 1, config.steps + 1):
            batch = recent.wait_for(batches)
            pieces = shard(batch, jax.local_device_count())
            state, terms = update(state, pieces, key)
            recent.add(step, batch.image_ids, terms)
            log.advance()
            last = step == config.steps
            examined = last or _divides(config.evaluate_every, step)
            due = examined or _divides(config.checkpoint_every, step)
            saved = due or signals.caught is not None
            if not saved and not _divides(config.log_every, step):
                continue
            log.progress(step, recent.read())  # raises before anything bad is saved
            quality = None
            try:
                if examined and validation is not None:
                    quality = _examine(
                        detector, state, validation, config, metrics, log
                    )
            finally:
                if saved:  # also where the evaluation failed
                    checkpoints.save(step, state, quality)
                if signals.caught is not None:
                    log.line(f"stopped; the same command goes on after step {step}")
                    signals.act()
            recent = RecentMetrics(data_set, config)
    return state


def _require_same_classes(
    detector: Detector, data_set: DataSet, validation: DataSet | None
) -> None:
    names = data_set.class_names
    if detector.num_classes not in (None, len(names)):
        raise DataError(
            f"the detector tells {detector.num_classes} classes apart, but "
            f"{data_set.name!r} has {len(names)}: {names}"
        )
    if validation is not None and validation.class_names != names:
        raise DataError(
            f"{data_set.name!r} has the classes {names}, but the validation set "
            f"{validation.name!r} has {validation.class_names}; they must be the same"
        )


def _traced(detector: Detector, config: TrainingConfig, batch: Batch) -> TrainState:
    """The shapes of the state; its loss is traced too, but nothing is run.

    Tracing tells what a detector misses in its batches, such as regions or masks,
    before the run folder is written.
    """
    try:
        state = jax.eval_shape(partial(create_state, detector, config), batch)
        key = jax.eval_shape(jax.random.key, config.seed)
        jax.eval_shape(detector.loss, state.variables, batch, key)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return state


def _batches(
    data_set: DataSet, config: TrainingConfig, *, start: int, stop: int
) -> Iterator[Batch]:
    return batching.training_batches(
        data_set,
        config.input,
        batch_size=config.batch_size,
        seed=config.seed,
        start=start,
        stop=stop,
        process=jax.process_index(),
        processes=jax.process_count(),
    )


def _divides(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0


def _effective_values(
    template: TrainState, data_set: DataSet, config: TrainingConfig, start: int
) -> str:
    trainable, frozen = partition(template.variables["params"], config.frozen)
    count = {
        name: sum(parameter.size for parameter in parameters.values())
        for name, parameters in (("trainable", trainable), ("frozen", frozen))
    }
    epoch = batching.steps_per_epoch(data_set, config.input, config.batch_size)
    rate = scaled_learning_rate(config)
    return (
        f"{data_set.name}: {len(data_set)} images, {epoch} steps an epoch; "
        f"steps {start} to {config.steps}, {config.batch_size} images each on "
        f"{jax.device_count()} devices ({jax.devices()[0].device_kind}); "
        f"learning rate {rate:g} after {config.warmup_steps} steps of warm-up; "
        f"{count['trainable']:,} trainable parameters, {count['frozen']:,} frozen"
    )


def _examine(
    detector: Detector,
    state: TrainState,
    validation: DataSet,
    config: TrainingConfig,
    metrics: Metrics | None,
    log: Log,
) -> dict[str, float]:
    """Evaluates, and draws the first validation images: truth beside detections."""
    step = int(state.step)
    numbers = evaluate(
        detector,
        state.variables,
        validation,
        config.input,
        batch_size=config.batch_size,
        progress=log.in_terminal,
        metrics=metrics,
    )
    log.evaluation(step, numbers)
    if config.pictures:
        one_thread = dataclasses.replace(config.input, workers=0)
        batches = batching.evaluation_batches(
            validation, one_thread, batch_size=config.batch_size
        )
        with contextlib.closing(batches):
            batch = next(batches)  # of the shape that was just compiled
        found = fetch(predict_on_devices(detector, state.variables)(batch))
        names = validation.class_names
        found_names = names_of_labels(detector, names)
        for row in np.flatnonzero(batch.image_ids >= 0)[: config.pictures]:
            name = str(validation.image_ids[batch.image_ids[row]])
            picture = _picture(batch, found, row, names, found_names)
            log.picture(step, name, picture)
    return numbers


def _picture(
    batch: Batch,
    found: Detections,
    row: int,
    class_names: tuple[str, ...],
    found_names: tuple[str, ...],
) -> np.ndarray:
    """One image of a batch: the truth beside the detections."""
    height, width = batch.sizes[row]
    truth, there = batch.truth, batch.truth.valid[row]
    shown = found.valid[row] & (found.scores[row] >= SHOWN_SCORE)
    boxes, masks = found.boxes[row, shown], None
    if found.masks is not None:
        masks = paste_all(found.masks[row, shown], boxes, (int(height), int(width)))
    return truth_beside_detections(
        batch.images[row, :height, :width],
        (truth.boxes[row, there], truth.labels[row, there], truth.crowd[row, there]),
        (boxes, found.labels[row, shown], found.scores[row, shown]),
        class_names=class_names,
        found_names=found_names,
        masks=masks,
    )


class _HeldSignals:
    """Keeps the first Ctrl-C or SIGTERM until `act`; a second one acts at once."""

    def __init__(self):
        self.caught: int | None = None
        self._before: dict = {}

    def __enter__(self):
        # Python delivers signals to the main thread; one of several hosts cannot stop
        # without the others waiting for it for ever.
        main = threading.current_thread() is threading.main_thread()
        if main and jax.process_count() == 1:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._hold)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hold(self, number, _frame):
        self.caught = number
        signal.signal(number, self._before[number])

    def act(self) -> None:
        if self.caught == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.caught)
