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

from experiments.benchmarks import parts, report, speed, timing
from experiments.benchmarks.report import fields_of
from experiments.benchmarks.speed import MODELS, Limits, main
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
    monkeypatch.setattr(speed, "limits", lambda precision: Limits(1e9, 1e8))


@pytest.fixture
def measured(monkeypatch):
    """What has been measured; nothing is."""
    cases = []

    def measure(case, limit, options, rivals):
        cases.append(case)
        row = {**fields_of(case), "milliseconds": 20.0}
        row |= {"images_per_second": 50.0 * case.batch, "lower_seconds": 1.25}
        row |= {"compile_seconds": 10.0, "memory": 2e9, "flops": 4e12, "bytes": 1e9}
        row |= {"flops_share": 0.25, "bytes_share": 0.125}
        if rivals is not None:
            row |= {"rivals": {"eager": 40.0, "compiled": 25.0}, "ratio": 0.8}
        if options.parts:
            backbone = {"name": "backbone", "milliseconds": 12.0, "within": ""}
            row |= {"parts_whole": 16.0, "parts": [{**backbone, "layers": True}]}
        return row

    monkeypatch.setattr(speed, "measure", measure)
    return cases


@pytest.fixture
def released(monkeypatch):
    """A list that grows when a torchvision that is none releases its memory."""
    times = []
    rivals = types.SimpleNamespace(
        versions=lambda: {"torch": "2.11"}, release=lambda: times.append(1)
    )
    monkeypatch.setattr(speed, "_rivals", lambda: rivals)
    return times


def test_a_row_of_each_task(tmp_path, monkeypatch, capsys):
    """Beside a stub of torchvision."""
    seen, timed = [], []

    def medians(calls, repeats):
        timed.append(calls[0])
        return timing.medians(calls, repeats)

    for module in (speed, parts):
        monkeypatch.setattr(module, "medians", medians)

    def calls(name, variables, batch, precision, training):
        seen.append((name, precision, training, batch.images.shape))
        assert np.isfinite(sum(jnp.sum(x) for x in jax.tree.leaves(variables)))
        rival = types.SimpleNamespace(call=lambda: None, answer=1e6)
        return {"eager": rival, "compiled": rival}

    rivals = types.SimpleNamespace(
        calls=calls,
        versions=lambda: {"torch": "2.11"},
        require_device=lambda backend: None,
        release=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "experiments.benchmarks.rivals", rivals)
    files = ["--json", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "a.md")]
    main(["--detectors", "ssd", *OPTIONS, *files, "--compare", "--parts"])
    shapes = {False: (1, 64, 64, 3), True: (2, 64, 64, 3)}
    assert seen == [("ssd300_vgg16", "float32", *item) for item in shapes.items()]
    told = json.loads((tmp_path / "a.json").read_text())
    assert told["machine"] == report.machine() | {"torch": "2.11"}
    assert told["settings"] == {"objects": 3, "repeats": 1}
    assert told["limits"] == {"float32": {"flops": 1e9, "bytes": 1e8}}
    predict, train = told["rows"]
    for row, images in ((predict, 1), (train, 2)):
        seconds = row["milliseconds"] / 1000
        assert row["images_per_second"] == pytest.approx(images / seconds)
        assert row["flops_share"] == pytest.approx(row["flops"] / seconds / 1e9)
        assert row["bytes_share"] == pytest.approx(row["bytes"] / seconds / 1e8)
        assert min(row["lower_seconds"], row["compile_seconds"], row["memory"]) > 0
        assert [*row["rivals"]] == ["eager", "compiled"]
        best = min(row["rivals"].values())
        assert row["ratio"] == pytest.approx(row["milliseconds"] / best)
        milliseconds = sum(part["milliseconds"] for part in row["parts"])
        assert milliseconds == pytest.approx(row["parts_whole"])
    # The whole is ours, again with its parts.
    assert timed[0] is timed[1] and timed[2] is timed[3] and len(timed) == 4
    # Two images, not one; gradients take at most twice as much again.
    assert 2 * predict["flops"] < train["flops"] < 6 * predict["flops"]
    assert 0 < predict["found"] <= 8 and "found" not in train
    assert predict["rival_found"] == {"eager": 1e6, "compiled": 1e6}
    assert np.isfinite(train["loss"]) and "loss" not in predict
    assert train["rival_loss"] == {"eager": 1e6, "compiled": 1e6}
    assert "first losses differ" in train["warning"] and "warning" not in predict
    printed = capsys.readouterr().out
    assert "SSD, predict, float32, 64x64, batch 1: " in printed
    table = (tmp_path / "a.md").read_text()
    assert "| SSD | train | float32 | 64x64 | 2 |" in table


def test_figures_of_a_compiled_product():
    x = jnp.ones((64, 32))
    program = speed.compiled(lambda x, y: (x @ y, x), x, x.T, donate=(0,))
    figures = program.figures
    assert figures["flops"] == pytest.approx(2 * 64 * 64 * 32, rel=0.05)
    arrays = 4 * (64 * 32 + 32 * 64 + 64 * 64)  # what is donated counts once
    assert figures["memory"] == pytest.approx(arrays, rel=0.02)
    assert figures["bytes"] >= arrays


def test_limits_are_rates(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(speed, "medians", lambda calls, repeats: [1000.0])
    limit = speed.limits("bfloat16")
    assert limit.flops == 2 * 2048**3  # the larger of both products takes a second
    assert limit.bytes == 2 * 2**29  # read once, written once


def test_rows_that_are_there_are_not_measured_again(tmp_path, measured):
    path, table = tmp_path / "a.json", tmp_path / "a.md"
    files = ["--json", str(path), "--markdown", str(table)]
    main(["--detectors", "fcos", *OPTIONS, *files])
    assert [case.task for case in measured] == ["predict", "train"]
    main(["--detectors", "fcos", "ssd", *OPTIONS, *files])
    assert [case.detector for case in measured] == ["fcos", "fcos", "ssd", "ssd"]
    assert measured[-1].canvas == (64, 64)  # SSD has its own
    main(["--detectors", "fcos", "--parts", "--tasks", "train", *OPTIONS, *files])
    assert len(measured) == 5  # again, with parts
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == 4 and {"parts", "parts_whole"} <= rows[-1].keys()
    assert table.read_text().count("| FCOS |") == 2


def test_an_interruption_leaves_what_was_measured(tmp_path, monkeypatch, measured):
    measure, path = speed.measure, tmp_path / "a.json"

    def interrupted(case, *others):
        if case.task == "train":
            raise KeyboardInterrupt
        return measure(case, *others)

    monkeypatch.setattr(speed, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(["--detectors", "fcos", *OPTIONS, "--json", str(path)])
    (row,) = json.loads(path.read_text())["rows"]
    assert row["task"] == "predict" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError, RuntimeError])
def test_what_does_not_fit_fails_once(tmp_path, monkeypatch, measured, error):
    """JAX's errors, and torch's."""
    measure, path = speed.measure, tmp_path / "a.json"

    def too_large(case, *others):
        row = measure(case, *others)
        if case.task == "predict":
            raise error("RESOURCE_EXHAUSTED: Out of memory\nmore")
        return row

    monkeypatch.setattr(speed, "measure", too_large)
    command = ["--detectors", "fcos", *OPTIONS, "--json", str(path)]
    main(command)
    main([*command, "--parts"])
    tasks = [case.task for case in measured]
    assert tasks == ["predict", "train", "train"]
    failed, row = json.loads(path.read_text())["rows"]
    case = {"detector": "fcos", "precision": "float32", "canvas": [64, 96]}
    case |= {"task": "predict", "batch": 1}
    assert failed == {**case, "error": "RESOURCE_EXHAUSTED: Out of memory"}
    assert row["task"] == "train" and "parts" in row


def test_what_was_compared_stays(tmp_path, measured, released):
    """Whatever is asked for later."""
    path = tmp_path / "a.json"
    command = ["--detectors", "fcos", "--tasks", "train", "--json", str(path), *OPTIONS]
    main([*command, "--compare"])
    main(command)
    assert len(measured) == 1 == len(released)
    main([*command, "--parts"])
    main([*command, "--parts", "--compare"])
    assert len(measured) == 2
    (row,) = json.loads(path.read_text())["rows"]
    assert row["ratio"] == 0.8 and row["parts"][0]["name"] == "backbone"


@pytest.mark.parametrize(
    ("theirs", "differs"),
    [(1.0, False), (1.019, False), (0.97, True), (math.nan, True), (math.inf, True)],
)
def test_first_losses_must_agree(theirs, differs):
    row = {"loss": 1.0, "rival_loss": {"eager": 1.0, "compiled": theirs}}
    warning = speed._warning(row, tolerance=0.02)
    text = f"first losses differ: ours 1, torchvision's eager 1, compiled {theirs:.4g}"
    assert warning == ({"warning": text} if differs else {})


def test_torchvision_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "experiments.benchmarks.rivals", raising=False)
    with pytest.raises(ConfigError, match="--compare needs torch and torchvision"):
        main(["--compare"])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--canvases", "500x512"], "multiples of 32, such as 800x1344"),
        (["--canvases", "512"], "height x width"),
        (["--batches", "0"], "at least 1"),
        (["--repeats", "many"], "at least 1"),
        (["--detectors", "yolo"], "invalid choice: 'yolo'"),
    ],
)
def test_refused(options, problem, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(options)
    assert problem in capsys.readouterr().err


def test_it_runs_with_jax_flax_and_optax_alone(tmp_path):
    """In a process where nothing else can be imported."""
    others = [*OPTIONAL, "PIL", "tyro", "tqdm"]
    code = f"""
        import dataclasses, functools, runpy, sys
        sys.modules.update(dict.fromkeys({others!r}))
        from experiments.benchmarks import speed
        from jaxdet.nn.backbones.resnet import ResNet
        model = speed.MODELS["fcos"]
        small = {{"channels": 4, "head_depth": 0, "candidates": 20}}
        config = dataclasses.replace(model.config, **small)
        resnet = functools.partial(ResNet, 10, 4)
        speed.MODELS["fcos"] = model._replace(config=config, backbone=resnet)
        options = "--detectors fcos --canvases 32x32 --batches 1 --tasks predict"
        speed.main([*options.split(), "--repeats", "1"])
        sys.argv = ["benchmark", "--help"]
        runpy.run_module("experiments.benchmarks.speed", run_name="__main__")
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert "FCOS, predict, float32, 32x32, batch 1: " in found.stdout
    assert "--train-batches" in found.stdout
