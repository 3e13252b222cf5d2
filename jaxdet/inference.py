"""A trained detector as a function from pictures to named boxes.

detect = inference.from_run("runs/quickstart")
found = detect(image)  # NumPy, [H, W, 3] uint8, any size
print(found.names, found.scores, found.boxes)
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxdet.data import transforms
from jaxdet.data.dataset import Proposals
from jaxdet.data.proposals import selective_search
from jaxdet.detectors.detector import Detector, rebuild
from jaxdet.evaluation.evaluate import names_of_labels, paste_all, to_original
from jaxdet.structs import Batch, Regions
from jaxdet.training.checkpoint import Run, RunError, load_run, load_variables

Propose = Callable[[np.ndarray], Proposals]
"""From `[H, W, 3]` uint8 RGB to regions of that image that may hold an object."""

_NOTHING = Proposals(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))


class Found(NamedTuple):
    """What was found in one image, best score first."""

    boxes: np.ndarray  # [D, 4] float32 (x1, y1, x2, y2), pixels of the image given
    scores: np.ndarray  # [D] float32
    labels: np.ndarray  # [D] int32
    names: tuple[str, ...]  # D class names
    masks: np.ndarray | None = None  # [D, H, W] bool, of a detector that finds them


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
    """`detect_with` the detector of a run folder; `load_trained` finds it."""
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
    """
    config = trained.run.training.input
    if propose is None and config.max_regions:
        propose = partial(selective_search, max_proposals=config.max_regions)
    return make_detect(
        trained.detector,
        trained.variables,
        names_of_labels(trained.detector, trained.run.class_names),
        canvases=config.canvases,
        stretch=config.stretch,
        sides=config.sides,
        fractions=config.fractions,
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
        detector = rebuild(run.recipe)
        if not isinstance(detector, Detector):
            raise TypeError(f"it makes {detector!r}, which is no detector")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(
            f"{workdir}: its recipe cannot be followed by this jaxdet: {error}"
        ) from error
    config = run.training.input
    image = np.zeros((*config.canvases[0], 3), np.uint8)
    blank = _batch_of_one(image, config.canvases, _NOTHING, config.max_regions)
    template = jax.eval_shape(detector.init, jax.random.key(0), blank)
    return Trained(detector, load_variables(workdir, template, step=step), run)


def make_detect(
    detector: Detector,
    variables: Any,
    class_names: Sequence[str],
    *,
    canvases: Sequence[tuple[int, int]],
    stretch: bool = False,
    sides: tuple[int, int] | None = None,
    fractions: bool = False,
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
      stretch: whether it fills that canvas, without keeping its shape.
      sides: see `InputConfig`.
      fractions: see `InputConfig`.
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
    rule = {"stretch": stretch, "sides": sides}
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
        proposals = propose(image) if max_regions else _NOTHING
        batch = _batch_of_one(
            image, canvases, proposals, max_regions, fractions, **rule
        )
        found = jax.tree.map(
            lambda values: np.asarray(values)[0], predict(variables, batch)
        )
        kept = found.valid & (found.scores >= min_score)
        height, width = image.shape[:2]
        boxes = to_original(found.boxes[None, kept], batch.scales)[0]
        boxes = np.clip(boxes, 0, np.array([[width, height, width, height]]))
        labels, masks = found.labels[kept], None
        if found.masks is not None:
            masks = paste_all(found.masks[kept], boxes, (height, width))
        return Found(
            boxes=boxes,
            scores=found.scores[kept],
            labels=labels,
            names=tuple(class_names[label] for label in labels),
            masks=masks,
        )

    return detect


def _batch_of_one(
    image: np.ndarray,
    canvases: Sequence[tuple[int, int]],
    proposals: Proposals,
    max_regions: int,
    fractions: bool = False,
    *,
    stretch: bool = False,
    sides: tuple[int, int] | None = None,
) -> Batch:
    size, rule = image.shape[:2], {"stretch": stretch, "sides": sides}
    which = transforms.canvas_of_each(np.array([size]), canvases, sides=sides)[0]
    canvas = canvases[which]
    objects = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    best, scores = (values[:max_regions] for values in proposals)
    example = transforms.Example(image, *objects, regions=best)
    blank = np.zeros((*canvas, 3), np.float32 if fractions else np.uint8)
    example, scale = transforms.resize_to_canvas(example, canvas, **rule, out=blank)
    regions = None
    if max_regions:
        empty = max_regions - len(best)
        regions = Regions(
            boxes=np.pad(example.regions, ((0, empty), (0, 0)))[None],
            scores=np.pad(scores, (0, empty))[None],
            valid=np.arange(max_regions)[None] < len(best),
        )
    return Batch(
        images=example.image[None],
        sizes=np.array([transforms.fitted_size(size, canvas, **rule)], np.int32),
        scales=scale[None],
        image_ids=np.zeros(1, np.int32),
        regions=regions,
    )
