"""Several processes, each with devices of its own, as one run; the docs say "hosts"."""

import contextlib
import importlib.util
import os
import pickle
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Makes this process one of those of a run, before anything touches a device.

    Without arguments TPU pods are asked, and SLURM for a step of several tasks, where
    JAX gives each task one GPU; where there is neither, the process stays alone.

    Args:
      coordinator: "host:port" of the first process, where all of them meet.
      processes: how many there are; of 1 nobody is asked.
      process: which of them this is, from 0.

    Raises:
      ValueError: if only some of the arguments are given, or `process` is none of
        them.
    """
    if processes == 1:
        return
    given = (coordinator, processes, process)
    if given != (None, None, None):
        if None in given or not 0 <= process < processes:
            raise ValueError(
                f"coordinator {coordinator}, processes {processes}, process {process}; "
                "several processes need all three, process from 0 to processes - 1"
            )
        jax.distributed.initialize(*given, cluster_detection_method="deactivate")
    elif "SLURM_STEP_NODELIST" in os.environ and os.environ["SLURM_NTASKS"] != "1":
        jax.distributed.initialize(cluster_detection_method="slurm")
    elif importlib.util.find_spec("libtpu"):
        with contextlib.suppress(ValueError):  # installed where there is no TPU
            jax.distributed.initialize()


def gather(value: Any) -> list[Any]:
    """What each host has, in their order, on every host; all of them must call this.

    Args:
      value: anything that can be pickled, to less than 2 GB.
    """
    if jax.process_count() == 1:
        return [value]
    data = _pickled(value)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.pad(data, (0, sizes.max() - len(data)))
    rows = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:size]) for row, size in zip(rows, sizes, strict=True)]


def from_first(value: Any) -> Any:
    """What the first host has, bit for bit, on every host; all of them must call this.

    Args:
      value: anything that can be pickled, to less than 2 GB; the others' is ignored.
    """
    if jax.process_count() == 1:
        return value
    data = _pickled(value)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    return pickle.loads(multihost_utils.broadcast_one_to_all(np.resize(data, size)))


def _pickled(value: Any) -> np.ndarray:
    return np.frombuffer(pickle.dumps(value), np.uint8)
