import errno
import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.training.checkpoint import CheckpointError, Checkpoints, load_variables
from jaxdet.training.run_folder import RunError
from jaxdet.training.step import TrainState, create_state
from tests.training import toy


@pytest.fixture(scope="module")
def state():
    batch = toy.batch_of(np.random.default_rng(0), 4)
    made = create_state(toy.toy(), toy.config(), batch)
    return jax.tree.map(np.array, made)


def moved(state, step):
    """Another state for each step."""
    later = jax.tree.map(lambda x: x + np.asarray(step, x.dtype), state)
    return later.replace(step=np.asarray(step, np.int32))


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path, keep=2)
    yield opened
    opened.close()


def test_what_is_saved_comes_back_bit_for_bit(checkpoints, state):
    assert checkpoints.latest_step() is None
    checkpoints.save(3, moved(state, 3))
    restored = checkpoints.restore(jax.eval_shape(lambda: state))
    chex.assert_trees_all_equal(restored, moved(state, 3))
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, state)


def test_the_newest_and_the_best_stay(checkpoints, state, tmp_path):
    scores = {1: None, 2: 0.5, 3: 0.2, 4: float("nan"), 5: 0.4, 6: None}
    for step, score in scores.items():
        metrics = None if score is None else {"mAP": score, "AP": 1 - score}
        checkpoints.save(step, moved(state, step), metrics)
    assert checkpoints.restore(state).step == 6
    assert checkpoints.restore(state, "best").step == 2
    with pytest.raises(RunError, match=r"no checkpoint 3 .*there are \[2, 5, 6\]"):
        checkpoints.restore(state, 3)
    for step, found in {"best": 2, "latest": 6, 5: 5}.items():
        variables = load_variables(tmp_path, state.variables, step=step)
        chex.assert_trees_all_equal(variables, moved(state, found).variables)


def test_the_best_of_none_evaluated_is_the_newest(checkpoints, state):
    for step in (1, 2):
        checkpoints.save(step, moved(state, step))
    assert checkpoints.restore(state, "best").step == 2


def test_a_state_may_be_donated_while_it_is_written(checkpoints):
    def update(state):
        weights = state.variables["params"]["w"]
        return TrainState(state.step + 1, {"params": {"w": weights + 1}}, ())

    update = jax.jit(update, donate_argnums=0)
    zeros = {"params": {"w": jnp.zeros(4_000_000)}}
    state = update(TrainState(jnp.zeros((), jnp.int32), zeros, ()))
    checkpoints.save(1, state)
    for _ in range(3):
        state = update(state)
    weights = checkpoints.restore(jax.eval_shape(lambda: state)).variables["params"]
    assert state.step == 4 and (weights["w"] == 1).all()


def test_another_model_is_refused_by_name(checkpoints, state, tmp_path):
    checkpoints.save(1, state)
    batch = toy.batch_of(np.random.default_rng(0), 4)
    wider = jax.eval_shape(partial(create_state, toy.toy(width=6), toy.config()), batch)
    with pytest.raises(RunError) as error:
        checkpoints.restore(wider)
    assert "params/stem/bias: float32[4] saved, float32[6] expected" in str(error.value)
    assert str(tmp_path) in str(error.value)
    renamed = {**state.variables["params"], "neck": state.variables["params"]["stem"]}
    del renamed["stem"]
    with pytest.raises(RunError, match="params/neck/bias: absent saved"):
        checkpoints.restore(state.replace(variables={"params": renamed}))


def test_a_folder_without_checkpoints_says_so(tmp_path, state):
    with pytest.raises(RunError, match="no checkpoints"):
        load_variables(tmp_path, state.variables)
    assert not list(tmp_path.iterdir())


HALF = """
import os, signal, sys
import numpy as np
from jaxdet.training.checkpoint import Checkpoints
from jaxdet.training.step import TrainState

checkpoints = Checkpoints(sys.argv[1], keep=2)
for step in (1, 2):
    noise = np.random.default_rng(step).normal(size=4_000_000)
    checkpoints.save(step, TrainState(np.int32(step), {"params": {"w": noise}}, ()))
    if step == 1:
        checkpoints.restore(TrainState(np.int32(0), {"params": {"w": noise}}, ()))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_half_written_checkpoint_is_not_seen_and_does_not_bother(tmp_path, state):
    killed = subprocess.run([sys.executable, "-c", HALF, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["1", "2.orbax-checkpoint-tmp"]
    shapes = {"params": {"w": np.zeros(4_000_000)}}
    noise = load_variables(tmp_path, shapes, step="latest")["params"]["w"]
    np.testing.assert_array_equal(
        noise, np.random.default_rng(1).normal(size=4_000_000)
    )
    again = Checkpoints(tmp_path, keep=2)
    assert again.latest_step() == 1
    again.save(2, moved(state, 2))
    chex.assert_trees_all_equal(again.restore(state), moved(state, 2))
    again.close()


def noise(step):
    """A state whose values Orbax keeps in a file of their own."""
    values = np.random.default_rng(step).normal(size=10_000)
    momentum = {"w": values.astype(np.float32)}
    return TrainState(np.int32(step), {"params": {"w": values}}, momentum, {})


@pytest.fixture
def two_saved(tmp_path):
    """A run folder with checkpoints of steps 1 and 2."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(step, noise(step), {"AP": step / 10})
    checkpoints.close()
    return tmp_path


def largest_file(folder):
    files = filter(os.path.isfile, folder.rglob("*"))
    return max(files, key=os.path.getsize)


def flip_a_bit(folder):
    file = largest_file(folder)
    values = bytearray(file.read_bytes())
    values[len(values) // 2] ^= 1
    file.write_bytes(values)


def cut_short(folder):
    os.truncate(largest_file(folder), 1000)


def lose_metadata(folder):
    (folder / "_METADATA").unlink()


@pytest.mark.parametrize(
    ("item", "damage", "words"),
    [
        ("variables", flip_a_bit, "is damaged: variables are not what was saved"),
        ("rest", flip_a_bit, "is damaged: rest are not what was saved"),
        ("variables", cut_short, "cannot be read"),
        ("rest", lose_metadata, "cannot be read"),
    ],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    two_saved, caplog, item, damage, words
):
    newest = two_saved / "checkpoints" / "2"
    damage(newest / item)
    checkpoints = Checkpoints(two_saved, keep=2)
    with pytest.raises(CheckpointError, match=f"{newest} {words}"):
        checkpoints.restore(noise(0), 2)
    assert not caplog.records
    chex.assert_trees_all_equal(checkpoints.restore(noise(0)), noise(1))
    assert f"{newest} {words}" in caplog.text
    assert (two_saved / "checkpoints" / "damaged_2").is_dir()
    assert checkpoints.latest_step() == 1
    checkpoints.save(2, noise(2))
    chex.assert_trees_all_equal(checkpoints.restore(noise(0)), noise(2))
    checkpoints.close()


def test_without_a_whole_checkpoint_nothing_is_changed(two_saved):
    for step in "12":
        flip_a_bit(two_saved / "checkpoints" / step / "variables")
    checkpoints = Checkpoints(two_saved, keep=2)
    with pytest.raises(
        CheckpointError, match=r"all checkpoints are damaged.*\n.*2.*\n.*1"
    ):
        checkpoints.restore(noise(0))
    checkpoints.close()
    assert {path.name for path in (two_saved / "checkpoints").iterdir()} == {"1", "2"}
    with pytest.raises(CheckpointError, match="/2 is damaged"):
        load_variables(two_saved, noise(0).variables)


def test_damaged_metrics_cost_no_state(two_saved, caplog):
    file = two_saved / "checkpoints" / "2" / "metrics" / "metrics"
    file.write_text('{"AP": ')
    variables = load_variables(two_saved, noise(0).variables, step="latest")
    chex.assert_trees_all_equal(variables, noise(2).variables)
    assert f"{file} is damaged" in caplog.text
    best = load_variables(two_saved, noise(0).variables, step="best")
    chex.assert_trees_all_equal(best, noise(1).variables)


@pytest.fixture
def small_files():
    """No file may grow beyond 20 kB: what the system says of a full disk, nearly."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_is_noticed_soon(two_saved, small_files):
    checkpoints = Checkpoints(two_saved, keep=2)
    checkpoints.save(3, noise(3))
    with pytest.raises(CheckpointError, match=r"there are \[1, 2\] .*File too large"):
        for _ in range(1000):
            checkpoints.check()
            time.sleep(0.01)
    checkpoints.close()
    again = Checkpoints(two_saved, keep=2)
    chex.assert_trees_all_equal(again.restore(noise(0)), noise(2))
    again.close()


def test_a_disk_that_is_full_at_once_is_named(two_saved, monkeypatch):
    checkpoints = Checkpoints(two_saved, keep=2)

    def save(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", save)
    with pytest.raises(CheckpointError, match=r"there are \[1, 2\] .*No space left"):
        checkpoints.save(3, noise(3))
    checkpoints.close()
