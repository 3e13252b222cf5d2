import logging

import chex
import jax
import pytest

from jaxdet.data import batching
from jaxdet.data.batching import InputConfig
from jaxdet.training.prefetch import on_devices
from jaxdet.training.step import create_state, make_train_step, replicate, shard
from tests.training import toy

CONFIG = toy.config(
    steps=12,
    input=InputConfig(
        canvases=((16, 16), (16, 8)),
        multi_scale=(1.0, 2.0),  # of both, 2.0 makes 32 x 32
        max_objects=3,
        workers=2,
        prefetch=3,
    ),
)


@pytest.fixture
def state(rng):
    first = toy.batch_of(rng, 4)
    return replicate(create_state(toy.toy(), CONFIG, first))


def batches(**arguments):
    return batching.training_batches(
        toy.data_set(tall=4), CONFIG.input, batch_size=4, seed=0, **arguments
    )


def test_each_device_has_its_part(rng):
    batch = toy.batch_of(rng, 8)
    same, placed = on_devices(batch)
    assert same is batch
    chex.assert_trees_all_equal(placed, shard(batch, 4))
    for leaf in jax.tree.leaves(placed):
        parts = [(part.device, part.data.shape) for part in leaf.addressable_shards]
        shape = (1, *leaf.shape[1:])
        assert parts == [(device, shape) for device in jax.local_devices()]


def test_the_threads_that_make_the_batches_place_them():
    plain, placed = batches(stop=6), batches(stop=6, place=on_devices)
    for batch, (same, pieces) in zip(plain, placed, strict=True):
        chex.assert_trees_all_equal(same, batch)
        chex.assert_trees_all_equal(pieces, shard(batch, 4))


def test_a_step_copies_nothing_and_each_canvas_compiles_once(state, caplog):
    update = make_train_step(toy.toy(), CONFIG)
    key = replicate(jax.random.key(0))
    seen = []
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for _, pieces in batches(stop=CONFIG.steps, place=on_devices):
            canvas = pieces.images.shape[2:4]
            if canvas in seen:
                with jax.transfer_guard("disallow"):
                    state, _ = update(state, pieces, key)
            else:
                state, _ = update(state, pieces, key)
            seen.append(canvas)
    assert set(seen) == set(CONFIG.input.training_canvases) and len(seen) == 12
    said = [record.getMessage() for record in caplog.records]
    compiled = [text for text in said if text.startswith("Finished XLA compilation")]
    assert len(compiled) == len(CONFIG.input.training_canvases)
