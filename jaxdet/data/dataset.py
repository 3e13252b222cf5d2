"""Defines what a data set is to the rest of jaxdet, wherever it was read from."""

import dataclasses
import functools
import hashlib
import itertools
import json
import reprlib
from collections.abc import Callable, Iterable, Sequence
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
    # within the source, with "/"; None where the image ids tell as much
    file_names: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.image_ids)


def subset(data_set: DataSet, positions: Sequence[int], name: str) -> DataSet:
    """Makes a data set of some of the images of another.

    Args:
      data_set: the other; its masks and proposals stay.
      positions: of the images to take, in the order in which to take them.
      name: of the new data set.

    Returns:
      The new data set, with image ids and classes of the other.
    """
    positions = np.asarray(positions, np.int64)

    def chosen(values: Sequence) -> tuple:
        return tuple(values[position] for position in positions)

    readers = {
        key: functools.partial(_read_chosen, getattr(data_set, key), positions)
        for key in ("read_image", "read_masks", "read_encoded")
        if getattr(data_set, key)
    }
    image_ids, proposals = chosen(data_set.image_ids), data_set.proposals
    names = data_set.file_names
    return dataclasses.replace(
        data_set,
        name=name,
        image_ids=image_ids,
        sizes=data_set.sizes[positions],
        objects=chosen(data_set.objects),
        ground_truth=functools.partial(_chosen_ground_truth, data_set, image_ids),
        proposals=None if proposals is None else chosen(proposals),
        file_names=None if names is None else chosen(names),
        **readers,
    )


def with_class_names(data_set: DataSet, class_names: Sequence[str]) -> DataSet:
    """Gives a data set other labels for the same classes, and perhaps further classes.

    Args:
      data_set: whose objects are of some of these classes.
      class_names: label k becomes the class `class_names[k]`, and k its category id.

    Returns:
      The data set with new labels, category ids and `ground_truth()`.

    Raises:
      DataError: an object is of another class.
    """
    used = {label for one in data_set.objects for label in one.labels.tolist()}
    for label in sorted(used):
        if data_set.class_names[label] not in class_names:
            raise DataError(
                f"{data_set.name}: the class {data_set.class_names[label]!r} is "
                f"unknown; allowed: {', '.join(class_names)}"
            )
    known = {name: label for label, name in enumerate(class_names)}
    labels = np.array([known.get(name, -1) for name in data_set.class_names], np.int32)
    # Ground truth may hold objects without area, of whatever class.
    category_ids = {
        old: label
        for old, label in zip(data_set.category_ids, labels.tolist(), strict=True)
        if label >= 0
    }
    return dataclasses.replace(
        data_set,
        class_names=tuple(class_names),
        category_ids=tuple(range(len(class_names))),
        objects=tuple(
            one._replace(labels=labels[one.labels]) for one in data_set.objects
        ),
        ground_truth=functools.partial(
            _renumbered_ground_truth, data_set, category_ids, tuple(class_names)
        ),
    )


def file_names(data_set: DataSet) -> tuple[str, ...]:
    """Returns the name of each image file, or else the image's id as text."""
    return tuple(map(str, data_set.file_names or data_set.image_ids))


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
        file_names=tuple(itertools.chain(*map(file_names, data_sets))),
        **readers,
    )


def _read_chosen(read: Callable, positions: np.ndarray, position: int, *options):
    return read(int(positions[position]), *options)


def _chosen_ground_truth(data_set: DataSet, image_ids: Sequence[int | str]) -> dict:
    content = data_set.ground_truth()
    images = {image["id"]: image for image in content["images"]}
    own = set(image_ids)
    annotations = [one for one in content["annotations"] if one["image_id"] in own]
    return content | {
        "images": [images[image_id] for image_id in image_ids],
        "annotations": annotations,
    }


def _renumbered_ground_truth(
    data_set: DataSet, category_ids: dict[int, int], class_names: Sequence[str]
) -> dict:
    content = data_set.ground_truth()
    return content | {
        "annotations": [
            one | {"category_id": category_ids[one["category_id"]]}
            for one in content["annotations"]
            if one["category_id"] in category_ids
        ],
        "categories": [
            {"id": label, "name": name} for label, name in enumerate(class_names)
        ],
    }


def digests(data_set: DataSet) -> dict[str, str]:
    """Returns a digest of each thing that a data set is made of, except its pixels.

    Sets with the same name and number of images may still hold other annotations.
    """
    objects = data_set.objects
    lists = {
        "boxes": (one.boxes.astype("<f4") for one in objects),
        "labels": (one.labels.astype("<i4") for one in objects),
        "crowd": (one.crowd.astype(bool) for one in objects),
    }
    if data_set.proposals is not None:
        lists["proposals"] = (one.boxes.astype("<f4") for one in data_set.proposals)
    arrays = {"sizes": [np.asarray(data_set.sizes, "<i4")], **lists}
    ids = hashlib.sha256(json.dumps([*map(str, data_set.image_ids)]).encode())
    return {"image_ids": ids.hexdigest()[:16]} | {
        name: _digest(values) for name, values in arrays.items()
    }


def _digest(arrays: Iterable[np.ndarray]) -> str:
    hashed = hashlib.sha256()
    for array in arrays:
        hashed.update(b"%d " % len(array) + array.tobytes())
    return hashed.hexdigest()[:16]


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
