"""Training from the first step to the last, through kills and interruptions."""

import contextlib
import dataclasses
import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdet import parallel
from jaxdet.config import ConfigError
from jaxdet.data import batching, transforms
from jaxdet.data.dataset import DataError, DataSet, Objects
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.detector import Detector
from jaxdet.evaluation import anchor_coverage
from jaxdet.evaluation.evaluate import (
    Metrics,
    evaluate,
    label_names,
    paste_masks,
    predict_on_devices,
)
from jaxdet.parallel import replicate, shard_to_devices, to_host
from jaxdet.structs import Batch, Detections
from jaxdet.training.checkpoint import Checkpoints, digest, identity, save_run
from jaxdet.training.config import TrainingConfig
from jaxdet.training.log import Log, Trace
from jaxdet.training.metrics import RecentMetrics
from jaxdet.training.optimizer import partition, scaled_learning_rate
from jaxdet.training.step import (
    TrainState,
    create_state,
    gradient_flops,
    make_train_step,
)
from jaxdet.visualize import (
    contact_sheet,
    draw,
    enlarged,
    enlarged_masks,
    truth_beside_detections,
)

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
    the step finish and save it first; a second one acts at once. Of several hosts all
    stop after the same step when one gets SIGTERM; there Ctrl-C acts at once. States
    are saved before they are evaluated, and an evaluation that was broken off is made
    when the run goes on, even if no steps are left.

    Args:
      detector: what to train.
      data_set: its training images.
      config: everything else about the run.
      workdir: the run folder: config.json, checkpoints/, log.txt, TensorBoard's event
        files, pictures/ and profile/. Of several hosts only the first uses it.
      validation: evaluated every `config.evaluate_every` steps and at the end; the
        checkpoint of the highest first number, such as AP, is kept.
      pretrained: from freshly made variables to those to start from, for example with
        the weights of a backbone read from a file.
      metrics: what `evaluate` measures on the validation set; None: its default.

    Returns:
      The state after the last step; `state.variables` is what `evaluate` wants.

    Raises:
      DataError: if data and config do not fit together, before anything is compiled.
      ConfigError: if the detector fits neither of them, before anything is written; or
        if hosts have different configs, data or fresh parameters.
      RunError: if `workdir` holds another run.
      CheckpointError: if no checkpoint is whole, or a new one cannot be written.
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
    _require_whole_parts(config)
    anchor_coverage.check(detector, data_set, config.input)
    parallel.require_same(
        partial(_what_is_trained, detector, data_set, config, validation)
    )
    first = next(_batches(data_set, config, start=0, stop=1))
    template = _traced(detector, config, first)
    if jax.process_index() == 0:
        save_run(workdir, detector, data_set, config)
    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(workdir, config.keep_checkpoints)
        stack.callback(checkpoints.close)
        if checkpoints.latest_step():
            state = checkpoints.restore(template)
        else:
            state = create_state(detector, config, first, pretrained=pretrained)
            fresh = state.variables
            parallel.require_same(lambda: {"parameters": digest(fresh)})
        start = int(state.step)
        state = replicate(state)
        missed = (
            validation is not None
            and _is_examined(start, config)
            and not checkpoints.is_evaluated(start)
        )
        if start == config.steps and not missed:
            if jax.process_index() == 0:
                print(f"{workdir}: nothing left to do, all {start} steps are made")
            return state
        log = Log(workdir, start=start, config=config)
        stack.callback(log.close)
        flops = gradient_flops(detector, config, template, first)
        log.line(_effective_values(template, data_set, config, start, flops))
        draw_input = partial(_draw_input, data_set, config, log)
        if not start:
            draw_input(start, first)
        trace = Trace(workdir, start=start, config=config, log=log)
        stack.callback(trace.close)
        batches = _batches(
            data_set, config, start=start, stop=config.steps, transfer=shard_to_devices
        )
        stack.callback(batches.close)
        signals = stack.enter_context(_HeldSignals())

        examine = partial(
            _examine, detector, validation, config, metrics, log, checkpoints, signals
        )
        if missed:
            log.line(f"step {start} is saved, but not evaluated; that comes first")
            examine(start, state)
        update = _timed_compilation(make_train_step(detector, config), log)
        key = replicate(jax.random.key(config.seed))
        recent = RecentMetrics(data_set, config)
        for step in range(start + 1, config.steps + 1):
            trace.begin(step)
            batch, pieces = recent.wait_for(batches)
            state, terms = update(state, pieces, key)
            recent.add(step, batch.image_ids, terms)
            trace.end(step, terms)
            log.advance()
            examined = _is_examined(step, config)
            due = examined or _divides(config.checkpoint_every, step)
            stopped = signals.reached(step)
            saved = due or stopped
            if not saved and not _divides(config.log_every, step):
                continue
            log.progress(step, recent.read())  # raises before anything bad is saved
            checkpoints.check()
            if saved:
                checkpoints.save(step, state)
            if stopped:
                log.line(_stopped(step))
                signals.act()
            if examined:
                draw_input(step, batch)
            if examined and validation is not None:
                examine(step, state)
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


def _require_whole_parts(config: TrainingConfig) -> None:
    images = config.batch_size // jax.device_count()
    if images % config.accumulate:
        raise ConfigError(
            f"accumulate is {config.accumulate}; it must divide the {images} images of "
            f"each device, {config.batch_size} over {jax.device_count()} devices"
        )


def _traced(detector: Detector, config: TrainingConfig, batch: Batch) -> TrainState:
    """The shapes of the state; loss and answers are traced too, but nothing is run.

    Tracing tells what a detector misses in its batches, such as regions or masks, or on
    a canvas, before the run folder is written.
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


def _on_canvas(batch: Batch, canvas: tuple[int, int]) -> Batch:
    """A batch of as many images, of which only the shape is known."""
    shape = (len(batch.images), *canvas, 3)
    return batch.replace(images=jax.ShapeDtypeStruct(shape, batch.images.dtype))


def _batches(
    data_set: DataSet,
    config: TrainingConfig,
    *,
    start: int,
    stop: int,
    transfer: Callable | None = None,
) -> Iterator:
    return batching.training_batches(
        data_set,
        config.input,
        batch_size=config.batch_size,
        seed=config.seed,
        start=start,
        stop=stop,
        transfer=transfer,
        process=jax.process_index(),
        processes=jax.process_count(),
    )


def _what_is_trained(
    detector: Detector,
    data_set: DataSet,
    config: TrainingConfig,
    validation: DataSet | None,
) -> dict:
    """What must be the same on all hosts, by name."""
    values = identity(detector, data_set, config)
    for kind, images in (("training", data_set), ("validation", validation)):
        if images is not None:
            values |= {
                f"{kind} {name}": hashlib.sha256(content).hexdigest()[:16]
                for name, content in (
                    ("image ids", repr(images.image_ids).encode()),
                    ("image sizes", np.asarray(images.sizes, np.int64).tobytes()),
                    ("objects", b"".join(_content(found) for found in images.objects)),
                )
            }
    return values


def _content(found: Objects) -> bytes:
    arrays = (np.array([len(found.boxes)]), *found)
    return b"".join(np.asarray(array).tobytes() for array in arrays)


def _is_examined(step: int, config: TrainingConfig) -> bool:
    last = step == config.steps
    return step > 0 and (last or _divides(config.evaluate_every, step))


def _divides(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0


def _effective_values(
    template: TrainState,
    data_set: DataSet,
    config: TrainingConfig,
    start: int,
    flops: float,
) -> str:
    trainable, frozen = partition(template.variables["params"], config.frozen)
    count = {
        name: sum(parameter.size for parameter in parameters.values())
        for name, parameters in (("trainable", trainable), ("frozen", frozen))
    }
    epoch = batching.steps_per_epoch(data_set, config.input, config.batch_size)
    rate = scaled_learning_rate(config)
    canvases = ", ".join(map(_words, _canvases_with_images(data_set, config.input)))
    return (
        f"{data_set.name}: {len(data_set)} images, {epoch} steps an epoch; "
        f"steps {start} to {config.steps}, {config.batch_size} images each on "
        f"{jax.device_count()} devices ({jax.devices()[0].device_kind}); "
        f"canvases {canvases}, each compiled once; "
        f"learning rate {rate:g} after {config.warmup_steps} steps of warm-up; "
        f"{count['trainable']:,} trainable parameters, {count['frozen']:,} frozen; "
        f"{flops / 1e9:.3g} GFLOPs to learn from an image"
    )


def _canvases_with_images(
    data_set: DataSet, config: InputConfig
) -> tuple[tuple[int, int], ...]:
    index = transforms.assign_canvases(
        data_set.sizes, config.canvases, min_max_size=config.min_max_size
    )
    met = tuple(config.canvases[i] for i in np.unique(index))
    return dataclasses.replace(config, canvases=met).training_canvases


def _words(canvas: tuple[int, int]) -> str:
    height, width = canvas
    return f"{height}x{width}"


def _timed_compilation(update: Callable, log: Log) -> Callable:
    """Says how long the first update of each canvas took before it was under way."""
    met = set()

    def timed(state: TrainState, pieces: Batch, key: jax.Array):
        canvas = pieces.images.shape[2:4]
        if canvas in met:
            return update(state, pieces, key)
        met.add(canvas)
        before = time.perf_counter()
        answer = update(state, pieces, key)
        seconds = time.perf_counter() - before
        log.line(f"canvas {_words(canvas)} compiled in {seconds:.1f} s")
        return answer

    return timed


def _stopped(step: int) -> str:
    return f"stopped; the same command goes on after step {step}"


def _examine(
    detector: Detector,
    validation: DataSet,
    config: TrainingConfig,
    metrics: Metrics | None,
    log: Log,
    checkpoints: Checkpoints,
    signals: "_HeldSignals",
    step: int,
    state: TrainState,
) -> None:
    """Evaluates a state that is saved, and adds the numbers to its checkpoint."""
    try:
        with signals.not_held():
            numbers = _evaluate(detector, state, validation, config, metrics, log)
    except (KeyboardInterrupt, SystemExit):
        log.line(_stopped(step))
        raise
    checkpoints.save(step, state, numbers)


def _evaluate(
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
    if config.pictures and jax.process_index() == 0:
        one_thread = dataclasses.replace(config.input, workers=0)
        batches = batching.evaluation_batches(
            validation, one_thread, batch_size=config.batch_size // jax.process_count()
        )
        with contextlib.closing(batches):
            batch = next(batches)  # of the shape that was just compiled
        found = to_host(predict_on_devices(detector, state.variables)(batch))
        names = validation.class_names
        found_names = label_names(detector, names)
        for row in np.flatnonzero(batch.image_ids >= 0)[: config.pictures]:
            name = str(validation.image_ids[batch.image_ids[row]])
            picture = _picture(batch, found, row, names, found_names)
            log.picture(step, name, picture)
    return numbers


def _draw_input(
    data_set: DataSet, config: TrainingConfig, log: Log, step: int, batch: Batch
) -> None:
    """Draws the first images of a training batch, augmented, on their whole canvas."""
    rows = range(min(config.pictures, len(batch.images)))
    if rows:
        names = data_set.class_names
        views = [_as_the_network_sees(batch, row, names) for row in rows]
        log.picture(step, "training_input", contact_sheet(views, columns=2))


def _as_the_network_sees(
    batch: Batch, row: int, class_names: tuple[str, ...]
) -> np.ndarray:
    image, truth, there = _pixels(batch, row), batch.truth, batch.truth.valid[row]
    picture, factor = enlarged(image)
    boxes, masks = truth.boxes[row, there], None
    if truth.masks is not None:
        masks = paste_masks(truth.masks[row, there], boxes, image.shape[:2])
        masks = enlarged_masks(masks, factor)
    return draw(
        picture,
        factor * boxes,
        truth.labels[row, there],
        class_names=class_names,
        crowd=truth.crowd[row, there],
        masks=masks,
    )


def _pixels(batch: Batch, row: int) -> np.ndarray:
    """An image of a batch to draw; batches may hold fractions."""
    return np.rint(batch.images[row]).astype(np.uint8)


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
        masks = paste_masks(found.masks[row, shown], boxes, (int(height), int(width)))
    return truth_beside_detections(
        _pixels(batch, row)[:height, :width],
        (truth.boxes[row, there], truth.labels[row, there], truth.crowd[row, there]),
        (boxes, found.labels[row, shown], found.scores[row, shown]),
        class_names=class_names,
        found_names=found_names,
        masks=masks,
    )


class _HeldSignals:
    """Keeps the first Ctrl-C or SIGTERM until `act`; a second one acts at once.

    One of several hosts cannot stop without the others waiting for it for ever. There
    JAX itself catches SIGTERM, and has all of them stop after the same step.
    """

    def __init__(self):
        self._caught: int | None = None
        self._before: dict = {}
        self._holding = True

    def __enter__(self):
        # Python delivers signals to the main thread.
        main = threading.current_thread() is threading.main_thread()
        if main and jax.process_count() == 1:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._hold)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hold(self, number, _frame):
        self._caught = number
        signal.signal(number, self._before[number])
        if not self._holding:
            self.act()

    @contextlib.contextmanager
    def not_held(self) -> Iterator[None]:
        """Within, signals act at once, and so does one that came before."""
        self._holding = False
        try:
            if self._caught is not None:
                self.act()
            yield
        finally:
            self._holding = True

    def reached(self, step: int) -> bool:
        """Whether to stop after this step; every host asks after every step."""
        if multihost_utils.reached_preemption_sync_point(step):
            self._caught = signal.SIGTERM
        return self._caught is not None

    def act(self) -> None:
        if self._caught == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self._caught)
