"""Tiny data sets that lie in memory."""

import functools

import numpy as np

from jaxdet.data.annotations import coco_ground_truth
from jaxdet.data.dataset import DataError, DataSet, Objects


def in_memory_data_set(
    images,
    objects=None,
    *,
    image_ids=None,
    class_names=("cat", "dog"),
    category_ids=None,
):
    """A `DataSet` of the given arrays.

    Args:
      images: `[H, W, 3]` uint8 arrays; a (height, width) is an image nobody can read.
      objects: for each image, a list of `(x1, y1, x2, y2, label)` or, of a crowd,
        `(x1, y1, x2, y2, label, True)`; without any if None.
      image_ids: of the source; 0, 1, ... if None.
      class_names: of all classes.
      category_ids: of the source; 1, 2, ... if None.
    """
    objects = [_objects(rows) for rows in objects or [[] for _ in images]]
    image_ids = tuple(image_ids or range(len(images)))
    category_ids = tuple(category_ids or range(1, len(class_names) + 1))
    sizes = [image if isinstance(image, tuple) else image.shape[:2] for image in images]
    sizes = np.array(sizes, np.int32).reshape(-1, 2)
    source = (image_ids, sizes, objects, category_ids, tuple(class_names))

    def read_image(position):
        if isinstance(images[position], tuple):
            raise DataError(f"image {image_ids[position]!r} cannot be read")
        return images[position]

    return DataSet(
        name="in memory",
        class_names=tuple(class_names),
        category_ids=category_ids,
        image_ids=image_ids,
        sizes=sizes,
        objects=objects,
        read_image=read_image,
        ground_truth=functools.partial(coco_ground_truth, *source),
    )


def _objects(rows):
    return Objects(
        boxes=np.array([row[:4] for row in rows], np.float32).reshape(-1, 4),
        labels=np.array([row[4] for row in rows], np.int32),
        crowd=np.array([len(row) > 5 and row[5] for row in rows], bool),
    )
