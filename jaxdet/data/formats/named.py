"""Recognizes data sets that have a name, and folders that TFDS prepared.

What reads them imports TFDS, which takes seconds: here, only where it is needed.
"""

import os
import re
from collections.abc import Sequence

from jaxdet.data.dataset import DataSet
from jaxdet.data.formats import Format, LoadOptions

_PREFIX = "tfds:"


def _recognize_digits(source: str) -> bool:
    return re.fullmatch(r"digits(:[1-9]\d*)?", source) is not None


def _load_digits(source: str, split: str | None, options: LoadOptions) -> DataSet:
    from jaxdet.data.formats import digits

    _, _, count = source.partition(":")
    return digits.load(split, **({"train_images": int(count)} if count else {}))


def _recognize_tfds(source: str) -> bool:
    in_folder = os.path.exists(os.path.join(source, "dataset_info.json"))
    return source.startswith(_PREFIX) or in_folder


def _tfds_splits(source: str) -> Sequence[str]:
    from jaxdet.data.formats import tfds

    if source.startswith(_PREFIX):
        builder = tfds.open_builder(source.removeprefix(_PREFIX))
    else:
        builder = tfds.open_directory(source)
    return tuple(builder.info.splits) or ("train",)  # to load it names what is missing


def _load_tfds(source: str, split: str | None, options: LoadOptions) -> DataSet:
    from jaxdet.data.formats import tfds

    load = tfds.load if source.startswith(_PREFIX) else tfds.load_directory
    name = source.removeprefix(_PREFIX)
    return load(name, split, bad_boxes=options.bad_boxes)


DIGITS = Format(
    name="digits",
    description='"digits", or "digits:N" with N images to train on',
    recognize=_recognize_digits,
    splits=lambda source: ("train", "validation"),
    load=_load_digits,
)
TFDS = Format(
    name="TFDS",
    description='"tfds:NAME" of a set that TFDS prepared, or its folder with '
    "dataset_info.json",
    recognize=_recognize_tfds,
    splits=_tfds_splits,
    load=_load_tfds,
)
