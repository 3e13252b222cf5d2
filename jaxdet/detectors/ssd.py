"""SSD: single shot multibox detector (Liu et al. 2016).

Stages of a backbone, ever coarser, each look for objects of a size of their own: a
convolution on each says for every default box there which class it answers for and how
it should move. Nearly all default boxes are background; of these only the hardest
teach, three for each that answers for an object.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.detectors.detector import (
    Detector,
    from_network,
    of_level,
    require,
    require_colours,
)
from jaxdet.nn.backbones.vgg import VGG16SSD
from jaxdet.nn.extra_stages import ExtraStages
from jaxdet.nn.layers import Conv, NormType, inside_mask, zero_outside
from jaxdet.ops import anchors, box_coding, images, losses, matching, nms, sampling
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.coverage import Coverage, best_iou
from jaxdet.structs import Batch, Detections

Shapes = tuple[tuple[tuple[float, float], ...], ...]


def paper_shapes(
    sides: Sequence[float],
    ratios: Sequence[Sequence[float]],
    *,
    longest: float = math.inf,
) -> Shapes:
    """Default boxes of each map, as the paper makes them (2.2).

    Args:
      sides: in pixels, one more than there are maps.
      ratios: for each map, of its long to its short sides, without 1.
      longest: sides stop there.

    Returns:
      For each map the (height, width) of its boxes, in pixels: a square of its own
      side, one between that and the next map's, and for each ratio a box that lies and
      one that stands.
    """
    maps = []
    for (side, following), map_ratios in zip(
        itertools.pairwise(sides), ratios, strict=True
    ):
        between = math.sqrt(side * following)
        shapes = [(side, side), (between, between)]
        for root in map(math.sqrt, map_ratios):
            shapes += [(side / root, side * root), (side * root, side / root)]
        maps.append(tuple((min(h, longest), min(w, longest)) for h, w in shapes))
    return tuple(maps)


def tensorflow_shapes() -> Shapes:
    """Default boxes of each of six maps, as TensorFlow's SSD-MobileNetV2 has them.

    Returns:
      For each map the (height, width) of its boxes, in pixels: three on the first map,
      six on the others; sides are from 0.2 to 0.95 of a canvas of 300 pixels, evenly
      spaced.
    """
    scales = [0.2 + 0.15 * index for index in range(6)] + [1.0]
    found = [[(0.1, 1.0), (0.2, 2.0), (0.2, 0.5)]]
    for scale, following in itertools.pairwise(scales[1:]):
        of_map = [(scale, ratio) for ratio in (1.0, 2.0, 0.5, 3.0, 0.3333)]
        found.append([*of_map, (math.sqrt(scale * following), 1.0)])
    return tuple(
        tuple(
            (300 * scale / math.sqrt(ratio), 300 * scale * math.sqrt(ratio))
            for scale, ratio in of_map
        )
        for of_map in found
    )


_RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
_VOC_SHAPES = paper_shapes((30, 60, 111, 162, 213, 264, 315), _RATIOS)
_COCO_SHAPES = paper_shapes((21, 45, 99, 153, 207, 261, 315), _RATIOS, longest=300)


@dataclasses.dataclass(frozen=True)
class SSDConfig:
    """Numbers of SSD; defaults are the paper's for 300x300 pixels and VOC.

    Raises:
      ValueError: for numbers that contradict each other or are out of their range.
    """

    num_classes: int = 20
    """K; labels run from 0 to K - 1."""
    levels: tuple[int, ...] = (3, 4, 5, 6, 7, 8)
    """Of the backbone that have heads, finest first (2.1)."""
    steps: tuple[float, ...] = (8.0, 16.0, 32.0, 64.0, 100.0, 300.0)
    """Canvas pixels between the centres of default boxes, one a level."""
    shapes: Shapes = _VOC_SHAPES
    """(height, width) in canvas pixels of the default boxes of each level (2.2)."""
    scores: Literal["softmax", "sigmoid"] = "softmax"
    """One of K classes or background; or each class by itself, as TensorFlow's."""
    positive_iou: float = 0.5
    """From it on, a default box answers for the object (2.2)."""
    negatives_per_positive: float = 3.0
    """Hardest background boxes that teach, for each of an image's positive ones."""
    min_negatives: int = 3
    """At least so many in every image; the references have 0: there an image without
    objects teaches nothing."""
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    """Factors of the deltas: the inverse of their usual standard deviations."""
    box_beta: float = 1.0
    """Where smooth L1 turns from square to linear (2.2)."""
    box_weight: float = 1.0
    """Of the box loss in the sum; alpha (2.2)."""
    score_threshold: float = 0.01
    """Lower scores are no answers (3)."""
    candidates: int = 400
    """Best scores of each class that reach the NMS."""
    nms_threshold: float = 0.45
    """Of two answers of a class that overlap more, the better one stays (3)."""
    detections: int = 200
    """Slots for the answers on one image (3)."""
    mean: tuple[float, float, float] = (123 / 255, 117 / 255, 104 / 255)
    """Of red, green and blue, on a scale from 0 to 1."""
    std: tuple[float, float, float] = (1 / 255, 1 / 255, 1 / 255)
    """Of the same: only the mean is taken off."""

    def __post_init__(self):
        check = partial(require, self)
        for name in ("num_classes", "candidates", "detections"):
            check(name, getattr(self, name) >= 1, "at least 1")
        for name in (
            "negatives_per_positive",
            "min_negatives",
            "box_beta",
            "box_weight",
        ):
            check(name, getattr(self, name) >= 0, "0 or more")
        check("positive_iou", 0 < self.positive_iou <= 1, "in (0, 1]")
        for name in ("score_threshold", "nms_threshold"):
            check(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        rising = self.levels and list(self.levels) == sorted(set(self.levels))
        check("levels", rising, "one or more, finest first")
        for name in ("steps", "shapes"):
            one_each = len(getattr(self, name)) == len(self.levels)
            check(name, one_each, f"one for each of levels {self.levels}")
        check("steps", min(self.steps) > 0, "above 0")
        shapes = [shape for level in self.shapes for shape in level]
        right = all(self.shapes) and all(len(s) == 2 and min(s) > 0 for s in shapes)
        check("shapes", right, "one or more a level, each (height, width) above 0")
        check("scores", self.scores in ("softmax", "sigmoid"), "softmax or sigmoid")
        right = len(self.box_weights) == 4 and min(self.box_weights) > 0
        check("box_weights", right, "four numbers above 0")
        require_colours(self)


PAPER = SSDConfig(min_negatives=0)

TORCHVISION = SSDConfig(
    num_classes=80,
    shapes=_COCO_SHAPES,
    min_negatives=0,
    mean=(0.48235, 0.45882, 0.40784),
)


def vgg16_300(norm: NormType = "none", dtype: jnp.dtype = jnp.float32) -> ExtraStages:
    """The paper's backbone for 300x300 pixels: 38, 19, 10, 5, 3 and 1 cells a side.

    Images should fill their canvas (`InputConfig.keep_aspect=False`).
    """
    return ExtraStages(
        VGG16SSD(norm=norm, dtype=dtype),
        channels=((256, 512), (128, 256), (128, 256), (128, 256)),
        unpadded=2,
        norm=norm,
        dtype=dtype,
    )


class SSDNetwork(nn.Module):
    """A backbone, and two convolutions on each of its levels (2.1, Figure 2).

    Attributes:
      config: see `SSDConfig`.
      backbone: `(pixels, sizes) -> {level: features}`, with a `dtype`; it has all
        levels of `config`.
    """

    config: SSDConfig
    backbone: nn.Module

    @nn.compact
    def __call__(
        self, pixels: jax.Array, sizes: jax.Array | None = None
    ) -> tuple[dict[int, jax.Array], dict[int, jax.Array]]:
        """`[B, H, W, 3]` -> class logits and box deltas of each level.

        Returns:
          `{level: [B, rows, columns, S, K + 1]}`, background last, or K logits where
          classes are scored each by itself; and `{level: [B, rows, columns, S, 4]}`.
        """
        config = self.config
        stages = self.backbone(pixels, sizes)
        outputs = config.num_classes + (config.scores == "softmax")
        logits, deltas = {}, {}
        for level, shapes in zip(config.levels, config.shapes, strict=True):
            x = zero_outside(of_level(stages, level), sizes, 2**level)
            for answers, name, count in (
                (logits, "classes", outputs),
                (deltas, "deltas", 4),
            ):
                head = Conv(
                    len(shapes) * count,
                    kernel_init=nn.initializers.xavier_uniform(),
                    dtype=self.backbone.dtype,
                    name=f"{name}{level}",
                )
                answer = head(x).astype(jnp.float32)
                answers[level] = answer.reshape(*x.shape[:3], len(shapes), count)
        return logits, deltas


def loss(network, batch: Batch, key, *, config: SSDConfig, axis_name=None):
    """Class loss on positive and the hardest other boxes, box loss on the former (2.2).

    Args:
      network: a bound `SSDNetwork`.
      batch: with truth.
      key: not used: SSD draws nothing.
      config: see `SSDConfig`.
      axis_name: of the devices that share the batch, under `pmap`; None: there is one.

    Returns:
      The sum, and `{"class_loss", "box_loss", "positives"}`; the last is the number of
      positive default boxes of an image, on average.
    """
    del key  # SSD samples nothing.
    truth = batch.truth
    logits, deltas, boxes, used = _look(network, batch, config)
    # 1. Which object, if any, does each default box answer for?
    match = partial(matching.match_default_boxes, positive_iou=config.positive_iou)
    on_image = jnp.where(used[..., None], boxes[None], 0.0)  # no best one in padding
    matches = jax.vmap(match)(on_image, truth.boxes, truth.valid & ~truth.crowd)
    positive = matches.positive & used
    # 2. What should it have said?
    matched = jax.vmap(lambda values, index: values[index])
    labels = matched(truth.labels, matches.gt_index)
    labels = jnp.where(positive, labels, config.num_classes)  # K: background
    targets = box_coding.encode(
        matched(truth.boxes, matches.gt_index), boxes[None], weights=config.box_weights
    )
    # 3. How far off was it?
    miss = _class_misses(logits, labels, config)  # [B, A]
    wanted = config.negatives_per_positive * jnp.sum(positive, axis=1)
    wanted = jnp.maximum(wanted.astype(jnp.int32), config.min_negatives)
    hard = jax.vmap(sampling.hard_negative_mining)(
        miss, matches.negative & used, wanted
    )
    count = losses.device_mean_count(positive, axis_name=axis_name)
    class_loss = jnp.sum(miss, where=positive | hard) / count
    box_miss = losses.smooth_l1_loss(deltas, targets, beta=config.box_beta)
    box_loss = jnp.sum(box_miss, where=positive[..., None]) / count
    metrics = {
        "class_loss": class_loss,
        "box_loss": box_loss,
        "positives": jnp.mean(jnp.sum(positive, axis=1, dtype=jnp.float32)),
    }
    return class_loss + config.box_weight * box_loss, metrics


def predict(network, batch: Batch, *, config: SSDConfig) -> Detections:
    """The best scores of each class, decoded, clipped and thinned class by class.

    Args:
      network: a bound `SSDNetwork`.
      batch: truth is not looked at.
      config: see `SSDConfig`.

    Returns:
      `Detections` `[B, D]`, best first, D being `config.detections`.
    """
    logits, deltas, boxes, used = _look(network, batch, config)
    found = box_coding.decode(deltas, boxes[None], weights=config.box_weights)
    found = jax.vmap(box_ops.clip)(found, batch.sizes)
    if config.scores == "softmax":
        scores = jax.nn.softmax(logits)[..., :-1]
    else:
        scores = jax.nn.sigmoid(logits)
    good = used[..., None] & (scores > config.score_threshold)
    return jax.vmap(partial(_best, config=config))(found, jnp.where(good, scores, -1.0))


def coverage(
    canvas: tuple[int, int], boxes: np.ndarray, sizes: np.ndarray, *, config: SSDConfig
) -> Coverage:
    """How well default boxes overlap objects; for `Detector`.

    Args:
      canvas: (height, width) in pixels.
      boxes: `[N, 4]` objects, on canvases of that size.
      sizes: not used: the best box's cell is one of the image's.
      config: see `SSDConfig`.
    """
    del sizes  # The best one's cell is one of the image's.
    best = np.zeros(len(boxes))
    for step, shapes in zip(config.steps, config.shapes, strict=True):
        cells = _cells(canvas, step)
        grid = anchors.default_boxes([cells], strides=[step], sizes=[shapes])
        grid = np.asarray(grid).reshape(*cells, len(shapes), 4)
        best = np.maximum(best, best_iou(grid, boxes))
    threshold = config.positive_iou
    return Coverage(best, threshold, threshold, "IoU with the best default box")


def ssd(config: SSDConfig, backbone: nn.Module) -> Detector:
    """SSD on a backbone that returns `{level: features}` and has a `dtype`."""
    return from_network(
        SSDNetwork(config, backbone),
        loss=partial(loss, config=config),
        predict=partial(predict, config=config),
        num_classes=config.num_classes,
        builder=partial(ssd, config, backbone),
        coverage=partial(coverage, config=config),
    )


def _look(network, batch: Batch, config: SSDConfig):
    """Logits `[B, A, .]`, deltas `[B, A, 4]`, boxes `[A, 4]`, which count `[B, A]`.

    A runs over levels, rows, columns, shapes. The boxes that count are those of cells
    that the image alone would have.
    """
    normalize = partial(images.normalize, mean=config.mean, std=config.std)
    pixels = jax.vmap(normalize)(batch.images, batch.sizes)
    logits, deltas = network(pixels, batch.sizes)
    shapes = {level: deltas[level].shape for level in config.levels}  # B, H, W, S, 4
    _require_fitting_steps(batch.images.shape[1:3], shapes, config)
    boxes = anchors.default_boxes(
        [shape[1:3] for shape in shapes.values()],
        strides=config.steps,
        sizes=config.shapes,
    )
    used = {
        level: jnp.repeat(inside_mask(batch.sizes, shape, 2**level), shape[3], axis=3)
        for level, shape in shapes.items()
    }

    def flat(maps: dict[int, jax.Array], *width: int) -> jax.Array:
        rows = [maps[level].reshape(len(pixels), -1, *width) for level in shapes]
        return jnp.concatenate(rows, axis=1)

    width = next(iter(logits.values())).shape[-1]
    return flat(logits, width), flat(deltas, 4), boxes, flat(used)


def _require_fitting_steps(
    canvas: tuple[int, int], shapes: dict[int, tuple[int, ...]], config: SSDConfig
) -> None:
    """Default boxes must lie where their cells look."""
    for step, (level, shape) in zip(config.steps, shapes.items(), strict=True):
        if shape[1:3] != _cells(canvas, step):
            raise ValueError(
                f"steps is {config.steps}; on the canvas {canvas} level {level} has "
                f"{shape[1]} x {shape[2]} cells, whose step must be about "
                f"{canvas[0] / shape[1]:g} pixels, not {step:g}"
            )


def _cells(canvas: tuple[int, int], step: float) -> tuple[int, int]:
    """(rows, columns) of such a step that it takes to reach the canvas's end."""
    # 19 steps of 300 / 19 may come out as a little less than 300.
    rows, columns = (math.ceil(extent / step - 1e-6) for extent in canvas)
    return rows, columns


def _class_misses(logits, labels, config: SSDConfig) -> jax.Array:
    """`[B, A, .]` and `[B, A]` -> `[B, A]`: the class loss of every default box."""
    if config.scores == "softmax":
        likelihood = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(likelihood, labels[..., None], axis=-1)[..., 0]
    targets = jax.nn.one_hot(labels, config.num_classes)  # zeros for background
    misses = losses.sigmoid_focal_loss(logits, targets, alpha=None, gamma=0.0)
    return jnp.sum(misses, axis=-1)


def _best(found, scores, *, config: SSDConfig) -> Detections:
    """One image: `[A, 4]`, `[A, K]` -> `Detections` of it alone."""
    scores, index = jax.lax.top_k(scores.T, min(config.candidates, len(found)))
    labels = jnp.broadcast_to(jnp.arange(len(scores))[:, None], scores.shape)
    scores, index, labels = (x.reshape(-1) for x in (scores, index, labels))
    found = found[index]
    return nms.select_detections(
        found,
        scores,
        labels,
        iou_threshold=config.nms_threshold,
        max_detections=config.detections,
        valid=(scores > 0) & jnp.all(jnp.isfinite(found), axis=-1),
    )
