"""Region proposals: selective search, kept on disk; and files made elsewhere.

Selective search (Uijlings et al. 2013) merges like neighbours of a fine segmentation
until one region is left, and proposes the box of every region on the way.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Literal

import cv2
import numpy as np
from tqdm import tqdm

from jaxdet.data.boxes import pairwise_iou
from jaxdet.data.dataset import DataError, DataSet, Proposals
from jaxdet.data.files import cache_folder, read_json, write_atomically, write_json
from jaxdet.data.formats.coco import OVERHANG

_SHARD = 100  # images a file of the cache: what an interruption costs at most
_VERSION = 1  # to be raised with every change of what selective search answers

logger = logging.getLogger(__name__)


def selective_search(
    image: np.ndarray,
    *,
    mode: Literal["fast", "quality"] = "fast",
    width: int = 500,
    least_side: float = 0.04,
    max_proposals: int = 2000,
) -> Proposals:
    """The boxes of all regions that segmentation and merging went through.

    The search itself ranks at random. Here each box is the one least like all those
    before it, the largest being first, so that however few are taken they differ; and
    the same image has the same answer. A box's score is 1 minus its greatest
    intersection over union with a box before it: it tells the order, not how likely an
    object is.

    Args:
      image: `[H, W, 3]` uint8 RGB.
      mode: "fast" segments in two color spaces at two scales, "quality" in five at
        four, with more ways to merge: more boxes, and more time.
      width: pixels; a wider image is shrunk to it (R-CNN: 500), none is enlarged.
      least_side: of a proposal, as a part of the image's width (R-CNN: 20 of 500
        pixels); smaller ones are left out.
      max_proposals: the first ones are returned.

    Raises:
      ValueError: the image is not `[H, W, 3]` uint8, or an option is out of its range.
    """
    _check_options(mode, width, least_side, max_proposals)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"image is {image.shape} {image.dtype}; it must be [H, W, 3] uint8"
        )
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    height, old_width = image.shape[:2]
    if old_width > width:
        size = (width, max(1, round(height * width / old_width)))
        bgr = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA)
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(bgr)
    if mode == "fast":
        search.switchToSelectiveSearchFast()
    else:
        search.switchToSelectiveSearchQuality()
    # Sorted, as the order they come in is random.
    corners = np.unique(search.process().reshape(-1, 4), axis=0).astype(np.float64)
    corners[:, 2:] += corners[:, :2]
    limits = np.array([old_width, height] * 2)
    boxes = corners * (limits / np.tile(bgr.shape[1::-1], 2))
    sides = boxes[:, 2:] - boxes[:, :2]
    boxes = boxes[sides.min(axis=1) >= least_side * old_width]
    return _unlike_first(boxes.clip(0, limits).astype(np.float32), max_proposals)


def with_selective_search(
    data_set: DataSet,
    *,
    mode: Literal["fast", "quality"] = "fast",
    width: int = 500,
    least_side: float = 0.04,
    max_per_image: int = 2000,
    cache_dir: str | os.PathLike | None = None,
    workers: int = os.cpu_count() or 1,
    progress: bool = True,
) -> DataSet:
    """The data set with the proposals of `selective_search`, kept on disk.

    What is made is kept at once: after an interruption, the same call goes on from
    there. When the last is made, `recall` is logged. An image that cannot be read has
    no proposals, and a warning; whether that is an error, batching decides. All lie in
    memory: 20 bytes a proposal.

    Args:
      data_set: whose own proposals, if any, are replaced.
      mode: see `selective_search`.
      width: see `selective_search`.
      least_side: see `selective_search`.
      max_per_image: proposals, at most.
      cache_dir: the folder of this data set's proposals. If not given, one named after
        data set and options, in the folder `proposals` of `$JAXDET_CACHE`, else of
        `~/.cache/jaxdet`.
      workers: threads; OpenCV lets them run at the same time.
      progress: whether to show a progress bar.

    Raises:
      DataError: `cache_dir` holds the proposals of another data set, of other image
        sizes or of other options, or a broken file.
      ValueError: an option is out of its range.
    """
    _check_options(mode, width, least_side, max_per_image)
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    options = {"mode": mode, "width": width, "least_side": least_side}
    search = functools.partial(selective_search, **options, max_proposals=max_per_image)
    identity = _identity(data_set, {**options, "max_per_image": max_per_image})
    folder = _open_cache(cache_dir, data_set.name, identity)
    shards = [
        (folder / f"{first:07d}.npz", range(len(data_set))[first : first + _SHARD])
        for first in range(0, len(data_set), _SHARD)
    ]
    missing = [(file, positions) for file, positions in shards if not file.exists()]
    _make(missing, data_set, search, workers=workers, progress=progress)
    proposals = []
    for file, positions in shards:
        found = _unflatten(_read_npz(file, ("boxes", "scores", "counts")))
        if len(found) != len(positions):
            raise DataError(
                f"{file}: proposals of {len(found)} images, not {len(positions)}; "
                "delete it and it is made anew"
            )
        proposals += found
    answer = dataclasses.replace(data_set, proposals=tuple(proposals))
    if missing:
        numbers = ", ".join(f"{key} {n:.3f}" for key, n in recall(answer).items())
        logger.info("%s: proposals in %s: %s", data_set.name, folder, numbers)
    return answer


def recall(
    data_set: DataSet,
    *,
    thresholds: Sequence[float] = (0.5, 0.7),
    max_per_image: int | None = None,
) -> dict[str, float]:
    """Which part of the objects, crowds aside, the proposals find.

    Args:
      data_set: with proposals.
      thresholds: least intersection over union of a find.
      max_per_image: only the first so many; all if None.

    Returns:
      `{"recall@0.5": .., "recall@0.7": .., "proposals": mean number an image}`; the
      recall of no objects is NaN.

    Raises:
      DataError: the data set has no proposals.
    """
    best, counts = [], []
    for objects, found in zip(data_set.objects, _proposals_of(data_set), strict=True):
        boxes = found.boxes[:max_per_image]
        overlaps = pairwise_iou(objects.boxes[~objects.crowd], boxes)
        best.append(overlaps.max(axis=1, initial=0))
        counts.append(len(boxes))
    best = np.concatenate([*best, np.zeros(0)])
    found_at = {
        f"recall@{threshold:g}": float((best >= threshold).mean())
        if len(best)
        else float("nan")
        for threshold in thresholds
    }
    return {**found_at, "proposals": float(np.mean(counts))}


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
    proposals = _proposals_of(data_set)
    _check_suffix(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".npz":
        _write_npz(
            file,
            image_ids=np.array([str(image_id) for image_id in data_set.image_ids]),
            sizes=data_set.sizes,
            **_flatten(proposals),
        )
        return
    entries = [
        {"image_id": image_id, "boxes": boxes.tolist(), "scores": scores.tolist()}
        for image_id, (boxes, scores) in zip(data_set.image_ids, proposals, strict=True)
    ]
    write_json(file, entries)


def load(path: str | os.PathLike, data_set: DataSet) -> DataSet:
    """The data set with the proposals of a file; see `save` for what it holds.

    Boxes are clipped to their images; those without area are dropped, and their number
    logged. Without scores, the order in the file is taken for best first. Image ids
    are compared as text.

    Raises:
      DataError: the file is broken; it is of other images, or misses some; a box is not
        four finite numbers, or reaches more than `coco.OVERHANG` pixels out of its
        image.
    """
    file = pathlib.Path(path)
    _check_suffix(file)
    entries = _read_npz_entries(file) if file.suffix == ".npz" else _read_entries(file)
    positions = {str(image_id): i for i, image_id in enumerate(data_set.image_ids)}
    proposals = [None] * len(data_set)
    dropped = 0
    for entry in entries:
        where = f"{file}: image {entry['image_id']!r}"
        position = positions.get(str(entry["image_id"]))
        if position is None:
            raise DataError(f"{where} is not in the data set {data_set.name!r}")
        if proposals[position] is not None:
            raise DataError(f"{where} stands there twice; allowed: once")
        proposals[position], without_area = _checked(
            entry, tuple(data_set.sizes[position].tolist()), where
        )
        dropped += without_area
    missing = [i for i, found in enumerate(proposals) if found is None]
    if missing:
        raise DataError(
            f"{file}: no proposals of {len(missing)} of {len(data_set)} images of "
            f"{data_set.name!r}, the first is {data_set.image_ids[missing[0]]!r}"
        )
    if dropped:
        logger.warning("%s: dropped %d proposals without area", file, dropped)
    return dataclasses.replace(data_set, proposals=tuple(proposals))


def _check_options(
    mode: str, width: int, least_side: float, max_proposals: int
) -> None:
    for name, value, good, allowed in (
        ("mode", mode, mode in ("fast", "quality"), '"fast", "quality"'),
        ("width", width, width >= 1, "1 or more"),
        ("least_side", least_side, 0 <= least_side <= 1, "0 to 1"),
        ("the number of proposals", max_proposals, max_proposals >= 1, "1 or more"),
    ):
        if not good:
            raise ValueError(f"{name} is {value!r}; allowed: {allowed}")


def _unlike_first(boxes: np.ndarray, count: int) -> Proposals:
    """At most `count` boxes, each the one least like all before it; largest first."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    order = np.argsort(-areas, kind="stable")
    boxes, areas = boxes[order], areas[order]
    count = min(count, len(boxes))
    chosen, scores = np.zeros(count, int), np.zeros(count, np.float32)
    closest = np.zeros(len(boxes), np.float32)  # greatest IoU with a chosen box
    # This loop takes a large part of the search: whole columns, in arrays made once.
    left, top, right, bottom = np.ascontiguousarray(boxes.T)
    width, height, union = np.empty((3, len(boxes)), np.float32)
    for rank in range(count):
        best = chosen[rank] = closest.argmin()
        scores[rank] = 1 - closest[best]
        np.minimum(right, right[best], out=width)
        width -= np.maximum(left, left[best], out=union)
        np.minimum(bottom, bottom[best], out=height)
        height -= np.maximum(top, top[best], out=union)
        width.clip(0, out=width)
        width *= height.clip(0, out=height)  # now the overlap
        np.add(areas, areas[best], out=union)
        union -= width
        np.maximum(closest, np.divide(width, union, out=width), out=closest)
        closest[best] = np.inf
    return Proposals(boxes[chosen], scores)


def _proposals_of(data_set: DataSet) -> Sequence[Proposals]:
    if data_set.proposals is None:
        raise DataError(f"data set {data_set.name!r} has no region proposals")
    return data_set.proposals


def _identity(data_set: DataSet, options: dict) -> dict:
    """What proposals depend on, in a form that json keeps; long things as digests."""

    def digest(content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()[:16]

    return {
        "data set": data_set.name,
        "images": len(data_set),
        "image ids": digest(json.dumps(data_set.image_ids).encode()),
        "image sizes": digest(data_set.sizes.astype("<i4").tobytes()),
        # They stand for the pixels, which would take long to read: sets that are drawn
        # with different seeds differ in nothing else.
        "objects": digest(
            b"".join(found.boxes.astype("<f4").tobytes() for found in data_set.objects)
        ),
        **options,
        "version": _VERSION,
    }


def _open_cache(
    cache_dir: str | os.PathLike | None, name: str, identity: dict
) -> pathlib.Path:
    """The folder, with an index that says what its proposals are of."""
    if cache_dir is None:
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        readable = re.sub(r"[^\w.-]+", "_", name)
        cache_dir = cache_folder() / "proposals" / f"{readable}-{digest}"
    folder = pathlib.Path(cache_dir).expanduser()
    index = folder / "index.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not index.exists():
        write_json(index, identity, indent=2)
    try:
        found = dict(json.loads(index.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{index}: broken ({error}); delete the folder, or give another cache_dir"
        ) from error
    for key, value in identity.items():
        if found.get(key) != value:
            raise DataError(
                f"{index}: these proposals are of another kind: {key} is "
                f"{found.get(key)!r} there, {value!r} here; give another cache_dir, or "
                "delete the folder"
            )
    return folder


def _make(
    shards: Sequence[tuple[pathlib.Path, range]],
    data_set: DataSet,
    search: Callable[[np.ndarray], Proposals],
    *,
    workers: int,
    progress: bool,
) -> None:
    """Writes a file with the proposals of the images at each shard's positions."""

    def propose(position: int) -> Proposals:
        try:
            return search(data_set.read_image(position))
        except DataError as error:
            logger.warning("no proposals for an unreadable image: %s", error)
            return Proposals(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))

    if not shards:
        return
    to_do = sum(len(positions) for _, positions in shards)
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        with tqdm(
            desc=f"selective search, {data_set.name}",
            initial=len(data_set) - to_do,
            total=len(data_set),
            unit="image",
            disable=not progress,
        ) as bar:
            for file, positions in shards:
                found = []
                for proposals in pool.map(propose, positions):
                    found.append(proposals)
                    bar.update()
                _write_npz(file, **_flatten(found))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C need not wait for the whole shard


def _flatten(proposals: Sequence[Proposals]) -> dict[str, np.ndarray]:
    return {
        "boxes": np.concatenate(
            [np.zeros((0, 4), np.float32), *(p.boxes for p in proposals)]
        ),
        "scores": np.concatenate(
            [np.zeros(0, np.float32), *(p.scores for p in proposals)]
        ),
        "counts": np.array([len(p.scores) for p in proposals], np.int64),
    }


def _unflatten(arrays: dict[str, np.ndarray]) -> list[Proposals]:
    ends = np.cumsum(arrays["counts"])[:-1]
    boxes, scores = (np.split(arrays[key], ends) for key in ("boxes", "scores"))
    return list(map(Proposals, boxes, scores))


def _write_npz(file: pathlib.Path, **arrays: np.ndarray) -> None:
    write_atomically(file, lambda stream: np.savez_compressed(stream, **arrays))


def _read_npz(file: pathlib.Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:  # The readers of zip raise whatever they stumble over.
        raise DataError(f"{file}: cannot be read as npz ({error})") from error
    lacking = [key for key in keys if key not in arrays]
    if lacking:
        raise DataError(f"{file}: no array {lacking[0]!r}; needed: {', '.join(keys)}")
    counts = arrays["counts"]
    whole = np.issubdtype(counts.dtype, np.integer) and counts.ndim == 1
    for key in {"boxes", "scores"} & arrays.keys():
        if not whole or (counts < 0).any() or counts.sum() != len(arrays[key]):
            raise DataError(
                f"{file}: {key} has shape {arrays[key].shape}; allowed: as many rows "
                "as the whole numbers of counts, one an image, sum up to"
            )
    return arrays


def _read_npz_entries(file: pathlib.Path) -> list[dict]:
    """What `_read_json` returns, and "size" where the file holds sizes."""
    arrays = _read_npz(file, ("image_ids", "counts", "boxes"))
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
    """The proposals of one image, and how many were dropped for want of area."""
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
    height, width = size
    limits = np.array([width, height] * 2)
    good = (boxes >= -OVERHANG) & (boxes <= limits + OVERHANG)  # False for NaN
    good = good.all(axis=1) & np.isfinite(scores)
    if not good.all():
        first = int(good.argmin())
        raise DataError(
            f"{where}: box {first} is {boxes[first].tolist()} with score "
            f"{scores[first]:g}; allowed: finite numbers, the box within its image of "
            f"height {height} and width {width}, give or take {OVERHANG:g} pixels"
        )
    boxes = boxes.clip(0, limits).astype(np.float32)
    order = np.argsort(-scores, kind="stable")
    order = order[(boxes[order, 2:] > boxes[order, :2]).all(axis=1)]
    return Proposals(boxes[order], scores[order]), len(boxes) - len(order)


def _check_suffix(file: pathlib.Path) -> None:
    if file.suffix not in (".npz", ".json"):
        raise DataError(f"{file}: proposals are kept in files ending in .npz or .json")
