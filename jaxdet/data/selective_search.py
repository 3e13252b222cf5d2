"""Makes region proposals by selective search, and keeps them on disk.

Selective search (Uijlings et al. 2013) merges similar neighbors of a fine segmentation
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
from jaxdet.data.files import cache_folder, write_json
from jaxdet.data.proposal_files import proposals_of, read_arrays, split, write_arrays

WIDTH = 500  # pixels; a wider image is shrunk to it (R-CNN), none is enlarged
MIN_SIDE = (
    0.04  # of a proposal, as a part of the image's width (R-CNN: 20 of 500 pixels)
)

_SHARD = 100  # images a file of the cache: what an interruption costs at most
_VERSION = 1  # to be raised with every change of what selective search returns

logger = logging.getLogger(__name__)


def selective_search(
    image: np.ndarray,
    *,
    mode: Literal["fast", "quality"] = "fast",
    max_proposals: int = 2000,
) -> Proposals:
    """Proposes the boxes of all regions that segmentation and merging went through.

    The search itself ranks at random. Here each box is the one that overlaps those
    before it least, the largest being first, so that however few are taken they differ,
    and the same image always has the same proposals. A box's score is 1 minus its
    greatest intersection over union with a box before it: it tells the order, not how
    likely an object is.

    Args:
      image: `[H, W, 3]` uint8 RGB.
      mode: "fast" segments in two color spaces at two scales, "quality" in five at
        four, with more ways to merge: more boxes, and more time.
      max_proposals: at most so many.

    Returns:
      The first ones.

    Raises:
      ValueError: the image is not `[H, W, 3]` uint8, or an option is out of its range.
    """
    _check_options(mode, max_proposals)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"image is {image.shape} {image.dtype}; it must be [H, W, 3] uint8"
        )
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    height, old_width = image.shape[:2]
    if old_width > WIDTH:
        size = (WIDTH, max(1, round(height * WIDTH / old_width)))
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
    boxes = boxes[sides.min(axis=1) >= MIN_SIDE * old_width]
    return _rank_by_novelty(boxes.clip(0, limits).astype(np.float32), max_proposals)


def with_selective_search(
    data_set: DataSet,
    *,
    mode: Literal["fast", "quality"] = "fast",
    max_proposals: int = 2000,
    cache_dir: str | os.PathLike | None = None,
    workers: int = os.cpu_count() or 1,
    progress: bool = True,
) -> DataSet:
    """Adds the proposals of `selective_search` to a data set, and keeps them on disk.

    What is made is kept at once: after an interruption, the same call goes on from
    there. When the last is made, `recall` is logged. An image that cannot be read has
    no proposals, and a warning; whether that is an error, batching decides. All lie in
    memory: 20 bytes a proposal.

    Args:
      data_set: whose own proposals, if any, are replaced.
      mode: see `selective_search`.
      max_proposals: of an image, at most.
      cache_dir: the folder of this data set's proposals. If not given, one named after
        data set and options, in the folder `proposals` of `$JAXDET_CACHE`, else of
        `~/.cache/jaxdet`.
      workers: threads; OpenCV lets them run at the same time.
      progress: whether to show a progress bar.

    Returns:
      The data set with proposals.

    Raises:
      DataError: `cache_dir` holds the proposals of another data set, of other image
        sizes or of other options, or a broken file.
      ValueError: an option is out of its range.
    """
    _check_options(mode, max_proposals)
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    options = {"mode": mode, "max_proposals": max_proposals}
    search = functools.partial(selective_search, **options)
    identity = _identity(data_set, **options)
    folder = _open_cache(cache_dir, data_set.name, identity)
    shards = [
        (folder / f"{first:07d}.npz", range(len(data_set))[first : first + _SHARD])
        for first in range(0, len(data_set), _SHARD)
    ]
    missing = [(file, positions) for file, positions in shards if not file.exists()]
    _make(missing, data_set, search, workers=workers, progress=progress)
    proposals = []
    for file, positions in shards:
        of_shard = split(read_arrays(file, ("boxes", "scores", "counts")))
        if len(of_shard) != len(positions):
            raise DataError(
                f"{file}: proposals of {len(of_shard)} images, not {len(positions)}; "
                "delete it and it is made anew"
            )
        proposals += of_shard
    with_proposals = dataclasses.replace(data_set, proposals=tuple(proposals))
    if missing:
        numbers = ", ".join(
            f"{key} {n:.3f}" for key, n in recall(with_proposals).items()
        )
        logger.info("%s: proposals in %s: %s", data_set.name, folder, numbers)
    return with_proposals


def recall(data_set: DataSet) -> dict[str, float]:
    """Measures the share of objects, crowds aside, that some proposal overlaps.

    Returns:
      `{"recall@0.5": .., "recall@0.7": .., "proposals": mean number an image}`, by the
      least intersection over union that counts; the recall of no objects is NaN.

    Raises:
      DataError: the data set has no proposals.
    """
    best, counts = [], []
    pairs = zip(data_set.objects, proposals_of(data_set), strict=True)
    for objects, proposals in pairs:
        overlaps = pairwise_iou(objects.boxes[~objects.crowd], proposals.boxes)
        best.append(overlaps.max(axis=1, initial=0))
        counts.append(len(proposals.boxes))
    best = np.concatenate([*best, np.zeros(0)])
    recalls = {
        f"recall@{threshold}": float((best >= threshold).mean())
        if len(best)
        else float("nan")
        for threshold in (0.5, 0.7)
    }
    return {**recalls, "proposals": float(np.mean(counts))}


def _check_options(mode: str, max_proposals: int) -> None:
    if mode not in ("fast", "quality"):
        raise ValueError(f'mode is {mode!r}; allowed: "fast", "quality"')
    if max_proposals < 1:
        raise ValueError(f"max_proposals is {max_proposals}; allowed: 1 or more")


def _rank_by_novelty(boxes: np.ndarray, count: int) -> Proposals:
    """Picks at most `count` boxes: the largest, then always the least overlapping."""
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


def _identity(data_set: DataSet, mode: str, max_proposals: int) -> dict:
    """Describes what proposals depend on for json; long things as digests."""

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
            b"".join(one.boxes.astype("<f4").tobytes() for one in data_set.objects)
        ),
        "mode": mode,
        "width": WIDTH,
        "min_side": MIN_SIDE,
        "max_proposals": max_proposals,
        "version": _VERSION,
    }


def _open_cache(
    cache_dir: str | os.PathLike | None, name: str, identity: dict
) -> pathlib.Path:
    """Makes the folder, with an index that says what its proposals are of."""
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
        stored = dict(json.loads(index.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{index}: broken ({error}); delete the folder, or give another cache_dir"
        ) from error
    for key, value in identity.items():
        if stored.get(key) != value:
            raise DataError(
                f"{index}: these proposals are of another kind: {key} is "
                f"{stored.get(key)!r} there, {value!r} here; give another cache_dir, "
                "or delete the folder"
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
                proposals = []
                for of_image in pool.map(propose, positions):
                    proposals.append(of_image)
                    bar.update()
                write_arrays(file, proposals)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C need not wait for the whole shard
