"""One update of a detector: on one device, or on all of them by `jax.pmap`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdet.detectors.detector import Detector
from jaxdet.structs import Batch
from jaxdet.training.config import TrainingConfig
from jaxdet.training.optimizer import combine, make_optimizer, partition

AXIS = "devices"


@flax.struct.dataclass
class TrainState:
    """All that changes during a run; no leaf has a device axis."""

    step: jax.Array  # [] int32, updates made so far
    variables: dict[str, Any]  # "params", and collections that training never changes
    opt_state: optax.OptState  # of the parameters that are not frozen


def create_state(
    detector: Detector,
    config: TrainingConfig,
    batch: Batch,
    *,
    pretrained: Callable[[dict], dict] | None = None,
) -> TrainState:
    """The state before the first step; works under `jax.eval_shape` too.

    Args:
      detector: what to train.
      config: the seed of the parameters, the optimizer and what is frozen.
      batch: any batch; only its canvas matters.
      pretrained: from fresh variables to those to start from.

    Raises:
      ValueError: if `config.frozen` does not fit the parameters.
    """
    variables = jax.jit(detector.init)(jax.random.key(config.seed), batch)
    if pretrained is not None:
        variables = pretrained(variables)
    trainable, _ = partition(variables["params"], config.frozen)
    opt_state = jax.jit(make_optimizer(config).init)(trainable)
    return TrainState(jnp.zeros((), jnp.int32), dict(variables), opt_state)


def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    detector: Detector,
    optimizer: optax.GradientTransformation,
    frozen: tuple[str, ...] = (),
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update by the mean gradient over all devices.

    Args:
      state: before the step.
      batch: this device's images.
      key: of the run; the step's own key is derived from it and `state.step`.
      detector: its loss is differentiated with respect to the trainable parameters.
      optimizer: from `make_optimizer`.
      frozen: see `partition`.
      axis_name: of the mapped axis; None: this device is alone.

    Returns:
      The state after the step, and float32 scalars: the detector's metrics, "loss" and
      "gradient_norm" (before clipping), each the mean over the devices.
    """
    trainable, still = partition(state.variables["params"], frozen)
    key = jax.random.fold_in(key, state.step)

    def loss(trainable):
        variables = {**state.variables, "params": combine(trainable, still)}
        return detector.loss(variables, batch, key, axis_name=axis_name)

    (total, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(trainable)
    metrics = {**metrics, "loss": total}
    if axis_name is not None:
        gradients, metrics = jax.lax.pmean((gradients, metrics), axis_name)
    metrics["gradient_norm"] = optax.global_norm(gradients)
    updates, opt_state = optimizer.update(gradients, state.opt_state, trainable)
    parameters = combine(optax.apply_updates(trainable, updates), still)
    variables = {**state.variables, "params": parameters}
    return TrainState(state.step + 1, variables, opt_state), metrics


def make_train_step(detector: Detector, config: TrainingConfig) -> Callable:
    """`train_step` for all devices at once: `(state, batch, key) -> (state, metrics)`.

    The state comes from `replicate`, the batch from `shard`. The state given is
    donated: its arrays are deleted, and the answer takes their memory.
    """
    step = partial(
        train_step,
        detector=detector,
        optimizer=make_optimizer(config),
        frozen=config.frozen,
        axis_name=AXIS,
    )
    # An answer with out_axes=None is silently that of the first device, so whatever
    # leaves `train_step` must be the same on all: hence its pmean of every metric.
    return jax.pmap(
        step, AXIS, in_axes=(None, 0, None), out_axes=(None, None), donate_argnums=0
    )


def replicate(state: TrainState) -> TrainState:
    """The state on every device of this host, as `make_train_step` answers it.

    Without it the second step would be compiled anew, for its differently placed state.
    """
    mesh = Mesh(np.array(jax.local_devices()), AXIS)
    return jax.device_put(state, NamedSharding(mesh, PartitionSpec()))


def shard(batch: Batch, devices: int) -> Batch:
    """From `[B, ...]` to `[devices, B / devices, ...]` in every array."""
    return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)
