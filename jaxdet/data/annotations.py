"""Makes boxes fit their images, and data sets of what formats have read."""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxdet.data import image_files, masks
from jaxdet.data.dataset import DataError, DataSet, Objects

logger = logging.getLogger(__name__)

OVERHANG = 2.0
"""Pixels by which a box may reach out of its image; more is a mistake, no rounding."""


@dataclasses.dataclass
class BadBoxCounter:
    """Refuses bad boxes, or counts those that are dropped."""

    policy: Literal["error", "skip"]  # what happens to one
    count: int = 0  # of those dropped so far

    def __post_init__(self):
        if self.policy not in ("error", "skip"):
            raise ValueError(f'bad_boxes is {self.policy!r}; allowed: "error", "skip"')

    def add(self, problem: str) -> None:
        """Counts one.

        Args:
          problem: what is wrong with it, and what is allowed.

        Raises:
          DataError: the policy is "error".
        """
        if self.policy == "error":
            raise DataError(f'{problem} (bad_boxes="skip" drops it)')
        self.count += 1


class AnnotatedImage(NamedTuple):
    """An image and its objects, as a format has read them."""

    image_id: str
    path: str  # of the image file
    annotation: str  # path of the file in which its objects stand
    size: tuple[int, int]  # (height, width)
    boxes: np.ndarray  # [N, 4] (x1, y1, x2, y2) in pixels, checked by `fits_image`
    categories: Sequence[int | str]  # N of the source's own
    crowd: Sequence[bool] = ()  # N; empty: none is crowd
    polygons: Sequence[tuple] = ()  # N of `masks.parse_segmentation`, if masks are kept


def inside_image(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Tells which boxes lie in their image, give or take `OVERHANG`.

    `[N, 4]` (x1, y1, x2, y2) and (height, width) -> `[N]` bool, False for NaN.
    """
    height, width = size
    limits = np.array([width, height, width, height])
    return np.all((boxes >= -OVERHANG) & (boxes <= limits + OVERHANG), axis=-1)


def fits_image(box: Sequence[float], size: tuple[int, int]) -> bool:
    """Does what `inside_image` does for one box, in plain Python, which is faster."""
    low, right, bottom = -OVERHANG, size[1] + OVERHANG, size[0] + OVERHANG
    x1, y1, x2, y2 = box
    return (
        low <= x1 <= right
        and low <= x2 <= right
        and low <= y1 <= bottom
        and low <= y2 <= bottom
    )


def clip_to_image(
    boxes: np.ndarray, size: tuple[int, int] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Clips boxes to their images.

    Args:
      boxes: `[N, 4]` (x1, y1, x2, y2).
      size: (height, width) of the image of all, or `[N, 2]` of the image of each.

    Returns:
      `[N, 4]` float32, and `[N]` bool: which of them have area.
    """
    limits = np.tile(np.asarray(size)[..., ::-1], 2)
    clipped = np.clip(boxes, 0, limits).astype(np.float32)
    return clipped, np.all(clipped[:, 2:] > clipped[:, :2], axis=-1)


def make_data_set(
    name: str,
    images: Sequence[AnnotatedImage],
    class_names: Sequence[str],
    *,
    bad_boxes: int = 0,
    with_masks: bool = False,
) -> DataSet:
    """Makes a data set of annotated images.

    Category ids are the labels. Boxes are clipped to their images. Objects without area
    are dropped, from `ground_truth()` too; their number and that of the bad ones are
    logged.

    Args:
      name: of the data set.
      images: at least one; their categories are class names or, for K classes, whole
        numbers below K.
      class_names: label k is `class_names[k]`.
      bad_boxes: how many objects the format has dropped.
      with_masks: whether `images` have polygons.

    Returns:
      The data set.

    Raises:
      DataError: a category is unknown.
    """
    class_names = tuple(class_names)
    category_ids = tuple(range(len(class_names)))
    image_ids = tuple(image.image_id for image in images)
    sizes = np.array([image.size for image in images], np.int32)
    objects, kept = _group(images, sizes, class_names)
    empty = sum(int((~keep).sum()) for keep in kept)
    warn_of_dropped(name, bad_boxes, empty, with_masks)
    polygons = None
    if with_masks:
        polygons = [
            list(itertools.compress(image.polygons, keep))
            for image, keep in zip(images, kept, strict=True)
        ]
    truth = (image_ids, sizes, objects, category_ids, class_names)
    files = [(image.path, image.annotation) for image in images]  # without the boxes
    return DataSet(
        name=name,
        class_names=class_names,
        category_ids=category_ids,
        image_ids=image_ids,
        sizes=sizes,
        objects=objects,
        read_image=lambda i: image_files.read_sized(files[i][0], sizes[i], files[i][1]),
        ground_truth=functools.partial(coco_ground_truth, *truth, polygons=polygons),
        read_masks=functools.partial(_read_masks, polygons, objects)
        if with_masks
        else None,
        read_encoded=lambda i: image_files.read_encoded(files[i][0]),
    )


def _read_masks(
    polygons: Sequence, objects: Sequence[Objects], position: int, mask_size: int
) -> np.ndarray:
    boxes = objects[position].boxes
    return masks.rasterize_all(polygons[position], boxes, mask_size)


def _group(
    images: Sequence[AnnotatedImage], sizes: np.ndarray, class_names: Sequence[str]
) -> tuple[tuple[Objects, ...], list[np.ndarray]]:
    """Clips the objects of all images; returns those with area, and which they are."""
    known: dict[int | str, int] = {name: k for k, name in enumerate(class_names)}
    known |= {k: k for k in range(len(class_names))}
    for image in images:
        for category in image.categories:
            if category not in known:
                raise DataError(
                    f"{image.annotation}: the class {category!r} is unknown; allowed: "
                    f"{', '.join(class_names)}"
                )
    counts = [len(image.boxes) for image in images]
    boxes = np.concatenate([image.boxes for image in images])
    boxes, has_area = clip_to_image(boxes, np.repeat(sizes, counts, axis=0))
    labels = [known[category] for image in images for category in image.categories]
    crowd = [
        crowd
        for image in images
        for crowd in image.crowd or itertools.repeat(False, len(image.boxes))
    ]
    columns = (boxes, np.array(labels, np.int32), np.array(crowd, bool), has_area)
    split = [np.split(column, np.cumsum(counts)[:-1]) for column in columns]
    objects = tuple(
        Objects(*(column[keep] for column in of_image))
        for *of_image, keep in zip(*split, strict=True)
    )
    return objects, split[-1]


def warn_of_dropped(name: Any, bad: int, empty: int, with_masks: bool = False) -> None:
    """Logs how many objects of a data set were dropped.

    Args:
      name: of the data set.
      bad: objects with bad boxes.
      empty: objects without area.
      with_masks: whether bad segmentations are among the bad.
    """
    if bad:
        what = "boxes or segmentations" if with_masks else "boxes"
        logger.warning("%s: dropped %d objects with bad %s", name, bad, what)
    if empty:
        logger.warning("%s: dropped %d objects without area", name, empty)


def coco_ground_truth(
    image_ids: Sequence[int | str],
    sizes: np.ndarray,
    objects: Sequence[Objects],
    category_ids: Sequence[int],
    class_names: Sequence[str],
    *,
    areas: Sequence[np.ndarray] | None = None,
    polygons: Sequence[Sequence[Sequence[np.ndarray]]] | None = None,
) -> dict:
    """Makes the json, in COCO's format, of a data set that has none.

    Args:
      image_ids: one an image.
      sizes: `[number of images, 2]` (height, width).
      objects: one `Objects` an image.
      category_ids: label k becomes `category_ids[k]`.
      class_names: label k is called `class_names[k]`.
      areas: `[N]` an image, where the source knows better than width x height.
      polygons: of each object of each image, `[2 points]` arrays; they become its
        segmentation, and give its area.

    Returns:
      What `pycocotools.coco.COCO.dataset` takes; annotation ids count from 1.
    """
    annotations = []
    for position, (image_id, found) in enumerate(zip(image_ids, objects, strict=True)):
        corners = found.boxes.astype(np.float64)
        sides = corners[:, 2:] - corners[:, :2]
        area = sides.prod(axis=-1) if areas is None else areas[position]
        annotations += [
            {
                "id": len(annotations) + i + 1,
                "image_id": image_id,
                "category_id": category_ids[found.labels[i]],
                "bbox": [*corners[i, :2].tolist(), *sides[i].tolist()],
                "area": float(area[i]),
                "iscrowd": int(found.crowd[i]),
            }
            for i in range(len(corners))
        ]
    if polygons is not None:
        outlines = itertools.chain.from_iterable(polygons)
        for annotation, parts in zip(annotations, outlines, strict=True):
            annotation["segmentation"] = [part.tolist() for part in parts]
            annotation["area"] = sum(map(_area, parts))
    return {
        "info": {},
        "images": [
            {"id": image_id, "height": height, "width": width}
            for image_id, (height, width) in zip(image_ids, sizes.tolist(), strict=True)
        ],
        "annotations": annotations,
        "categories": [
            {"id": category_id, "name": name}
            for category_id, name in zip(category_ids, class_names, strict=True)
        ],
    }


def _area(polygon: np.ndarray) -> float:
    x, y = polygon.astype(np.float64).reshape(-1, 2).T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
