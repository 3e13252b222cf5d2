"""Logs a run: progress bar, `log.txt`, TensorBoard, pictures and traces."""

import contextlib
import datetime
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tqdm import tqdm

from jaxdet.evaluation.report import format_metrics
from jaxdet.training.config import TrainingConfig

SECONDS_BETWEEN_FLUSHES = 30  # of TensorBoard's files
STEPS_BEFORE_PROFILE = 10  # to compile, and to fill the queues

OnMetrics = Callable[[int, dict[str, float]], object]
"""What is called with a step and numbers by name, such as a tracking service's log."""


class Log:
    """Writes the log of one run; of several hosts only the first does.

    There is a line every `log_every` steps, in a terminal above a progress bar. All
    lines go to `log.txt`, numbers and pictures to TensorBoard's event files as well.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        start: int,
        config: TrainingConfig,
        on_metrics: OnMetrics | None = None,
    ):
        """Opens the files.

        Args:
          workdir: the run folder, which exists.
          start: step at which the run starts or resumes; TensorBoard hides later ones.
          config: says how many steps there are, and images in each.
          on_metrics: called with all scalars that TensorBoard gets, by the same names:
            letters, digits, "_", "-", "." and "/"; "_" in place of others.
        """
        self.workdir = pathlib.Path(workdir)
        self._config, self._on_metrics = config, on_metrics
        self._active = jax.process_index() == 0
        self._bar = tqdm(
            total=config.steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            disable=None if self._active else True,  # None: only without a terminal
        )
        if self._active:
            self._file = (self.workdir / "log.txt").open("a", encoding="utf-8")
            # Its own name has whole seconds: a run within one would replace the last's.
            suffix = f".{time.time_ns()}"
            self._board = EventsWriter(str(self.workdir / "events"), suffix)
            self._flushed = time.monotonic()
            log = SessionLog(status=SessionLog.START)  # hides the steps from here on
            self._add_event(start + 1, session_log=log)

    @property
    def in_terminal(self) -> bool:
        """Tells whether progress bars are shown."""
        return not self._bar.disable

    def advance(self) -> None:
        """Moves the progress bar by one step."""
        with self._terminal():
            self._bar.update()

    def line(self, text: str) -> None:
        """Writes one line to the terminal and to `log.txt`."""
        if self._active:
            self._write(text)
            with self._terminal():
                self._bar.write(text, file=sys.stdout)
                sys.stdout.flush()

    def progress(self, step: int, values: dict[str, float]) -> None:
        """Logs means since the last call, with "loss" and "images_per_second"."""
        if not self._active:
            return
        images = (self._config.steps - step) * self._config.batch_size
        left = datetime.timedelta(seconds=round(images / values["images_per_second"]))
        self.line(f"step {step}/{self._config.steps}  {_numbers(values)}  left {left}")
        shown = {"loss": values["loss"], "images/s": values["images_per_second"]}
        with self._terminal():
            self._bar.set_postfix(shown)
        self._scalars(step, {f"training/{name}": x for name, x in values.items()})

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Logs the metrics of the validation set after a step.

        Those of single classes, such as "AP/cat", are a table in `log.txt` and a group
        of their own in TensorBoard; of many classes a line would be too long.
        """
        if not self._active:
            return
        classes = {name: value for name, value in metrics.items() if "AP/" in name}
        rest = {name: value for name, value in metrics.items() if name not in classes}
        self.line(f"evaluation at step {step}  {_numbers(rest)}")
        if classes:
            self._write(f"of each class, percent\n{format_metrics(classes)}")
        scalars = {f"validation/{name}": value for name, value in rest.items()}
        scalars |= {f"classes/{name}": value for name, value in classes.items()}
        self._scalars(step, scalars)

    def pictures(self, step: int, images: dict[str, np.ndarray]) -> None:
        """Adds images to TensorBoard, and writes `pictures/STEP_NAME.png`.

        Args:
          step: after which they were drawn.
          images: `[H, W, 3]` uint8 by name; what file names should not hold becomes
            "_".
        """
        for name, image in images.items() if self._active else ():
            name = re.sub(r"[^\w.-]+", "_", name)
            folder = self.workdir / "pictures"
            folder.mkdir(exist_ok=True)
            Image.fromarray(image).save(folder / f"{step:07d}_{name}.png")
            picture = summary.image(f"pictures/{name}", image, dataformats="HWC")
            self._add_event(step, summary=picture)

    def close(self) -> None:
        """Writes what is left."""
        with self._terminal():
            self._bar.close()
        if self._active:
            # Of a full disk, which log.txt says too, or of a log that is closed.
            with contextlib.suppress(OSError, ValueError):
                self._board.close()
            self._file.close()

    @contextlib.contextmanager
    def _terminal(self) -> Iterator[None]:
        """Lets a run go on without its terminal, or whatever read its output."""
        try:
            yield
        except OSError:
            self._bar.disable = True

    def _write(self, text: str) -> None:
        self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
        self._file.flush()

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        # NaN is AP where there are no such objects.
        known = {
            re.sub(r"[^-/\w.]", "_", name): float(x)
            for name, x in values.items()
            if not np.isnan(x)
        }
        for name, value in known.items():
            self._add_event(step, summary=summary.scalar(name, value))
        if self._on_metrics is not None:
            self._on_metrics(step, known)

    def _add_event(self, step: int, **content: Any) -> None:
        # Not by a `SummaryWriter`: once its thread cannot write, it waits forever.
        self._board.write_event(Event(wall_time=time.time(), step=step, **content))
        if time.monotonic() > self._flushed + SECONDS_BETWEEN_FLUSHES:
            self._board.flush()
            self._flushed = time.monotonic()


class Profiler:
    """Traces some steps near the start of a run on the first host, by JAX's profiler.

    There are `config.profile_steps` of them, once the step is compiled; 0: none.
    """

    def __init__(self, log: Log, start: int, config: TrainingConfig):
        """Chooses the steps; nothing is traced before `begin`.

        Args:
          log: of the run, whose folder gets a folder `profile`.
          start: step at which the run starts or resumes.
          config: says how many steps to trace.
        """
        self._folder, self._log = log.workdir / "profile", log
        steps = config.profile_steps
        after = min(start + STEPS_BEFORE_PROFILE, config.steps - steps)
        self._first = max(start, after) + 1
        self._last = min(self._first + steps - 1, config.steps)
        self._wanted = steps > 0 and jax.process_index() == 0
        self._running = False

    def begin(self, step: int) -> None:
        """Starts the trace if this is its first step; called before each step."""
        if self._wanted and step == self._first:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def end(self, step: int, values: Any) -> None:
        """Ends the trace if this is its last step; called with arrays of each step."""
        if self._running and step == self._last:
            jax.block_until_ready(values)
            self.close()
            self._log.line(
                f"traced steps {self._first} to {step} into {self._folder}: open its "
                "trace.json.gz at https://ui.perfetto.dev, or `pip install tensorboard "
                f"xprof` and `tensorboard --logdir {self._folder}`"
            )

    def close(self) -> None:
        """Writes what there is of a trace that was not ended."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False


def _numbers(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
