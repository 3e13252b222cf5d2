"""Measures, before training, which objects a detector's anchors or points can match.

Every object is measured as if it were alone in its image, in NumPy.
"""

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxdet.config import ConfigError
from jaxdet.data import transforms
from jaxdet.data.dataset import DataSet
from jaxdet.data.input_config import InputConfig, scale_canvas
from jaxdet.detectors.detector import Detector
from jaxdet.detectors.faster_rcnn import FasterRCNNConfig
from jaxdet.detectors.fcos import FCOSConfig
from jaxdet.detectors.image_pyramid import AllScalesConfig
from jaxdet.detectors.mask_rcnn import MaskRCNNConfig
from jaxdet.detectors.retinanet import RetinaNetConfig
from jaxdet.detectors.rpn import RPNConfig
from jaxdet.detectors.serialization import ALLOWED, deserialize
from jaxdet.detectors.ssd import SSDConfig, num_cells
from jaxdet.ops import anchors

SAMPLE = 2000  # objects that `check` measures, about
TOLERATED = 0.1  # share of the objects that may match nothing without a warning
ONE_SCALE = AllScalesConfig(scales=(1.0,))

_CHUNK = 500  # objects at a time, so that a pyramid's overlaps fit into memory

DenseConfig = RetinaNetConfig | FCOSConfig | SSDConfig | RPNConfig


class Coverage(NamedTuple):
    """How well the anchors or points of a detector cover each object."""

    best: np.ndarray  # [...]: highest IoU with an anchor, or number of positive points
    low_threshold: float  # all anchors on an object below it are background
    high_threshold: float  # objects from it on have a positive anchor or point
    measure: str  # what `best` is, in words


class CanvasObjects(NamedTuple):
    """Objects on their canvases, without augmentation and without crowds."""

    boxes: np.ndarray  # [N, 4] float32 canvas pixels
    sizes: np.ndarray  # [N, 2] true (height, width) of their images in the canvas
    canvases: np.ndarray  # [N] int, index into `InputConfig.canvases`

    @property
    def sides(self) -> np.ndarray:
        """Returns `[N]` canvas pixels, the square roots of their areas."""
        return np.sqrt(np.prod(self.boxes[:, 2:] - self.boxes[:, :2], axis=1))


def check(detector: Detector, data_set: DataSet, config: InputConfig) -> None:
    """Warns of objects that the detector cannot be trained on, or refuses them.

    Of a large data set a sample is measured. An object is not covered if all anchors on
    it are background by their IoU, so that at most its one best anchor is trained; or,
    without anchors, if no point is positive; at all factors of `config.multi_scale`.

    Args:
      detector: nothing is checked if it has neither anchors nor points, or no recipe.
      data_set: what will be trained on; no image is read.
      config: how it will be batched: on what canvases, at what factors.

    Raises:
      ConfigError: if no object is covered. If more than a tenth are not, it warns; and
        however many are not, where augmentation changes the sizes of objects.
    """
    dense_config, scales = dense_config_of(detector)
    if dense_config is None:
        return
    sides, coverage = measure(
        dense_config, data_set, config, max_objects=SAMPLE, scales=scales
    )
    best = np.max(coverage.best, axis=0)
    missed = best < coverage.low_threshold
    if missed.sum() <= TOLERATED * len(missed):
        return
    small, large = np.quantile(sides[:, missed], (0.05, 0.95))
    message = (
        f"{missed.sum()} of {len(missed)} objects of {data_set.name!r} match no anchor "
        f"or point of the detector: {coverage.measure} must be at least "
        f"{coverage.low_threshold:g}, and theirs is at most {best[missed].max():.2g}; "
        f"their sides (square roots of areas) are {small:.0f} to {large:.0f} pixels on "
        f"the canvases {config.training_canvases}. Change the anchors or levels of the "
        "detector, or the canvases; experiments.anchor_coverage draws it"
    )
    # Augmentation may make them larger or smaller than they were measured.
    cropped = config.iou_crop or config.random_crop
    augmented = cropped or config.expand or config.mosaic
    resized = augmented or config.scale_jitter != (1.0, 1.0)
    if missed.all() and not resized:
        raise ConfigError(message)
    _LOG.warning(message)


def dense_config_of(detector: Detector) -> tuple[DenseConfig | None, AllScalesConfig]:
    """Returns the part of a detector's config that has anchors or points.

    Args:
      detector: any.

    Returns:
      The config, None if there is none; and the scales that the detector is trained at.
    """
    recipe, scales = detector.recipe, ONE_SCALE
    while recipe is not None and recipe["call"] in ALLOWED:
        config = deserialize(recipe["arguments"][0])
        if not isinstance(config, Detector):
            if isinstance(config, MaskRCNNConfig):
                config = config.faster_rcnn
            if isinstance(config, FasterRCNNConfig):
                config = config.rpn
            return (config if isinstance(config, DenseConfig) else None), scales
        options = deserialize(recipe["keywords"]["config"])
        scales = options if isinstance(options, AllScalesConfig) else scales
        recipe = config.recipe
    return None, scales


def measure(
    config: DenseConfig,
    data_set: DataSet,
    input_config: InputConfig,
    *,
    max_objects: int,
    scales: AllScalesConfig = ONE_SCALE,
) -> tuple[np.ndarray, Coverage]:
    """Measures the coverage of a data set's objects at all factors of `multi_scale`.

    Args:
      config: of a detector, or of its RPN.
      data_set: whose objects, except for crowds; no image is read.
      input_config: how images become batches.
      max_objects: see `sample_objects`.
      scales: that the detector is trained at.

    Returns:
      `[F, N]` canvas pixels, square roots of the objects' areas at F factors; and
      `Coverage` `[F, N]`.
    """
    sides, best = [], []
    for factor in dict.fromkeys(input_config.multi_scale):
        objects = sample_objects(
            data_set, input_config, max_objects=max_objects, factor=factor
        )
        canvases = [scale_canvas(canvas, factor) for canvas in input_config.canvases]
        sides.append(objects.sides)
        best.append(cover_objects(config, objects, canvases, scales))
    if isinstance(config, FCOSConfig):
        limits = 1, 1, "number of positive points"
    elif isinstance(config, SSDConfig):
        iou = config.positive_iou
        limits = iou, iou, "IoU with the best default box"
    else:
        limits = config.negative_iou, config.positive_iou, "IoU with the best anchor"
    return np.array(sides), Coverage(np.array(best), *limits)


def sample_objects(
    data_set: DataSet, config: InputConfig, *, max_objects: int, factor: float = 1.0
) -> CanvasObjects:
    """Returns the objects of random images, the same in every call, on their canvases.

    Args:
      data_set: whose images; none is read.
      config: how they become batches.
      max_objects: no further images are taken when there are so many objects.
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
        if count >= max_objects:
            break
    sizes = np.array(sizes, int).reshape(-1, 2)
    return CanvasObjects(np.concatenate(boxes), sizes, np.array(canvases, int))


def cover_objects(
    config: DenseConfig,
    objects: CanvasObjects,
    canvases: Sequence[tuple[int, int]],
    scales: AllScalesConfig = ONE_SCALE,
) -> np.ndarray:
    """Returns `cover` of objects on several canvases, at the best of the scales.

    Args:
      config: of a detector, or of its RPN.
      objects: from `sample_objects`.
      canvases: (height, width) of each; `objects.canvases` are indices into them.
      scales: of the canvases, in training; objects that it makes background at a scale
        are not covered there.

    Returns:
      `[N]`, in the order of the objects.
    """
    best = np.zeros(len(objects.boxes))
    low, high = scales.object_sizes or (0, math.inf)
    for index, scale in itertools.product(range(len(canvases)), scales.scales):
        canvas = tuple(math.ceil(extent * scale) for extent in canvases[index])
        sides = objects.sides * scale
        chosen = (objects.canvases == index) & (sides >= low) & (sides <= high)
        chosen = np.flatnonzero(chosen)
        for start in range(0, len(chosen), _CHUNK):
            chunk = chosen[start : start + _CHUNK]
            boxes, sizes = objects.boxes[chunk] * scale, objects.sizes[chunk] * scale
            best[chunk] = np.maximum(best[chunk], cover(config, canvas, boxes, sizes))
    return best


def cover(
    config: DenseConfig, canvas: tuple[int, int], boxes: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Returns the highest IoU of each object with an anchor, or its number of points.

    Args:
      config: of a detector, or of its RPN.
      canvas: (height, width) in pixels.
      boxes: `[N, 4]` objects, on canvases of that size.
      sizes: `[N, 2]` true (height, width) of their images.

    Returns:
      `[N]`.
    """
    if isinstance(config, FCOSConfig):
        return _count_positive_points(config, canvas, boxes)
    within = sizes if getattr(config, "inside_only", False) else None
    best = np.zeros(len(boxes))
    for grid in _anchor_grids(config, canvas):
        best = np.maximum(best, best_iou(grid, boxes, within=within))
    return best


def best_iou(
    grid: np.ndarray, boxes: np.ndarray, *, within: np.ndarray | None = None
) -> np.ndarray:
    """Returns the highest IoU of every object with a box of a grid.

    Boxes of one shape overlap an object by a length across times one down, so the best
    column and the best row are found each by itself.

    Args:
      grid: `[rows, columns, S, 4]`, the same S shapes in every cell.
      boxes: `[N, 4]`, objects.
      within: `[N, 2]` true (height, width) of the object's image; boxes that reach over
        it do not count. None: all do.

    Returns:
      `[N]` in [0, 1].
    """
    overlap = np.ones(1)
    for axis, cells in enumerate((grid[0], grid[:, 0])):  # across, down
        low, high = cells[..., axis], cells[..., axis + 2]  # [cells, S]
        start, end = boxes[:, axis, None, None], boxes[:, axis + 2, None, None]
        length = np.minimum(high, end) - np.maximum(low, start)  # [N, cells, S]
        if within is not None:
            inside = (low >= 0) & (high <= within[:, 1 - axis, None, None])
            length = np.where(inside, length, 0.0)
        overlap = overlap * np.maximum(length.max(axis=1), 0.0)  # [N, S]
    shapes, objects = (x[..., 2:] - x[..., :2] for x in (grid[0, 0], boxes))
    union = np.prod(shapes, axis=-1) + np.prod(objects, axis=-1)[:, None] - overlap
    return (overlap / union).max(axis=1)


def _anchor_grids(
    config: RetinaNetConfig | RPNConfig | SSDConfig, canvas: tuple[int, int]
) -> Iterator[np.ndarray]:
    """Yields the anchors of each level, `[rows, columns, S, 4]`."""
    if isinstance(config, SSDConfig):
        layers = zip(config.strides, config.default_box_sizes, strict=True)
        for stride, sizes in layers:
            cells = num_cells(canvas, stride)
            boxes = anchors.default_boxes([cells], strides=[stride], sizes=[sizes])
            yield np.asarray(boxes).reshape(*cells, -1, 4)
        return
    for level, sizes in zip(config.levels, config.anchors.sizes, strict=True):
        options = vars(config.anchors) | {"sizes": [sizes]}
        boxes = anchors.pyramid_anchors(canvas, levels=[level], **options)
        yield np.asarray(boxes).reshape(*num_cells(canvas, 2**level), -1, 4)


def _count_positive_points(
    config: FCOSConfig, canvas: tuple[int, int], boxes: np.ndarray
) -> np.ndarray:
    """Counts the points that `match_points` assigns to each object alone, `[N]`."""
    below, within = (np.less, np.less_equal)[:: 1 if config.inclusive_ranges else -1]
    total = np.zeros(len(boxes), int)
    ranges = itertools.pairwise((0.0, *config.regression_ranges, math.inf))
    for level, (low, high) in zip(config.levels, ranges, strict=True):
        options = {"offset": config.point_offset, "rounded": config.point_rounded}
        points = anchors.cell_centers(canvas, levels=[level], **options)
        points = np.asarray(points).reshape(*num_cells(canvas, 2**level), 2)
        radius = (config.center_radius or math.inf) * 2**level
        # The farther of the two sides across, and of those down.
        farther = [
            _farther_side(points[0, :, 0], boxes[:, ::2], radius),
            _farther_side(points[:, 0, 1], boxes[:, 1::2], radius),
        ]
        # Of all four, the farthest is in the range where both are, but not too near.
        near, nearer = (
            np.prod([np.sum(nearer_than(side, end), axis=1) for side in farther], 0)
            for nearer_than, end in ((within, high), (below, low))
        )
        total += near - nearer
    return total


def _farther_side(points: np.ndarray, sides: np.ndarray, radius: float) -> np.ndarray:
    """Returns how far the farther side is, `[N, cells]`; NaN beyond side or radius."""
    before, after = points - sides[:, :1], sides[:, 1:] - points
    inside = (np.minimum(before, after) > 0) & (np.abs(after - before) / 2 < radius)
    return np.where(inside, np.maximum(before, after), np.nan)


_LOG = logging.getLogger(__name__)
