"""Masks of objects: cut to a box, or drawn onto the canvas."""

import chex
import jax
import jax.numpy as jnp


def crop_and_resize_masks(
    masks: jax.Array,
    boxes: jax.Array,
    regions: jax.Array,
    index: jax.Array,
    *,
    output_size: int = 28,
) -> jax.Array:
    """What the mask of a region's object looks like in the region's own frame.

    The targets of a mask head (He et al. 2017, 3.1), bilinearly sampled at the centres
    of the region's cells. They are not thresholded; the paper's are, at 0.5.

    Args:
      masks: `[N, M, M]` in [0, 1], each cut to its object's box.
      boxes: `[N, 4]`, canvas pixels; padding has no area, and an empty mask.
      regions: `[R, 4]`, canvas pixels.
      index: `[R]` int in [0, N), the object of each region.
      output_size: cells a side of the result.

    Returns:
      `[R, output_size, output_size]` float32 in [0, 1]; 0 outside the object's box.
    """
    chex.assert_shape([boxes, regions], (None, 4))
    chex.assert_equal_shape_prefix([masks, boxes], 1)
    chex.assert_equal_shape_prefix([regions, index], 1)
    cells = masks.shape[-1]
    centres = (jnp.arange(output_size) + 0.5) / output_size

    def weights(axis: int) -> jax.Array:
        """`[R, output_size, M]`: each mask cell's share in each cell of the region."""
        low, high = regions[:, axis, None], regions[:, axis + 2, None]
        start, stop = boxes[index, axis][:, None], boxes[index, axis + 2][:, None]
        points = low + (high - low) * centres[None]
        inside = (points >= start) & (points <= stop) & (stop > start)
        extent = jnp.where(stop > start, stop - start, 1.0)
        # Less than half a cell from the box's border there is one cell to ask only.
        where = ((points - start) / extent * cells - 0.5).clip(0, cells - 1)
        return _bilinear(where, jnp.arange(cells)) * inside[..., None]

    return jnp.einsum(
        "rim,rmn,rjn->rij",
        weights(1),
        masks[index].astype(jnp.float32),
        weights(0),
        precision="highest",
    )


def paste_masks(
    probabilities: jax.Array, boxes: jax.Array, *, canvas: tuple[int, int]
) -> jax.Array:
    """Masks drawn onto the canvas, each resized to its box, as torchvision does it.

    A border of one empty cell is put around the mask and the box grown to match, its
    corners cut to whole pixels (towards zero; the last pixel is within); to them the
    mask is resized bilinearly. `jaxdet.data.masks.paste` does it on the host and
    touches the pixels of the box only: this one takes `D H W` floats.

    Args:
      probabilities: `[D, M, M]`, each cut to its box.
      boxes: `[D, 4]`, canvas pixels; of a box without area, as padding is, nothing is
        drawn.
      canvas: (height, width).

    Returns:
      `[D, height, width]` float32; 0 outside the boxes.
    """
    chex.assert_shape(boxes, (None, 4))
    chex.assert_equal_shape_prefix([probabilities, boxes], 1)
    cells = probabilities.shape[-1]
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=-1)

    def weights(axis: int, length: int) -> jax.Array:
        """`[D, length, M]`, how much a pixel takes from each cell."""
        low, high = boxes[:, axis], boxes[:, axis + 2]
        half = (high - low) * 0.5 * ((cells + 2) / cells)
        centre = (high + low) * 0.5
        first, last = jnp.trunc(centre - half), jnp.trunc(centre + half)
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


def _bilinear(points: jax.Array, cells: jax.Array) -> jax.Array:
    """Weights `[..., P, M]` of M cells' values at `[..., P]` points between them."""
    distance = points[..., None] - cells.reshape((1,) * points.ndim + (-1,))
    return jnp.maximum(1 - jnp.abs(distance), 0.0)
