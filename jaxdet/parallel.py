"""Runs functions on all devices and hosts: the one pmap, sharding, agreement.

A host is one process with devices of its own; several of them can share one run.
"""

import contextlib
import importlib.util
import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdet.config import ConfigError

AXIS = "devices"  # name of the mapped axis, for `jax.lax.pmean`

Tree = TypeVar("Tree")


def pmap(
    function: Callable,
    *,
    in_axes: Sequence[int | None],
    out_axes: Any,
    donate_argnums: int | tuple[int, ...] = (),
    devices: Sequence[jax.Device] | None = None,
) -> Callable:
    """Returns a function mapped over devices; nothing else here calls `jax.pmap`.

    A result with an out axis of None is silently that of the first device, so the
    function must make it the same on all of them, for example with `jax.lax.pmean`.

    Args:
      function: compiled once for each shape of its arguments, however often it is
        mapped.
      in_axes: for each argument, 0 for what `shard` split and None for what
        `replicate` copied.
      out_axes: for the results, 0 or None likewise.
      donate_argnums: arguments whose memory the results may take.
      devices: those to use; all of all hosts by default.
    """
    options = {"in_axes": in_axes, "out_axes": out_axes}
    return jax.pmap(
        function, AXIS, devices=devices, donate_argnums=donate_argnums, **options
    )


def replicate(arrays: Tree) -> Tree:
    """Copies arrays to every device of this host, as `pmap` returns replicated ones.

    Without it the second step would be compiled again, for a state placed differently.
    """
    return jax.device_put(arrays, _sharding())


def shard(arrays: Tree) -> Tree:
    """Splits arrays `[B, ...]` into `[devices, B / devices, ...]`, for this host."""
    devices = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), arrays)


def shard_to_devices(arrays: Tree) -> tuple[Tree, Tree]:
    """Sends NumPy arrays `[B, ...]` to the devices without waiting for the transfer.

    The threads that make batches call it, so that each batch is on the devices before
    its step begins. The arrays must not be changed any more.

    Returns:
      The arrays as they were, and `[devices, B / devices, ...]`, each part on its
      device.
    """
    return arrays, jax.device_put(shard(arrays), _sharding(AXIS))


def to_host(arrays: Tree) -> Tree:
    """Copies `[devices, B / devices, ...]` on devices to NumPy arrays `[B, ...]`."""
    return jax.tree.map(np.concatenate, jax.device_get(arrays))


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Makes this process one of the hosts of a run, before anything touches a device.

    Without arguments it asks TPU pods, and SLURM for a step of several tasks, where JAX
    gives each task one GPU; where there is neither, the process runs alone.

    Args:
      coordinator: "host:port" of the first process, where all of them meet.
      processes: how many there are; with 1 nothing is asked.
      process: which of them this is, from 0.

    Raises:
      ValueError: if only some of the arguments are given, or `process` is not one of
        the processes.
    """
    if processes == 1:
        return
    arguments = (coordinator, processes, process)
    if arguments != (None, None, None):
        if None in arguments or not 0 <= process < processes:
            raise ValueError(
                f"coordinator {coordinator}, processes {processes}, process {process}; "
                "several processes need all three, process from 0 to processes - 1"
            )
        jax.distributed.initialize(*arguments, cluster_detection_method="deactivate")
    elif "SLURM_STEP_NODELIST" in os.environ and (tasks := _slurm_tasks()) != "1":
        os.environ["SLURM_NTASKS"] = tasks  # JAX reads this, which may be the job's
        jax.distributed.initialize(cluster_detection_method="slurm")
    elif importlib.util.find_spec("libtpu"):
        with contextlib.suppress(ValueError):  # installed where there is no TPU
            jax.distributed.initialize()


def gather(value: Any) -> list[Any]:
    """Returns the values of all hosts, in their order; all hosts must call this.

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
    """Returns the first host's value, bit for bit; all hosts must call this.

    Args:
      value: anything that can be pickled, to less than 2 GB; that of other hosts is
        ignored.
    """
    if jax.process_count() == 1:
        return value
    data = _pickled(value)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    return pickle.loads(multihost_utils.broadcast_one_to_all(np.resize(data, size)))


def require_same(values: Callable[[], dict[str, Any]]) -> None:
    """Refuses hosts that would train different things; all hosts must call this.

    Args:
      values: returns what must be the same, by name; not called with a single host.

    Raises:
      ConfigError: on every host, naming what differs, and the values.
    """
    if jax.process_count() == 1:
        return
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


def _sharding(*axes: str) -> NamedSharding:
    mesh = Mesh(np.array(jax.local_devices()), AXIS)
    return NamedSharding(mesh, PartitionSpec(*axes))


def _slurm_tasks() -> str:
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS")
    return tasks or os.environ.get("SLURM_NTASKS", "1")


def _pickled(value: Any) -> np.ndarray:
    return np.frombuffer(pickle.dumps(value), np.uint8)
