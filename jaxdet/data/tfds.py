"""Detection data sets that TFDS has prepared, read without TensorFlow."""

import functools
import logging
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from jaxdet.data import image_files
from jaxdet.data.coco import OVERHANG, ground_truth_from_objects
from jaxdet.data.dataset import DataError, DataSet, Objects
from jaxdet.data.masks import encode, paste

_IMAGE_ID = "image/id"
_CROWD = ("is_crowd", "is_difficult")
# Sets of TFDS whose boxes are the source's first and last pixels, counted from 1.
_FROM_ONE = ("voc",)
_MASK = "mask"
_QUIET = 10_000  # examples that are read too quickly for a progress bar

logger = logging.getLogger(__name__)


def load(
    name: str, split: str, *, data_dir: str | os.PathLike | None = None
) -> DataSet:
    """A data set by its TFDS name, such as `"voc/2007"`; see `from_builder`.

    Args:
      name: as TFDS takes it, `name/config:version` with the latter two optional.
      split: such as `"train"`, or a slice, such as `"train[:10%]"`.
      data_dir: where TFDS keeps data sets; `~/tensorflow_datasets` if not given.

    Raises:
      DataError: also where the set is not prepared there.
    """
    folder = None if data_dir is None else os.fspath(data_dir)
    try:
        # Not `tfds.builder`: it runs the code that made the set, which for some,
        # coco/2017 among them, needs TensorFlow.
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=folder)
    except tfds.core.registered.DatasetNotFoundError as error:
        place = folder or tfds.core.constants.DATA_DIR
        option = f" --data_dir={folder}" if folder else ""
        raise DataError(
            f"{name}: not prepared in {place}; prepare it with "
            f"`tfds build {name} --file_format=array_record{option}` "
            "(some sets need TensorFlow for this, though not to be read)"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{name!r}: no TFDS name; allowed: name, name/config, name/config:version"
        ) from error
    return from_builder(builder, split)


def load_directory(directory: str | os.PathLike, split: str) -> DataSet:
    """A prepared data set by its folder, the one holding `dataset_info.json`.

    See `from_builder`.
    """
    try:
        builder = tfds.builder_from_directory(os.fspath(directory))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{directory}: no data set that TFDS prepared; allowed: a folder with "
            "dataset_info.json and features.json, such as .../coco/2017/1.1.0"
        ) from error
    return from_builder(builder, split)


def from_builder(builder: tfds.core.DatasetBuilder, split: str) -> DataSet:
    """Reads sizes and objects of one split in one pass; pixels are read on demand.

    The set needs an image feature and a sequence of objects with a `BBoxFeature` and a
    `ClassLabel`, called "label" if there are several. `is_crowd` or `is_difficult`
    make a crowd. Labels stay as they are, and are the category ids. Image ids come
    from the feature "image/id", else they are positions; areas in `ground_truth()`
    from the objects' "area", else they are width x height. Boxes are clipped to their
    images; objects without area are dropped, and their number logged. VOC's boxes
    begin a pixel earlier than TFDS has them, which keeps VOC's own numbers.

    Masks come from the objects' feature "mask", if it is a `Tensor` of `[S, S]` uint8:
    how much of each cell of a grid in its box an object covers, 255 for all of it. They
    are read on demand; in `ground_truth()` they are pasted into the image. The areas
    stay as they are.

    Raises:
      DataError: the set has no such features, split or file format, or bad examples,
        such as a box that reaches more than `coco.OVERHANG` pixels out of its image.
    """
    name = f"{builder.info.full_name} {split}"
    layout = _find_layout(builder.info.features, builder.info.full_name)
    source = _open(builder, split, layout)
    image_ids, sizes, objects, areas, kept = [], [], [], [], []
    progress = tqdm(range(len(source)), name, disable=len(source) < _QUIET)
    for position in progress:
        example = source[position]
        image_id = example[_IMAGE_ID] if layout.has_ids else position
        image_id = image_id.decode() if isinstance(image_id, bytes) else int(image_id)
        where = f"{name}, image {image_id!r}"
        size = image_files.size(example[layout.image], where)
        found, area, has_area = _read_objects(
            example[layout.objects], layout, size, where
        )
        image_ids.append(image_id)
        sizes.append(size)
        objects.append(found)
        areas.append(area)
        kept.append(has_area)
    dropped = sum(int((~has_area).sum()) for has_area in kept)
    if dropped:
        logger.warning("%s: dropped %d objects without area", name, dropped)
    if not image_ids:
        raise DataError(f"{name}: empty; at least one image is needed")
    if len(set(image_ids)) < len(image_ids):
        raise DataError(f"{name}: the values of {_IMAGE_ID} are not unique")
    sizes = np.array(sizes, np.int32)
    category_ids = tuple(range(len(layout.class_names)))
    ground_truth = functools.partial(
        ground_truth_from_objects,
        image_ids,
        sizes,
        objects,
        category_ids,
        layout.class_names,
        areas=areas,
    )
    read_masks = None
    if layout.mask_side is not None:
        read_masks = functools.partial(_read_masks, source, layout, kept)
        ground_truth = functools.partial(
            _outlined, ground_truth, sizes, objects, read_masks, layout.mask_side
        )
    return DataSet(
        name=name,
        class_names=layout.class_names,
        category_ids=category_ids,
        image_ids=tuple(image_ids),
        sizes=sizes,
        objects=tuple(objects),
        read_image=functools.partial(_read_image, source, layout.image, name),
        ground_truth=ground_truth,
        read_masks=read_masks,
    )


class _Layout(NamedTuple):
    """Which features of an example hold what."""

    image: str
    images: tuple[str, ...]  # all of its image features
    objects: str
    box: str
    label: str
    class_names: tuple[str, ...]
    crowd: tuple[str, ...]
    has_area: bool
    mask_side: int | None  # S of the objects' [S, S] masks
    has_ids: bool
    first_pixel: int  # where the source begins to count


def _find_layout(features: tfds.features.FeaturesDict, name: str) -> _Layout:
    images = _names_of(features, tfds.features.Image)
    if not images:
        raise DataError(f"{name}: no image feature among {', '.join(features)}")
    for objects, sequence in features.items():
        inner = getattr(sequence, "feature", None)
        if not isinstance(inner, tfds.features.FeaturesDict):
            continue
        boxes = _names_of(inner, tfds.features.BBoxFeature)
        if not boxes:
            continue
        label = _choose(_names_of(inner, tfds.features.ClassLabel), "label")
        if label is None:
            raise DataError(
                f"{name}: {objects} needs a ClassLabel, called label if there are "
                f"several, among {', '.join(inner)}"
            )
        return _Layout(
            image=_choose(images, "image") or images[0],
            images=images,
            objects=objects,
            box=boxes[0],
            label=label,
            class_names=tuple(inner[label].names),
            crowd=tuple(key for key in _CROWD if key in inner),
            has_area="area" in inner,
            mask_side=_mask_side(inner),
            has_ids=_IMAGE_ID in features,
            first_pixel=1 if name.partition("/")[0] in _FROM_ONE else 0,
        )
    raise DataError(
        f"{name}: no detection data set: no sequence with a BBoxFeature among "
        f"{', '.join(features)}"
    )


def _mask_side(inner: tfds.features.FeaturesDict) -> int | None:
    """S, if the objects have a feature "mask" that is `[S, S]` uint8."""
    if _MASK not in _names_of(inner, tfds.features.Tensor):
        return None
    mask = inner[_MASK]
    square = len(mask.shape) == 2 and mask.shape[0] == mask.shape[1]
    return mask.shape[0] if square and mask.np_dtype == np.uint8 else None


def _names_of(features: tfds.features.FeaturesDict, kind: type) -> tuple[str, ...]:
    return tuple(key for key, value in features.items() if isinstance(value, kind))


def _choose(names: Sequence[str], preferred: str) -> str | None:
    if preferred in names:
        return preferred
    return names[0] if len(names) == 1 else None


def _open(
    builder: tfds.core.DatasetBuilder, split: str, layout: _Layout
) -> Sequence[dict]:
    """The examples, their images still encoded."""
    skip = {key: tfds.decode.SkipDecoding() for key in layout.images}
    try:
        return builder.as_data_source(split, decoders=skip)
    except NotImplementedError as error:
        raise DataError(
            f"{builder.data_path}: its file format needs TensorFlow; convert it with "
            f"`tfds convert_format --dataset_version_dir={builder.data_path} "
            "--out_file_format=array_record`, or prepare it anew with "
            "`tfds build ... --file_format=array_record`"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{builder.info.full_name}: no split {split!r}; allowed: "
            f"{', '.join(builder.info.splits)} and slices of them"
        ) from error


def _read_objects(
    raw: dict, layout: _Layout, size: tuple[int, int], where: str
) -> tuple[Objects, np.ndarray, np.ndarray]:
    """The objects of one image that have area, their areas, and which ones they are.

    Args:
      raw: by feature, one value an object; boxes are (y1, x1, y2, x2) in [0, 1].
      layout: names the features.
      size: (height, width) of the image.
      where: names the image in errors.
    """
    height, width = size
    limits = np.array([width, height, width, height])
    yxyx = np.array(raw[layout.box], np.float64).reshape(-1, 4)
    boxes = yxyx[:, [1, 0, 3, 2]] * limits
    boxes[:, :2] -= layout.first_pixel  # the last pixel's far side is its number
    inside = (boxes >= -OVERHANG) & (boxes <= limits + OVERHANG)  # False for NaN
    if not inside.all():
        first = int(np.argmin(inside.all(axis=-1)))
        raise DataError(
            f"{where}: a box (y1, x1, y2, x2) is {yxyx[first].tolist()}; allowed: "
            f"finite numbers from 0 to 1, give or take {OVERHANG:g} pixels of the "
            f"image of height {height} and width {width}"
        )
    labels = np.array(raw[layout.label], np.int32)
    if not np.isin(labels, np.arange(len(layout.class_names))).all():
        raise DataError(
            f"{where}: labels are {labels.tolist()}; "
            f"allowed: 0 to {len(layout.class_names) - 1}"
        )
    boxes = boxes.clip(0, limits).astype(np.float32)
    crowd = np.zeros(len(boxes), bool)
    for key in layout.crowd:
        crowd |= np.array(raw[key], bool)
    sides = boxes[:, 2:] - boxes[:, :2]
    area = np.array(raw["area"]) if layout.has_area else sides.prod(axis=-1)
    kept = (sides > 0).all(axis=-1)
    return Objects(boxes[kept], labels[kept], crowd[kept]), area[kept], kept


def _read_image(
    source: Sequence[dict], key: str, name: str, position: int
) -> np.ndarray:
    return image_files.decode(source[position][key], f"{name}, position {position}")


def _read_masks(
    source: Sequence[dict],
    layout: _Layout,
    kept: Sequence[np.ndarray],
    position: int,
    cells: int,
) -> np.ndarray:
    """See `DataSet.read_masks`; `kept` tells, for every image, which have area."""
    found = source[position][layout.objects][_MASK]
    grids = np.zeros((len(found), cells, cells), np.float32)
    for grid, mask in zip(grids, found, strict=True):
        # Each cell takes shares of those it covers, whether there are more or fewer.
        grid[:] = cv2.resize(
            mask.astype(np.float32), (cells, cells), interpolation=cv2.INTER_AREA
        )
    return grids[kept[position]] / 255


def _outlined(
    ground_truth: Callable[[], dict],
    sizes: np.ndarray,
    objects: Sequence[Objects],
    read_masks: Callable[[int, int], np.ndarray],
    cells: int,
) -> dict:
    """The ground truth, with the run lengths of every object's mask."""
    content = ground_truth()
    annotations = iter(content["annotations"])
    for position, (height, width) in enumerate(sizes.tolist()):
        masks = read_masks(position, cells)
        for mask, box in zip(masks, objects[position].boxes, strict=True):
            pixels = paste(mask, box, (height, width))
            next(annotations)["segmentation"] = encode(pixels)
    return content
