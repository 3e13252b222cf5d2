"""Reads data sets from files: a module for each format, and what all have in common."""

import pathlib
from collections.abc import Callable, Sequence, Set
from typing import Literal, NamedTuple

from jaxdet.config import checked_dataclass
from jaxdet.data.dataset import DataSet
from jaxdet.data.image_files import DEFAULTS as DECODE_DEFAULTS
from jaxdet.data.image_files import DecodeOptions

BadBoxPolicy = Literal["error", "skip"]


@checked_dataclass
class LoadOptions:
    """How annotations are read, whatever their format."""

    images: pathlib.Path | None = None
    """Folder of the image files of a json; by default found beside it."""
    bad_boxes: BadBoxPolicy = "error"
    """What happens to a box that is not finite, or reaches more than
    `annotations.OVERHANG` pixels out of its image: an error, or it is dropped, from
    `ground_truth()` too, and logged. With `masks`, the same for a bad segmentation."""
    masks: bool = False
    """Whether to keep the segmentations of formats that have some."""
    keep_empty_classes: bool = False
    """Whether to keep Roboflow's root category, which no object has."""
    decoding: DecodeOptions = DECODE_DEFAULTS
    """How image files are decoded."""


DEFAULTS = LoadOptions()


class Format(NamedTuple):
    """How the data sets of one format are recognized, divided and read.

    A source is a path with `~` expanded, or a name such as "digits". What is imported
    slowly is imported in `splits` and `load`.
    """

    name: str  # such as "YOLO", for messages
    description: str  # of its files, such as "a folder with data.yaml, or that file"
    recognize: Callable[[str], bool]  # source -> whether it has this format; quick
    # source -> the names of its splits; () where it is one split without a name
    splits: Callable[[str], Sequence[str]]
    # (source, split, options) -> the data set; the split is None where it has no name
    load: Callable[[str, str | None, LoadOptions], DataSet]
    takes_images: bool = False  # whether `LoadOptions.images` says something to it
    # For formats that do not list their classes: the names found -> the class names.
    # `load` then takes the names that it finds, in any order.
    order_classes: Callable[[Set[str]], Sequence[str]] | None = None
