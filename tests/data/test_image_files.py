import io

import numpy as np
import PIL.Image
import pytest

from jaxdet.data import image_files
from jaxdet.data.dataset import DataError


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def photo(rng):
    """A smooth `[40, 60, 3]` picture, of which JPEG loses little."""
    small = rng.integers(0, 255, (4, 6, 3), np.uint8)
    return PIL.Image.fromarray(small).resize((60, 40), PIL.Image.Resampling.BICUBIC)


def test_png_is_read_exactly(photo):
    pixels = image_files.decode(encode(photo), "a.png")
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(photo))
    assert pixels.flags.writeable


@pytest.mark.parametrize("trailing", [b"", b"\0junk"])  # OpenCV, then Pillow
def test_jpeg_is_rgb_in_order_by_either_library(photo, trailing):
    encoded = encode(photo, "JPEG", quality=95)
    pixels = image_files.decode(encoded + trailing, "a.jpg")
    expected = np.asarray(PIL.Image.open(io.BytesIO(encoded)))
    assert np.abs(pixels.astype(int) - expected).max() <= 2
    assert pixels.flags.writeable


def test_gray_palette_and_one_bit_become_rgb(photo):
    gray = photo.convert("L")
    seen = np.asarray(gray)[..., None].repeat(3, axis=-1)
    np.testing.assert_array_equal(image_files.decode(encode(gray), "gray"), seen)

    palette = photo.convert("P")
    seen = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(image_files.decode(encode(palette), "palette"), seen)

    bits = PIL.Image.fromarray(np.eye(8, dtype=bool))
    seen = 255 * np.eye(8, dtype=np.uint8)[..., None].repeat(3, axis=-1)
    np.testing.assert_array_equal(image_files.decode(encode(bits), "bits"), seen)


def test_gray_jpeg_has_three_equal_channels(photo):
    pixels = image_files.decode(encode(photo.convert("L"), "JPEG"), "gray.jpg")
    assert pixels.shape == (40, 60, 3)
    assert (pixels == pixels[..., :1]).all()


def test_cmyk_jpeg_keeps_its_colors():
    red = PIL.Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    pixels = image_files.decode(encode(red, "JPEG", quality=100), "cmyk.jpg")
    np.testing.assert_allclose(pixels[4, 4], [255, 0, 0], atol=3)


def test_transparency_lies_on_white():
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = [255, 0, 51]  # black: opaque, invisible, a fifth
    seen = image_files.decode(encode(PIL.Image.fromarray(pixels)), "rgba.png")
    np.testing.assert_array_equal(seen[0, :, 0], [0, 255, 204])

    gray = PIL.Image.fromarray(np.array([[[10, 255], [10, 0]]], np.uint8), "LA")
    seen = image_files.decode(encode(gray), "la.png")
    np.testing.assert_array_equal(seen[0, :, 1], [10, 255])

    palette = PIL.Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([9, 8, 7, 1, 2, 3])
    seen = image_files.decode(encode(palette, transparency=1), "p.png")
    np.testing.assert_array_equal(seen[0], [[9, 8, 7], [255, 255, 255]])


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(format):
    values = np.array([[0, 128, 129, 257, 25700, 65535]], np.uint16)
    seen = image_files.decode(encode(PIL.Image.fromarray(values), format), "16")
    expected = np.round(values / 65535 * 255)
    np.testing.assert_array_equal(seen[..., 0], expected)
    np.testing.assert_array_equal(expected, [[0, 0, 1, 1, 100, 255]])


# What is stored, given what is seen: EXIF 2.32, section 4.6.4.
UNTURN = {
    1: lambda seen: seen,
    2: lambda seen: seen[:, ::-1],
    3: lambda seen: seen[::-1, ::-1],
    4: lambda seen: seen[::-1],
    5: lambda seen: seen.swapaxes(0, 1),
    6: lambda seen: seen[:, ::-1].swapaxes(0, 1),
    7: lambda seen: seen[::-1, ::-1].swapaxes(0, 1),
    8: lambda seen: seen[::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("orientation", UNTURN)
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(photo, orientation, format):
    seen = np.asarray(photo)
    stored = PIL.Image.fromarray(np.ascontiguousarray(UNTURN[orientation](seen)))
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(stored, format, exif=exif)
    np.testing.assert_array_equal(image_files.decode(encoded, "turned"), seen)
    assert image_files.decode_size(encoded, "turned") == (40, 60)


def test_exif_turned_jpeg(photo, tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "phone.jpg"
    photo.transpose(PIL.Image.Transpose.ROTATE_90).save(path, quality=95, exif=exif)
    difference = image_files.read(path).astype(int) - np.asarray(photo)
    assert np.abs(difference).mean() < 3
    assert image_files.read_size(path) == (40, 60)


def test_size_needs_the_header_alone(photo):
    encoded = encode(photo, "JPEG")
    assert image_files.decode_size(encoded[:-200], "cut.jpg") == (40, 60)


def test_truncated_files_are_errors(photo):
    for format in ("JPEG", "PNG"):
        encoded = encode(photo, format)
        for length in (len(encoded) // 2, len(encoded) * 7 // 8):
            with pytest.raises(DataError, match=r"cut\.jpg"):
                image_files.decode(encoded[:length], "cut.jpg")


def test_truncated_files_are_errors_even_if_opencv_says_nothing(photo, monkeypatch):
    gray = np.full((40, 60, 3), 128, np.uint8)
    monkeypatch.setattr(image_files.cv2, "imdecode", lambda *_: gray)
    with pytest.raises(DataError, match=r"cut\.jpg: broken JPEG image"):
        image_files.decode(encode(photo, "JPEG")[:-100], "cut.jpg")


@pytest.mark.parametrize(
    "encoded", [b"", b"hello", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n"]
)
def test_what_is_no_image_is_an_error(encoded):
    with pytest.raises(DataError, match=r"notes\.jpg"):
        image_files.decode(encoded, "notes.jpg")
    with pytest.raises(DataError, match=r"notes\.jpg"):
        image_files.decode_size(encoded, "notes.jpg")


def test_missing_files_and_folders_are_errors(tmp_path):
    for path in (tmp_path / "gone.jpg", tmp_path):
        with pytest.raises(DataError, match=str(path)):
            image_files.read(path)
        with pytest.raises(DataError, match=str(path)):
            image_files.read_size(path)


def test_decompression_bombs_are_errors(photo, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"bomb\.png.*2400 pixels"):
        image_files.decode(encode(photo), "bomb.png")


def test_unknown_ranges_are_errors():
    for values in (np.full((2, 2), 0.5, np.float32), np.full((2, 2), -1, np.int32)):
        with pytest.raises(DataError, match=r"depth\.tif.*gray"):
            image_files.decode(encode(PIL.Image.fromarray(values), "TIFF"), "depth.tif")
