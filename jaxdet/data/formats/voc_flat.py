"""Reads folders of xml files in Pascal VOC's form, without the folders of its devkit.

labelImg, CVAT, Roboflow and Kaggle's data sets leave them beside the images, or in a
folder of their own, and mostly in folders of one split each.
"""

import collections
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from jaxdet.data.annotations import AnnotatedImage, BadBoxCounter, make_data_set
from jaxdet.data.dataset import DataError, DataSet
from jaxdet.data.files import list_files, split_of, splits_of
from jaxdet.data.formats import DEFAULTS, Format, LoadOptions, voc
from jaxdet.data.image_files import has_image_suffix

logger = logging.getLogger(__name__)


def recognize(path: str | os.PathLike) -> bool:
    """Tells whether VOC's xml files are in a folder or below, without `ImageSets`."""
    files = list_files(path)
    first = next(filter(_is_xml, files), None)
    if first is None or any("ImageSets/Main/" in file for file in files):
        return False
    try:
        return voc.read_xml(os.path.join(path, first)).tag == "annotation"
    except DataError:
        return True  # `load` says what is wrong with it.


def splits(path: str | os.PathLike) -> tuple[str, ...]:
    """Lists the folders in `files.SPLITS` that hold xml files; () if there are none.

    Raises:
      DataError: some xml files are in such folders, and others are not.
    """
    return splits_of(path, filter(_is_xml, list_files(path)))


def load(
    path: str | os.PathLike,
    split: str | None = None,
    options: LoadOptions = DEFAULTS,
) -> DataSet:
    """Reads xml files and the images that they are about.

    The image of `a.xml` is `a.jpg`, or whatever else Pillow reads, somewhere in the
    folder: beside the xml if there are several, else that which `<filename>` names.
    Images without an xml may show unlabeled objects: they are left out, and counted.
    Boxes are read as by `voc.load`; image ids are paths from the folder on.

    Args:
      path: the folder; what is in the folders in it counts too.
      split: only what is in folders of this name; None: all.
      options: see there; xml files have no masks.

    Returns:
      The data set, with all names found for classes, in alphabetical order.

    Raises:
      DataError: a file is missing or not as it should be.
    """
    folder, bad = pathlib.Path(path), BadBoxCounter(options.bad_boxes)
    files = [file for file in list_files(folder) if split in (None, split_of(file))]
    annotations = list(filter(_is_xml, files))
    if not annotations:
        allowed = ", ".join(splits(path)) or "none there"
        raise DataError(f"{folder}: no xml of split {split!r}; allowed: {allowed}")
    name = f"{folder.resolve().name} {split}" if split else folder.resolve().name
    by_name = _index(filter(has_image_suffix, files))
    images, used = [], {}
    for file in tqdm(annotations, name, unit="image", delay=2, leave=False):
        image = _read(folder, file, by_name, bad)
        if image.path in used:
            raise DataError(
                f"{image.annotation}: {image.path} is the image of "
                f"{used[image.path]} too; allowed: one xml an image"
            )
        used[image.path] = image.annotation
        images.append(image)
    unlabeled = sum(map(has_image_suffix, files)) - len(used)
    if unlabeled:
        logger.warning(
            "%s: left out %d images without an xml; one without objects needs an xml "
            "that has none",
            *(name, unlabeled),
        )
    class_names = sorted({name for image in images for name in image.categories})
    return make_data_set(name, images, class_names, bad_boxes=bad.count)


def _is_xml(path: str) -> bool:
    return path.lower().endswith(".xml")


def _index(images) -> Mapping[str, Sequence[str]]:
    """Lists images by file name, with and without suffix."""
    index = collections.defaultdict(list)
    for path in images:
        name = path.rpartition("/")[2]
        index[name].append(path)
        index[os.path.splitext(name)[0]].append(path)
    return index


def _read(
    folder: pathlib.Path,
    file: str,
    by_name: Mapping[str, Sequence[str]],
    bad: BadBoxCounter,
) -> AnnotatedImage:
    full = str(folder / file)
    root = voc.read_xml(full)
    if root.tag != "annotation":
        raise DataError(f"{full}: its root is <{root.tag}>; allowed: <annotation>")
    parent, _, name = file.rpartition("/")
    stem = name[: -len(".xml")]
    paths = by_name.get(stem) or by_name.get(voc.file_name_of(root))
    if not paths:
        raise DataError(
            f"{full}: no image {stem} and none of the name that <filename> has, "
            f"{voc.file_name_of(root)!r}, is in {folder}; allowed: one"
        )
    # Of images/1/a.jpg and images/2/a.jpg, labels/1/a.xml is about the first.
    near = parent.rpartition("/")[2]
    beside = [path for path in paths if os.path.dirname(path) == parent]
    related = [path for path in paths if os.path.dirname(path).endswith(f"/{near}")]
    image = voc.choose_image(beside or related or paths, root, full)
    return voc.read_annotation(root, full, str(folder / image), image, bad)


VOC_FLAT = Format(
    name="VOC's xml without ImageSets",
    description="a folder with an xml in Pascal VOC's form for each image",
    recognize=recognize,
    splits=splits,
    load=load,
    order_classes=sorted,
)
