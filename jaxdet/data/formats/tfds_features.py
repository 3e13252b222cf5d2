"""Finds boxes and labels in a TFDS data set's features, and reads its objects."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from jaxdet.data.annotations import OVERHANG, clip_to_image, inside_image
from jaxdet.data.dataset import DataError, Objects
from jaxdet.data.formats import BadBoxPolicy

IMAGE_ID = "image/id"
MASK = "mask"
OUTLINE = "segmentation"
_LABELS = ("label", "type")  # where objects have several classes, such as a pose
_CROWD = ("is_crowd", "is_difficult", "is_group_of", "invalid")
# Sets of TFDS whose boxes are the source's first and last pixels, counted from 1.
_FROM_ONE = ("voc",)
# Sets of TFDS that count rows from below.
_UPSIDE_DOWN = ("kitti/3.1.0", "kitti/3.2.0", "kitti/3.3.0")


class Layout(NamedTuple):
    """Which features of an example hold what."""

    image: str
    images: tuple[str, ...]  # all of its image features
    objects: str
    box: str
    box_format: str  # of TFDS's: YXYX, XYXY, XYWH in pixels, REL_YXYX, REL_XYXY
    label: str | None  # None where all objects are of one class
    class_names: tuple[str, ...]
    crowd: tuple[str, ...]
    has_area: bool
    has_outlines: bool
    mask_side: int | None  # S of the objects' [S, S] masks
    has_ids: bool
    first_pixel: int  # where the source begins to count
    upside_down: bool  # whether the source counts rows from below


def find_layout(features: tfds.features.FeaturesDict, name: str) -> Layout:
    """Finds the image, the objects and what is known of them.

    Args:
      features: of a data set.
      name: its full name; of some it is known how they differ.

    Returns:
      Which features hold what.

    Raises:
      DataError: the data set has no images, boxes or classes, or too many.
    """
    images = _names_of(features, tfds.features.Image)
    if not images:
        raise DataError(f"{name}: no image feature among {', '.join(features)}")
    for objects, sequence in features.items():
        inner = getattr(sequence, "feature", None)
        if not isinstance(inner, tfds.features.FeaturesDict):
            continue
        boxes = _names_of(inner, tfds.features.BBoxFeature)
        if not boxes:
            continue
        labels = _names_of(inner, tfds.features.ClassLabel)
        label = _choose(labels, _LABELS)
        if labels and label is None:
            raise DataError(
                f"{name}: {objects} has the classes of {', '.join(labels)}; allowed: "
                f"one ClassLabel, or several of which one is {' or '.join(_LABELS)}"
            )
        box_format = inner[boxes[0]].bbox_format
        return Layout(
            image=_choose(images, ("image",)) or images[0],
            images=images,
            objects=objects,
            box=boxes[0],
            # Sets that an old TFDS prepared do not say; it knew no other.
            box_format=box_format.value if box_format else "REL_YXYX",
            label=label,
            class_names=tuple(inner[label].names)
            if label
            else (objects.removesuffix("s"),),
            crowd=tuple(key for key in _CROWD if key in inner),
            has_area="area" in inner,
            has_outlines=OUTLINE in _names_of(inner, tfds.features.Text),
            mask_side=_mask_side(inner),
            has_ids=IMAGE_ID in features,
            first_pixel=1 if name.partition("/")[0] in _FROM_ONE else 0,
            upside_down=name in _UPSIDE_DOWN,
        )
    raise DataError(
        f"{name}: no detection data set: no sequence with a BBoxFeature among "
        f"{', '.join(features)}"
    )


def _mask_side(inner: tfds.features.FeaturesDict) -> int | None:
    """Returns S if the objects have a feature "mask" that is `[S, S]` uint8."""
    if MASK not in _names_of(inner, tfds.features.Tensor):
        return None
    mask = inner[MASK]
    square = len(mask.shape) == 2 and mask.shape[0] == mask.shape[1]
    return mask.shape[0] if square and mask.np_dtype == np.uint8 else None


def _names_of(features: tfds.features.FeaturesDict, kind: type) -> tuple[str, ...]:
    return tuple(key for key, value in features.items() if isinstance(value, kind))


def _choose(names: Sequence[str], preferred: Sequence[str]) -> str | None:
    if len(names) == 1:
        return names[0]
    return next((name for name in preferred if name in names), None)


def read_id(value: bytes | np.integer, where: str) -> int | str:
    """Reads an image id.

    Raises:
      DataError: it is neither a number nor text.
    """
    try:
        return value.decode() if isinstance(value, bytes) else int(value)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where}: {IMAGE_ID} is {value!r}; allowed: a whole number, or UTF-8"
        ) from error


def read_objects(
    raw: dict,
    layout: Layout,
    size: tuple[int, int],
    where: str,
    bad_boxes: BadBoxPolicy,
) -> tuple[Objects, np.ndarray, np.ndarray]:
    """Reads the objects of one image that have area.

    Args:
      raw: by feature, one value an object.
      layout: names the features.
      size: (height, width) of the image.
      where: names the image in errors.
      bad_boxes: see `tfds.from_builder`.

    Returns:
      The objects, their areas `[N]`, and which of the raw ones they are.

    Raises:
      DataError: a box, label or area is not as it should be.
    """
    boxes = _corners(raw[layout.box], layout, size)
    inside = inside_image(boxes, size)
    if bad_boxes == "error" and not inside.all():
        first = raw[layout.box][int(np.argmin(inside))]
        raise DataError(
            f"{where}: a box ({layout.box_format}) is {np.array(first).tolist()}; "
            f"allowed: finite numbers, within the image of height {size[0]} and width "
            f'{size[1]}, give or take {OVERHANG:g} pixels (bad_boxes="skip" drops it)'
        )
    labels = np.zeros(len(boxes), np.int32)
    if layout.label is not None:
        labels = np.array(raw[layout.label], np.int32)
    if not np.isin(labels, np.arange(len(layout.class_names))).all():
        raise DataError(
            f"{where}: labels are {labels.tolist()}; "
            f"allowed: 0 to {len(layout.class_names) - 1}"
        )
    boxes, has_area = clip_to_image(boxes, size)
    crowd = np.zeros(len(boxes), bool)
    for key in layout.crowd:
        crowd |= np.array(raw[key]) == 1  # Open Images: -1 is unknown
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1)
    if layout.has_area:
        area = np.array(raw["area"])
        if not ((area >= 0) & np.isfinite(area)).all():
            raise DataError(
                f"{where}: areas are {area.tolist()}; allowed: finite numbers from 0 on"
            )
    kept = inside & has_area
    objects = Objects(boxes[kept], labels[kept], crowd[kept])
    return objects, area[kept].astype(np.float64), kept


def _corners(values: list, layout: Layout, size: tuple[int, int]) -> np.ndarray:
    """Turns boxes in any format to `[N, 4]` (x1, y1, x2, y2) in pixels, unchecked.

    Args:
      values: one box an object.
      layout: says how they are written.
      size: (height, width) of the image.
    """
    boxes = np.array(values, np.float64).reshape(-1, 4)
    if layout.box_format.endswith("YXYX"):
        boxes = boxes[:, [1, 0, 3, 2]]
    if layout.box_format == "XYWH":
        boxes[:, 2:] += boxes[:, :2]
    if layout.box_format.startswith("REL"):
        boxes *= np.tile(size[::-1], 2)
    if layout.upside_down:
        boxes[:, [1, 3]] = size[0] - boxes[:, [3, 1]]
    boxes[:, :2] -= layout.first_pixel  # the last pixel's far side is its number
    return boxes
