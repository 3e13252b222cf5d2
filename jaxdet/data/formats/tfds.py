"""Detection data sets that TFDS has prepared, read without TensorFlow."""

import functools
import itertools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Literal, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from jaxdet.data import image_files, index
from jaxdet.data.dataset import DataError, DataSet, Objects
from jaxdet.data.formats.coco import OVERHANG, ground_truth_from_objects
from jaxdet.data.masks import compact, crop, encode, paste

_IMAGE_ID = "image/id"
_LABELS = ("label", "type")  # where objects have several classes, such as a pose
_CROWD = ("is_crowd", "is_difficult", "is_group_of", "invalid")
_MASK = "mask"
_OUTLINE = "segmentation"
# Sets of TFDS whose boxes are the source's first and last pixels, counted from 1.
_FROM_ONE = ("voc",)
# Sets of TFDS that count rows from below.
_UPSIDE_DOWN = ("kitti/3.1.0", "kitti/3.2.0", "kitti/3.3.0")

logger = logging.getLogger(__name__)

BadBoxes = Literal["error", "skip"]


def load(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike | None = None,
    bad_boxes: BadBoxes = "error",
) -> DataSet:
    """A data set by its TFDS name, such as `"voc/2007"`; see `from_builder`.

    Args:
      name: as TFDS takes it, `name/config:version` with the latter two optional.
      split: such as `"train"`, or a slice, such as `"train[:10%]"`.
      data_dir: where TFDS keeps data sets; `~/tensorflow_datasets` if not given.
      bad_boxes: see `from_builder`.

    Raises:
      DataError: also where the set is not prepared there.
    """
    folder = None if data_dir is None else os.fspath(data_dir)
    place = folder or tfds.core.constants.DATA_DIR
    try:
        tfds.core.naming.parse_builder_name_kwargs(name)
    except ValueError as error:
        raise DataError(
            f"{name!r}: no TFDS name; allowed: name, name/config, name/config:version"
        ) from error
    try:
        # Not `tfds.builder`: it runs the code that made the set, which for some,
        # coco/2017 among them, needs TensorFlow.
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=folder)
    except tfds.core.registered.DatasetNotFoundError as error:
        option = f" --data_dir={folder}" if folder else ""
        raise DataError(
            f"{name}: not prepared in {place}; prepare it with "
            f"`tfds build {name} --file_format=array_record{option}` (for this, though "
            f"not for reading it, TFDS needs `pip install {_requirements(name)}`)"
        ) from error
    except Exception as error:  # Broken files raise what their parsers raise.
        raise DataError(
            f"{name}: cannot be read from {place} ({error}); allowed: one folder below "
            "it with dataset_info.json and features.json, as TFDS prepared them"
        ) from error
    return from_builder(builder, split, bad_boxes=bad_boxes)


def load_directory(
    directory: str | os.PathLike, split: str, *, bad_boxes: BadBoxes = "error"
) -> DataSet:
    """A prepared data set by its folder; see `from_builder`.

    Args:
      directory: the one that holds `dataset_info.json`, such as `.../coco/2017/1.1.0`.
      split: such as `"train"`, or a slice, such as `"train[:10%]"`.
      bad_boxes: see `from_builder`.

    Raises:
      DataError: as `from_builder`; and where TFDS prepared no data set.
    """
    try:
        builder = tfds.builder_from_directory(os.fspath(directory))
    except Exception as error:  # Broken files raise what their parsers raise.
        raise DataError(
            f"{directory}: no data set that TFDS prepared; allowed: a folder with "
            "dataset_info.json and features.json, such as .../coco/2017/1.1.0"
        ) from error
    return from_builder(builder, split, bad_boxes=bad_boxes)


def from_builder(
    builder: tfds.core.DatasetBuilder, split: str, *, bad_boxes: BadBoxes = "error"
) -> DataSet:
    """One split of a prepared data set; its pixels and masks are read on demand.

    The first time, all of it is read once for sizes and objects, which are then kept
    beside it, see `index.load`.

    The set needs an image feature and a sequence of objects, whatever their names, with
    a `BBoxFeature`. Classes are those of the objects' `ClassLabel`, of several the one
    called "label" or "type"; without any, all objects are of one class, called as the
    sequence is: "face" of "faces". `is_crowd`, `is_difficult`, `is_group_of` (Open
    Images) and `invalid` (WIDER FACE) make a crowd. Labels stay as they are, and are
    the category ids. Image ids come from the feature "image/id", else they are
    positions; areas in `ground_truth()` from the objects' "area", else they are
    width x height. Boxes are clipped to their images; objects without area are dropped,
    and their number logged. VOC's boxes begin a pixel earlier than TFDS has them, which
    keeps VOC's own numbers, and KITTI's are turned over: TFDS has them upside down.

    Masks come from the objects' feature "segmentation", if it is a `Text`: COCO's
    polygons or run lengths as json, as `prepare.save` writes them. Else they come from
    "mask", if it is a `Tensor` of `[S, S]` uint8: how much of each cell of a grid in
    its box an object covers, 255 for all of it; in `ground_truth()` these are pasted
    into the image. The areas stay as they are.

    Args:
      builder: of the prepared set.
      split: such as `"train"`, or a slice, such as `"train[:10%]"`.
      bad_boxes: what becomes of a box that is not finite, or reaches more than
        `coco.OVERHANG` pixels out of its image: an error, or dropped, from
        `ground_truth()` too, and logged.

    Raises:
      ValueError: `bad_boxes` is none of the two.
      DataError: the set has no such features, split or file format, or bad examples.
    """
    if bad_boxes not in ("error", "skip"):
        raise ValueError(f'bad_boxes is {bad_boxes!r}; allowed: "error", "skip"')
    name = f"{builder.info.full_name} {split}"
    layout = _find_layout(builder.info.features, builder.info.full_name)
    source = _open(builder, split, layout)
    read = functools.partial(_read_example, source, name)
    image_ids, sizes, objects, areas, kept = index.load(
        pathlib.Path(builder.data_path),
        split if bad_boxes == "error" else f"{split}, bad boxes skipped",
        _files(builder, split),
        functools.partial(_read_index, read, len(source), layout, name, bad_boxes),
    )
    dropped = sum(int((~has_area).sum()) for has_area in kept)
    if dropped:
        why = "without area" + (", or bad boxes" if bad_boxes == "skip" else "")
        logger.warning("%s: dropped %d objects %s", name, dropped, why)
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
    if layout.has_outlines:
        outlines = functools.partial(_read_outlines, read, layout, kept)
        read_masks = functools.partial(_draw_masks, outlines, sizes, objects, name)
    elif layout.mask_side is not None:
        read_masks = functools.partial(_read_masks, read, layout, kept)
        outlines = functools.partial(
            _paste_masks, read_masks, layout.mask_side, sizes, objects
        )
    if read_masks is not None:
        ground_truth = functools.partial(_outlined, ground_truth, outlines, len(sizes))
    return DataSet(
        name=name,
        class_names=layout.class_names,
        category_ids=category_ids,
        image_ids=image_ids,
        sizes=sizes,
        objects=objects,
        read_image=functools.partial(_read_image, read, layout.image, name),
        ground_truth=ground_truth,
        read_masks=read_masks,
        read_encoded=functools.partial(_read_encoded, read, layout.image),
    )


class _Layout(NamedTuple):
    """Which features of an example hold what."""

    image: str
    images: tuple[str, ...]  # all of its image features
    objects: str
    box: str
    box_format: str  # of TFDS's: YXYX, XYXY, XYWH in pixels, REL_YXYX, REL_XYXY
    label: str | None  # None where all objects are of one class
    class_names: tuple[str, ...]
    crowd: tuple[str, ...]
    has_area: bool
    has_outlines: bool
    mask_side: int | None  # S of the objects' [S, S] masks
    has_ids: bool
    first_pixel: int  # where the source begins to count
    upside_down: bool  # whether the source counts rows from below


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
        labels = _names_of(inner, tfds.features.ClassLabel)
        label = _choose(labels, _LABELS)
        if labels and label is None:
            raise DataError(
                f"{name}: {objects} has the classes of {', '.join(labels)}; allowed: "
                f"one ClassLabel, or several of which one is {' or '.join(_LABELS)}"
            )
        box_format = inner[boxes[0]].bbox_format
        return _Layout(
            image=_choose(images, ("image",)) or images[0],
            images=images,
            objects=objects,
            box=boxes[0],
            # Sets that an old TFDS prepared do not say; it knew no other.
            box_format=box_format.value if box_format else "REL_YXYX",
            label=label,
            class_names=tuple(inner[label].names)
            if label
            else (objects.removesuffix("s"),),
            crowd=tuple(key for key in _CROWD if key in inner),
            has_area="area" in inner,
            has_outlines=_OUTLINE in _names_of(inner, tfds.features.Text),
            mask_side=_mask_side(inner),
            has_ids=_IMAGE_ID in features,
            first_pixel=1 if name.partition("/")[0] in _FROM_ONE else 0,
            upside_down=name in _UPSIDE_DOWN,
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


def _choose(names: Sequence[str], preferred: Sequence[str]) -> str | None:
    if len(names) == 1:
        return names[0]
    return next((name for name in preferred if name in names), None)


def _requirements(name: str) -> str:
    """What pip must install before TFDS prepares the set, as far as TFDS says."""
    known = metadata.metadata("tensorflow-datasets").get_all("Provides-Extra")
    own = name.partition("/")[0].replace("_", "-")
    extras = ",".join(["tensorflow", *({own} & set(known))])
    return f'"tensorflow-datasets[{extras}]"'


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
    except (KeyError, ValueError) as error:  # KeyError: there are no splits at all
        raise DataError(
            f"{builder.info.full_name}: no split {split!r} to be read ({error}); "
            f"allowed: {', '.join(builder.info.splits)} and slices of them"
        ) from error


def _files(builder: tfds.core.DatasetBuilder, split: str) -> list[pathlib.Path]:
    """What a split is read from; a slice, from its shards alone."""
    folder = pathlib.Path(builder.data_path)
    shards = builder.info.splits[split].file_instructions
    return [
        *(pathlib.Path(shard.filename) for shard in shards),
        *(folder / name for name in ("dataset_info.json", "features.json")),
        *folder.glob("*.labels.txt"),  # the names of the classes
    ]


def _read_example(source: Sequence[dict], name: str, position: int) -> dict:
    try:
        return source[position]
    except Exception as error:  # ArrayRecord tells broken files by several kinds.
        raise DataError(
            f"{name}, position {position}: cannot be read ({error})"
        ) from error


def _read_index(
    read: Callable[[int], dict],
    count: int,
    layout: _Layout,
    name: str,
    bad_boxes: BadBoxes,
) -> index.Index:
    """Reads every example once."""
    image_ids, sizes, rows = [], [], []
    progress = tqdm(range(count), f"indexing {name}", unit="image", delay=2)
    for position in progress:
        example = read(position)
        image_id = position
        if layout.has_ids:
            image_id = _read_id(example[_IMAGE_ID], f"{name}, position {position}")
        where = f"{name}, image {image_id!r}"
        size = image_files.size(example[layout.image], where)
        image_ids.append(image_id)
        sizes.append(size)
        rows.append(
            _read_objects(example[layout.objects], layout, size, where, bad_boxes)
        )
    if not rows:
        raise DataError(f"{name}: empty; at least one image is needed")
    if len(set(image_ids)) < len(image_ids):
        raise DataError(f"{name}: the values of {_IMAGE_ID} are not unique")
    return index.Index(
        tuple(image_ids), np.array(sizes, np.int32), *zip(*rows, strict=True)
    )


def _read_id(value: bytes | np.integer, where: str) -> int | str:
    try:
        return value.decode() if isinstance(value, bytes) else int(value)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where}: {_IMAGE_ID} is {value!r}; allowed: a whole number, or UTF-8"
        ) from error


def _read_objects(
    raw: dict,
    layout: _Layout,
    size: tuple[int, int],
    where: str,
    bad_boxes: BadBoxes,
) -> tuple[Objects, np.ndarray, np.ndarray]:
    """The objects of one image that have area, their areas, and which ones they are.

    Args:
      raw: by feature, one value an object.
      layout: names the features.
      size: (height, width) of the image.
      where: names the image in errors.
      bad_boxes: see `from_builder`.
    """
    height, width = size
    limits = np.array([width, height, width, height])
    boxes = _corners(raw[layout.box], layout, limits)
    inside = (boxes >= -OVERHANG) & (boxes <= limits + OVERHANG)  # False for NaN
    inside = inside.all(axis=-1)
    if bad_boxes == "error" and not inside.all():
        first = raw[layout.box][int(np.argmin(inside))]
        raise DataError(
            f"{where}: a box ({layout.box_format}) is {np.array(first).tolist()}; "
            f"allowed: finite numbers, within the image of height {height} and width "
            f'{width}, give or take {OVERHANG:g} pixels (bad_boxes="skip" drops it)'
        )
    labels = np.zeros(len(boxes), np.int32)
    if layout.label is not None:
        labels = np.array(raw[layout.label], np.int32)
    if not np.isin(labels, np.arange(len(layout.class_names))).all():
        raise DataError(
            f"{where}: labels are {labels.tolist()}; "
            f"allowed: 0 to {len(layout.class_names) - 1}"
        )
    boxes = boxes.clip(0, limits).astype(np.float32)
    crowd = np.zeros(len(boxes), bool)
    for key in layout.crowd:
        crowd |= np.array(raw[key]) == 1  # Open Images: -1 is unknown
    sides = boxes[:, 2:] - boxes[:, :2]
    area = sides.prod(axis=-1)
    if layout.has_area:
        area = np.array(raw["area"])
        if not ((area >= 0) & np.isfinite(area)).all():
            raise DataError(
                f"{where}: areas are {area.tolist()}; allowed: finite numbers from 0 on"
            )
    kept = inside & (sides > 0).all(axis=-1)
    objects = Objects(boxes[kept], labels[kept], crowd[kept])
    return objects, area[kept].astype(np.float64), kept


def _corners(values: list, layout: _Layout, limits: np.ndarray) -> np.ndarray:
    """Boxes in any format to `[N, 4]` (x1, y1, x2, y2) in pixels, unchecked.

    Args:
      values: one box an object.
      layout: says how they are written.
      limits: `[4]` (width, height, width, height) of the image.
    """
    boxes = np.array(values, np.float64).reshape(-1, 4)
    if layout.box_format.endswith("YXYX"):
        boxes = boxes[:, [1, 0, 3, 2]]
    if layout.box_format == "XYWH":
        boxes[:, 2:] += boxes[:, :2]
    if layout.box_format.startswith("REL"):
        boxes *= limits
    if layout.upside_down:
        boxes[:, [1, 3]] = limits[1] - boxes[:, [3, 1]]
    boxes[:, :2] -= layout.first_pixel  # the last pixel's far side is its number
    return boxes


def _read_image(
    read: Callable[[int], dict], key: str, name: str, position: int
) -> np.ndarray:
    encoded = _read_encoded(read, key, position)
    return image_files.decode(encoded, f"{name}, position {position}")


def _read_encoded(read: Callable[[int], dict], key: str, position: int) -> bytes:
    return read(position)[key]


def _read_masks(
    read: Callable[[int], dict],
    layout: _Layout,
    kept: Sequence[np.ndarray],
    position: int,
    cells: int,
) -> np.ndarray:
    """See `DataSet.read_masks`; `kept` tells, for every image, which have area."""
    found = read(position)[layout.objects][_MASK]
    grids = np.zeros((len(found), cells, cells), np.float32)
    for grid, mask in zip(grids, found, strict=True):
        # Each cell takes shares of those it covers, whether there are more or fewer.
        grid[:] = cv2.resize(
            mask.astype(np.float32), (cells, cells), interpolation=cv2.INTER_AREA
        )
    return grids[kept[position]] / 255


def _paste_masks(
    read_masks: Callable[[int, int], np.ndarray],
    cells: int,
    sizes: np.ndarray,
    objects: Sequence[Objects],
    position: int,
) -> list[dict]:
    """The run lengths of the masks of one image's objects."""
    size = tuple(sizes[position].tolist())
    masks, boxes = read_masks(position, cells), objects[position].boxes
    return [
        encode(paste(mask, box, size)) for mask, box in zip(masks, boxes, strict=True)
    ]


def _read_outlines(
    read: Callable[[int], dict],
    layout: _Layout,
    kept: Sequence[np.ndarray],
    position: int,
) -> list:
    """The segmentations, in COCO's format, of one image's objects."""
    found = read(position)[layout.objects][_OUTLINE]
    return [json.loads(text) for text in itertools.compress(found, kept[position])]


def _draw_masks(
    outlines: Callable[[int], list],
    sizes: np.ndarray,
    objects: Sequence[Objects],
    name: str,
    position: int,
    cells: int,
) -> np.ndarray:
    """See `DataSet.read_masks`."""
    boxes, size = objects[position].boxes, tuple(sizes[position].tolist())
    grids = np.zeros((len(boxes), cells, cells), np.float32)
    try:
        for grid, box, outline in zip(grids, boxes, outlines(position), strict=True):
            grid[:] = crop(compact(outline, size), box, cells)
    except ValueError as error:
        raise DataError(
            f"{name}, position {position}: a bad {_OUTLINE}; {error}"
        ) from error
    return grids


def _outlined(
    ground_truth: Callable[[], dict], outlines: Callable[[int], list], count: int
) -> dict:
    """The ground truth, with every object's segmentation."""
    content = ground_truth()
    found = itertools.chain.from_iterable(map(outlines, range(count)))
    for annotation, segmentation in zip(content["annotations"], found, strict=True):
        annotation["segmentation"] = segmentation
    return content
