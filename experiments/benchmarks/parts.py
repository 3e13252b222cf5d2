"""Measures what the time of a detector goes into: `benchmarks.speed --parts`.

Three parts: the backbone; the neck and the heads that run on whole images; and all
else, from anchors to losses or NMS, and in R-CNNs what happens to each region. The
first two are timed in turns with the whole, so that all meet the same machine, and are
subtracted from it. `benchmarks.ops` times the operators among the rest by themselves.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from experiments.benchmarks.models import Model
from experiments.benchmarks.timing import medians, with_gradient
from jaxdet.config import Preprocessing
from jaxdet.detectors.faster_rcnn import FasterRCNNNetwork
from jaxdet.detectors.fcos import FCOSNetwork
from jaxdet.detectors.mask_rcnn import MaskRCNNConfig
from jaxdet.detectors.retinanet import RetinaNetNetwork
from jaxdet.detectors.ssd import SSDNetwork
from jaxdet.ops import images
from jaxdet.structs import Batch

DENSE = {"retinanet": RetinaNetNetwork, "fcos": FCOSNetwork, "ssd": SSDNetwork}


def measure(
    whole: Callable,
    model: Model,
    precision: str,
    variables: dict[str, Any],
    batch: Batch,
    training: bool,
    repeats: int,
) -> dict[str, Any]:
    """Returns milliseconds of `predict`, or of a training step, and of its parts.

    Args:
      whole: a function of nothing that makes such a call.
      model: the detector as it is measured.
      precision: of its arithmetic.
      variables: of its network.
      batch: of images.
      training: whether the parts are timed with the gradients of their parameters.
      repeats: calls of which the median is taken.

    Returns:
      `{"parts_whole", "parts": [{"name", "milliseconds"}]}`, whose sum is the whole's.
    """
    network, layers = layers_of(model, precision)
    rest = {name: values for name, values in variables.items() if name != "params"}
    colors = Preprocessing()
    pixels = images.normalize(
        batch.images, batch.sizes, mean=colors.mean, std=colors.std
    )
    calls = [whole]
    for method in (lambda network, pixels: network.backbone(pixels), layers):
        apply = nn.apply(method, network)

        def run(params, rest, pixels, apply=apply):
            return apply({"params": params, **rest}, pixels)

        function = jax.jit(partial(with_gradient, run) if training else run)
        calls.append(partial(function, variables["params"], rest, pixels))
    total, backbone, both = medians(calls, repeats)
    parts = {
        "backbone": backbone,
        "neck and heads": both - backbone,
        "all else": total - both,
    }
    rows = [{"name": name, "milliseconds": value} for name, value in parts.items()]
    return {"parts_whole": total, "parts": rows}


def layers_of(model: Model, precision: str) -> tuple[nn.Module, Callable]:
    """Returns a detector's network, and what runs its layers on `[B, H, W, 3]` pixels.

    Of R-CNNs it runs those before the first proposal.
    """
    for name, network in DENSE.items():
        if model.make.__name__ == name:
            layers = network(model.config, *model.layers(precision))
            return layers, lambda network, pixels: network(pixels)
    config = model.config
    if isinstance(config, MaskRCNNConfig):
        config = config.faster_rcnn

    def layers(network, pixels):
        return network.rpn_head(network.features(pixels))

    return FasterRCNNNetwork(config, *model.layers(precision)), layers
