"""Shows what augmentation does to a photograph.

    python -m experiments.lecture.augmentations

Writes a sheet of pictures with boxes, each on its canvas.
"""

import functools
import pathlib
from collections.abc import Sequence

import numpy as np
import PIL.Image
from skimage import data

from experiments import command_line
from jaxdet import visualize
from jaxdet.data import augmentation, masks, mixing
from jaxdet.data.input_config import InputConfig
from jaxdet.data.transforms import (
    Example,
    fitted_size,
    flip_horizontally,
    resize_to_canvas,
)

INPUT = InputConfig(canvases=((256, 256),), multi_scale=(1.0, 0.75, 0.625))
CANVAS, SMALLER, SMALLEST = INPUT.training_canvases
NAMES = ("person", "shuttle", "helmet", "cat", "cup", "rocket")
BOXES = ((22, 14, 362, 512), (355, 0, 470, 290), (277, 344, 512, 512))
CUP = ((276, 236, 204, 152), (289, 111, 119, 96))  # (x, y) and radii of two ellipses
MASK_SIZE = 112


def main(*, output: pathlib.Path = pathlib.Path("augmentations.jpg"), seed: int = 8):
    """Draws the sheet.

    Args:
      output: file for it; its ending names the format.
      seed: of the random numbers.
    """
    named = views(np.random.default_rng(seed))
    pairs = [
        visualize.side_by_side(left, right, captions=(name, other))
        for (name, left), (other, right) in zip(named[::2], named[1::2], strict=True)
    ]
    sheet = visualize.contact_sheet(pairs, columns=2)
    PIL.Image.fromarray(sheet).save(output, quality=75)
    print(output)


def views(rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    """Returns names of augmentations, and the pictures `[H, W, 3]` uint8 they make."""
    example = example_of(data.astronaut(), BOXES, (0, 1, 2))
    cat = example_of(data.chelsea(), [(0, 0, 375, 300)], [3])
    cup = example_of(data.coffee(), [(72, 15, 480, 388)], [4])
    rocket = example_of(data.rocket(), [(308, 125, 335, 425)], [5])
    turns = np.linspace(0, 2 * np.pi, 40)[:, None]
    around = np.concatenate([np.cos(turns), np.sin(turns)], axis=1)
    outlines = [((x, y) + around * radii).ravel() for x, y, *radii in CUP]
    mask = masks.rasterize(tuple(outlines), cup.boxes[0], MASK_SIZE)
    paste = functools.partial(
        mixing.copy_paste, rng, example, cup._replace(masks=mask[None])
    )
    mosaic = functools.partial(mixing.mosaic, rng, [example, cat, cup, rocket], CANVAS)
    jitter = functools.partial(augmentation.scale_jitter, rng, example, CANVAS)
    return [
        ("as it is", drawn(example)),
        ("flip", drawn(flip_horizontally(example))),
        ("distort_colors", drawn(augmentation.distort_colors(rng, example))),
        ("expand", drawn(augmentation.expand(rng, example))),
        ("iou_crop", drawn(augmentation.iou_crop(rng, example))),
        ("iou_crop", drawn(augmentation.iou_crop(rng, example))),
        ("random_crop", drawn(augmentation.random_crop(rng, example))),
        ("random_crop", drawn(augmentation.random_crop(rng, example))),
        ("scale_jitter, smaller", drawn(*jitter(factors=(0.1, 1.0)))),
        ("scale_jitter, larger", drawn(*jitter(factors=(1.0, 2.0)))),
        ("multi_scale 0.75", drawn(example, canvas=SMALLER)),
        ("multi_scale 0.625", drawn(example, canvas=SMALLEST)),
        ("mosaic", drawn(mosaic())),
        ("mosaic", drawn(mosaic())),
        ("copy_paste", drawn(paste())),
        ("copy_paste", drawn(paste())),
    ]


def example_of(
    image: np.ndarray, boxes: Sequence[Sequence[float]], labels: Sequence[int]
) -> Example:
    """Returns an example whose objects fill their boxes.

    Args:
      image: `[H, W, 3]` uint8.
      boxes: `[N, 4]` (x1, y1, x2, y2).
      labels: `[N]`, indices into `NAMES`.
    """
    return Example(
        image,
        np.array(boxes, np.float32),
        np.array(labels, np.int32),
        np.zeros(len(boxes), bool),
        np.ones((len(boxes), MASK_SIZE, MASK_SIZE), np.float32),
    )


def drawn(
    example: Example,
    size: tuple[int, int] | None = None,
    *,
    canvas: tuple[int, int] = CANVAS,
) -> np.ndarray:
    """Draws an example on its canvas with its boxes, as large as `size` or as fits.

    Args:
      example: put into the upper left corner, black around it.
      size: (height, width) of its image; None: the largest that fits.
      canvas: (height, width).

    Returns:
      `[height, width, 3]` uint8, of the canvas.
    """
    size = size or fitted_size(example.image.shape[:2], canvas)
    empty = np.zeros((*canvas, 3), np.uint8)
    placed, _ = resize_to_canvas(example, size, keep_aspect=False, out=empty)
    return visualize.draw(placed.image, placed.boxes, placed.labels, class_names=NAMES)


if __name__ == "__main__":
    command_line.run(main)
