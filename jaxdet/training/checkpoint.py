"""Saves and restores train states; a kill while one is written harms none of them."""

import contextlib
import itertools
import json
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any, Literal, NoReturn

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jaxdet import parallel
from jaxdet.data.files import write_atomically, write_json
from jaxdet.training.checksum import by_path, checksum, format_shape
from jaxdet.training.lock import RunLock
from jaxdet.training.run_folder import (
    RunError,
    checkpoint_folder,
    saved_steps,
)
from jaxdet.training.step import TrainState

CHECKSUM = "checksum"  # name of the checksum among the arrays that it covers


class CheckpointError(ValueError):
    """A checkpoint could not be written, or is not what was written."""


class Checkpoints:
    """The checkpoints of one run: the newest, and the best by its metrics.

    States are saved as NumPy arrays, so they can be restored on any number and kind of
    devices, with checksums, since Orbax notices a file cut short, but not a flipped
    bit. A checkpoint gets its name only when it is complete; a half-written one is
    ignored, and removed when `Checkpoints` opens.

    Of several hosts only the first reads and writes. All of them make the same calls
    and receive what it has read, so they need no shared folder.
    """

    def __init__(
        self, workdir: str | os.PathLike, keep: int, lock: RunLock | None = None
    ):
        """Opens `workdir/checkpoints`, making it where needed.

        Args:
          workdir: the run folder.
          keep: how many of the newest checkpoints stay.
          lock: of the run folder, to notice when it is gone; None: it stays.
        """
        self.workdir = pathlib.Path(workdir)
        self._manager, self._keep, self._lock = None, keep, lock
        self._saved_elsewhere = False
        if jax.process_index() > 0:
            return
        folder = checkpoint_folder(workdir)
        with _writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for half_written in folder.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(half_written)
            self._manager = _open_manager(folder, keep)
        self._description = folder.with_name("config.json")
        exists = self._description.exists()
        self._content = self._description.read_bytes() if exists else None

    def save(
        self, step: int, state: TrainState, metrics: dict[str, float] | None = None
    ) -> None:
        """Copies the state to the host, then writes it in the background.

        Args:
          step: `state.step`; if it is saved already, only its metrics are added, once
            all of it is written.
          state: its arrays may be donated as soon as this returns.
          metrics: of the validation set, if it was evaluated at this step; the
            checkpoint whose first number, such as AP, is highest is the best.

        Raises:
          CheckpointError: as `check` does.
          RunError: if the run folder was deleted or replaced; the message says where
            the state is saved instead.
        """
        if self._manager is None:
            return
        if not self._holds_folder():
            self._save_elsewhere(step, state, metrics)
        self._replace_missing()
        if step in self._manager.all_steps():
            if metrics is not None:
                self._add_metrics(step, _headline(metrics))
            return
        state = jax.device_get(state)
        variables = by_path(state.variables)
        rest = by_path(state.replace(variables={}))
        with _writing_to(self._manager.directory):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    variables=ocp.args.StandardSave(_with_checksum(variables)),
                    rest=ocp.args.StandardSave(_with_checksum(rest)),
                ),
                metrics=_headline(metrics),
            )

    @contextlib.contextmanager
    def saving_on_error(self, step: int, state: TrainState) -> Iterator[None]:
        """Saves the state, if it is not, before an exception leaves the block."""
        try:
            yield
        except BaseException:
            self.save(step, state)
            raise

    def is_evaluated(self, step: int) -> bool:
        """Returns whether a step was saved with metrics, or got them later."""
        metrics = self._manager and self._manager.metrics(step)
        return parallel.from_first(bool(metrics))

    def check(self) -> None:
        """Checks, without waiting, that what was written in the background is there.

        Raises:
          CheckpointError: if not, for example because the disk is full; what was
            saved before is still there.
        """
        if self._manager is None or not self._holds_folder():
            return  # `save` will say so, and save the state elsewhere
        if not self._manager.is_saving_in_progress():
            with _writing_to(self._manager.directory):
                self._manager.wait_until_finished()

    def restore(
        self, template: TrainState, step: int | Literal["best"] | None = None
    ) -> TrainState:
        """Returns the state of a step as NumPy arrays.

        Args:
          template: a state of the same run, or its shapes (`jax.eval_shape`).
          step: one of those saved, "best", or None: the newest that is not damaged;
            newer ones that are damaged get other names, and a warning.

        Raises:
          RunError: if there is no such checkpoint, or it is of another model, naming
            the first parameters that differ.
          CheckpointError: if it is damaged; with None, if all of them are.
        """
        if self._manager is None:
            state = None
        elif step is None:
            state = self._restore_newest(template)
        else:
            state = self._restore(_find_step(self._manager, step), template)
        return parallel.from_first(state)

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint, if there is one."""
        return parallel.from_first(self._manager and self._manager.latest_step())

    def close(self) -> None:
        """Waits until everything is written.

        Raises:
          CheckpointError: as `check` does, also if the run folder is gone.
        """
        if self._manager is None:
            return
        if self._saved_elsewhere:
            with contextlib.suppress(Exception):  # `save` has said what is wrong
                self._manager.close()
            return
        with _writing_to(self._manager.directory):
            self._manager.close()
        if not self._holds_folder():
            raise CheckpointError(f"{self._lock.workdir} was deleted, with all in it")

    def _holds_folder(self) -> bool:
        return self._lock is None or self._lock.holds_folder()

    def _save_elsewhere(
        self, step: int, state: TrainState, metrics: dict[str, float] | None
    ) -> NoReturn:
        """Saves a state, and what else the run needs, in a new folder."""
        gone, self._saved_elsewhere = self._lock.workdir, True
        for number in itertools.count(1):
            workdir = gone.with_name(f"{gone.name}-rescued-{number}")
            if not workdir.exists():
                break
        message = f"{gone} was deleted or replaced during the run; step {step} "
        try:
            workdir.mkdir(parents=True)
            (workdir / self._description.name).write_bytes(self._content or b"")
            checkpoints = Checkpoints(workdir, self._keep)
            checkpoints.save(step, state, metrics)
            checkpoints.close()
        except (OSError, CheckpointError) as error:
            message += f"is lost, since it cannot be saved in {workdir}: {error}"
            raise RunError(message) from error
        raise RunError(message + f"is saved in {workdir}, where the run can go on")

    def _replace_missing(self) -> None:
        """Writes again what was deleted or replaced, and forgets lost checkpoints."""
        file, content = self._description, self._content
        if content and not (file.exists() and file.read_bytes() == content):
            _LOG.warning("%s has changed during the run; it is written again", file)
            write_atomically(file, lambda stream: stream.write(content))
        folder = pathlib.Path(self._manager.directory)
        folder.mkdir(exist_ok=True)
        steps = set(self._manager.all_steps()) - set(saved_steps(folder))
        if steps and not self._manager.is_saving_in_progress():
            _LOG.warning("%s: %s were deleted during the run", folder, sorted(steps))
            self._manager.reload()

    def _add_metrics(self, step: int, headline: dict[str, float]) -> None:
        with _writing_to(self._manager.directory):
            self._manager.wait_until_finished()
            file = _metrics_file(pathlib.Path(self._manager.directory), step)
            file.parent.mkdir(exist_ok=True)
            write_json(file, headline, indent=2)
            self._manager.reload()
            # Orbax decides what to keep only when it saves.
            older = sorted(self._manager.all_steps())[: -self._keep]
            for old in set(older) - {self._manager.best_step()}:
                self._manager.delete(old)

    def _restore(self, step: int, template: TrainState) -> TrainState:
        variables = _restore_item(self._manager, step, "variables", template.variables)
        rest = template.replace(variables={})
        rest = _restore_item(self._manager, step, "rest", rest)
        return rest.replace(variables=variables)

    def _restore_newest(self, template: TrainState) -> TrainState:
        _find_step(self._manager, "latest")  # raises where there is none
        damaged = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self._restore(step, template)
            except CheckpointError as error:
                damaged[step] = error
            else:
                self._rename_damaged(damaged)
                return state
        raise CheckpointError(
            "all checkpoints are damaged; to start anew, move them away:\n  "
            + "\n  ".join(map(str, damaged.values()))
        )

    def _rename_damaged(self, damaged: dict[int, CheckpointError]) -> None:
        """Renames checkpoints so that their steps can be saved again."""
        for step, error in damaged.items():
            folder = self._manager.directory / str(step)
            renamed = folder.with_name(f"damaged_{step}")
            shutil.rmtree(renamed, ignore_errors=True)
            folder.rename(renamed)
            _LOG.warning("going back to an older one: %s; see %s", error, renamed)
        if damaged:
            self._manager.reload()


def load_variables(
    workdir: str | os.PathLike,
    template: dict[str, Any],
    *,
    step: int | Literal["best", "latest"] = "best",
) -> dict[str, Any]:
    """Returns the variables of a finished or running training, as NumPy arrays.

    Args:
      workdir: the run folder.
      template: `jax.eval_shape(detector.init, key, batch)`, or variables.
      step: one of those saved; "best" is the newest where none was evaluated.

    Raises:
      RunError: as `Checkpoints.restore`.
      CheckpointError: as `Checkpoints.restore`.
    """
    folder = checkpoint_folder(workdir)
    if not folder.is_dir():
        raise RunError(f"no checkpoints in {folder}")
    with contextlib.closing(_open_manager(folder, None)) as manager:
        step = _find_step(manager, step)
        return _restore_item(manager, step, "variables", template)


@contextlib.contextmanager
def _writing_to(folder: pathlib.Path) -> Iterator[None]:
    """Turns what goes wrong while writing into a `CheckpointError`."""
    try:
        yield
    except (OSError, ValueError) as error:  # TensorStore's are ValueErrors
        raise CheckpointError(
            f"a checkpoint could not be written, there are {saved_steps(folder)} in "
            f"{folder}: {error}"
        ) from error


def _headline(metrics: dict[str, float] | None) -> dict[str, float]:
    """Returns the first number, which decides what is best; {} without evaluation."""
    if metrics is None:
        return {}
    name, quality = next(iter(metrics.items()), ("", math.nan))
    # What cannot be measured, as AP without objects, is evaluated, but never the best.
    return {name: -math.inf if math.isnan(quality) else float(quality)}


def _metrics_file(folder: pathlib.Path, step: int) -> pathlib.Path:
    return folder / str(step) / "metrics" / "metrics"


def _remove_damaged_metrics(folder: pathlib.Path) -> None:
    """Removes them, since Orbax could not open the folder with them."""
    for step in saved_steps(folder):
        file = _metrics_file(folder, step)
        try:
            json.loads(file.read_text())
        except FileNotFoundError:
            continue
        except ValueError as error:
            _LOG.warning("%s is damaged and will be removed: %s", file, error)
            file.unlink()


def _open_manager(folder: pathlib.Path, keep: int | None) -> ocp.CheckpointManager:
    _remove_damaged_metrics(folder)

    def quality(metrics):
        return max(metrics.values(), default=-math.inf)  # there is one or none

    best = BestN(get_metric_fn=quality, n=1, keep_checkpoints_without_metrics=False)
    # Every host has the whole state, so none waits for the others.
    host = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=host, active_processes={host}, barrier_sync_key_prefix=f"{host}"
    )
    options = ocp.CheckpointManagerOptions(
        create=False,
        multiprocessing_options=alone,
        best_fn=quality,
        preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
    )
    return ocp.CheckpointManager(folder, options=options)


def _find_step(
    manager: ocp.CheckpointManager, step: int | Literal["best", "latest"]
) -> int:
    manager.wait_until_finished()
    steps = sorted(manager.all_steps())
    named = {"best": manager.best_step(), "latest": manager.latest_step()}
    number = named.get(step, step)
    if number not in steps:
        where = manager.directory
        raise RunError(f"no checkpoint {step!r} in {where}; there are {steps}")
    return number


def _restore_item(
    manager: ocp.CheckpointManager, step: int, item: str, template: Any
) -> Any:
    """Reads one item of a checkpoint, in the structure of the template."""
    folder = manager.directory / str(step)
    arguments = ocp.args.Composite(**{item: ocp.args.StandardRestore()})
    try:
        saved = manager.restore(step, args=arguments)[item]
    except Exception as error:  # whatever Orbax, TensorStore or JSON stumble over
        raise CheckpointError(f"{folder} cannot be read: {error}") from error
    if saved.pop(CHECKSUM, None) != checksum(saved):
        raise CheckpointError(f"{folder} is damaged: {item} are not what was saved")
    expected = by_path(template)
    shapes = {
        name: (format_shape(saved, name), format_shape(expected, name))
        for name in sorted(saved.keys() | expected.keys())
    }
    different = [
        f"{name}: {before} saved, {now} expected"
        for name, (before, now) in shapes.items()
        if before != now
    ]
    if different:
        raise RunError(
            f"{folder} is of another model; {len(different)} arrays differ:\n  "
            + "\n  ".join(different[:5])
        )
    leaves = [saved[name] for name in expected]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _with_checksum(arrays: dict[str, Any]) -> dict[str, Any]:
    return {**arrays, CHECKSUM: np.array(checksum(arrays), np.uint32)}


_LOG = logging.getLogger(__name__)
