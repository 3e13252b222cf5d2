"""Opens a data set of any known format, which is told by name and content.

A new format is a file beside this one and its line in `FORMATS`.
"""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

from jaxdet.data.dataset import DataError, DataSet, concatenate, with_class_names
from jaxdet.data.formats import (
    DEFAULTS,
    Format,
    LoadOptions,
    coco_layouts,
    createml,
    metadata_jsonl,
    named,
    voc,
    voc_flat,
    yolo,
)
from jaxdet.data.holdout import SHARE, hold_out
from jaxdet.data.image_files import with_decode_options
from jaxdet.data.summary import summarize

Source = str | os.PathLike
Role = Literal["training", "validation"]

FORMATS = (
    named.DIGITS,
    named.TFDS,
    coco_layouts.JSON,
    coco_layouts.FOLDER,
    coco_layouts.ROBOFLOW,
    coco_layouts.IMAGES_AND_JSON,
    voc.DEVKIT,
    voc_flat.VOC_FLAT,
    yolo.YOLO,
    metadata_jsonl.METADATA_JSONL,
    createml.CREATEML,
)

# What training takes by default, and what validation does; None: there is none. Capital
# letters do not matter.
SPLITS = (
    ("trainval", "test"),
    ("train", "validation"),
    ("train", "valid"),
    ("train", "val"),
    ("train2017", "val2017"),
    ("train2014", "val2014"),
    ("training", "validation"),
    ("train", "test"),
    ("trainval", None),
    ("train", None),
)

_SHOWN = 10  # names of files, in an error message

logger = logging.getLogger(__name__)


class _Part(NamedTuple):
    """One split of one source."""

    source: str
    format: Format
    splits: Sequence[str]  # of the source
    split: str | None = None


def open_dataset(
    source: Source | Sequence[Source],
    *,
    split: str | None = None,
    role: Role = "training",
    validation_share: float = 0.0,
    options: LoadOptions = DEFAULTS,
    class_names: Sequence[str] | None = None,
) -> DataSet:
    """Opens a data set of any known format, and logs what it holds.

    Args:
      source: a path or name that one of `FORMATS` recognizes; or several, which are
        joined.
      split: of the data set; by default the one that `SPLITS` has for the role.
      role: what the images are for.
      validation_share: where there is no split to validate on, all images are taken for
        that; or, if this is not 0, those that `open_for_training` sets aside with it.
      options: see `LoadOptions`.
      class_names: of the detector, for formats that do not list their classes; others
        ignore it.

    Returns:
      The data set.

    Raises:
      DataError: for a source of no known format or of several, options that do not fit
        it, and whatever is wrong with the files.
    """
    sources = _recognize_all(source, options.images)
    parts, validation = _choose_splits(sources, split)
    validates = role == "validation" and split is None
    if validates and validation:
        parts = validation
    (data_set,) = _load_all([(parts, options)], class_names)
    if validates and not validation:
        logger.info("%s: no split to validate on", data_set.name)
        if validation_share:
            _, held = hold_out(data_set, validation_share)
            data_set = held or data_set
    _log(data_set)
    return data_set


def open_splits(
    source: Source | Sequence[Source],
    splits: Sequence[str],
    *,
    options: LoadOptions = DEFAULTS,
) -> dict[str, DataSet]:
    """Opens several splits of a data set, with the classes of all of them.

    Args:
      source: see `open_dataset`.
      splits: which of them; if there are none, the one to train on.
      options: see `open_dataset`.

    Returns:
      Data sets by split; "train" is the name of one that has none.

    Raises:
      DataError: as `open_dataset`.
    """
    sources = _recognize_all(source, options.images)
    parts = [_choose_splits(sources, split)[0] for split in splits or (None,)]
    data_sets = _load_all([(part, options) for part in parts])
    _log(*data_sets)
    names = splits or (parts[0][0].split or "train",)
    return dict(zip(names, data_sets, strict=True))


def open_for_training(
    source: Source | Sequence[Source],
    validation: Source | Sequence[Source] | None = None,
    *,
    split: str | None = None,
    validation_split: str | None = None,
    validation_images: pathlib.Path | None = None,
    validation_share: float = SHARE,
    options: LoadOptions = DEFAULTS,
) -> tuple[DataSet, DataSet | None]:
    """Opens what to train on and what to validate on, and logs what they hold.

    Args:
      source: see `open_dataset`.
      validation: a source of its own; by default another split of `source`.
      split: to train on; by default see `SPLITS`.
      validation_split: to validate on; by default see `SPLITS`.
      validation_images: the images of a json to validate on; by default those of
        `options`.
      validation_share: of the images to train on, which `hold_out` sets aside where
        there is neither a split nor a source to validate on; 0: none.
      options: see `LoadOptions`.

    Returns:
      Both data sets; None where there is nothing to validate on.

    Raises:
      DataError: as `open_dataset`.
    """
    parts = _recognize_all(source, options.images)
    training, held = _choose_splits(parts, split)
    own_options = options
    if validation is not None:
        own = _recognize_all(validation, validation_images)
        if validation_images or not all(part.format.takes_images for part in own):
            own_options = dataclasses.replace(options, images=validation_images)
        whole, held = _choose_splits(own, validation_split)
        held = whole if validation_split or not held else held
    elif validation_images is not None:
        raise DataError(
            f"validation_images is {validation_images}, but validation is not given"
        )
    elif validation_split is not None:
        held = _with_split(parts, validation_split)
    first: DataSet
    second: DataSet | None
    if held:
        first, second = _load_all([(training, options), (held, own_options)])
    else:
        (whole,) = _load_all([(training, options)])
        first, second = hold_out(whole, validation_share)
    _log(first, second)
    return first, second


def recognize(source: Source) -> Format:
    """Tells which of `FORMATS` a source has.

    Raises:
      DataError: it has none of them, or several.
    """
    path = os.path.expanduser(source)
    fitting = _fitting(path)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = " and as ".join(f"{one.name}: {one.description}" for one in fitting)
        raise DataError(
            f"data set {source}: can be read as {names}; allowed: one of them; name "
            "the file instead of the folder, or move the other away"
        )
    inner = [one.path for one in _list_folder(path) if one.is_dir()]
    for folder in inner if len(inner) == 1 else ():  # as unpacking leaves it
        if fitting := _fitting(folder):
            raise DataError(
                f"data set {source}: no known layout, but the folder in it has one, "
                f"{fitting[0].name}; allowed: {folder}"
            )
    allowed = "".join(f"\n  {one.description}" for one in FORMATS)
    raise DataError(f"data set {source}: {_content(path)}; allowed:{allowed}")


def _fitting(path: str) -> list[Format]:
    return [one for one in FORMATS if one.recognize(path)]


def _with_split(parts: Sequence[_Part], split: str) -> list[_Part]:
    """Returns the parts that have a split, or may have; such as one with a slice."""
    divided = [part._replace(split=split) for part in parts if part.splits]
    if not divided:
        raise DataError(f"validation_split is {split!r}, but validation is not given")
    base = split.partition("[")[0]
    return [part for part in divided if base in part.splits] or divided


def _recognize_all(
    source: Source | Sequence[Source], images: pathlib.Path | None
) -> list[_Part]:
    sources = [source] if isinstance(source, str | os.PathLike) else list(source)
    if not sources:
        raise DataError("no data set is named; at least one is needed")
    parts = []
    for one in sources:
        path, own = os.path.expanduser(one), recognize(one)
        if images is not None and not own.takes_images:
            raise DataError(f"images is {images}; it is only for a json, not for {one}")
        parts.append(_Part(path, own, own.splits(path)))
        found = ", ".join(parts[-1].splits)
        logger.info("%s: %s%s", one, own.name, found and f", with the splits {found}")
    return parts


def _choose_splits(
    parts: Sequence[_Part], split: str | None
) -> tuple[list[_Part], list[_Part]]:
    """Chooses a split of each source to train on, and of some one to validate on."""
    divided = [part.splits for part in parts if part.splits]
    if split is not None and len(divided) < len(parts):
        one = next(part.source for part in parts if not part.splits)
        raise DataError(f"split is {split!r}, but {one} is one split")
    common = _choose_pair(divided, split) if divided else None
    training, validation = [], []
    for part in parts:
        pair = common or _choose_pair([part.splits], split)
        own, held = (_find_split(part.splits, name) for name in pair or (None, None))
        own = split or own
        if own is None and len(part.splits) == 1:
            (own,) = part.splits
        if own is None and part.splits:
            raise DataError(
                f"{part.source} has the splits {', '.join(part.splits)}; name one"
            )
        training.append(part._replace(split=own))
        if held is not None:
            validation.append(part._replace(split=held))
    return training, validation


def _choose_pair(
    splits: Sequence[Sequence[str]], split: str | None
) -> tuple[str, str | None] | None:
    """Returns the first of `SPLITS` that fits several sources; None: none does."""
    for training, validation in SPLITS:
        if split is None:
            fits = all(_find_split(own, training) for own in splits)
        else:
            fits = split.partition("[")[0].lower() == training
        if fits and (
            validation is None or any(_find_split(own, validation) for own in splits)
        ):
            return training, validation
    return None


def _find_split(splits: Sequence[str], name: str | None) -> str | None:
    return next((own for own in splits if own.lower() == name), None)


def _load_all(
    data_sets: Sequence[tuple[Sequence[_Part], LoadOptions]],
    class_names: Sequence[str] | None = None,
) -> list[DataSet]:
    """Loads data sets, each of several parts, with the same classes."""
    loaded = [
        [(one.format, _load(one, options)) for one in parts]
        for parts, options in data_sets
    ]
    pairs = [pair for parts in loaded for pair in parts]
    if class_names is None:
        listed = (one.class_names for own, one in pairs if own.order_classes is None)
        class_names = next(listed, None) or _order_found(pairs)
    if not class_names:
        names = " and ".join(one.name for _, one in pairs)
        raise DataError(f"{names}: there are no objects, which name the classes")
    joined = []
    for parts in loaded:
        own = [
            one
            if kind.order_classes is None or one.class_names == tuple(class_names)
            else with_class_names(one, class_names)
            for kind, one in parts
        ]
        joined.append(own[0] if len(own) == 1 else concatenate(*own))
    return joined


def _order_found(pairs: Sequence[tuple[Format, DataSet]]) -> Sequence[str]:
    """Orders the classes of all objects as the first format does."""
    found = {
        one.class_names[label]
        for _, one in pairs
        for objects in one.objects
        for label in objects.labels.tolist()
    }
    return pairs[0][0].order_classes(found)


def _load(part: _Part, options: LoadOptions) -> DataSet:
    data_set = part.format.load(part.source, part.split, options)
    return with_decode_options(data_set, options.decoding)


def _log(*data_sets: DataSet | None) -> None:
    for data_set in filter(None, data_sets):
        logger.info("%s", summarize(data_set))


def _content(path: str) -> str:
    """Says what is in a folder of no known format."""
    if not os.path.isdir(path):
        return "a file of no known format" if os.path.exists(path) else "not there"
    names = [one.name + "/" * one.is_dir() for one in _list_folder(path)]
    shown = ", ".join(names[:_SHOWN]) or "nothing"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"no known layout; it holds {shown}{more}"


def _list_folder(path: str) -> list[os.DirEntry]:
    """Lists what is in a folder, but for what macOS leaves in zip files."""
    if not os.path.isdir(path):
        return []
    entries = [one for one in os.scandir(path) if one.name != "__MACOSX"]
    return sorted(entries, key=lambda one: one.name)
