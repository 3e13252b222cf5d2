"""Runs torchvision's detectors and operators, for `--compare` of `speed` and `ops`.

Detectors have the same weights and images as ours, in three settings: eager, channels
last, and with the backbone and the heads of dense detectors and RPNs compiled, too;
one that does not work is left out. bfloat16 is under autocast; float32 uses TF32 where
the device has it, as JAX does. Numbers too small for a float's full precision are zero,
as in XLA. Norms keep their statistics, as ours, and images are not resized, nor masks
pasted.

`OMP_WAIT_POLICY=passive` must be set before torch is imported, or its waiting threads
keep the cores from ours. It is set here; a script that imports torch earlier sets it.
"""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import jax
import numpy as np
import torch
import torchvision
from torchvision.models.feature_extraction import create_feature_extractor

from jaxdet.config import ConfigError
from jaxdet.structs import Batch
from jaxdet.weights import detectors as translation

SETTINGS = ("eager", "channels last", "compiled")
_WITHOUT_BACKGROUND = ("retinanet_resnet50_fpn", "fcos_resnet50_fpn")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

torch.set_flush_denormal(True)  # before its threads start: they keep what they have
torch.backends.cudnn.benchmark = True
torch.set_float32_matmul_precision("high")


class Rival(NamedTuple):
    """A call to time, which has been made once."""

    call: Callable
    output: float  # detections an image, or the first step's loss


def require_device(backend: str) -> None:
    """Refuses to compare a GPU with a CPU.

    Raises:
      ConfigError: if torch and JAX, whose `backend` this is, do not use the same.
    """
    if (backend == "cpu") != (DEVICE == "cpu"):
        raise ConfigError(f"--compare on {backend}, but torch has {DEVICE} alone")


def versions() -> dict[str, str]:
    """Returns versions and the number of threads, for the report."""
    return {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "torch_threads": torch.get_num_threads(),
    }


def release() -> None:
    """Frees the memory of what is no longer used, and what torch has compiled.

    Otherwise torch would compile for any canvas the next time, which is slower, and
    not at all after several.
    """
    torch.compiler.reset()
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


def calls(
    name: str,
    variables: Mapping[str, Any],
    batch: Batch,
    precision: str,
    training: bool,
) -> dict[str, Rival]:
    """Returns the calls to time, by the settings that work.

    Args:
      name: of torchvision's function.
      variables: ours.
      batch: the one of ours, whose images fill the canvas.
      precision: "float32" or "bfloat16".
      training: whether a call is a step, with SGD, or else a prediction.
    """
    state = translation.export(jax.tree.map(np.asarray, variables), name)
    images = torch.tensor(np.array(batch.images)).permute(0, 3, 1, 2) / 255
    images = [image.contiguous().to(DEVICE) for image in images]
    targets = _targets(batch, first_label=int(name not in _WITHOUT_BACKGROUND))
    working = {}
    for setting in SETTINGS:
        model = _model(name, state, setting)
        if training:
            call, summary = _step(model, images, targets, precision), float
        else:
            call = partial(_predict, model.eval(), images, precision)
            summary = _mean_detections
        try:
            output = summary(call())
        except RuntimeError as error:  # what torch.compile raises is one, too
            message = str(error).partition("\n")[0]
            print(f"torchvision, {setting}: {message}", flush=True)
        else:
            working[setting] = Rival(call, output)
    return working


def _model(name: str, state: Mapping[str, np.ndarray], setting: str):
    make = getattr(torchvision.models.detection, name)
    model = make(weights=None, weights_backbone=None, num_classes=91)
    tensors = {key: torch.tensor(np.array(values)) for key, values in state.items()}
    model.load_state_dict(tensors)
    model.transform.resize = lambda image, target: (image, target)
    model.transform.postprocess = lambda detections, *_: detections
    model.to(DEVICE)
    if setting != "eager":
        model.to(memory_format=torch.channels_last)
    if setting == "compiled":
        for layers in _compilable(model):
            layers.compile()
    return model


def _compilable(model) -> Iterator[Any]:
    yield model.backbone
    if hasattr(model, "head"):
        yield model.head
    if hasattr(model, "rpn"):
        yield model.rpn.head


def _predict(model, images, precision: str):
    with torch.inference_mode(), _arithmetic(precision):
        detections = model(images)
    _wait()
    return detections


def _mean_detections(detections) -> float:
    return float(np.mean([len(one["scores"]) for one in detections]))


def _step(model, images, targets, precision: str) -> Callable:
    model.train()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eval().requires_grad_(False)
    trainable = [values for values in model.parameters() if values.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=1e-4, momentum=0.9, weight_decay=1e-4)

    def call():
        with _arithmetic(precision):
            loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        _wait()
        return loss.detach()

    return call


def _targets(batch: Batch, first_label: int) -> list[dict[str, Any]]:
    """Converts the objects; masks of the whole canvas fill their boxes."""
    height, width = batch.images.shape[1:3]
    targets = []
    for boxes, labels in zip(
        np.array(batch.truth.boxes), np.array(batch.truth.labels), strict=True
    ):
        target = {
            "boxes": torch.tensor(boxes),
            "labels": torch.tensor(labels + first_label).long(),
        }
        if batch.truth.masks is not None:
            masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
            for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
                mask[int(top) : int(bottom) + 1, int(left) : int(right) + 1] = 1
            target["masks"] = masks
        targets.append({name: values.to(DEVICE) for name, values in target.items()})
    return targets


def _arithmetic(precision: str):
    if precision == "bfloat16":
        return torch.autocast(DEVICE, torch.bfloat16)
    return contextlib.nullcontext()


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def _waiting(call: Callable) -> Callable:
    """Returns a call that ends when the device is done."""

    def wait():
        output = call()
        _wait()
        return output

    return wait


def operators() -> dict[str, Callable]:
    """Returns what makes the calls of a case of `benchmarks.ops`, by the case's name.

    They are lists by "forward" and "with gradient", with a call for each setting.
    """
    ops = torchvision.ops

    def roi_align(features, boxes, scale, samples):
        return ops.roi_align(features[None], [boxes], 7, scale, samples, aligned=True)

    functions = {
        "RoI Align": partial(roi_align, scale=1 / 4, samples=2),
        "RoI Align, adaptive": partial(roi_align, scale=1 / 16, samples=-1),
        "RoI pooling": lambda features, boxes: ops.roi_pool(
            features[None], [boxes], 7, 1 / 16
        ),
        "NMS": partial(ops.nms, iou_threshold=0.7),
    }
    return {
        **{name: partial(_operator, function) for name, function in functions.items()},
        **dict.fromkeys(("ResNet-50, batch 1", "ResNet-50, batch 2"), _backbone),
    }


def _operator(function: Callable, case: Any) -> dict[str, list[Callable]]:
    """Makes calls with copies of the arguments, features as torch has them."""
    first, second = (torch.tensor(np.asarray(x), device=DEVICE) for x in case.arguments)
    if not case.differentiable:
        return {"forward": [_waiting(partial(function, first, second))]}
    first = first.permute(2, 0, 1).contiguous()  # [C, H, W]
    features = first.clone().requires_grad_()

    def with_gradient():
        features.grad = None
        value = function(features, second)
        value.backward(value.detach())

    forward = _waiting(partial(function, first, second))
    return {"forward": [forward], "with gradient": [_waiting(with_gradient)]}


def _backbone(case: Any) -> dict[str, list[Callable]]:
    """Makes calls of a ResNet-50 with frozen norms; then channels last."""
    pixels = torch.tensor(np.asarray(case.arguments[-1]), device=DEVICE)
    pixels = pixels.permute(0, 3, 1, 2)
    norm = torchvision.ops.FrozenBatchNorm2d

    def calls(layout):
        whole = torchvision.models.resnet50(norm_layer=norm).to(memory_format=layout)
        names = [f"layer{index}" for index in range(1, 5)]
        network = create_feature_extractor(whole, names).to(DEVICE)
        images = pixels.contiguous(memory_format=layout)

        def with_gradient():
            network.zero_grad()
            values = [*network(images).values()]
            torch.autograd.backward(values, [value.detach() for value in values])

        forward = torch.inference_mode()(partial(network, images))
        return _waiting(forward), _waiting(with_gradient)

    layouts = (torch.contiguous_format, torch.channels_last)
    forward, with_gradient = zip(*map(calls, layouts), strict=True)
    return {"forward": [*forward], "with gradient": [*with_gradient]}
