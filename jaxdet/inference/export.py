"""Writes a trained detector as one file that jax alone can run, and reads it.

export.save("model.jaxdet", load_detector("runs/quickstart"))

detect = export.make_detect(export.load("model.jaxdet"))
(detections,) = detect([image])  # NumPy, [H, W, 3] uint8, any size

The file is NumPy's `.npz`: the weights, the program that `jax.export` makes of
`predict` for each canvas, and a json on images and classes. Weights are arguments of
the programs: as constants in them they would be written again for each canvas, and
compiled with them. Reading the file needs neither flax nor any detector.
"""

import contextlib
import json
import logging
import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import jax
import jax.export
import numpy as np

from jaxdet.config import tuples_from_lists
from jaxdet.data.dataset import DataError
from jaxdet.data.files import write_atomically
from jaxdet.inference.preprocess import (
    ImageDetections,
    Propose,
    ResizeSpec,
    detect_images,
    preprocess,
)
from jaxdet.inference.tiles import TilesConfig, detect_in_tiles

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
    from flax.traverse_util import flatten_dict, unflatten_dict

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

    @jax.jit
    def predict(weights: dict, arrays: dict) -> tuple:
        variables = unflatten_dict(weights, sep="/")
        return predict_arrays(detector.predict, variables, arrays)

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


def predict_arrays(
    predict: Callable[..., Any], variables: Any, arrays: dict[str, Any]
) -> tuple:
    """Calls a detector's `predict` without structs, which need flax.

    Args:
      predict: of the `Detector`.
      variables: of it.
      arrays: what `preprocess` makes of images, batched.

    Returns:
      Boxes, scores, labels, valid and masks (or None), as of `structs.Detections`.
    """
    from jaxdet.structs import Batch, Regions

    regions = Regions(**arrays["regions"]) if "regions" in arrays else None
    image_ids = np.zeros(len(arrays["images"]), np.int32)  # only training asks for them
    batch = Batch(**arrays | {"regions": regions}, image_ids=image_ids)
    detections = predict(variables, batch)
    names = "boxes", "scores", "labels", "valid", "masks"
    return tuple(getattr(detections, name) for name in names)


def load(file: str | os.PathLike) -> Artifact:
    """Reads what `save` wrote; programs are compiled when they are first called.

    Raises:
      DataError: if the file cannot be read, is another one, is of another version,
        lacks a member or holds a damaged one, or has no program for this machine's
        accelerator.
    """
    members = _read(file)
    artifact = _read_about(file, members)
    programs, weights = {}, {}
    for canvas in artifact.resize.canvases:
        program = _read_program(file, members, _program_name(canvas))
        programs[canvas] = jax.jit(program.call)
        # Every program takes the same weights, and has to fit them.
        weights = _read_weights(file, members, program)
    warn_if_not_finite(weights, file)
    weights = jax.device_put(weights)

    def predict(arrays: dict[str, Any]) -> tuple:
        return programs[arrays["images"].shape[1:3]](weights, arrays)

    return artifact._replace(predict=predict)


def make_detect(
    artifact: Artifact,
    *,
    min_score: float = 0.0,
    propose: Propose | None = None,
    tiles: TilesConfig | None = None,
) -> Callable[[Sequence[np.ndarray]], list[ImageDetections]]:
    """Returns a function that detects objects in images of any size.

    Args:
      artifact: from `load`.
      min_score: detections that score lower are discarded.
      propose: from an image to its proposals, for a detector that takes some; None:
        selective search.
      tiles: how large images are cut, to detect small objects; None: they are not.

    Returns:
      `[H, W, 3]` uint8 RGB images, however many -> `ImageDetections` of each.
    """
    return partial(
        partial(detect_in_tiles, tiles=tiles) if tiles else detect_images,
        predict=artifact.predict,
        spec=artifact.resize,
        class_names=artifact.class_names,
        batch_size=artifact.batch_size,
        min_score=min_score,
        propose=propose,
    )


def warn_if_not_finite(weights: dict[str, np.ndarray], source: Any) -> None:
    """Logs the first array with NaN or infinity, with which nothing is detected.

    Args:
      weights: arrays by name.
      source: where they come from.
    """
    for name, array in weights.items():
        if not np.all(np.isfinite(array)):
            count = np.size(array) - np.count_nonzero(np.isfinite(array))
            _LOG.warning(
                "%s: %d of %d numbers of %s are not finite; do not expect detections",
                source,
                count,
                np.size(array),
                name,
            )
            return


@contextlib.contextmanager
def _naming(file: str | os.PathLike, member: str) -> Iterator[None]:
    """Turns whatever goes wrong with a member of the file into a `DataError`."""
    try:
        yield
    except Exception as error:  # KeyError, of json, of jax
        raise DataError(
            f"{file}: its member {member!r} is missing, damaged or of another jax than "
            f"{jax.__version__} ({error!r}); export it again"
        ) from error


def _read(file: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns all arrays of the file by name."""
    if not zipfile.is_zipfile(file):
        raise DataError(
            f"{file}: no exported detector (of --format jaxdet), or no file"
        )
    name, members = "its table of contents", {}
    try:
        _check_sizes(file)
        with np.load(file) as stored:
            for name in stored:
                members[name] = stored[name]
    except Exception as error:  # of the file system, zip, NumPy
        raise DataError(
            f"{file}: cannot read {name} ({error!r}); the file is damaged: copy it "
            "again, or export it again"
        ) from error
    return members


def _check_sizes(file: str | os.PathLike) -> None:
    """Checks that no array takes more memory than its bytes in the file, as `save`'s.

    Raises:
      ValueError: for one that is compressed, or whose shape needs other bytes.
    """
    with zipfile.ZipFile(file) as members:
        available = os.path.getsize(file)
        for one in members.infolist():
            available -= one.file_size
            if one.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{one.filename} is compressed, which no export is")
            with members.open(one) as stream:
                shape, _, dtype = _read_header(stream)
                needed = math.prod(shape) * dtype.itemsize
                if needed != one.file_size - stream.tell():
                    raise ValueError(
                        f"{one.filename} is {dtype}{list(shape)}, of {needed} bytes, "
                        f"but has {one.file_size - stream.tell()}"
                    )
        if available < 0:
            raise ValueError("its arrays overlap")


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    if np.lib.format.read_magic(stream) == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


def _read_about(file: str | os.PathLike, members: dict[str, np.ndarray]) -> Artifact:
    """Returns all of the artifact but `predict`."""
    with _naming(file, _ABOUT):
        about = json.loads(members[_ABOUT].tobytes())
        kind, version = about.pop("format"), about.pop("version")
    if kind != _FORMAT or version != VERSION:
        raise DataError(
            f"{file}: {kind!r}, version {version}; this jaxdet reads {_FORMAT!r}, "
            f"version {VERSION}: export it again"
        )
    with _naming(file, _ABOUT):
        about = {name: tuples_from_lists(value) for name, value in about.items()}
        resize = {k: tuples_from_lists(v) for k, v in about["resize"].items()}
        about["resize"] = ResizeSpec(**resize)
        artifact = Artifact(**about, predict=None)
        if not [_program_name(canvas) for canvas in artifact.resize.canvases]:
            raise ValueError("it has no canvas")
    return artifact


def _read_program(
    file: str | os.PathLike, members: dict[str, np.ndarray], name: str
) -> jax.export.Exported:
    with _naming(file, name):
        program = jax.export.deserialize(bytearray(members[name]))
    platform = jax.export.default_export_platform()
    if platform not in program.platforms:
        raise DataError(
            f"{file}: made for {', '.join(program.platforms)}; here it is {platform}"
        )
    return program


def _read_weights(
    file: str | os.PathLike,
    members: dict[str, np.ndarray],
    program: jax.export.Exported,
) -> dict[str, np.ndarray]:
    """Returns the weights that a program takes, by its names for them."""
    (expected, _), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    weights = {}
    for name, needed in expected.items():
        with _naming(file, _WEIGHT + name):
            array = weights[name] = members[_WEIGHT + name]
            actual, wanted = (f"{x.dtype}{list(x.shape)}" for x in (array, needed))
            if actual != wanted:
                raise ValueError(f"it is {actual}, its programs take {wanted}")
    return weights


def _program_name(canvas: tuple[int, int]) -> str:
    return f"{_PROGRAM}{canvas[0]}x{canvas[1]}"


def _as_array(encoded: bytes) -> np.ndarray:
    return np.frombuffer(encoded, np.uint8)


_LOG = logging.getLogger(__name__)
