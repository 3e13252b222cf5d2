from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.training.optimizer import make_optimizer
from jaxdet.training.step import (
    create_state,
    make_train_step,
    replicate,
    shard,
    train_step,
)
from tests.training import toy

CONFIG = toy.config(clip_norm=0.05, warmup_steps=0, frozen=("stem/bias",))
KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def detector():
    return toy.toy()


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(3)
    return [toy.batch_of(rng, 8) for _ in range(3)]


@pytest.fixture(scope="module")
def alone(detector, batches):
    """States and metrics of one device that sees all images."""
    optimizer = make_optimizer(CONFIG)
    step = jax.jit(
        partial(
            train_step, detector=detector, optimizer=optimizer, frozen=CONFIG.frozen
        )
    )
    history = [(create_state(detector, CONFIG, batches[0]), {})]
    for batch in batches:
        history.append(step(history[-1][0], batch, KEY))
    return jax.device_get(history)


def test_four_devices_make_the_update_of_one(detector, batches, alone):
    step = make_train_step(detector, CONFIG)
    state = replicate(create_state(detector, CONFIG, batches[0]))
    for batch, (expected, expected_metrics) in zip(batches, alone[1:], strict=True):
        state, metrics = step(state, shard(batch, 4), KEY)
        chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-5)
        chex.assert_trees_all_close(state, expected, rtol=1e-5, atol=1e-7)


def test_metrics_are_scalars_with_total_and_gradient_norm(alone):
    (_, metrics) = alone[1]
    assert set(metrics) == {"box_loss", "noise_loss", "loss", "gradient_norm"}
    total = metrics["box_loss"] + metrics["noise_loss"]
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)
    assert metrics["gradient_norm"] > CONFIG.clip_norm  # that of before clipping


def test_each_step_has_its_own_key(detector, batches, alone):
    state, _ = alone[0]
    loss = jax.jit(detector.loss)
    expected = [
        loss(state.variables, batches[0], jax.random.fold_in(KEY, step))[1]
        for step in (0, 1)
    ]
    np.testing.assert_allclose(
        alone[1][1]["noise_loss"], expected[0]["noise_loss"], rtol=1e-6
    )
    assert expected[0]["noise_loss"] != expected[1]["noise_loss"]


def test_frozen_and_constant_arrays_stay_and_have_no_optimizer_state(alone):
    (before, _), (after, _) = alone[0], alone[-1]
    chex.assert_trees_all_equal(
        before.variables["constants"], after.variables["constants"]
    )
    still, moved = "bias", "kernel"
    stem_before, stem_after = (s.variables["params"]["stem"] for s in (before, after))
    np.testing.assert_array_equal(stem_before[still], stem_after[still])
    assert (stem_before[moved] != stem_after[moved]).any()
    trainable = {"stem/kernel", "box/kernel", "box/bias"}
    states = jax.tree.leaves(after.opt_state, is_leaf=lambda x: isinstance(x, dict))
    assert [set(x) for x in states if isinstance(x, dict)] == [trainable]


def test_frozen_parameters_cost_no_gradient(detector, batches):
    def convolutions(frozen):
        config = toy.config(frozen=frozen)
        state = jax.eval_shape(partial(create_state, detector, config), batches[0])
        step = partial(
            train_step,
            detector=detector,
            optimizer=make_optimizer(config),
            frozen=frozen,
        )
        text = str(jax.make_jaxpr(step)(state, batches[0], KEY))
        return text.count("conv_general_dilated[")

    assert convolutions(()) == 2  # forward, and the gradient of the kernel
    assert convolutions(("stem/.*",)) == 1


def test_the_given_state_is_donated_and_the_answer_has_no_device_axis(
    detector, batches
):
    step = make_train_step(detector, CONFIG)
    before = replicate(create_state(detector, CONFIG, batches[0]))
    after, _ = step(before, shard(batches[0], 4), KEY)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    shapes = jax.eval_shape(partial(create_state, detector, CONFIG), batches[0])
    chex.assert_trees_all_equal_shapes_and_dtypes(after, shapes)


def test_pretrained_variables_replace_the_fresh_ones(detector, batches):
    def ones(variables):
        return {**variables, "params": jax.tree.map(jnp.ones_like, variables["params"])}

    state = create_state(detector, CONFIG, batches[0], pretrained=ones)
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(state.variables["params"]))


def test_shard_keeps_the_order_of_the_images():
    batch = toy.batch_of(np.random.default_rng(0), 8)
    pieces = shard(batch, 4)
    np.testing.assert_array_equal(pieces.image_ids, [[0, 1], [2, 3], [4, 5], [6, 7]])
    assert pieces.truth.boxes.shape == (4, 2, 3, 4)
