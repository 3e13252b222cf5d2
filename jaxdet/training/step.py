"""Updates a detector once: on one device, or on all of them."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxdet import parallel
from jaxdet.detectors.detector import Detector
from jaxdet.structs import Batch
from jaxdet.training.config import TrainingConfig
from jaxdet.training.optimizer import combine, make_optimizer, partition


@flax.struct.dataclass
class TrainState:
    """All that changes during a run; no leaf has a device axis."""

    step: jax.Array  # [] int32, updates made so far
    variables: dict[str, Any]  # "params", and collections that training never changes
    opt_state: optax.OptState  # of the parameters that are not frozen
    # With `ema_decay`, the parameters that the optimizer updates, by path; those in
    # `variables`, which are evaluated, are their moving average.
    online_params: dict[str, jax.Array] = flax.struct.field(default_factory=dict)


def create_state(
    detector: Detector,
    config: TrainingConfig,
    batch: Batch,
    *,
    pretrained: Callable[[dict], dict] | None = None,
) -> TrainState:
    """Returns the state before the first step; works under `jax.eval_shape` too.

    Args:
      detector: what to train.
      config: the seed, the optimizer, what is frozen and whether there is an average.
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
    online = {}
    if config.ema_decay is not None:
        online = jax.tree.map(jnp.copy, trainable)  # an array is donated only once
    return TrainState(jnp.zeros((), jnp.int32), dict(variables), opt_state, online)


def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    detector: Detector,
    config: TrainingConfig,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Makes one update by the mean gradient over devices and over parts of the batch.

    With `config.accumulation_steps` A, part i is every A-th image from the i-th on, so
    that it holds the same images however many devices share them. Each part's loss
    counts its own positives, on all devices; the update is that of the mean of these
    losses.

    Args:
      state: before the step.
      batch: this device's images.
      key: of the run; the step's own key is derived from it and `state.step`.
      detector: its loss is differentiated with respect to the trainable parameters.
      config: the optimizer, what is frozen, the parts and the average.
      axis_name: of the mapped axis; None: this device is alone.

    Returns:
      The state after the step, and float32 scalars: the detector's metrics, "loss" and
      "gradient_norm" (before clipping), each the mean over devices and parts.
    """
    compute = partial(
        _gradients,
        state,
        key=key,
        detector=detector,
        config=config,
        axis_name=axis_name,
    )
    gradients, metrics = _mean_of_parts(compute, batch, config.accumulation_steps)
    if axis_name is not None:
        gradients, metrics = jax.lax.pmean((gradients, metrics), axis_name)
    metrics["gradient_norm"] = optax.global_norm(gradients)
    average, frozen = partition(state.variables["params"], config.frozen)
    trainable = state.online_params or average
    optimizer = make_optimizer(config)
    updates, opt_state = optimizer.update(gradients, state.opt_state, trainable)
    trainable, online = optax.apply_updates(trainable, updates), {}
    if config.ema_decay is not None:
        # At first over fewer steps, so that the random start is soon forgotten.
        decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))
        online = trainable
        trainable = optax.incremental_update(trainable, average, 1 - decay)
    variables = {**state.variables, "params": combine(trainable, frozen)}
    return TrainState(state.step + 1, variables, opt_state, online), metrics


def _gradients(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    detector: Detector,
    config: TrainingConfig,
    axis_name: str | None = None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Returns the trainable parameters' gradients, by path, and metrics with "loss"."""
    trainable, frozen = partition(state.variables["params"], config.frozen)
    key = jax.random.fold_in(key, state.step)

    def loss(trainable):
        variables = {**state.variables, "params": combine(trainable, frozen)}
        total, metrics = detector.loss(variables, batch, key, axis_name=axis_name)
        return total, {**metrics, "loss": total}

    return jax.grad(loss, has_aux=True)(state.online_params or trainable)


def _mean_of_parts(compute: Callable, batch: Batch, parts: int) -> Any:
    """Averages what `compute` returns for parts of a batch, one after the other."""
    if parts == 1:
        return compute(batch)
    split = jax.tree.map(
        lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch
    )
    first = jax.tree.map(lambda x: x[0], split)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(compute, first))
    # Unrolled, it would save no memory: XLA then keeps what all parts need at once.
    total, _ = jax.lax.scan(
        lambda total, part: (jax.tree.map(jnp.add, total, compute(part)), None),
        zeros,
        split,
    )
    return jax.tree.map(lambda x: x / parts, total)


def gradient_flops(
    detector: Detector, config: TrainingConfig, state: TrainState, batch: Batch
) -> float:
    """Returns the floating point operations of loss and gradients, for one image.

    XLA counts them before it optimizes; nothing is compiled or run. What a loop repeats
    is counted once, and on CPUs large convolutions need fewer
    (`nn/cpu_convolution.py`). The result is NaN where XLA does not count.

    Args:
      detector: what is trained.
      config: what is frozen.
      state: any, or its shapes.
      batch: any, or its shapes; only its canvas matters.
    """
    image = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), batch
    )
    key = jax.eval_shape(jax.random.key, config.seed)
    compute = jax.jit(partial(_gradients, detector=detector, config=config))
    cost = compute.lower(state, image, key).cost_analysis() or {}
    return cost.get("flops", math.nan)


def make_train_step(
    detector: Detector,
    config: TrainingConfig,
    devices: Sequence[jax.Device] | None = None,
) -> Callable:
    """Makes `train_step` for all devices: `(state, batch, key) -> (state, metrics)`.

    The state comes from `parallel.replicate`, the batch from `parallel.shard`. The
    given state is donated: its arrays are deleted, and the new one takes their memory.

    Args:
      detector: what is trained.
      config: of the training.
      devices: those to use, which may be of a topology that is only compiled for; all
        of all hosts by default.
    """
    step = partial(
        train_step, detector=detector, config=config, axis_name=parallel.AXIS
    )
    return parallel.pmap(
        step,
        in_axes=(None, 0, None),
        out_axes=(None, None),
        donate_argnums=0,
        devices=devices,
    )
