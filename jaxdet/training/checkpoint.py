"""Saves and restores train states; a kill while one is written harms none of them."""

import contextlib
import json
import logging
import math
import os
import pathlib
import shutil
import zlib
from collections.abc import Iterator
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jaxdet import parallel
from jaxdet.data.files import write_json
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

    def __init__(self, workdir: str | os.PathLike, keep: int):
        """Opens `workdir/checkpoints`, making it where needed.

        Args:
          workdir: the run folder.
          keep: how many of the newest checkpoints stay.
        """
        self._manager, self._keep = None, keep
        if jax.process_index() > 0:
            return
        folder = checkpoint_folder(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        for half_written in folder.glob("*.orbax-checkpoint-tmp"):
            shutil.rmtree(half_written)
        self._manager = _open_manager(folder, keep)

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
        """
        if self._manager is None:
            return
        if step in self._manager.all_steps():
            if metrics is not None:
                self._add_metrics(step, _headline(metrics))
            return
        state = jax.device_get(state)
        variables = _by_path(state.variables)
        rest = _by_path(state.replace(variables={}))
        with _writing_to(self._manager.directory):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    variables=ocp.args.StandardSave(_with_checksum(variables)),
                    rest=ocp.args.StandardSave(_with_checksum(rest)),
                ),
                metrics=_headline(metrics),
            )

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
        if self._manager is not None and not self._manager.is_saving_in_progress():
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
          CheckpointError: as `check` does.
        """
        if self._manager is not None:
            with _writing_to(self._manager.directory):
                self._manager.close()

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


def digest(arrays: Any) -> str:
    """Returns a checksum of names, shapes, types and values of all arrays in a tree."""
    return f"{_checksum(_by_path(jax.device_get(arrays))):08x}"


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
    if saved.pop(CHECKSUM, None) != _checksum(saved):
        raise CheckpointError(f"{folder} is damaged: {item} are not what was saved")
    expected = _by_path(template)
    different = [
        f"{name}: {_shape(saved, name)} saved, {_shape(expected, name)} expected"
        for name in sorted(saved.keys() | expected.keys())
        if _shape(saved, name) != _shape(expected, name)
    ]
    if different:
        raise RunError(
            f"{folder} is of another model; {len(different)} arrays differ:\n  "
            + "\n  ".join(different[:5])
        )
    leaves = [saved[name] for name in expected]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _shape(arrays: dict[str, Any], name: str) -> str:
    if name not in arrays:
        return "absent"
    return f"{arrays[name].dtype}{list(arrays[name].shape)}"


def _by_path(tree: Any) -> dict[str, Any]:
    paths, _ = jax.tree.flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in paths
    }


def _with_checksum(arrays: dict[str, Any]) -> dict[str, Any]:
    return {**arrays, CHECKSUM: np.array(_checksum(arrays), np.uint32)}


def _checksum(arrays: dict[str, Any]) -> int:
    checksum = 0
    for name, array in sorted(arrays.items()):
        for part in (f"{name} {_shape(arrays, name)}".encode(), array.tobytes()):
            checksum = zlib.crc32(part, checksum)
    return checksum


_LOG = logging.getLogger(__name__)
