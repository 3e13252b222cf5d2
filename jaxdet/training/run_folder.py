"""The run folder's `config.json`: detector, training config, data set, first weights.

Beside it lie `checkpoints/`, `min_scores.json` (of `evaluate --report`), `log.txt`,
`pictures/`, `profile/` and TensorBoard's event files.
"""

import dataclasses
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
from typing import Any

from jaxdet.config import Size, checked_dataclass, from_json
from jaxdet.data.dataset import DataSet, digests
from jaxdet.data.files import write_json
from jaxdet.detectors.detector import Detector
from jaxdet.training.config import CHANGEABLE_ON_RESUME, TrainingConfig
from jaxdet.weights.transfer import Transfer

LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
FORMAT = 2  # of `config.json`; folders of any other are refused
OF_DATA = ("data_set", "images", "class_names", "category_ids", "data_digests")
HOSTS_MAY_DIFFER = ("training/input/workers", "training/input/prefetch")


class RunError(ValueError):
    """A run folder does not fit what is asked of it; the message names both."""


@checked_dataclass
class Run:
    """The content of a run folder's `config.json`."""

    recipe: Any  # of the detector, for `serialization.deserialize`; None: it has none
    training: TrainingConfig  # all of it
    class_names: tuple[str, ...]  # of the data set
    category_ids: tuple[int, ...]  # in its source, of each class
    data_set: str  # its name
    images: Size  # in the training set
    versions: dict  # of Python and the libraries, by name
    # Of the training set, as of `dataset.digests`; older folders have none.
    data_digests: dict = dataclasses.field(default_factory=dict)
    weights: Transfer | None = None  # what it started from; None: random numbers


def save_run(
    workdir: str | os.PathLike,
    detector: Detector,
    data_set: DataSet,
    config: TrainingConfig,
    weights: Transfer | None = None,
    accept_changed_data: bool = False,
) -> Transfer | None:
    """Writes `config.json`, all that tells one run from another.

    Args:
      workdir: the run folder, made where needed.
      detector: its recipe is kept.
      data_set: its name, classes, number of images and digests are kept.
      config: all fields are kept.
      weights: what it starts from; None: random numbers, or, if the folder holds
        checkpoints, what it started from.
      accept_changed_data: whether a run with checkpoints may go on with other data.

    Returns:
      What the run starts from, or has started from.

    Raises:
      RunError: if the folder holds checkpoints of a run with another detector, other
        data, other weights, or another training config (except
        `CHANGEABLE_ON_RESUME`); the message names every such field and both values.
    """
    file = pathlib.Path(workdir) / "config.json"
    now = _description(detector, data_set, config)
    now["weights"] = weights and json.loads(json.dumps(dataclasses.asdict(weights)))
    if saved_steps(checkpoint_folder(workdir)):
        then = _read_description(file)
        if weights is None or "weights" not in then:  # older runs do not tell
            now["weights"] = then.get("weights")
        _require_same(then, now, file.parent, accept_changed_data)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, now, indent=2)
    return load_run(workdir).weights


def load_run(workdir: str | os.PathLike) -> Run:
    """Reads `config.json`.

    Raises:
      RunError: if the folder holds no run, or one of a jaxdet with other fields.
    """
    file = pathlib.Path(workdir) / "config.json"
    values = _read_description(file)
    try:
        recipe = values.pop("recipe", None)  # its lists stay lists
        run = from_json(Run, values | {"recipe": None})
        return dataclasses.replace(run, recipe=recipe)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise RunError(f"{file}: {error}") from error


def resumed_weights(workdir: str | os.PathLike) -> Transfer | None:
    """Returns what a run with checkpoints started from; None: there is no such run.

    Raises:
      RunError: as `load_run`.
    """
    if not saved_steps(checkpoint_folder(workdir)):
        return None
    return load_run(workdir).weights


def identity(
    detector: Detector, data_set: DataSet, config: TrainingConfig
) -> dict[str, Any]:
    """Returns what `config.json` holds, by name, without what hosts choose themselves.

    Args:
      detector: its recipe counts.
      data_set: its name, classes, number of images and digests count.
      config: all of it but `input.workers` and `input.prefetch`.
    """
    fields = _flatten(_description(detector, data_set, config))
    return {name: x for name, x in fields.items() if name not in HOSTS_MAY_DIFFER}


def save_min_score(
    workdir: str | os.PathLike, step: int | str, best: dict[str, Any], views: str = ""
) -> None:
    """Stores the minimum score that is best for a checkpoint, in `min_scores.json`.

    Args:
      workdir: the run folder.
      step: of the checkpoint, or "best" or "latest".
      best: its `min_score`, and what else tells about it.
      views: options of the further views of an image, as they are typed; several views
        of a detector have scores of another kind.
    """
    file = pathlib.Path(workdir) / "min_scores.json"
    stored, key = _read_min_scores(file), f"{step} {views}".strip()
    saved = saved_steps(checkpoint_folder(workdir))
    write_json(file, stored | {key: best | {"checkpoints": saved}}, indent=2)


def load_min_score(
    workdir: str | os.PathLike, step: int | str, views: str = ""
) -> float:
    """Returns the minimum score that is best for a checkpoint of a run.

    Args:
      workdir: as of `save_min_score`.
      step: as of `save_min_score`.
      views: as of `save_min_score`.

    Raises:
      RunError: none is stored, or there were other checkpoints when it was.
    """
    file = pathlib.Path(workdir) / "min_scores.json"
    stored = _read_min_scores(file).get(f"{step} {views}".strip())
    measure = f"python -m experiments.evaluate {workdir} --report FOLDER"
    if views:
        measure += f" {views}"
    if step != "best":
        measure += f" --step {step}"
    if stored is None:
        raise RunError(
            f"{workdir} does not know the best minimum score of its checkpoint "
            f"{step!r}; measure it: {measure}"
        )
    if stored["checkpoints"] != saved_steps(checkpoint_folder(workdir)):
        raise RunError(
            f"{workdir} has trained on since its best minimum score was measured; "
            f"measure it again: {measure}"
        )
    return stored["min_score"]


def checkpoint_folder(workdir: str | os.PathLike) -> pathlib.Path:
    """Returns the absolute path of the checkpoints of a run folder."""
    return pathlib.Path(workdir).absolute() / "checkpoints"


def saved_steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps of the complete checkpoints in a folder, ascending."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def _read_min_scores(file: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunError(f"{file} is no JSON: {error}; delete it") from error


def _description(detector: Detector, data_set: DataSet, config: TrainingConfig) -> dict:
    now = {
        "format": FORMAT,
        "recipe": detector.recipe,
        "training": dataclasses.asdict(config),
        "class_names": data_set.class_names,
        "category_ids": data_set.category_ids,
        "data_set": data_set.name,
        "images": len(data_set),
        "data_digests": digests(data_set),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES}
        | {"python": platform.python_version()},
    }
    return json.loads(json.dumps(now))  # tuples become lists, as they will be on disk


def _read_description(file: pathlib.Path) -> dict:
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
    if (found := values.pop("format", None)) != FORMAT:
        raise RunError(
            f"{file} is of another version of jaxdet (format {found}, here {FORMAT}); "
            "use that version, or train again in another folder"
        )
    return values


def _require_same(
    then: dict, now: dict, workdir: pathlib.Path, accept_changed_data: bool
) -> None:
    if "data_digests" not in then:  # of a run that an older jaxdet began
        now = now | {"data_digests": {}}
    # Fields that the run's jaxdet did not have yet are as they are by default.
    defaults = json.loads(json.dumps(dataclasses.asdict(TrainingConfig())))
    before = _flatten({"training": defaults}) | _flatten(then | {"format": FORMAT})
    after = _flatten(now)
    different = {
        name: f"{name}: {before.get(name, 'absent')!r} in the run, "
        f"{after.get(name, 'absent')!r} now"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
        and not name.startswith("versions/")
        and name != "weights/source"  # a file may move
        and name.removeprefix("training/") not in CHANGEABLE_ON_RESUME
    }
    of_data = {name for name in different if name.split("/")[0] in OF_DATA}
    lines = "\n  ".join([*different.values()][:20])
    if accept_changed_data and of_data == different.keys():
        if different:
            _LOG.warning("%s goes on with other data:\n  %s", workdir, lines)
    elif different:
        allowed = "choose another folder, or the same values"
        if of_data == different.keys():
            allowed += ", or --accept-changed-data"
        raise RunError(f"{workdir} holds another run; {allowed}:\n  {lines}")


def _flatten(values: dict, prefix: str = "") -> dict[str, Any]:
    """Turns nested dicts into one, its keys joined by "/"; other lists stay whole."""
    fields = {}
    for name, value in values.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = dict(enumerate(value))
        path = f"{prefix}{name}"
        inner = isinstance(value, dict)
        fields |= _flatten(value, f"{path}/") if inner else {path: value}
    return fields


_LOG = logging.getLogger(__name__)
