"""Lists the tensors of torchvision's detectors, by its names and by ours."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from jaxdet.weights import backbones
from jaxdet.weights.mapping import (
    SAME,
    TORCH_KERNEL,
    TORCH_TRANSPOSED_KERNEL,
    Layout,
    TensorMap,
    flattened_inputs,
    torch_batch_norm,
    torch_layer,
)

_FLATTENED = TORCH_KERNEL.then(flattened_inputs(channels=256, size=7))


def _background_last(boxes: int = 1) -> tuple[Layout, Layout]:
    """Moves the background behind the classes of each box, in kernel and bias."""

    def roll(tensor, shift):
        by_box = tensor.reshape(*tensor.shape[:-1], boxes, -1)
        return np.roll(by_box, shift, axis=-1).reshape(tensor.shape)

    classes = Layout(partial(roll, shift=-1), partial(roll, shift=1))
    return TORCH_KERNEL.then(classes), classes


def _without_background(count: int) -> tuple[Layout, Layout]:
    """Drops what is never used of `count` outputs a class, from kernel and bias."""
    classes = Layout(
        lambda tensor: tensor[..., count:],
        lambda tensor: np.concatenate(
            [np.zeros_like(tensor[..., :count]), tensor], axis=-1
        ),
    )
    return TORCH_KERNEL.then(classes), classes


def torch_group_norm(theirs: str, ours: str) -> Iterator[TensorMap]:
    """Yields the maps of a group norm of torch."""
    for part, our_part in {"weight": "scale", "bias": "bias"}.items():
        yield TensorMap(f"{theirs}.{part}", f"params/{ours}/group/{our_part}", SAME)


def _block(
    theirs: str, ours: str, norm: Callable | None, our_norm: str, former: str | None
) -> Iterator[TensorMap]:
    """Maps a convolution and its norm, or a convolution with a bias."""
    if norm is None:
        yield from torch_layer(f"{theirs}.0", ours, former=former)
    else:
        yield from torch_layer(f"{theirs}.0", ours, bias=None)
        yield from norm(f"{theirs}.1", our_norm)


def _tower(
    theirs: str,
    ours: str,
    norm: Callable | None,
    former: Sequence[str | None] = (None,) * 4,
) -> Iterator[TensorMap]:
    """Maps convolutions in a row, as many as `former` has names of older files."""
    for i, name in enumerate(former):
        yield from _block(
            f"{theirs}.{i}", f"{ours}/conv{i}", norm, f"{ours}/norm{i}", name
        )


def _resnet50_fpn(
    ours: str, finest: int, norm: Callable | None = None, extra: bool = False
) -> Iterator[TensorMap]:
    yield from backbones.resnet(50, theirs="backbone.body.", ours="backbone/")
    theirs = "backbone.fpn"
    for i, level in enumerate(range(finest, 6)):
        for block, name in (("inner_blocks", "lateral"), ("layer_blocks", "output")):
            place, our_place = f"{theirs}.{block}.{i}", f"{ours}/{name}{level}"
            yield from _block(place, our_place, norm, f"{our_place}_norm", former=place)
    for level in (6, 7) if extra else ():
        place = f"{theirs}.extra_blocks.p{level}"
        yield from torch_layer(place, f"{ours}/output{level}")


def retinanet(norm: Callable | None = None) -> Iterator[TensorMap]:
    """Yields the maps of RetinaNet; `norm` yields those of its heads' norms."""
    yield from _resnet50_fpn("fpn", finest=3, extra=True)
    for head, our_head, last in (
        ("head.classification_head", "class_head", "cls_logits"),
        ("head.regression_head", "box_head", "bbox_reg"),
    ):
        former = [f"{head}.conv.{i}" for i in (0, 2, 4, 6)]  # ReLUs lay between
        yield from _tower(f"{head}.conv", our_head, norm, former)
        yield from torch_layer(f"{head}.{last}", f"{our_head}/output")


def fcos() -> Iterator[TensorMap]:
    """Yields the maps of FCOS."""
    yield from _resnet50_fpn("fpn", finest=3, extra=True)
    for head, tower, outputs in (
        ("head.classification_head", "class_tower", {"cls_logits": "classes"}),
        (
            "head.regression_head",
            "box_tower",
            {"bbox_reg": "ltrb", "bbox_ctrness": "centerness"},
        ),
    ):
        for i in range(4):  # a convolution, its norm and a ReLU
            yield from torch_layer(f"{head}.conv.{3 * i}", f"head/{tower}/conv{i}")
            yield from torch_group_norm(
                f"{head}.conv.{3 * i + 1}", f"head/{tower}/norm{i}"
            )
        for output, ours in outputs.items():
            yield from torch_layer(f"{head}.{output}", f"head/{ours}")


def ssd() -> Iterator[TensorMap]:
    """Yields the maps of SSD300 with VGG-16."""
    scale = "params/backbone/backbone/unit4_3/scale"
    yield TensorMap("backbone.scale_weight", scale, SAME)
    convs = backbones.VGG16_CONVS.items()
    places = {f"features.{i}": name for i, name in convs if name[0] != "5"}
    places |= {f"extra.0.{1 + 2 * i}": f"5_{i + 1}" for i in range(3)}
    places |= {"extra.0.7.1": "6", "extra.0.7.3": "7"}
    for place, name in places.items():
        yield from torch_layer(f"backbone.{place}", f"backbone/backbone/conv{name}")
    for i in range(1, 5):
        ours = f"backbone/level{i + 4}_conv"
        yield from torch_layer(f"backbone.extra.{i}.0", f"{ours}1")
        yield from torch_layer(f"backbone.extra.{i}.2", f"{ours}2")
    for i, boxes in enumerate((4, 6, 6, 6, 4, 4)):  # of each cell
        classes = f"head.classification_head.module_list.{i}"
        yield from torch_layer(classes, f"classes{i + 3}", *_background_last(boxes))
        deltas = f"head.regression_head.module_list.{i}"
        yield from torch_layer(deltas, f"deltas{i + 3}")


def faster_rcnn(*, v2: bool = False) -> Iterator[TensorMap]:
    """Yields the maps of Faster R-CNN, in the first or the second version."""
    norm = torch_batch_norm if v2 else None
    yield from _resnet50_fpn("neck", finest=2, norm=norm)
    former = [None, None] if v2 else ["rpn.head.conv"]
    yield from _tower("rpn.head.conv", "rpn_head", None, former)
    yield from torch_layer("rpn.head.cls_logits", "rpn_head/objectness")
    yield from torch_layer("rpn.head.bbox_pred", "rpn_head/deltas")
    head, ours = "roi_heads.box_head", "box_head"
    if v2:
        yield from _tower(head, ours, norm)
        yield from torch_layer(f"{head}.5", f"{ours}/fc", _FLATTENED)
    else:
        yield from torch_layer(f"{head}.fc6", f"{ours}/fc0", _FLATTENED)
        yield from torch_layer(f"{head}.fc7", f"{ours}/fc1")
    head, ours = "roi_heads.box_predictor", "box_predictor"
    yield from torch_layer(f"{head}.cls_score", f"{ours}/classes", *_background_last())
    deltas = _without_background(4)
    yield from torch_layer(f"{head}.bbox_pred", f"{ours}/deltas", *deltas)


def mask_rcnn(*, v2: bool = False) -> Iterator[TensorMap]:
    """Yields the maps of Mask R-CNN, in the first or the second version."""
    yield from faster_rcnn(v2=v2)
    head, ours = "roi_heads.mask_head", "mask_head"
    norm = torch_batch_norm if v2 else None
    former = [f"{head}.mask_fcn{i}" for i in range(1, 5)]
    yield from _tower(head, ours, norm, former)
    head = "roi_heads.mask_predictor"
    deconv = f"{head}.conv5_mask", f"{ours}/deconv"
    yield from torch_layer(*deconv, TORCH_TRANSPOSED_KERNEL)
    masks = _without_background(1)
    yield from torch_layer(f"{head}.mask_fcn_logits", f"{ours}/output", *masks)
