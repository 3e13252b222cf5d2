"""Recognizes folders with annotations in COCO's format, and finds their images."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

from jaxdet.data.dataset import DataError, DataSet
from jaxdet.data.files import open_regular
from jaxdet.data.formats import Format, LoadOptions, coco

_PREFIX = "instances_"
_EXPORT = "_annotations.coco.json"  # Roboflow's name, in the folder of each split
_IMAGES = ("images", "data", "img", "JPEGImages")  # as tools call their folder
_KEYS = (b'"images"', b'"annotations"', b'"categories"')


def _is_json(source: str) -> bool:
    # CreateML's is a list. A missing file is COCO's, whose reader says so.
    return source.endswith(".json") and _begin(pathlib.Path(source)) != b"["


def _load_json(source: str, split: str | None, options: LoadOptions) -> DataSet:
    return _load(pathlib.Path(source), "", options)


def _in_annotations(source: str) -> Mapping[str, pathlib.Path]:
    """Finds `annotations/instances_*.json`, or else others there, by split."""
    files = sorted(pathlib.Path(source, "annotations").glob("*.json"))
    instances = [file for file in files if file.stem.startswith(_PREFIX)]
    return _by_split(instances or list(filter(_is_coco, files)))


def _exported(source: str) -> Mapping[str, pathlib.Path]:
    files = sorted(pathlib.Path(source).glob(f"*/{_EXPORT}"))
    return {file.parent.name: file for file in files}


def _beside_images(source: str) -> Mapping[str, pathlib.Path]:
    files = list(filter(_is_coco, sorted(pathlib.Path(source).glob("*.json"))))
    return {"": files[0]} if len(files) == 1 else _by_split(files)


def _by_split(files: Sequence[pathlib.Path]) -> Mapping[str, pathlib.Path]:
    return {file.stem.removeprefix(_PREFIX): file for file in files}


def _is_coco(file: pathlib.Path) -> bool:
    if _begin(file) != b"{":
        return False
    content = file.read_bytes()
    return all(key in content for key in _KEYS)


def _begin(file: pathlib.Path) -> bytes:
    """Returns the first character of a json; nothing where it cannot be read."""
    try:
        with open_regular(file) as stream:
            return stream.read(99).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    except OSError:
        return b""


def _load(file: pathlib.Path, split: str, options: LoadOptions) -> DataSet:
    return coco.load(
        file,
        options.images or _image_folders(file, split or file.stem),
        bad_boxes=options.bad_boxes,
        masks=options.masks,
        keep_empty_classes=options.keep_empty_classes,
    )


def _image_folders(file: pathlib.Path, split: str) -> list[pathlib.Path]:
    """Lists where the images of a json may lie, the likeliest folder first."""
    split = split.removeprefix(_PREFIX)
    parents = [file.parent]
    if file.parent.name.lower() == "annotations":
        parents.append(file.parent.parent)
    inner = ("", split, f"images/{split}", *_IMAGES)
    return [parent / folder for parent in parents for folder in inner]


def _folder_format(
    name: str, description: str, find: Callable[[str], Mapping[str, pathlib.Path]]
) -> Format:
    """Makes the format of folders in which `find` finds a json for each split."""

    def splits(source: str) -> tuple[str, ...]:
        return tuple(filter(None, find(source)))

    def load(source: str, split: str | None, options: LoadOptions) -> DataSet:
        files = find(source)
        file = files.get(split or "")
        if file is None:
            raise DataError(
                f"{source}: no split {split!r}; allowed: {', '.join(files)}"
            )
        data_set = _load(file, split or "", options)
        if file.name == _EXPORT:  # they all have the same name
            name = f"{pathlib.Path(source).resolve().name} {split or ''}".strip()
            data_set = dataclasses.replace(data_set, name=name)
        return data_set

    return Format(name, description, lambda source: bool(find(source)), splits, load)


JSON = Format(
    name="COCO",
    description="a json in COCO's format",
    recognize=_is_json,
    splits=lambda source: (),
    load=_load_json,
    takes_images=True,
)
FOLDER = _folder_format(
    "COCO's folder",
    "a folder with annotations/instances_SPLIT.json and images in SPLIT/ or images/",
    _in_annotations,
)
ROBOFLOW = _folder_format(
    "Roboflow's COCO export",
    f"a folder with train/{_EXPORT} and images beside it",
    _exported,
)
IMAGES_AND_JSON = _folder_format(
    "COCO json among its images",
    "a folder of images, or with a folder images/, and a json in COCO's format",
    _beside_images,
)
