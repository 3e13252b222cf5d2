import importlib.util
import os

import chex
import jax
import numpy as np
import pytest

from jaxdet import parallel
from jaxdet.config import ConfigError
from jaxdet.data import batching
from jaxdet.data.input_config import InputConfig
from jaxdet.training.step import create_state, make_train_step
from tests.training import toy

STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


@pytest.fixture
def calls_of_jax(monkeypatch):
    """The arguments of each call of `jax.distributed.initialize`; no cluster exists."""
    calls = []

    def initialize(*arguments, **options):
        calls.append((arguments, options))
        if not arguments and not options:
            raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    for name in STEP:
        monkeypatch.delenv(name, raising=False)
    return calls


def test_a_process_without_others_stays_alone(calls_of_jax, monkeypatch):
    parallel.initialize()
    parallel.initialize(processes=1)
    assert not calls_of_jax
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "libtpu")
    parallel.initialize()  # asks the TPU, of which there is none
    assert calls_of_jax == [((), {})]


def test_flags_ask_nobody_else(calls_of_jax, monkeypatch):
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    parallel.initialize("first:1234", 2, 1)
    alone = {"cluster_detection_method": "deactivate"}
    assert calls_of_jax == [(("first:1234", 2, 1), alone)]


def test_slurm_is_asked_in_a_step_of_several_tasks(calls_of_jax, monkeypatch):
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    parallel.initialize()
    assert calls_of_jax == [((), {"cluster_detection_method": "slurm"})]
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    parallel.initialize()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.delenv("SLURM_STEP_NODELIST")  # the batch script around the steps
    parallel.initialize()
    assert len(calls_of_jax) == 1


@pytest.mark.parametrize(
    ("of_the_step", "of_the_job", "together"),
    [
        ("2", "8", "2"),
        ("2", None, "2"),
        (None, "2", "2"),
        ("1", "8", None),
        (None, None, None),
    ],
)
def test_the_tasks_of_the_step_count(
    calls_of_jax, monkeypatch, of_the_step, of_the_job, together
):
    given = {"SLURM_STEP_NUM_TASKS": of_the_step, "SLURM_NTASKS": of_the_job}
    for name, value in {**STEP, **given}.items():
        monkeypatch.setenv(name, value or "")
        if value is None:
            monkeypatch.delenv(name)
    parallel.initialize()
    assert bool(calls_of_jax) == bool(together)
    if together:
        assert os.environ["SLURM_NTASKS"] == together  # which JAX reads


@pytest.mark.parametrize(
    "arguments",
    [("first:1234",), ("first:1234", 2), (None, 2, 0), ("first:1", 2, 2)],
)
def test_arguments_that_are_not_enough_are_named(calls_of_jax, arguments):
    with pytest.raises(ValueError, match=f"coordinator {arguments[0]}, .* all three"):
        parallel.initialize(*arguments)
    assert not calls_of_jax


def test_one_host_has_what_it_has():
    value = {"any": np.arange(3)}
    assert parallel.gather(value) == [value]
    assert parallel.from_first(value) is value


def test_hosts_that_differ_are_refused_by_name(monkeypatch):
    def fail():
        raise AssertionError("nobody is there to compare with")

    parallel.require_same(fail)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    changes = [{}, {}, {}]
    monkeypatch.setattr(
        parallel, "gather", lambda value: [value | more for more in changes]
    )
    parallel.require_same(lambda: {"seed": 1, "boxes": "ab"})
    changes[2] = {"boxes": "cd", "more": 3}
    with pytest.raises(ConfigError) as error:
        parallel.require_same(lambda: {"seed": 1, "boxes": "ab"})
    assert "boxes: 'ab' on host 0, 'cd' on host 2" in str(error.value)
    assert "more: 'absent' on host 0, 3 on host 2" in str(error.value)
    assert "seed" not in str(error.value) and "host 1" not in str(error.value)


def test_shard_keeps_the_order_of_the_images(rng):
    pieces = parallel.shard(toy.batch_of(rng, 8))
    np.testing.assert_array_equal(pieces.image_ids, [[0, 1], [2, 3], [4, 5], [6, 7]])
    assert pieces.truth.boxes.shape == (4, 2, 3, 4)
    np.testing.assert_array_equal(parallel.to_host(pieces).image_ids, range(8))


def test_each_device_has_its_part(rng):
    batch = toy.batch_of(rng, 8)
    same, placed = parallel.shard_to_devices(batch)
    assert same is batch
    chex.assert_trees_all_equal(placed, parallel.shard(batch))
    for leaf in jax.tree.leaves(placed):
        parts = [(part.device, part.data.shape) for part in leaf.addressable_shards]
        shape = (1, *leaf.shape[1:])
        assert parts == [(device, shape) for device in jax.local_devices()]


def test_batches_are_on_the_devices_before_their_step():
    """Made by threads; the step that takes them copies nothing from the host."""
    canvases = ((16, 16), (16, 8))
    inputs = InputConfig(canvases=canvases, max_objects=3, workers=2, prefetch=3)
    config = toy.config(steps=6, input=inputs)
    batches = batching.training_batches(
        toy.data_set(tall=4),
        inputs,
        batch_size=4,
        seed=0,
        stop=config.steps,
        transfer=parallel.shard_to_devices,
    )
    update, seen = make_train_step(toy.toy(), config), set()
    key, state = parallel.replicate(jax.random.key(0)), None
    for batch, pieces in batches:
        chex.assert_trees_all_equal(pieces, parallel.shard(batch))
        state = state or parallel.replicate(create_state(toy.toy(), config, batch))
        compiled = pieces.images.shape in seen
        with jax.transfer_guard("disallow" if compiled else "allow"):
            state, _ = update(state, pieces, key)
        seen.add(pieces.images.shape)
    assert len(seen) == 2
