"""Anchors: the boxes of fixed shapes, on a grid, that a dense detector refines."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def pyramid_anchors(
    canvas: tuple[int, int],
    *,
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
    levels: Sequence[int],
    offset: float = 0.5,
    rounded: bool = False,
) -> jax.Array:
    """The anchors of every cell of a feature pyramid (Ren et al. 2015, 3.1.1).

    Args:
      canvas: `(height, width)` in pixels, static.
      sizes: for each level its anchor sizes, the square roots of their areas in pixels.
      ratios: height over width.
      levels: finest first. Level l has stride `2**l` and `ceil(canvas / 2**l)` cells.
      offset: where in its cell an anchor has its centre, in strides; torchvision and
        detectron2 use 0.
      rounded: torchvision's integer arithmetic: half sides are rounded, and cells lie
        `canvas // cells` apart, less than a stride that does not divide the canvas.

    Returns:
      `[A, 4]` float32 boxes, not clipped. A runs over levels (in the order given),
      rows, columns, ratios, sizes.

    Raises:
      ValueError: if there is not one group of sizes for each level.
    """
    if len(sizes) != len(levels):
        raise ValueError(f"{len(sizes)} groups of sizes for {len(levels)} levels")
    grids = []
    for level, level_sizes in zip(levels, sizes, strict=True):
        shapes = _shapes(level_sizes, ratios, rounded=rounded)
        y, x = (_centres(extent, level, offset, rounded=rounded) for extent in canvas)
        y, x = np.meshgrid(y, x, indexing="ij")
        centres = np.stack([x, y, x, y], axis=-1)
        grids.append((centres[:, :, None] + shapes).reshape(-1, 4))
    # In NumPy: a constant of the compiled program, as the canvas is static.
    return jnp.asarray(np.concatenate(grids), jnp.float32)


def count(canvas: tuple[int, int], *, levels: Sequence[int], per_cell: int) -> int:
    """How many anchors `pyramid_anchors` makes where each cell has `per_cell`."""
    height, width = canvas
    cells = sum(-(-height // 2**level) * -(-width // 2**level) for level in levels)
    return cells * per_cell


def on_image(
    canvas: tuple[int, int],
    size: jax.Array,
    *,
    levels: Sequence[int],
    per_cell: int,
) -> jax.Array:
    """Which anchors belong to cells that touch the image, not only its canvas.

    They are the anchors of a canvas as large as the image, in the same order.

    Args:
      canvas: `(height, width)` in pixels, static.
      size: `[2]`, true (height, width) of the image in its upper left corner.
      levels: as in `pyramid_anchors`.
      per_cell: anchors in each cell.

    Returns:
      `[A]` bool.
    """
    masks = []
    for level in levels:
        rows, columns = (
            np.arange(-(-extent // 2**level)) * 2**level for extent in canvas
        )
        inside = (rows < size[0])[:, None] & (columns < size[1])[None]
        masks.append(jnp.repeat(inside.reshape(-1), per_cell))
    return jnp.concatenate(masks)


def on_images(
    shape: tuple[int, ...],
    sizes: jax.Array | None,
    *,
    levels: Sequence[int],
    per_cell: int,
) -> jax.Array:
    """`on_image` for a batch.

    Args:
      shape: of the batch's images, `(B, height, width, ...)`.
      sizes: `[B, 2]`, true (height, width); None: all of the canvas is image.
      levels: as in `pyramid_anchors`.
      per_cell: anchors in each cell.

    Returns:
      `[B, A]` bool.
    """
    batch, *canvas = shape[:3]
    layout = {"levels": levels, "per_cell": per_cell}
    if sizes is None:
        return jnp.ones((batch, count(canvas, **layout)), bool)
    return jax.vmap(lambda size: on_image(canvas, size, **layout))(sizes)


def _shapes(
    sizes: Sequence[float], ratios: Sequence[float], *, rounded: bool
) -> np.ndarray:
    """Boxes around the origin, `[len(ratios) * len(sizes), 4]`, ratio by ratio."""
    roots, sizes = np.sqrt(ratios)[:, None], np.array(sizes)[None]
    half_sides = np.stack([sizes / roots, sizes * roots], axis=-1).reshape(-1, 2) / 2
    if rounded:
        half_sides = np.round(half_sides)
    return np.concatenate([-half_sides, half_sides], axis=-1)


def _centres(extent: int, level: int, offset: float, *, rounded: bool) -> np.ndarray:
    """Of the cells of a level along one side of the canvas, in pixels."""
    stride = 2**level
    cells = -(-extent // stride)
    step = extent // cells if rounded else stride
    return (np.arange(cells) + offset) * step
