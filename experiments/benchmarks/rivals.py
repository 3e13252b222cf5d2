"""Torchvision's detectors as `experiments.benchmarks.speed --compare` times them.

The same weights and images as ours, at the best of three settings: eager, channels
last, and with the backbone and the heads of dense detectors and RPNs compiled besides;
one that does not work is left out. With bfloat16 under autocast; else with TF32 where
the device has it, as JAX. Numbers too small for a float's full precision are zero, as
XLA has it. Norms keep their statistics, as ours, and nobody resizes images or pastes
masks.

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

from jaxdet.config import ConfigError
from jaxdet.structs import Batch
from jaxdet.weights import torchvision as translation

SETTINGS = ("eager", "channels last", "compiled")
_WITHOUT_BACKGROUND = ("retinanet_resnet50_fpn", "fcos_resnet50_fpn")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

torch.set_flush_denormal(True)  # before its threads start: they keep what they have
torch.backends.cudnn.benchmark = True
torch.set_float32_matmul_precision("high")


class Rival(NamedTuple):
    """A call to time, which has been made once."""

    call: Callable
    answer: float  # detections an image, or the first step's loss


def require_device(backend: str) -> None:
    """Refuses to compare a GPU with a CPU.

    Raises:
      ConfigError: if torch and JAX, whose `backend` this is, do not use the same.
    """
    if (backend == "cpu") != (DEVICE == "cpu"):
        raise ConfigError(f"--compare on {backend}, but torch has {DEVICE} alone")


def versions() -> dict[str, str]:
    """For the report."""
    return {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "torch_threads": torch.get_num_threads(),
    }


def release() -> None:
    """Gives back the memory of what is no longer used.

    What torch has compiled goes, too: it would compile for any canvas the next time,
    which is slower, and not at all after several.
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
    """What to time, by the settings that work.

    Args:
      name: of torchvision's function.
      variables: ours.
      batch: as ours has it; its images fill the canvas.
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
            call, told = _step(model, images, targets, precision), float
        else:
            call, told = partial(_predict, model.eval(), images, precision), _found
        try:
            answer = told(call())
        except RuntimeError as error:  # what torch.compile raises is one, too
            told = str(error).partition("\n")[0]
            print(f"torchvision, {setting}: {told}", flush=True)
        else:
            working[setting] = Rival(call, answer)
    return working


def _model(name: str, state: Mapping[str, np.ndarray], setting: str):
    make = getattr(torchvision.models.detection, name)
    model = make(weights=None, weights_backbone=None, num_classes=91)
    tensors = {key: torch.tensor(np.array(values)) for key, values in state.items()}
    model.load_state_dict(tensors)
    model.transform.resize = lambda image, target: (image, target)
    model.transform.postprocess = lambda answers, *_: answers
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
        answers = model(images)
    _wait()
    return answers


def _found(answers) -> float:
    return float(np.mean([len(answer["scores"]) for answer in answers]))


def _step(model, images, targets, precision: str) -> Callable:
    model.train()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eval().requires_grad_(False)
    learned = [values for values in model.parameters() if values.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=1e-4, momentum=0.9, weight_decay=1e-4)

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
    """Masks are all of their boxes, on the whole canvas."""
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
