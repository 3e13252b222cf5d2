"""Draws boxes, names and masks on images, and puts images side by side and in sheets.

Images are `[H, W, 3]` uint8 RGB arrays, in and out; none is modified.
"""

import colorsys
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
Corners = tuple[int, int, int, int]  # pixels: left, top, right, bottom, all inside

_INK, _PAPER = (24, 24, 24), (255, 255, 255)
_SMALLEST_FONT = 6
_MASK_OPACITY = 0.45


def class_color(label: int) -> Color:
    """Returns a vivid RGB color, which differs strongly from those of the next labels.

    Hues turn by the golden angle, so any first few are spread over the whole circle;
    lightness changes with them, as there are more classes than nameable hues.
    """
    hue = (0.97 + label * (math.sqrt(5) - 1) / 2) % 1
    lightness = (0.50, 0.62, 0.40)[label % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def enlarge(image: np.ndarray, *, min_size: int = 480) -> tuple[np.ndarray, int]:
    """Enlarges a small image, which tags would hide.

    Args:
      image: `[H, W, 3]` uint8.
      min_size: pixels that the longer side has at least afterwards.

    Returns:
      `[factor * H, factor * W, 3]` uint8, and the factor, whole and at least 1.
    """
    factor = max(1, -(-min_size // max(image.shape[:2])))
    picture = Image.fromarray(image)
    size = (picture.width * factor, picture.height * factor)
    return np.array(picture.resize(size, Image.Resampling.BICUBIC)), factor


def enlarge_masks(masks: np.ndarray, factor: int) -> np.ndarray:
    """Enlarges `[N, H, W]` bool masks by a factor from `enlarge`."""
    return masks.repeat(factor, axis=1).repeat(factor, axis=2)


def draw(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None = None,
    *,
    class_names: Sequence[str],
    colors: Sequence[Color] | None = None,
    crowd: np.ndarray | None = None,
    masks: np.ndarray | None = None,
) -> np.ndarray:
    """Draws boxes, each with its name and score on a tag in the color of its class.

    Masks are translucent, with an outline, under all boxes. Lines and letters grow with
    the image. Tags lie inside the image and overlap as little as possible; the box of
    the highest score is placed first and drawn on top.

    Args:
      image: `[H, W, 3]` uint8.
      boxes: `[N, 4]` (x1, y1, x2, y2) pixels; they are clipped to the image.
      labels: `[N]` int in [0, K).
      scores: `[N]`; None for ground truth, where smaller boxes are placed first.
      class_names: K names.
      colors: of each box; None: that of its class.
      crowd: `[N]` bool; boxes of crowds are dashed; None: no crowds.
      masks: `[N, H, W]` bool; None: there are none.

    Returns:
      `[H, W, 3]` uint8.
    """
    size = (image.shape[1], image.shape[0])
    line = max(1, round(sum(size) / 500))
    corners = [_pixels(box, size) for box in np.asarray(boxes, float)]
    if colors is None:
        colors = [class_color(int(label)) for label in labels]
    priority = scores if scores is not None else [-_area(box) for box in corners]
    best_first = np.argsort(-np.asarray(priority, float), kind="stable")
    if masks is not None:
        image = image.copy()
        for i in best_first[::-1]:
            _draw_mask(image, masks[i], colors[i], line)
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    for i in best_first[::-1]:
        dashed = crowd is not None and bool(crowd[i])
        _draw_box(pen, corners[i], colors[i], line, dashed)
    tags = []
    for i in best_first:
        text = str(class_names[int(labels[i])])
        if scores is not None:
            text += f" {float(scores[i]):.2f}"
        tags.append(_place_tag(text, colors[i], corners[i], size, tags))
    for tag in reversed(tags):
        darker = tuple(channel * 7 // 10 for channel in tag.color)
        pen.rectangle(tag.corners, fill=tag.color, outline=darker)
        left, top, right, bottom = tag.corners
        middle = ((left + right + 1) / 2, (top + bottom + 1) / 2)
        ink = _INK if _luminance(tag.color) > 0.3 else _PAPER
        pen.text(middle, tag.text, fill=ink, font=tag.font, anchor="mm")
    return np.array(picture)


def truth_beside_detections(
    image: np.ndarray,
    truth: tuple[np.ndarray, np.ndarray, np.ndarray],
    detections: tuple[np.ndarray, np.ndarray, np.ndarray],
    *,
    class_names: Sequence[str],
    detection_names: Sequence[str] | None = None,
    masks: np.ndarray | None = None,
) -> np.ndarray:
    """Draws the ground truth and the detections on two copies of an image.

    A small image is enlarged first.

    Args:
      image: `[H, W, 3]` uint8.
      truth: boxes `[N, 4]` (x1, y1, x2, y2) in pixels of the image, labels `[N]`, and
        crowd `[N]` bool; no padding.
      detections: boxes `[D, 4]`, labels `[D]` and scores `[D]`; all are drawn.
      class_names: K names.
      detection_names: names of the detections' labels, if they are others.
      masks: `[D, H, W]` bool, of the detections; None: there are none.

    Returns:
      `[H', W', 3]` uint8, the truth on the left.
    """
    picture, factor = enlarge(image)
    boxes, labels, crowd = truth
    left = draw(picture, factor * boxes, labels, class_names=class_names, crowd=crowd)
    boxes, labels, scores = detections
    right = draw(
        picture,
        factor * boxes,
        labels,
        scores,
        class_names=detection_names or class_names,
        masks=None if masks is None else enlarge_masks(masks, factor),
    )
    return side_by_side(left, right)


def side_by_side(
    left: np.ndarray,
    right: np.ndarray,
    *,
    captions: tuple[str, str] = ("ground truth", "detections"),
) -> np.ndarray:
    """Puts two images, which may differ in size, side by side under captions.

    Args:
      left: `[H, W, 3]` uint8.
      right: of any other height and width.
      captions: of the left and of the right image.

    Returns:
      `[H', W', 3]` uint8.
    """
    halves = [
        _captioned(image, text)
        for image, text in zip((left, right), captions, strict=True)
    ]
    return contact_sheet(halves, columns=2)


def contact_sheet(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Puts images in rows, each in the middle of a cell as large as the largest image.

    Args:
      images: `[H, W, 3]` uint8 each; they may differ in size.
      columns: images a row, at most.

    Returns:
      `[H', W', 3]` uint8.

    Raises:
      ValueError: if there are no images.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height, width = np.max([image.shape[:2] for image in images], axis=0)
    gap = max(2, round((height + width) / 150))
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    sheet = np.full(shape, _PAPER, np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top = row * (height + gap) + (height - image.shape[0]) // 2
        left = column * (width + gap) + (width - image.shape[1]) // 2
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


class _Tag(NamedTuple):
    text: str
    color: Color
    font: ImageFont.FreeTypeFont
    corners: Corners


def _pixels(box: np.ndarray, size: tuple[int, int]) -> Corners:
    """Returns the pixels of a box in an image of (width, height), at least one."""
    x1, y1, x2, y2 = (round(value) for value in box.tolist())
    left, top = (min(max(v, 0), s - 1) for v, s in zip((x1, y1), size, strict=True))
    right, bottom = (min(v, s) - 1 for v, s in zip((x2, y2), size, strict=True))
    return left, top, max(right, left), max(bottom, top)


def _area(corners: Corners) -> int:
    left, top, right, bottom = corners
    return max(right - left + 1, 0) * max(bottom - top + 1, 0)


def _overlap(a: Corners, b: Corners) -> int:
    first, last = map(max, a[:2], b[:2]), map(min, a[2:], b[2:])
    return _area((*first, *last))


def _draw_box(
    pen: ImageDraw.ImageDraw, corners: Corners, color: Color, line: int, dashed: bool
) -> None:
    if not dashed:
        pen.rectangle(corners, outline=color, width=line)
        return
    left, top, right, bottom = corners
    dash = 4 * line
    for x in range(left, right + 1, 2 * dash):
        end = min(x + dash - 1, right)
        pen.rectangle((x, top, end, min(top + line - 1, bottom)), fill=color)
        pen.rectangle((x, max(bottom - line + 1, top), end, bottom), fill=color)
    for y in range(top, bottom + 1, 2 * dash):
        end = min(y + dash - 1, bottom)
        pen.rectangle((left, y, min(left + line - 1, right), end), fill=color)
        pen.rectangle((max(right - line + 1, left), y, right, end), fill=color)


def _draw_mask(image: np.ndarray, mask: np.ndarray, color: Color, line: int) -> None:
    """Blends a color into the pixels of a mask, in place, and outlines it inside."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    pixels, mask = image[part], mask[part]
    inner = np.pad(mask, line)
    for _ in range(line):  # peels off the outermost pixels
        above, below = inner[:-2, 1:-1], inner[2:, 1:-1]
        left, right = inner[1:-1, :-2], inner[1:-1, 2:]
        inner = inner[1:-1, 1:-1] & above & below & left & right
    blend = (1 - _MASK_OPACITY) * pixels[mask] + _MASK_OPACITY * np.array(color)
    pixels[mask] = blend.round().astype(np.uint8)
    pixels[mask & ~inner] = color


def _place_tag(
    text: str,
    color: Color,
    box: Corners,
    size: tuple[int, int],
    others: list[_Tag],
) -> _Tag:
    """Puts a tag where it overlaps others least, if possible above its box."""
    font = _font(size, text)
    ascent, descent = font.getmetrics()
    width = min(size[0], math.ceil(font.getlength(text) + 0.5 * ascent))
    height = min(size[1], ascent + descent)
    left, top, right, bottom = box
    at_left, at_right = left, right - width + 1
    above, below = top - height, bottom + 1
    places = [
        (at_left, above),
        (at_left, top),
        (at_right, above),
        (at_left, below),
        (at_right, top),
        (at_left, bottom - height + 1),
        (at_right, below),
        (at_right, bottom - height + 1),
    ]
    best = None
    for x, y in places:
        x = min(max(x, 0), size[0] - width)
        y = min(max(y, 0), size[1] - height)
        corners = (x, y, x + width - 1, y + height - 1)
        overlap = sum(_overlap(corners, other.corners) for other in others)
        if best is None or overlap < best[0]:
            best = overlap, corners
    return _Tag(text, color, font, best[1])


def _font(size: tuple[int, int], text: str) -> ImageFont.FreeTypeFont:
    """Returns a font in which `text` fits into an image of (width, height)."""
    points = max(10, round(sum(size) / 80))
    font = ImageFont.load_default(points)
    while points > _SMALLEST_FONT and font.getlength(text) + points > size[0]:
        points -= 1
        font = ImageFont.load_default(points)
    return font  # type: ignore[return-value]  # one of a size is a FreeTypeFont


def _luminance(color: Color) -> float:
    """Returns the luminance of an sRGB color relative to white (WCAG 2)."""
    linear = [(c / 255) ** 2.2 for c in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _captioned(image: np.ndarray, text: str) -> np.ndarray:
    height, width = image.shape[:2]
    font = _font((width, height), text)
    bar = round(1.8 * font.size)
    picture = Image.new("RGB", (width, height + bar), _PAPER)
    picture.paste(Image.fromarray(image), (0, bar))
    pen = ImageDraw.Draw(picture)
    pen.text((width / 2, bar / 2), text, fill=_INK, font=font, anchor="mm")
    return np.array(picture)
