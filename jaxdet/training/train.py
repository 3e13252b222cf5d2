"""Trains from the first step to the last, through kills and interruptions."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial

import jax
import numpy as np

from jaxdet import parallel
from jaxdet.data import batching, transforms
from jaxdet.data.dataset import DataSet
from jaxdet.data.epoch_plan import steps_per_epoch
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.detector import Detector
from jaxdet.evaluation.evaluate import Metrics
from jaxdet.parallel import replicate, shard_to_devices
from jaxdet.structs import Batch
from jaxdet.training.checkpoint import Checkpoints
from jaxdet.training.checks import check_run, trace_state
from jaxdet.training.checksum import digest
from jaxdet.training.config import TrainingConfig
from jaxdet.training.evaluator import Evaluator, divides, evaluates_after, stopped
from jaxdet.training.lock import RunLock
from jaxdet.training.log import Log, OnMetrics, Profiler
from jaxdet.training.metrics import RecentMetrics
from jaxdet.training.optimizer import partition, scaled_learning_rate
from jaxdet.training.pictures import draw_training_images
from jaxdet.training.run_folder import save_run
from jaxdet.training.signals import DeferredSignals
from jaxdet.training.step import (
    TrainState,
    create_state,
    gradient_flops,
    make_train_step,
)
from jaxdet.weights import transfer
from jaxdet.weights.transfer import Weights


def train(
    detector: Detector,
    data_set: DataSet,
    config: TrainingConfig,
    *,
    workdir: str | os.PathLike,
    validation: DataSet | None = None,
    weights: Weights | None = None,
    metrics: Metrics | None = None,
    on_metrics: OnMetrics | None = None,
    accept_changed_data: bool = False,
) -> TrainState:
    """Trains a detector, or resumes the run in `workdir` where it stopped.

    A run that was killed and started again ends with the parameters of an unbroken one,
    bit for bit where the device's arithmetic is deterministic. Ctrl-C, SIGTERM and the
    end of the terminal let the step finish and save it first; a second Ctrl-C or
    SIGTERM acts at once. Of several hosts all stop after the same step when one gets
    SIGTERM; there the others act at once. States are saved before they are evaluated,
    and an evaluation that was interrupted is made when the run is resumed, even if no
    steps are left. With `config.patience` the run ends early once so many evaluations
    have not been better than the best; a resumed run ends at the same step.

    Args:
      detector: what to train.
      data_set: its training images.
      config: everything else about the run.
      workdir: the run folder: config.json, checkpoints/, log.txt, evaluations.jsonl,
        TensorBoard's event files, pictures/ and profile/. Of several hosts only the
        first uses it.
      validation: evaluated every `config.evaluate_every` steps and at the end; the
        checkpoint of the highest first number, such as AP, is kept.
      weights: what to start from; None: random numbers. `transfer.compare` tells what
        is kept of them. A run that is resumed needs none.
      metrics: what `evaluate` measures on the validation set; None: its default.
      on_metrics: called on the first host at every log line and after every evaluation
        with the step and numbers by name, such as "training/loss" and "validation/AP".
        If it raises an exception, the state is saved and the run ends with it.
      accept_changed_data: whether a run may be resumed with other images or objects.

    Returns:
      The state after the last step, which need not be the best one;
      `state.variables` is what `evaluate` wants.

    Raises:
      DataError: if data and config do not fit together, before anything is compiled.
      ConfigError: if the detector fits neither of them, before anything is written; or
        if hosts have different configs, data or fresh parameters.
      WeightsError: if the weights are of another network.
      RunError: if `workdir` holds another run, is in use by another training, or was
        deleted during this one; the message says where the state is saved instead.
      CheckpointError: if all checkpoints are damaged, or a new one cannot be written.
      NonFiniteLossError: naming the loss terms, the step and the images of its batch.
    """
    check_run(detector, data_set, config, validation)
    batch = next(_batches(data_set, config, start=0, stop=1))
    template = trace_state(detector, config, batch)
    names = data_set.class_names
    kept = weights and transfer.compare(weights, template.variables, names)
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(closing(RunLock(workdir)))
        if jax.process_index() == 0:
            kept = save_run(
                workdir, detector, data_set, config, kept, accept_changed_data
            )
        checkpoints = Checkpoints(workdir, config.keep_checkpoints, lock)
        stack.callback(checkpoints.close)
        apply = weights and partial(transfer.apply, weights, class_names=names)
        state = _first_state(checkpoints, template, detector, config, batch, apply)
        start = int(state.step)
        evaluator = Evaluator(detector, validation, config, metrics, checkpoints, start)
        missing = evaluator.is_missing(start)
        if not missing and (reason := evaluator.reason_to_stop(start)):
            _print_once(f"{workdir}: nothing left to do, {reason}")
            return state
        log = Log(workdir, start=start, config=config, on_metrics=on_metrics)
        stack.callback(log.close)
        log.line(_summary(detector, template, data_set, config, batch, start, kept))
        profiler = stack.enter_context(closing(Profiler(log, start, config)))
        batches = _batches(data_set, config, start, config.steps, shard_to_devices)
        stack.callback(batches.close)
        signals = stack.enter_context(DeferredSignals())
        if not start:
            log.pictures(0, draw_training_images(batch, data_set, config))
        if missing:
            evaluator.run(state, log, signals)
        update = _make_update(detector, config, log)
        recent = RecentMetrics(data_set, config)
        for step in evaluator.steps_from(start):
            profiler.begin(step)
            batch, sharded_batch = recent.next_batch(batches)
            state, values = update(state, sharded_batch, recent)
            recent.add(step, batch.image_ids, values)
            profiler.end(step, values)
            log.advance()
            stop = signals.should_stop(step)
            evaluates = evaluates_after(step, config)
            saves = stop or evaluates or divides(config.checkpoint_every, step)
            if not saves and not divides(config.log_every, step):
                continue
            means = recent.read()  # raises before anything bad is saved
            with checkpoints.saving_on_error(step, state):
                log.progress(step, means)
            checkpoints.check()
            if saves:
                checkpoints.save(step, state)
            if stop:
                log.line(stopped(step))
                signals.act()
            if evaluates:
                log.pictures(step, draw_training_images(batch, data_set, config))
                evaluator.run(state, log, signals)
            recent = RecentMetrics(data_set, config)
    return state


def _print_once(text: str) -> None:
    """Prints a line on the first host."""
    if jax.process_index() == 0:
        print(text)


def _batches(
    data_set: DataSet,
    config: TrainingConfig,
    start: int,
    stop: int,
    transfer: Callable | None = None,
) -> Iterator:
    return batching.training_batches(
        data_set,
        config.input,
        batch_size=config.batch_size,
        seed=config.seed,
        process=jax.process_index(),
        processes=jax.process_count(),
        start=start,
        stop=stop,
        transfer=transfer,
    )


def _first_state(
    checkpoints: Checkpoints,
    template: TrainState,
    detector: Detector,
    config: TrainingConfig,
    batch: Batch,
    pretrained: Callable[[dict], dict] | None,
) -> TrainState:
    """Puts the newest saved state on the devices, or a fresh one, as all hosts have."""
    if checkpoints.latest_step():
        return replicate(checkpoints.restore(template))
    state = create_state(detector, config, batch, pretrained=pretrained)
    parallel.require_same(lambda: {"parameters": digest(state.variables)})
    return replicate(state)


def _make_update(detector: Detector, config: TrainingConfig, log: Log) -> Callable:
    """Makes the step on all devices; logs how long the first of each canvas takes."""
    train_step, compiled = make_train_step(detector, config), set()
    key = replicate(jax.random.key(config.seed))

    def update(
        state: TrainState, batch: Batch, recent: RecentMetrics
    ) -> tuple[TrainState, dict]:
        canvas = batch.images.shape[2:4]
        if canvas in compiled:
            return train_step(state, batch, key)
        compiled.add(canvas)
        before = time.perf_counter()
        state_and_metrics = train_step(state, batch, key)
        seconds = time.perf_counter() - before
        recent.leave_out(seconds)
        log.line(f"canvas {_format_canvas(canvas)} compiled in {seconds:.1f} s")
        return state_and_metrics

    return update


def _summary(
    detector: Detector,
    template: TrainState,
    data_set: DataSet,
    config: TrainingConfig,
    batch: Batch,
    start: int,
    kept: transfer.Transfer | None,
) -> str:
    parts = partition(template.variables["params"], config.frozen)
    trainable, frozen = (sum(x.size for x in part.values()) for part in parts)
    epoch = steps_per_epoch(data_set, config.input, config.batch_size)
    rate = scaled_learning_rate(config)
    flops = gradient_flops(detector, config, template, batch)
    canvases = _canvases_with_images(data_set, config.input)
    count = jax.device_count()
    devices = "1 device" if count == 1 else f"{count} devices"
    return (
        f"{data_set.name}: {len(data_set)} images, {epoch} steps an epoch; "
        f"steps {start} to {config.steps}, {config.batch_size} images each on "
        f"{devices} ({jax.devices()[0].device_kind}); "
        f"canvases {', '.join(map(_format_canvas, canvases))}, each compiled once; "
        f"learning rate {rate:g} after {config.warmup_steps} steps of warm-up; "
        f"{trainable:,} trainable parameters, {frozen:,} frozen; "
        f"{flops / 1e9:.3g} GFLOPs per image for a training step"
        + (f"\n{kept}" if kept else "")
    )


def _canvases_with_images(
    data_set: DataSet, config: InputConfig
) -> tuple[tuple[int, int], ...]:
    index = transforms.assign_canvases(
        data_set.sizes, config.canvases, min_max_size=config.min_max_size
    )
    used = tuple(config.canvases[i] for i in np.unique(index))
    return dataclasses.replace(config, canvases=used).training_canvases


def _format_canvas(canvas: tuple[int, int]) -> str:
    height, width = canvas
    return f"{height}x{width}"
