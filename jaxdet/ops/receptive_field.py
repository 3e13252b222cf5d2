"""Computes what a cell of the features sees of the image, and where it lies.

Everywhere else in this library cell (row i, column j) of level l stands for the pixels
around `((i + 0.5) * 2**l, (j + 0.5) * 2**l)`. Where its receptive field is in truth
depends on the paddings of the layers before it.

Anchors, `roi_align` and the pooling of `roi_pool` all follow the convention. On VGG-16
they thus stand exactly where its receptive fields are. Those of AlexNet lie 0.5 pixels
to the upper left (7.5 to the lower right with the published paddings); those of
ResNets, whose kernels are centered on every second pixel, `(2**l - 1) / 2` to the upper
left: 7.5 pixels at stride 16, 15.5 at stride 32. Detectors learn to correct a constant
shift below half a cell; the functions here compute it.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from jaxdet.ops.boxes import to_float32


class Layer(NamedTuple):
    """A convolution or pooling along one axis, in cells of the layer before."""

    kernel: int
    stride: int = 1
    padding: int = 0  # cells before the first one
    dilation: int = 1


class Field(NamedTuple):
    """Receptive fields of all cells of a layer, along one axis, in pixels."""

    size: int  # of one
    stride: int  # from one to the next
    center: float  # of the first, where pixel p covers [p, p + 1)


def receptive_fields(layers: Iterable[tuple]) -> list[Field]:
    """Computes the fields after each of a stack of layers, from the image up.

    A layer adds `(kernel - 1) * dilation` steps of the layer before to the size, and
    moves the first center by half of that, less its padding.

    Args:
      layers: `Layer`s or tuples like them; a backbone's file has a function `layers`.

    Returns:
      A `Field` for each layer.

    Raises:
      ValueError: for a kernel, stride or dilation below 1 or a negative padding.
    """
    size, stride, center = 1, 1, 0.5
    fields = []
    for layer in (Layer(*layer) for layer in layers):
        if min(layer.kernel, layer.stride, layer.dilation) < 1 or layer.padding < 0:
            raise ValueError(
                f"{layer}: kernel, stride and dilation of at least 1 and padding of at "
                "least 0 are needed"
            )
        reach = (layer.kernel - 1) * layer.dilation
        size += reach * stride
        center += (reach / 2 - layer.padding) * stride
        stride *= layer.stride
        fields.append(Field(size, stride, center))
    return fields


def receptive_field(layers: Iterable[tuple]) -> Field:
    """Computes the field after the last of a stack of layers; of none, the pixels'."""
    return [Field(1, 1, 0.5), *receptive_fields(layers)][-1]


def receptive_boxes(cells: Real[Array, "*B 2"], field: Field) -> Float[Array, "*B 4"]:
    """Returns the pixels that cells see, as boxes that may reach over the canvas.

    Args:
      cells: (row, column).
      field: of their layer.

    Returns:
      Boxes in pixels.
    """
    centers = field.center + jnp.flip(cells, axis=-1).astype(jnp.float32) * field.stride
    return jnp.concatenate([centers - field.size / 2, centers + field.size / 2], -1)


def project(pixels: Float[Array, "*B"], field: Field) -> Float[Array, "*B"]:
    """Turns coordinates of the image into those of features (He et al. 2014, A).

    There cell j covers [j, j + 1); the center of a receptive field becomes the center
    of its cell. Points and boxes are projected coordinate by coordinate.
    """
    return (to_float32(pixels) - field.center) / field.stride + 0.5


def unproject(cells: Float[Array, "*B"], field: Field) -> Float[Array, "*B"]:
    """Turns coordinates of features into pixels: the inverse of `project`."""
    return (to_float32(cells) - 0.5) * field.stride + field.center
