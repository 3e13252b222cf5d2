"""A trained detector as a function from pictures to named boxes.

detect = inference.from_run("runs/quickstart")
found = detect(image)  # NumPy, [H, W, 3] uint8, any size
print(found.names, found.scores, found.boxes)
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxdet.data import transforms
from jaxdet.detectors.detector import Detector, rebuild
from jaxdet.evaluation.evaluate import to_original
from jaxdet.structs import Batch
from jaxdet.training.checkpoint import Run, RunError, load_run, load_variables


class Found(NamedTuple):
    """What was found in one image, best score first."""

    boxes: np.ndarray  # [D, 4] float32 (x1, y1, x2, y2), pixels of the image given
    scores: np.ndarray  # [D] float32
    labels: np.ndarray  # [D] int32
    names: tuple[str, ...]  # D class names


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
) -> Callable[[np.ndarray], Found]:
    """`make_detect` for the detector of a run folder; arguments as `load_trained`'s."""
    detector, variables, run = load_trained(workdir, step=step)
    canvases = run.training.input.canvases
    names = run.class_names
    return make_detect(
        detector, variables, names, canvases=canvases, min_score=min_score
    )


def load_trained(
    workdir: str | os.PathLike, *, step: int | Literal["best", "latest"] = "best"
) -> Trained:
    """The detector of a run folder, made again by its recipe, and its variables.

    Args:
      workdir: the folder that training wrote.
      step: which checkpoint; "best" is that of highest AP.

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
        detector = rebuild(run.recipe)
        if not isinstance(detector, Detector):
            raise TypeError(f"it makes {detector!r}, which is no detector")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(
            f"{workdir}: its recipe cannot be followed by this jaxdet: {error}"
        ) from error
    canvases = run.training.input.canvases
    blank = _batch_of_one(np.zeros((*canvases[0], 3), np.uint8), canvases)
    template = jax.eval_shape(detector.init, jax.random.key(0), blank)
    return Trained(detector, load_variables(workdir, template, step=step), run)


def make_detect(
    detector: Detector,
    variables: Any,
    class_names: Sequence[str],
    *,
    canvases: Sequence[tuple[int, int]],
    min_score: float = 0.0,
) -> Callable[[np.ndarray], Found]:
    """A function from one image of any size to what is in it.

    Args:
      detector: what to ask.
      variables: its variables.
      class_names: the name of each label.
      canvases: (height, width) of each canvas that images may be resized to; one
        compilation each. An image goes to the one of nearest aspect ratio.
      min_score: lower scores are left out.

    Returns:
      `[H, W, 3]` uint8 RGB -> `Found`. It raises ValueError for other arrays.
    """
    predict = jax.jit(detector.predict)
    variables = jax.device_put(variables)

    def detect(image: np.ndarray) -> Found:
        image = np.asarray(image)
        shape, kind = image.shape, image.dtype
        if len(shape) != 3 or shape[2] != 3 or 0 in shape or kind != np.uint8:
            raise ValueError(
                f"image is {kind}{list(shape)}; uint8[H, W, 3] is needed, H and W at "
                "least 1"
            )
        batch = _batch_of_one(image, canvases)
        found = jax.tree.map(
            lambda values: np.asarray(values)[0], predict(variables, batch)
        )
        kept = found.valid & (found.scores >= min_score)
        height, width = image.shape[:2]
        boxes = to_original(found.boxes[None, kept], batch.scales)[0]
        labels = found.labels[kept]
        return Found(
            boxes=np.clip(boxes, 0, np.array([[width, height, width, height]])),
            scores=found.scores[kept],
            labels=labels,
            names=tuple(class_names[label] for label in labels),
        )

    return detect


def _batch_of_one(image: np.ndarray, canvases: Sequence[tuple[int, int]]) -> Batch:
    size = image.shape[:2]
    canvas = canvases[transforms.nearest_canvas(np.array([size]), canvases)[0]]
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    example = transforms.Example(image, *nothing)
    example, scale = transforms.resize_to_canvas(example, canvas)
    return Batch(
        images=example.image[None],
        sizes=np.array([transforms.fitted_size(size, canvas)], np.int32),
        scales=scale[None],
        image_ids=np.zeros(1, np.int32),
    )
