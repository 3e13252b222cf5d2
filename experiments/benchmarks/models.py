"""The detectors that `benchmarks.speed` measures, and images and objects for them.

Weights and images are random, but so that the detectors have as much to do as with
trained ones on photographs.
"""

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.benchmarks.timing import random_boxes
from jaxdet.detectors import faster_rcnn, fcos, mask_rcnn, retinanet, ssd
from jaxdet.detectors.detector import Detector
from jaxdet.nn.backbones.resnet import ResNet, ResNetHead
from jaxdet.nn.heads import FCHead
from jaxdet.structs import Batch, GroundTruth
from jaxdet.training.config import TrainingConfig

TRAINING = TrainingConfig(learning_rate=1e-4, warmup_steps=0)
MASK_CELLS = 56  # a side of the objects' masks
FOUND = 50  # detections an image
_CLASSES = r".*(class_head/output|head/classes|box_predictor/classes|classes\d)/kernel"
_BOXES = r".*(box_head/output|head/ltrb|deltas\d?)/kernel"
_SIDES = "head/ltrb/bias"
_RESIDUALS = r"(backbone|box_head)/stage\d_block\d+/conv3/kernel"


class Model(NamedTuple):
    """A detector as it is measured."""

    title: str
    make: Callable  # (config, backbone) or (config, backbone, box head) -> Detector
    config: Any
    backbone: Callable  # dtype -> module
    box_head: Callable | None = None  # likewise
    rival: str | None = None  # torchvision's function
    canvas: tuple[int, int] | None = None  # the only one

    def layers(self, precision: str) -> list[nn.Module]:
        """Backbone and box head, as `make` takes them."""
        makers = (self.backbone, self.box_head)
        return [make(dtype=jnp.dtype(precision).type) for make in makers if make]

    def detector(self, precision: str) -> Detector:
        """With arithmetic of this precision."""
        return self.make(self.config, *self.layers(precision))


# Torchvision's networks: 91 outputs, of which the R-CNNs and SSD call one background.
_DENSE, _REGIONS = {"num_classes": 91}, {"num_classes": 90}
_FASTER_RCNN = dataclasses.replace(faster_rcnn.TORCHVISION, **_REGIONS)
_RESNET, _HEAD = partial(ResNet, 50), partial(FCHead, 1024)
MODELS = {
    "retinanet": Model(
        "RetinaNet",
        retinanet.retinanet,
        dataclasses.replace(retinanet.TORCHVISION, **_DENSE),
        _RESNET,
        rival="retinanet_resnet50_fpn",
    ),
    "fcos": Model(
        "FCOS",
        fcos.fcos,
        dataclasses.replace(fcos.TORCHVISION, **_DENSE),
        _RESNET,
        rival="fcos_resnet50_fpn",
    ),
    "faster_rcnn": Model(
        "Faster R-CNN",
        faster_rcnn.faster_rcnn,
        _FASTER_RCNN,
        _RESNET,
        _HEAD,
        rival="fasterrcnn_resnet50_fpn",
    ),
    "faster_rcnn_c4": Model(
        "Faster R-CNN, C4",
        faster_rcnn.faster_rcnn,
        dataclasses.replace(faster_rcnn.DETECTRON2_C4, **_REGIONS),
        partial(ResNet, 50, coarsest=4),
        partial(ResNetHead, 50),
    ),
    "mask_rcnn": Model(
        "Mask R-CNN",
        mask_rcnn.mask_rcnn,
        dataclasses.replace(mask_rcnn.TORCHVISION, faster_rcnn=_FASTER_RCNN),
        _RESNET,
        _HEAD,
        rival="maskrcnn_resnet50_fpn",
    ),
    "ssd": Model(
        "SSD",
        ssd.ssd,
        dataclasses.replace(ssd.TORCHVISION, **_REGIONS),
        ssd.vgg16_300,
        rival="ssd300_vgg16",
        canvas=(300, 300),
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
    """Images of noise that fill the canvas, with objects anywhere.

    Args:
      count: images.
      canvas: (height, width) in pixels.
      objects: in every image, none of them a crowd.
      num_classes: labels are drawn from all.
      masks: whether objects have masks, all of their boxes.
    """
    rng = np.random.default_rng(0)
    shape = (count, objects)
    boxes = [random_boxes(rng, objects, canvas) for _ in range(count)]
    there = jnp.ones(shape, bool)
    truth = GroundTruth(
        boxes=jnp.asarray(boxes),
        labels=jnp.asarray(rng.integers(0, num_classes, shape), jnp.int32),
        valid=there,
        crowd=~there,
        masks=jnp.ones((*shape, MASK_CELLS, MASK_CELLS)) if masks else None,
    )
    return Batch(
        images=jnp.asarray(rng.integers(0, 256, (count, *canvas, 3)), jnp.uint8),
        sizes=jnp.tile(jnp.array([canvas], jnp.int32), (count, 1)),
        scales=jnp.ones((count, 2)),
        image_ids=jnp.arange(count, dtype=jnp.int32),
        truth=truth,
    )


def at_rest(variables: dict[str, Any]) -> dict[str, Any]:
    """Random variables with which boxes stay where their anchors are.

    Fresh layers on fresh features would send them far out of the image, all to the same
    place, and non-maximum suppression would have nothing to do. Residual blocks add a
    quarter of what they would: else features double their variance in each, and losses
    are those of a network that is sure of everything.
    """

    def rest(path: str, values: jax.Array) -> jax.Array:
        if path == _SIDES:  # FCOS has no anchors: three strides to every side
            return jnp.full_like(values, 3.0)
        if re.fullmatch(_RESIDUALS, path):
            return values / 4
        return jnp.zeros_like(values) if re.fullmatch(_BOXES, path) else values

    return _mapped(rest, variables)


def with_answers(
    predict: Callable, variables: dict[str, Any], batch: Batch
) -> dict[str, Any]:
    """Variables with which about `FOUND` objects are found in an image.

    The class logits' layers are multiplied by one factor, looked for by bisection; of
    a fresh network no score would be high enough, or all.

    Args:
      predict: the compiled `(variables, batch) -> Detections`.
      variables: fresh ones.
      batch: in which they are to find so many.
    """

    def scaled(power: float) -> dict[str, Any]:
        def scale(path: str, values: jax.Array) -> jax.Array:
            return values * 2**power if re.fullmatch(_CLASSES, path) else values

        return _mapped(scale, variables)

    low, high = -10.0, 10.0
    for _ in range(8):
        middle = (low + high) / 2
        if found(predict(scaled(middle), batch)) < FOUND:
            low = middle
        else:
            high = middle
    return scaled(high)


def found(detections: Any) -> float:
    """How many of them an image has."""
    return float(np.mean(np.sum(np.asarray(detections.valid), axis=1)))


def _mapped(change: Callable, variables: dict[str, Any]) -> dict[str, Any]:
    """`change(path, values)` of every parameter."""
    flat = flatten_dict(variables["params"], sep="/")
    changed = {path: change(path, values) for path, values in flat.items()}
    return {**variables, "params": unflatten_dict(changed, sep="/")}
