import json
import signal
import subprocess
import sys
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.detectors.detector import rebuild
from jaxdet.training.checkpoint import (
    Checkpoints,
    RunError,
    load_run,
    load_variables,
    save_run,
)
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
        metrics = None if score is None else {"AP": score, "AP50": 1 - score}
        checkpoints.save(step, moved(state, step), metrics)
    assert checkpoints.restore(state).step == 6
    assert checkpoints.restore(state, "best").step == 2
    with pytest.raises(RunError, match=r"no checkpoint 3 .*there are \[2, 5, 6\]"):
        checkpoints.restore(state, 3)
    for step, found in {"best": 2, "latest": 6, 5: 5}.items():
        variables = load_variables(tmp_path, state.variables, step=step)
        chex.assert_trees_all_equal(variables, moved(state, found).variables)


@pytest.mark.parametrize("headline", ["mAP", "AR100"])
def test_the_first_number_says_what_is_best(checkpoints, state, headline):
    for step, score in {1: 0.2, 2: 0.5, 3: 0.4}.items():
        checkpoints.save(step, moved(state, step), {headline: score, "AP": 1 - score})
    assert checkpoints.restore(state, "best").step == 2


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


def test_a_run_describes_itself(tmp_path):
    config = toy.config(milestones=(0.25, 0.5), frozen=("stem/.*",))
    save_run(tmp_path, toy.toy(width=6), toy.data_set(), config)
    run = load_run(tmp_path)
    assert run.training == config
    assert (run.class_names, run.category_ids) == (("thing",), (7,))
    assert (run.data_set, run.images) == ("toy", 12)
    assert run.versions["jax"] == jax.__version__
    again = rebuild(run.recipe, packages=("jaxdet", "tests"))
    batch = toy.batch_of(np.random.default_rng(0), 4)
    variables = jax.eval_shape(again.init, jax.random.key(0), batch)
    assert variables["params"]["stem"]["bias"].shape == (6,)


def test_a_run_with_checkpoints_accepts_only_itself(tmp_path, checkpoints, state):
    save_run(tmp_path, toy.toy(), toy.data_set(), toy.config(learning_rate=7.0))
    save_run(tmp_path, toy.toy(), toy.data_set(), toy.config())  # nothing learned yet
    checkpoints.save(1, state)
    checkpoints.restore(state)
    save_run(tmp_path, toy.toy(), toy.data_set(), toy.config(log_every=5))
    changed = toy.config(learning_rate=0.2)
    with pytest.raises(RunError) as error:
        save_run(tmp_path, toy.toy(width=6), toy.data_set(16), changed)
    message = str(error.value)
    assert "training/learning_rate: 0.05 in the run, 0.2 now" in message
    assert "recipe/arguments: [4] in the run, [6] now" in message
    assert "images: 12 in the run, 16 now" in message
    assert str(tmp_path) in message and "log_every" not in message
    assert load_run(tmp_path).training.log_every == 5


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "holds no run"), ("{", "is no JSON"), ("{}", "training")],
)
def test_a_broken_config_is_named(tmp_path, content, words):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(RunError, match=words) as error:
        load_run(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_field_unknown_here_is_named(tmp_path):
    save_run(tmp_path, toy.toy(), toy.data_set(), toy.config())
    values = json.loads((tmp_path / "config.json").read_text())
    values["training"]["warp"] = 9
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(RunError, match="warp"):
        load_run(tmp_path)
