"""Makes a trained detector a function from an image to named boxes.

detect = jaxdet.load("fasterrcnn_resnet50_fpn")  # or a run folder, or a .pth file
detections = detect(image)  # NumPy, [H, W, 3] uint8, any size
print(detections.names, detections.scores, detections.boxes)
"""

import itertools
import os
import pathlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
import tqdm

from jaxdet import parallel
from jaxdet.data import masks
from jaxdet.data.dataset import DataSet
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.detector import Detector
from jaxdet.detectors.serialization import deserialize
from jaxdet.evaluation.evaluate import label_names
from jaxdet.inference.export import predict_arrays, warn_if_not_finite
from jaxdet.inference.preprocess import (
    ImageDetections,
    Propose,
    ResizeSpec,
    detect_images,
)
from jaxdet.inference.tiles import TilesConfig, detect_in_tiles
from jaxdet.structs import Batch
from jaxdet.training.checkpoint import load_variables
from jaxdet.training.checksum import by_path
from jaxdet.training.run_folder import RunError, load_run
from jaxdet.weights import published
from jaxdet.weights.published import TrainedDetector
from jaxdet.weights.state_dict import SUFFIXES


def load(
    source: str | os.PathLike,
    *,
    step: int | Literal["best", "latest"] = "best",
    min_score: float = 0.0,
    propose: Propose | None = None,
    tiles: TilesConfig | None = None,
) -> Callable[[np.ndarray], ImageDetections]:
    """Returns a function that detects objects in one image of any size.

    Args:
      source: see `load_detector`.
      step: see `load_detector`.
      min_score: detections that score lower are discarded.
      propose: see `make_detect`.
      tiles: see `make_detect`.

    Returns:
      `[H, W, 3]` uint8 RGB -> `ImageDetections`, as of `make_detect`.

    Raises:
      RunError: as `load_detector`.
      WeightsError: as `load_detector`.
    """
    trained = load_detector(source, step=step)
    return make_detect(trained, min_score=min_score, propose=propose, tiles=tiles)


def load_detector(
    source: str | os.PathLike, *, step: int | Literal["best", "latest"] = "best"
) -> TrainedDetector:
    """Returns a detector with its variables.

    Args:
      source: the folder of a run; a published checkpoint on COCO, a `.pth`,
        `.safetensors` or `.npz` file; or a name in `published.DETECTORS`, most of
        which are downloaded.
      step: which checkpoint of a run; "best" is that of the highest AP, or whatever its
        run measured first.

    Raises:
      RunError: if the folder holds no run, no such checkpoint, or no recipe from which
        its detector can be made again.
      WeightsError: if the file cannot be read or downloaded, is of another network, or
        the package of a published detector is missing.
    """
    trained = _load(source, step)
    warn_if_not_finite(by_path(trained.variables), source)
    return trained


def make_detect(
    trained: TrainedDetector,
    *,
    min_score: float = 0.0,
    propose: Propose | None = None,
    tiles: TilesConfig | None = None,
) -> Callable[[np.ndarray], ImageDetections]:
    """Returns a function that detects objects in one image of any size.

    Args:
      trained: the detector, its variables, its classes and how it takes images; one
        compilation for each canvas that an image needs.
      min_score: detections that score lower are discarded.
      propose: from an image to its proposals, for a detector that takes some; None:
        selective search.
      tiles: how large images are cut, to detect small objects; None: they are not.

    Returns:
      `[H, W, 3]` uint8 RGB -> `ImageDetections`. It raises ValueError for other arrays.
    """
    predict = jax.jit(partial(predict_arrays, trained.detector.predict))
    in_tiles = tiles and partial(
        detect_in_tiles, tiles=tiles, batch_size=tiles.batch_size
    )
    detect = partial(
        in_tiles or detect_images,
        predict=partial(predict, jax.device_put(trained.variables)),
        spec=ResizeSpec.of_input(trained.input),
        class_names=label_names(trained.detector, trained.class_names),
        min_score=min_score,
        propose=propose,
    )
    return lambda image: detect([image])[0]


def detect_data_set(
    detect: Callable[[np.ndarray], ImageDetections],
    data_set: DataSet,
    *,
    progress: bool = True,
) -> list[dict]:
    """Runs a function such as `make_detect`'s over all images of a data set.

    Each of several hosts processes its share of the images, on one device; all of them
    must call this, and get the results of the whole data set.

    Args:
      detect: takes an image; its labels are those of the data set.
      data_set: every image is processed once.
      progress: whether to draw a bar, on the first host.

    Returns:
      COCO results, as of `evaluation.evaluate.detect_all`.

    Raises:
      DataError: for an image that cannot be read.
    """
    hosts, host = jax.process_count(), jax.process_index()
    positions = range(host, len(data_set), hosts)
    hidden = not progress or host > 0
    by_image = []
    for position in tqdm.tqdm(positions, unit="image", disable=hidden):
        found = detect(data_set.read_image(position))
        by_image.append(list(_coco_results(found, data_set, position)))
    in_turn = itertools.zip_longest(*parallel.gather(by_image), fillvalue=())
    return list(itertools.chain(*itertools.chain(*in_turn)))


def _load(source: str | os.PathLike, step: int | str) -> TrainedDetector:
    if source in published.DETECTORS:
        return published.DETECTORS[source]()
    if pathlib.Path(source).suffix in SUFFIXES or pathlib.Path(source).is_file():
        return published.coco_detector(source)
    if not pathlib.Path(source).is_dir():
        raise RunError(
            f"{source} is no folder of a run, no file, and none of the published "
            f"detectors: {', '.join(published.DETECTORS)}"
        )
    return _load_run(source, step)


def _load_run(workdir: str | os.PathLike, step: int | str) -> TrainedDetector:
    run = load_run(workdir)
    if run.recipe is None:
        raise RunError(
            f"{workdir}: its detector has no recipe; make it again and use make_detect"
        )
    config = run.training.input
    try:
        detector = deserialize(run.recipe)
        if not isinstance(detector, Detector):
            raise TypeError(f"it describes {type(detector).__name__}, no detector")
        template = _shapes_of_variables(detector, config)
    except Exception as error:  # of a network whose numbers are wrong
        raise RunError(
            f"{workdir}: its recipe cannot be followed by this jaxdet: {error}"
        ) from error
    variables = load_variables(workdir, template, step=step)
    classes = run.class_names, run.category_ids
    return TrainedDetector(detector, variables, config, *classes, run.data_set)


def _shapes_of_variables(detector: Detector, config: InputConfig) -> Any:
    image = jax.ShapeDtypeStruct((1, *config.canvases[0], 3), np.uint8)
    blank = Batch(image, sizes=None, scales=None, image_ids=None)
    return jax.eval_shape(detector.init, jax.random.key(0), blank)


def _coco_results(
    found: ImageDetections, data_set: DataSet, position: int
) -> Iterator[dict]:
    for index, (x1, y1, x2, y2) in enumerate(found.boxes.tolist()):
        result = {
            "image_id": data_set.image_ids[position],
            "category_id": data_set.category_ids[found.labels[index]],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": float(found.scores[index]),
        }
        if found.masks is not None:
            result["segmentation"] = masks.encode_rle(found.masks[index])
        yield result
