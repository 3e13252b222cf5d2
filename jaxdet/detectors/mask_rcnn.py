"""Mask R-CNN (He et al. 2017): Faster R-CNN with a third answer for each region.

Beside class and box, a small convolutional head paints a mask for each class; that of
the class found is the answer. RoI Align keeps the features in place, which masks need.
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxdet.detectors import faster_rcnn, rpn
from jaxdet.detectors.detector import Detector, from_network, require
from jaxdet.detectors.faster_rcnn import FasterRCNNConfig, FasterRCNNNetwork
from jaxdet.nn.heads import MaskHead
from jaxdet.nn.layers import NormType
from jaxdet.ops import losses, masks
from jaxdet.structs import Batch, Detections


@dataclasses.dataclass(frozen=True)
class MaskRCNNConfig:
    """Numbers of Mask R-CNN; defaults are Faster R-CNN's, masks as in the paper.

    Raises:
      ValueError: for a number out of its range, naming the field and what is allowed.
    """

    faster_rcnn: FasterRCNNConfig = FasterRCNNConfig()
    """Everything but the masks."""
    mask_pool_size: int = 14
    """Cells a side that the mask head sees; the masks have twice as many (Figure 4)."""
    mask_channels: int = 256
    """Of the mask head (Figure 4)."""
    mask_depth: int = 4
    """3x3 convolutions of the mask head (Figure 4)."""
    mask_norm: NormType = "none"
    """Of those convolutions; "group" learns from scratch."""
    soft_targets: bool = False
    """Cells on the border of an object are to be painted as much as it covers them, as
    in torchvision; not in full or not at all (3.1)."""
    mask_weight: float = 1.0
    """Of the mask loss in the sum (3)."""

    def __post_init__(self):
        for name in ("mask_pool_size", "mask_channels", "mask_depth"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        allowed = ("none", "group", "frozen")
        require(self, "mask_norm", self.mask_norm in allowed, f"one of {allowed}")
        require(self, "mask_weight", self.mask_weight >= 0, "0 or more")


PAPER = MaskRCNNConfig(faster_rcnn.FPN_PAPER)
TORCHVISION = MaskRCNNConfig(faster_rcnn.TORCHVISION, soft_targets=True)
TORCHVISION_V2 = dataclasses.replace(
    TORCHVISION, faster_rcnn=faster_rcnn.TORCHVISION_V2, mask_norm="frozen"
)
DETECTRON2 = MaskRCNNConfig(faster_rcnn.DETECTRON2)


def loss(network, batch: Batch, key, *, config: MaskRCNNConfig, axis_name=None):
    """Faster R-CNN's four losses and that of the masks of positive regions (3).

    Args:
      network: a bound `FasterRCNNNetwork` with a mask head.
      batch: with truth, masks included.
      key: of the step; what an image draws hangs on it and on the image's id.
      config: see `MaskRCNNConfig`.
      axis_name: of the devices that share the batch, under `pmap`; None: there is one.

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
    pyramid = faster_rcnn.look(network, batch, boxes)
    metrics, samples = faster_rcnn.learn(
        network, pyramid, batch, key, config=boxes, axis_name=axis_name
    )
    # Positive samples come first; nothing else has a mask.
    most = max(1, int(boxes.region.per_image * boxes.region.positive_fraction))
    samples = jax.tree.map(lambda values: values[:, :most], samples)
    logits = _paint(network, pyramid, batch, samples.boxes, samples.labels, config)
    targets = jax.vmap(
        partial(masks.crop_and_resize_masks, output_size=logits.shape[-1])
    )(batch.truth.masks, batch.truth.boxes, samples.boxes, samples.objects)
    if not config.soft_targets:
        targets = (targets >= 0.5).astype(jnp.float32)
    entropies = optax.losses.sigmoid_binary_cross_entropy(logits, targets)
    misses = jnp.mean(entropies, axis=(2, 3))  # [B, R]
    count = losses.device_mean_count(samples.positive, axis_name=axis_name)
    mask_loss = jnp.sum(misses, where=samples.positive) / count
    metrics["mask_loss"] = config.mask_weight * mask_loss
    return sum(metrics.values()), metrics


def predict(network, batch: Batch, *, config: MaskRCNNConfig) -> Detections:
    """Faster R-CNN's answers, and the mask of each one's class within its box.

    Args:
      network: a bound `FasterRCNNNetwork` with a mask head.
      batch: truth is not looked at.
      config: see `MaskRCNNConfig`.

    Returns:
      `Detections` as of `faster_rcnn.predict`, with masks `[B, D, M, M]` in [0, 1], cut
      to their boxes; those of padding are zeros.
    """
    pyramid = faster_rcnn.look(network, batch, config.faster_rcnn)
    found = faster_rcnn.answer(network, pyramid, batch, config=config.faster_rcnn)
    logits = _paint(network, pyramid, batch, found.boxes, found.labels, config)
    painted = found.valid[..., None, None]
    return found.replace(masks=jnp.where(painted, jax.nn.sigmoid(logits), 0.0))


def mask_rcnn(
    config: MaskRCNNConfig, backbone: nn.Module, box_head: nn.Module
) -> Detector:
    """Mask R-CNN from what a backbone hands over.

    Args:
      config: see `MaskRCNNConfig`.
      backbone: as of `faster_rcnn.faster_rcnn`; the mask head takes its `dtype`.
      box_head: as of `faster_rcnn.faster_rcnn`.
    """
    mask_head = MaskHead(
        config.faster_rcnn.num_classes,
        channels=config.mask_channels,
        depth=config.mask_depth,
        norm=config.mask_norm,
        dtype=backbone.dtype,
    )
    return from_network(
        FasterRCNNNetwork(config.faster_rcnn, backbone, box_head, mask_head),
        loss=partial(loss, config=config),
        predict=partial(predict, config=config),
        num_classes=config.faster_rcnn.num_classes,
        builder=partial(mask_rcnn, config, backbone, box_head),
        coverage=partial(rpn.coverage, config=config.faster_rcnn.rpn),
    )


def _paint(network, pyramid, batch, boxes, labels, config) -> jax.Array:
    """Mask logits of one class a region, `[B, R, 4]` and `[B, R]` -> `[B, R, M, M]`."""
    sizes = batch.sizes if config.faster_rcnn.rpn.mask_padding else None
    crops = faster_rcnn.crop(
        pyramid, boxes, sizes, config.faster_rcnn, size=config.mask_pool_size
    )
    logits = network.mask_head(crops.reshape(-1, *crops.shape[2:]))  # [B * R, M, M, K]
    # Background has no mask; what it gets here is not looked at.
    own = jnp.minimum(labels.reshape(-1), logits.shape[-1] - 1)
    logits = jnp.take_along_axis(logits, own[:, None, None, None], axis=-1)[..., 0]
    return logits.reshape(*labels.shape, *logits.shape[1:])
