"""The benchmark of the detectors, with tiny networks on tiny canvases."""

import dataclasses
import functools
import json
import math
import re
import subprocess
import sys
import textwrap
import types
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from experiments import benchmark, benchmark_parts
from experiments.benchmark import MODELS, Limits, main
from jaxdet import torchvision
from jaxdet.detectors import faster_rcnn, fcos, mask_rcnn, retinanet, ssd
from jaxdet.nn.extra_stages import ExtraStages
from jaxdet.nn.heads import FCHead
from jaxdet.nn.resnet import ResNet, ResNetHead
from jaxdet.structs import Batch, Detections
from jaxdet.training.config import ConfigError
from tests.test_conventions import OPTIONAL, ROOT

DENSE = {"num_classes": 4, "channels": 4, "head_depth": 1, "detections": 8}
DENSE |= {"score_threshold": 0.2, "candidates": 20}
RPN = {"candidates": 12, "proposals": 6, "train_candidates": 12, "train_proposals": 6}
REGION = {"per_image": 8, "candidates": 20, "detections": 4}
SLOW = pytest.mark.slow


def boxes_config(config, **rpn):
    return dataclasses.replace(
        config,
        num_classes=4,
        rpn=dataclasses.replace(config.rpn, **RPN, **rpn),
        region=dataclasses.replace(config.region, **REGION),
    )


def ssd_backbone(dtype):
    return ExtraStages(ResNet(10, 4, coarsest=4, dtype=dtype), ((4, 8),), dtype=dtype)


SMALL = partial(ResNet, 10, 4)
HEAD = partial(FCHead, 8, depth=1)
FASTER_RCNN = boxes_config(faster_rcnn.TORCHVISION, channels=4)
C4 = boxes_config(dataclasses.replace(faster_rcnn.DETECTRON2_C4, pool_size=4))
TINY = {
    "retinanet": {
        "config": dataclasses.replace(retinanet.TORCHVISION, **DENSE),
        "backbone": SMALL,
    },
    "fcos": {
        "config": dataclasses.replace(fcos.TORCHVISION, **DENSE),
        "backbone": SMALL,
    },
    "faster_rcnn": {
        "config": FASTER_RCNN,
        "backbone": SMALL,
        "region_head": HEAD,
    },
    "faster_rcnn_c4": {
        "config": C4,
        "backbone": partial(SMALL, coarsest=4),
        "region_head": partial(ResNetHead, 10, 4),
    },
    "mask_rcnn": {
        "config": mask_rcnn.MaskRCNNConfig(
            FASTER_RCNN, mask_pool_size=4, mask_channels=4, mask_depth=1
        ),
        "backbone": SMALL,
        "region_head": HEAD,
    },
    "ssd": {
        "config": ssd.SSDConfig(
            num_classes=4,
            levels=(4, 5),
            steps=(16.0, 32.0),
            shapes=(((20.0, 20.0),), ((40.0, 40.0), (50.0, 25.0))),
            candidates=8,
            detections=8,
        ),
        "backbone": ssd_backbone,
        "canvas": (64, 64),
    },
}
OPTIONS = ["--canvases", "64x96", "--objects", "3", "--repeats", "1", "--batches", "1"]
OPTIONS += ["--train-batches", "2", "--precisions", "float32"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Tiny networks, and no time for what the device can do."""
    monkeypatch.setattr(
        benchmark,
        "MODELS",
        {name: MODELS[name]._replace(**fields) for name, fields in TINY.items()},
    )
    monkeypatch.setattr(benchmark, "limits", lambda precision: Limits(1e9, 1e8))


@pytest.fixture
def measured(monkeypatch):
    """What has been measured; nothing is."""
    cases = []

    def measure(case, limit, options, rivals):
        cases.append(case)
        row = {**case._asdict(), "canvas": list(case.canvas), "milliseconds": 20.0}
        row |= {"images_per_second": 50.0 * case.batch, "lower_seconds": 1.25}
        row |= {"compile_seconds": 10.0, "memory": 2e9, "flops": 4e12, "bytes": 1e9}
        row |= {"flops_share": 0.25, "bytes_share": 0.125}
        if rivals is not None:
            row |= {"rivals": {"eager": 40.0, "compiled": 25.0}, "ratio": 0.8}
        if options.parts:
            parts = [("backbone", 12.0, ""), ("proposals", 5.0, "")]
            parts += [("NMS", 4.0, "proposals")]
            names = "name", "milliseconds", "within"
            row["parts"] = [dict(zip(names, part, strict=True)) for part in parts]
        return row

    monkeypatch.setattr(benchmark, "measure", measure)
    return cases


def test_a_row_of_each_task(tmp_path, monkeypatch, capsys):
    """Beside a stub of torchvision."""
    seen = []

    def calls(name, variables, batch, precision, training):
        seen.append((name, precision, training, batch.images.shape))
        assert np.isfinite(sum(jnp.sum(x) for x in jax.tree.leaves(variables)))
        return {"eager": lambda: "found", "compiled": lambda: "found"}

    rivals = types.SimpleNamespace(
        calls=calls,
        found=lambda call: {"found": 3.5}[call()],
        versions=lambda: {"torch": "2.11"},
        require_device=lambda backend: None,
    )
    monkeypatch.setitem(sys.modules, "experiments.benchmark_rivals", rivals)
    files = ["--json", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "a.md")]
    main(["--detectors", "ssd", *OPTIONS, *files, "--compare", "--parts"])
    shapes = {False: (1, 64, 64, 3), True: (2, 64, 64, 3)}
    assert seen == [("ssd300_vgg16", "float32", *item) for item in shapes.items()]
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["machine"] == benchmark.machine() | {"torch": "2.11"}
    assert report["limits"] == {"float32": {"flops": 1e9, "bytes": 1e8}}
    predict, train = report["rows"]
    for row, images in ((predict, 1), (train, 2)):
        seconds = row["milliseconds"] / 1000
        assert row["images_per_second"] == pytest.approx(images / seconds)
        assert row["flops_share"] == pytest.approx(row["flops"] / seconds / 1e9)
        assert row["bytes_share"] == pytest.approx(row["bytes"] / seconds / 1e8)
        assert min(row["lower_seconds"], row["compile_seconds"], row["memory"]) > 0
        assert [*row["rivals"]] == ["eager", "compiled"]
        best = min(row["rivals"].values())
        assert row["ratio"] == pytest.approx(row["milliseconds"] / best)
        assert all(part["milliseconds"] > 0 for part in row["parts"])
    # Two images; gradients take at most twice as much again.
    assert 2 * predict["flops"] < train["flops"] < 6 * predict["flops"]
    assert 0 < predict["found"] <= 8 and "found" not in train
    assert predict["rival_found"] == {"eager": 3.5, "compiled": 3.5}
    names = [part["name"] for part in predict["parts"]]
    dense = ["pixels", "backbone", "neck and heads"]
    assert names == [*dense, "best scores, decoding, NMS"]
    names = [part["name"] for part in train["parts"]]
    assert names == [*dense, "matching and losses", "optimizer"]
    printed = capsys.readouterr().out
    assert "SSD, predict, float32, 64x64, batch 1: " in printed
    table = (tmp_path / "a.md").read_text()
    assert "| SSD | train | float32 | 64x64 | 2 |" in table


def prepared(name):
    """A detector, its variables, a batch, and what its parts are made of."""
    model = benchmark.MODELS[name]
    detector = model.detector("float32")
    masks = name == "mask_rcnn"
    batch = benchmark.random_batch(2, (64, 64), 3, detector.num_classes, masks=masks)
    variables = benchmark.at_rest(jax.jit(detector.init)(jax.random.key(0), batch))
    network = benchmark_parts.network(model.config, *model.layers("float32"))
    return detector, variables, batch, network, model.config


@pytest.mark.parametrize(
    "name",
    ["ssd", *(pytest.param(x, marks=SLOW) for x in ("retinanet", "fcos", "mask_rcnn"))],
)
def test_the_parts_make_the_whole(name):
    """The last part of `predict` answers what the detector does."""
    detector, variables, batch, network, config = prepared(name)
    predict = jax.jit(detector.predict)
    variables = benchmark.with_answers(predict, variables, batch)
    found = predict(variables, batch)
    assert np.any(found.valid)
    bench = benchmark_parts.Workbench(network, variables, batch, training=False)
    benchmark_parts.add_parts(bench, config)
    answers = [part.function(*part.arguments) for part in bench.parts]
    (answer,) = [x for x in answers if isinstance(x, Detections)]
    for field in ("boxes", "scores", "labels", "valid"):
        ours, theirs = getattr(answer, field), getattr(found, field)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    if name == "mask_rcnn":
        assert answers[-1].shape[0] == found.valid.size


@pytest.mark.parametrize(
    "name", ["faster_rcnn_c4", pytest.param("mask_rcnn", marks=SLOW)]
)
def test_the_parts_of_a_step_are_those_of_its_losses(name):
    detector, variables, batch, network, config = prepared(name)
    bench = benchmark_parts.Workbench(network, variables, batch, training=True)
    benchmark_parts.add_parts(bench, config)
    names = [part.name for part in bench.parts]
    masks = ["RoI Align of masks", "mask head", "mask targets"]
    assert names == [
        *("pixels", "backbone", "neck", "RPN head", "proposals", "NMS"),
        *("RPN matching and losses", "matching", "sampling", "RoI Align"),
        *("region head", "region losses"),
        *(masks if name == "mask_rcnn" else []),
    ]
    within = {part.name: part.within for part in bench.parts if part.within}
    assert within == {"NMS": "proposals", "matching": "RPN matching and losses"}
    found = {part.name: part.function(*part.arguments) for part in bench.parts}
    losses, _ = found["region losses"]
    _, metrics = jax.eval_shape(detector.loss, variables, batch, jax.random.key(0))
    objectness = found["RPN matching and losses"][0]["objectness_loss"]
    assert {*losses, "objectness_loss"} <= metrics.keys()
    assert np.isfinite([*losses.values(), objectness]).all()
    _, (gradients, _) = found["backbone"]
    assert [*gradients] == ["backbone"]
    assert jax.tree.all(jax.tree.map(lambda x: bool(jnp.any(x != 0)), gradients))


def any_batch(name):
    canvas = MODELS[name].canvas or (64, 64)
    return Batch(jax.ShapeDtypeStruct((1, *canvas, 3), np.uint8), None, None, None)


@functools.cache
def shapes(name):
    """Of the variables of a detector as it is measured."""
    init = MODELS[name].detector("float32").init
    return jax.eval_shape(init, jax.random.key(0), any_batch(name))


@pytest.mark.parametrize("name", MODELS)
def test_boxes_rest_and_class_scores_are_scaled(name):
    """The names of the layers, in the networks as they are measured."""
    ones = jax.tree.map(lambda x: np.ones(x.shape[-1:], np.float32), shapes(name))
    rested = flatten_dict(benchmark.at_rest(ones), sep="/")
    still = {path for path, values in rested.items() if not np.any(values)}
    expected = {
        "retinanet": {"box_head/output"},
        "fcos": {"head/sides"},
        "ssd": {f"deltas{level}" for level in range(3, 9)},
    }.get(name, {"rpn_head/deltas", "predictor/deltas"})
    assert still == {f"params/{layer}/kernel" for layer in expected}
    moved = {path for path, values in rested.items() if np.all(values == 3)}
    assert moved == ({"params/head/sides/bias"} if name == "fcos" else set())
    scaled = {path for path in rested if re.fullmatch(benchmark._CLASSES, path)}
    expected = {
        "retinanet": {"class_head/output"},
        "fcos": {"head/classes"},
        "ssd": {f"classes{level}" for level in range(3, 9)},
    }.get(name, {"predictor/classes"})
    assert scaled == {f"params/{layer}/kernel" for layer in expected}


@pytest.mark.parametrize("name", [name for name, m in MODELS.items() if m.rival])
def test_the_networks_are_torchvisions(name):
    """So that its weights are ours."""
    theirs = torchvision.build(MODELS[name].rival).init
    theirs = jax.eval_shape(theirs, jax.random.key(0), any_batch(name))
    chex.assert_trees_all_equal_shapes(shapes(name), theirs)


def test_variables_find_about_fifty(monkeypatch):
    """Where each doubling of the scores finds ten more, 2**5 finds fifty."""
    asked = []

    def predict(variables, batch):
        power = np.log2(variables["params"]["head"]["classes"]["kernel"])
        asked.append(float(power))
        return types.SimpleNamespace(valid=np.ones((1, max(0, math.floor(10 * power)))))

    variables = {"params": {"head": {"classes": {"kernel": 1.0, "bias": 7.0}}}}
    found = benchmark.with_answers(predict, variables, None)["params"]["head"]
    assert np.log2(found["classes"]["kernel"]) == pytest.approx(5, abs=20 / 2**8)
    assert found["classes"]["bias"] == 7.0 and len(asked) == 8
    assert np.log2(found["classes"]["kernel"]) >= 5  # at least so many


def test_figures_of_a_compiled_product():
    x = jnp.ones((64, 32))
    program = benchmark.compiled(lambda x, y: (x @ y, x), x, x.T, donate=(0,))
    figures = program.figures
    assert figures["flops"] == pytest.approx(2 * 64 * 64 * 32, rel=0.05)
    arrays = 4 * (64 * 32 + 32 * 64 + 64 * 64)  # what is donated counts once
    assert figures["memory"] == pytest.approx(arrays, rel=0.02)
    assert figures["bytes"] >= arrays


def test_limits_are_rates(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(benchmark, "medians", lambda calls, repeats: [1000.0])
    limit = benchmark.limits("bfloat16")
    assert limit.flops == 2 * 2048**3  # the larger of both products takes a second
    assert limit.bytes == 2 * 2**26  # read once, written once


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
    assert len(rows) == 4 and "parts" in rows[-1]
    assert table.read_text().count("| FCOS |") == 2


def test_an_interruption_leaves_what_was_measured(tmp_path, monkeypatch, measured):
    measure, path = benchmark.measure, tmp_path / "a.json"

    def interrupted(case, *others):
        if case.task == "train":
            raise KeyboardInterrupt
        return measure(case, *others)

    monkeypatch.setattr(benchmark, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(["--detectors", "fcos", *OPTIONS, "--json", str(path)])
    (row,) = json.loads(path.read_text())["rows"]
    assert row["task"] == "predict" and list(tmp_path.iterdir()) == [path]


def test_what_does_not_fit_is_left_out(tmp_path, monkeypatch, measured, capsys):
    measure, path = benchmark.measure, tmp_path / "a.json"

    def too_large(case, *others):
        if case.task == "predict":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore")
        return measure(case, *others)

    monkeypatch.setattr(benchmark, "measure", too_large)
    main(["--detectors", "fcos", *OPTIONS, "--json", str(path)])
    (row,) = json.loads(path.read_text())["rows"]
    assert row["task"] == "train"
    told = "FCOS, predict, float32, 64x96, batch 1: RESOURCE_EXHAUSTED: Out of memory"
    assert told in capsys.readouterr().out.splitlines()


def test_the_table(tmp_path, measured, monkeypatch):
    rivals = types.SimpleNamespace(
        versions=lambda: {"torch": "2.11"}, require_device=lambda backend: None
    )
    monkeypatch.setattr(benchmark, "_rivals", lambda: rivals)
    path = tmp_path / "a.md"
    options = ["--tasks", "train", "--compare", "--parts", "--markdown", str(path)]
    main(["--detectors", "fcos", "faster_rcnn_c4", *OPTIONS, *options])
    lines = path.read_text().splitlines()
    assert f" cores, jax {jax.__version__}, torch 2.11, 20" in lines[0]
    assert "float32: 0.001 TFLOP/s in matrix products, 0.1 GB/s in copies." in lines
    row = "train | float32 | 64x96 | 2 | 20 | 100 | 1.2 + 10 | 2 | 4 | 25% | 12% |"
    assert f"| FCOS | {row} 25 (compiled) | 0.80 |" in lines
    assert f"| Faster R-CNN, C4 | {row}  |  |" in lines  # torchvision has none
    assert lines[-6:] == [
        "| part | ms | share |",
        "|---|---|---|",
        "| backbone | 12 | 60% |",
        "| proposals | 5 | 25% |",
        "| of it NMS | 4 | 20% |",
        "| all else | 3 | 15% |",
    ]


def test_another_machines_file_is_refused(tmp_path, measured):
    path = tmp_path / "a.json"
    main(["--detectors", "fcos", *OPTIONS, "--json", str(path)])
    report = json.loads(path.read_text())
    report["machine"]["device"] = "abacus"
    path.write_text(json.dumps(report))
    with pytest.raises(ConfigError, match=r"a\.json was measured with device abacus"):
        main(["--detectors", "fcos", *OPTIONS, "--json", str(path)])


def test_torchvision_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "experiments.benchmark_rivals", raising=False)
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
        from experiments import benchmark
        from jaxdet.nn.resnet import ResNet
        model = benchmark.MODELS["fcos"]
        small = {{"channels": 4, "head_depth": 0, "candidates": 20}}
        config = dataclasses.replace(model.config, **small)
        resnet = functools.partial(ResNet, 10, 4)
        benchmark.MODELS["fcos"] = model._replace(config=config, backbone=resnet)
        options = "--detectors fcos --canvases 32x32 --batches 1 --tasks predict"
        benchmark.main([*options.split(), "--repeats", "1"])
        sys.argv = ["benchmark", "--help"]
        runpy.run_module("experiments.benchmark", run_name="__main__")
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
