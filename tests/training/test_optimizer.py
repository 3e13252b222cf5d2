import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdet.training.config import TrainingConfig
from jaxdet.training.optimizer import (
    combine,
    learning_rate_schedule,
    make_optimizer,
    partition,
)

PARAMETERS = {
    "backbone": {"stem": {"kernel": jnp.ones((3, 2))}, "norm": {"scale": jnp.ones(2)}},
    "head": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 3.0)},
}


def test_step_schedule_of_the_retinanet_paper():
    rate = jax.jit(learning_rate_schedule(TrainingConfig()))
    expected = {
        0: 0.01 / 1000,
        500: 0.01 * (0.001 + 0.999 / 2),
        1000: 0.01,
        59_999: 0.01,
        60_000: 0.001,
        79_999: 0.001,
        80_000: 0.0001,
        89_999: 0.0001,
    }
    for step, value in expected.items():
        np.testing.assert_allclose(rate(step), value, rtol=1e-5)


def test_cosine_schedule_without_warmup_grows_linearly_with_the_batch():
    config = TrainingConfig(
        steps=90, batch_size=64, schedule="cosine", learning_rate=0.25, warmup_steps=0
    )
    rate = learning_rate_schedule(config)
    for step, value in {0: 1.0, 30: 0.75, 45: 0.5, 60: 0.25}.items():
        np.testing.assert_allclose(rate(step), value, rtol=1e-5)


def updates(config, gradients, parameters):
    """One update for each of the gradients."""
    optimizer = make_optimizer(config)
    state = optimizer.init(parameters)
    for gradient in gradients:
        change, state = optimizer.update(gradient, state, parameters)
        parameters = optax.apply_updates(parameters, change)
    return parameters


def plain(**changes):
    fields = {"learning_rate": 0.1, "warmup_steps": 0, "weight_decay": 0.5}
    return TrainingConfig(**fields | changes)


def test_two_steps_of_sgd_by_hand():
    parameters = {"kernel": jnp.array([[1.0]]), "bias": jnp.array([1.0])}
    gradient = {"kernel": jnp.array([[2.0]]), "bias": jnp.array([2.0])}
    # kernel: momentum 2 + 0.5 * 1 = 2.5, then 1 - 0.25 = 0.75;
    #         momentum 0.9 * 2.5 + 2 + 0.5 * 0.75 = 4.625, then 0.75 - 0.4625 = 0.2875.
    # bias:   momentum 2, then 0.8; momentum 0.9 * 2 + 2 = 3.8, then 0.42.
    after = updates(plain(), [gradient, gradient], parameters)
    np.testing.assert_allclose(after["kernel"], [[0.2875]], rtol=1e-6)
    np.testing.assert_allclose(after["bias"], [0.42], rtol=1e-6)


def test_the_backbone_has_a_rate_of_its_own():
    parameters = {"backbone/bias": jnp.ones(1), "head/backbone/bias": jnp.ones(1)}
    gradient = jax.tree.map(jnp.full_like, parameters, {x: 2.0 for x in parameters})
    after = updates(plain(backbone_multiplier=0.1), [gradient], parameters)
    np.testing.assert_allclose(after["backbone/bias"], [0.98], rtol=1e-6)
    np.testing.assert_allclose(after["head/backbone/bias"], [0.8], rtol=1e-6)


def test_one_step_of_adamw_by_hand():
    parameters = {"kernel": jnp.array([[1.0]]), "bias": jnp.array([1.0])}
    gradient = {"kernel": jnp.array([[-3.0]]), "bias": jnp.array([7.0])}
    # The first step is the sign of the gradient; only the kernel decays, by 0.1 * 0.5.
    after = updates(plain(optimizer="adamw"), [gradient], parameters)
    np.testing.assert_allclose(after["kernel"], [[1 + 0.1 - 0.05]], rtol=1e-5)
    np.testing.assert_allclose(after["bias"], [0.9], rtol=1e-5)


def test_clipping_is_by_the_norm_of_all_gradients_together():
    parameters = {"kernel": jnp.zeros((1, 1)), "bias": jnp.zeros(1)}
    gradient = {"kernel": jnp.array([[30.0]]), "bias": jnp.array([40.0])}
    after = updates(plain(clip_norm=5.0), [gradient], parameters)
    np.testing.assert_allclose(after["kernel"], [[-0.3]], rtol=1e-5)
    np.testing.assert_allclose(after["bias"], [-0.4], rtol=1e-5)


def test_frozen_parameters_are_those_whose_whole_path_matches():
    trainable, frozen = partition(PARAMETERS, ("backbone/.*", "head/bias"))
    assert set(trainable) == {"head/kernel"}
    assert set(frozen) == {"backbone/stem/kernel", "backbone/norm/scale", "head/bias"}
    again = combine(trainable, frozen)
    assert jax.tree.structure(again) == jax.tree.structure(PARAMETERS)
    assert again["head"]["bias"] is PARAMETERS["head"]["bias"]


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (("backbone",), ["'backbone'", "backbone/stem/kernel"]),  # not a whole path
        (("head/.*", "neck/.*"), ["'neck/.*'", "head/kernel"]),
        (("(",), ["'('"]),
        ((".*",), ["no parameter to train"]),
    ],
)
def test_a_pattern_of_no_use_is_named(patterns, words):
    with pytest.raises(ValueError) as error:
        partition(PARAMETERS, patterns)
    assert all(word in str(error.value) for word in words)
