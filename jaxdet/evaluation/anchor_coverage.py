"""Can the detector's anchors or points learn the objects of a data set?"""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxdet.config import ConfigError
from jaxdet.data import transforms
from jaxdet.data.dataset import DataSet
from jaxdet.data.input_config import InputConfig, scale_canvas
from jaxdet.detectors.detector import Detector
from jaxdet.ops.coverage import Coverage

SAMPLE = 2000  # objects that `check` looks at, about
TOLERATED = 0.1  # share of the objects that may be out of reach without a warning

_CHUNK = 500  # objects at a time, so that a pyramid's overlaps fit into memory


class PlacedObjects(NamedTuple):
    """Objects as they lie on their canvases, without augmentation; crowds are none."""

    boxes: np.ndarray  # [N, 4] float32 canvas pixels
    sizes: np.ndarray  # [N, 2] true (height, width) of their images in the canvas
    canvases: np.ndarray  # [N] int, index into `InputConfig.canvases`

    @property
    def sides(self) -> np.ndarray:
        """`[N]` canvas pixels, the square roots of their areas."""
        return np.sqrt(np.prod(self.boxes[:, 2:] - self.boxes[:, :2], axis=1))


def check(detector: Detector, data_set: DataSet, config: InputConfig) -> None:
    """Finds, before training, objects that the detector cannot learn.

    Of a large data set a sample counts. An object is out of reach if all anchors on it
    are background by their overlap, so that at most its one best anchor would learn it;
    or, without anchors, if no point would; by all factors of `config.multi_scale`.

    Args:
      detector: nothing is checked where its `coverage` is None.
      data_set: what will be trained on; no image is read.
      config: how it will be batched: its canvases count, and their factors.

    Raises:
      ConfigError: if all objects are out of reach. If more than a tenth are, it warns;
        and however many are, where augmentation changes the sizes of objects.
    """
    if detector.coverage is None:
        return
    every, sides = [], []
    for factor in dict.fromkeys(config.multi_scale):
        objects = place(data_set, config, most=SAMPLE, factor=factor)
        count = len(objects.boxes)
        if count == 0:
            return
        canvases = [scale_canvas(canvas, factor) for canvas in config.canvases]
        every.append(measure(detector.coverage, objects, canvases))
        sides.append(objects.sides)
    found = every[0]._replace(best=np.max([each.best for each in every], axis=0))
    missed = found.best < found.low
    if missed.mean() <= TOLERATED:
        return
    small, large = np.quantile(np.array(sides)[:, missed], (0.05, 0.95))
    message = (
        f"{missed.sum()} of {count} objects of {data_set.name!r} are out of the "
        f"detector's reach: {found.measure} must be at least {found.low:g}, and theirs "
        f"is at most {found.best[missed].max():.2g}; their sides (square roots of "
        f"areas) are {small:.0f} to {large:.0f} pixels on the canvases "
        f"{config.training_canvases}. Change the anchors or levels of the detector, or "
        "the canvases; experiments.anchor_coverage draws it"
    )
    # Augmentation may make them larger or smaller than they were measured.
    augmented = config.expand or config.iou_crop or config.random_crop
    resized = augmented or config.scale_jitter != (1.0, 1.0)
    if missed.all() and not resized:
        raise ConfigError(message)
    _LOG.warning(message)


def place(
    data_set: DataSet, config: InputConfig, *, most: int, factor: float = 1.0
) -> PlacedObjects:
    """The objects of random images, the same in every call, on their canvases.

    Args:
      data_set: whose images; none is read.
      config: how they become batches.
      most: no further images are taken when there are so many objects.
      factor: of all canvases, as one of `config.multi_scale`.
    """
    boxes, sizes, canvases, count = [np.zeros((0, 4), np.float32)], [], [], 0
    order = np.random.default_rng(0).permutation(len(data_set))
    of_each = transforms.assign_canvases(
        data_set.sizes, config.canvases, min_max_size=config.min_max_size
    )
    for position in order:
        objects = data_set.objects[position]
        kept = objects.boxes[~objects.crowd]
        old, canvas = data_set.sizes[position], of_each[position]
        new = transforms.fitted_size(
            tuple(old.tolist()),
            scale_canvas(config.canvases[canvas], factor),
            keep_aspect=config.keep_aspect,
            min_max_size=config.min_max_size,
        )
        scale = (np.array(new) / old)[[1, 0, 1, 0]]
        boxes.append((kept * scale).astype(np.float32))
        sizes += [new] * len(kept)
        canvases += [canvas] * len(kept)
        count += len(kept)
        if count >= most:
            break
    sizes = np.array(sizes, int).reshape(-1, 2)
    return PlacedObjects(np.concatenate(boxes), sizes, np.array(canvases, int))


def measure(
    coverage: Callable, objects: PlacedObjects, canvases: Sequence[tuple[int, int]]
) -> Coverage:
    """A detector's `coverage` of objects on several canvases, in their order.

    Args:
      coverage: see `Detector`.
      objects: from `place`.
      canvases: (height, width) of each; `objects.canvases` are indices into them.

    Returns:
      `Coverage` `[N]`, in the order of the objects.
    """
    best = np.zeros(len(objects.boxes))
    for index, canvas in enumerate(canvases):
        members = np.flatnonzero(objects.canvases == index)
        for start in range(0, max(1, len(members)), _CHUNK):
            chunk = members[start : start + _CHUNK]
            found = coverage(canvas, objects.boxes[chunk], objects.sizes[chunk])
            best[chunk] = found.best
    return found._replace(best=best)


_LOG = logging.getLogger(__name__)
