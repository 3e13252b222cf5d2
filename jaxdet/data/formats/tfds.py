"""Reads detection data sets that TFDS has prepared, without TensorFlow."""

import functools
import itertools
import json
import logging
import os
import pathlib
from collections.abc import Sequence
from importlib import metadata
from typing import NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from jaxdet.data import image_files, index
from jaxdet.data.annotations import coco_ground_truth
from jaxdet.data.dataset import DataError, DataSet
from jaxdet.data.formats import BadBoxPolicy
from jaxdet.data.formats.tfds_features import (
    IMAGE_ID,
    MASK,
    OUTLINE,
    Layout,
    find_layout,
    read_id,
    read_objects,
)
from jaxdet.data.masks import encode_rle, parse_segmentation, paste, rasterize_all

logger = logging.getLogger(__name__)


def load(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike | None = None,
    bad_boxes: BadBoxPolicy = "error",
) -> DataSet:
    """Opens a data set by its TFDS name, such as `"voc/2007"`; see `from_builder`.

    Args:
      name: as TFDS takes it, `name/config:version` with the latter two optional.
      split: such as `"train"`, or a slice, such as `"train[:10%]"`.
      data_dir: where TFDS keeps data sets; `~/tensorflow_datasets` if not given.
      bad_boxes: see `from_builder`.

    Returns:
      The data set.

    Raises:
      DataError: also where the set is not prepared there.
    """
    return from_builder(open_builder(name, data_dir), split, bad_boxes=bad_boxes)


def load_directory(
    directory: str | os.PathLike, split: str, *, bad_boxes: BadBoxPolicy = "error"
) -> DataSet:
    """Opens a prepared data set by its folder; see `from_builder`.

    Args:
      directory: the one that holds `dataset_info.json`, such as `.../coco/2017/1.1.0`.
      split: such as `"train"`, or a slice, such as `"train[:10%]"`.
      bad_boxes: see `from_builder`.

    Returns:
      The data set.

    Raises:
      DataError: as `from_builder`; and where TFDS prepared no data set.
    """
    return from_builder(open_directory(directory), split, bad_boxes=bad_boxes)


def open_builder(
    name: str, data_dir: str | os.PathLike | None = None
) -> tfds.core.DatasetBuilder:
    """Opens a prepared data set, all its splits, by its TFDS name; see `load`.

    Raises:
      DataError: the set is not prepared there.
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
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=folder)
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


def open_directory(directory: str | os.PathLike) -> tfds.core.DatasetBuilder:
    """Opens a prepared data set, all its splits, by its folder; see `load_directory`.

    Raises:
      DataError: TFDS prepared no data set there.
    """
    try:
        return tfds.builder_from_directory(os.fspath(directory))
    except Exception as error:  # Broken files raise what their parsers raise.
        raise DataError(
            f"{directory}: no data set that TFDS prepared; allowed: a folder with "
            "dataset_info.json and features.json, such as .../coco/2017/1.1.0"
        ) from error


def from_builder(
    builder: tfds.core.DatasetBuilder, split: str, *, bad_boxes: BadBoxPolicy = "error"
) -> DataSet:
    """Opens one split of a prepared data set; pixels and masks are read on demand.

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
      bad_boxes: what happens to a box that is not finite, or reaches more than
        `annotations.OVERHANG` pixels out of its image: an error, or it is dropped,
        from `ground_truth()` too, and logged.

    Returns:
      The data set.

    Raises:
      ValueError: `bad_boxes` is none of the two.
      DataError: the set has no such features, split or file format, or bad examples.
    """
    if bad_boxes not in ("error", "skip"):
        raise ValueError(f'bad_boxes is {bad_boxes!r}; allowed: "error", "skip"')
    name = f"{builder.info.full_name} {split}"
    layout = find_layout(builder.info.features, builder.info.full_name)
    source = _open(builder, split, layout)
    found = index.load(
        pathlib.Path(builder.data_path),
        split if bad_boxes == "error" else f"{split}, bad boxes skipped",
        _files(builder, split),
        functools.partial(_read_index, source, layout, name, bad_boxes),
    )
    dropped = sum(int((~has_area).sum()) for has_area in found.kept)
    if dropped:
        why = "without area" + (", or bad boxes" if bad_boxes == "skip" else "")
        logger.warning("%s: dropped %d objects %s", name, dropped, why)
    reader = _Split(name, layout, source, found)
    has_masks = layout.has_outlines or layout.mask_side is not None
    return DataSet(
        name=name,
        class_names=layout.class_names,
        category_ids=tuple(range(len(layout.class_names))),
        image_ids=found.image_ids,
        sizes=found.sizes,
        objects=found.objects,
        read_image=reader.read_image,
        ground_truth=reader.ground_truth,
        read_masks=reader.read_masks if has_masks else None,
        read_encoded=reader.read_encoded,
    )


class _Split(NamedTuple):
    """The readers of a `DataSet`, see there."""

    name: str
    layout: Layout
    source: Sequence[dict]
    index: index.Index  # type: ignore[assignment]

    def read_encoded(self, position: int) -> bytes:
        return _read(self.source, self.name, position)[self.layout.image]

    def read_image(self, position: int) -> np.ndarray:
        encoded = self.read_encoded(position)
        return image_files.decode(encoded, f"{self.name}, position {position}")

    def read_masks(self, position: int, mask_size: int) -> np.ndarray:
        if not self.layout.has_outlines:
            return self._read_grids(position, mask_size)
        size = tuple(self.index.sizes[position].tolist())
        try:
            outlines = [
                parse_segmentation(outline, size)
                for outline in self._read_segmentations(position)
            ]
        except ValueError as error:
            raise DataError(
                f"{self.name}, position {position}: a bad {OUTLINE}; {error}"
            ) from error
        return rasterize_all(outlines, self.index.objects[position].boxes, mask_size)

    def ground_truth(self) -> dict:
        category_ids = range(len(self.layout.class_names))
        content = coco_ground_truth(
            *self.index[:3],
            category_ids,
            self.layout.class_names,
            areas=self.index.areas,
        )
        if self.layout.has_outlines or self.layout.mask_side is not None:
            images = map(self._read_segmentations, range(len(self.source)))
            outlines = itertools.chain.from_iterable(images)
            for annotation, outline in zip(
                content["annotations"], outlines, strict=True
            ):
                annotation["segmentation"] = outline
        return content

    def _read_objects(self, position: int, feature: str) -> list:
        """Reads a feature of those objects of an image that have area."""
        example = _read(self.source, self.name, position)
        values = example[self.layout.objects][feature]
        return list(itertools.compress(values, self.index.kept[position]))

    def _read_grids(self, position: int, mask_size: int) -> np.ndarray:
        masks = self._read_objects(position, MASK)
        grids = np.zeros((len(masks), mask_size, mask_size), np.float32)
        for grid, mask in zip(grids, masks, strict=True):
            # A cell takes shares of those it covers, whether there are more or fewer.
            mask = mask.astype(np.float32)
            grid[:] = cv2.resize(mask, grid.shape, interpolation=cv2.INTER_AREA)
        return grids / 255

    def _read_segmentations(self, position: int) -> list:
        """Reads the segmentations, in COCO's format, of one image's objects."""
        if self.layout.has_outlines:
            return list(map(json.loads, self._read_objects(position, OUTLINE)))
        size = tuple(self.index.sizes[position].tolist())
        masks = self._read_grids(position, self.layout.mask_side)
        boxes = self.index.objects[position].boxes
        return [
            encode_rle(paste(mask, box, size))
            for mask, box in zip(masks, boxes, strict=True)
        ]


def _requirements(name: str) -> str:
    """Says what pip must install before TFDS prepares the set, as far as TFDS says."""
    known = metadata.metadata("tensorflow-datasets").get_all("Provides-Extra")
    own = name.partition("/")[0].replace("_", "-")
    extras = ",".join(["tensorflow", *({own} & set(known))])
    return f'"tensorflow-datasets[{extras}]"'


def _open(
    builder: tfds.core.DatasetBuilder, split: str, layout: Layout
) -> Sequence[dict]:
    """Opens the examples, their images still encoded."""
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
    """Lists what a split is read from; a slice, from its shards alone."""
    folder = pathlib.Path(builder.data_path)
    shards = builder.info.splits[split].file_instructions
    return [
        *(pathlib.Path(shard.filename) for shard in shards),
        *(folder / name for name in ("dataset_info.json", "features.json")),
        *folder.glob("*.labels.txt"),  # the names of the classes
    ]


def _read(source: Sequence[dict], name: str, position: int) -> dict:
    try:
        return source[position]
    except Exception as error:  # ArrayRecord tells broken files by several kinds.
        raise DataError(
            f"{name}, position {position}: cannot be read ({error})"
        ) from error


def _read_index(
    source: Sequence[dict], layout: Layout, name: str, bad_boxes: BadBoxPolicy
) -> index.Index:
    """Reads every example once."""
    image_ids, sizes, rows = [], [], []
    progress = tqdm(range(len(source)), f"indexing {name}", unit="image", delay=2)
    for position in progress:
        example = _read(source, name, position)
        image_id = position
        if layout.has_ids:
            image_id = read_id(example[IMAGE_ID], f"{name}, position {position}")
        where = f"{name}, image {image_id!r}"
        size = image_files.decode_size(example[layout.image], where)
        image_ids.append(image_id)
        sizes.append(size)
        rows.append(
            read_objects(example[layout.objects], layout, size, where, bad_boxes)
        )
    if not rows:
        raise DataError(f"{name}: empty; at least one image is needed")
    if len(set(image_ids)) < len(image_ids):
        raise DataError(f"{name}: the values of {IMAGE_ID} are not unique")
    return index.Index(
        tuple(image_ids), np.array(sizes, np.int32), *zip(*rows, strict=True)
    )
