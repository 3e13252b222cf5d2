"""Decodes images to RGB arrays, as a person sees them."""

import dataclasses
import functools
import io
import logging
import os
from collections.abc import Sequence
from typing import Annotated, Literal

import cv2
import numpy as np
import PIL.Image
import simplejpeg

from jaxdet.config import InRange, checked_dataclass
from jaxdet.data.dataset import DataError, DataSet
from jaxdet.data.files import open_regular

SUFFIXES = frozenset(
    {".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
"""Of files that are taken for images, in lower case."""
_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # orientations that swap height and width
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA")
_FORMATS += (
    "TIFF",
    "WEBP",
)  # Others may run programs: Pillow hands EPS to Ghostscript.

logger = logging.getLogger(__name__)


@checked_dataclass
class DecodeOptions:
    """How image files are decoded where more than one way is right."""

    bit_depth: Annotated[int, InRange(9, 16)] = 16
    """Bits that 16-bit images use: with 12, 4095 is white. A run does not keep it: what
    it was trained with is needed to detect and to evaluate, too."""
    damaged_jpeg: Literal["error", "accept"] = "error"
    """What becomes of a JPEG that libjpeg warns of, such as one that is cut short: an
    error, or what is missing is filled up."""


DEFAULTS = DecodeOptions()


def read(path: str | os.PathLike, options: DecodeOptions = DEFAULTS) -> np.ndarray:
    """Reads an image file as `[H, W, 3]` uint8 RGB; see `decode`.

    Args:
      path: of the file.
      options: see `DecodeOptions`.

    Returns:
      `[H, W, 3]` uint8 RGB.

    Raises:
      DataError: it cannot be read, or not be decoded.
    """
    return decode(read_encoded(path), str(path), options)


def with_decode_options(data_set: DataSet, options: DecodeOptions) -> DataSet:
    """Returns a data set whose image files are decoded with other options.

    Raises:
      DataError: for a data set without image files.
    """
    if options == DEFAULTS:
        return data_set
    if data_set.read_encoded is None:
        raise DataError(
            f"data set {data_set.name!r} has no image files, which {options} is for"
        )

    def read_image(position: int) -> np.ndarray:
        name = f"{data_set.name}, image {data_set.image_ids[position]!r}"
        return decode(data_set.read_encoded(position), name, options)

    return dataclasses.replace(data_set, read_image=read_image)


def has_image_suffix(path: str | os.PathLike) -> bool:
    """Tells whether a file is taken for an image, by its name."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def read_sized(
    path: str | os.PathLike, size: np.ndarray, annotation: str | os.PathLike
) -> np.ndarray:
    """Reads an image file and checks that its size is the annotated one.

    Args:
      path: of the image file.
      size: `[2]` (height, width).
      annotation: the file in which it stands, for errors.

    Returns:
      `[H, W, 3]` uint8 RGB.

    Raises:
      DataError: it cannot be read or decoded, or has another size.
    """
    pixels, expected = read(path), tuple(size.tolist())
    if pixels.shape[:2] != expected:
        raise DataError(
            f"{path}: (height, width) is {pixels.shape[:2]} on disk, EXIF "
            f"orientation applied; allowed: {expected}, as in {annotation}"
        )
    return pixels


def read_encoded(path: str | os.PathLike) -> bytes:
    """Reads the bytes of a file, whatever they are.

    Raises:
      DataError: it cannot be read, or is no regular file.
    """
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def read_size(path: str | os.PathLike) -> tuple[int, int]:
    """Reads the (height, width) that `read(path)` will have from the header alone.

    Raises:
      DataError: the file cannot be read, or is no image.
    """
    try:
        with open_regular(path) as file:
            return _size(file, str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def is_possible(size: Sequence[float]) -> bool:
    """Tells whether an image may have this (height, width).

    Whole numbers above 0, and no more pixels than Pillow takes for harmless.
    """
    limit = PIL.Image.MAX_IMAGE_PIXELS or np.inf
    return all(side >= 1 and side % 1 == 0 for side in size) and (
        size[0] * size[1] <= 2 * limit
    )


def decode(encoded: bytes, name: str, options: DecodeOptions = DEFAULTS) -> np.ndarray:
    """Decodes an image from a file in one of the formats of photographs.

    EXIF orientation is applied, transparency laid on white, 16 bits scaled to 8, and of
    several frames the first is taken.

    Args:
      encoded: the bytes of the file.
      name: names the image in errors.
      options: see `DecodeOptions`.

    Returns:
      `[H, W, 3]` uint8 RGB.

    Raises:
      DataError: `encoded` is empty, truncated, no image, or of more pixels than Pillow
        takes for harmless (twice `PIL.Image.MAX_IMAGE_PIXELS`).
    """
    image = _open(io.BytesIO(encoded), name)
    orientation = _orientation(image)
    try:
        pixels = _to_rgb(image, encoded, name, options)
    except Exception as error:  # Decoders raise whatever they stumble over.
        raise DataError(f"{name}: broken {image.format} image ({error})") from error
    if orientation in _TURNS:
        turned = PIL.Image.fromarray(pixels).transpose(_TURNS[orientation])
        pixels = np.array(turned)
    return pixels


def decode_size(encoded: bytes, name: str) -> tuple[int, int]:
    """Reads the (height, width) that `decode` will return from the header alone."""
    return _size(io.BytesIO(encoded), name)


def _size(file, name: str) -> tuple[int, int]:
    image = _open(file, name)
    width, height = image.size
    return (width, height) if _orientation(image) in _SIDEWAYS else (height, width)


def _open(file, name: str) -> PIL.Image.Image:
    try:
        return PIL.Image.open(file, formats=_formats())
    except PIL.UnidentifiedImageError as error:
        raise DataError(
            f"{name}: not an image; allowed: {', '.join(_formats())}"
        ) from error
    except Exception as error:  # As above; decompression bombs are reported here.
        raise DataError(f"{name}: not a readable image ({error})") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    PIL.Image.init()  # not every Pillow has all of them
    return tuple(name for name in _FORMATS if name in PIL.Image.OPEN)


def _orientation(image: PIL.Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # Pillow turns these itself, their size too.
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Else Pillow decodes it all to look for EXIF behind the pixels.
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Broken metadata is no reason to lose the picture.
        return 1


def _to_rgb(
    image: PIL.Image.Image, encoded: bytes, name: str, options: DecodeOptions
) -> np.ndarray:
    if image.format in ("JPEG", "MPO"):
        pixels = _decode_jpeg(encoded, image.mode, options)
        if pixels is not None and pixels.shape[1::-1] == image.size:
            return pixels
    # Sixteen-bit modes are "I;16" and its byte orders; PNM files come as "I".
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        return _stretch(values, name, options)[..., None].repeat(3, axis=-1)
    if image.mode == "F":
        raise ValueError("floating-point gray values have no known range")
    if any(";16" in str(tile[3]) for tile in image.tile):
        return _sixteen_bit_colors(image, encoded, name, options)
    return np.array(_onto_white(image))


def _decode_jpeg(
    encoded: bytes, mode: str, options: DecodeOptions
) -> np.ndarray | None:
    """Decodes a JPEG by libjpeg alone, which says what is wrong with it.

    Pillow and OpenCV fill up what is missing before the end marker in silence.

    Returns:
      None for what is left to Pillow: CMYK, once it is checked, and rare samplings.
    """
    decode = functools.partial(
        simplejpeg.decode_jpeg, encoded, "CMYK" if mode == "CMYK" else "RGB"
    )
    problem = None
    try:
        pixels = decode(strict=True)
    except ValueError as error:
        problem = error
        try:
            pixels = decode(strict=False)
        except ValueError:
            return None
    if problem is not None and options.damaged_jpeg == "error":
        raise ValueError(
            f'{problem}; damaged_jpeg="accept" (--damaged-jpeg accept) reads the rest'
        )
    return None if mode == "CMYK" else pixels


def _stretch(values: np.ndarray, name: str, options: DecodeOptions) -> np.ndarray:
    """Scales whole numbers of `bit_depth` bits to eight."""
    white = 2**options.bit_depth - 1
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > white:
        raise ValueError(
            f"gray or color values from {low} to {high}; allowed: 0 to {white}, "
            f"bit_depth {options.bit_depth}"
        )
    _warn_if_dark(low, high, name, options)
    return ((values * 255 + white // 2) // white).astype(np.uint8)


def _sixteen_bit_colors(
    image: PIL.Image.Image, encoded: bytes, name: str, options: DecodeOptions
) -> np.ndarray:
    """Takes Pillow's eight bits, the upper ones, unless fewer than 16 are used."""
    if options.bit_depth == 16:
        rgb = np.array(_onto_white(image))
        _warn_if_dark(256 * int(rgb.min()), 256 * int(rgb.max()), name, options)
        return rgb
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    values = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    if values is None or values.dtype != np.uint16 or values.shape[2:] != (3,):
        raise ValueError("not opaque 16-bit colors; allowed: bit_depth 16")
    return _stretch(values[..., ::-1].astype(np.int64), name, options)


def _warn_if_dark(low: int, high: int, name: str, options: DecodeOptions) -> None:
    """Names the first image whose values use too few of 16 bits."""
    fewer = next((bits for bits in (10, 12, 14) if high < 2**bits), 16)
    if options.bit_depth < 16 or high <= 0 or fewer == 16 or fewer in _warned:
        return
    _warned.add(fewer)
    logger.warning(
        "%s: 16-bit values from %d to %d, so it is nearly black; if its camera has %d "
        "bits, bit_depth=%d (--bit-depth %d) makes %d white",
        *(name, low, high, fewer, fewer, fewer, 2**fewer - 1),
    )


_warned: set[int] = set()


def _onto_white(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        white = PIL.Image.new("RGBA", seen.size, "white")
        return PIL.Image.alpha_composite(white, seen).convert("RGB")
    return image.convert("RGB")
