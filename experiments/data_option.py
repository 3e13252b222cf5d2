"""The options that name a data set, shared by all commands that take one."""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Annotated, TypeVar

import tyro

from jaxdet.data import proposal_files, selective_search
from jaxdet.data.dataset import DataError, DataSet
from jaxdet.data.formats import BadBoxPolicy, LoadOptions
from jaxdet.data.formats.open import (
    Role,
    open_dataset,
    open_for_training,
    open_splits,
)
from jaxdet.data.holdout import SHARE
from jaxdet.data.image_files import DEFAULTS as DECODE_DEFAULTS
from jaxdet.data.image_files import DecodeOptions
from jaxdet.data.input_config import InputConfig

Options = TypeVar("Options")
Flat = Annotated[Options, tyro.conf.arg(name="")]
"""Options whose flags have no prefix: `source: Flat[DataOption]` is `--data`."""


@dataclasses.dataclass(frozen=True)
class DataOption:
    """The images and objects to work on."""

    data: tuple[str, ...] = ()
    """A folder of images and annotations (COCO, Roboflow, YOLO, Pascal VOC,
    metadata.jsonl, CreateML, TFDS), a json in COCO's format, tfds:NAME, digits, or
    digits:N with N images to train on. Several are joined.
    Images of more than 178,956,970 pixels are refused."""
    images: tuple[pathlib.Path, ...] = ()
    """Folder of the image files of a json; by default found beside it."""
    split: str | None = None
    """Such as "train", "val2017", or "train[:10%]" of a TFDS set; by default what each
    format calls its images to train on, or to validate on in `evaluate`."""
    bad_boxes: BadBoxPolicy = "error"
    """What becomes of a box outside its image, or a broken segmentation."""
    decoding: Flat[DecodeOptions] = DECODE_DEFAULTS
    """How image files are decoded."""
    keep_empty_classes: bool = False
    """Keep Roboflow's root category, which no object has."""

    def load(
        self,
        *,
        role: Role = "training",
        validation_share: float = 0.0,
        masks: bool = False,
        class_names: Sequence[str] | None = None,
    ) -> DataSet:
        """Returns the data set, opened.

        Args:
          role: see `open_dataset`.
          validation_share: see `open_dataset`.
          masks: see `LoadOptions`.
          class_names: see `open_dataset`.

        Returns:
          The data set; several are joined.

        Raises:
          DataError: nothing is named, or it cannot be opened.
        """
        return open_dataset(
            self.data,
            split=self.split,
            role=role,
            validation_share=validation_share,
            options=self.load_options(masks=masks),
            class_names=class_names,
        )

    def load_splits(
        self, splits: Sequence[str] = (), *, masks: bool = False
    ) -> dict[str, DataSet]:
        """Returns splits of the data set by name; `--split` if none is given."""
        splits = splits or ((self.split,) if self.split else ())
        return open_splits(self.data, splits, options=self.load_options(masks=masks))

    def load_options(self, *, masks: bool) -> LoadOptions:
        """Returns how the annotations are read.

        Raises:
          DataError: no data set is named, or several folders of images are.
        """
        if not self.data:
            raise DataError(
                "--data is missing: the data set; --help tells what it takes"
            )
        return LoadOptions(
            images=_only_folder("--images", self.images),
            bad_boxes=self.bad_boxes,
            masks=masks,
            keep_empty_classes=self.keep_empty_classes,
            decoding=self.decoding,
        )


@dataclasses.dataclass(frozen=True)
class ValidationOption:
    """The images that training is evaluated on."""

    validation_data: tuple[str, ...] = ()
    """As `--data`; by default its split for validation."""
    validation_images: tuple[pathlib.Path, ...] = ()
    """As `--images`, which they are by default."""
    validation_split: str | None = None
    """As `--split`."""
    validation_share: float = SHARE
    """Of the images to train on, set aside where there is neither a split nor other
    data to validate on; the same images each time. 0: train on all."""

    def load(
        self, source: DataOption, *, masks: bool = False
    ) -> tuple[DataSet, DataSet | None]:
        """Opens the images to train on, and those to validate on.

        Args:
          source: the images to train on.
          masks: see `LoadOptions`.

        Returns:
          Both; None where there is nothing to validate on.

        Raises:
          DataError: as `DataOption.load`.
        """
        return open_for_training(
            source.data,
            self.validation_data or None,
            split=source.split,
            validation_split=self.validation_split,
            validation_images=_only_folder(
                "--validation-images", self.validation_images
            ),
            validation_share=self.validation_share,
            options=source.load_options(masks=masks),
        )


NO_DATA, DIGITS, VALIDATION = DataOption(), DataOption(("digits",)), ValidationOption()


def read_proposals(
    data_sets: Sequence[DataSet | None],
    files: Sequence[pathlib.Path],
    config: InputConfig,
) -> list[DataSet | None]:
    """Returns data sets with the region proposals of files.

    Args:
      data_sets: their images; None stays None.
      files: the proposals (.npz or .json) of each, or one of all; nothing is added if
        there are none.
      config: of the detector's run; `max_regions` is 0 where it needs none.

    Returns:
      The data sets, in the same order, with the proposals of their files.

    Raises:
      DataError: for files that are not needed, are broken or are of other images.
    """
    present = [data_set for data_set in data_sets if data_set is not None]
    count = len(present)
    allowed = (0, 1, count) if config.max_regions else (0,)
    if len(files) not in allowed:
        named = " and ".join(map(str, files))
        wanted = f"{count}, one a data set" if config.max_regions else "none"
        raise DataError(f"proposals {named}; the detector takes {wanted}")
    if not files:
        return list(data_sets)
    groups = [present] if len(files) == 1 else [[one] for one in present]
    loaded = itertools.chain.from_iterable(
        proposal_files.load(file, *group)
        for file, group in zip(files, groups, strict=True)
    )
    return [None if one is None else next(loaded) for one in data_sets]


def search_proposals(data_set: DataSet, config: InputConfig) -> DataSet:
    """Adds proposals of selective search where a detector needs them and has none.

    Args:
      data_set: the images.
      config: of the detector's run; `max_regions` is 0 where it needs none.

    Returns:
      A data set with proposals, or the same one.
    """
    if data_set.proposals is not None or not config.max_regions:
        return data_set
    limit = config.max_regions
    return selective_search.with_selective_search(data_set, max_proposals=limit)


def _only_folder(option: str, folders: Sequence[pathlib.Path]) -> pathlib.Path | None:
    if len(folders) > 1:
        raise DataError(f"{option} names {len(folders)} folders; allowed: one")
    return folders[0] if folders else None
