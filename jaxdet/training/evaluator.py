"""Evaluates the states of a run on its schedule, and tells when they get no better."""

import json
import logging
import math
import pathlib
from collections.abc import Iterator

import jax

from jaxdet import parallel
from jaxdet.data.dataset import DataSet
from jaxdet.data.files import write_atomically
from jaxdet.detectors.detector import Detector
from jaxdet.evaluation.evaluate import Metrics, evaluate
from jaxdet.training.checkpoint import Checkpoints
from jaxdet.training.config import TrainingConfig
from jaxdet.training.log import Log
from jaxdet.training.pictures import draw_validation_images
from jaxdet.training.signals import DeferredSignals
from jaxdet.training.step import TrainState

FILE = "evaluations.jsonl"
"""In the run folder: a line of json for each evaluation, with its step and numbers."""

_History = dict[int, dict[str, float | None]]  # numbers by step; None: NaN


class Evaluator:
    """Evaluates states of one run; of several hosts all make the same calls."""

    def __init__(
        self,
        detector: Detector,
        validation: DataSet | None,
        config: TrainingConfig,
        metrics: Metrics | None,
        checkpoints: Checkpoints,
        start: int,
    ):
        """Reads what the run has evaluated before.

        Args:
          detector: see `train`.
          validation: see `train`.
          config: see `train`.
          metrics: see `train`.
          checkpoints: of the run; each gets the first number of its evaluation.
          start: step at which the run starts or resumes; later evaluations are
            forgotten.
        """
        self._detector, self._validation = detector, validation
        self._config, self._metrics = config, metrics
        self._checkpoints, self._file = checkpoints, checkpoints.workdir / FILE
        self._start, self._is_first = start, jax.process_index() == 0
        history = _read(self._file, start) if self._is_first else {}
        self._history = parallel.from_first(history)

    def is_missing(self, step: int) -> bool:
        """Returns whether a saved state was not evaluated, but should have been."""
        due = self._validation is not None and evaluates_after(step, self._config)
        return due and not self._checkpoints.is_evaluated(step)

    def reason_to_stop(self, step: int) -> str | None:
        """Returns why the run ends after a step; None: it goes on."""
        if step == self._config.steps:
            return f"all {step} steps are made"
        patience = self._config.patience
        if not patience or not self._history:
            return None
        # The earliest of equals: what is as good is not better.
        best = max(sorted(self._history), key=self._quality)
        if sum(other > best for other in self._history) < patience:
            return None
        name = next(iter(self._history[best]), "the first number")
        return (
            f"stopped early after step {step}: {name} was not better than "
            f"{self._quality(best):.4g}, of step {best}, in {patience} evaluations"
        )

    def steps_from(self, start: int) -> Iterator[int]:
        """Yields the steps to make, until there is a reason to stop."""
        step = start
        while not self.reason_to_stop(step):
            step += 1
            yield step

    def run(self, state: TrainState, log: Log, signals: DeferredSignals) -> None:
        """Evaluates a saved state, and adds the numbers to its checkpoint.

        Args:
          state: after a step that `Checkpoints` has saved.
          log: gets the numbers, and detections beside the truth.
          signals: act at once while it is evaluated.
        """
        if self._validation is None:
            return
        step, config = int(state.step), self._config
        if step == self._start:
            log.line(f"step {step} is saved, but not evaluated; that comes first")
        try:
            with signals.immediate():
                numbers = evaluate(
                    self._detector,
                    state.variables,
                    self._validation,
                    config.input,
                    batch_size=config.batch_size,
                    progress=log.in_terminal,
                    metrics=self._metrics,
                )
                pictures = {}
                if self._is_first:
                    pictures = draw_validation_images(
                        self._detector, state.variables, self._validation, config
                    )
        except (KeyboardInterrupt, SystemExit):
            log.line(stopped(step))
            raise
        self._remember(step, numbers)
        try:
            log.pictures(step, pictures)
            log.evaluation(step, numbers)
        finally:  # after which it is not made again: a kill in between costs no line
            self._checkpoints.save(step, state, numbers)
        if step < config.steps and (reason := self.reason_to_stop(step)):
            log.line(reason)

    def _remember(self, step: int, numbers: dict[str, float]) -> None:
        self._history[step] = {
            name: None if math.isnan(value) else float(value)
            for name, value in numbers.items()
        }
        if self._is_first:
            lines = [
                json.dumps({"step": step} | values) + "\n"
                for step, values in sorted(self._history.items())
            ]
            text = "".join(lines).encode()
            try:
                write_atomically(self._file, lambda stream: stream.write(text))
            except OSError as error:  # what is wrong stops the next checkpoint, too
                _LOG.warning("%s could not be written: %s", self._file, error)

    def _quality(self, step: int) -> float:
        """Returns the first number; what cannot be measured is worst."""
        first = next(iter(self._history[step].values()), None)
        return -math.inf if first is None else first


def evaluates_after(step: int, config: TrainingConfig) -> bool:
    """Returns whether a run with validation data evaluates the state after a step."""
    last = step == config.steps
    return step > 0 and (last or divides(config.evaluate_every, step))


def divides(interval: int, step: int) -> bool:
    """Returns whether it is time for what happens every `interval` steps; 0: never."""
    return interval > 0 and step % interval == 0


def stopped(step: int) -> str:
    """Returns what the log says of a run that a signal ends."""
    return f"stopped; the same command goes on after step {step}"


def _read(file: pathlib.Path, last: int) -> _History:
    """Reads the evaluations up to a step."""
    lines = file.read_text().splitlines() if file.exists() else []
    history = {}
    for line in lines:
        try:
            values = json.loads(line)
            step = int(values.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            _LOG.warning("%s: %.60r is no evaluation, and left out", file, line)
        else:
            history[step] = values
    return {step: values for step, values in history.items() if step <= last}


_LOG = logging.getLogger(__name__)
