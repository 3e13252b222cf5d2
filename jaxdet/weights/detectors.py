"""Converts detectors of torchvision and of transformers to ours, and back.

detector = detectors.with_coco_labels("fasterrcnn_resnet50_fpn")
variables = detectors.load("fasterrcnn_resnet50_fpn_coco-258fb6c6.pth")

Their networks have 91 outputs, for COCO's category ids and the ids that COCO leaves
out; `build` makes detectors with all of them, `with_coco_labels` of COCO's 80 classes.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.data.formats.coco import CATEGORY_IDS
from jaxdet.data.input_config import InputConfig
from jaxdet.data.transforms import canvases_from_min_max
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
from jaxdet.detectors.serialization import serialize
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.heads import ConvFCHead, FCHead
from jaxdet.ops import nms
from jaxdet.structs import Batch, Detections
from jaxdet.weights import mapping, torchvision_maps, transformers_maps
from jaxdet.weights.mapping import NetworkMap
from jaxdet.weights.state_dict import WeightsError, read_state_dict

OUTPUTS = 91
"""Background, or nothing at all, and the category ids 1 to 90."""
MIN_MAX_SIZE = (800, 1333)
"""Shorter side of the images, and the most of the longer one."""


class Published(NamedTuple):
    """A published checkpoint, and its documented AP on val2017."""

    file: str
    box_ap: float  # of 100
    mask_ap: float | None = None
    url: str | None = None  # where it is published; None: with torchvision's others


class Model(NamedTuple):
    """A detector of another library."""

    make: Callable[..., Detector]  # from its backbone
    backbone: nn.Module
    network: NetworkMap
    first_id: int  # the category id of label 0
    published: Published
    canvas: tuple[int, int] | None = None  # that images fill; None: they keep shape


# Label i of RetinaNet, FCOS and the DETRs is their output i, of which 0 is never
# predicted; that of SSD and the R-CNNs is output i + 1, and output 0 the background.
RETINANET = dataclasses.replace(retinanet.TORCHVISION, num_classes=OUTPUTS)
RETINANET_V2 = dataclasses.replace(retinanet.TORCHVISION_V2, num_classes=OUTPUTS)
FCOS = dataclasses.replace(fcos.TORCHVISION, num_classes=OUTPUTS)
DETR = dataclasses.replace(detr.TRANSFORMERS, num_classes=OUTPUTS)
DEFORMABLE_DETR = dataclasses.replace(deformable_detr.TRANSFORMERS, num_classes=OUTPUTS)
DEFORMABLE_DETR_REFINED = dataclasses.replace(DEFORMABLE_DETR, refine_boxes=True)
SSD300 = dataclasses.replace(ssd.TORCHVISION, num_classes=OUTPUTS - 1)
FASTER_RCNN = dataclasses.replace(faster_rcnn.TORCHVISION, num_classes=OUTPUTS - 1)
FASTER_RCNN_V2 = dataclasses.replace(
    faster_rcnn.TORCHVISION_V2, num_classes=OUTPUTS - 1
)
MASK_RCNN = dataclasses.replace(mask_rcnn.TORCHVISION, faster_rcnn=FASTER_RCNN)
MASK_RCNN_V2 = dataclasses.replace(mask_rcnn.TORCHVISION_V2, faster_rcnn=FASTER_RCNN_V2)
_HEAD, _HEAD_V2 = FCHead(1024), ConvFCHead(1024, norm="frozen")
# Those whose first checkpoints come from norms without an epsilon.
_FIRST, _RESNET = ResNet(50, epsilon=0.0), ResNet(50)
_HUGGING_FACE, _FILE = "https://huggingface.co", "resolve/main/model.safetensors"

_MODELS = (
    Model(
        partial(retinanet.retinanet, RETINANET),
        _FIRST,
        NetworkMap("retinanet_resnet50_fpn", tuple(torchvision_maps.retinanet())),
        first_id=0,
        published=Published("retinanet_resnet50_fpn_coco-eeacb38b.pth", 36.4),
    ),
    Model(
        partial(retinanet.retinanet, RETINANET_V2),
        _RESNET,
        NetworkMap(
            "retinanet_resnet50_fpn_v2",
            tuple(torchvision_maps.retinanet(torchvision_maps.torch_group_norm)),
        ),
        first_id=0,
        published=Published("retinanet_resnet50_fpn_v2_coco-5905b1c5.pth", 41.5),
    ),
    Model(
        partial(fcos.fcos, FCOS),
        _RESNET,
        NetworkMap("fcos_resnet50_fpn", tuple(torchvision_maps.fcos())),
        first_id=0,
        published=Published("fcos_resnet50_fpn_coco-99b0c9b7.pth", 39.2),
    ),
    Model(
        partial(ssd.ssd, SSD300),
        ssd.vgg16_300(),
        NetworkMap("ssd300_vgg16", tuple(torchvision_maps.ssd())),
        first_id=1,
        published=Published("ssd300_vgg16_coco-b556d3b4.pth", 25.1),
        canvas=(300, 300),
    ),
    Model(
        partial(faster_rcnn.faster_rcnn, FASTER_RCNN, box_head=_HEAD),
        _FIRST,
        NetworkMap("fasterrcnn_resnet50_fpn", tuple(torchvision_maps.faster_rcnn())),
        first_id=1,
        published=Published("fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", 37.0),
    ),
    Model(
        partial(faster_rcnn.faster_rcnn, FASTER_RCNN_V2, box_head=_HEAD_V2),
        _RESNET,
        NetworkMap(
            "fasterrcnn_resnet50_fpn_v2", tuple(torchvision_maps.faster_rcnn(v2=True))
        ),
        first_id=1,
        published=Published("fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth", 46.7),
    ),
    Model(
        partial(mask_rcnn.mask_rcnn, MASK_RCNN, box_head=_HEAD),
        _FIRST,
        NetworkMap("maskrcnn_resnet50_fpn", tuple(torchvision_maps.mask_rcnn())),
        first_id=1,
        published=Published("maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", 37.9, 34.6),
    ),
    Model(
        partial(mask_rcnn.mask_rcnn, MASK_RCNN_V2, box_head=_HEAD_V2),
        _RESNET,
        NetworkMap(
            "maskrcnn_resnet50_fpn_v2", tuple(torchvision_maps.mask_rcnn(v2=True))
        ),
        first_id=1,
        published=Published("maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth", 47.4, 41.8),
    ),
    Model(
        partial(detr.detr, DETR),
        _RESNET,
        NetworkMap("detr_resnet50", tuple(transformers_maps.detr())),
        first_id=0,
        published=Published(
            "detr-resnet-50-830f5e2e.safetensors",
            42.0,
            url=f"{_HUGGING_FACE}/facebook/detr-resnet-50/{_FILE}",
        ),
    ),
    Model(
        partial(deformable_detr.deformable_detr, DEFORMABLE_DETR),
        _RESNET,
        NetworkMap("deformable_detr", tuple(transformers_maps.deformable_detr())),
        first_id=0,
        published=Published(
            "deformable-detr-caf1e3e6.safetensors",
            44.5,
            url=f"{_HUGGING_FACE}/SenseTime/deformable-detr/{_FILE}",
        ),
    ),
    Model(
        partial(deformable_detr.deformable_detr, DEFORMABLE_DETR_REFINED),
        _RESNET,
        NetworkMap(
            "deformable_detr_refined",
            tuple(transformers_maps.deformable_detr(refine_boxes=True)),
        ),
        first_id=0,
        published=Published(
            "deformable-detr-with-box-refine-4113700f.safetensors",
            46.2,
            url=f"{_HUGGING_FACE}/SenseTime/deformable-detr-with-box-refine/{_FILE}",
        ),
    ),
)
MODELS = {model.network.name: model for model in _MODELS}
"""By the names of torchvision's functions; of Hugging Face, `detr_resnet50` is
facebook/detr-resnet-50, `deformable_detr` is SenseTime/deformable-detr, and
`deformable_detr_refined` SenseTime/deformable-detr-with-box-refine."""


def build(name: str, *, epsilon: float | None = None) -> Detector:
    """Returns one of the detectors, with all its outputs.

    Args:
      name: one of `MODELS`.
      epsilon: of a ResNet's norms; None: as torchvision has it for checkpoints on COCO,
        of which the first ones have 0. Its training has 1e-5.

    Raises:
      WeightsError: if the name is not among them.
    """
    model = _model(name)
    backbone = model.backbone
    if epsilon is not None:
        backbone = backbone.clone(epsilon=epsilon)
    return model.make(backbone=backbone)


def with_coco_labels(name: str) -> Detector:
    """Returns one of the detectors as one of COCO's 80 classes.

    It has the same variables, and the labels of `coco.CLASS_NAMES`. Detections of ids
    that COCO leaves out are discarded.
    """
    detector, model = build(name), _model(name)
    outputs = np.array(CATEGORY_IDS) - model.first_id  # their label of each class
    classes = np.full(detector.num_classes, -1)
    classes[outputs] = np.arange(len(outputs))

    def loss(variables, batch: Batch, key, axis_name: str | None = None):
        labels = jnp.asarray(outputs, jnp.int32)[batch.truth.labels]
        batch = batch.replace(truth=batch.truth.replace(labels=labels))
        return detector.loss(variables, batch, key, axis_name=axis_name)

    def predict(variables, batch: Batch) -> Detections:
        detections = detector.predict(variables, batch)
        labels = jnp.asarray(classes, jnp.int32)[detections.labels]
        valid = detections.valid & (labels >= 0)
        detections = detections.replace(labels=labels, valid=valid)
        order = jnp.argsort(~valid, axis=1)  # stable: valid ones first
        take = jax.vmap(lambda found, order: jax.tree.map(lambda x: x[order], found))
        return jax.vmap(nms.clear_padding)(take(detections, order))

    recipe = serialize(partial(with_coco_labels, name))
    return detector._replace(
        loss=loss, predict=predict, num_classes=len(outputs), recipe=recipe
    )


def load(
    source: str | os.PathLike | Mapping[str, np.ndarray], name: str | None = None
) -> dict[str, Any]:
    """Returns a checkpoint as variables of `build` and `with_coco_labels`.

    Args:
      source: a `.pth`, `.safetensors` or `.npz` file, or the state dict itself.
      name: one of `MODELS`; None: `recognize` tells.

    Raises:
      WeightsError: if the file cannot be read, or tensors are missing, left over, or of
        other shapes; it names the first of them.
    """
    state = source if isinstance(source, Mapping) else read_state_dict(source)
    name = name or recognize(state)
    network = _model(name).network
    image = jax.ShapeDtypeStruct((1, 300, 300, 3), jnp.uint8)
    blank = Batch(image, sizes=None, scales=None, image_ids=None)
    template = jax.eval_shape(build(name).init, jax.random.key(0), blank)
    return mapping.to_variables(state, network, template=template)


def export(variables: Mapping[str, Any], name: str) -> dict[str, np.ndarray]:
    """Returns variables as a state dict, the inverse of `load`.

    Two things are not as they were: what torchvision computes for the background and
    never uses (its boxes, its masks) becomes zeros; counters of batches are left out,
    and `load_state_dict` takes it for what it was before they existed.

    Args:
      variables: of `build(name)`, or gradients with respect to them.
      name: one of `MODELS`.

    Raises:
      WeightsError: if they are of another detector.
    """
    return mapping.to_state_dict(variables, _model(name).network)


def recognize(state: Mapping[str, np.ndarray]) -> str:
    """Returns which of `MODELS` a state dict is of.

    Raises:
      WeightsError: if it is of none; it names the nearest, and what differs.
    """
    networks = (model.network for model in MODELS.values())
    return mapping.recognize(state, networks).name


def input_config(name: str, *, canvas_multiple: int = 32) -> InputConfig:
    """Returns how images become the pixels of one of the detectors.

    Args:
      name: one of `MODELS`.
      canvas_multiple: of which heights and widths of the canvases are. 32 is as
        torchvision has it, an image at a time: up to 80 canvases, each to be compiled
        for if an image needs it. A greater number makes fewer, with more padding, which
        changes detections near it a little, as another image in a batch does there.
    """
    canvas = _model(name).canvas
    if canvas is not None:
        return InputConfig(canvases=(canvas,), keep_aspect=False, float_pixels=True)
    canvases = canvases_from_min_max(MIN_MAX_SIZE, multiple=canvas_multiple)
    return InputConfig(canvases=canvases, min_max_size=MIN_MAX_SIZE, float_pixels=True)


def _model(name: str) -> Model:
    if name not in MODELS:
        raise WeightsError(f"no model {name!r}; allowed: {', '.join(MODELS)}")
    return MODELS[name]
