"""Mask R-CNN (He et al. 2017): Faster R-CNN with a third branch that predicts masks.

Beside class and box, a small convolutional head predicts a mask for each class; that of
the predicted class is used. RoI Align keeps features in place, which masks need.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxdet.config import Count, NonNegative, PositiveDepth, checked_dataclass
from jaxdet.detectors import faster_rcnn, roi_heads, rpn
from jaxdet.detectors.detector import Detector, from_network, preprocess
from jaxdet.detectors.faster_rcnn import FasterRCNNConfig, FasterRCNNNetwork
from jaxdet.nn.heads import MaskHead
from jaxdet.nn.layers import NormType
from jaxdet.ops import chunks, masks, sampling
from jaxdet.ops import losses as loss_ops
from jaxdet.ops.lookup import lookup_channel
from jaxdet.structs import Batch, Detections, GroundTruth

# RoIs of each image whose masks are trained at once.
_CHUNK_SIZE = 16


@checked_dataclass
class MaskRCNNConfig:
    """Configures Mask R-CNN; defaults are Faster R-CNN's, masks as in the paper."""

    faster_rcnn: FasterRCNNConfig = FasterRCNNConfig()
    """Everything but the masks."""
    mask_pool_size: Count = 14
    """Cells a side of the mask head's input; masks have twice as many (Figure 4)."""
    mask_channels: Count = 256
    """Of the mask head (Figure 4)."""
    mask_depth: PositiveDepth = 4
    """3x3 convolutions of the mask head (Figure 4)."""
    mask_norm: NormType = "none"
    """Of those convolutions; "group" trains from scratch."""
    mask_weight: NonNegative = 1.0
    """Of the mask loss in the sum (3)."""
    soft_targets: bool = False
    """Whether the target of a cell is how much of it the object covers, as in
    torchvision; else it is 0 or 1 (3.1)."""


PAPER = MaskRCNNConfig(faster_rcnn.FPN_PAPER)
TORCHVISION = MaskRCNNConfig(faster_rcnn.TORCHVISION, soft_targets=True)
TORCHVISION_V2 = dataclasses.replace(
    TORCHVISION, faster_rcnn=faster_rcnn.TORCHVISION_V2, mask_norm="frozen"
)
DETECTRON2 = MaskRCNNConfig(faster_rcnn.DETECTRON2)


def loss(network, batch: Batch, key, *, config: MaskRCNNConfig, axis_name=None):
    """Computes Faster R-CNN's four losses and that of positive RoIs' masks (3).

    Returns:
      The sum, and those of `faster_rcnn.loss` and `"mask_loss"`.

    Raises:
      ValueError: if the truth has no masks.
    """
    if batch.truth.masks is None:
        raise ValueError(
            "Mask R-CNN needs truth.masks; read the data set with its masks and set "
            "InputConfig.mask_size"
        )
    boxes = config.faster_rcnn
    rpn_keys, roi_keys, dropout_keys = sampling.image_keys(key, batch.image_ids, 3)
    pixels, sizes = preprocess(batch, boxes.rpn.preprocessing, boxes.rpn.mask_padding)
    features = network.features(pixels, sizes)
    # 1. Where could an object be?
    objectness, anchor_deltas = network.rpn_head(features, sizes)
    losses = rpn.losses(
        rpn_keys, objectness, anchor_deltas, batch, boxes.rpn, axis_name
    )
    proposals = rpn.propose(objectness, anchor_deltas, batch, boxes.rpn, training=True)
    # 2. What is it, and where exactly?
    rois = roi_heads.sample_rois(
        roi_keys, proposals, batch.truth, boxes.roi_heads, boxes.num_classes
    )
    crops = roi_heads.pool(features, rois.boxes, sizes, boxes.pooler)
    class_logits, box_deltas = roi_heads.box_head(network, crops, dropout_keys)
    losses |= roi_heads.losses(
        class_logits, box_deltas, rois, boxes.roi_heads, axis_name
    )
    # 3. Which of the pixels in a positive RoI, which come first, are the object's?
    rois = jax.tree.map(lambda x: x[:, : boxes.roi_heads.max_positives], rois)
    crops = roi_heads.pool(
        features, rois.boxes, sizes, boxes.pooler, config.mask_pool_size
    )
    losses["mask_loss"] = mask_loss(
        network.mask_head, crops, rois, batch.truth, config, axis_name
    )
    return sum(losses.values()), losses


def predict(network, batch: Batch, *, config: MaskRCNNConfig) -> Detections:
    """Detects as Faster R-CNN, and predicts the mask of each detection's class.

    Returns:
      `Detections` as of `faster_rcnn.predict`, with masks `[B, D, M, M]` in [0, 1], cut
      to their boxes; those of padding are zeros.
    """
    boxes = config.faster_rcnn
    pixels, sizes = preprocess(batch, boxes.rpn.preprocessing, boxes.rpn.mask_padding)
    features = network.features(pixels, sizes)
    objectness, anchor_deltas = network.rpn_head(features, sizes)
    proposals = rpn.propose(objectness, anchor_deltas, batch, boxes.rpn)
    crops = roi_heads.pool(features, proposals.boxes, sizes, boxes.pooler)
    class_logits, box_deltas = roi_heads.box_head(network, crops)
    detections = roi_heads.postprocess(
        class_logits, box_deltas, proposals, batch.sizes, boxes.roi_heads
    )
    crops = roi_heads.pool(
        features, detections.boxes, sizes, boxes.pooler, config.mask_pool_size
    )
    probabilities = jax.nn.sigmoid(
        predict_masks(network.mask_head, crops, detections.labels)
    )
    valid = detections.valid[..., None, None]
    return detections.replace(masks=jnp.where(valid, probabilities, 0.0))


def mask_rcnn(
    config: MaskRCNNConfig, backbone: nn.Module, box_head: nn.Module
) -> Detector:
    """Returns Mask R-CNN on the features of a backbone.

    Args:
      config: see `MaskRCNNConfig`.
      backbone: as of `faster_rcnn.faster_rcnn`; the mask head takes its `dtype`.
      box_head: as of `faster_rcnn.faster_rcnn`.
    """
    boxes = config.faster_rcnn
    mask_head = MaskHead(
        boxes.num_classes,
        channels=config.mask_channels,
        depth=config.mask_depth,
        norm=config.mask_norm,
        dtype=backbone.dtype,
    )
    return from_network(
        FasterRCNNNetwork(boxes, backbone, box_head, mask_head),
        loss=partial(loss, config=config),
        predict=partial(predict, config=config),
        num_classes=boxes.num_classes,
        builder=partial(mask_rcnn, config, backbone, box_head),
        has_masks=True,
    )


def predict_masks(head: Callable, crops: jax.Array, labels: jax.Array) -> jax.Array:
    """Predicts a mask in the crop of every RoI, for the class of the RoI alone.

    Args:
      head: the mask head, from `[B * R, S, S, C]` to `[B * R, M, M, K]`.
      crops: `[B, R, S, S, C]`.
      labels: `[B, R]`; background has no mask, and gets that of any class.

    Returns:
      Mask logits `[B, R, M, M]`.
    """
    logits = head(crops.reshape(-1, *crops.shape[2:]))
    own = jnp.minimum(labels.reshape(-1), logits.shape[-1] - 1)
    return roi_heads.unflatten(lookup_channel(logits, own), labels.shape)


def mask_loss(
    head: nn.Module,
    crops: jax.Array,
    rois: roi_heads.SampledRoIs,
    truth: GroundTruth,
    config: MaskRCNNConfig,
    axis_name: str | None = None,
) -> jax.Array:
    """Returns the mean cross-entropy of the cells of positive RoIs' masks (3).

    Masks are predicted for as many RoIs as the image with the most positive ones has,
    rounded up to `_CHUNK_SIZE`.

    Args:
      head: the mask head, bound to its variables.
      crops: `[B, R, S, S, C]`, the features of the RoIs.
      rois: `[B, R]`.
      truth: `[B, N]`, with masks.
      config: of the targets, and the weight of the loss.
      axis_name: of the devices; None: there is one.

    Returns:
      A scalar.
    """
    crop = partial(masks.crop_and_resize_masks, output_size=2 * config.mask_pool_size)
    targets = jax.vmap(crop)(truth.masks, truth.boxes, rois.boxes, rois.gt_index)
    if not config.soft_targets:
        targets = (targets >= 0.5).astype(jnp.float32)
    head, variables = head.unbind()

    def total_loss(variables, crops, labels, targets, positive):
        logits = predict_masks(partial(head.apply, variables), crops, labels)
        entropies = optax.losses.sigmoid_binary_cross_entropy(logits, targets)
        return jnp.sum(jnp.mean(entropies, axis=(2, 3)), where=positive)

    total = chunks.sum_over_chunks(
        total_loss,
        _CHUNK_SIZE,
        variables,
        crops,
        (rois.labels, targets, rois.positive),
        jnp.max(jnp.sum(rois.positive, axis=1)),
    )
    count = loss_ops.device_mean_count(rois.positive, axis_name=axis_name)
    return config.mask_weight * (total / count)
