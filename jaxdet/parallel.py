"""Several processes, each with devices of its own, as one run; the docs say "hosts"."""

import contextlib
import importlib.util
import os
import pickle
from collections.abc import Callable
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
    JAX gives each task one GPU; where there is neither, the process stays alone. A step
    has `$SLURM_STEP_NUM_TASKS` tasks; where that is not set, `$SLURM_NTASKS`, or one.

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
    elif "SLURM_STEP_NODELIST" in os.environ and (tasks := _slurm_tasks()) != "1":
        os.environ["SLURM_NTASKS"] = tasks  # JAX reads this, which may be the job's
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


def require_same(values: Callable[[], dict[str, Any]]) -> None:
    """Refuses hosts that would train different things; all of them must call this.

    Args:
      values: makes what must be the same, by name; not called where there is one host.

    Raises:
      ConfigError: on every host, naming what differs, and the values.
    """
    if jax.process_count() == 1:
        return
    from jaxdet.training.config import ConfigError

    first, *others = gather(values())
    different = [
        f"{name}: {first.get(name, 'absent')!r} on host 0, "
        f"{other.get(name, 'absent')!r} on host {host}"
        for host, other in enumerate(others, 1)
        for name in sorted(first.keys() | other.keys())
        if first.get(name) != other.get(name)
    ]
    if different:
        raise ConfigError(
            "the hosts of a run must have the same config, data and parameters; "
            "different are:\n  " + "\n  ".join(different[:20])
        )


def _slurm_tasks() -> str:
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS")
    return tasks or os.environ.get("SLURM_NTASKS", "1")


def _pickled(value: Any) -> np.ndarray:
    return np.frombuffer(pickle.dumps(value), np.uint8)
