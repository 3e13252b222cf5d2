"""What every data set is to the rest of jaxdet, wherever it was read from."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

CACHE_VARIABLE = "JAXDET_CACHE"  # names the folder of what is made once and kept


class DataError(ValueError):
    """Something is wrong with the data: which file or id, and what is allowed."""


def read_json(file: pathlib.Path) -> Any:
    """What a json file holds.

    Raises:
      DataError: it cannot be read, or is not json.
    """
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not json ({error})") from error


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

    name: str
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

    def __len__(self) -> int:
        return len(self.image_ids)
