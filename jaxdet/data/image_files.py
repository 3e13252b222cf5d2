"""Decodes images to RGB arrays, as a person sees them."""

import io
import os
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np
import PIL.Image

from jaxdet.data.dataset import DataError

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
_END_OF_JPEG = b"\xff\xd9"


def read(path: str | os.PathLike) -> np.ndarray:
    """Reads an image file as `[H, W, 3]` uint8 RGB; see `decode`.

    Raises:
      DataError: it cannot be read, or not be decoded.
    """
    return decode(read_encoded(path), str(path))


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
      DataError: it cannot be read.
    """
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def read_size(path: str | os.PathLike) -> tuple[int, int]:
    """Reads the (height, width) that `read(path)` will have from the header alone.

    Raises:
      DataError: the file cannot be read, or is no image.
    """
    try:
        with open(path, "rb") as file:
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


def decode(encoded: bytes, name: str) -> np.ndarray:
    """Decodes an image from any file that Pillow knows.

    EXIF orientation is applied, transparency laid on white, 16 bits scaled to 8, and of
    several frames the first is taken.

    Args:
      encoded: the bytes of the file.
      name: names the image in errors.

    Returns:
      `[H, W, 3]` uint8 RGB.

    Raises:
      DataError: `encoded` is empty, truncated, no image, or of more pixels than Pillow
        takes for harmless (twice `PIL.Image.MAX_IMAGE_PIXELS`).
    """
    image = _open(io.BytesIO(encoded), name)
    orientation = _orientation(image)
    if image.format == "JPEG" and image.mode == "RGB" and orientation == 1:
        pixels = _decode_plain_jpeg(encoded)
        if pixels is not None:
            return pixels
    try:
        rgb = _to_rgb(image)
    except Exception as error:  # Pillow's decoders raise whatever they stumble over.
        raise DataError(f"{name}: broken {image.format} image ({error})") from error
    if orientation in _TURNS:
        rgb = rgb.transpose(_TURNS[orientation])
    return np.array(rgb)


def decode_size(encoded: bytes, name: str) -> tuple[int, int]:
    """Reads the (height, width) that `decode` will return from the header alone."""
    return _size(io.BytesIO(encoded), name)


def _size(file, name: str) -> tuple[int, int]:
    image = _open(file, name)
    width, height = image.size
    return (width, height) if _orientation(image) in _SIDEWAYS else (height, width)


def _open(file, name: str) -> PIL.Image.Image:
    try:
        return PIL.Image.open(file)
    except PIL.UnidentifiedImageError as error:
        raise DataError(f"{name}: not an image that Pillow can read") from error
    except Exception as error:  # As above; decompression bombs are reported here.
        raise DataError(f"{name}: not a readable image ({error})") from error


def _orientation(image: PIL.Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # Pillow turns these itself, their size too.
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Else Pillow decodes it all to look for EXIF behind the pixels.
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Broken metadata is no reason to lose the picture.
        return 1


def _decode_plain_jpeg(encoded: bytes) -> np.ndarray | None:
    """Decodes faster than Pillow; None where OpenCV fails or cannot be trusted.

    OpenCV 4 fills the missing rows of a truncated JPEG with gray and says nothing.
    """
    if not encoded.endswith(_END_OF_JPEG):
        return None
    buffer = np.frombuffer(encoded, np.uint8)
    pixels = cv2.imdecode(buffer, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, pixels)


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    # Sixteen-bit modes are "I;16" and its byte orders; PNM files come as "I".
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("gray values outside 16 bits")
        gray = PIL.Image.fromarray(((values + 128) // 257).astype(np.uint8))
        return gray.convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point gray values have no known range")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        white = PIL.Image.new("RGBA", seen.size, "white")
        return PIL.Image.alpha_composite(white, seen).convert("RGB")
    return image.convert("RGB")
