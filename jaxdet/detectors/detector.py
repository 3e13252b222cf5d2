"""Defines the interface: a detector is three pure functions, and what builds them."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.config import Preprocessing
from jaxdet.detectors.serialization import serialize
from jaxdet.ops import images
from jaxdet.structs import Batch


class Detector(NamedTuple):
    """All that training, evaluation and inference know of a detector."""

    init: Callable  # (key, batch) -> variables
    loss: Callable  # (variables, batch, key, axis_name=None) -> (scalar, metrics)
    predict: Callable  # (variables, batch) -> Detections, in canvas pixels
    num_classes: int | None = None  # K; None: it does not classify
    recipe: dict | None = None  # JSON; `deserialize(recipe)` builds the detector again
    has_masks: bool = False  # whether `predict` returns masks


def from_network(
    network: nn.Module,
    *,
    loss: Callable,
    predict: Callable,
    num_classes: int | None = None,
    builder: partial | None = None,
    has_masks: bool = False,
) -> Detector:
    """Returns the detector of a network, whose functions take the network's variables.

    Args:
      network: the module; calling it on `[B, H, W, 3]` float pixels must run every
        trained stage, so that `init` makes every parameter.
      loss: `(network, batch, key, axis_name=None) -> (scalar, metrics)`. The batch has
        truth; per-image randomness depends only on the key of the step and the image
        id. Under `pmap`, `axis_name` is that of the devices that share the batch.
      predict: `(network, batch) -> Detections`, `[B, D]`, best first; the truth of the
        batch is not used.
      num_classes: see `Detector`.
      builder: the call that makes this detector; its recipe, unless it holds values
        that no recipe can hold.
      has_masks: see `Detector`.
    """

    def init(key: jax.Array, batch: Batch) -> Mapping[str, Any]:
        return network.init(key, jnp.zeros((1, *batch.images.shape[1:]), jnp.float32))

    try:
        recipe = serialize(builder)
    except TypeError:
        recipe = None
    functions = init, nn.apply(loss, network), nn.apply(predict, network)
    return Detector(*functions, num_classes, recipe, has_masks)


def preprocess(
    batch: Batch, config: Preprocessing, mask_padding: bool = True
) -> tuple[jax.Array, jax.Array | None]:
    """Returns what networks take: normalized pixels, and where the true images end.

    Args:
      batch: `[B, H, W, 3]` images from 0 to 255.
      config: see `Preprocessing`.
      mask_padding: whether networks keep the padding empty.

    Returns:
      `[B, H, W, 3]` float32, 0 outside the images; `[B, 2]` (height, width), or None
      without `mask_padding`: all of the canvas is image.
    """
    pixels = images.normalize(
        batch.images, batch.sizes, mean=config.mean, std=config.std
    )
    return pixels, batch.sizes if mask_padding else None
