"""The benchmark of the detectors, with tiny networks on tiny canvases."""

import json
import math
import subprocess
import sys
import textwrap
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import speed
from experiments.benchmarks.speed import MODELS, main
from jaxdet.config import ConfigError
from tests.experiments.benchmarks.test_models import TINY
from tests.test_conventions import OPTIONAL, ROOT

OPTIONS = ["--canvases", "64x96", "--objects", "3", "--repeats", "1", "--batches", "1"]
OPTIONS += ["--train-batches", "2", "--precisions", "float32"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Tiny networks, and no time for what the device can do."""
    for name, fields in TINY.items():
        monkeypatch.setitem(MODELS, name, MODELS[name]._replace(**fields))
    monkeypatch.setattr(speed, "limits", lambda _: {"flops": 1e9, "bytes": 1e8})


@pytest.fixture
def rivals(monkeypatch):
    """A torchvision that is none: how often it released its memory."""
    released = []

    def calls(name, variables, batch, precision, training):
        assert np.isfinite(sum(jnp.sum(x) for x in jax.tree.leaves(variables)))
        rival = types.SimpleNamespace(call=lambda: None, output=1e6)
        return {"eager": rival, "compiled": rival}

    module = types.SimpleNamespace(
        calls=calls,
        versions=lambda: {"torch": "2.11"},
        require_device=lambda backend: None,
        release=lambda: released.append(1),
    )
    monkeypatch.setitem(sys.modules, "experiments.benchmarks.rivals", module)
    return released


@pytest.fixture
def measured(monkeypatch):
    """The cases that have been measured, though none is; those of batch 32 fail."""
    cases = []

    def measure(case, limit, options, rivals):
        cases.append(case)
        if case.batch == 32:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore")
        row = {
            "milliseconds": 20.0,
            "images_per_second": 50.0 * case.batch,
            "lower_seconds": 1.25,
        }
        row |= {"compile_seconds": 10.0, "memory": 2e9, "flops": 4e12, "bytes": 1e9}
        row |= {"flops_share": 0.25, "bytes_share": 0.125}
        if rivals is not None:
            row |= {"rivals": {"eager": 40.0, "compiled": 25.0}, "ratio": 0.8}
        if options.parts:
            row |= {"parts": {"backbone": 12.0, "whole": 16.0}}
        return row

    monkeypatch.setattr(speed, "measure", measure)
    return cases


def rows(path):
    return json.loads(path.read_text())["rows"].values()


def test_figures_of_a_compiled_product():
    x = jnp.ones((64, 32))
    _, figures = speed.compiled(lambda x, y: (x @ y, x), x, x.T, donate=(0,))
    assert figures["flops"] == pytest.approx(2 * 64 * 64 * 32, rel=0.05)
    arrays = 4 * (64 * 32 + 32 * 64 + 64 * 64)  # what is donated counts once
    assert figures["memory"] == pytest.approx(arrays, rel=0.02)
    assert figures["bytes"] >= arrays


def test_flops_where_the_device_does_not_tell_them():
    x = jnp.ones((64, 32))
    silent = types.SimpleNamespace(cost_analysis=lambda: None)
    flops = speed._flops(lambda tree: tree["x"] @ tree["x"].T, ({"x": x},), silent)
    assert flops == pytest.approx(2 * 64 * 64 * 32, rel=0.05)


def test_limits_are_rates(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(speed, "medians", lambda calls, repeats: [1000.0])
    limit = speed.limits("bfloat16")
    assert limit["flops"] == 2 * 2048**3  # the larger of both products takes a second
    assert limit["bytes"] == 2 * 2**29  # read once, written once


@pytest.mark.parametrize(
    ("theirs", "differs"),
    [(1.0, False), (1.019, False), (0.97, True), (math.nan, True), (math.inf, True)],
)
def test_first_losses_must_agree(theirs, differs):
    row = {"loss": 1.0, "rival_loss": {"eager": 1.0, "compiled": theirs}}
    warning = speed._warning(row, tolerance=0.02)
    text = f"first losses differ: ours 1, torchvision's eager 1, compiled {theirs:.4g}"
    assert warning == ({"warning": text} if differs else {})


@pytest.mark.slow
def test_a_row_of_each_task(tmp_path, rivals):
    path = tmp_path / "a.json"
    main(["--detectors", "ssd", *OPTIONS, "--json", str(path), "--compare", "--parts"])
    predict, train = rows(path)
    for row, images in ((predict, 1), (train, 2)):
        seconds = row["milliseconds"] / 1000
        assert row["canvas"] == [64, 64]  # SSD has its own
        assert row["images_per_second"] == pytest.approx(images / seconds)
        assert row["flops_share"] == pytest.approx(row["flops"] / seconds / 1e9)
        assert row["bytes_share"] == pytest.approx(row["bytes"] / seconds / 1e8)
        assert min(row["lower_seconds"], row["compile_seconds"], row["memory"]) > 0
        best = min(row["rivals"].values())
        assert row["ratio"] == pytest.approx(row["milliseconds"] / best)
        *parts, whole = row["parts"].values()
        assert sum(parts) == pytest.approx(whole)
    # Two images, not one; gradients take at most twice as much again.
    assert 2 * predict["flops"] < train["flops"] < 6 * predict["flops"]
    assert 0 < predict["detections"] <= 8 and "detections" not in train
    assert np.isfinite(train["loss"]) and "loss" not in predict
    assert train["rival_loss"] == {"eager": 1e6, "compiled": 1e6}
    assert "first losses differ" in train["warning"] and "warning" not in predict
    assert len(rivals) == 2


def test_rows_that_are_there_are_not_measured_again(tmp_path, measured, rivals):
    path = tmp_path / "a.json"
    command = [*OPTIONS, "--json", str(path), "--detectors", "fcos"]
    main([*command, "--compare"])
    main(command)
    assert [case.task for case in measured] == ["predict", "train"] and len(rivals) == 2
    main([*command, "ssd"])
    assert [case.detector for case in measured[2:]] == ["ssd", "ssd"]
    main([*command, "--parts", "--compare", "--tasks", "train"])
    assert len(measured) == 5  # again, with parts; what was compared stays
    _, row, *others = rows(path)
    assert row["ratio"] == 0.8 and row["parts"]["backbone"] == 12 and len(others) == 2


def test_what_does_not_fit_fails_once(tmp_path, measured):
    path = tmp_path / "a.json"
    command = ["--detectors", "fcos", *OPTIONS, "--batches", "32", "--json", str(path)]
    main(command)
    main(command)
    assert [case.task for case in measured] == ["predict", "train"]
    failed, row = rows(path)
    assert failed["error"] == "RESOURCE_EXHAUSTED: Out of memory"
    assert failed["batch"] == 32 and row["task"] == "train"


def test_an_interruption_leaves_what_was_measured(tmp_path, monkeypatch, measured):
    measure, path = speed.measure, tmp_path / "a.json"

    def interrupted(case, *others):
        if case.task == "train":
            raise KeyboardInterrupt
        return measure(case, *others)

    monkeypatch.setattr(speed, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(["--detectors", "fcos", *OPTIONS, "--json", str(path)])
    (row,) = rows(path)
    assert row["task"] == "predict"


def test_torchvision_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "experiments.benchmarks.rivals", raising=False)
    with pytest.raises(ConfigError, match="--compare needs torch and torchvision"):
        main(["--compare"])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--canvases", "500x512"], "multiples of 32, such as 800x1344"),
        (["--batches", "0"], "at least 1"),
    ],
)
def test_refused(options, problem, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(options)
    assert problem in capsys.readouterr().err


@pytest.mark.slow
def test_it_runs_with_jax_flax_optax_and_orbax_alone():
    """In a process where nothing else can be imported."""
    others = [*OPTIONAL, "PIL", "tyro", "tqdm"]
    code = f"""
        import dataclasses, functools, sys
        sys.modules.update(dict.fromkeys({others!r}))
        from experiments.benchmarks import speed
        from jaxdet.nn.backbones.resnet import ResNet
        model = speed.MODELS["fcos"]
        config = dataclasses.replace(model.config, channels=4, head_depth=0)
        resnet = functools.partial(ResNet, 10, 4)
        speed.MODELS["fcos"] = model._replace(config=config, backbone=resnet)
        options = "--detectors fcos --canvases 32x32 --batches 1 --tasks predict"
        speed.main([*options.split(), "--repeats", "1"])
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert "FCOS, predict, float32, 32x32, batch 1: " in process.stdout
