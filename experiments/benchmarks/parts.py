"""Measures what the time of a detector goes into: `benchmarks.speed --parts`.

Three parts: the backbone; the neck and the heads that run on whole images, among them
a DETR's transformer; and all else, from anchors to losses or NMS, and in R-CNNs what
happens to each region. The first two are timed in turns with the whole call, so that
all meet the same machine, and are subtracted from it. `benchmarks.ops` times the
operators among the rest by themselves.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from experiments.benchmarks.models import Model
from experiments.benchmarks.timing import medians, with_gradient
from jaxdet.config import Preprocessing
from jaxdet.detectors.deformable_detr import DeformableDETRNetwork
from jaxdet.detectors.detector import preprocess
from jaxdet.detectors.detr import DETRNetwork
from jaxdet.detectors.faster_rcnn import FasterRCNNNetwork
from jaxdet.detectors.fcos import FCOSNetwork
from jaxdet.detectors.retinanet import RetinaNetNetwork
from jaxdet.detectors.ssd import SSDNetwork
from jaxdet.structs import Batch

ONE_STAGE = {
    "retinanet": RetinaNetNetwork,
    "fcos": FCOSNetwork,
    "ssd": SSDNetwork,
    "detr": DETRNetwork,
    "deformable_detr": DeformableDETRNetwork,
}


def measure(
    call: Callable,
    model: Model,
    precision: str,
    variables: dict[str, Any],
    batch: Batch,
    training: bool,
    repeats: int,
) -> dict[str, float]:
    """Returns milliseconds of the parts of `predict`, or of a training step.

    Args:
      call: makes such a call, without arguments.
      model: the detector as it is measured.
      precision: of its arithmetic.
      variables: of its network.
      batch: of images.
      training: whether the parts are timed with the gradients of their parameters.
      repeats: calls of which the median is taken.

    Returns:
      By the name of the part, and of the "whole", their sum.
    """
    network, layers = _layers(model, precision)
    rest = {name: values for name, values in variables.items() if name != "params"}
    pixels, _ = preprocess(batch, Preprocessing())
    calls = [call]
    for method in (lambda network, pixels: network.backbone(pixels), layers):
        apply = nn.apply(method, network)

        def run(params, rest, pixels, apply=apply):
            return apply({"params": params, **rest}, pixels)

        function = jax.jit(partial(with_gradient, run) if training else run)
        calls.append(partial(function, variables["params"], rest, pixels))
    whole, backbone, both = medians(calls, repeats)
    heads, rest_of_it = both - backbone, whole - both
    parts = {"backbone": backbone, "neck and heads": heads, "all else": rest_of_it}
    return {**parts, "whole": whole}


def _layers(model: Model, precision: str) -> tuple[nn.Module, Callable]:
    """Returns a detector's network, and what runs its layers on `[B, H, W, 3]` pixels.

    Of R-CNNs it runs those before the first proposal.
    """
    layers = model.layers(precision)
    if model.make.__name__ in ONE_STAGE:
        network = ONE_STAGE[model.make.__name__](model.config, *layers)
        return network, lambda network, pixels: network(pixels)
    config = getattr(model.config, "faster_rcnn", model.config)
    network = FasterRCNNNetwork(config, *layers)
    return network, lambda network, pixels: network.rpn_head(network.features(pixels))
