"""Crops masks of objects to a box, and draws them onto the canvas."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdet.ops.boxes import to_float32


def crop_and_resize_masks(
    masks: Float[Array, "N M M"],
    boxes: Float[Array, "N 4"],
    rois: Float[Array, "R 4"],
    gt_index: Int[Array, " R"],
    *,
    output_size: int = 28,
) -> Float[Array, "R S S"]:
    """Crops the mask of each RoI's object to the RoI: the targets of a mask head.

    They are bilinearly sampled at the centers of the RoI's cells (He et al. 2017, 3.1),
    and not thresholded; the paper's are, at 0.5.

    Args:
      masks: in [0, 1], each cropped to its object's box.
      boxes: of the objects, in canvas pixels; padding has no area, and an empty mask.
      rois: boxes in canvas pixels.
      gt_index: in [0, N), the object of each RoI.
      output_size: cells S a side of the result.

    Returns:
      The targets in [0, 1]; 0 outside the object's box.
    """
    boxes, rois = to_float32(boxes), to_float32(rois)
    cells = masks.shape[-1]
    centers = (jnp.arange(output_size) + 0.5) / output_size

    def weights(axis: int) -> Float[Array, "R S M"]:
        """Returns the share of each cell of the mask in each cell of the RoI."""
        low, high = rois[:, axis, None], rois[:, axis + 2, None]
        own = boxes[gt_index]
        start, stop = own[:, axis, None], own[:, axis + 2, None]
        points = low + (high - low) * centers[None]
        inside = (points >= start) & (points <= stop) & (stop > start)
        extent = jnp.where(stop > start, stop - start, 1.0)
        # Less than half a cell from the box's border one cell alone counts.
        where = ((points - start) / extent * cells - 0.5).clip(0, cells - 1)
        return _bilinear(where, jnp.arange(cells)) * inside[..., None]

    return jnp.einsum(
        "rim,rmn,rjn->rij",
        weights(1),
        masks[gt_index].astype(jnp.float32),
        weights(0),
        precision="highest",
    )


def paste_masks(
    probabilities: Float[Array, "D M M"],
    boxes: Float[Array, "D 4"],
    *,
    canvas: tuple[int, int],
) -> Float[Array, "D H W"]:
    """Draws masks onto the canvas, each resized to its box, as torchvision does.

    A border of one empty cell is put around the mask and the box grown to match, its
    corners cut to whole pixels (towards zero; the last pixel is within); to them the
    mask is resized bilinearly. `jaxdet.data.masks.paste` does it on the host and
    touches the pixels of the box only: this one takes `D H W` floats.

    Args:
      probabilities: each cropped to its box.
      boxes: canvas pixels; of a box without area, as padding is, nothing is drawn.
      canvas: (height, width).

    Returns:
      The probability of each pixel; 0 outside the boxes.
    """
    boxes = to_float32(boxes)
    cells = probabilities.shape[-1]
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=-1)

    def weights(axis: int, length: int) -> Float[Array, "D L M"]:
        """Returns the share of each cell in each pixel."""
        low, high = boxes[:, axis], boxes[:, axis + 2]
        half = (high - low) * 0.5 * ((cells + 2) / cells)
        center = (high + low) * 0.5
        first, last = jnp.trunc(center - half), jnp.trunc(center + half)
        count = jnp.maximum(last - first + 1, 1.0)[:, None]
        pixels = jnp.arange(length)[None] - first[:, None]
        inside = (pixels >= 0) & (pixels < count) & has_area[:, None]
        where = (pixels + 0.5) * ((cells + 2) / count) - 0.5
        # Cell 0 is the border; what is sampled beyond it is as empty.
        return _bilinear(where, 1 + jnp.arange(cells)) * inside[..., None]

    return jnp.einsum(
        "dhm,dmn,dwn->dhw",
        weights(1, canvas[0]),
        probabilities.astype(jnp.float32),
        weights(0, canvas[1]),
        precision="highest",
    )


def _bilinear(points: Float[Array, "B P"], cells: Int[Array, " M"]) -> Array:
    """Weights `[B, P, M]` of M cells' values at points between them."""
    distance = points[..., None] - cells[None, None]
    return jnp.maximum(1 - jnp.abs(distance), 0.0)
