"""Writes a trained detector as one file that jax alone can run, and reads it.

export.save("model.jaxdet", load_detector("runs/quickstart"))

detect = export.make_detect(export.load("model.jaxdet"))
(detections,) = detect([image])  # NumPy, [H, W, 3] uint8, any size

The file is NumPy's `.npz`: the weights, the program that `jax.export` makes of
`predict` for each canvas, and a json on images and classes. Weights are arguments of
the programs: as constants in them they would be written again for each canvas, and
compiled with them. Reading the file needs neither flax nor any detector.
"""

import itertools
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.export
import numpy as np

from jaxdet.config import tuples_from_lists
from jaxdet.data.dataset import DataError
from jaxdet.data.files import write_atomically
from jaxdet.data.selective_search import selective_search
from jaxdet.inference.preprocess import (
    ImageDetections,
    Propose,
    ResizeSpec,
    postprocess,
    preprocess,
)

if TYPE_CHECKING:  # it imports flax, which reading a file does not need
    from jaxdet.weights.published import TrainedDetector

PLATFORMS = ("cpu", "cuda", "tpu")
"""Each program runs on these."""

VERSION = 2
"""Of the format; older files must be exported again."""

_FORMAT = "jaxdet detector"
_ABOUT, _PROGRAM, _WEIGHT = "about", "programs/", "weights/"  # names in the file


class Artifact(NamedTuple):
    """An exported detector."""

    detector: str  # the name of its builder, such as "retinanet"
    class_names: tuple[str, ...]  # of its labels
    category_ids: tuple[int, ...]  # of the classes in the data that it was trained on
    resize: ResizeSpec  # how images become arrays
    batch_size: int
    # From what `preprocess` makes of `batch_size` images of one canvas to the boxes,
    # scores, labels, valid and masks (or None) of `structs.Detections`.
    predict: Callable[[dict[str, Any]], tuple]


def save(
    file: str | os.PathLike,
    trained: "TrainedDetector",
    *,
    canvases: Sequence[tuple[int, int]] | None = None,
    batch_size: int = 1,
) -> None:
    """Writes `predict`, thresholds and NMS included, for all of `PLATFORMS`.

    Args:
      file: its path; it gets its name only when it is complete.
      trained: the `TrainedDetector`.
      canvases: (height, width) of each; an image goes to the one of nearest aspect
        ratio. None: those that the detector was trained with.
      batch_size: images that the programs take at a time.

    Raises:
      DataError: if there is no canvas or the batch size is less than 1.
    """
    from flax.traverse_util import flatten_dict

    from jaxdet.evaluation.evaluate import label_names

    resize = ResizeSpec.of_input(trained.input)
    if canvases is not None:
        resize = resize._replace(canvases=tuple(canvases))
    if not resize.canvases or np.min(resize.canvases) < 1:
        allowed = "one or more (height, width), both at least 1"
        raise DataError(f"canvases is {resize.canvases}; it must be {allowed}")
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; it must be at least 1")
    detector = trained.detector
    weights = flatten_dict(jax.device_get(trained.variables), sep="/")
    about = {
        "format": _FORMAT,
        "version": VERSION,
        "detector": (detector.recipe or {}).get("call", "").rpartition(":")[-1],
        "class_names": label_names(detector, trained.class_names),
        "category_ids": trained.category_ids,
        "resize": resize._asdict(),
        "batch_size": batch_size,
    }
    predict = jax.jit(partial(_predict, detector.predict))
    program = jax.export.export(predict, platforms=PLATFORMS)
    members = {_ABOUT: _as_array(json.dumps(about).encode())}
    for canvas in resize.canvases:
        one = resize._replace(canvases=(canvas,), min_max_size=None)
        arrays = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype),
            preprocess(np.zeros((1, 1, 3), np.uint8), one),
        )
        members[_program_name(canvas)] = _as_array(program(weights, arrays).serialize())
    members |= {_WEIGHT + name: array for name, array in weights.items()}
    file = pathlib.Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, partial(np.savez, **members))


def _predict(predict: Callable, weights: dict, arrays: dict) -> tuple:
    """Calls a detector's `predict` with flat weights and without flax structs."""
    from flax.traverse_util import unflatten_dict

    from jaxdet.structs import Batch, Regions

    regions = Regions(**arrays["regions"]) if "regions" in arrays else None
    image_ids = np.zeros(len(arrays["images"]), np.int32)  # only training asks for them
    batch = Batch(**arrays | {"regions": regions}, image_ids=image_ids)
    found = predict(unflatten_dict(weights, sep="/"), batch)
    return found.boxes, found.scores, found.labels, found.valid, found.masks


def load(file: str | os.PathLike) -> Artifact:
    """Reads what `save` wrote; programs are compiled when they are first called.

    Raises:
      DataError: if the file cannot be read, is another one, is of another version,
        lacks a member or holds a damaged one, or has no program for this machine's
        accelerator.
    """
    members = _read(file)
    about = _about(file, members)
    programs = {
        canvas: _deserialized(file, members, _program_name(canvas))
        for canvas in about["resize"].canvases
    }
    # Every program takes the same weights, and has to fit them.
    weights = [_weights(file, members, program) for program in programs.values()]
    weights = jax.device_put(weights[0])
    programs = {canvas: jax.jit(program.call) for canvas, program in programs.items()}

    def predict(arrays: dict[str, Any]) -> tuple:
        return programs[arrays["images"].shape[1:3]](weights, arrays)

    return Artifact(**about, predict=predict)


def make_detect(
    artifact: Artifact, *, min_score: float = 0.0, propose: Propose | None = None
) -> Callable[[Sequence[np.ndarray]], list[ImageDetections]]:
    """Returns a function that detects objects in images of any size.

    Args:
      artifact: from `load`.
      min_score: detections that score lower are discarded.
      propose: from an image to its proposals, for a detector that takes some; None:
        selective search.

    Returns:
      `[H, W, 3]` uint8 RGB images, however many -> `ImageDetections` of each. Images of
      one canvas share batches, the last of which is filled up.
    """
    resize, batch_size = artifact.resize, artifact.batch_size
    if propose is None:
        propose = partial(selective_search, max_proposals=resize.max_regions)

    def detect(images: Sequence[np.ndarray]) -> list[ImageDetections]:
        resized = [preprocess(image, resize, propose) for image in images]
        detections = {}
        for group in _groups(resized, batch_size):
            filled = group + group[:1] * (batch_size - len(group))
            arrays = jax.tree.map(
                lambda *parts: np.concatenate(parts), *(resized[i] for i in filled)
            )
            found = jax.device_get(artifact.predict(arrays))
            for slot, i in enumerate(group):
                detections[i] = postprocess(
                    jax.tree.map(itemgetter(slot), found),
                    np.shape(images[i])[:2],
                    resized[i]["scales"][0],
                    class_names=artifact.class_names,
                    min_score=min_score,
                )
        return [detections[i] for i in range(len(images))]

    return detect


def _groups(resized: list[dict[str, Any]], batch_size: int) -> Iterator[list[int]]:
    """Yields the indices of at most `batch_size` images of one canvas at a time."""

    def canvas(i: int) -> tuple[int, ...]:
        return resized[i]["images"].shape

    for _, same in itertools.groupby(sorted(range(len(resized)), key=canvas), canvas):
        same = list(same)
        for start in range(0, len(same), batch_size):
            yield same[start : start + batch_size]


def _read(file: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns all arrays of the file by name."""
    if not zipfile.is_zipfile(file):
        raise DataError(f"{file}: no exported detector, or no file at all")
    name, members = "its table of contents", {}
    try:
        with np.load(file) as stored:
            for name in stored:
                members[name] = stored[name]
    except Exception as error:  # of the file system, zip, NumPy
        raise DataError(
            f"{file}: cannot read {name} ({error!r}); the file is damaged: copy it "
            "again, or export it again"
        ) from error
    return members


def _about(file: str | os.PathLike, members: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the fields of an `Artifact` that are written in the file."""
    try:
        about = json.loads(members[_ABOUT].tobytes())
        kind, version = about["format"], about["version"]
    except Exception as error:  # of json, or because keys are missing
        raise DataError(
            f"{file}: no exported detector (its member {_ABOUT!r} is missing or "
            f"damaged: {error!r})"
        ) from error
    if kind != _FORMAT or version != VERSION:
        raise DataError(
            f"{file}: {kind!r}, version {version}; this jaxdet reads {_FORMAT!r}, "
            f"version {VERSION}: export it again"
        )
    try:
        if not about["resize"]["canvases"]:
            raise ValueError("it has no canvas")
        return {
            "detector": about["detector"],
            "class_names": tuple(about["class_names"]),
            "category_ids": tuple(about["category_ids"]),
            "resize": ResizeSpec(
                **{k: tuples_from_lists(v) for k, v in about["resize"].items()}
            ),
            "batch_size": about["batch_size"],
        }
    except Exception as error:  # KeyError, TypeError and others
        raise DataError(
            f"{file}: its member {_ABOUT!r} is damaged ({error!r}); export it again"
        ) from error


def _member(
    file: str | os.PathLike, members: dict[str, np.ndarray], name: str
) -> np.ndarray:
    if name not in members:
        raise DataError(f"{file}: its member {name!r} is missing; export it again")
    return members[name]


def _weights(
    file: str | os.PathLike,
    members: dict[str, np.ndarray],
    program: jax.export.Exported,
) -> dict[str, np.ndarray]:
    """Returns the weights that a program takes, by its names for them."""
    (expected, _), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    weights = {name: _member(file, members, _WEIGHT + name) for name in expected}
    for name, array in weights.items():
        given, wanted = (f"{x.dtype}{list(x.shape)}" for x in (array, expected[name]))
        if given != wanted:
            raise DataError(
                f"{file}: its member {_WEIGHT + name!r} is {given}, its programs take "
                f"{wanted}; export it again"
            )
    return weights


def _deserialized(
    file: str | os.PathLike, members: dict[str, np.ndarray], name: str
) -> jax.export.Exported:
    program = _member(file, members, name)
    try:
        exported = jax.export.deserialize(bytearray(program))
    except Exception as error:  # of jax, for a program of another version
        raise DataError(
            f"{file}: jax {jax.__version__} cannot read its member {name!r} "
            f"({error!r}); export it again"
        ) from error
    platform = jax.export.default_export_platform()
    if platform not in exported.platforms:
        raise DataError(
            f"{file}: made for {', '.join(exported.platforms)}; here it is {platform}"
        )
    return exported


def _program_name(canvas: tuple[int, int]) -> str:
    return f"{_PROGRAM}{canvas[0]}x{canvas[1]}"


def _as_array(encoded: bytes) -> np.ndarray:
    return np.frombuffer(encoded, np.uint8)
