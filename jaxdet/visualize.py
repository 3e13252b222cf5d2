"""Pictures for people: boxes with names on photographs, side by side and in sheets.

Images are `[H, W, 3]` uint8 RGB arrays, in and out; none is modified.
"""

import colorsys
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Corners = tuple[int, int, int, int]  # pixels: left, top, right, bottom, all inside

_INK, _PAPER = (24, 24, 24), (255, 255, 255)
_SMALLEST_FONT = 6
_VEIL = 0.45  # opacity of masks


def class_colour(label: int) -> Colour:
    """A vivid RGB colour; those of neighbouring labels differ strongly.

    Hues turn by the golden angle, so any first few are spread over the whole circle;
    lightness changes with them, as there are more classes than nameable hues.
    """
    hue = (0.97 + label * (math.sqrt(5) - 1) / 2) % 1
    lightness = (0.50, 0.62, 0.40)[label % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def enlarged(image: np.ndarray, *, least: int = 480) -> tuple[np.ndarray, int]:
    """A small image made larger, since tags would hide it.

    Args:
      image: `[H, W, 3]` uint8.
      least: pixels that the longer side of the answer has at least.

    Returns:
      `[factor * H, factor * W, 3]` uint8, and the factor, whole and at least 1.
    """
    factor = max(1, -(-least // max(image.shape[:2])))
    picture = Image.fromarray(image)
    size = (picture.width * factor, picture.height * factor)
    return np.array(picture.resize(size, Image.Resampling.BICUBIC)), factor


def enlarged_masks(masks: np.ndarray, factor: int) -> np.ndarray:
    """`[N, H, W]` bool made as much larger as `enlarged` made their image."""
    return masks.repeat(factor, axis=1).repeat(factor, axis=2)


def draw(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None = None,
    *,
    class_names: Sequence[str],
    crowd: np.ndarray | None = None,
    masks: np.ndarray | None = None,
) -> np.ndarray:
    """Draws boxes, each with its name and score on a tag in the colour of its class.

    Masks are veils of that colour with an outline, under all boxes. Lines and letters
    grow with the image. Tags stay inside it and out of each other's way as far as there
    is room; what scores best gets its place first and lies on top.

    Args:
      image: `[H, W, 3]` uint8.
      boxes: `[N, 4]` (x1, y1, x2, y2) pixels; what reaches out of the image is cut off.
      labels: `[N]` int in [0, K).
      scores: `[N]`; None for ground truth, where smaller boxes take precedence.
      class_names: K names.
      crowd: `[N]` bool; crowds are dashed. None: there are none.
      masks: `[N, H, W]` bool; None: there are none.

    Returns:
      `[H, W, 3]` uint8.
    """
    size = (image.shape[1], image.shape[0])
    line = max(1, round(sum(size) / 500))
    corners = [_pixels(box, size) for box in np.asarray(boxes, float)]
    priority = scores if scores is not None else [-_area(box) for box in corners]
    best_first = np.argsort(-np.asarray(priority, float), kind="stable")
    if masks is not None:
        image = image.copy()
        for i in best_first[::-1]:
            _draw_mask(image, masks[i], class_colour(int(labels[i])), line)
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    for i in best_first[::-1]:
        dashed = crowd is not None and bool(crowd[i])
        _draw_box(pen, corners[i], class_colour(int(labels[i])), line, dashed)
    tags = []
    for i in best_first:
        text = str(class_names[int(labels[i])])
        if scores is not None:
            text += f" {float(scores[i]):.2f}"
        colour = class_colour(int(labels[i]))
        tags.append(_place_tag(text, colour, corners[i], size, tags))
    for tag in reversed(tags):
        darker = tuple(channel * 7 // 10 for channel in tag.colour)
        pen.rectangle(tag.corners, fill=tag.colour, outline=darker)
        left, top, right, bottom = tag.corners
        middle = ((left + right + 1) / 2, (top + bottom + 1) / 2)
        ink = _INK if _luminance(tag.colour) > 0.3 else _PAPER
        pen.text(middle, tag.text, fill=ink, font=tag.font, anchor="mm")
    return np.array(picture)


def truth_beside_detections(
    image: np.ndarray,
    truth: tuple[np.ndarray, np.ndarray, np.ndarray],
    found: tuple[np.ndarray, np.ndarray, np.ndarray],
    *,
    class_names: Sequence[str],
    found_names: Sequence[str] | None = None,
    masks: np.ndarray | None = None,
) -> np.ndarray:
    """An image, `enlarged` if small, with what is there beside it with what was found.

    Args:
      image: `[H, W, 3]` uint8.
      truth: boxes `[N, 4]` (x1, y1, x2, y2) in pixels of the image, labels `[N]`, and
        crowd `[N]` bool; no padding.
      found: boxes `[D, 4]`, labels `[D]` and scores `[D]`; all of them are drawn.
      class_names: K names.
      found_names: of the labels of what was found, if it has others.
      masks: `[D, H, W]` bool, of what was found; None: there are none.

    Returns:
      `[H', W', 3]` uint8, the truth on the left.
    """
    picture, factor = enlarged(image)
    boxes, labels, crowd = truth
    there = draw(picture, factor * boxes, labels, class_names=class_names, crowd=crowd)
    boxes, labels, scores = found
    drawn = draw(
        picture,
        factor * boxes,
        labels,
        scores,
        class_names=found_names or class_names,
        masks=None if masks is None else enlarged_masks(masks, factor),
    )
    return side_by_side(there, drawn)


def side_by_side(
    left: np.ndarray,
    right: np.ndarray,
    *,
    captions: tuple[str, str] = ("ground truth", "detections"),
) -> np.ndarray:
    """Two images, which may differ in size, under their captions.

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
    """Images in rows of `columns`, each in the middle of a cell that would hold any.

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
    colour: Colour
    font: ImageFont.FreeTypeFont
    corners: Corners


def _pixels(box: np.ndarray, size: tuple[int, int]) -> Corners:
    """The pixels that a box covers, at least one, in an image of (width, height)."""
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
    pen: ImageDraw.ImageDraw, corners: Corners, colour: Colour, line: int, dashed: bool
) -> None:
    if not dashed:
        pen.rectangle(corners, outline=colour, width=line)
        return
    left, top, right, bottom = corners
    dash = 4 * line
    for x in range(left, right + 1, 2 * dash):
        end = min(x + dash - 1, right)
        pen.rectangle((x, top, end, min(top + line - 1, bottom)), fill=colour)
        pen.rectangle((x, max(bottom - line + 1, top), end, bottom), fill=colour)
    for y in range(top, bottom + 1, 2 * dash):
        end = min(y + dash - 1, bottom)
        pen.rectangle((left, y, min(left + line - 1, right), end), fill=colour)
        pen.rectangle((max(right - line + 1, left), y, right, end), fill=colour)


def _draw_mask(image: np.ndarray, mask: np.ndarray, colour: Colour, line: int) -> None:
    """Lays a veil over the pixels of a mask of `image`, and lines its edge inside."""
    rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
    if not len(rows):
        return
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    pixels, mask = image[part], mask[part]
    inner = np.pad(mask, line)
    for _ in range(line):  # peels off the outermost pixels
        above, below = inner[:-2, 1:-1], inner[2:, 1:-1]
        left, right = inner[1:-1, :-2], inner[1:-1, 2:]
        inner = inner[1:-1, 1:-1] & above & below & left & right
    veil = (1 - _VEIL) * pixels[mask] + _VEIL * np.array(colour)
    pixels[mask] = veil.round().astype(np.uint8)
    pixels[mask & ~inner] = colour


def _place_tag(
    text: str,
    colour: Colour,
    box: Corners,
    size: tuple[int, int],
    others: list[_Tag],
) -> _Tag:
    """Puts a tag where it covers the least of the others, best of all above its box."""
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
    candidates = []
    for x, y in places:
        x = min(max(x, 0), size[0] - width)
        y = min(max(y, 0), size[1] - height)
        candidates.append((x, y, x + width - 1, y + height - 1))

    def covered(corners: Corners) -> int:
        return sum(_overlap(corners, other.corners) for other in others)

    return _Tag(text, colour, font, min(candidates, key=covered))


def _font(size: tuple[int, int], text: str) -> ImageFont.FreeTypeFont:
    """Letters that suit an image of (width, height) and let `text` fit into it."""
    points = max(10, round(sum(size) / 80))
    font = ImageFont.load_default(points)
    while points > _SMALLEST_FONT and font.getlength(text) + points > size[0]:
        points -= 1
        font = ImageFont.load_default(points)
    return font


def _luminance(colour: Colour) -> float:
    """Of sRGB, relative to white (WCAG 2)."""
    linear = [(c / 255) ** 2.2 for c in colour]
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
