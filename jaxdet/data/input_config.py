"""Configures how images become batches."""

import itertools
import os
from collections.abc import Iterator
from typing import Annotated, Literal

from jaxdet.config import (
    Count,
    Fraction,
    InRange,
    NotEmpty,
    Positive,
    Size,
    checked_dataclass,
)

Side = Annotated[int, InRange(1, 2**14)]
"""Of a canvas, in pixels."""


@checked_dataclass
class InputConfig:
    """How images become batches.

    The default canvases hold what the FPN paper feeds (4.1: shorter side 800, longer
    side at most 1333), in multiples of 32.

    Raises:
      ValueError: for a value out of its range, naming the field and what is allowed.
    """

    canvases: Annotated[tuple[tuple[Side, Side], ...], NotEmpty()] = (
        (800, 1344),
        (1344, 800),
    )
    """(height, width) of each; an image goes to the one of nearest aspect ratio. No
    stride has to divide them, as the last cells may reach beyond; only SSD's steps and
    torchvision's rounded strides refuse canvases that do not fit them."""
    max_objects: Count = 100
    """Object slots an image."""
    max_regions: Size = 0
    """Slots an image for region proposals, the best of them; 0: batches carry none."""
    mask_size: Size = 0
    """Cells a side of training objects' masks, cut to their boxes; 0: no masks."""
    too_many_objects: Literal["error", "drop"] = "error"
    """What happens to an image with more: an error, or its smallest objects are dropped
    with a warning. A mosaic counts as four such images, a paste as one more."""
    unreadable_images: Literal["error", "skip"] = "error"
    """What happens to them: an error, or another image of the same canvas takes their
    place, with a warning."""
    max_unreadable: Fraction = 0.1
    """Of a data set's images, the share that may be skipped; more stop the run. Each
    process counts those that it met itself, anew at every start."""
    flip: Fraction = 0.5
    """Probability that a training image is mirrored."""
    mosaic: Fraction = 0.0
    """Probability that a training image is one of four that share a canvas; the others
    are drawn from the whole data set."""
    copy_paste: Fraction = 0.0
    """Probability that a training image gets objects of another, drawn from the whole
    data set, by their masks; detectors without masks may use it, too. It comes after
    the mosaic."""
    distort_colors: Fraction = 0.0
    """Probability that a training image's colors change; SSD's is 1."""
    expand: Fraction = 0.0
    """Probability that a training image is put on a larger one; SSD's is 0.5."""
    iou_crop: Fraction = 0.0
    """Probability that a training image is cropped to a patch that overlaps some object
    enough; SSD's is 1."""
    random_crop: Fraction = 0.0
    """Probability that a training image is cropped to a patch of any shape, half to all
    of each side; objects stay by their visible part."""
    scale_jitter: tuple[Positive, Positive] = (1.0, 1.0)
    """Least and greatest factor by which a training image becomes smaller or larger
    than fits its canvas, which cuts off the rest; 0.1 and 2: large-scale jitter."""
    multi_scale: Annotated[tuple[Positive, ...], NotEmpty()] = (1.0,)
    """Factors of the canvases in training: each batch draws one. Sides are rounded to
    multiples of 32, but a factor of 1 leaves them as they are."""
    workers: Size = min(8, os.cpu_count() or 1)
    """Threads that prepare batches ahead, by default one a core, at most 8; 0: none.
    Each prepares a batch of its own, so more than `prefetch` have nothing to do: on a
    host of many cores raise both, as far as memory holds the batches."""
    prefetch: Count = 8
    """Batches in preparation or waiting at any time, at most; each lies in memory, in
    training on the devices too."""
    keep_aspect: bool = True
    """Whether images keep their shapes; SSD's fill their canvas without."""
    min_max_size: tuple[Count, Count] | None = None
    """What the shorter side of an image becomes, and the most that the longer one may
    become, as in torchvision; the image goes to the smallest canvas that holds it.
    None: as large as fits the canvas."""
    float_pixels: bool = False
    """Whether resized pixels stay floats and are never averaged, as in torchvision;
    such batches are four times as large."""

    def relations(self) -> Iterator[tuple[str, bool, str]]:
        """Checks the pairs' order, and what a fixed size of images leaves no room for.

        Yields:
          The field, whether its value fits the others, and what would be allowed.
        """
        low, high = self.scale_jitter
        yield "scale_jitter", low <= high, "two numbers, the second no less"
        for name in ("mosaic", "copy_paste"):
            fits = not (getattr(self, name) and self.max_regions)
            yield name, fits, f"0 with max_regions {self.max_regions}"
        if self.min_max_size is None:
            return
        low, high = self.min_max_size
        yield "min_max_size", low <= high, "two numbers, the second no less"
        for name, allowed in (
            ("keep_aspect", True),
            ("mosaic", 0),
            ("expand", 0),
            ("iou_crop", 0),
            ("random_crop", 0),
            ("scale_jitter", (1, 1)),
            ("multi_scale", (1,)),
        ):
            fits = getattr(self, name) == allowed
            yield name, fits, f"{allowed} with min_max_size {self.min_max_size}"

    @property
    def training_canvases(self) -> tuple[tuple[int, int], ...]:
        """Returns all (height, width) of training; it compiles once for each."""
        pairs = itertools.product(self.canvases, self.multi_scale)
        return tuple(dict.fromkeys(scale_canvas(*pair) for pair in pairs))


def scale_canvas(canvas: tuple[int, int], factor: float) -> tuple[int, int]:
    """Returns what a canvas becomes by a factor of `InputConfig.multi_scale`."""
    if factor == 1:
        return canvas
    height, width = (max(32, 32 * round(side * factor / 32)) for side in canvas)
    return height, width
