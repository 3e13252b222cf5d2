"""Batches that are on the devices before their step begins."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdet.structs import Batch
from jaxdet.training.step import AXIS, shard


def on_devices(batch: Batch) -> tuple[Batch, Batch]:
    """Sends a batch to all devices of this host, without waiting until it is there.

    For `training_batches(place=on_devices)`: its threads send each batch as soon as it
    is made, while the devices are busy with others.

    Args:
      batch: NumPy arrays `[B, ...]`, which nobody may change any more; B is a multiple
        of the devices.

    Returns:
      The batch as it was; and as `make_train_step` takes it, `[devices, B / devices,
      ...]` with each part on its device.
    """
    mesh = Mesh(np.array(jax.local_devices()), AXIS)
    pieces = shard(batch, jax.local_device_count())
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    return batch, jax.device_put(pieces, sharding)
