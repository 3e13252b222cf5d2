"""Defines what a data set is to the rest of jaxdet, wherever it was read from."""

import dataclasses
import functools
import itertools
import reprlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class DataError(ValueError):
    """Something is wrong with the data: which file or id, and what is allowed."""


class Objects(NamedTuple):
    """The annotated objects of one image, in pixels of the image as it is on disk."""

    boxes: np.ndarray  # [N, 4] float32 (x1, y1, x2, y2), inside the image, with area
    labels: np.ndarray  # [N] int32 in [0, K)
    crowd: np.ndarray  # [N] bool: crowd or difficult; no training target


class Proposals(NamedTuple):
    """Regions of one image that may hold an object, best first; pixels as on disk."""

    boxes: np.ndarray  # [P, 4] float32 (x1, y1, x2, y2), inside the image, with area
    scores: np.ndarray  # [P] float32, descending


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Images with objects. Annotations lie in memory; pixels are read on demand."""

    name: str  # for messages, and before the image ids of sets that `concatenate` joins
    class_names: tuple[str, ...]  # K names; label k is class_names[k]
    category_ids: tuple[int, ...]  # K ids of the source; label k was category_ids[k]
    image_ids: tuple[int | str, ...]  # the source's own ids, in a fixed order
    sizes: np.ndarray  # [number of images, 2] int32 (height, width)
    objects: Sequence[Objects]  # one an image
    read_image: Callable[[int], np.ndarray]  # position -> [H, W, 3] uint8 RGB
    ground_truth: Callable[[], dict]  # all annotations as COCO json, for evaluation
    # (position, M) -> [N, M, M] float32 in [0, 1], `objects`' masks cut to their boxes
    read_masks: Callable[[int, int], np.ndarray] | None = None
    proposals: Sequence[Proposals] | None = None  # one an image
    # position -> the bytes of the image's file, where there is one
    read_encoded: Callable[[int], bytes] | None = None

    def __len__(self) -> int:
        return len(self.image_ids)


def concatenate(first: DataSet, *others: DataSet) -> DataSet:
    """Makes one data set of several, such as VOC's of 2007 and of 2012.

    Image ids begin with the name of their data set: `"voc/2007/5.0.0 train/17"`. Masks
    and proposals stay if all have them.

    Raises:
      DataError: two data sets have the same name, or other classes.
    """
    data_sets = (first, *others)
    names = [data_set.name for data_set in data_sets]
    if len(set(names)) < len(names):
        raise DataError(
            f"{' and '.join(names)}: image ids begin with the names of the data sets; "
            "allowed: different names"
        )
    for other in others:
        for key in ("class_names", "category_ids"):
            expected, value = getattr(first, key), getattr(other, key)
            if expected != value:
                raise DataError(
                    f"{first.name} and {other.name} cannot be joined: {key} of one are "
                    f"{reprlib.repr(expected)}, of the other {reprlib.repr(value)}"
                )
    readers = {
        key: functools.partial(_read_joined, data_sets, key)
        for key in ("read_image", "read_masks", "read_encoded")
        if all(getattr(data_set, key) for data_set in data_sets)
    }
    proposals = [data_set.proposals for data_set in data_sets]
    return DataSet(
        name="+".join(names),
        class_names=first.class_names,
        category_ids=first.category_ids,
        image_ids=tuple(
            _joined_id(data_set, image_id)
            for data_set in data_sets
            for image_id in data_set.image_ids
        ),
        sizes=np.concatenate([data_set.sizes for data_set in data_sets]),
        objects=tuple(one for data_set in data_sets for one in data_set.objects),
        ground_truth=functools.partial(_joined_ground_truth, data_sets),
        proposals=None if None in proposals else tuple(itertools.chain(*proposals)),
        **readers,
    )


def _joined_id(data_set: DataSet, image_id: int | str) -> str:
    return f"{data_set.name}/{image_id}"


def _read_joined(data_sets: Sequence[DataSet], key: str, position: int, *options):
    ends = np.cumsum([len(data_set) for data_set in data_sets])
    which = int(np.searchsorted(ends, position, side="right"))
    start = int(ends[which]) - len(data_sets[which])
    return getattr(data_sets[which], key)(position - start, *options)


def _joined_ground_truth(data_sets: Sequence[DataSet]) -> dict:
    images, annotations = [], []
    for data_set in data_sets:
        content = data_set.ground_truth()
        images += [
            image | {"id": _joined_id(data_set, image["id"])}
            for image in content["images"]
        ]
        annotations += [
            annotation
            | {"id": number, "image_id": _joined_id(data_set, annotation["image_id"])}
            for number, annotation in enumerate(
                content["annotations"], len(annotations) + 1
            )
        ]
    return content | {"images": images, "annotations": annotations}
