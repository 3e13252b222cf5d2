"""Makes the detectors that are timed, their variables, and images for them.

Weights and images are random, but scaled so that detectors have as much to do as
trained ones on photographs.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.benchmarks.timing import random_boxes
from jaxdet.detectors import (
    deformable_detr,
    detr,
    faster_rcnn,
    fcos,
    mask_rcnn,
    retinanet,
    ssd,
)
from jaxdet.detectors.detector import Detector
from jaxdet.nn.backbones.resnet import ResNet, ResNetHead
from jaxdet.nn.heads import FCHead
from jaxdet.structs import Batch, GroundTruth
from jaxdet.training.config import TrainingConfig

TRAINING = TrainingConfig(learning_rate=1e-4, warmup_steps=0)
MASK_CELLS = 56  # a side of the objects' masks
DETECTIONS_PER_IMAGE = 50
_CLASSES = (
    r".*(class_head(s_\d)?(/output)?|head/classes|box_predictor/classes|classes\d)"
    r"/kernel"
)
_BOXES = r".*(box_head/output|head/ltrb|deltas\d?)/kernel"
_LTRB_BIAS = "head/ltrb/bias"
_RESIDUALS = r"(backbone|box_head)/stage\d_block\d+/conv3/kernel"


class Model(NamedTuple):
    """A detector as it is timed."""

    title: str
    make: Callable  # (config, backbone) or (config, backbone, box head) -> Detector
    config: Any
    backbone: Callable  # dtype -> module
    box_head: Callable | None = None  # likewise
    rival: str | None = None  # the function of torchvision that makes the same
    canvas: tuple[int, int] | None = None  # the only (height, width) that it takes

    def layers(self, precision: str) -> list[nn.Module]:
        """Returns backbone and box head, as `make` takes them."""
        makers = (self.backbone, self.box_head)
        return [make(dtype=jnp.dtype(precision).type) for make in makers if make]

    def detector(self, precision: str) -> Detector:
        """Returns the detector with arithmetic of this precision."""
        return self.make(self.config, *self.layers(precision))


# Torchvision's networks: 91 outputs, of which the R-CNNs and SSD call one background.
_RETINANET = replace(retinanet.TORCHVISION, num_classes=91)
_FCOS = replace(fcos.TORCHVISION, num_classes=91)
_DETR = replace(detr.TRANSFORMERS, num_classes=91)
_DEFORMABLE_DETR = deformable_detr.DeformableDETRConfig(num_classes=91)
_SSD = replace(ssd.TORCHVISION, num_classes=90)
_FASTER = replace(faster_rcnn.TORCHVISION, num_classes=90)
_C4 = replace(faster_rcnn.DETECTRON2_C4, num_classes=90)
_MASK = replace(mask_rcnn.TORCHVISION, faster_rcnn=_FASTER)
_RESNET, _FC_HEAD = partial(ResNet, 50), partial(FCHead, 1024)
_C4_LAYERS = partial(ResNet, 50, coarsest=4), partial(ResNetHead, 50)
_FASTER_RCNN = faster_rcnn.faster_rcnn
MODELS = {
    "retinanet": Model(
        *("RetinaNet", retinanet.retinanet, _RETINANET, _RESNET),
        rival="retinanet_resnet50_fpn",
    ),
    "fcos": Model("FCOS", fcos.fcos, _FCOS, _RESNET, rival="fcos_resnet50_fpn"),
    "faster_rcnn": Model(
        *("Faster R-CNN", _FASTER_RCNN, _FASTER, _RESNET, _FC_HEAD),
        rival="fasterrcnn_resnet50_fpn",
    ),
    "faster_rcnn_c4": Model("Faster R-CNN, C4", _FASTER_RCNN, _C4, *_C4_LAYERS),
    "mask_rcnn": Model(
        *("Mask R-CNN", mask_rcnn.mask_rcnn, _MASK, _RESNET, _FC_HEAD),
        rival="maskrcnn_resnet50_fpn",
    ),
    "ssd": Model(
        *("SSD", ssd.ssd, _SSD, ssd.vgg16_300),
        rival="ssd300_vgg16",
        canvas=(300, 300),
    ),
    "detr": Model("DETR", detr.detr, _DETR, _RESNET),
    "deformable_detr": Model(
        *("Deformable DETR", deformable_detr.deformable_detr),
        *(_DEFORMABLE_DETR, _RESNET),
    ),
}


def random_batch(
    count: int,
    canvas: tuple[int, int],
    objects: int,
    num_classes: int,
    *,
    masks: bool = False,
) -> Batch:
    """Returns images of noise that fill the canvas, with objects anywhere.

    Args:
      count: images.
      canvas: (height, width) in pixels.
      objects: in every image, none of them a crowd.
      num_classes: labels are drawn from all of them.
      masks: whether objects have masks, which fill their boxes.
    """
    rng = np.random.default_rng(0)
    shape = (count, objects)
    boxes = [random_boxes(rng, objects, canvas) for _ in range(count)]
    valid = jnp.ones(shape, bool)
    truth = GroundTruth(
        boxes=jnp.asarray(boxes),
        labels=jnp.asarray(rng.integers(0, num_classes, shape), jnp.int32),
        valid=valid,
        crowd=~valid,
        masks=jnp.ones((*shape, MASK_CELLS, MASK_CELLS)) if masks else None,
    )
    return Batch(
        images=jnp.asarray(rng.integers(0, 256, (count, *canvas, 3)), jnp.uint8),
        sizes=jnp.tile(jnp.array([canvas], jnp.int32), (count, 1)),
        scales=jnp.ones((count, 2)),
        image_ids=jnp.arange(count, dtype=jnp.int32),
        truth=truth,
    )


def calibrate_boxes(variables: dict[str, Any]) -> dict[str, Any]:
    """Scales fresh variables so that boxes stay where their anchors are.

    Fresh layers on fresh features would send all boxes to the same place far outside
    the image, and leave nothing to non-maximum suppression. Residual blocks add a
    quarter of what they would: otherwise each doubles the variance of its features,
    and the losses are those of a network that is sure of everything.
    """

    def scaled(path: str, values: jax.Array) -> jax.Array:
        if path == _LTRB_BIAS:  # FCOS has no anchors: three strides to every side
            return jnp.full_like(values, 3.0)
        if re.fullmatch(_RESIDUALS, path):
            return values / 4
        return jnp.zeros_like(values) if re.fullmatch(_BOXES, path) else values

    return _map_parameters(scaled, variables)


def calibrate_scores(
    predict: Callable, variables: dict[str, Any], batch: Batch
) -> dict[str, Any]:
    """Returns variables with which images have `DETECTIONS_PER_IMAGE` detections.

    The layers of class logits are multiplied by one factor, which bisection finds: of
    a fresh network no score is above the threshold, or all are.

    Args:
      predict: the compiled `(variables, batch) -> Detections`.
      variables: fresh ones.
      batch: in which so many are to be detected, on average.
    """

    def scaled(power: float) -> dict[str, Any]:
        def scale(path: str, values: jax.Array) -> jax.Array:
            return values * 2**power if re.fullmatch(_CLASSES, path) else values

        return _map_parameters(scale, variables)

    low, high = -10.0, 10.0
    for _ in range(8):
        middle = (low + high) / 2
        count = mean_detections(predict(scaled(middle), batch))
        if count < DETECTIONS_PER_IMAGE:
            low = middle
        else:
            high = middle
    return scaled(high)


def mean_detections(detections: Any) -> float:
    """Returns the mean number of detections in an image."""
    return float(np.mean(np.sum(np.asarray(detections.valid), axis=1)))


def _map_parameters(change: Callable, variables: dict[str, Any]) -> dict[str, Any]:
    """Replaces each parameter by `change(path, values)`."""
    flat = flatten_dict(variables["params"], sep="/")
    changed = {path: change(path, values) for path, values in flat.items()}
    return {**variables, "params": unflatten_dict(changed, sep="/")}
