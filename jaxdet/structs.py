"""The padded arrays that travel between data, detectors and evaluation.

Letters in shapes: B images, H W rows and columns of the canvas, N object slots,
P region slots, D detection slots, M mask cells a side, K classes. Boxes are float32
`(x1, y1, x2, y2)` in canvas pixels. A slot whose `valid` is False is padding: its box
is zeros, and nothing computed from it may reach a loss or an answer.
"""

import flax.struct
import jax


@flax.struct.dataclass
class GroundTruth:
    """The objects of a batch of images."""

    boxes: jax.Array  # [B, N, 4] float32
    labels: jax.Array  # [B, N] int32 in [0, K)
    valid: jax.Array  # [B, N] bool, False for padding
    crowd: jax.Array  # [B, N] bool: a region of many objects, no training target
    masks: jax.Array | None = None  # [B, N, M, M] float32, cropped to their boxes


@flax.struct.dataclass
class Regions:
    """Boxes worth a look, from selective search or a region proposal network."""

    boxes: jax.Array  # [B, P, 4] float32
    scores: jax.Array  # [B, P] float32
    valid: jax.Array  # [B, P] bool


@flax.struct.dataclass
class Batch:
    """Images, each in the upper left corner of a canvas, and what is known of them."""

    # [B, H, W, 3] RGB, zeros outside the true size: uint8, or float32 from 0 to 255
    # where fractions are kept
    images: jax.Array
    sizes: jax.Array  # [B, 2] int32, true (height, width) within the canvas
    scales: (
        jax.Array
    )  # [B, 2] float32, canvas pixels per original pixel (height, width)
    image_ids: jax.Array  # [B] int32, position in the data set; -1 for padding images
    truth: GroundTruth | None = None  # None: nothing is known, as in inference
    regions: Regions | None = None  # for detectors that make no proposals themselves


@flax.struct.dataclass
class Detections:
    """What a detector found, best score first, in canvas pixels."""

    boxes: jax.Array  # [B, D, 4] float32
    scores: jax.Array  # [B, D] float32 in [0, 1]
    labels: jax.Array  # [B, D] int32 in [0, K)
    valid: jax.Array  # [B, D] bool
    masks: jax.Array | None = None  # [B, D, M, M] float32, cropped to their boxes
