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


@pytest.fixture
def calls(monkeypatch):
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


def test_a_process_without_others_stays_alone(calls, monkeypatch):
    parallel.initialize()
    parallel.initialize(processes=1)
    assert not calls
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "libtpu")
    parallel.initialize()  # asks the TPU, of which there is none
    assert calls == [((), {})]


def test_flags_go_before_slurm(calls, monkeypatch):
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    parallel.initialize("first:1234", 2, 1)
    alone = {"cluster_detection_method": "deactivate"}
    assert calls == [(("first:1234", 2, 1), alone)]


@pytest.mark.parametrize(
    ("changes", "tasks"),
    [
        ({}, "2"),
        ({"SLURM_NTASKS": "8"}, "2"),  # of the job
        ({"SLURM_NTASKS": None}, "2"),
        ({"SLURM_STEP_NUM_TASKS": None}, "2"),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"}, None),
        ({"SLURM_STEP_NUM_TASKS": None, "SLURM_NTASKS": None}, None),
        ({"SLURM_STEP_NODELIST": None}, None),  # the batch script around the steps
    ],
)
def test_slurm_is_asked_in_a_step_of_several_tasks(calls, monkeypatch, changes, tasks):
    for name, value in (STEP | changes).items():
        if value is not None:
            monkeypatch.setenv(name, value)
    parallel.initialize()
    slurm = ((), {"cluster_detection_method": "slurm"})
    assert calls == ([slurm] if tasks else [])
    if tasks:
        assert os.environ["SLURM_NTASKS"] == tasks  # which JAX reads


@pytest.mark.parametrize("arguments", [("first:1234", 2), (None, 2, 0), ("a:1", 2, 2)])
def test_arguments_that_are_not_enough_are_named(calls, arguments):
    with pytest.raises(ValueError, match=f"coordinator {arguments[0]}, .* all three"):
        parallel.initialize(*arguments)
    assert not calls


def test_hosts_that_differ_are_refused_by_name(monkeypatch):
    def fail():
        raise AssertionError("there is one host")

    parallel.require_same(fail)
    changes = [{}, {}, {"boxes": "cd", "more": 3}]
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(
        parallel, "gather", lambda value: [value | more for more in changes]
    )
    with pytest.raises(ConfigError) as error:
        parallel.require_same(lambda: {"seed": 1, "boxes": "ab"})
    assert "boxes: 'ab' on host 0, 'cd' on host 2" in str(error.value)
    assert "more: 'absent' on host 0, 3 on host 2" in str(error.value)
    assert "seed" not in str(error.value) and "host 1" not in str(error.value)
