"""The detectors of torchvision: its checkpoints in, its numbers out.

trained = torchvision.trained("fasterrcnn_resnet50_fpn_coco-258fb6c6.pth")
detect = inference.detect_with(trained)
found = detect(image)  # NumPy, [H, W, 3] uint8, any size

`load` and `export` go from its state dicts to our variables and back by one table for
each detector. Its networks have 91 outputs, for COCO's category ids and the ids that
COCO leaves out; `of_coco` makes them detectors of COCO's 80 classes.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxdet.data.input_config import InputConfig
from jaxdet.detectors import faster_rcnn, fcos, mask_rcnn, retinanet, ssd
from jaxdet.detectors.detector import Detector
from jaxdet.detectors.serialization import serialize
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.heads import ConvFCHead, FCHead
from jaxdet.ops import nms
from jaxdet.structs import Batch, Detections
from jaxdet.weights import state_dict
from jaxdet.weights.state_dict import (
    SAME,
    Layout,
    Tensor,
    WeightsError,
    after_kernel,
    batch_norm,
    flattened,
    layer,
)

if TYPE_CHECKING:  # needs more packages than weights and networks do
    from jaxdet.inference.load import Trained

OUTPUTS = 91  # Background, or nothing at all, and the category ids 1 to 90.
SIDES = (800, 1333)
"""Shorter side of the images, and the most of the longer one."""


class Published(NamedTuple):
    """A checkpoint that torchvision publishes, and its documented AP on val2017."""

    file: str
    box_ap: float  # of 100
    mask_ap: float | None = None


class Model(NamedTuple):
    """A detector of torchvision."""

    make: Callable[[nn.Module], Detector]  # from its backbone
    backbone: nn.Module
    tensors: tuple[Tensor, ...]
    first_id: int  # the category id of label 0
    published: Published
    old_names: tuple[tuple[str, Any], ...] = ()  # patterns, and what they are today
    canvas: tuple[int, int] | None = None  # that images fill; None: they keep shape


def _without_background(values: np.ndarray, count: int) -> np.ndarray:
    return values[..., count:]


def _with_background(values: np.ndarray, count: int) -> np.ndarray:
    """Zeros for what torchvision makes, and never uses, for the background."""
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(count, 0)])


# Theirs is the transposed convolution's: from, to, rows, columns.
_DOUBLING = Layout(lambda x: x.transpose(2, 3, 0, 1), lambda x: x.transpose(2, 3, 0, 1))


def _rolled(values: np.ndarray, shift: int) -> np.ndarray:
    """The last axis holds `OUTPUTS` classes, or as many for each of several shapes."""
    shapes = values.reshape(*values.shape[:-1], -1, OUTPUTS)
    return np.roll(shapes, shift, axis=-1).reshape(values.shape)


# Theirs comes first, ours last.
_BACKGROUND = Layout(partial(_rolled, shift=-1), partial(_rolled, shift=1))
_BACKGROUND_KERNEL = after_kernel(*_BACKGROUND)


def _no_background(count: int) -> tuple[Layout, Layout]:
    """For `count` outputs a class: of a kernel, and of its bias."""
    there, back = (
        partial(f, count=count) for f in (_without_background, _with_background)
    )
    return after_kernel(there, back), Layout(there, back)


def _group_norm(theirs: str, ours: str) -> Iterator[Tensor]:
    for part, our_part in {"weight": "scale", "bias": "bias"}.items():
        yield Tensor(f"{theirs}.{part}", f"params/{ours}/group/{our_part}", SAME)


def _block(theirs: str, ours: str, norm: Callable | None, our_norm: str):
    """A convolution and its norm, or a convolution with a bias."""
    yield from layer(f"{theirs}.0", ours, bias=None if norm else SAME)
    if norm:
        yield from norm(f"{theirs}.1", our_norm)


def _tower(theirs: str, ours: str, depth: int, norm: Callable | None = None):
    for i in range(depth):
        our_head = f"{ours}/conv{i}", norm, f"{ours}/norm{i}"
        yield from _block(f"{theirs}.{i}", *our_head)


def _resnet50() -> Iterator[Tensor]:
    return state_dict.resnet(50, theirs="backbone.body.", ours="backbone/")


def _fpn(
    ours: str, finest: int, norm: Callable | None = None, extra: bool = False
) -> Iterator[Tensor]:
    theirs = "backbone.fpn"
    for i, level in enumerate(range(finest, 6)):
        for block, name in (("inner_blocks", "lateral"), ("layer_blocks", "output")):
            place = f"{ours}/{name}{level}"
            yield from _block(f"{theirs}.{block}.{i}", place, norm, f"{place}_norm")
    for level in (6, 7) if extra else ():
        yield from layer(f"{theirs}.extra_blocks.p{level}", f"{ours}/output{level}")


def _retinanet_tensors(norm: Callable | None = None) -> Iterator[Tensor]:
    yield from _resnet50()
    yield from _fpn("fpn", finest=3, extra=True)
    for head, our_head, last in (
        ("head.classification_head", "class_head", "cls_logits"),
        ("head.regression_head", "box_head", "bbox_reg"),
    ):
        yield from _tower(f"{head}.conv", our_head, 4, norm)
        yield from layer(f"{head}.{last}", f"{our_head}/output")


def _fcos_tensors() -> Iterator[Tensor]:
    yield from _resnet50()
    yield from _fpn("fpn", finest=3, extra=True)
    for head, tower, lasts in (
        ("classification_head", "class_tower", {"cls_logits": "classes"}),
        (
            "regression_head",
            "box_tower",
            {"bbox_reg": "sides", "bbox_ctrness": "centerness"},
        ),
    ):
        for i in range(4):  # a convolution, its norm and a ReLU
            conv, norm = f"head.{head}.conv.{3 * i}", f"head.{head}.conv.{3 * i + 1}"
            yield from layer(conv, f"head/{tower}/conv{i}")
            yield from _group_norm(norm, f"head/{tower}/norm{i}")
        for last, ours in lasts.items():
            yield from layer(f"head.{head}.{last}", f"head/{ours}")


def _ssd_tensors() -> Iterator[Tensor]:
    yield Tensor(
        "backbone.scale_weight", "params/backbone/backbone/unit4_3/scale", SAME
    )
    places = {
        f"features.{i}": name
        for i, name in state_dict.VGG16_CONVS.items()
        if name[0] != "5"
    }
    places |= {f"extra.0.{1 + 2 * i}": f"5_{i + 1}" for i in range(3)}
    places |= {"extra.0.7.1": "6", "extra.0.7.3": "7"}
    for place, name in places.items():
        yield from layer(f"backbone.{place}", f"backbone/backbone/conv{name}")
    for i in range(1, 5):
        ours = f"backbone/level{i + 4}_conv"
        yield from layer(f"backbone.extra.{i}.0", f"{ours}1")
        yield from layer(f"backbone.extra.{i}.2", f"{ours}2")
    for i in range(6):
        heads = [
            f"head.{h}_head.module_list.{i}" for h in ("classification", "regression")
        ]
        background = _BACKGROUND_KERNEL, _BACKGROUND
        yield from layer(heads[0], f"classes{i + 3}", *background)
        yield from layer(heads[1], f"deltas{i + 3}")


def _faster_rcnn_tensors(second: bool = False) -> Iterator[Tensor]:
    """Of the first, or of the second version."""
    yield from _resnet50()
    yield from _fpn("neck", finest=2, norm=batch_norm if second else None)
    yield from _tower("rpn.head.conv", "rpn_head", 2 if second else 1)
    yield from layer("rpn.head.cls_logits", "rpn_head/objectness")
    yield from layer("rpn.head.bbox_pred", "rpn_head/deltas")
    first_fc = flattened(channels=256, side=7)
    head, our_head = "roi_heads.box_head", "box_head"
    if second:
        yield from _tower(head, our_head, 4, batch_norm)
        yield from layer(f"{head}.5", f"{our_head}/fc", first_fc)
    else:
        yield from layer(f"{head}.fc6", f"{our_head}/fc0", first_fc)
        yield from layer(f"{head}.fc7", f"{our_head}/fc1")
    head = "roi_heads.box_predictor"
    background = _BACKGROUND_KERNEL, _BACKGROUND
    yield from layer(f"{head}.cls_score", "box_predictor/classes", *background)
    yield from layer(f"{head}.bbox_pred", "box_predictor/deltas", *_no_background(4))


def _mask_rcnn_tensors(second: bool = False) -> Iterator[Tensor]:
    yield from _faster_rcnn_tensors(second)
    norm = batch_norm if second else None
    yield from _tower("roi_heads.mask_head", "mask_head", 4, norm)
    head = "roi_heads.mask_predictor"
    yield from layer(f"{head}.conv5_mask", "mask_head/doubling", _DOUBLING)
    last = f"{head}.mask_fcn_logits", "mask_head/output"
    yield from layer(*last, *_no_background(1))


# Label i of RetinaNet and FCOS is their output i, of which 0 is never an answer; that
# of SSD and the R-CNNs is output i + 1, and output 0 the background.
RETINANET = dataclasses.replace(retinanet.TORCHVISION, num_classes=OUTPUTS)
RETINANET_V2 = dataclasses.replace(retinanet.TORCHVISION_V2, num_classes=OUTPUTS)
FCOS = dataclasses.replace(fcos.TORCHVISION, num_classes=OUTPUTS)
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

# What the layers were called when its first checkpoints were made.
_OLD_PYRAMID = (r"(fpn\.(?:inner|layer)_blocks\.\d)\.(?=weight|bias)", r"\1.0.")
_OLD_RCNN = (
    _OLD_PYRAMID,
    (r"(rpn\.head\.conv)\.(?=weight|bias)", r"\1.0.0."),
    (r"mask_fcn([1-4])\.", lambda m: f"{int(m[1]) - 1}.0."),
)
_OLD_RETINANET = (
    _OLD_PYRAMID,
    (
        r"(head\.\w+_head\.conv)\.([0246])\.(?=weight|bias)",
        lambda m: f"{m[1]}.{int(m[2]) // 2}.0.",
    ),
)
_COUNTER = ".num_batches_tracked"

MODELS = {
    "retinanet_resnet50_fpn": Model(
        partial(retinanet.retinanet, RETINANET),
        _FIRST,
        tuple(_retinanet_tensors()),
        first_id=0,
        published=Published("retinanet_resnet50_fpn_coco-eeacb38b.pth", 36.4),
        old_names=_OLD_RETINANET,
    ),
    "retinanet_resnet50_fpn_v2": Model(
        partial(retinanet.retinanet, RETINANET_V2),
        _RESNET,
        tuple(_retinanet_tensors(_group_norm)),
        first_id=0,
        published=Published("retinanet_resnet50_fpn_v2_coco-5905b1c5.pth", 41.5),
    ),
    "fcos_resnet50_fpn": Model(
        partial(fcos.fcos, FCOS),
        _RESNET,
        tuple(_fcos_tensors()),
        first_id=0,
        published=Published("fcos_resnet50_fpn_coco-99b0c9b7.pth", 39.2),
    ),
    "ssd300_vgg16": Model(
        partial(ssd.ssd, SSD300),
        ssd.vgg16_300(),
        tuple(_ssd_tensors()),
        first_id=1,
        published=Published("ssd300_vgg16_coco-b556d3b4.pth", 25.1),
        canvas=(300, 300),
    ),
    "fasterrcnn_resnet50_fpn": Model(
        partial(faster_rcnn.faster_rcnn, FASTER_RCNN, box_head=_HEAD),
        _FIRST,
        tuple(_faster_rcnn_tensors()),
        first_id=1,
        published=Published("fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", 37.0),
        old_names=_OLD_RCNN,
    ),
    "fasterrcnn_resnet50_fpn_v2": Model(
        partial(faster_rcnn.faster_rcnn, FASTER_RCNN_V2, box_head=_HEAD_V2),
        _RESNET,
        tuple(_faster_rcnn_tensors(second=True)),
        first_id=1,
        published=Published("fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth", 46.7),
    ),
    "maskrcnn_resnet50_fpn": Model(
        partial(mask_rcnn.mask_rcnn, MASK_RCNN, box_head=_HEAD),
        _FIRST,
        tuple(_mask_rcnn_tensors()),
        first_id=1,
        published=Published("maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", 37.9, 34.6),
        old_names=_OLD_RCNN,
    ),
    "maskrcnn_resnet50_fpn_v2": Model(
        partial(mask_rcnn.mask_rcnn, MASK_RCNN_V2, box_head=_HEAD_V2),
        _RESNET,
        tuple(_mask_rcnn_tensors(second=True)),
        first_id=1,
        published=Published("maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth", 47.4, 41.8),
    ),
}
"""By the names of torchvision's functions."""


def build(name: str, *, epsilon: float | None = None) -> Detector:
    """One of torchvision's detectors, with all its outputs.

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


def of_coco(name: str) -> Detector:
    """One of torchvision's detectors as one of COCO's 80 classes; same variables.

    Labels are those of `coco.CLASS_NAMES`. What it finds for ids that COCO leaves out
    is no answer.
    """
    from jaxdet.data.formats.coco import CATEGORY_IDS

    detector, model = build(name), _model(name)
    outputs = np.array(CATEGORY_IDS) - model.first_id  # the label there of each class
    classes = np.full(detector.num_classes, -1)
    classes[outputs] = np.arange(len(outputs))

    def loss(variables, batch: Batch, key, axis_name: str | None = None):
        labels = jnp.asarray(outputs, jnp.int32)[batch.truth.labels]
        batch = batch.replace(truth=batch.truth.replace(labels=labels))
        return detector.loss(variables, batch, key, axis_name=axis_name)

    def predict(variables, batch: Batch) -> Detections:
        found = detector.predict(variables, batch)
        labels = jnp.asarray(classes, jnp.int32)[found.labels]
        valid = found.valid & (labels >= 0)
        order = jnp.argsort(~valid, axis=1)  # stable; what is no answer goes last
        found = found.replace(labels=labels, valid=valid)
        return jax.vmap(nms.clear_padding)(jax.vmap(_taken)(found, order))

    recipe = serialize(partial(of_coco, name))
    return Detector(detector.init, loss, predict, len(outputs), recipe)


def _taken(found: Detections, order: jax.Array) -> Detections:
    return jax.tree.map(lambda values: values[order], found)


def load(
    source: str | os.PathLike | Mapping[str, np.ndarray], name: str | None = None
) -> dict[str, Any]:
    """A checkpoint of torchvision's as variables of `build(name)` and `of_coco(name)`.

    Args:
      source: a `.pth`, `.safetensors` or `.npz` file, or the state dict itself.
      name: one of `MODELS`; None: `recognise` tells.

    Raises:
      WeightsError: if the file cannot be read, or tensors are missing, left over, or of
        other shapes; it names the first of them.
    """
    state = _read(source)
    name = name or recognise(state)
    tensors = _model(name).tensors
    return state_dict.to_ours(
        _todays(state, name), tensors, name, shapes=_needed_shapes(name)
    )


def export(variables: Mapping[str, Any], name: str) -> dict[str, np.ndarray]:
    """The inverse of `load`: the state dict of torchvision's detector of that name.

    Two things are not as they were: what torchvision computes for the background and
    never uses (its boxes, its masks) becomes zeros; counters of batches are left out,
    and `load_state_dict` takes it for what it was before they existed.

    Args:
      variables: of `build(name)`, or gradients with respect to them.
      name: one of `MODELS`.

    Raises:
      WeightsError: if they are of another detector.
    """
    return state_dict.to_theirs(variables, _model(name).tensors, name)


def recognise(state: Mapping[str, np.ndarray]) -> str:
    """Which of `MODELS` a state dict is of: the one with the same names of tensors.

    Raises:
      WeightsError: if it is of none; it names what keeps it from the nearest.
    """

    def differences(name: str) -> set[str]:
        needed = {tensor.theirs for tensor in MODELS[name].tensors}
        return needed ^ _todays(state, name).keys()

    nearest = min(MODELS, key=lambda name: len(differences(name)))
    different = differences(nearest)
    if different:
        raise WeightsError(
            f"no checkpoint of {', '.join(MODELS)}; the nearest is {nearest}, but "
            f"{len(different)} tensors are in one and not in the other: "
            f"{sorted(different)[:5]}"
        )
    return nearest


def trained(
    source: str | os.PathLike | Mapping[str, np.ndarray],
    name: str | None = None,
    *,
    canvas_multiple: int = 32,
) -> "Trained":
    """A checkpoint of torchvision's as `inference.load_trained` reads our own.

    Args:
      source: as of `load`.
      name: as of `load`.
      canvas_multiple: of which heights and widths of the canvases are. 32 is as
        torchvision has it, an image at a time: up to 80 canvases, each to be compiled
        for if an image needs it. A greater number makes fewer, with more padding, which
        changes what is found near it a little, as another image in a batch does there.

    Returns:
      `of_coco(name)`, its variables, and a `Run` that says how torchvision makes pixels
      of images, and what the classes are called.

    Raises:
      WeightsError: as `load`.
    """
    from jaxdet.data.transforms import canvases_from_min_max
    from jaxdet.inference.load import published

    state = _read(source)
    name = name or recognise(state)
    detector, canvas = of_coco(name), _model(name).canvas
    if canvas is not None:
        config = InputConfig(canvases=(canvas,), keep_aspect=False, float_pixels=True)
    else:
        canvases = canvases_from_min_max(SIDES, multiple=canvas_multiple)
        config = InputConfig(canvases=canvases, min_max_size=SIDES, float_pixels=True)
    return published(detector, load(state, name), config)


def _model(name: str) -> Model:
    if name not in MODELS:
        raise WeightsError(f"no model {name!r}; allowed: {', '.join(MODELS)}")
    return MODELS[name]


def _read(source: str | os.PathLike | Mapping) -> Mapping[str, np.ndarray]:
    return source if isinstance(source, Mapping) else state_dict.read_state_dict(source)


def _todays(state: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The tensors by the names that they have today, without counters."""
    renamed = {}
    for key, tensor in state.items():
        for pattern, replacement in MODELS[name].old_names:
            key = re.sub(pattern, replacement, key)
        if not key.endswith(_COUNTER):
            renamed[key] = tensor
    return renamed


def _needed_shapes(name: str) -> dict[str, tuple[int, ...]]:
    image = jax.ShapeDtypeStruct((1, 300, 300, 3), jnp.uint8)
    blank = Batch(image, sizes=None, scales=None, image_ids=None)
    template = jax.eval_shape(build(name).init, jax.random.key(0), blank)
    ours = flatten_dict(template, sep="/")
    return {
        tensor.theirs: tensor.layout.to_theirs(
            np.broadcast_to(np.float32(0), ours[tensor.ours].shape)
        ).shape
        for tensor in MODELS[name].tensors
    }
