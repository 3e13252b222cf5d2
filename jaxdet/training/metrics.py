"""Reads the metrics of steps at every log line, and checks them for NaN."""

import itertools
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from jaxdet import parallel
from jaxdet.data.dataset import DataSet
from jaxdet.structs import Batch
from jaxdet.training.config import TrainingConfig
from jaxdet.training.optimizer import learning_rate_schedule

STEPS_AHEAD = 2  # queued on the devices: they never wait, and batches do not pile up


class NonFiniteLossError(ArithmeticError):
    """A loss term is NaN or infinite; no checkpoint holds anything of that step."""


class _Entry(NamedTuple):
    step: int
    image_ids: np.ndarray  # positions in the data set
    metrics: dict[str, jax.Array]


class RecentMetrics:
    """The metrics since the last log line, kept on the devices, and their time."""

    def __init__(self, data_set: DataSet, config: TrainingConfig):
        self._data_set = data_set
        self._batch_size = config.batch_size
        self._schedule = learning_rate_schedule(config)
        self._entries: list[_Entry] = []
        self._waited = 0.0
        self._since = time.perf_counter()

    def next_batch(self, batches: Iterator[tuple[Batch, Batch]]) -> tuple[Batch, Batch]:
        """Takes the next batch, and adds the time spent waiting to "data_time"."""
        before = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - before
        return batch

    def add(self, step: int, image_ids: np.ndarray, metrics: dict) -> None:
        """Keeps a step's metrics; waits for those of two steps ago, not for these.

        Args:
          step: after which they are.
          image_ids: `[B]`, this host's positions in the data set, for errors to name.
          metrics: scalars by name, still on the devices.
        """
        self._entries.append(_Entry(step, image_ids, metrics))
        if len(self._entries) > STEPS_AHEAD:
            jax.block_until_ready(self._entries[-1 - STEPS_AHEAD].metrics)

    def leave_out(self, seconds: float) -> None:
        """Takes a compilation out of the time that the steps have taken."""
        self._since += seconds

    def read(self) -> dict[str, float]:
        """Returns means, "learning_rate", "images_per_second" and "data_time".

        The last is the fraction of the time, since this was made and without
        compilations, spent on waiting.

        Raises:
          NonFiniteLossError: for the first step that has a NaN or infinity.
        """
        metrics = jax.device_get([entry.metrics for entry in self._entries])
        seconds = time.perf_counter() - self._since
        for entry, values in zip(self._entries, metrics, strict=True):
            self._require_finite(entry, values)
        means = {
            name: float(np.mean([values[name] for values in metrics]))
            for name in metrics[0]
        }
        return means | {
            "learning_rate": float(self._schedule(self._entries[-1].step - 1)),
            "images_per_second": len(metrics) * self._batch_size / seconds,
            "data_time": self._waited / seconds,
        }

    def _require_finite(self, entry: _Entry, values: dict[str, np.ndarray]) -> None:
        wrong = [name for name in values if not np.isfinite(values[name])]
        totals = ("loss", "gradient_norm")
        terms = [name for name in wrong if name not in totals] or wrong
        if terms:
            named = ", ".join(f"{name} is {values[name]}" for name in terms)
            hosts = parallel.gather(entry.image_ids.tolist())
            ids = [self._data_set.image_ids[i] for i in itertools.chain(*hosts)]
            raise NonFiniteLossError(
                f"{named} at step {entry.step}, images {ids}; nothing of it was saved. "
                "A lower learning rate, more warm-up or clip_norm may help"
            )
