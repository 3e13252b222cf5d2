"""Reads and writes files of region proposals, ours and those made elsewhere."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxdet.data.annotations import OVERHANG, clip_to_image, inside_image
from jaxdet.data.dataset import DataError, DataSet, Proposals
from jaxdet.data.files import read_json, write_atomically, write_json

logger = logging.getLogger(__name__)


def save(path: str | os.PathLike, data_set: DataSet) -> None:
    """Writes a data set's proposals to a file that `load` reads.

    Args:
      path: ends in `.npz` (`image_ids`, `sizes`, `counts` one an image; `boxes` and
        `scores` of all images, one after the other) or in `.json` (a list of
        `{"image_id": .., "boxes": [[x1, y1, x2, y2], ..], "scores": [..]}`).
      data_set: with proposals.

    Raises:
      DataError: the data set has no proposals, or `path` another ending.
    """
    file = pathlib.Path(path)
    proposals = proposals_of(data_set)
    _check_suffix(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".npz":
        write_arrays(
            file,
            proposals,
            image_ids=np.array([str(image_id) for image_id in data_set.image_ids]),
            sizes=data_set.sizes,
        )
        return
    entries = [
        {"image_id": image_id, "boxes": boxes.tolist(), "scores": scores.tolist()}
        for image_id, (boxes, scores) in zip(data_set.image_ids, proposals, strict=True)
    ]
    write_json(file, entries)


def load(path: str | os.PathLike, *data_sets: DataSet) -> list[DataSet]:
    """Adds the proposals of a file to data sets; see `save` for what it holds.

    Boxes are clipped to their images; those without area are dropped, and their number
    logged. Without scores, the order in the file is taken for best first. Image ids
    are compared as text.

    Args:
      path: of the file.
      *data_sets: whose images it has; those of others are left out. Such as both parts
        of one that was divided, or one of them.

    Returns:
      The data sets with proposals.

    Raises:
      DataError: the file is broken; it misses some images; a box is not
        four finite numbers, or reaches more than `annotations.OVERHANG` pixels out of
        its image.
    """
    file = pathlib.Path(path)
    _check_suffix(file)
    entries = _read_npz_entries(file) if file.suffix == ".npz" else _read_entries(file)
    sizes = {
        str(image_id): tuple(size)
        for one in data_sets
        for image_id, size in zip(one.image_ids, one.sizes.tolist(), strict=True)
    }
    names = " and ".join(repr(one.name) for one in data_sets)
    if len(sizes) < sum(map(len, data_sets)):
        raise DataError(
            f"{names} share image ids; allowed: a file of proposals for each"
        )
    proposals: dict[str, Proposals] = {}
    dropped = 0
    for entry in entries:
        image_id, where = str(entry["image_id"]), f"{file}: image {entry['image_id']!r}"
        if image_id not in sizes:
            continue
        if image_id in proposals:
            raise DataError(f"{where} stands there twice; allowed: once")
        proposals[image_id], without_area = _checked(entry, sizes[image_id], where)
        dropped += without_area
    missing = [image_id for image_id in sizes if image_id not in proposals]
    if missing:
        raise DataError(
            f"{file}: no proposals of {len(missing)} of {len(sizes)} images of "
            f"{names}, the first is {missing[0]!r}"
        )
    if dropped:
        logger.warning("%s: dropped %d proposals without area", file, dropped)
    return [
        dataclasses.replace(
            one, proposals=tuple(proposals[str(image_id)] for image_id in one.image_ids)
        )
        for one in data_sets
    ]


def proposals_of(data_set: DataSet) -> Sequence[Proposals]:
    """Returns the proposals of each image.

    Raises:
      DataError: the data set has none.
    """
    if data_set.proposals is None:
        raise DataError(f"data set {data_set.name!r} has no region proposals")
    return data_set.proposals


def write_arrays(
    file: pathlib.Path, proposals: Sequence[Proposals], **more: np.ndarray
) -> None:
    """Writes an npz of `boxes` and `scores` of all images, and their `counts`.

    Args:
      file: its path.
      proposals: one an image.
      **more: other arrays to write.
    """
    arrays = {
        "boxes": np.concatenate(
            [np.zeros((0, 4), np.float32), *(p.boxes for p in proposals)]
        ),
        "scores": np.concatenate(
            [np.zeros(0, np.float32), *(p.scores for p in proposals)]
        ),
        "counts": np.array([len(p.scores) for p in proposals], np.int64),
    }
    arrays |= more
    write_atomically(file, lambda stream: np.savez_compressed(stream, **arrays))


def split(arrays: dict[str, np.ndarray]) -> list[Proposals]:
    """Splits the arrays of `write_arrays` into the proposals of each image."""
    ends = np.cumsum(arrays["counts"])[:-1]
    boxes, scores = (np.split(arrays[key], ends) for key in ("boxes", "scores"))
    return list(map(Proposals, boxes, scores))


def read_arrays(file: pathlib.Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads an npz of `write_arrays`, or one made elsewhere.

    Args:
      file: its path.
      keys: arrays that must be there.

    Returns:
      All arrays by name; `boxes` and `scores` have as many rows as `counts` sums up to.

    Raises:
      DataError: the file cannot be read, or the arrays are not as said.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:  # The readers of zip raise whatever they stumble over.
        raise DataError(f"{file}: cannot be read as npz ({error})") from error
    lacking = [key for key in keys if key not in arrays]
    if lacking:
        raise DataError(f"{file}: no array {lacking[0]!r}; needed: {', '.join(keys)}")
    counts = arrays["counts"]
    integers = np.issubdtype(counts.dtype, np.integer) and counts.ndim == 1
    for key in {"boxes", "scores"} & arrays.keys():
        if not integers or (counts < 0).any() or counts.sum() != len(arrays[key]):
            raise DataError(
                f"{file}: {key} has shape {arrays[key].shape}; allowed: as many rows "
                "as the whole numbers of counts, one an image, sum up to"
            )
    return arrays


def _read_npz_entries(file: pathlib.Path) -> list[dict]:
    """Reads what `_read_entries` returns, and "size" where the file holds sizes."""
    arrays = read_arrays(file, ("image_ids", "counts", "boxes"))
    ends = np.cumsum(arrays["counts"])[:-1]
    columns = {
        "image_id": arrays["image_ids"].tolist(),
        "boxes": np.split(arrays["boxes"], ends),
    }
    if "scores" in arrays:
        columns["scores"] = np.split(arrays["scores"], ends)
    if "sizes" in arrays:
        columns["size"] = arrays["sizes"].tolist()
    lengths = {key: len(column) for key, column in columns.items()}
    if set(lengths.values()) != {len(arrays["counts"])}:
        raise DataError(
            f"{file}: counts has {len(arrays['counts'])} rows, image_ids and sizes "
            f"{lengths['image_id']} and {lengths.get('size')}; allowed: one an image"
        )
    return [
        dict(zip(columns, row, strict=True))
        for row in zip(*columns.values(), strict=True)
    ]


def _read_entries(file: pathlib.Path) -> list[dict]:
    entries = read_json(file)
    keys = {"image_id", "boxes"}
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and keys <= entry.keys() for entry in entries
    ):
        raise DataError(f"{file}: allowed: a list of objects with image_id and boxes")
    return entries


def _checked(entry: dict, size: tuple[int, int], where: str) -> tuple[Proposals, int]:
    """Checks one image's proposals; also tells how many were dropped, without area."""
    if tuple(entry.get("size", size)) != size:
        raise DataError(
            f"{where} is of (height, width) {tuple(entry['size'])} there, {size} in "
            "the data set; make the proposals anew for images of this size"
        )
    try:
        boxes = np.array(entry["boxes"], np.float64)
        boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
        ranks = np.arange(len(boxes)) / max(len(boxes), 1)
        scores = np.array(entry.get("scores", 1 - ranks), np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"{where}: boxes or scores are not numbers ({error})"
        ) from error
    if boxes.shape != (len(boxes), 4) or scores.shape != (len(boxes),):
        raise DataError(
            f"{where}: boxes have shape {boxes.shape}, scores {scores.shape}; allowed: "
            "(P, 4) and (P,)"
        )
    good = inside_image(boxes, size) & np.isfinite(scores)
    if not good.all():
        first = int(good.argmin())
        raise DataError(
            f"{where}: box {first} is {boxes[first].tolist()} with score "
            f"{scores[first]:g}; allowed: finite numbers, the box within its image of "
            f"height {size[0]} and width {size[1]}, give or take {OVERHANG:g} pixels"
        )
    boxes, has_area = clip_to_image(boxes, size)
    order = np.argsort(-scores, kind="stable")
    order = order[has_area[order]]
    return Proposals(boxes[order], scores[order]), len(boxes) - len(order)


def _check_suffix(file: pathlib.Path) -> None:
    if file.suffix not in (".npz", ".json"):
        raise DataError(f"{file}: proposals are kept in files ending in .npz or .json")
