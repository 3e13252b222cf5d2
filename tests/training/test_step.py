import dataclasses
import functools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.detectors.detector import Detector
from jaxdet.parallel import replicate, shard
from jaxdet.training.step import (
    TrainState,
    create_state,
    gradient_flops,
    make_train_step,
    train_step,
)
from tests.training import toy

CONFIG = toy.config(clip_norm=0.05, warmup_steps=0, frozen=("stem/bias",))
KEY = jax.random.key(5)


@functools.cache
def compiled_step(config):
    return jax.jit(partial(train_step, detector=toy.toy(), config=config))


def history(detector, config, batches):
    """States and metrics, from before the first step on, of one device."""
    step = compiled_step(config)
    states = [(create_state(detector, config, batches[0]), {})]
    for batch in batches:
        states.append(step(states[-1][0], batch, KEY))
    return jax.device_get(states)


@pytest.fixture(scope="module")
def detector():
    return toy.toy()


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(3)
    return [toy.batch_of(rng, 8) for _ in range(3)]


@pytest.fixture(scope="module")
def alone(detector, batches):
    return history(detector, CONFIG, batches)


@pytest.fixture(scope="module")
def averaged(detector, batches):
    """The same, with an average and in two parts."""
    config = dataclasses.replace(CONFIG, ema_decay=0.15, accumulation_steps=2)
    return history(detector, config, batches)


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.15, "accumulation_steps": 2}])
def test_four_devices_make_the_update_of_one(detector, batches, changes, request):
    expected = request.getfixturevalue("averaged" if changes else "alone")
    config = dataclasses.replace(CONFIG, **changes)
    step = make_train_step(detector, config)
    state = first = replicate(create_state(detector, config, batches[0]))
    for batch, (expected_state, expected_metrics) in zip(
        batches, expected[1:], strict=True
    ):
        state, metrics = step(state, shard(batch), KEY)
        chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-5)
        chex.assert_trees_all_close(state, expected_state, rtol=1e-5, atol=1e-7)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))  # donated
    # Without a device axis.
    chex.assert_trees_all_equal_shapes_and_dtypes(state, expected_state)


def test_a_step_on_two_of_the_devices(detector, batches, alone):
    state = create_state(detector, CONFIG, batches[0])
    step = make_train_step(detector, CONFIG, jax.devices()[:2])
    pieces = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), batches[0])
    state, metrics = step(state, pieces, KEY)
    assert metrics["loss"].devices() == set(jax.devices()[:2])
    chex.assert_trees_all_close(state, alone[1][0], rtol=1e-5, atol=1e-7)


def test_parts_of_like_images_make_the_update_of_the_whole(detector, batches):
    batch = batches[0]
    valid = np.ones_like(batch.truth.valid)
    batch = batch.replace(truth=batch.truth.replace(valid=valid))
    whole = history(detector, CONFIG, [batch])[1]
    parts = history(
        detector, dataclasses.replace(CONFIG, accumulation_steps=4), [batch]
    )[1]
    chex.assert_trees_all_close(parts, whole, rtol=1e-5, atol=1e-7)


def test_each_part_is_normalized_by_its_own_objects(detector, batches, averaged):
    (state, _), (_, metrics) = averaged[:2]
    counts = [batches[0].truth.valid[part::2].sum() for part in (0, 1)]
    assert counts[0] != counts[1]
    loss = jax.jit(detector.loss)
    losses = [
        loss(
            state.variables,
            jax.tree.map(lambda x, part=part: x[part::2], batches[0]),
            jax.random.fold_in(KEY, 0),
        )[0]
        for part in (0, 1)
    ]
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)


def test_parts_need_less_memory(detector, batches):
    def needed(parts):
        config = dataclasses.replace(CONFIG, accumulation_steps=parts)
        state = create_state(detector, config, batches[0])
        compiled = compiled_step(config).lower(state, batches[0], KEY).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert needed(8) < 0.5 * needed(1)


def test_the_average_follows_the_parameters(averaged):
    average = None
    for step, (state, _) in enumerate(averaged):
        now = state.online_params["box/kernel"]
        if average is None:
            average = now
        else:  # decays 1/10, then 0.15 as 2/11 and 3/12 are more
            decay = 0.1 if step == 1 else 0.15
            average = decay * average + (1 - decay) * now
        kept = state.variables["params"]["box"]["kernel"]
        np.testing.assert_allclose(kept, average, rtol=1e-5)
    assert np.abs(now - average).max() > 1e-4


def test_an_average_changes_nothing_that_is_learned(detector, batches, alone):
    config = dataclasses.replace(CONFIG, ema_decay=0.9)
    learned = history(detector, config, batches)[-1][0]
    expected = alone[-1][0].variables["params"]
    assert set(learned.online_params) == {"stem/kernel", "box/kernel", "box/bias"}
    for name, value in learned.online_params.items():
        layer, kind = name.split("/")
        np.testing.assert_allclose(value, expected[layer][kind], rtol=1e-6)
    chex.assert_trees_all_equal(
        learned.variables["params"]["stem"]["bias"], expected["stem"]["bias"]
    )


def test_operations_are_counted_without_compiling(batches):
    def loss(variables, batch, key, axis_name=None):
        pixels = batch.images.reshape(len(batch.images), -1).astype(jnp.float32)
        return jnp.sum(pixels @ variables["params"]["kernel"]), {}

    detector = Detector(init=None, loss=loss, predict=None)
    kernel = jax.ShapeDtypeStruct((16 * 16 * 3, 50), jnp.float32)
    state = TrainState(jnp.zeros((), jnp.int32), {"params": {"kernel": kernel}}, ())
    # Two for each weight, to answer and for its gradient.
    expected = 2 * 2 * 16 * 16 * 3 * 50
    for config in (toy.config(), toy.config(accumulation_steps=2)):
        counted = gradient_flops(detector, config, state, batches[0])
        assert expected <= counted < 1.05 * expected


def test_metrics_hold_the_total_and_each_step_has_its_own_key(detector, batches, alone):
    (state, _), (_, metrics) = alone[:2]
    assert set(metrics) == {"box_loss", "noise_loss", "loss", "gradient_norm"}
    total = metrics["box_loss"] + metrics["noise_loss"]
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)
    assert metrics["gradient_norm"] > CONFIG.clip_norm  # that of before clipping
    loss = jax.jit(detector.loss)
    first, second = (
        loss(state.variables, batches[0], jax.random.fold_in(KEY, step))[1]
        for step in (0, 1)
    )
    np.testing.assert_allclose(metrics["noise_loss"], first["noise_loss"], rtol=1e-6)
    assert first["noise_loss"] != second["noise_loss"]


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
        step = partial(train_step, detector=detector, config=config)
        text = str(jax.make_jaxpr(step)(state, batches[0], KEY))
        return text.count("conv_general_dilated[")

    assert convolutions(()) == 2  # forward, and the gradient of the kernel
    assert convolutions(("stem/.*",)) == 1
