"""Defines the padded arrays that travel between data, detectors and evaluation.

Letters in shapes: B images, H W rows and columns of the canvas, N object slots,
P region slots, D detection slots, M mask cells a side, K classes. Boxes are float32
`(x1, y1, x2, y2)` in canvas pixels. A slot whose `valid` is False is padding: its box
is zeros, and nothing computed from it may reach a loss or a detection. Under `vmap` a
struct is that of one image: `*B` is then nothing.
"""

import flax.struct
from jaxtyping import Array, Bool, Float, Int, Real


@flax.struct.dataclass
class GroundTruth:
    """The objects of a batch of images."""

    boxes: Float[Array, "*B N 4"]
    labels: Int[Array, "*B N"]  # in [0, K)
    valid: Bool[Array, "*B N"]  # False for padding
    crowd: Bool[Array, "*B N"]  # a region of many objects, no training target
    masks: Float[Array, "*B N M M"] | None = None  # cropped to their boxes


@flax.struct.dataclass
class Regions:
    """Region proposals, from selective search or a region proposal network."""

    boxes: Float[Array, "*B P 4"]
    scores: Float[Array, "*B P"]
    valid: Bool[Array, "*B P"]


@flax.struct.dataclass
class Batch:
    """Images, each in the upper left corner of a canvas, and their annotations."""

    # RGB, zeros outside the true size: uint8, or float32 from 0 to 255 where fractions
    # are kept
    images: Real[Array, "*B H W 3"]
    sizes: Int[Array, "*B 2"]  # true (height, width) within the canvas
    scales: Float[Array, "*B 2"]  # canvas pixels per original pixel (height, width)
    image_ids: Int[Array, "*B"]  # position in the data set; -1 for padding images
    truth: GroundTruth | None = None  # None in inference
    regions: Regions | None = None  # for detectors that make no proposals themselves


@flax.struct.dataclass
class Detections:
    """What a detector detected, best score first, in canvas pixels."""

    boxes: Float[Array, "*B D 4"]
    scores: Float[Array, "*B D"]  # in [0, 1]
    labels: Int[Array, "*B D"]  # in [0, K)
    valid: Bool[Array, "*B D"]
    masks: Float[Array, "*B D M M"] | None = None  # cropped to their boxes
