"""What a cell of the features sees of the image, and where on the image it lies.

Everywhere else in this library cell (row i, column j) of level l stands for the pixels
around `((i + 0.5) * 2**l, (j + 0.5) * 2**l)`. Where its receptive field is in truth
depends on the paddings of the layers before it.

Anchors, `roi_align` and the pooling of `roi_pool` all follow the convention. On VGG-16
they thus stand exactly where its cells look. What a cell of AlexNet looks at lies 0.5
pixels to the upper left of where they take it to be (7.5 to the lower right with the
published paddings); with ResNets, whose kernels are centered on every second pixel,
`(2**l - 1) / 2` to the upper left: 7.5 pixels at stride 16, 15.5 at stride 32.
Detectors learn to live with a constant shift below half a cell; the functions here say
how large it is.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp


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
    centre: float  # of the first, where pixel p covers [p, p + 1)


def receptive_fields(layers: Iterable[tuple]) -> list[Field]:
    """The fields after each of a stack of layers, from the image up.

    A layer adds `(kernel - 1) * dilation` steps of the layer before to the size, and
    moves the first centre by half of that, less its padding.

    Args:
      layers: `Layer`s or tuples like them; those of a network come from `layers` in its
        file.

    Raises:
      ValueError: for a kernel, stride or dilation below 1 or a negative padding.
    """
    size, stride, centre = 1, 1, 0.5
    fields = []
    for layer in (Layer(*layer) for layer in layers):
        if min(layer.kernel, layer.stride, layer.dilation) < 1 or layer.padding < 0:
            raise ValueError(
                f"{layer}: kernel, stride and dilation of at least 1 and padding of at "
                "least 0 are needed"
            )
        reach = (layer.kernel - 1) * layer.dilation
        size += reach * stride
        centre += (reach / 2 - layer.padding) * stride
        stride *= layer.stride
        fields.append(Field(size, stride, centre))
    return fields


def receptive_field(layers: Iterable[tuple]) -> Field:
    """The fields after the last of a stack of layers; of none, the pixels themselves.

    Args:
      layers: as in `receptive_fields`.
    """
    return [Field(1, 1, 0.5), *receptive_fields(layers)][-1]


def receptive_boxes(cells: jax.Array, field: Field) -> jax.Array:
    """The pixels that cells see, which may reach over the border of the canvas.

    Args:
      cells: `[..., 2]` (row, column).
      field: of their layer.

    Returns:
      `[..., 4]` float32 boxes in pixels.
    """
    centres = field.centre + jnp.flip(cells, axis=-1).astype(jnp.float32) * field.stride
    return jnp.concatenate([centres - field.size / 2, centres + field.size / 2], -1)


def project_points(points: jax.Array, field: Field) -> jax.Array:
    """Points of the image on the features, where cell j covers [j, j + 1).

    The centre of a receptive field becomes the centre of its cell.

    Args:
      points: `[..., 2]` (x, y) in pixels.
      field: of the layer.

    Returns:
      The same shape, in cells.
    """
    return (points - field.centre) / field.stride + 0.5


def unproject_points(points: jax.Array, field: Field) -> jax.Array:
    """Points of the features on the image: the inverse of `project_points`.

    Args:
      points: `[..., 2]` (x, y) in cells.
      field: of the layer.

    Returns:
      The same shape, in pixels.
    """
    return (points - 0.5) * field.stride + field.centre


def project_boxes(boxes: jax.Array, field: Field) -> jax.Array:
    """`[..., 4]` boxes in pixels -> in cells, corner by corner (He et al. 2014, A)."""
    return project_points(boxes, field)


def unproject_boxes(boxes: jax.Array, field: Field) -> jax.Array:
    """`[..., 4]` boxes in cells -> in pixels: the inverse of `project_boxes`."""
    return unproject_points(boxes, field)
