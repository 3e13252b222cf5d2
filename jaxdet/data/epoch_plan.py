"""Plans which image is in which batch."""

import numpy as np

from jaxdet.data import transforms
from jaxdet.data.dataset import DataSet
from jaxdet.data.input_config import InputConfig


def steps_per_epoch(data_set: DataSet, config: InputConfig, batch_size: int) -> int:
    """Counts the batches that show every image at least once, the same in every epoch.

    Args:
      data_set: whose images; none is read.
      config: its canvases, as a batch holds images of one of them.
      batch_size: images a step, over all hosts.

    Returns:
      The number of batches.
    """
    groups = positions_by_canvas(data_set, config)
    return sum(-(-len(group) // batch_size) for group in groups)


def plan_epoch(
    data_set: DataSet, config: InputConfig, batch_size: int, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decides which images each batch of an epoch holds: a pure function.

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
    for canvas, group in enumerate(positions_by_canvas(data_set, config)):
        steps = -(-len(group) // batch_size)
        positions.append(np.resize(rng.permutation(group), (steps, batch_size)))
        canvases.append(np.full(steps, canvas))
    order = rng.permutation(sum(map(len, canvases)))
    factors = rng.choice(config.multi_scale, len(order))
    return np.concatenate(positions)[order], np.concatenate(canvases)[order], factors


def positions_by_canvas(data_set: DataSet, config: InputConfig) -> list[np.ndarray]:
    """Groups images by the canvas that they go to.

    Returns:
      The positions in the data set of the images of each of `config.canvases`, rising.
    """
    canvas = transforms.assign_canvases(
        data_set.sizes, config.canvases, min_max_size=config.min_max_size
    )
    return [np.flatnonzero(canvas == i) for i in range(len(config.canvases))]
