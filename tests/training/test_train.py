import dataclasses
import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest

from jaxdet import parallel
from jaxdet.data.dataset import DataError
from jaxdet.data.input_config import InputConfig
from jaxdet.training.checkpoint import Checkpoints, load_variables
from jaxdet.training.metrics import RecentMetrics
from jaxdet.training.train import train
from jaxdet.weights.transfer import Weights
from tests.training import toy
from tests.training.test_log import events

RNG = np.random.default_rng(0)
CONFIG = toy.config(checkpoint_every=2, ema_decay=0.9, frozen=("stem/bias",))


def interrupted(data_set, number, *, reads):
    """The same data, but reading a further image after so many sends a signal.

    A run reads four images a step, and four before its first.
    """
    count = itertools.count()

    def read_image(position):
        if next(count) == reads:
            os.kill(os.getpid(), number)
        return data_set.read_image(position)

    return dataclasses.replace(data_set, read_image=read_image)


def run(workdir, data=None, config=CONFIG, **options):
    """Trains the toy, or goes on where the run in a folder stopped."""
    data = data or toy.data_set()
    return jax.device_get(train(toy.toy(), data, config, workdir=workdir, **options))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run from the first step to the last, with its folder."""
    workdir = tmp_path_factory.mktemp("unbroken")
    config = dataclasses.replace(CONFIG, evaluate_every=5, pictures=2, profile_steps=2)
    return run(workdir, config=config, validation=toy.data_set(6, tall=2)), workdir


def starts(workdir):
    """The step at which each run in a folder began."""
    lines = (workdir / "log.txt").read_text().splitlines()
    words = [line.split("; steps ") for line in lines if "; steps " in line]
    return [int(rest.split()[0]) for _, rest in words]


def test_a_killed_run_ends_as_the_unbroken_one(unbroken, tmp_path):
    code = (
        "import tests.conftest, signal, sys\n"
        "from tests.training.test_train import *\n"
        "data = interrupted(toy.data_set(), signal.SIGKILL, reads=4 * 6)\n"
        "run(sys.argv[1], data)\n"
    )
    root = pathlib.Path(__file__).parents[2]
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, cwd=root).returncode == -signal.SIGKILL
    chex.assert_trees_all_equal(run(tmp_path), unbroken[0])
    first, second = starts(tmp_path)
    assert first == 0 and second in (2, 4)  # 4 unless the kill hit its writing


def test_a_stopped_run_saves_its_step_and_ends_as_the_unbroken_one(
    unbroken, tmp_path, capsys
):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    data = interrupted(toy.data_set(), signal.SIGINT, reads=4 * 6)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, data)
    assert "stopped; the same command goes on after step 6" in capsys.readouterr().out
    data = interrupted(toy.data_set(), signal.SIGTERM, reads=4)
    with pytest.raises(SystemExit) as ending:
        run(tmp_path, data)
    assert ending.value.code == 128 + signal.SIGTERM
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    chex.assert_trees_all_equal(run(tmp_path), unbroken[0])
    assert starts(tmp_path) == [0, 6, 7]


def test_a_finished_run_does_nothing_and_says_so(unbroken, capsys):
    state, workdir = unbroken
    files = {path: path.stat().st_mtime_ns for path in workdir.rglob("*.*")}
    files.pop(workdir / "config.json")
    chex.assert_trees_all_equal(run(workdir), state)
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())
    assert "nothing left to do" in capsys.readouterr().out


def test_a_run_leaves_a_log_pictures_and_a_trace(unbroken):
    _, workdir = unbroken
    log = (workdir / "log.txt").read_text()
    for words in (
        "toy: 12 images, 3 steps an epoch; steps 0 to 8, 4 images each on 4 devices",
        "learning rate 0.05 after 2 steps of warm-up",
        "canvas 16x16 compiled in ",
        "step 8/8",
        "data_time",
        "evaluation at step 5  AP ",
        "AP/thing ",
        "traced steps 7 to 8 into ",
    ):
        assert words in log
    assert list(workdir.glob("events.out.tfevents.*"))
    pictures = sorted(path.name for path in (workdir / "pictures").iterdir())
    names = ("0", "1", "training_input")
    drawn = [f"000000{step}_{name}.png" for step in (5, 8) for name in names]
    assert pictures == ["0000000_training_input.png", *drawn]
    assert list((workdir / "profile").rglob("*.trace.json.gz"))
    assert json.loads((workdir / "config.json").read_text())["data_set"] == "toy"


def test_compilations_do_not_count_as_training(tmp_path, monkeypatch):
    left_out = []
    monkeypatch.setattr(RecentMetrics, "leave_out", lambda _, x: left_out.append(x))
    run(tmp_path)
    (seconds,) = left_out  # of one canvas
    log = (tmp_path / "log.txt").read_text()
    assert f"canvas 16x16 compiled in {seconds:.1f} s" in log


def test_the_average_is_what_a_run_gives(unbroken):
    state, workdir = unbroken
    variables = load_variables(workdir, state.variables, step="latest")
    chex.assert_trees_all_equal(variables, state.variables)
    average = variables["params"]["box"]["kernel"]
    assert (average != state.online_params["box/kernel"]).any()


def test_an_evaluation_that_fails_is_made_when_the_run_goes_on_and_only_once(
    tmp_path, capsys
):
    def read_image(position):
        raise DataError("a broken photograph")

    def metrics(ground_truth, results):
        calls.append(len(results))
        return {"quality": float("nan")}  # which is never the best

    calls, validation = [], toy.data_set(4)
    broken = dataclasses.replace(validation, read_image=read_image)
    with pytest.raises(DataError, match="a broken photograph"):
        run(tmp_path, validation=broken)
    assert (tmp_path / "checkpoints" / str(CONFIG.steps)).is_dir()
    for _ in range(2):
        run(tmp_path, validation=validation, metrics=metrics)
    assert calls == [4]
    log = (tmp_path / "log.txt").read_text()
    assert "step 8 is saved, but not evaluated; that comes first" in log
    assert log.count("evaluation at step 8  quality nan") == 1 and "step 9" not in log
    assert "nothing left to do" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_evaluation_and_loses_no_step(
    unbroken, tmp_path, capsys, number
):
    config = dataclasses.replace(CONFIG, evaluate_every=5, checkpoint_every=100)
    validation = toy.data_set(4)
    stopped = interrupted(validation, number, reads=1)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(tmp_path, config=config, validation=stopped)
    assert "stopped; the same command goes on after step 5" in capsys.readouterr().out
    assert "evaluation at" not in (tmp_path / "log.txt").read_text()
    state = run(tmp_path, config=config, validation=validation)
    chex.assert_trees_all_equal(state, unbroken[0])
    assert starts(tmp_path) == [0, 5]
    log = (tmp_path / "log.txt").read_text()
    assert re.findall(r"evaluation at step (\d)", log) == ["5", "8"]


def test_the_best_by_any_metrics_is_kept_though_it_is_evaluated_after_it_was_saved(
    tmp_path,
):
    qualities = iter([0.1, 0.9, 0.5, 0.7])

    def metrics(ground_truth, results):
        assert len(ground_truth["images"]) == len(results) == 4
        return {"quality": next(qualities), "AP": 0.5}

    config = dataclasses.replace(CONFIG, evaluate_every=2, keep_checkpoints=1)
    validation = toy.data_set(4)
    state = run(tmp_path, config=config, validation=validation, metrics=metrics)
    log = (tmp_path / "log.txt").read_text()
    assert "evaluation at step 4  quality 0.9  AP 0.5" in log
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"4", "8"}
    best = load_variables(tmp_path, state.variables)
    fourth = load_variables(tmp_path, state.variables, step=4)
    chex.assert_trees_all_equal(best, fourth)


def test_numbers_are_handed_over_and_what_that_raises_loses_no_step(unbroken, tmp_path):
    def on_metrics(step, numbers):
        calls.append((step, set(numbers)))
        if step == 4:
            raise ZeroDivisionError("the tracker is gone")

    calls = []
    config = dataclasses.replace(CONFIG, checkpoint_every=100, evaluate_every=5)
    options = {"config": config, "validation": toy.data_set(6, tall=2)}
    with pytest.raises(ZeroDivisionError, match="the tracker is gone"):
        run(tmp_path, on_metrics=on_metrics, **options)
    state = run(tmp_path, on_metrics=on_metrics, **options)
    chex.assert_trees_all_equal(state, unbroken[0])
    assert starts(tmp_path) == [0, 4]
    assert [step for step, _ in calls] == [2, 4, 5, 5, 6, 8, 8]
    shown = {
        (step, tag) for step, tag, number in events(tmp_path) if number is not None
    }
    assert shown == {(step, name) for step, names in calls for name in names}
    assert {
        (2, "training/loss"),
        (5, "validation/AP"),
        (8, "classes/AP/thing"),
    } <= shown


def test_a_run_that_dies_with_its_numbers_saved_has_logged_them(tmp_path, monkeypatch):
    class Dies(BaseException):
        """Stands for a kill."""

    def save(checkpoints, step, state, metrics=None):
        whole(checkpoints, step, state, metrics)
        if metrics is not None and not died:
            died.append(step)
            raise Dies

    whole, died = Checkpoints.save, []
    monkeypatch.setattr(Checkpoints, "save", save)
    config = dataclasses.replace(CONFIG, evaluate_every=5, pictures=1)
    options = {"config": config, "validation": toy.data_set(6)}
    with pytest.raises(Dies):
        run(tmp_path, **options)
    run(tmp_path, **options)
    log = (tmp_path / "log.txt").read_text()
    assert re.findall(r"evaluation at step (\d)", log) == ["5", "8"]
    assert len(list((tmp_path / "pictures").glob("*5_*"))) == 2


def test_hosts_must_begin_with_the_same_parameters(tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(
        parallel, "require_same", lambda values: compared.append(values())
    )
    fresh = toy.toy().init(jax.random.key(0), toy.batch_of(RNG, 1))
    for bias in (0.0, 0.0, 1.0):
        variables = jax.tree.map(lambda x, bias=bias: x + bias, fresh)
        config = toy.config(steps=1, warmup_steps=0)
        workdir = tmp_path / str(len(compared))
        run(workdir, config=config, weights=Weights(variables, "a.npz", "0" * 64))
    first, same, other = compared[1::2]
    assert first == same != other and first.keys() == {"parameters"}


def test_a_run_says_what_it_started_from_and_again_when_it_goes_on(tmp_path):
    variables = toy.toy().init(jax.random.key(7), toy.batch_of(RNG, 1))
    weights = Weights(variables, "a.npz", "0" * 64)
    config = toy.config(learning_rate=1e-9)
    data = interrupted(toy.data_set(), signal.SIGINT, reads=4 * 2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, data, config, weights=weights)
    after = run(tmp_path, config=config).variables
    chex.assert_trees_all_close(after, variables, atol=1e-6)
    line = f"started from a.npz (SHA-256 {'0' * 16}): kept 5 tensors, 0 new\n"
    assert (tmp_path / "log.txt").read_text().count(line) == 2


def test_one_compilation_for_each_canvas_and_a_falling_loss(tmp_path):
    compiled = []

    def listen(event, _seconds, fun_name="", **_):
        # jit(_fun) is what jax calls any mapped function; here there is one.
        if event.endswith("backend_compile_duration") and fun_name == "jit(_fun)":
            compiled.append(event)

    canvases = ((16, 16), (16, 8), (8, 64))  # without images in the last
    inputs = InputConfig(canvases=canvases, max_objects=3, workers=0)
    config = toy.config(steps=24, learning_rate=1.0, log_every=8, input=inputs)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run(tmp_path, toy.data_set(tall=6), config)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compiled) == 2
    text = (tmp_path / "log.txt").read_text()
    assert "; canvases 16x16, 16x8, each compiled once; " in text
    assert sorted(re.findall(r"canvas (\w+) compiled", text)) == ["16x16", "16x8"]
    lines = text.splitlines()
    losses = [float(x.split(" loss ")[1].split()[0]) for x in lines if " loss " in x]
    assert losses[-1] < 0.5 * losses[0]
