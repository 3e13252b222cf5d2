"""Makes padded batches of examples; batch s of a run is a function of (seed, s).

Nothing is drawn from a shared random state and nothing depends on which thread was
faster, so a run that starts at step s repeats what an unbroken one does from there on,
and hosts agree on their shares of a batch without talking.
"""

import functools
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxdet.data import augmentation, transforms
from jaxdet.data.dataset import DataError, DataSet
from jaxdet.data.epoch_plan import plan_epoch, positions_by_canvas, steps_per_epoch
from jaxdet.data.examples import ExampleLoader
from jaxdet.data.input_config import InputConfig, scale_canvas
from jaxdet.data.transforms import Example
from jaxdet.structs import Batch, GroundTruth, Regions

logger = logging.getLogger(__name__)


def check(
    data_set: DataSet, config: InputConfig, *, batch_size: int, devices: int = 1
) -> None:
    """Checks, before training, what would stop it later; reads no pixels.

    Args:
      data_set: what will be trained on.
      config: how it will be batched.
      batch_size: images a step, over all devices and hosts.
      devices: how many devices share a batch, over all hosts.

    Raises:
      DataError: naming the value at fault and what is allowed.
    """
    if len(data_set) == 0:
        raise DataError(f"data set {data_set.name!r} holds no images")
    if batch_size < 1 or batch_size % devices:
        raise DataError(
            f"batch size {batch_size} must be a positive multiple of the "
            f"{devices} devices that share a batch"
        )
    _check_counts(data_set, config)
    _check_proposals(data_set, config)
    for name, value in (
        ("mask_size", config.mask_size),
        ("copy_paste", config.copy_paste),
    ):
        if value and data_set.read_masks is None:
            raise DataError(
                f"data set {data_set.name!r} has no masks, but {name} is {value}; load "
                "it with them (jaxdet.data.formats.coco.load, masks=True; "
                f"experiments.prepare --masks) or set {name}=0"
            )


def training_batches(
    data_set: DataSet,
    config: InputConfig,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    stop: int | None = None,
    process: int = 0,
    processes: int = 1,
    transfer: Callable[[Batch], Any] | None = None,
) -> Iterator[Any]:
    """Yields augmented batches of steps `start`, `start + 1`, ...; endless by default.

    Args:
      data_set: see `DataSet`.
      config: see `InputConfig`.
      batch_size: images a step, over all hosts.
      seed: of order and augmentation, at least 0.
      start: first step; what comes is what an unbroken run gives from that step on.
      stop: the step before which to end.
      process: which of the hosts this is; it gets its contiguous share of each batch.
      processes: how many hosts share a batch.
      transfer: what else the threads do with each batch, such as sending it to the
        devices (`jaxdet.parallel.shard_to_devices`); its result takes the batch's
        place.

    Returns:
      Batches of NumPy arrays with truth, and with masks and regions where `config`
      asks for them; crowd objects are among the valid ones. Scales are those of the
      image as augmented.

    Raises:
      DataError: at once for what `check` finds; later for an image that cannot be read
        or whose size is not that of its annotation.
    """
    check(data_set, config, batch_size=batch_size)
    if batch_size % processes:
        raise DataError(
            f"batch size {batch_size} must be a multiple of the {processes} processes"
        )
    _warn_of_dropped_objects(data_set, config)
    steps = steps_per_epoch(data_set, config, batch_size)
    plan = functools.lru_cache(maxsize=2)(
        functools.partial(plan_epoch, data_set, config, batch_size, seed)
    )
    groups = positions_by_canvas(data_set, config)
    loader = ExampleLoader(data_set, config)
    share = batch_size // processes

    def training_batch(step: int) -> Any:
        epoch, row = divmod(step, steps)
        positions, canvases, factors = plan(epoch)
        canvas = scale_canvas(config.canvases[canvases[row]], factors[row])
        batch = _padding_batch(share, canvas, config, masks=config.mask_size > 0)
        for slot in range(share):
            slot_of_all = process * share + slot
            rng = np.random.default_rng([seed, step, slot_of_all])
            flip = rng.random() < config.flip
            planned = positions[row, slot_of_all]
            try:
                position, example = loader.load_mixed(
                    rng, planned, groups[canvases[row]], canvas
                )
                example, size = augmentation.augment(
                    rng, example, config, canvas, flip=flip
                )
                _fill_slot(batch, slot, position, example, size)
            except Exception as error:
                name = data_set.image_ids[planned]
                error.add_note(f"while preparing image {name!r} for step {step + 1}")
                raise
        return batch if transfer is None else transfer(batch)

    return _prefetched(training_batch, start, stop, config)


def evaluation_batches(
    data_set: DataSet,
    config: InputConfig,
    *,
    batch_size: int,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """Yields every image once, as it is, canvas by canvas in the data set's order.

    The last batch of each canvas is filled up with padding images: black, as large as
    the canvas, of scale 1, without objects, and of id -1. An unreadable image that
    `config` says to skip becomes one of them too. Of too many objects the largest are
    kept, always: metrics take theirs from `DataSet.ground_truth`, not from here; and
    masks are left out, as they would only cost time.

    Args:
      data_set: see `DataSet`.
      config: see `InputConfig`.
      batch_size: images a batch.
      process: which of the hosts this is; batches go to one after the other in turn.
      processes: how many hosts share the data set.

    Returns:
      Batches of NumPy arrays with truth, and with regions if `config` asks for them.

    Raises:
      DataError: as `training_batches` does for images; at once if regions are asked for
        and the data set has no proposals.
    """
    _check_proposals(data_set, config)
    batches = [
        (canvas, group[first : first + batch_size])
        for canvas, group in zip(
            config.canvases, positions_by_canvas(data_set, config), strict=True
        )
        for first in range(0, len(group), batch_size)
    ][process::processes]
    loader = ExampleLoader(data_set, config)

    def evaluation_batch(step: int) -> Batch:
        canvas, positions = batches[step]
        batch = _padding_batch(batch_size, canvas, config, masks=False)
        for slot, position in enumerate(positions):
            example = loader.load(position)
            if example is not None:
                size = transforms.fitted_size(
                    example.image.shape[:2],
                    canvas,
                    keep_aspect=config.keep_aspect,
                    min_max_size=config.min_max_size,
                )
                _fill_slot(batch, slot, position, example, size)
        return batch

    return _prefetched(evaluation_batch, 0, len(batches), config)


def _prefetched(
    batch_of: Callable[[int], Any], start: int, stop: int | None, config: InputConfig
) -> Iterator[Any]:
    """Yields `batch_of(start)`, `batch_of(start + 1)`, ..., computed by threads."""
    import grain  # slow to import, and only needed where batches are made

    stop = sys.maxsize if stop is None else stop
    if start >= stop:
        return
    ahead = config.prefetch if config.workers else 0
    # Threads, not processes: OpenCV and NumPy do nine tenths of the work without
    # Python's lock, and no batch has to be copied from one process to another.
    options = grain.ReadOptions(min(config.workers, ahead), ahead)
    steps = grain.MapDataset.range(start, stop).map(batch_of)
    batches = iter(steps.to_iter_dataset(options))
    try:
        yield from batches
    finally:
        batches.close()


def _padding_batch(
    count: int, canvas: tuple[int, int], config: InputConfig, *, masks: bool
) -> Batch:
    slots, region_slots = (count, config.max_objects), (count, config.max_regions)
    cells = (*slots, config.mask_size, config.mask_size)
    pixels = np.float32 if config.float_pixels else np.uint8
    regions = Regions(
        boxes=np.zeros((*region_slots, 4), np.float32),
        scores=np.zeros(region_slots, np.float32),
        valid=np.zeros(region_slots, bool),
    )
    return Batch(
        images=np.zeros((count, *canvas, 3), pixels),
        sizes=np.tile(np.array(canvas, np.int32), (count, 1)),
        scales=np.ones((count, 2), np.float32),
        image_ids=np.full(count, -1, np.int32),
        truth=GroundTruth(
            boxes=np.zeros((*slots, 4), np.float32),
            labels=np.zeros(slots, np.int32),
            valid=np.zeros(slots, bool),
            crowd=np.zeros(slots, bool),
            masks=np.zeros(cells, np.float32) if masks else None,
        ),
        regions=regions if config.max_regions else None,
    )


def _fill_slot(
    batch: Batch, slot: int, position: int, example: Example, size: tuple[int, int]
) -> None:
    """Puts an example, resized to (height, width), into a slot that was padding."""
    example, batch.scales[slot] = transforms.resize_to_canvas(
        example, size, keep_aspect=False, out=batch.images[slot]
    )
    batch.sizes[slot], batch.image_ids[slot] = size, position
    truth, regions, count = batch.truth, batch.regions, len(example.boxes)
    truth.boxes[slot, :count] = example.boxes
    truth.labels[slot, :count] = example.labels
    truth.crowd[slot, :count] = example.crowd
    truth.valid[slot, :count] = True
    if truth.masks is not None:
        truth.masks[slot, :count] = example.masks
    if regions is not None:
        # A crop leaves those outside it without area.
        seen = np.all(example.regions[:, 2:] > example.regions[:, :2], axis=1)
        count = np.count_nonzero(seen)
        regions.boxes[slot, :count] = example.regions[seen]
        regions.scores[slot, :count] = example.region_scores[seen]
        regions.valid[slot, :count] = True


def _check_counts(data_set: DataSet, config: InputConfig) -> None:
    """Checks that there are slots for all objects, also where images are joined."""
    if config.too_many_objects == "drop":
        return
    counts = _object_counts(data_set)
    fullest = int(counts.argmax())
    joined = (4 if config.mosaic else 1) + (1 if config.copy_paste else 0)
    most = joined * int(counts[fullest])
    if most > config.max_objects:
        times = "" if joined == 1 else f", {joined} such images joined {most}"
        raise DataError(
            f"data set {data_set.name!r}: image {data_set.image_ids[fullest]!r} has "
            f"{counts[fullest]} objects{times}, more than max_objects="
            f'{config.max_objects}; set max_objects={most} or too_many_objects="drop"'
        )


def _check_proposals(data_set: DataSet, config: InputConfig) -> None:
    if config.max_regions and data_set.proposals is None:
        raise DataError(
            f"data set {data_set.name!r} has no region proposals, but max_regions is "
            f"{config.max_regions}; make them (jaxdet.data.selective_search), read "
            "them (jaxdet.data.proposal_files) or set max_regions=0"
        )


def _object_counts(data_set: DataSet) -> np.ndarray:
    return np.array([len(objects.labels) for objects in data_set.objects])


def _warn_of_dropped_objects(data_set: DataSet, config: InputConfig) -> None:
    excess = np.maximum(_object_counts(data_set) - config.max_objects, 0)
    if excess.any():
        logger.warning(
            "data set %r: %d images have more than %d objects; their %d smallest are "
            "left out of training",
            data_set.name,
            np.count_nonzero(excess),
            config.max_objects,
            excess.sum(),
        )
