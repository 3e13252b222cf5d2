"""Opens a data set in any known layout, which it tells apart by name and content.

A new format is a file beside this one, a line in `LAYOUTS`, one in `layout_of` and one
in `_open`.
"""

import os
import pathlib
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from jaxdet.data.dataset import DataError, DataSet, concatenate

Source = str | os.PathLike


class Layout(NamedTuple):
    """How the data sets of one kind are named, and what their splits are called."""

    description: str
    training: str | None  # split that training takes by default; None: there is none
    validation: str | None


LAYOUTS = {
    "digits": Layout('"digits", or "digits:N" of N images', "train", "validation"),
    "tfds": Layout('"tfds:NAME" of a set that TFDS prepared', "train", "validation"),
    "tfds_folder": Layout("its folder with dataset_info.json", "train", "validation"),
    "json": Layout("a json in COCO's format", None, None),
    "voc": Layout("Pascal VOC folders, or the VOCdevkit", "trainval", "test"),
    "coco": Layout("COCO's folder with annotations", "train2017", "val2017"),
}


def open_dataset(
    source: Source | Sequence[Source],
    *,
    split: str | None = None,
    images: Source | None = None,
    bad_boxes: Literal["error", "skip"] = "error",
    masks: bool = False,
    class_names: Sequence[str] | None = None,
) -> DataSet:
    """Opens a data set in any known layout.

    Args:
      source: one of `LAYOUTS`; or several, which are joined. Of a VOCdevkit VOC2007 is
        taken; name the folders of the years for others.
      split: of the data set; by default the layout's own for training. A json has none.
      images: the folder of a json's image files; by default that of the json.
      bad_boxes: see `coco.load` and `tfds.from_builder`; other layouts always refuse
        them.
      masks: whether to keep the segmentations of COCO's json; digits and TFDS have
        theirs anyway, VOC has none.
      class_names: the order of the classes in VOC folders, which have none of their
        own; see `voc.load`. Others ignore it.

    Returns:
      The data set.

    Raises:
      DataError: for a source of no known layout, options that do not fit it, and
        whatever is wrong with the files.
    """
    sources = _as_list(source)
    kinds = [layout_of(one) for one in sources]
    if images is not None and set(kinds) != {"json"}:
        raise DataError(f"images is {images}; it is only for a json, not for {source}")
    if split is not None and "json" in kinds:
        raise DataError(f"split is {split!r}, but the json {source} is one split")
    options = {"bad_boxes": bad_boxes, "masks": masks}
    if set(kinds) == {"voc"}:
        return _open_voc(sources, split, class_names)
    opened = [
        _open(
            one, kind, split or LAYOUTS[kind].training, images, class_names, **options
        )
        for one, kind in zip(sources, kinds, strict=True)
    ]
    return opened[0] if len(opened) == 1 else concatenate(*opened)


def open_for_training(
    source: Source | Sequence[Source],
    validation: Source | Sequence[Source] | None = None,
    *,
    split: str | None = None,
    validation_split: str | None = None,
    images: Source | None = None,
    validation_images: Source | None = None,
    bad_boxes: Literal["error", "skip"] = "error",
    masks: bool = False,
) -> tuple[DataSet, DataSet | None]:
    """Opens what to train on and what to validate on.

    Args:
      source: see `open_dataset`.
      validation: a source of its own; by default another split of `source`, where that
        is no json.
      split: to train on; by default the layout's own.
      validation_split: to validate on; by default the layout's own.
      images: see `open_dataset`.
      validation_images: likewise; by default `images`.
      bad_boxes: see `open_dataset`.
      masks: see `open_dataset`.

    Returns:
      Both data sets, with the same classes if they are Pascal VOC's; None for
      validation with a json alone.

    Raises:
      DataError: as `open_dataset`.
    """
    options = {"bad_boxes": bad_boxes, "masks": masks}
    training = open_dataset(source, split=split, images=images, **options)
    if validation is None:
        validation = _with_validation(_as_list(source), validation_split)
        if not validation:
            for name, value in (
                ("validation_images", validation_images),
                ("validation_split", validation_split),
            ):
                if value is not None:
                    raise DataError(f"{name} is {value!r}, but validation is not given")
            return training, None
    kind = layout_of(_as_list(validation)[0])
    images = validation_images or (images if kind == "json" else None)
    return training, open_dataset(
        validation,
        split=validation_split or LAYOUTS[kind].validation,
        images=images,
        class_names=training.class_names,
        **options,
    )


def layout_of(source: Source) -> str:
    """Tells which of `LAYOUTS` a source has.

    Raises:
      DataError: it has none of them.
    """
    name, path = os.fspath(source), pathlib.Path(source).expanduser()
    if name == "digits" or re.fullmatch(r"digits:[1-9]\d*", name):
        return "digits"
    if name.startswith("tfds:"):
        return "tfds"
    if path.suffix == ".json":
        return "json"
    if (path / "dataset_info.json").exists():
        return "tfds_folder"
    # Before COCO's: there are disks on which Annotations is annotations, too.
    if (path / "ImageSets").is_dir() or (path / "VOC2007").is_dir():
        return "voc"
    if (path / "annotations").is_dir():
        return "coco"
    problem = "none of the known layouts" if path.exists() else "not there"
    allowed = "; ".join(layout.description for layout in LAYOUTS.values())
    raise DataError(f"data set {name}: {problem}; allowed: {allowed}")


def _as_list(source: Source | Sequence[Source]) -> list[Source]:
    sources = [source] if isinstance(source, str | os.PathLike) else list(source)
    if not sources:
        raise DataError("no data set is named; at least one is needed")
    return sources


def _open(
    source: Source,
    kind: str,
    split: str | None,
    images: Source | None,
    class_names: Sequence[str] | None,
    **options,
) -> DataSet:
    split = split or LAYOUTS[kind].training
    # Imported where they are used: TFDS takes seconds.
    if kind == "digits":
        from jaxdet.data.formats import digits

        _, _, count = os.fspath(source).partition(":")
        return digits.load(split, **({"train_images": int(count)} if count else {}))
    path = pathlib.Path(source).expanduser()
    if kind == "voc":
        return _open_voc([source], split, class_names)
    if kind in ("tfds", "tfds_folder"):
        from jaxdet.data.formats import tfds

        if kind == "tfds_folder":
            return tfds.load_directory(path, split, bad_boxes=options["bad_boxes"])
        name = os.fspath(source).removeprefix("tfds:")
        return tfds.load(name, split, bad_boxes=options["bad_boxes"])
    from jaxdet.data.formats import coco

    if kind == "json":
        return coco.load(path, images or path.parent, **options)
    annotations = path / "annotations" / f"instances_{split}.json"
    return coco.load(annotations, path / split, **options)


def _open_voc(
    sources: Sequence[Source], split: str | None, class_names: Sequence[str] | None
) -> DataSet:
    from jaxdet.data.formats import voc

    folders = list(map(voc_folder, sources))
    split = split or LAYOUTS["voc"].training
    return voc.load(*folders, split=split, class_names=class_names)


def voc_folder(source: Source) -> pathlib.Path:
    """Returns the folder of one year; of a VOCdevkit that of 2007."""
    path = pathlib.Path(source).expanduser()
    return path if (path / "ImageSets").is_dir() else path / "VOC2007"


def _with_validation(sources: list[Source], split: str | None) -> list[Source]:
    """Returns the sources for training that have a split to validate on."""
    kinds = [layout_of(one) for one in sources]
    if set(kinds) == {"voc"}:
        # Of 2007 and 2012, only the former's test set has annotations.
        name = f"ImageSets/Main/{split or LAYOUTS['voc'].validation}.txt"
        lists = [one for one in sources if (voc_folder(one) / name).exists()]
        return lists or sources
    return [] if "json" in kinds else sources
