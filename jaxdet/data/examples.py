"""Loads the examples of a data set, each by itself or joined with others."""

import logging

import numpy as np

from jaxdet.data import mixing
from jaxdet.data.dataset import DataError, DataSet
from jaxdet.data.input_config import InputConfig
from jaxdet.data.transforms import Example, select_objects

logger = logging.getLogger(__name__)

_PASTED_CELLS = 112  # a side of the masks by which objects are cut out, at least


class ExampleLoader:
    """Loads examples; those that are to be skipped are not read again."""

    def __init__(self, data_set: DataSet, config: InputConfig):
        """Reads nothing yet.

        Args:
          data_set: whose images.
          config: says what an example holds, and what is done about unreadable ones.
        """
        self._data_set, self._config = data_set, config
        self._unreadable: set[int] = set()

    def load(self, position: int, *, mask_size: int = 0) -> Example | None:
        """Loads an image with as many of its annotations as there are slots for.

        Args:
          position: in the data set.
          mask_size: cells a side of the masks; 0: none.

        Returns:
          The example; None, with a warning, for one to be skipped.

        Raises:
          DataError: for an image that cannot be read and must not be skipped.
        """
        image = self._read(position)
        if image is None:
            return None
        data_set, config = self._data_set, self._config
        objects = data_set.objects[position]
        kept = _largest(objects.boxes, config.max_objects)
        example = Example(image, *(values[kept] for values in objects))
        if mask_size:
            assert data_set.read_masks is not None  # as `batching.check` has found
            masks = data_set.read_masks(position, mask_size)
            example = example._replace(masks=masks[kept])
        if config.max_regions:
            assert data_set.proposals is not None  # as `batching.check` has found
            boxes, scores = (
                values[: config.max_regions] for values in data_set.proposals[position]
            )
            example = example._replace(regions=boxes, region_scores=scores)
        return example

    def load_mixed(
        self,
        rng: np.random.Generator,
        planned: int,
        substitutes: np.ndarray,
        canvas: tuple[int, int],
    ) -> tuple[int, Example]:
        """Loads an example, and joins it with others where the config asks for it.

        Args:
          rng: draws whether, and the others from the whole data set.
          planned: position of the example in the data set.
          substitutes: positions of those to take if it is to be skipped.
          canvas: (height, width), for a mosaic.

        Returns:
          The position of the first example, and the example.

        Raises:
          DataError: as `load`, and if all substitutes are to be skipped.
        """
        config, images = self._config, len(self._data_set)
        joins, pastes = (
            share > 0 and rng.random() < share
            for share in (config.mosaic, config.copy_paste)
        )
        mask_size = config.mask_size
        if pastes:  # a multiple, of whose cells those of the batch are means
            finer = -(-_PASTED_CELLS // mask_size) if mask_size else _PASTED_CELLS
            mask_size = finer * max(mask_size, 1)

        def other() -> Example:
            drawn, anything = rng.integers(images), np.arange(images)
            return self._first_readable(rng, drawn, anything, mask_size)[1]

        position, example = self._first_readable(rng, planned, substitutes, mask_size)
        if joins:
            examples = [example, other(), other(), other()]
            example = mixing.mosaic(
                rng, examples, canvas, keep_aspect=config.keep_aspect
            )
        if pastes:
            example = mixing.copy_paste(rng, example, other())
            example = example._replace(masks=_pool(example.masks, config.mask_size))
        if joins or pastes:
            kept = _largest(example.boxes, config.max_objects)
            example = select_objects(example, kept)
        return position, example

    def _first_readable(
        self,
        rng: np.random.Generator,
        planned: int,
        substitutes: np.ndarray,
        mask_size: int,
    ) -> tuple[int, Example]:
        """Loads the planned image, or another if it is to be skipped.

        The order in which the others are tried is drawn anew, and not only from those
        that `_read` has not failed on yet: it must not depend on the steps before.
        """
        example = self.load(planned, mask_size=mask_size)
        if example is not None:
            return planned, example
        for position in rng.permutation(substitutes):
            example = self.load(position, mask_size=mask_size)
            if example is not None:
                return position, example
        raise DataError(
            f"data set {self._data_set.name!r}: none of the {len(substitutes)} images "
            "that are put on the same canvas can be read"
        )

    def _read(self, position: int) -> np.ndarray | None:
        """Reads an image's pixels; None, and a warning, for one to be skipped."""
        data_set, config = self._data_set, self._config
        if position in self._unreadable:
            return None
        try:
            return _read_checked(data_set, position)
        except DataError as error:
            if config.unreadable_images == "error":
                raise
            if position not in self._unreadable:  # another thread may have been faster
                self._unreadable.add(position)
                count = len(self._unreadable)
                logger.warning("unreadable images so far: %d; %s", count, error)
            if len(self._unreadable) > config.max_unreadable * len(data_set):
                raise DataError(
                    f"data set {data_set.name!r}: {len(self._unreadable)} of "
                    f"{len(data_set)} images could not be read, a greater share than "
                    f"max_unreadable={config.max_unreadable}; the last: {error}"
                ) from error
            return None


def _read_checked(data_set: DataSet, position: int) -> np.ndarray:
    image = data_set.read_image(position)
    shape = (*data_set.sizes[position].tolist(), 3)
    if image.shape != shape:
        raise DataError(
            f"data set {data_set.name!r}: the pixels of image "
            f"{data_set.image_ids[position]!r} have shape {image.shape}, but its "
            f"annotation says {shape}"
        )
    return image


def _largest(boxes: np.ndarray, count: int) -> np.ndarray:
    """Returns the indices, rising, of the `count` boxes of largest area."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    return np.sort(np.argsort(-width * height, kind="stable")[:count])


def _pool(masks: np.ndarray, mask_size: int) -> np.ndarray | None:
    """Averages the cells of masks `[N, M, M]` to fewer, or to none."""
    if not mask_size:
        return None
    finer = masks.shape[-1] // mask_size
    cells = masks.reshape(-1, mask_size, finer, mask_size, finer)
    return cells.mean(axis=(2, 4))
