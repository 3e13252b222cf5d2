"""Runs into which a fault is injected: what is lost, what is said, how they go on."""

import collections
import contextlib
import dataclasses
import itertools
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.data.dataset import DataError
from jaxdet.training.checkpoint import CheckpointError, Checkpoints, load_variables
from jaxdet.training.metrics import NonFiniteLossError
from jaxdet.training.step import create_state
from jaxdet.training.train import train
from tests.training import soak, toy
from tests.training.test_checkpoint import cut_short, flip_a_bit

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = toy.config(checkpoint_every=2)
KEPT = dataclasses.replace(CONFIG, keep_checkpoints=9)
WIDE = 1000  # of this width, parameters need files of their own


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of the wide toy from the first step to the last, with its folder."""
    workdir = tmp_path_factory.mktemp("unbroken")
    state = train(toy.toy(WIDE), toy.data_set(), KEPT, workdir=workdir)
    return jax.device_get(state), workdir


def failing(data_set, fault, *, reads, positions=range(12)):
    """The same data; after so many images, reading one of those calls `fault`."""
    count = itertools.count()

    def read_image(position):
        if next(count) >= reads and position in positions:
            fault()
        return data_set.read_image(position)

    return dataclasses.replace(data_set, read_image=read_image)


def saved_steps(workdir):
    return {path.name for path in (workdir / "checkpoints").iterdir()}


def test_damaged_checkpoints_cost_the_steps_since_the_last_whole_one(
    unbroken, tmp_path, caplog
):
    expected, workdir = unbroken
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    flip_a_bit(tmp_path / "checkpoints" / "8" / "variables")
    cut_short(tmp_path / "checkpoints" / "6" / "rest")
    state = train(toy.toy(WIDE), toy.data_set(), KEPT, workdir=tmp_path)
    chex.assert_trees_all_equal(jax.device_get(state), expected)
    assert "; steps 4 to 8," in (tmp_path / "log.txt").read_text()
    assert caplog.text.count("going back to an older one") == 2
    names = {"2", "4", "6", "8", "damaged_6", "damaged_8"}
    assert saved_steps(tmp_path) == names


def test_a_full_disk_stops_a_run_and_leaves_what_was_saved(unbroken, tmp_path):
    _, before = unbroken
    shutil.copytree(before, tmp_path, dirs_exist_ok=True)
    for step in "468":
        shutil.rmtree(tmp_path / "checkpoints" / step)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    # From step 2 on: 4 is saved in vain, and the run does not go on to the next, 8.
    data = failing(toy.data_set(), fill_the_disk, reads=4 + 4)
    data = failing(data, lambda: time.sleep(0.2), reads=4 + 4 * 4)  # as steps do
    config = dataclasses.replace(KEPT, checkpoint_every=4, log_every=1)
    try:
        with pytest.raises(CheckpointError, match=r"there are \[2\] .*File too large"):
            train(toy.toy(WIDE), data, config, workdir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log = (tmp_path / "log.txt").read_text()
    assert "steps 2 to 8" in log
    assert log.count("step 8/8") == 1  # the unbroken run's
    template = jax.eval_shape(lambda: unbroken[0].variables)
    chex.assert_trees_all_equal(
        load_variables(tmp_path, template, step="latest"),
        load_variables(before, template, step=2),
    )


FULL = """
import pathlib
from experiments import command_line
from tests.training.test_survival import KEPT, WIDE, toy, train

def main(workdir: pathlib.Path, /):
    train(toy.toy(WIDE), toy.data_set(), KEPT, workdir=workdir)

command_line.run(main)
"""


@pytest.mark.slow
def test_a_full_disk_is_one_line_of_a_command(tmp_path):
    small_files = ["sh", "-c", 'ulimit -f 40; exec "$@"', "sh"]
    command = [*small_files, sys.executable, "-c", FULL, str(tmp_path)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 1
    message = r"error: a checkpoint could not be written, there are \[\] in .*\n"
    assert re.fullmatch(message, answer.stderr)


def test_unreadable_images_are_skipped_up_to_a_share(tmp_path, caplog):
    def break_off():
        raise DataError("a broken photograph")

    inputs = dataclasses.replace(
        CONFIG.input, unreadable_images="skip", max_unreadable=0.1
    )
    config = dataclasses.replace(CONFIG, steps=40, input=inputs)
    # In the third epoch the one, some epochs later the other.
    one = failing(toy.data_set(), break_off, reads=10, positions={3})
    two = failing(one, break_off, reads=30, positions={5})
    with pytest.raises(DataError, match=r"2 of 12 images .* max_unreadable=0.1; .*a"):
        train(toy.toy(), two, config, workdir=tmp_path)
    assert "unreadable images so far: 1; a broken photograph" in caplog.text
    assert {"4", "6"} <= saved_steps(tmp_path)


def test_an_error_of_a_worker_is_raised_with_its_image_and_step(tmp_path):
    def lose_memory():
        raise MemoryError("no memory left")

    inputs = dataclasses.replace(CONFIG.input, workers=2, prefetch=2)
    config = dataclasses.replace(CONFIG, steps=40, input=inputs)
    data = failing(toy.data_set(), lose_memory, reads=4 + 4 * 8, positions={7})
    with pytest.raises(MemoryError, match="no memory left") as raised:
        train(toy.toy(), data, config, workdir=tmp_path)
    assert "while preparing image 7 for step" in "".join(raised.value.__notes__)
    assert "6" in saved_steps(tmp_path)


def test_before_a_loss_that_is_not_finite_the_last_good_state_stays(unbroken, tmp_path):
    detector = toy.toy(WIDE)
    bad_key = jax.random.fold_in(jax.random.key(CONFIG.seed), 4)

    def poisoned(variables, batch, key, axis_name=None):
        _, metrics = detector.loss(variables, batch, key, axis_name=axis_name)
        same = jnp.all(jax.random.key_data(key) == jax.random.key_data(bad_key))
        metrics["box_loss"] += jnp.where(same, jnp.nan, 0.0)
        return sum(metrics.values()), metrics

    config = dataclasses.replace(KEPT, log_every=8)
    with pytest.raises(NonFiniteLossError, match="box_loss is nan at step 5, images"):
        train(
            detector._replace(loss=poisoned),
            toy.data_set(),
            config,
            workdir=tmp_path,
        )
    assert saved_steps(tmp_path) == {"2", "4"}
    template = jax.eval_shape(lambda: unbroken[0].variables)
    chex.assert_trees_all_equal(
        load_variables(tmp_path, template, step="latest"),
        load_variables(unbroken[1], template, step=4),
    )


@pytest.mark.slow
def test_a_run_killed_at_twenty_moments_ends_as_the_unbroken_one(tmp_path):
    cache = {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": re.sub(r"count=\d+", "count=1", os.environ["XLA_FLAGS"]),
    }
    answer = subprocess.run(
        [sys.executable, "-m", "tests.training.soak", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, **cache},
        capture_output=True,
        text=True,
    )
    assert not answer.returncode, answer.stdout + answer.stderr
    kills = collections.Counter((tmp_path / "broken/kills.txt").read_text().split())
    assert kills == dict.fromkeys(soak.SECONDS, 4)
    batch = toy.batch_of(np.random.default_rng(0), 4)
    template = jax.eval_shape(lambda: create_state(toy.toy(), CONFIG, batch))
    states, evaluations = [], []
    for name in ("broken", "whole"):
        with contextlib.closing(Checkpoints(tmp_path / name, keep=3)) as checkpoints:
            states.append(checkpoints.restore(template))
        log = (tmp_path / name / "log.txt").read_text()
        evaluations.append(set(re.findall(r"evaluation at step .*", log)))
    assert states[0].step == soak.STEPS
    chex.assert_trees_all_equal(*states)
    assert evaluations[0] == evaluations[1] and len(evaluations[0]) == 15
