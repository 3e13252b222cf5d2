"""Makes the optimizer of a training config, and tells which parameters it changes."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdet.config import ConfigError
from jaxdet.training.config import TrainingConfig

WARMUP_START = 1e-3  # of the rate, as in Detectron2 and torchvision


def scaled_learning_rate(config: TrainingConfig) -> float:
    """Scales the rate linearly to `batch_size` images (Goyal et al. 2017, 2.1)."""
    return config.learning_rate * config.batch_size / config.reference_batch_size


def learning_rate_schedule(config: TrainingConfig) -> optax.Schedule:
    """Makes the function from a step, counted from 0, to its learning rate.

    Step or cosine decay over all steps, times a warm-up that is linear from a
    thousandth at step 0 to one at `warmup_steps`.
    """
    rate = scaled_learning_rate(config)
    milestones = [round(fraction * config.steps) for fraction in config.milestones]

    def schedule(step: jax.Array | int) -> jax.Array:
        warmup = 1.0
        if config.warmup_steps:
            grown = jnp.minimum(1.0, step / config.warmup_steps)
            warmup = WARMUP_START + (1 - WARMUP_START) * grown
        if config.schedule == "cosine":
            decay = 0.5 * (1 + jnp.cos(jnp.pi * step / config.steps))
        else:
            decay = 0.1 ** sum(step >= milestone for milestone in milestones)
        return jnp.asarray(rate * warmup * decay, jnp.float32)

    return schedule


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """Makes SGD with momentum, or AdamW (Loshchilov & Hutter 2019), after clipping.

    SGD is torch's: the decay is added to the gradient before the momentum, and the
    rate multiplies the momentum, so a change of rate acts at once. Only parameters of
    more than one axis decay. State and updates have the structure of the trainable
    parameters that `partition` returns.
    """

    def kernels(parameters):
        return jax.tree.map(lambda parameter: parameter.ndim > 1, parameters)

    decay = optax.add_decayed_weights(config.weight_decay, mask=kernels)
    if config.optimizer == "sgd":
        direction = optax.chain(decay, optax.trace(config.momentum))
    else:
        direction = optax.chain(optax.scale_by_adam(b1=0.9, b2=0.999), decay)
    steps = [
        optax.clip_by_global_norm(config.clip_norm)
        if config.clip_norm is not None
        else optax.identity(),
        direction,
        optax.scale_by_learning_rate(learning_rate_schedule(config)),
    ]
    if config.backbone_multiplier != 1:

        def multiply(updates, parameters=None):
            del parameters
            factor = config.backbone_multiplier
            return {
                path: update * factor if path.startswith("backbone/") else update
                for path, update in updates.items()
            }

        steps.append(optax.stateless(multiply))
    return optax.chain(*steps)


def partition(
    parameters: dict[str, Any], frozen: tuple[str, ...]
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Returns trainable and frozen parameters, by path such as "backbone/stem/kernel".

    Only the first are differentiated, decayed and given optimizer state, so XLA never
    computes the gradients of the others.

    Args:
      parameters: nested dicts of arrays, a network's "params".
      frozen: regular expressions; a parameter whose whole path matches one is frozen.

    Raises:
      ConfigError: for an expression that is none, one that matches nothing, or if all
        parameters are frozen.
    """
    paths = flatten_dict(parameters, sep="/")
    matched = set()
    for pattern in frozen:
        try:
            matches = {path for path in paths if re.fullmatch(pattern, path)}
        except re.error as error:
            raise ConfigError(f"frozen: {pattern!r}: {error}") from None
        if not matches:
            some = ", ".join(list(paths)[:: max(1, len(paths) // 8)])
            raise ConfigError(
                f"frozen: {pattern!r} matches no parameter; some are {some}"
            )
        matched |= matches
    if len(matched) == len(paths):
        raise ConfigError(f"frozen: {frozen} leaves no parameter to train")
    trainable = {path: value for path, value in paths.items() if path not in matched}
    return trainable, {path: paths[path] for path in paths if path in matched}


def combine(
    trainable: dict[str, jax.Array], frozen: dict[str, jax.Array]
) -> dict[str, Any]:
    """Merges what `partition` has split into nested dicts."""
    return unflatten_dict({**trainable, **frozen}, sep="/")
