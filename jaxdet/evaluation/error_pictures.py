"""Draws the images that a detector fails on, truth and detections apart."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxdet.data.dataset import DataError, DataSet, file_names
from jaxdet.data.masks import decode_rle
from jaxdet.evaluation.coco import MAX_DETECTIONS, all_have_masks, with_run_lengths
from jaxdet.evaluation.matches import Matches, match_to_objects
from jaxdet.visualize import draw, enlarge

RIGHT, WRONG, IGNORED = (20, 120, 60), (196, 40, 28), (110, 110, 110)
"""Colors of what was found, of what was missed or is false, and of crowds."""
_MARK = "x "  # before the names of what is missed or false
_NEAREST = Image.Resampling.NEAREST


class ErrorPicture(NamedTuple):
    """An image, once with its objects and once with the detections."""

    file_name: str
    truth: bytes  # JPEG
    detections: bytes  # JPEG


def draw_errors(
    data_set: DataSet,
    ground_truth: dict,
    detections: list[dict],
    image_ids: Sequence[int | str],
    *,
    min_score: float,
    max_detections: int = MAX_DETECTIONS,
    size: int = 600,
    quality: int = 70,
) -> list[ErrorPicture | None]:
    """Draws what is right in green, and what is missed or false in red with an x.

    Args:
      data_set: reads the images.
      ground_truth: COCO json; masks are drawn in an image whose objects all have one.
      detections: COCO results, with masks if they have a `segmentation`.
      image_ids: of the images to draw.
      min_score: detections that score lower are not drawn, and find nothing.
      max_detections: see `match_to_objects`.
      size: pixels of the longer side, at most.
      quality: of the JPEGs.

    Returns:
      One for each of `image_ids`; None for an image that cannot be read.
    """
    positions = {image_id: place for place, image_id in enumerate(data_set.image_ids)}
    names = file_names(data_set)
    images = {one["id"]: one for one in ground_truth["images"]}
    pictures: list[ErrorPicture | None] = []
    for image_id in image_ids:
        try:
            image = data_set.read_image(positions[image_id])
        except DataError:
            pictures.append(None)
            continue
        own = {
            "images": [images[image_id]],
            "categories": ground_truth["categories"],
            "annotations": _of_image(ground_truth["annotations"], image_id),
        }
        results = [
            one for one in _of_image(detections, image_id) if one["score"] >= min_score
        ]
        matches = match_to_objects(own, results, max_detections=max_detections)
        image, factor = _fit(image, size)
        truth = _draw_truth(image, own, matches, factor)
        found = [results[index] for index in matches.index]
        drawn = _draw_detections(image, found, matches, factor)
        jpegs = (_jpeg(picture, quality) for picture in (truth, drawn))
        pictures.append(ErrorPicture(names[positions[image_id]], *jpegs))
    return pictures


def _of_image(entries: list[dict], image_id: int | str) -> list[dict]:
    return [one for one in entries if one["image_id"] == image_id]


def _fit(image: np.ndarray, size: int) -> tuple[np.ndarray, float]:
    """Returns an image made as large as tags need, or small, and by what factor."""
    longer = max(image.shape[:2])
    if longer <= size:
        return enlarge(image)
    picture = Image.fromarray(image)
    picture.thumbnail((size, size))
    return np.array(picture), max(picture.size) / longer


def _draw_truth(
    image: np.ndarray, own: dict, matches: Matches, factor: float
) -> np.ndarray:
    annotations = own["annotations"]
    try:
        masks = with_run_lengths(own) if all_have_masks(annotations) else []
    except DataError:  # nobody has checked them: objects of other images have none
        masks = []
    found = matches.found_at(-np.inf)
    crowd = matches.crowd
    names = [
        ("" if hit or in_crowd else _MARK) + matches.class_names[label]
        for label, hit, in_crowd in zip(matches.object_label, found, crowd, strict=True)
    ]
    wrong = ~found & ~crowd
    return draw(
        image,
        factor * _corners(annotations),
        np.arange(len(names)),
        class_names=names,
        colors=_colors(wrong, crowd),
        masks=_masks(masks, image),
        crowd=crowd,
    )


def _draw_detections(
    image: np.ndarray, results: list[dict], matches: Matches, factor: float
) -> np.ndarray:
    wrong = (matches.matched < 0) & ~matches.in_crowd
    names = [
        (_MARK if false else "") + matches.class_names[label]
        for label, false in zip(matches.label, wrong, strict=True)
    ]
    return draw(
        image,
        factor * _corners(results),
        np.arange(len(names)),
        matches.score,
        class_names=names,
        colors=_colors(wrong, matches.ignored),
        masks=_masks(results if all_have_masks(results) else [], image),
    )


def _masks(entries: list[dict], image: np.ndarray) -> np.ndarray | None:
    """Returns masks `[N, H, W]` of run lengths as large as an image, if there are."""
    if not entries:
        return None
    size = (image.shape[1], image.shape[0])
    masks = decode_rle([one["segmentation"] for one in entries])
    resized = (Image.fromarray(mask).resize(size, _NEAREST) for mask in masks)
    return np.stack([np.array(mask) for mask in resized])


def _colors(wrong: np.ndarray, ignored: np.ndarray) -> list:
    kinds = np.where(ignored, 2, wrong.astype(int))
    return [(RIGHT, WRONG, IGNORED)[kind] for kind in kinds]


def _corners(entries: list[dict]) -> np.ndarray:
    boxes = np.array([one["bbox"] for one in entries], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _jpeg(picture: np.ndarray, quality: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=quality)
    return stream.getvalue()
