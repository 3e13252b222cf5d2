"""The run folder: `config.json` and `checkpoints/`; a kill while writing harms none."""

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import math
import os
import pathlib
import platform
import shutil
import zlib
from collections.abc import Iterator
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    LatestN,
)

from jaxdet import parallel
from jaxdet.config import Size, checked_dataclass, from_json
from jaxdet.data.dataset import DataSet
from jaxdet.detectors.detector import Detector
from jaxdet.training.config import FREE_FIELDS, TrainingConfig
from jaxdet.training.step import TrainState

LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
CHECKSUM = "checksum"  # among the arrays that it is of


class RunError(ValueError):
    """A run folder does not fit what is asked of it; the message names both."""


class CheckpointError(ValueError):
    """A checkpoint could not be written, or is not what was written."""


@checked_dataclass
class Run:
    """What a run folder says about itself."""

    recipe: Any  # of the detector, for `serialization.deserialize`; None: it has none
    training: TrainingConfig
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    data_set: str
    images: Size  # in the training set
    versions: dict


def save_run(
    workdir: str | os.PathLike,
    detector: Detector,
    data_set: DataSet,
    config: TrainingConfig,
) -> None:
    """Writes `config.json`: recipe, training config, data set and versions of a run.

    Args:
      workdir: the run folder, made where needed.
      detector: its recipe is kept.
      data_set: its name, classes and number of images are kept.
      config: all fields are kept.

    Raises:
      RunError: if the folder holds checkpoints of a run with another detector, other
        data, or another training config (except `FREE_FIELDS`); the message names every
        such field and both values.
    """
    file = pathlib.Path(workdir) / "config.json"
    now = _description(detector, data_set, config)
    if _steps_in(_checkpoint_folder(workdir)):
        _require_same(_read_json(file), now, file.parent)
    file.parent.mkdir(parents=True, exist_ok=True)
    _write_json(file, now)


def identity(
    detector: Detector, data_set: DataSet, config: TrainingConfig
) -> dict[str, Any]:
    """What `config.json` holds, by name, but for what each host may choose itself.

    Args:
      detector: its recipe counts.
      data_set: its name, classes and number of images count.
      config: all of it but `input.workers` and `input.prefetch`.
    """
    fields = _fields(_description(detector, data_set, config))
    return {
        name: value
        for name, value in fields.items()
        if name.removeprefix("training/") not in ("input/workers", "input/prefetch")
    }


def digest(arrays: Any) -> str:
    """Of the names, shapes, types and values of all arrays in a tree."""
    return f"{_checksum(_names(jax.device_get(arrays))):08x}"


def _description(detector: Detector, data_set: DataSet, config: TrainingConfig) -> dict:
    now = {
        "recipe": detector.recipe,
        "training": dataclasses.asdict(config),
        "class_names": data_set.class_names,
        "category_ids": data_set.category_ids,
        "data_set": data_set.name,
        "images": len(data_set),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES}
        | {"python": platform.python_version()},
    }
    return json.loads(json.dumps(now))  # tuples become lists, as they will be on disk


def load_run(workdir: str | os.PathLike) -> Run:
    """Reads `config.json`.

    Raises:
      RunError: if the folder holds no run, or one of a jaxdet with other fields.
    """
    values = _read_json(pathlib.Path(workdir) / "config.json")
    try:
        recipe = values.pop("recipe", None)  # its lists stay lists
        run = from_json(Run, values | {"recipe": None})
        return dataclasses.replace(run, recipe=recipe)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{workdir}/config.json: {error}") from error


class Checkpoints:
    """The train states of one run: the newest, and the best by its metrics.

    States are saved as NumPy arrays in flat dicts, so they can be restored on any
    number and kind of devices, with checksums, since Orbax notices a file cut short,
    but not a flipped bit. A checkpoint gets its name only when it is complete; one that
    a kill left half-written is not seen, and removed when `Checkpoints` opens.

    Of several hosts only the first reads and writes. All of them make the same calls,
    and are told what it has read, so they need no folder that they share.
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
        folder = _checkpoint_folder(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        for half_written in folder.glob("*.orbax-checkpoint-tmp"):
            shutil.rmtree(half_written)
        self._manager = _manager(folder, keep)

    def save(
        self, step: int, state: TrainState, metrics: dict[str, float] | None = None
    ) -> None:
        """Copies the state to the host, then writes it in the background.

        Args:
          step: `state.step`; if it is saved, only its metrics are added, once all of
            it is written.
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
        variables, rest = _names(state.variables), _names(_without_variables(state))
        with _failures_to_write(self._manager.directory):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    variables=ocp.args.StandardSave(_with_checksum(variables)),
                    rest=ocp.args.StandardSave(_with_checksum(rest)),
                ),
                metrics=_headline(metrics),
            )

    def is_evaluated(self, step: int) -> bool:
        """Whether a step was saved with metrics, or got them later."""
        metrics = self._manager and self._manager.metrics(step)
        return parallel.from_first(bool(metrics))

    def check(self) -> None:
        """Looks, without waiting, whether what was written in the background is.

        Raises:
          CheckpointError: if not, for example because the disk is full; what was
            saved before is still there.
        """
        if self._manager is not None and not self._manager.is_saving_in_progress():
            with _failures_to_write(self._manager.directory):
                self._manager.wait_until_finished()

    def restore(
        self, template: TrainState, step: int | Literal["best"] | None = None
    ) -> TrainState:
        """The state of a step as NumPy arrays; None: the newest that is not damaged.

        Args:
          template: a state of the same run, or its shapes (`jax.eval_shape`).
          step: one of those saved, "best" or None. With None, newer ones that are
            damaged get other names, and a warning.

        Raises:
          RunError: if there is no such checkpoint, or it is of another model, naming
            the first parameters that differ.
          CheckpointError: if it is damaged; with None, if all of them are.
        """
        if self._manager is None:
            state = None
        elif step is None:
            state = self._newest(template)
        else:
            state = self._at(_find_step(self._manager, step), template)
        return parallel.from_first(state)

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, if there is one."""
        return parallel.from_first(self._manager and self._manager.latest_step())

    def close(self) -> None:
        """Waits until everything is written.

        Raises:
          CheckpointError: as `check` does.
        """
        if self._manager is not None:
            with _failures_to_write(self._manager.directory):
                self._manager.close()

    def _add_metrics(self, step: int, headline: dict[str, float]) -> None:
        with _failures_to_write(self._manager.directory):
            self._manager.wait_until_finished()
            file = self._manager.directory / str(step) / "metrics" / "metrics"
            file.parent.mkdir(exist_ok=True)
            _write_json(pathlib.Path(file), headline)
            self._manager.reload()
            # Orbax asks what to keep only when it saves.
            older = sorted(self._manager.all_steps())[: -self._keep]
            for old in set(older) - {self._manager.best_step()}:
                self._manager.delete(old)

    def _at(self, step: int, template: TrainState) -> TrainState:
        variables = _restore(self._manager, step, "variables", template.variables)
        rest = _restore(self._manager, step, "rest", _without_variables(template))
        return rest.replace(variables=variables)

    def _newest(self, template: TrainState) -> TrainState:
        _find_step(self._manager, "latest")  # raises where there is none
        damaged = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self._at(step, template)
            except CheckpointError as error:
                damaged[step] = error
            else:
                self._set_aside(damaged)
                return state
        raise CheckpointError(
            "no checkpoint is whole; to start anew, move them away:\n  "
            + "\n  ".join(map(str, damaged.values()))
        )

    def _set_aside(self, damaged: dict[int, CheckpointError]) -> None:
        """Renames what cannot be read, so that these steps can be saved again."""
        for step, error in damaged.items():
            there = self._manager.directory / str(step)
            aside = there.with_name(f"damaged_{step}")
            shutil.rmtree(aside, ignore_errors=True)
            there.rename(aside)
            _LOG.warning("going back to an older checkpoint: %s; see %s", error, aside)
        if damaged:
            self._manager.reload()


def load_variables(
    workdir: str | os.PathLike,
    template: dict[str, Any],
    *,
    step: int | Literal["best", "latest"] = "best",
) -> dict[str, Any]:
    """The variables of a finished or running training, as NumPy arrays.

    Args:
      workdir: the run folder.
      template: `jax.eval_shape(detector.init, key, batch)`, or variables.
      step: one of those saved; "best" is the newest where none was evaluated.

    Raises:
      RunError: as `Checkpoints.restore`.
      CheckpointError: as `Checkpoints.restore`.
    """
    folder = _checkpoint_folder(workdir)
    if not folder.is_dir():
        raise RunError(f"no checkpoints in {folder}")
    manager = _manager(folder, None)
    try:
        step = _find_step(manager, step)
        return _restore(manager, step, "variables", template)
    finally:
        manager.close()


def _checkpoint_folder(workdir: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(workdir).absolute() / "checkpoints"


def _steps_in(folder: pathlib.Path) -> list[int]:
    """Of the checkpoints that are complete."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


@contextlib.contextmanager
def _failures_to_write(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # TensorStore's are ValueErrors
        raise CheckpointError(
            f"a checkpoint could not be written, there are {_steps_in(folder)} in "
            f"{folder}: {error}"
        ) from error


def _headline(metrics: dict[str, float] | None) -> dict[str, float]:
    """The first number, which says what is best; nothing if there was no evaluation."""
    if metrics is None:
        return {}
    name, quality = next(iter(metrics.items()), ("", math.nan))
    # What cannot be measured, as AP without objects, is evaluated, but never the best.
    return {name: -math.inf if math.isnan(quality) else float(quality)}


def _drop_damaged_metrics(folder: pathlib.Path) -> None:
    """Orbax would open the folder no more; without metrics none is the best."""
    for step in _steps_in(folder):
        file = folder / str(step) / "metrics" / "metrics"
        try:
            json.loads(file.read_text())
        except FileNotFoundError:
            continue
        except ValueError as error:
            _LOG.warning("%s is damaged and will be removed: %s", file, error)
            file.unlink()


def _manager(folder: pathlib.Path, keep: int | None) -> ocp.CheckpointManager:
    _drop_damaged_metrics(folder)

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
    there = sorted(manager.all_steps())
    named = {"best": manager.best_step(), "latest": manager.latest_step()}
    found = named.get(step, step)
    if found not in there:
        where = manager.directory
        raise RunError(f"no checkpoint {step!r} in {where}; there are {there}")
    return found


def _restore(
    manager: ocp.CheckpointManager, step: int, item: str, template: Any
) -> Any:
    """One item of a checkpoint, in the structure of the template."""
    arguments = ocp.args.Composite(**{item: ocp.args.StandardRestore()})
    try:
        saved = manager.restore(step, args=arguments)[item]
    except Exception as error:  # whatever Orbax, TensorStore or JSON stumble over
        there = manager.directory / str(step)
        raise CheckpointError(f"{there} cannot be read: {error}") from error
    then = saved.pop(CHECKSUM, None)  # None: of a run before there were any
    if then is not None and then != _checksum(saved):
        there = manager.directory / str(step)
        raise CheckpointError(f"{there} is damaged: {item} are not what was saved")
    expected = _names(template)
    different = [
        f"{name}: {_shape(saved, name)} saved, {_shape(expected, name)} expected"
        for name in sorted(saved.keys() | expected.keys())
        if _shape(saved, name) != _shape(expected, name)
    ]
    if different:
        raise RunError(
            f"{manager.directory}/{step} is of another model; {len(different)} arrays "
            "differ:\n  " + "\n  ".join(different[:5])
        )
    leaves = [saved[name] for name in expected]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _shape(arrays: dict[str, Any], name: str) -> str:
    if name not in arrays:
        return "absent"
    return f"{arrays[name].dtype}{list(arrays[name].shape)}"


def _names(tree: Any) -> dict[str, Any]:
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


def _without_variables(state: TrainState) -> TrainState:
    return state.replace(variables={})


def _read_json(file: pathlib.Path) -> dict:
    try:
        values = json.loads(file.read_text())
    except FileNotFoundError:
        raise RunError(f"{file.parent} holds no run: no {file.name}") from None
    except RecursionError:
        raise RunError(f"{file} is nested too deep for a run") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{file} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise RunError(f"{file} is no run; it must hold a JSON object")
    return values


def _write_json(file: pathlib.Path, values: dict) -> None:
    half_written = file.with_suffix(".tmp")
    half_written.write_text(json.dumps(values, indent=2) + "\n")
    half_written.replace(file)


def _require_same(then: dict, now: dict, workdir: pathlib.Path) -> None:
    before, after = _fields(then), _fields(now)
    different = [
        f"{name}: {before.get(name, 'absent')!r} in the run, "
        f"{after.get(name, 'absent')!r} now"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
        and not name.startswith("versions/")
        and name.removeprefix("training/") not in FREE_FIELDS
    ]
    if different:
        raise RunError(
            f"{workdir} holds another run; choose another folder, or the same values:"
            "\n  " + "\n  ".join(different[:20])
        )


def _fields(values: dict, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, its keys joined by "/"; lists without dicts stay whole."""
    fields = {}
    for name, value in values.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = dict(enumerate(value))
        path = f"{prefix}{name}"
        inner = isinstance(value, dict)
        fields |= _fields(value, f"{path}/") if inner else {path: value}
    return fields


_LOG = logging.getLogger(__name__)
