import io
import json
import os

import cv2
import numpy as np
import PIL.Image
import pytest

from jaxdet.data import image_files
from jaxdet.data.dataset import DataError
from jaxdet.data.formats import LoadOptions
from jaxdet.data.formats.open import open_dataset
from tests.data.in_memory import in_memory_data_set


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decode(image, format="PNG", **options):
    return image_files.decode(encode(image, format, **options), "a file")


@pytest.fixture
def photo(rng):
    """A smooth `[40, 60, 3]` picture, of which JPEG loses little."""
    small = rng.integers(0, 255, (4, 6, 3), np.uint8)
    return PIL.Image.fromarray(small).resize((60, 40), PIL.Image.Resampling.BICUBIC)


def test_png_is_read_exactly(photo):
    pixels = decode(photo)
    assert pixels.dtype == np.uint8 and pixels.flags.writeable
    np.testing.assert_array_equal(pixels, np.asarray(photo))


@pytest.mark.parametrize("trailing", [b"", b"\0junk"])  # OpenCV, then Pillow
def test_jpeg_is_rgb_in_order_by_either_library(photo, trailing):
    encoded = encode(photo, "JPEG", quality=95)
    pixels = image_files.decode(encoded + trailing, "a.jpg")
    expected = np.asarray(PIL.Image.open(io.BytesIO(encoded)))
    assert np.abs(pixels.astype(int) - expected).max() <= 2
    assert pixels.flags.writeable


def test_gray_palette_one_bit_and_cmyk_become_rgb(photo):
    gray = photo.convert("L")
    expected = np.asarray(gray)[..., None].repeat(3, axis=-1)
    np.testing.assert_array_equal(decode(gray), expected)
    pixels = decode(gray, "JPEG")
    assert pixels.shape == (40, 60, 3) and (pixels == pixels[..., :1]).all()

    palette = photo.convert("P")
    np.testing.assert_array_equal(decode(palette), np.asarray(palette.convert("RGB")))

    bits = PIL.Image.fromarray(np.eye(8, dtype=bool))
    expected = 255 * np.eye(8, dtype=np.uint8)[..., None].repeat(3, axis=-1)
    np.testing.assert_array_equal(decode(bits), expected)

    red = PIL.Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    pixels = decode(red, "JPEG", quality=100)
    np.testing.assert_allclose(pixels[4, 4], [255, 0, 0], atol=3)


def test_transparency_lies_on_white():
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = [255, 0, 51]  # black: opaque, invisible, a fifth
    pixels = decode(PIL.Image.fromarray(pixels))
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 255, 204])

    gray = PIL.Image.fromarray(np.array([[[10, 255], [10, 0]]], np.uint8), "LA")
    np.testing.assert_array_equal(decode(gray)[0, :, 1], [10, 255])

    palette = PIL.Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([9, 8, 7, 1, 2, 3])
    pixels = decode(palette, transparency=1)
    np.testing.assert_array_equal(pixels[0], [[9, 8, 7], [255, 255, 255]])


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(format):
    values = np.array([[0, 128, 129, 257, 25700, 65535]], np.uint16)
    pixels = decode(PIL.Image.fromarray(values), format)
    np.testing.assert_array_equal(pixels[..., 0], [[0, 0, 1, 1, 100, 255]])


VALUES = np.array([[0, 1000, 2048, 4095]], np.uint16)  # of 12 bits


def colors_of_sixteen_bits(values):
    """A PNG; Pillow writes gray ones only."""
    blue_green_red = np.stack([values // 2, values, values], -1)
    return cv2.imencode(".png", blue_green_red)[1].tobytes()


@pytest.mark.parametrize("colors", [False, True])
def test_fewer_bits_than_sixteen_are_named_once_and_stretched(
    colors, caplog, monkeypatch
):
    monkeypatch.setattr(image_files, "_warned", set())
    encoded = encode(PIL.Image.fromarray(VALUES))
    encoded = colors_of_sixteen_bits(VALUES) if colors else encoded
    dark = image_files.decode(encoded, "dark.png")
    assert dark.max() == (15 if colors else 16)
    image_files.decode(encoded, "next.png")
    (message,) = caplog.messages
    assert message.startswith("dark.png: 16-bit values from 0 to ")
    assert "--bit-depth 12) makes 4095 white" in message
    twelve = image_files.DecodeOptions(bit_depth=12)
    pixels = image_files.decode(encoded, "a.png", twelve)
    np.testing.assert_array_equal(pixels[..., 0], [[0, 62, 128, 255]])
    if colors:
        np.testing.assert_array_equal(pixels[..., 2], [[0, 31, 64, 127]])
    ten = image_files.DecodeOptions(bit_depth=10)
    with pytest.raises(DataError, match="values from 0 to 4095; allowed: 0 to 1023"):
        image_files.decode(encoded, "a.png", ten)


def test_black_and_bright_images_are_not_named(caplog):
    for values in (np.zeros((2, 2), np.uint16), np.full((2, 2), 2**14, np.uint16)):
        decode(PIL.Image.fromarray(values))
    assert not caplog.messages


def test_a_data_set_is_decoded_with_other_options(tmp_path):
    PIL.Image.fromarray(VALUES).save(tmp_path / "a.png")
    image = {"id": 7, "file_name": "a.png"}
    content = {"images": [image], "annotations": []}
    content["categories"] = [{"id": 1, "name": "cell"}]
    (tmp_path / "a.json").write_text(json.dumps(content))
    options = LoadOptions(decoding=image_files.DecodeOptions(bit_depth=12))
    data_set = open_dataset(tmp_path / "a.json", options=options)
    np.testing.assert_array_equal(data_set.read_image(0)[..., 0], [[0, 62, 128, 255]])
    with pytest.raises(DataError, match="has no image files"):
        image_files.with_decode_options(in_memory_data_set([VALUES]), options.decoding)


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
def test_exif_orientation_is_applied(photo, orientation, tmp_path):
    seen = np.asarray(photo)
    stored = PIL.Image.fromarray(np.ascontiguousarray(UNTURN[orientation](seen)))
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    for format in ("PNG", "TIFF"):
        encoded = encode(stored, format, exif=exif)
        np.testing.assert_array_equal(image_files.decode(encoded, "turned"), seen)
        assert image_files.decode_size(encoded, "turned") == (40, 60)
    path = tmp_path / "phone.jpg"
    stored.save(path, quality=95, exif=exif)
    assert np.abs(image_files.read(path).astype(int) - seen).mean() < 3
    assert image_files.read_size(path) == (40, 60)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_truncated_files_are_errors(photo, format):
    encoded = encode(photo, format)
    for length in (len(encoded) // 2, len(encoded) * 7 // 8):
        with pytest.raises(DataError, match=r"cut\.jpg"):
            image_files.decode(encoded[:length], "cut.jpg")


@pytest.fixture
def noise(rng):
    return PIL.Image.fromarray(rng.integers(0, 255, (64, 96, 3), np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpegs_cut_short_are_errors_even_if_they_end_like_others(noise, mode, options):
    encoded = encode(noise.convert(mode), "JPEG", **options)
    whole = image_files.decode(encoded, "whole.jpg")
    cut = encoded[: len(encoded) * 3 // 4] + b"\xff\xd9"
    with pytest.raises(
        DataError, match=r"cut\.jpg: broken JPEG .*--damaged-jpeg accept"
    ):
        image_files.decode(cut, "cut.jpg")
    accept = image_files.DecodeOptions(damaged_jpeg="accept")
    pixels = image_files.decode(cut, "cut.jpg", accept)
    assert pixels.shape == whole.shape
    if not options:  # line by line
        np.testing.assert_array_equal(pixels[:24], whole[:24])
    # The size needs the header alone.
    assert image_files.decode_size(encoded[:-200], "cut.jpg") == (64, 96)


def test_jpegs_of_rare_samplings_are_left_to_pillow(photo):
    encoded = bytearray(encode(photo, "JPEG", subsampling=2))
    start = encoded.index(b"\xff\xc0")
    encoded[start + 14] = 0x22  # of blue, as of brightness: libjpeg-turbo refuses it
    pixels = image_files.decode(bytes(encoded), "rare.jpg")
    expected = PIL.Image.open(io.BytesIO(bytes(encoded)))
    np.testing.assert_array_equal(pixels, np.asarray(expected))


@pytest.mark.parametrize("call", [image_files.decode, image_files.decode_size])
@pytest.mark.parametrize(
    "encoded", [b"", b"hello", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n"]
)
def test_what_is_no_image_is_an_error(call, encoded):
    with pytest.raises(DataError, match=r"notes\.jpg"):
        call(encoded, "notes.jpg")


@pytest.mark.parametrize("call", [image_files.read, image_files.read_size])
def test_missing_files_and_folders_are_errors(call, tmp_path):
    for path in (tmp_path / "gone.jpg", tmp_path):
        with pytest.raises(DataError, match=str(path)):
            call(path)


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "endless.jpg").symlink_to("/dev/zero")
    for call in (image_files.read, image_files.read_size):
        for path in sorted(tmp_path.iterdir()):
            with pytest.raises(DataError, match=f"{path}: cannot be read"):
                call(path)


def test_programs_named_like_images_are_not_run(monkeypatch):
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    monkeypatch.setattr("subprocess.check_call", None)
    with pytest.raises(DataError, match=r"a\.jpg: not an image; allowed: .*JPEG"):
        image_files.decode(script, "a.jpg")


def test_decompression_bombs_are_errors(photo, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"a file.*2400 pixels"):
        decode(photo)


@pytest.mark.parametrize("value", [np.float32(0.5), np.int32(-1)])
def test_unknown_ranges_are_errors(value):
    with pytest.raises(DataError, match=r"a file.*gray"):
        decode(PIL.Image.fromarray(np.full((2, 2), value)), "TIFF")
