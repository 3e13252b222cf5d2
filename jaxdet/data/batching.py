"""Examples to padded batches: batch s of a run is a pure function of (seed, s).

Nothing is drawn from a shared random state and nothing depends on which thread was
faster, so a run that starts at step s repeats what an unbroken one does from there on,
and hosts agree on their shares of a batch without talking.
"""

import dataclasses
import functools
import itertools
import logging
import math
import numbers
import os
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from jaxdet.data.dataset import DataError, DataSet
from jaxdet.structs import Batch, GroundTruth, Regions

# OpenCV and grain are imported where they are used: every training configuration holds
# an `InputConfig`, and training on batches from elsewhere needs neither.


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """How images become batches.

    The default canvases hold what the FPN paper feeds (4.1: shorter side 800, longer
    side at most 1333), in multiples of 32.

    Raises:
      ValueError: for a value out of its range, naming the field and what is allowed.
    """

    canvases: tuple[tuple[int, int], ...] = ((800, 1344), (1344, 800))
    """(height, width) of each; an image goes to the one of nearest aspect ratio. No
    stride has to divide them, as the last cells may reach beyond; only SSD's steps and
    torchvision's rounded strides refuse canvases that do not fit them."""
    max_objects: int = 100
    """Object slots an image."""
    max_regions: int = 0
    """Slots an image for region proposals, the best of them; 0: batches carry none."""
    mask_size: int = 0
    """Cells a side of training objects' masks, cut to their boxes; 0: no masks."""
    too_many_objects: Literal["error", "drop"] = "error"
    """Of an image with more: stop, or leave out the smallest and warn."""
    unreadable_images: Literal["error", "skip"] = "error"
    """Stop, or put another image of the same canvas in their place and warn."""
    max_unreadable: float = 0.1
    """Of a data set's images, the share that may be skipped; more stop the run. Each
    process counts those that it met itself, anew at every start."""
    flip: float = 0.5
    """Probability that a training image is mirrored."""
    distort_colours: float = 0.0
    """Probability that a training image's colours change; SSD's is 1."""
    expand: float = 0.0
    """Probability that a training image is put on a larger one; SSD's is 0.5."""
    crop: float = 0.0
    """Probability that a training image makes room for a patch of it; SSD's is 1."""
    random_crop: float = 0.0
    """Probability that a training image makes room for a patch of any shape, half to
    all of each side; objects stay by their visible part."""
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    """Least and greatest factor by which a training image becomes smaller or larger
    than fits its canvas, which cuts off the rest; 0.1 and 2: large-scale jitter."""
    multi_scale: tuple[float, ...] = (1.0,)
    """Factors of the canvases in training: each batch draws one. Sides are rounded to
    multiples of 32, but a factor of 1 leaves them as they are."""
    stretch: bool = False
    """Whether images fill their canvas, without keeping their shapes, as SSD's do."""
    sides: tuple[int, int] | None = None
    """What the shorter side of an image becomes, and the most that the longer one may
    become, as in torchvision; the image goes to the smallest canvas that holds it.
    None: as large as fits the canvas."""
    fractions: bool = False
    """Whether resized pixels stay floats and are never averaged, as in torchvision;
    such batches are four times as large."""
    workers: int = min(8, os.cpu_count() or 1)
    """Threads that prepare batches ahead, by default one a core, at most 8; 0: none.
    Each prepares a batch of its own, so more than `prefetch` have nothing to do: on a
    host of many cores raise both, as far as memory holds the batches."""
    prefetch: int = 8
    """Batches in preparation or waiting at any time, at most; each lies in memory, in
    training on the devices too."""

    def __post_init__(self):
        require_numbers(self)
        pairs = all(len(canvas) == 2 and min(canvas) >= 1 for canvas in self.canvases)
        one_or_more = "one or more (height, width), both at least 1"
        self._require("canvases", bool(self.canvases) and pairs, one_or_more)
        for name, allowed in (
            ("too_many_objects", ("error", "drop")),
            ("unreadable_images", ("error", "skip")),
        ):
            self._require(name, getattr(self, name) in allowed, f"one of {allowed}")
        changes = ("flip", "distort_colours", "expand", "crop", "random_crop")
        for name in ("max_unreadable", *changes):
            self._require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        jitter, factors = self.scale_jitter, self.multi_scale
        finite = len(jitter) == 2 and 0 < jitter[0] <= jitter[1] < math.inf
        two_numbers = "two numbers above 0, the second no less"
        self._require("scale_jitter", finite, two_numbers)
        positive = len(factors) > 0 and all(0 < factor < math.inf for factor in factors)
        self._require("multi_scale", positive, "one or more numbers above 0")
        if self.sides is not None:
            right = len(self.sides) == 2 and 1 <= self.sides[0] <= self.sides[1]
            self._require("sides", right, "two numbers from 1 on, the second no less")
            for name, allowed in (
                ("stretch", False),
                ("expand", 0),
                ("crop", 0),
                ("random_crop", 0),
                ("scale_jitter", (1.0, 1.0)),
                ("multi_scale", (1.0,)),
            ):
                fits = getattr(self, name) == allowed
                self._require(name, fits, f"{allowed} with sides {self.sides}")
        for name, least in (
            ("max_objects", 1),
            ("max_regions", 0),
            ("mask_size", 0),
            ("workers", 0),
            ("prefetch", 1),
        ):
            self._require(name, getattr(self, name) >= least, f"at least {least}")

    @property
    def training_canvases(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of all that training can meet; it compiles once for each."""
        every = itertools.product(self.canvases, self.multi_scale)
        return tuple(dict.fromkeys(scaled(*pair) for pair in every))

    def _require(self, name: str, right: bool, allowed: str) -> None:
        if not right:
            raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {allowed}")


def require_numbers(config: Any) -> None:
    """For a config's checks of itself, before it compares its numbers with anything.

    Raises:
      ValueError: unless those of a dataclass are whole where its field says `int` and
        finite where it says `float`, in tuples too, naming the field.
    """
    for field in dataclasses.fields(config):
        value, kinds = getattr(config, field.name), _kinds(field.type)
        if int in kinds:
            allowed, kind = "whole", numbers.Integral
        elif float in kinds:
            allowed, kind = "finite", numbers.Real
        else:
            continue
        if value is None and type(None) in kinds:
            continue
        if not all(isinstance(x, kind) and math.isfinite(x) for x in _leaves(value)):
            several = isinstance(value, tuple | list)
            allowed = f"{allowed} numbers" if several else f"a {allowed} number"
            raise ValueError(f"{field.name} is {value!r}; it must be {allowed}")


def _kinds(annotation: Any) -> set:
    """`tuple[int, int] | None` -> `{int, type(None)}`."""
    inner = typing.get_args(annotation)
    return set().union(*map(_kinds, inner)) if inner else {annotation}


def _leaves(value: Any) -> list:
    """`((1, 2), (3, 4))` -> `[1, 2, 3, 4]`."""
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def scaled(canvas: tuple[int, int], factor: float) -> tuple[int, int]:
    """What a canvas becomes by a factor of `InputConfig.multi_scale`."""
    if factor == 1:
        return canvas
    height, width = (max(32, 32 * round(side * factor / 32)) for side in canvas)
    return height, width


def check(
    data_set: DataSet,
    config: InputConfig,
    *,
    batch_size: int,
    devices: int = 1,
) -> None:
    """Finds, before training, what would stop it later. Reads no pixels.

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
    counts = _object_counts(data_set)
    if config.too_many_objects == "error" and counts.max() > config.max_objects:
        fullest = int(counts.argmax())
        raise DataError(
            f"data set {data_set.name!r}: image {data_set.image_ids[fullest]!r} has "
            f"{counts[fullest]} objects, more than max_objects={config.max_objects}; "
            f'set max_objects={counts[fullest]} or too_many_objects="drop"'
        )
    _check_proposals(data_set, config)
    if config.mask_size and data_set.read_masks is None:
        raise DataError(
            f"data set {data_set.name!r} has no masks, but mask_size is "
            f"{config.mask_size}; load it with them (jaxdet.data.coco.load, "
            "masks=True; experiments.prepare --masks) or set mask_size=0"
        )


def steps_per_epoch(data_set: DataSet, config: InputConfig, batch_size: int) -> int:
    """How many batches show every image at least once; the same in every epoch.

    Args:
      data_set: whose images; none is read.
      config: its canvases, as a batch holds images of one of them.
      batch_size: images a step, over all hosts.
    """
    members = _members_by_canvas(data_set, config)
    return sum(-(-len(group) // batch_size) for group in members)


def plan_epoch(
    data_set: DataSet, config: InputConfig, batch_size: int, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which images each batch of an epoch holds: a pure function of its arguments.

    The images of a canvas are shuffled and cut into batches; their last batch is filled
    up with the first images of the same shuffle. So every image is seen at least once,
    and only where a canvas has fewer images than a batch is one seen twice in a batch.
    Batches of all canvases are then shuffled together.

    Args:
      data_set: whose images; none is read.
      config: its canvases and their factors.
      batch_size: B, images a step, over all hosts.
      seed: of the run, at least 0.
      epoch: from 0 on; each is shuffled anew.

    Returns:
      Positions in the data set `[steps, B]`, and canvases `[steps]` as indices into
      `config.canvases`, both int; and the factors of the canvases `[steps]`.
    """
    stream = np.random.SeedSequence(seed, spawn_key=(epoch,))
    rng = np.random.default_rng(stream)
    positions, canvases = [], []
    for canvas, members in enumerate(_members_by_canvas(data_set, config)):
        steps = -(-len(members) // batch_size)
        positions.append(np.resize(rng.permutation(members), (steps, batch_size)))
        canvases.append(np.full(steps, canvas))
    order = rng.permutation(sum(map(len, canvases)))
    factors = rng.choice(config.multi_scale, len(order))
    return np.concatenate(positions)[order], np.concatenate(canvases)[order], factors


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
    place: Callable[[Batch], Any] | None = None,
) -> Iterator[Any]:
    """Augmented batches of steps `start`, `start + 1`, ..., endless if `stop` is None.

    Args:
      data_set: see `DataSet`.
      config: see `InputConfig`.
      batch_size: images a step, over all hosts.
      seed: of order and augmentation, at least 0.
      start: first step; what comes is what an unbroken run gives from that step on.
      stop: the step before which to end.
      process: which of the hosts this is; it gets its contiguous share of each batch.
      processes: how many hosts share a batch.
      place: what else the threads do with each batch, such as sending it to the devices
        (`jaxdet.parallel.shard_to_devices`); its answer comes instead of the batch.

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
    members = _members_by_canvas(data_set, config)
    read = functools.partial(_read, data_set, config, set())
    share = batch_size // processes

    def training_batch(step: int) -> Any:
        epoch, row = divmod(step, steps)
        positions, canvases, factors = plan(epoch)
        others = members[canvases[row]]
        canvas = scaled(config.canvases[canvases[row]], factors[row])
        batch = _padding_batch(share, canvas, config, masks=config.mask_size > 0)
        for slot in range(share):
            slot_of_all = process * share + slot
            rng = np.random.default_rng([seed, step, slot_of_all])
            flip = rng.random() < config.flip
            planned = positions[row, slot_of_all]
            change = functools.partial(_augmented, rng, config, canvas, flip)
            try:
                position, image = _first_readable(read, planned, others, rng)
                _put(batch, slot, data_set, position, image, change)
            except Exception as error:
                name = data_set.image_ids[planned]
                error.add_note(f"while preparing image {name!r} for step {step + 1}")
                raise
        return batch if place is None else place(batch)

    return _prepared_ahead(training_batch, start, stop, config)


def evaluation_batches(
    data_set: DataSet,
    config: InputConfig,
    *,
    batch_size: int,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """Every image once, as it is, canvas by canvas in the order of the data set.

    The last batch of each canvas is filled up with padding images: black, as large as
    the canvas, of scale 1, without objects, and of id -1. An unreadable image that
    `config` says to skip becomes one of them too. Of too many objects the largest are
    kept, always: metrics take theirs from `DataSet.ground_truth`, not from here; and
    there are no masks, which would cost time for nothing.

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
        (canvas, members[first : first + batch_size])
        for canvas, members in zip(
            config.canvases, _members_by_canvas(data_set, config), strict=True
        )
        for first in range(0, len(members), batch_size)
    ][process::processes]
    read = functools.partial(_read, data_set, config, set())

    def evaluation_batch(step: int) -> Batch:
        canvas, positions = batches[step]
        batch = _padding_batch(batch_size, canvas, config, masks=False)
        for slot, position in enumerate(positions):
            image = read(position)
            if image is not None:
                fit = functools.partial(_fitted, config, canvas)
                _put(batch, slot, data_set, position, image, fit)
        return batch

    return _prepared_ahead(evaluation_batch, 0, len(batches), config)


def _prepared_ahead(
    batch_of: Callable[[int], Any], start: int, stop: int | None, config: InputConfig
) -> Iterator[Any]:
    """`batch_of(start)`, `batch_of(start + 1)`, ..., computed ahead by threads."""
    import grain

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
    slots = (count, config.max_objects)
    cells = (*slots, config.mask_size, config.mask_size)
    region_slots = (count, config.max_regions)
    return Batch(
        images=np.zeros(
            (count, *canvas, 3), np.float32 if config.fractions else np.uint8
        ),
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
        regions=Regions(
            boxes=np.zeros((*region_slots, 4), np.float32),
            scores=np.zeros(region_slots, np.float32),
            valid=np.zeros(region_slots, bool),
        )
        if config.max_regions
        else None,
    )


def _first_readable(
    read: Callable[[int], np.ndarray | None],
    planned: int,
    others: np.ndarray,
    rng: np.random.Generator,
) -> tuple[int, np.ndarray]:
    """The planned image and its position, or if it is to be skipped, another's.

    The order in which the others are tried is drawn anew, and not only from those that
    `read` has not failed on yet: it must not depend on the steps before.
    """
    image = read(planned)
    if image is not None:
        return planned, image
    for position in rng.permutation(others):
        image = read(position)
        if image is not None:
            return position, image
    raise DataError(f"none of the {len(others)} images of one canvas can be read")


def _read(
    data_set: DataSet, config: InputConfig, unreadable: set[int], position: int
) -> np.ndarray | None:
    """The pixels of an image; None, and a warning, for one to be skipped.

    Those to be skipped are put into `unreadable`, and not read again.
    """
    if position in unreadable:
        return None
    try:
        image = data_set.read_image(position)
        size = tuple(data_set.sizes[position].tolist())
        if image.shape != (*size, 3):
            raise DataError(
                f"data set {data_set.name!r}: the pixels of image "
                f"{data_set.image_ids[position]!r} have shape {image.shape}, but its "
                f"annotation says {(*size, 3)}"
            )
    except DataError as error:
        if config.unreadable_images == "error":
            raise
        if position not in unreadable:  # another thread may have been faster
            unreadable.add(position)
            _LOG.warning("unreadable images so far: %d; %s", len(unreadable), error)
        if len(unreadable) > config.max_unreadable * len(data_set):
            raise DataError(
                f"data set {data_set.name!r}: {len(unreadable)} of {len(data_set)} "
                "images could not be read, a greater share than "
                f"max_unreadable={config.max_unreadable}; the last: {error}"
            ) from error
        return None
    return image


def _put(
    batch: Batch,
    slot: int,
    data_set: DataSet,
    position: int,
    image: np.ndarray,
    change: Callable,
) -> None:
    """Puts one image and all that is known of it into a slot that was padding.

    `change` is from `transforms.Example` to another, with all of its regions, and to
    the (height, width) that its image is to have on the canvas.
    """
    from jaxdet.data import transforms

    truth, regions = batch.truth, batch.regions
    objects = data_set.objects[position]
    kept = _largest(objects.boxes, truth.valid.shape[1])
    example = transforms.Example(image, *(values[kept] for values in objects))
    if truth.masks is not None:
        masks = data_set.read_masks(position, truth.masks.shape[-1])
        example = example._replace(masks=masks[kept])
    if regions is not None:
        best, scores = (
            values[: regions.valid.shape[1]] for values in data_set.proposals[position]
        )
        example = example._replace(regions=best)
    example, size = change(example)
    batch.sizes[slot] = size
    example, batch.scales[slot] = transforms.resize_to_canvas(
        example, size, stretch=True, out=batch.images[slot]
    )
    batch.image_ids[slot] = position
    count = len(example.boxes)
    truth.boxes[slot, :count] = example.boxes
    truth.labels[slot, :count] = example.labels
    truth.crowd[slot, :count] = example.crowd
    truth.valid[slot, :count] = True
    if truth.masks is not None:
        truth.masks[slot, :count] = example.masks
    if regions is not None:
        # A crop leaves those outside it without area.
        left = np.all(example.regions[:, 2:] > example.regions[:, :2], axis=1)
        regions.boxes[slot, : left.sum()] = example.regions[left]
        regions.scores[slot, : left.sum()] = scores[left]
        regions.valid[slot, : left.sum()] = True


def _fitted(config: InputConfig, canvas: tuple[int, int], example):
    """An image as it is, and the (height, width) it gets on its canvas."""
    from jaxdet.data import transforms

    return example, transforms.fitted_size(
        example.image.shape[:2], canvas, stretch=config.stretch, sides=config.sides
    )


def _augmented(
    rng: np.random.Generator,
    config: InputConfig,
    canvas: tuple[int, int],
    flip: bool,
    example,
):
    """A changed training image, and the (height, width) it gets on its canvas."""
    from jaxdet.data import augmentation, transforms

    for probability, change in (
        (config.distort_colours, augmentation.distort_colours),
        (config.expand, augmentation.expand),
        (config.crop, augmentation.crop),
        (config.random_crop, augmentation.random_crop),
    ):
        if rng.random() < probability:
            example = change(rng, example)
    if flip:
        example = transforms.flip_horizontally(example)
    if config.scale_jitter == (1.0, 1.0):
        return _fitted(config, canvas, example)
    return augmentation.jitter_scale(
        rng, example, canvas, factors=config.scale_jitter, stretch=config.stretch
    )


def _largest(boxes: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` boxes of largest area, in the order they had."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    return np.sort(np.argsort(-width * height, kind="stable")[:count])


def _members_by_canvas(data_set: DataSet, config: InputConfig) -> list[np.ndarray]:
    """The positions of the images of each canvas."""
    from jaxdet.data import transforms

    canvas = transforms.canvas_of_each(
        data_set.sizes, config.canvases, sides=config.sides
    )
    return [np.flatnonzero(canvas == i) for i in range(len(config.canvases))]


def _check_proposals(data_set: DataSet, config: InputConfig) -> None:
    if config.max_regions and data_set.proposals is None:
        raise DataError(
            f"data set {data_set.name!r} has no region proposals, but max_regions is "
            f"{config.max_regions}; make them (jaxdet.data.proposals."
            "with_selective_search), read them (jaxdet.data.proposals.load) or set "
            "max_regions=0"
        )


def _object_counts(data_set: DataSet) -> np.ndarray:
    return np.array([len(objects.labels) for objects in data_set.objects])


def _warn_of_dropped_objects(data_set: DataSet, config: InputConfig) -> None:
    excess = np.maximum(_object_counts(data_set) - config.max_objects, 0)
    if excess.any():
        _LOG.warning(
            "data set %r: %d images have more than %d objects; their %d smallest are "
            "left out of training",
            data_set.name,
            np.count_nonzero(excess),
            config.max_objects,
            excess.sum(),
        )


_LOG = logging.getLogger(__name__)
