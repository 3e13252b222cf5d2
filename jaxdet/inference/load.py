"""A trained detector as a function from pictures to named boxes.

detect = inference.from_run("runs/quickstart")
found = detect(image)  # NumPy, [H, W, 3] uint8, any size
print(found.names, found.scores, found.boxes)
"""

import importlib.metadata
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxdet.data.formats.coco import CATEGORY_IDS, CLASS_NAMES
from jaxdet.data.input_config import InputConfig
from jaxdet.data.selective_search import selective_search
from jaxdet.detectors.detector import Detector
from jaxdet.detectors.serialization import deserialize
from jaxdet.evaluation.evaluate import label_names
from jaxdet.inference.preprocess import Found, Placing, Propose, in_own_pixels, place
from jaxdet.structs import Batch, Regions
from jaxdet.training.checkpoint import load_variables
from jaxdet.training.config import TrainingConfig
from jaxdet.training.run_folder import LIBRARIES, Run, RunError, load_run


class Trained(NamedTuple):
    """What a run folder holds."""

    detector: Detector
    variables: Any  # NumPy arrays
    run: Run


def from_run(
    workdir: str | os.PathLike,
    *,
    step: int | Literal["best", "latest"] = "best",
    min_score: float = 0.0,
    propose: Propose | None = None,
) -> Callable[[np.ndarray], Found]:
    """A function from one image of any size to what a run's detector finds in it.

    `load_trained` and `detect_with` in one.

    Args:
      workdir: the folder that training wrote.
      step: which checkpoint, see `load_trained`.
      min_score: lower scores are left out.
      propose: see `detect_with`.

    Returns:
      `[H, W, 3]` uint8 RGB -> `Found`, as of `make_detect`.

    Raises:
      RunError: as `load_trained`.
    """
    trained = load_trained(workdir, step=step)
    return detect_with(trained, min_score=min_score, propose=propose)


def detect_with(
    trained: Trained, *, min_score: float = 0.0, propose: Propose | None = None
) -> Callable[[np.ndarray], Found]:
    """`make_detect` for images like those that the detector was trained on.

    Args:
      trained: from `load_trained`.
      min_score: lower scores are left out.
      propose: makes proposals, if the detector was trained with some; None: selective
        search.

    Returns:
      `[H, W, 3]` uint8 RGB -> `Found`, as of `make_detect`.
    """
    config = trained.run.training.input
    if propose is None and config.max_regions:
        propose = partial(selective_search, max_proposals=config.max_regions)
    return make_detect(
        trained.detector,
        trained.variables,
        label_names(trained.detector, trained.run.class_names),
        canvases=config.canvases,
        keep_aspect=config.keep_aspect,
        min_max_size=config.min_max_size,
        float_pixels=config.float_pixels,
        min_score=min_score,
        propose=propose,
        max_regions=config.max_regions,
    )


def load_trained(
    workdir: str | os.PathLike, *, step: int | Literal["best", "latest"] = "best"
) -> Trained:
    """The detector of a run folder, made again by its recipe, and its variables.

    Args:
      workdir: the folder that training wrote.
      step: which checkpoint; "best" is that of the highest AP,
        or whatever its run measured first.

    Raises:
      RunError: if the folder holds no run, no such checkpoint, or no recipe from which
        its detector can be made again.
    """
    run = load_run(workdir)
    if run.recipe is None:
        raise RunError(
            f"{workdir}: its detector has no recipe; make it again and use make_detect"
        )
    try:
        detector = deserialize(run.recipe)
        if not isinstance(detector, Detector):
            raise TypeError(f"it describes {type(detector).__name__}, no detector")
        template = _shapes_of_variables(detector, run.training.input)
    except Exception as error:  # whatever a network of wrong numbers stumbles over
        raise RunError(
            f"{workdir}: its recipe cannot be followed by this jaxdet: {error}"
        ) from error
    return Trained(detector, load_variables(workdir, template, step=step), run)


def _shapes_of_variables(detector: Detector, config: InputConfig) -> Any:
    image = jax.ShapeDtypeStruct((1, *config.canvases[0], 3), np.uint8)
    blank = Batch(image, sizes=None, scales=None, image_ids=None)
    return jax.eval_shape(detector.init, jax.random.key(0), blank)


def published(detector: Detector, variables: Any, config: InputConfig) -> Trained:
    """A detector of COCO's 80 classes that others have trained, as if in a run folder.

    Args:
      detector: its labels are those of `CLASS_NAMES`.
      variables: its variables.
      config: how it takes images.
    """
    run = Run(
        recipe=detector.recipe,
        training=TrainingConfig(input=config),
        class_names=CLASS_NAMES,
        category_ids=CATEGORY_IDS,
        data_set="COCO",
        images=0,
        versions={name: importlib.metadata.version(name) for name in LIBRARIES},
    )
    return Trained(detector, variables, run)


def make_detect(
    detector: Detector,
    variables: Any,
    class_names: Sequence[str],
    *,
    canvases: Sequence[tuple[int, int]],
    keep_aspect: bool = True,
    min_max_size: tuple[int, int] | None = None,
    float_pixels: bool = False,
    min_score: float = 0.0,
    propose: Propose | None = None,
    max_regions: int = 0,
) -> Callable[[np.ndarray], Found]:
    """A function from one image of any size to what is in it.

    Args:
      detector: what to ask.
      variables: its variables.
      class_names: the name of each label.
      canvases: (height, width) of each canvas that images may be resized to; one
        compilation each. An image goes to the one of nearest aspect ratio.
      keep_aspect: whether it keeps its shape; else it fills that canvas.
      min_max_size: see `InputConfig`.
      float_pixels: see `InputConfig`.
      min_score: lower scores are left out.
      propose: from an image to its proposals, for a detector that needs some.
      max_regions: how many of them it takes, the best; 0: it needs none.

    Returns:
      `[H, W, 3]` uint8 RGB -> `Found`. It raises ValueError for other arrays.

    Raises:
      ValueError: if regions are needed, but nothing proposes them.
    """
    if max_regions and propose is None:
        raise ValueError(
            f"max_regions is {max_regions}, but propose is None; a function from an "
            "image to `Proposals` is needed"
        )
    placing = Placing(canvases, keep_aspect, min_max_size, float_pixels, max_regions)
    predict = jax.jit(detector.predict)
    variables = jax.device_put(variables)

    def detect(image: np.ndarray) -> Found:
        arrays = place(image, placing, propose)
        found = predict(variables, _batch(arrays))
        answer = (found.boxes, found.scores, found.labels, found.valid, found.masks)
        return in_own_pixels(
            jax.tree.map(lambda values: np.asarray(values)[0], answer),
            np.shape(image)[:2],
            arrays["scales"][0],
            class_names=class_names,
            min_score=min_score,
        )

    return detect


def _batch(arrays: dict[str, Any]) -> Batch:
    """What `place` has made of one image."""
    regions = Regions(**arrays["regions"]) if "regions" in arrays else None
    image_ids = np.zeros(1, np.int32)
    return Batch(**arrays | {"regions": regions}, image_ids=image_ids)
