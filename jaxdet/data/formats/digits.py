"""Draws handwritten digits on photographs: the data set that needs no download.

Scikit-learn's 1,797 handwritten digits of 8x8 pixels (Alpaydin and Kaynak 1998) are
drawn, larger, turned, slanted and in any color, onto crops of the photographs that
come with scikit-learn and scikit-image. Boxes are tight around the ink, and the ink is
the mask. The result is kept as a TFDS data set.
"""

import functools
import io
import os
import pathlib
from collections.abc import Iterator
from typing import Annotated

import cv2
import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from jaxdet.config import Count, InRange, Size, checked_dataclass
from jaxdet.data.boxes import pairwise_intersection
from jaxdet.data.dataset import DataError, DataSet
from jaxdet.data.files import cache_folder
from jaxdet.data.formats.tfds import load_directory

_SPLITS = ("train", "validation")
_VALIDATION_DIGITS = slice(None, None, 5)  # every fifth of the 1,797; train, the rest
_PHOTOGRAPHS = ("china", "flower", "astronaut", "coffee", "rocket", "camera")
_PHOTOGRAPHS += ("brick", "grass", "chelsea", "motorcycle")
_TRAIN_WIDTH = 0.6  # of each photograph, from the left; validation has the rest
_EMPTY = 0.05  # of the images have no digit
_MAX_TURN = np.radians(12)
_MAX_SHEAR = 0.2
_OPACITY = (0.85, 1.0)
_VISIBLE = 0.25  # of full ink: where a digit's box and mask begin
_MASK_SIDE = 28  # cells, as in the masks of Mask R-CNN
_MIN_CONTRAST = 80.0  # of 255, between the ink and nearly all of the photograph below
_LUMINANCE = (0.299, 0.587, 0.114)  # how bright the eye finds red, green, blue (BT.601)
_MAX_COVERED = 0.15  # of the smaller of two boxes
_TRIES = 20  # places tried for a digit, then it is left out


def load(
    split: str,
    *,
    data_dir: str | os.PathLike | None = None,
    train_images: int = 8000,
    validation_images: int = 300,
    side: int = 128,
    digit_sides: tuple[int, int] = (18, 52),
    max_digits: int = 10,
    seed: int = 0,
) -> DataSet:
    """Draws and stores the digits on first use (both splits, some seconds); reads them.

    Images depend on the parameters alone; every set of parameters is stored on its own.
    Image i is the same however many there are. No digit and no pixel of a photograph is
    in both splits.

    Args:
      split: "train" or "validation".
      data_dir: where data sets are stored. If not given, the folder that the
        environment variable `JAXDET_CACHE` names, else `~/.cache/jaxdet`.
      train_images: images of the split "train".
      validation_images: images of the split "validation".
      side: height and width of the images, in pixels.
      digit_sides: least and greatest height, in pixels, of a digit's 8x8 grid; its box,
        tight around the ink, may be a little larger or smaller.
      max_digits: an image has 1 to `max_digits` digits, one image in twenty none.
      seed: of all that is random.

    Returns:
      The data set.

    Raises:
      DataError: a parameter is out of range.
    """
    if split not in _SPLITS:
        raise DataError(f"digits: no split {split!r}; allowed: {', '.join(_SPLITS)}")
    try:
        config = DigitsConfig(
            train_images, validation_images, side, tuple(digit_sides), max_digits, seed
        )
    except ValueError as error:
        raise DataError(f"digits: {error}") from None
    folder = pathlib.Path(data_dir).expanduser() if data_dir else cache_folder()
    builder = Digits(config, folder / config.name)
    try:
        # Into a folder that gets its name when all is written: never half a data set.
        builder.download_and_prepare()
    except OSError:
        if not builder.data_path.exists():
            raise  # Else another process, begun at the same time, has finished first.
    return load_directory(builder.data_path, split)


@checked_dataclass
class DigitsConfig:
    """The parameters of `load`."""

    train_images: Count
    """Of the split "train"."""
    validation_images: Count
    """Of the split "validation"."""
    side: Annotated[int, InRange(32, 256)]
    """Height and width of the images, in pixels."""
    digit_sides: tuple[int, int]
    """Least and greatest height, in pixels, of a digit's 8x8 grid."""
    max_digits: Count
    """Of an image."""
    seed: Size
    """Of all that is random."""

    def relations(self) -> Iterator[tuple[str, bool, str]]:
        """Checks that digits are not smaller than scanned, nor larger than half."""
        smallest, largest = self.digit_sides
        fits = 8 <= smallest <= largest <= self.side / 2
        yield "digit_sides", fits, "8 <= least <= greatest <= side / 2"

    @property
    def name(self) -> str:
        """Tells these parameters from all others; a folder's name."""
        smallest, largest = self.digit_sides
        return (
            f"digits-{self.train_images}_{self.validation_images}-side_{self.side}-"
            f"from_{smallest}_to_{largest}-max_{self.max_digits}-seed_{self.seed}"
        )


class Digits(  # type: ignore[call-arg]
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """Draws and stores both splits; `load` is the way to it."""

    # To be raised with every change of what is stored, so that nobody reads the old.
    VERSION = tfds.core.Version("1.1.0")
    # Nothing is downloaded; to find that out, TFDS needs importlib_resources, which
    # does not come with it.
    url_infos = None

    def __init__(self, config: DigitsConfig, folder: str | os.PathLike):
        self.config = config
        super().__init__(data_dir=os.fspath(folder), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        side = self.config.side
        digit = {
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=list("0123456789")),
            "mask": tfds.features.Tensor(
                shape=(_MASK_SIDE, _MASK_SIDE), dtype=np.uint8, encoding="bytes"
            ),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(side, side, 3), encoding_format="jpeg"
                    ),
                    "objects": tfds.features.Sequence(digit),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict:
        del dl_manager
        counts = (self.config.train_images, self.config.validation_images)
        return {
            split: self._generate_examples(split, count)
            for split, count in zip(_SPLITS, counts, strict=True)
        }

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict]]:
        config = self.config
        glyphs, labels = _digits(split)
        photographs = _photographs(split)
        for index in range(count):
            rng = np.random.default_rng([config.seed, _SPLITS.index(split), index])
            pixels, boxes, masks, chosen = _draw_scene(rng, config, glyphs, photographs)
            yield (
                index,
                {
                    "image": io.BytesIO(_encode(pixels)),
                    "objects": [
                        {
                            "bbox": tfds.features.BBox(
                                *(box[[1, 0, 3, 2]] / config.side).tolist()
                            ),
                            "label": int(labels[glyph]),
                            "mask": mask,
                        }
                        for box, mask, glyph in zip(boxes, masks, chosen, strict=True)
                    ],
                },
            )


def _encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    # Without subsampling, which smears the color of thin strokes.
    PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


@functools.cache
def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns ink `[number of digits, 8, 8]` float32 in [0, 1], and labels."""
    import sklearn.datasets  # slow to import, and needed only to draw

    bunch = sklearn.datasets.load_digits()
    part = np.zeros(len(bunch.target), bool)
    part[_VALIDATION_DIGITS] = True
    part = ~part if split == "train" else part
    return (bunch.images[part] / 16).astype(np.float32), bunch.target[part]


@functools.cache
def _photographs(split: str) -> tuple[np.ndarray, ...]:
    """Returns the split's parts of the packages' photographs, `[H, W, 3]` uint8."""
    import skimage.color
    import skimage.data
    import sklearn.datasets

    def photograph(name: str) -> np.ndarray:
        if name in ("china", "flower"):
            return sklearn.datasets.load_sample_image(f"{name}.jpg")
        if name == "motorcycle":
            return skimage.data.stereo_motorcycle()[0]
        pixels = getattr(skimage.data, name)()
        return pixels if pixels.ndim == 3 else skimage.color.gray2rgb(pixels)

    def part(pixels: np.ndarray) -> np.ndarray:
        border = round(_TRAIN_WIDTH * pixels.shape[1])
        return pixels[:, :border] if split == "train" else pixels[:, border:]

    return tuple(part(photograph(name)) for name in _PHOTOGRAPHS)


def _draw_scene(
    rng: np.random.Generator,
    config: DigitsConfig,
    glyphs: np.ndarray,
    photographs: tuple[np.ndarray, ...],
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], list[int]]:
    """Pixels `[side, side, 3]` uint8, boxes `[N, 4]`, each one's mask and glyph."""
    canvas = _crop_photograph(rng, photographs, config.side).astype(np.float32)
    wanted = 0 if rng.random() < _EMPTY else rng.integers(1, config.max_digits + 1)
    boxes, masks, chosen = np.zeros((0, 4)), [], []
    for _ in range(wanted):
        glyph = int(rng.integers(len(glyphs)))
        ink = _write(rng, glyphs[glyph], config.digit_sides)
        corner = _find_place(rng, ink.shape, config.side, boxes)
        if corner is None:
            continue
        x, y = corner
        height, width = ink.shape
        _blend(rng, canvas[y : y + height, x : x + width], ink)
        boxes = np.append(boxes, [[x, y, x + width, y + height]], axis=0)
        masks.append(_mask(ink))
        chosen.append(glyph)
    return canvas.round().astype(np.uint8), boxes, masks, chosen


def _crop_photograph(
    rng: np.random.Generator, photographs: tuple[np.ndarray, ...], side: int
) -> np.ndarray:
    photograph = photographs[rng.integers(len(photographs))]
    height, width = photograph.shape[:2]
    largest = min(height, width)
    extent = int(rng.integers(min(side, largest), largest + 1))
    y, x = rng.integers(height - extent + 1), rng.integers(width - extent + 1)
    crop = photograph[y : y + extent, x : x + extent]
    method = cv2.INTER_AREA if extent > side else cv2.INTER_CUBIC
    crop = cv2.resize(crop, (side, side), interpolation=method)
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def _write(
    rng: np.random.Generator, glyph: np.ndarray, sides: tuple[int, int]
) -> np.ndarray:
    """Enlarges, turns and slants a glyph: ink in [0, 1], cut to what is visible."""
    smallest, largest = sides
    # Uniform in the logarithm, so that an octave has as many digits as the next.
    scale = np.exp(rng.uniform(np.log(smallest), np.log(largest))) / 8
    turn = rng.uniform(-_MAX_TURN, _MAX_TURN)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    shear = np.array([[1, rng.uniform(-_MAX_SHEAR, _MAX_SHEAR)], [0, 1]])
    matrix = scale * rotation @ shear
    side = int(np.ceil(12 * scale))  # room for the corners of the turned grid
    # The center of the glyph, 3.5 in pixel centers, goes to that of the patch.
    offset = (side - 1) / 2 - matrix @ [3.5, 3.5]
    ink = cv2.warpAffine(
        glyph, np.column_stack([matrix, offset]), (side, side), flags=cv2.INTER_CUBIC
    )
    # A pen leaves less gray than interpolation does, and an 8 has holes.
    ink = np.clip(1.25 * np.maximum(ink, 0) ** 1.5 - 0.1, 0, 1)
    rows = np.flatnonzero((ink > _VISIBLE).any(axis=1))
    columns = np.flatnonzero((ink > _VISIBLE).any(axis=0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _mask(ink: np.ndarray) -> np.ndarray:
    """Returns how much of each cell shows ink, `[28, 28]` uint8; 255 is all of it."""
    shares = 255 * (ink > _VISIBLE).astype(np.float32)
    # One axis, then the other: where one grows and one shrinks, OpenCV takes no shares.
    for sides in ((_MASK_SIDE, len(ink)), (_MASK_SIDE, _MASK_SIDE)):
        shares = cv2.resize(shares, sides, interpolation=cv2.INTER_AREA)
    return shares.round().astype(np.uint8)


def _find_place(
    rng: np.random.Generator, shape: tuple[int, int], side: int, boxes: np.ndarray
) -> tuple[int, int] | None:
    """Returns (x, y) where a box of this shape hardly covers others; None: nowhere."""
    height, width = shape
    if max(shape) > side:
        return None
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1)
    for _ in range(_TRIES):
        x = int(rng.integers(side - width + 1))
        y = int(rng.integers(side - height + 1))
        box = np.array([[x, y, x + width, y + height]])
        common = pairwise_intersection(boxes, box)[:, 0]
        if (common <= _MAX_COVERED * np.minimum(areas, height * width)).all():
            return x, y
    return None


def _blend(rng: np.random.Generator, canvas: np.ndarray, ink: np.ndarray) -> None:
    """Draws the ink onto `canvas`, in place, in a color that can be seen there."""
    colors = np.concatenate([rng.uniform(0, 255, (32, 3)), [[0] * 3, [255] * 3]])
    below = canvas[ink > _VISIBLE][::4]  # a sample is enough
    squares = (below[:, None] - colors) ** 2 @ _LUMINANCE  # [pixels, colors]
    contrast = np.sqrt(np.quantile(squares, 0.1, axis=0))
    visible = np.flatnonzero(contrast >= _MIN_CONTRAST)
    best = visible[0] if len(visible) else contrast.argmax()
    alpha = rng.uniform(*_OPACITY) * ink[..., None]
    canvas += alpha * (colors[best] - canvas)
