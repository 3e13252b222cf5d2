"""Makes boxes fit their images and truth COCO's json, for all formats."""

from collections.abc import Sequence

import numpy as np

from jaxdet.data.dataset import Objects

OVERHANG = 2.0
"""Pixels by which a box may reach out of its image; more is a mistake, no rounding."""


def inside_image(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Tells which boxes lie in their image, give or take `OVERHANG`.

    `[N, 4]` (x1, y1, x2, y2) and (height, width) -> `[N]` bool, False for NaN.
    """
    height, width = size
    limits = np.array([width, height, width, height])
    return np.all((boxes >= -OVERHANG) & (boxes <= limits + OVERHANG), axis=-1)


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


def coco_ground_truth(
    image_ids: Sequence[int | str],
    sizes: np.ndarray,
    objects: Sequence[Objects],
    category_ids: Sequence[int],
    class_names: Sequence[str],
    *,
    areas: Sequence[np.ndarray] | None = None,
) -> dict:
    """Makes the json, in COCO's format, of a data set that has none.

    Args:
      image_ids: one an image.
      sizes: `[number of images, 2]` (height, width).
      objects: one `Objects` an image.
      category_ids: label k becomes `category_ids[k]`.
      class_names: label k is called `class_names[k]`.
      areas: `[N]` an image, where the source knows better than width x height.

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
