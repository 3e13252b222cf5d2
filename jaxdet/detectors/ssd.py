"""SSD: single shot multibox detector (Liu et al. 2016).

Stages of a backbone, ever coarser, each detect objects of a size of their own: a
convolution on each predicts for every default box its class and how it should move.
Nearly all default boxes are background; only the hardest of these are trained, three
for each that is matched to an object.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxdet.config import (
    ConfigError,
    Count,
    Levels,
    NonNegative,
    NotEmpty,
    Positive,
    PositiveFraction,
    Postprocessing,
    Preprocessing,
    Size,
    checked_dataclass,
)
from jaxdet.detectors import dense
from jaxdet.detectors.detector import Detector, from_network, preprocess
from jaxdet.nn.backbones.vgg import VGG16SSD
from jaxdet.nn.convolution import Conv
from jaxdet.nn.extra_stages import ExtraStages
from jaxdet.nn.fpn import of_level
from jaxdet.nn.layers import NormType, inside_mask, zero_outside
from jaxdet.ops import anchors, box_coding, losses, matching, sampling
from jaxdet.structs import Batch, Detections

BoxSizes = tuple[tuple[float, float], ...]


def paper_box_sizes(
    sides: Sequence[float],
    ratios: Sequence[Sequence[float]],
    *,
    longest: float = math.inf,
) -> tuple[BoxSizes, ...]:
    """Returns the sizes of default boxes as the paper defines them (2.2).

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
        sizes = [(side, side), (between, between)]
        for root in map(math.sqrt, map_ratios):
            sizes += [(side / root, side * root), (side * root, side / root)]
        maps.append(tuple((min(h, longest), min(w, longest)) for h, w in sizes))
    return tuple(maps)


def tensorflow_box_sizes() -> tuple[BoxSizes, ...]:
    """Returns the sizes of the default boxes of TensorFlow's SSD-MobileNetV2.

    Returns:
      For each of six maps the (height, width) of its boxes, in pixels: three on the
      first map, six on the others; sides are from 0.2 to 0.95 of a canvas of 300
      pixels, evenly spaced.
    """
    scales = [0.2 + 0.15 * index for index in range(6)] + [1.0]
    maps = [[(0.1, 1.0), (0.2, 2.0), (0.2, 0.5)]]
    for scale, following in itertools.pairwise(scales[1:]):
        of_map = [(scale, ratio) for ratio in (1.0, 2.0, 0.5, 3.0, 0.3333)]
        maps.append([*of_map, (math.sqrt(scale * following), 1.0)])
    return tuple(
        tuple(
            (300 * scale / math.sqrt(ratio), 300 * scale * math.sqrt(ratio))
            for scale, ratio in of_map
        )
        for of_map in maps
    )


_RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
_VOC_SIZES = paper_box_sizes((30, 60, 111, 162, 213, 264, 315), _RATIOS)
_COCO_SIZES = paper_box_sizes((21, 45, 99, 153, 207, 261, 315), _RATIOS, longest=300)


@checked_dataclass
class SSDConfig:
    """Configures SSD; defaults are the paper's for 300x300 pixels and VOC."""

    num_classes: Count = 20
    """K; labels run from 0 to K - 1."""
    levels: Levels = (3, 4, 5, 6, 7, 8)
    """Of the backbone that have heads, finest first (2.1)."""
    strides: tuple[Positive, ...] = (8.0, 16.0, 32.0, 64.0, 100.0, 300.0)
    """Canvas pixels between the centers of default boxes, one a level."""
    default_box_sizes: tuple[
        Annotated[tuple[tuple[Positive, Positive], ...], NotEmpty()], ...
    ] = _VOC_SIZES
    """(height, width) in canvas pixels of the default boxes of each level (2.2)."""
    score_function: Literal["softmax", "sigmoid"] = "softmax"
    """Softmax over K classes and background; or a sigmoid of each class, as
    TensorFlow's."""
    positive_iou: PositiveFraction = 0.5
    """Default boxes that overlap an object as much or more are matched to it (2.2)."""
    negatives_per_positive: NonNegative = 3.0
    """Hardest background boxes that are trained, for each of an image's positive ones
    (2.2)."""
    min_negatives: Size = 3
    """At least so many in every image; the references have 0: there an image without
    objects trains nothing."""
    box_weights: tuple[Positive, Positive, Positive, Positive] = (10.0, 10.0, 5.0, 5.0)
    """Factors of the deltas: the inverse of their usual standard deviations."""
    box_beta: NonNegative = 1.0
    """Where smooth L1 turns from square to linear (2.2)."""
    box_weight: NonNegative = 1.0
    """Of the box loss in the sum; alpha (2.2)."""
    preprocessing: Preprocessing = Preprocessing(
        mean=(123 / 255, 117 / 255, 104 / 255), std=(1 / 255, 1 / 255, 1 / 255)
    )
    """Only the mean is subtracted."""
    postprocessing: Postprocessing = Postprocessing(
        score_threshold=0.01, pre_nms_topk=400, nms_threshold=0.45, max_detections=200
    )
    """The top 400 scores of each class reach the NMS (3)."""

    def relations(self) -> Iterator[tuple[str, bool, str]]:
        """Checks that every level has a stride and default boxes."""
        for name in ("strides", "default_box_sizes"):
            one_each = len(getattr(self, name)) == len(self.levels)
            yield name, one_each, f"one for each of the levels {self.levels}"


PAPER = SSDConfig(min_negatives=0)

TORCHVISION = SSDConfig(
    num_classes=80,
    default_box_sizes=_COCO_SIZES,
    min_negatives=0,
    preprocessing=Preprocessing(
        mean=(0.48235, 0.45882, 0.40784), std=(1 / 255, 1 / 255, 1 / 255)
    ),
)


def vgg16_300(norm: NormType = "none", dtype: jnp.dtype = jnp.float32) -> ExtraStages:
    """Returns the paper's backbone for 300x300: 38, 19, 10, 5, 3 and 1 cells a side.

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
    """A backbone, and two convolutions on each of its levels (2.1, Figure 2)."""

    config: SSDConfig  # see `SSDConfig`
    backbone: nn.Module
    """`(pixels, sizes) -> {level: features}`, with a `dtype`; it has all levels of
    `config`."""

    @nn.compact
    def __call__(
        self, pixels: jax.Array, sizes: jax.Array | None = None
    ) -> tuple[dict[int, jax.Array], dict[int, jax.Array]]:
        """`[B, H, W, 3]` -> class logits and box deltas of each level.

        Returns:
          `{level: [B, rows, columns, S, K + 1]}`, background last, or K logits with
          sigmoids; and `{level: [B, rows, columns, S, 4]}`.
        """
        config = self.config
        stages = self.backbone(pixels, sizes)
        num_logits = config.num_classes + (config.score_function == "softmax")
        logits, deltas = {}, {}
        for level, box_sizes in zip(
            config.levels, config.default_box_sizes, strict=True
        ):
            x = zero_outside(of_level(stages, level), sizes, 2**level)
            for outputs, name, width in (
                (logits, "classes", num_logits),
                (deltas, "deltas", 4),
            ):
                head = Conv(
                    len(box_sizes) * width,
                    kernel_init=nn.initializers.xavier_uniform(),
                    dtype=self.backbone.dtype,
                    name=f"{name}{level}",
                )
                output = head(x).astype(jnp.float32)
                outputs[level] = output.reshape(*x.shape[:3], len(box_sizes), width)
        return logits, deltas


def loss(network, batch: Batch, key, *, config: SSDConfig, axis_name=None):
    """Computes class losses of positive and hard negative boxes, box losses (2.2).

    Returns:
      The sum, and `{"class_loss", "box_loss", "positives"}`; the last is the number of
      positive default boxes of an image, on average.
    """
    del key  # SSD samples nothing.
    truth = batch.truth
    pixels, sizes = preprocess(batch, config.preprocessing)
    logits, deltas = network(pixels, sizes)  # maps of each level
    boxes, inside = _default_boxes(pixels.shape[1:3], sizes, deltas, config)
    logits, deltas = _flatten(logits), _flatten(deltas)  # [B, A, K + 1], [B, A, 4]
    # 1. Match every default box to an object or to the background.
    match = partial(matching.match_default_boxes, positive_iou=config.positive_iou)
    valid = truth.valid & ~truth.crowd
    matches = jax.vmap(match)(dense.zero_outside(boxes, inside), truth.boxes, valid)
    matches = dense.ignore_outside(matches, inside)
    positive, negative = matches.positive, matches.negative
    # 2. Gather the targets of the matched boxes.
    labels, target_boxes = dense.matched_targets(
        truth, matches.gt_index, positive, num_classes=config.num_classes
    )
    targets = box_coding.encode(target_boxes, boxes[None], weights=config.box_weights)
    # 3. Compute the losses, of the background's only where they are largest.
    class_loss = _class_loss_per_box(logits, labels, config)  # [B, A]
    wanted = config.negatives_per_positive * jnp.sum(positive, axis=1)
    wanted = jnp.maximum(wanted.astype(jnp.int32), config.min_negatives)
    hard = jax.vmap(sampling.hard_negative_mining)(class_loss, negative, wanted)
    box_loss = losses.smooth_l1_loss(deltas, targets, beta=config.box_beta)
    count = losses.device_mean_count(positive, axis_name=axis_name)
    class_loss = jnp.sum(class_loss, where=positive | hard) / count
    box_loss = jnp.sum(box_loss, where=positive[..., None]) / count
    metrics = {
        "class_loss": class_loss,
        "box_loss": box_loss,
        "positives": jnp.mean(jnp.sum(positive, axis=1, dtype=jnp.float32)),
    }
    return class_loss + config.box_weight * box_loss, metrics


def predict(network, batch: Batch, *, config: SSDConfig) -> Detections:
    """Decodes the top scores of each class and removes duplicates by NMS."""
    pixels, sizes = preprocess(batch, config.preprocessing)
    logits, deltas = network(pixels, sizes)  # maps of each level
    boxes, inside = _default_boxes(pixels.shape[1:3], sizes, deltas, config)
    logits, deltas = _flatten(logits), _flatten(deltas)  # [B, A, K + 1], [B, A, 4]
    boxes = box_coding.decode(deltas, boxes[None], weights=config.box_weights)
    if config.score_function == "softmax":
        scores = jax.nn.softmax(logits)[..., :-1]
    else:
        scores = jax.nn.sigmoid(logits)
    kept = inside[..., None] & (scores > config.postprocessing.score_threshold)
    scores = jnp.where(kept, scores, -1.0)
    scores, index, labels = _topk_per_class(scores, config.postprocessing.pre_nms_topk)
    boxes = dense.gather(boxes, index)
    return dense.postprocess(boxes, scores, labels, batch.sizes, config.postprocessing)


def ssd(config: SSDConfig, backbone: nn.Module) -> Detector:
    """Returns SSD on a backbone `(pixels, sizes) -> {level: features}`."""
    return from_network(
        SSDNetwork(config, backbone),
        loss=partial(loss, config=config),
        predict=partial(predict, config=config),
        num_classes=config.num_classes,
        builder=partial(ssd, config, backbone),
    )


def num_cells(canvas: tuple[int, int], stride: float) -> tuple[int, int]:
    """Returns the (rows, columns) of cells of a stride that cover a canvas."""
    # 19 strides of 300 / 19 may come out as a little less than 300.
    rows, columns = (math.ceil(extent / stride - 1e-6) for extent in canvas)
    return rows, columns


def _default_boxes(canvas, sizes, deltas, config: SSDConfig):
    """Returns default boxes `[A, 4]`, and which lie in cells on their image `[B, A]`.

    A runs over levels, rows, columns, shapes.
    """
    maps = {level: deltas[level].shape for level in config.levels}  # B, H, W, S, 4
    for stride, (level, shape) in zip(config.strides, maps.items(), strict=True):
        if shape[1:3] != num_cells(canvas, stride):
            raise ConfigError(
                f"strides is {config.strides}; on the canvas {canvas} level {level} "
                f"has {shape[1]} x {shape[2]} cells, whose stride must be about "
                f"{canvas[0] / shape[1]:g} pixels, not {stride:g}"
            )
    boxes = anchors.default_boxes(
        [shape[1:3] for shape in maps.values()],
        strides=config.strides,
        sizes=config.default_box_sizes,
    )
    masks = {
        level: jnp.repeat(inside_mask(sizes, shape, 2**level), shape[3], axis=3)
        for level, shape in maps.items()
    }
    return boxes, _flatten(masks)


def _flatten(maps: dict[int, jax.Array]) -> jax.Array:
    """Joins `{level: [B, rows, columns, S, ...]}` to `[B, A, ...]`."""
    rows = [x.reshape(len(x), -1, *x.shape[4:]) for _, x in sorted(maps.items())]
    return jnp.concatenate(rows, axis=1)


def _class_loss_per_box(logits, labels, config: SSDConfig) -> jax.Array:
    """Computes the losses of all boxes, `[B, A]`, from K or K + 1 logits of each."""
    if config.score_function == "softmax":
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    targets = jax.nn.one_hot(labels, config.num_classes)  # zeros for background
    entropy = optax.losses.sigmoid_binary_cross_entropy(logits, targets)
    return jnp.sum(entropy, axis=-1)


def _topk_per_class(scores: jax.Array, k: int) -> tuple[jax.Array, ...]:
    """Takes the `k` best boxes of each class: scores, boxes, labels, `[B, K * k]`."""
    batch, count, classes = scores.shape
    top, index = jax.lax.top_k(scores.transpose(0, 2, 1), min(k, count))
    labels = jnp.broadcast_to(jnp.arange(classes)[:, None], top.shape)
    return top.reshape(batch, -1), index.reshape(batch, -1), labels.reshape(batch, -1)
