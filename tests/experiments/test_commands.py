"""The scripts people run, with small numbers: every option, every file they leave."""

import ast
import dataclasses
import errno
import functools
import importlib
import inspect
import itertools
import json
import logging
import math
import os
import pathlib
import re
import runpy
import subprocess
import sys
import textwrap
import types

import jax
import numpy as np
import pytest
import tyro
from PIL import Image

import experiments.digits
from experiments import (
    command_line,
    detect,
    evaluate,
    export,
    fast_rcnn_voc,
    faster_rcnn_folder,
    faster_rcnn_fpn_coco,
    faster_rcnn_voc,
    mask_rcnn_coco,
    mask_rcnn_folder,
    proposals,
    quickstart,
    rcnn_voc,
    retinanet_coco,
    retinanet_folder,
    sppnet_voc,
    ssd300_voc,
    transfer_folder,
    voc_recipes,
)
from experiments.lecture import anatomy, scale_comparison
from jaxdet import parallel
from jaxdet.config import ConfigError
from jaxdet.data import batching
from jaxdet.data.dataset import DataError
from jaxdet.data.formats import coco, digits, tfds, voc
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.detector import Detector
from jaxdet.detectors.fast_rcnn import FastRCNNConfig
from jaxdet.detectors.faster_rcnn import FasterRCNNConfig
from jaxdet.detectors.fcos import FCOSConfig
from jaxdet.detectors.mask_rcnn import MaskRCNNConfig
from jaxdet.detectors.rcnn import RCNNConfig
from jaxdet.detectors.retinanet import RetinaNetConfig
from jaxdet.detectors.roi_heads import RoIHeadsConfig
from jaxdet.detectors.rpn import RPNConfig
from jaxdet.detectors.serialization import deserialize
from jaxdet.detectors.sppnet import SPPNetConfig
from jaxdet.detectors.ssd import SSDConfig
from jaxdet.inference.load import Found, Trained, load_trained
from jaxdet.nn.backbones.efficientnet import EfficientNetLite0
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.training import optimizer
from jaxdet.training.config import TrainingConfig
from jaxdet.training.metrics import NonFiniteLossError
from jaxdet.training.run_folder import RunError, load_run, save_run
from jaxdet.training.step import create_state
from jaxdet.weights import published, state_dict
from tests.golden import replay

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted(
    path.stem
    for path in (ROOT / "experiments").glob("*.py")
    if "command_line.run(" in path.read_text()
)
WITHOUT_RUN = {
    "anchor_coverage",
    "augmentations",
    "benchmark_input",
    "benchmark_ops",
    "prepare",
    "proposals",
    "rcnn_timing",
    "scaling",
}
FOLDER_RECIPES = [faster_rcnn_folder, mask_rcnn_folder, retinanet_folder]
SHORT = {
    "steps": 4,
    "batch_size": 4,
    "warmup_steps": 1,
    "checkpoint_every": 2,
    "log_every": 2,
}


def narrow(coarsest, precision="float32", *, depth=10):
    """A backbone that is fast to compile and to run, for scripts that train."""
    del depth
    dtype = np.dtype(precision).type
    return ResNet(10, 8, norm="group", coarsest=coarsest, dtype=dtype)


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory):
    """`digits.load` of a few scenes."""
    return functools.partial(
        digits.load,
        data_dir=tmp_path_factory.mktemp("digits"),
        train_images=16,
        validation_images=6,
    )


@pytest.fixture(scope="module")
def run(few_digits, tmp_path_factory):
    """The run folder of a very short quickstart."""
    workdir = tmp_path_factory.mktemp("run")
    training = dataclasses.replace(quickstart.TRAINING, **SHORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "load", few_digits)
        patch.setattr(quickstart, "BACKBONE", narrow(4))
        quickstart.main(training=training, workdir=workdir)
    return workdir


@pytest.fixture(scope="module")
def coco_folder(few_digits, tmp_path_factory):
    """COCO's folder, of a few scenes; masks are their boxes."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "annotations").mkdir()
    for part, split in {"train": "train", "val": "validation"}.items():
        data_set = few_digits(split)
        truth = data_set.ground_truth()
        images = folder / f"{part}2017"
        images.mkdir()
        for position, image in enumerate(truth["images"]):
            image["file_name"] = f"{position}.png"
            pixels = Image.fromarray(data_set.read_image(position))
            pixels.save(images / image["file_name"])
        for annotation in truth["annotations"]:
            x, y, width, height = annotation["bbox"]
            right, bottom = x + width, y + height
            outline = [x, y, right, y, right, bottom, x, bottom]
            annotation["segmentation"] = [outline]
        file = folder / "annotations" / f"instances_{part}2017.json"
        file.write_text(json.dumps(truth))
    return folder


@pytest.fixture(scope="module")
def voc_folder(tmp_path_factory):
    """VOCdevkit: in each year and split, one photograph of one person."""
    folder = tmp_path_factory.mktemp("VOCdevkit")
    corners = {"xmin": 11, "ymin": 21, "xmax": 60, "ymax": 80}
    box = "".join(f"<{side}>{value}</{side}>" for side, value in corners.items())
    thing = f"<object><name>person</name><bndbox>{box}</bndbox></object>"
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    for year in ("VOC2007", "VOC2012"):
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (folder / year / part).mkdir(parents=True)
        for split in ("trainval", "test"):
            lists = folder / year / "ImageSets" / "Main" / f"{split}.txt"
            lists.write_text(f"{split}\n")
            image = folder / year / "JPEGImages" / f"{split}.png"
            Image.fromarray(pixels).save(image)
            annotation = folder / year / "Annotations" / f"{split}.xml"
            annotation.write_text(f"<annotation>{thing}</annotation>")
    return folder


@pytest.fixture
def asked(monkeypatch):
    """Calls a script's function, and returns what it asks `train` for."""

    def ask(function, *arguments, **options):
        calls = []
        module = inspect.getmodule(function)
        monkeypatch.setattr(
            module, "train", lambda *parts, **more: calls.append((parts, more))
        )
        function(*arguments, **options)
        ((parts, more),) = calls
        return (*parts, more)

    return ask


def help_of(command, arguments, capsys):
    """What `--help` prints for the function or the dict of functions of a script."""
    parse = tyro.extras.subcommand_cli_from_dict if isinstance(command, dict) else None
    with pytest.raises(SystemExit, match="0"):
        (parse or tyro.cli)(command, args=[*arguments, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains(script, monkeypatch, capsys):
    commands = []
    monkeypatch.setattr(command_line, "run", commands.append)
    monkeypatch.delitem(sys.modules, f"experiments.{script}", raising=False)
    runpy.run_module(f"experiments.{script}", run_name="__main__")
    (command,) = commands
    text = help_of(command, [], capsys)
    if isinstance(command, dict):
        for name in command:
            assert name in text
            assert "--training.steps" in help_of(command, [name], capsys)
    elif script not in WITHOUT_RUN:
        assert "the run folder" in text


@pytest.mark.parametrize(
    "config",
    [
        FastRCNNConfig,
        FCOSConfig,
        FasterRCNNConfig,
        InputConfig,
        MaskRCNNConfig,
        RCNNConfig,
        RPNConfig,
        RoIHeadsConfig,
        RetinaNetConfig,
        SPPNetConfig,
        SSDConfig,
        TrainingConfig,
    ],
)
def test_every_option_has_a_text(config):
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    body = [*definition.body, None]
    silent = [
        field.target.id
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and not (isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant))
    ]
    assert not silent, f"no docstring under these fields of {config.__name__}"


@pytest.fixture
def exits(monkeypatch, capsys):
    """Calls what runs a command line; its exit code and what it says in stderr."""
    logger = logging.getLogger("jaxdet")
    for name, value in {"handlers": [], "level": 0, "propagate": True}.items():
        monkeypatch.setattr(logger, name, value)

    def ask(function, *arguments):
        monkeypatch.setattr(sys, "argv", ["script", *arguments])
        with pytest.raises(SystemExit) as caught:
            function()
        return caught.value.code, capsys.readouterr().err

    return ask


def raising(error):
    def main():
        raise error

    return main


def test_a_script_exits_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "experiments.evaluate", str(tmp_path)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 1
    assert answer.stderr.startswith(f"error: {tmp_path} holds no run")
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "code", "message"),
    [
        ("detect", ["{0}", "{0}/none.png"], 1, "error: {0}/none.png: no such file"),
        ("evaluate", ["{0}", "--step", "abc"], 2, "best"),
        ("quickstart", ["--training.steps", "0"], 2, "steps is 0"),
    ],
)
def test_user_errors_are_one_message(script, arguments, code, message, tmp_path, exits):
    arguments = [argument.format(tmp_path) for argument in arguments]
    main = importlib.import_module(f"experiments.{script}").main
    answer = exits(functools.partial(command_line.run, main), *arguments)
    assert answer[0] == code and message.format(tmp_path) in answer[1]


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (raising(state_dict.WeightsError("wrong")), 1, "error: wrong\n"),
        (raising(NonFiniteLossError("NaN")), 1, "error: NaN\n"),
        (
            functools.partial(optimizer.partition, {"a": 1}, ("b",)),
            1,
            "error: frozen: 'b' matches no",
        ),
        (raising(OSError(errno.ENOSPC, "full")), 1, "error: [Errno 28] full;"),
        (raising(KeyboardInterrupt()), 130, ""),
    ],
)
def test_what_users_can_mend_has_no_traceback(fault, code, message, exits):
    def main():
        fault()

    answer = exits(functools.partial(command_line.run, main))
    assert answer[0] == code and answer[1].startswith(message)


def test_faults_of_ours_keep_their_traceback(exits):
    main = raising(ValueError("a fault of ours"))
    with pytest.raises(ValueError, match="a fault of ours"):
        exits(functools.partial(command_line.run, main))


def test_flags_of_several_hosts_are_taken_out_and_explained(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(parallel, "join", lambda *options: calls.append(options))
    hosts = ["--coordinator", "first:1234", "--processes", "2", "--process", "1"]
    rest = ["--data", "coco", "--training.steps", "7"]
    assert command_line._take_shared_options([*hosts, *rest]) == rest
    assert command_line._take_shared_options(rest) == rest
    assert calls == [("first:1234", 2, 1), (None, None, None)]
    command_line._take_shared_options(["--help"])
    assert len(calls) == 2 and "--coordinator HOST:PORT" in capsys.readouterr().out
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="several processes need all three"):
        command_line._take_shared_options(["--processes", "2"])


PROGRAM = """
import jax, sys
from experiments import command_line

def main():
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.jit(lambda x: x + 1)(2)

command_line.run(main)
"""


def test_compiled_programs_are_kept(tmp_path):
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "true"}
    command = [sys.executable, "-c", PROGRAM, "--compilation-cache", tmp_path]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    assert list(tmp_path.glob("*-cache"))


@pytest.fixture
def programs_folder():
    """Where programs would be kept, by the options and the environment's folder."""
    before = jax.config.jax_compilation_cache_dir

    def folder(*options, named=None):
        jax.config.update("jax_enable_compilation_cache", True)
        jax.config.update("jax_compilation_cache_dir", named)
        assert command_line._take_shared_options([*map(str, options)]) == []
        return jax.config.jax_compilation_cache_dir

    yield folder
    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_compilation_cache_dir", before)


def test_where_compiled_programs_are_kept(
    programs_folder, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("HOME", str(tmp_path))
    asked, named = str(tmp_path / "asked"), str(tmp_path / "named")
    assert programs_folder() == str(tmp_path / ".cache" / "jaxdet" / "programs")
    assert programs_folder(named=named) == named
    assert programs_folder("--compilation-cache", asked, named=named) == asked
    assert programs_folder("--no-compilation-cache", named=named) is None
    # A folder that cannot be made costs time, not the run.
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "folder"
    assert programs_folder("--compilation-cache", below) is None
    assert f"are not kept: --compilation-cache {below}" in caplog.text


def test_keeping_programs_and_not_is_refused():
    options = ["--compilation-cache", "here", "--no-compilation-cache"]
    with pytest.raises(ConfigError, match="--compilation-cache here and --no-"):
        command_line._take_shared_options(options)


def test_the_number_of_classes_follows_the_data(few_digits):
    data_set = few_digits("validation")
    recipe = RetinaNetConfig(num_classes=80)
    adapt = functools.partial(command_line.with_classes_of, data_set, recipe=recipe)
    assert adapt(recipe).num_classes == 10
    asked = dataclasses.replace(recipe, num_classes=10, channels=8)
    assert adapt(asked) == asked
    with pytest.raises(ValueError, match=r"num-classes is 7.*has 10 classes"):
        adapt(dataclasses.replace(recipe, num_classes=7))
    masks = MaskRCNNConfig(FasterRCNNConfig(num_classes=80), mask_depth=2)
    assert adapt(masks, recipe=masks) == MaskRCNNConfig(
        FasterRCNNConfig(num_classes=10), mask_depth=2
    )
    seven = MaskRCNNConfig(FasterRCNNConfig(num_classes=7))
    with pytest.raises(ValueError, match=r"--detector\.faster-rcnn\.num-classes is 7"):
        adapt(seven, recipe=masks)


@pytest.mark.parametrize(
    ("main", "recipe"),
    [
        (retinanet_coco.main, retinanet_coco.TRAINING),
        (fast_rcnn_voc.main, fast_rcnn_voc.TRAINING),
        (faster_rcnn_voc.train_vgg16, faster_rcnn_voc.VGG16_TRAINING),
        (faster_rcnn_voc.train_resnet50_c4, faster_rcnn_voc.RESNET50_C4_TRAINING),
        (faster_rcnn_fpn_coco.main, faster_rcnn_fpn_coco.TRAINING),
        (mask_rcnn_coco.main, mask_rcnn_coco.TRAINING),
    ],
)
def test_nothing_can_be_frozen_from_scratch(main, recipe, tmp_path):
    training = dataclasses.replace(recipe, frozen=("fpn/.*",))
    with pytest.raises(ValueError, match=r"fpn.*without pretrained weights"):
        main(tmp_path, training=training)


def test_quickstart_leaves_all_that_was_promised(run):
    assert json.loads((run / "config.json").read_text())["class_names"] == [
        *"0123456789"
    ]
    assert {path.name for path in (run / "checkpoints").iterdir()} >= {"2", "4"}
    assert "evaluation at step 4" in (run / "log.txt").read_text()
    assert list(run.glob("events*")) and list((run / "pictures").glob("*.png"))


def test_evaluate_prints_writes_and_draws(
    run, few_digits, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(digits, "load", few_digits)
    everything, file = tmp_path / "all", tmp_path / "new" / "found.json"
    evaluate.main(
        run, step=4, json_file=file, pictures=2, output=everything, min_score=0.0
    )
    assert "AP50" in capsys.readouterr().out
    assert isinstance(json.loads(file.read_text()), list)
    names = sorted(path.name for path in everything.iterdir())
    assert len(names) == 2 and names[0].startswith("000000_")
    # Without detections the left half, the truth, is the same.
    data_set = few_digits("validation")
    detection = {
        "image_id": data_set.image_ids[1],
        "category_id": data_set.category_ids[0],
        "bbox": [8.0, 8.0, 40.0, 30.0],
        "score": 0.9,
    }
    evaluate._draw_first(2, data_set, [detection], tmp_path / "one")
    evaluate._draw_first(2, data_set, [], tmp_path / "none")
    found, nothing = (
        np.array(Image.open(tmp_path / folder / names[1])).astype(int)
        for folder in ("one", "none")
    )
    width = data_set.sizes[1, 1] * -(-480 // max(data_set.sizes[1]))
    different = (found != nothing).any(axis=(0, 2))
    assert different[width:].any() and not different[:width].any()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"images": "photos"}, "--images photos without --annotations"),
        ({"annotations": "a.json", "tfds_directory": "t"}, "--tfds-directory t"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"pictures": -1}, "--pictures is -1"),
        ({"canvas_multiple": 0}, "--canvas-multiple is 0"),
        ({"data": "coco", "annotations": "a.json"}, "--data coco and --annotations"),
        ({"canvas_multiple": 64}, "--canvas-multiple 64 without --weights"),
        ({"weights": "some.pth"}, "--weights some.pth and the run folder .*; one"),
    ],
)
def test_evaluate_refuses_contradictions(tmp_path, options, problem):
    with pytest.raises(DataError, match=problem):
        evaluate.main(**{"workdir": tmp_path} | options)


def test_evaluate_of_torchvisions_weights(
    run, coco_folder, tmp_path, monkeypatch, capsys
):
    name, multiples = "maskrcnn_resnet50_fpn_v2", []
    tensors = evaluate.torchvision.MODELS[name].tensors
    state = {tensor.theirs: np.zeros(0) for tensor in tensors}
    np.savez(tmp_path / "some.npz", **state)

    def trained(given, recognised, *, canvas_multiple):
        assert given.keys() == state.keys() and recognised == name
        multiples.append(canvas_multiple)
        return load_trained(run)

    monkeypatch.setattr(evaluate.torchvision, "trained", trained)
    measured = {"AP": 0.471, "mask/AP": 0.4181}
    monkeypatch.setattr(evaluate, "default_metrics", lambda _: lambda *_: measured)
    monkeypatch.setattr(evaluate, "detect_all", lambda *_, **__: [])
    for multiple in (None, 64):
        weights = tmp_path / "some.npz"
        evaluate.main(weights=weights, canvas_multiple=multiple, data=coco_folder)
    assert multiples == [32, 64]
    *_, line = capsys.readouterr().out.splitlines()
    assert line == (
        "torchvision documents for maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth, on the "
        "5,000 images of val2017: AP 47.4, here 47.1 (-0.3); mask/AP 41.8, here 41.8 "
        "(+0.0)"
    )


@pytest.mark.slow
def test_evaluate_takes_a_checkpoint_of_torchvisions(
    data_folder, tmp_path, monkeypatch, capsys
):
    """From end to end on four photographs, made small; the weights are drawn."""
    name = "fasterrcnn_resnet50_fpn"
    state, *_ = replay.load(ROOT / "tests" / "golden" / f"{name}_s0.npz")
    np.savez(tmp_path / "drawn.npz", **state)
    source = data_folder / "coco128"
    truth = json.loads((source / "annotations/instances_val2017.json").read_text())
    truth["images"] = truth["images"][:4]
    kept = {image["id"] for image in truth["images"]}
    annotations = truth["annotations"]
    truth["annotations"] = [one for one in annotations if one["image_id"] in kept]
    (tmp_path / "annotations").mkdir()
    file = tmp_path / "annotations" / "instances_val2017.json"
    file.write_text(json.dumps(truth))
    (tmp_path / "val2017").symlink_to(source / "val2017")
    monkeypatch.setattr(evaluate.torchvision, "SIDES", (96, 160))
    found = tmp_path / "found.json"
    evaluate.main(
        weights=tmp_path / "drawn.npz",
        canvas_multiple=160,  # one for all
        data=tmp_path,
        batch_size=2,
        json_file=found,
    )
    words = capsys.readouterr().out
    assert "AP50" in words and "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth" in words
    detections = json.loads(found.read_text())
    assert {one["image_id"] for one in detections} == kept
    ids = {category["id"] for category in truth["categories"]}
    assert {one["category_id"] for one in detections} <= ids


def test_evaluate_searches_for_as_many_regions_as_the_run(
    tmp_path, few_digits, monkeypatch
):
    data_set, asked = few_digits("validation"), []
    training = TrainingConfig(input=InputConfig(max_regions=7))
    detector = Detector(None, None, None, num_classes=10)
    save_run(tmp_path, detector, data_set, training)
    trained = Trained(detector, {}, load_run(tmp_path))
    monkeypatch.setattr(evaluate, "load_trained", lambda *_, **__: trained)
    monkeypatch.setattr(digits, "load", few_digits)
    monkeypatch.setattr(evaluate, "detect_all", lambda *_, **__: [])

    def search(data_set, **options):
        asked.append(options)
        return data_set

    monkeypatch.setattr(evaluate.proposals, "with_selective_search", search)
    evaluate.main(tmp_path)
    assert asked == [{"max_per_image": 7}]


def test_evaluate_loads_the_run_before_the_data(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        evaluate.main(tmp_path, annotations=tmp_path / "none.json")


def test_detect_draws_every_picture_and_names_those_it_cannot_read(run, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("one.png", "one.jpg"):
        noise = rng.integers(0, 255, (90, 120, 3), np.uint8)
        Image.fromarray(noise).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    output = tmp_path / "found"
    detect.main((run, folder), output=output, min_score=0.0, step="latest")
    names = {path.name for path in output.iterdir()}
    assert names == {"one.png", "one_2.png", "detections.json"}
    found = coco.load(output / "detections.json", folder)  # it is COCO's format
    assert len(found) == 2 and len(found.class_names) == 10


def found_a_cat(image):
    height, width = image.shape[:2]
    box = np.array([[0, 0, width / 2, height]], np.float32)
    return Found(box, np.array([0.75], np.float32), np.array([15]), ("cat",))


def test_detect_needs_no_run(tmp_path, monkeypatch, capsys):
    trained = Trained(
        Detector(None, None, None, num_classes=80),
        {},
        types.SimpleNamespace(
            class_names=published.CLASS_NAMES, category_ids=published.CATEGORY_IDS
        ),
    )
    monkeypatch.setattr(published, "trained_ssd_mobilenet_v2", lambda: trained)
    monkeypatch.setattr(
        "jaxdet.inference.load.detect_with", lambda given, min_score: found_a_cat
    )
    photo = tmp_path / "photo.png"
    Image.fromarray(np.zeros((90, 120, 3), np.uint8)).save(photo)
    output, json_file = tmp_path / "found", tmp_path / "elsewhere" / "found.json"
    detect.main((photo,), output=output, json_file=json_file)
    assert [path.name for path in output.iterdir()] == ["photo.png"]
    found = json.loads(json_file.read_text())
    (annotation,) = found["annotations"]
    assert annotation["category_id"] == 17 and annotation["bbox"] == [0, 0, 60, 90]
    names = {entry["id"]: entry["name"] for entry in found["categories"]}
    assert len(names) == 80 and names[17] == "cat"
    assert f"{photo}: cat 0.75" in capsys.readouterr().out


def test_detect_takes_torchvisions_weights(run, tmp_path, monkeypatch):
    photo, weights = tmp_path / "photo.png", tmp_path / "some.pth"
    Image.fromarray(np.zeros((90, 120, 3), np.uint8)).save(photo)
    monkeypatch.setattr(
        "jaxdet.weights.torchvision.trained", {weights: load_trained(run)}.__getitem__
    )
    output = tmp_path / "found"
    detect.main((photo,), weights=weights, output=output)
    assert (output / "photo.png").exists()
    with pytest.raises(DataError, match=r"some\.pth and the run folder"):
        detect.main((run, photo), weights=weights)


def test_detect_says_that_only_runs_have_steps(tmp_path):
    with pytest.raises(DataError, match="--step latest without a run folder"):
        detect.main((tmp_path / "photo.png",), step="latest")


def test_drawings_have_names_of_their_own():
    files = [pathlib.Path(name) for name in ("a.jpg", "a.png", "a_2.jpg", "b/A.gif")]
    targets = detect._targets(files, pathlib.Path("out"))
    assert [path.name for path in targets] == [
        "a.png",
        "a_2.png",
        "a_2_2.png",
        "A_3.png",
    ]


def test_detect_overwrites_no_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("one.png").write_bytes(b"precious")
    for output in (tmp_path, pathlib.Path()):
        with pytest.raises(DataError, match=r"would overwrite the picture .*one\.png"):
            detect.main((pathlib.Path("."),), output=output)
    assert {path.name for path in tmp_path.iterdir()} == {"one.png"}


def test_detect_passes_over_its_own_drawings(tmp_path):
    (tmp_path / "found").mkdir()
    for name in ("one.png", "found/one.png", "foundling.png"):
        (tmp_path / name).touch()
    files = detect._files((tmp_path, tmp_path / "one.png"), tmp_path / "found")
    assert [file.name for file in files] == ["foundling.png", "one.png"]
    named = detect._files((tmp_path / "found" / "one.png",), tmp_path / "found")
    assert len(named) == 1


@pytest.mark.parametrize("pictures", [(), ("nowhere.png",), (".",)])
def test_detect_without_pictures(run, tmp_path, monkeypatch, pictures):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no pictures|no such file"):
        detect.main((run, *map(pathlib.Path, pictures)))


def test_evaluate_takes_only_the_classes_of_the_run(run, coco_folder, tmp_path):
    annotations = coco_folder / "annotations" / "instances_val2017.json"
    truth = json.loads(annotations.read_text())
    truth["categories"][0]["name"] = "nought"
    others = tmp_path / "others.json"
    others.write_text(json.dumps(truth))
    with pytest.raises(DataError, match="knows the classes"):
        evaluate.main(run, annotations=others, images=coco_folder / "val2017")


RECIPES = {
    "rcnn_voc": rcnn_voc.main,
    "fast_rcnn_voc": fast_rcnn_voc.main,
    "faster_rcnn_voc vgg16": faster_rcnn_voc.train_vgg16,
    "faster_rcnn_voc resnet50_c4": faster_rcnn_voc.train_resnet50_c4,
    "ssd300_voc": ssd300_voc.main,
    "faster_rcnn_fpn_coco": faster_rcnn_fpn_coco.main,
    "mask_rcnn_coco": mask_rcnn_coco.main,
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_fit_their_data(name, voc_folder, coco_folder, asked, monkeypatch):
    monkeypatch.setenv("JAXDET_CACHE", str(voc_folder / "cache"))
    data = voc_folder if "voc" in name else coco_folder
    detector, data_set, training, options = asked(RECIPES[name], data)
    assert training.frozen == () and options["pretrained"] is None
    for part in (data_set, options["validation"]):
        batching.check(part, training.input, batch_size=training.batch_size)
    assert detector.num_classes == len(data_set.class_names)
    assert options["workdir"] == pathlib.Path("runs", *name.split())
    _trace(detector, data_set, training)


def _trace(detector, data_set, training):
    """Finds what does not fit together, without computing anything."""
    batches = batching.training_batches(
        data_set,
        dataclasses.replace(training.input, workers=0),
        batch_size=1,
        seed=0,
        start=0,
        stop=1,
    )
    (batch,) = batches
    make = functools.partial(create_state, detector, training)
    state = jax.eval_shape(make, batch)
    loss = functools.partial(detector.loss, key=jax.random.key(0))
    total, _ = jax.eval_shape(loss, state.variables, batch)
    assert total.shape == ()
    return state


HALVES, BACKBONE = {"backbone", "box_head"}, {"backbone"}


@pytest.mark.parametrize(
    ("main", "network", "replaced", "frozen"),
    [
        (rcnn_voc.main, "alexnet", HALVES, 0),
        (sppnet_voc.main, "vgg16", BACKBONE, 13),
        (fast_rcnn_voc.main, "vgg16", HALVES, 4),
        (faster_rcnn_voc.train_vgg16, "vgg16", HALVES, 4),
        (faster_rcnn_voc.train_resnet50_c4, "resnet50", HALVES, 2),
        (ssd300_voc.main, "vgg16", BACKBONE, 0),
        (faster_rcnn_fpn_coco.main, "resnet50", BACKBONE, 2),
        (mask_rcnn_coco.main, "resnet50", BACKBONE, 2),
    ],
)
def test_torchvisions_weights_fit(
    main, network, replaced, frozen, voc_folder, coco_folder, asked, monkeypatch
):
    monkeypatch.setenv("JAXDET_CACHE", str(voc_folder / "cache"))
    about = json.loads((ROOT / "tests" / "golden" / f"{network}_s0.json").read_text())
    state = {
        # Zeros that take no memory until somebody orders them otherwise.
        name: np.broadcast_to(np.float32(0), weight["shape"])
        for name, weight in about["weights"].items()
    }
    monkeypatch.setattr(state_dict, "read_state_dict", lambda file: state)
    data = voc_folder if "voc" in inspect.getmodule(main).__name__ else coco_folder
    detector, data_set, training, options = asked(main, data, pathlib.Path("a.pth"))
    before = _trace(detector, data_set, training).variables
    after = options["pretrained"](before)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    params = after["params"].items()
    assert {part for part, new in params if new is not before["params"][part]} == (
        replaced
    )
    assert len(training.frozen) == frozen


def test_ssd_keeps_a_part_of_the_fully_connected_layers(monkeypatch):
    # Of 2 channels to 8, then of 8 to 8; numbers tell which row and column they are of.
    fc6 = np.zeros((7, 7, 2, 8)) + np.arange(0, 700, 100)[:, None, None, None]
    fc6 += np.arange(0, 70, 10)[:, None, None] + np.arange(8)
    head = {
        "fc0": {"kernel": fc6.reshape(-1, 8), "bias": np.arange(8)},
        "fc1": {"kernel": np.arange(64).reshape(8, 8), "bias": np.arange(8)},
    }
    convs = {"conv5_3": {"bias": np.ones(2)}}
    monkeypatch.setattr(state_dict, "read_state_dict", lambda file: {})
    for name, params in (("vgg16", convs), ("vgg16_head", head)):
        read = functools.partial(dict, params=params)
        monkeypatch.setattr(
            state_dict, f"{name}_from_torchvision", lambda state, read=read: read()
        )
    vgg16 = {
        "conv5_3": {"bias": np.zeros(2)},
        "conv6": {"kernel": np.zeros((3, 3, 2, 2)), "bias": np.zeros(2)},
        "conv7": {"kernel": np.zeros((1, 1, 2, 2)), "bias": np.zeros(2)},
        "unit4_3": {"scale": np.full(2, 20.0)},
    }
    fresh = {"params": {"backbone": {"backbone": vgg16, "level5_conv1": {}}}}
    params = ssd300_voc._pretrained("vgg16.npz")(fresh)["params"]["backbone"]
    assert params.keys() == {"backbone", "level5_conv1"}
    after = params["backbone"]
    kept = np.array([[0, 30, 60], [300, 330, 360], [600, 630, 660]])
    for channel in (0, 1):
        for output, place in enumerate((0, 4)):
            kernel = after["conv6"]["kernel"][:, :, channel, output]
            np.testing.assert_array_equal(kernel, kept + place)
    np.testing.assert_array_equal(after["conv6"]["bias"], [0, 4])
    np.testing.assert_array_equal(after["conv7"]["kernel"], [[[[0, 4], [32, 36]]]])
    np.testing.assert_array_equal(after["conv7"]["bias"], [0, 4])
    np.testing.assert_array_equal(after["conv5_3"]["bias"], [1, 1])
    np.testing.assert_array_equal(after["unit4_3"]["scale"], [20, 20])


@pytest.mark.parametrize("years", ["07", "07+12"])
def test_voc_years(voc_folder, years):
    train, test = voc_recipes.load(voc_folder, years)
    assert len(train) == len(years.split("+")) and len(test) == 1
    assert test.image_ids == ("test",)


def test_proposals_of_voc_folders_are_trained_on(
    voc_folder, asked, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("JAXDET_CACHE", str(tmp_path))
    files = tmp_path / "train.npz", tmp_path / "test.json"
    for file, split in zip(files, (None, "test"), strict=True):
        folder = voc_folder / "VOC2007"
        proposals.main(voc_folders=(folder,), split=split, max_per_image=3, output=file)
    assert "recall@0.5" in capsys.readouterr().out

    def no_search(data_set):
        raise AssertionError("there are files")

    monkeypatch.setattr(proposals.proposals, "with_selective_search", no_search)
    for script in (rcnn_voc, fast_rcnn_voc):
        _, data_set, _, options = asked(script.main, voc_folder, proposal_files=files)
        for part in (data_set, options["validation"]):
            assert len(part) == 1 and 1 <= len(part.proposals[0].scores) <= 3
    with pytest.raises(DataError, match=r"test\.json: image 'test' is not in"):
        voc_recipes.load(voc_folder, "07", files[::-1])


def test_proposals_are_made_for_one_data_set(tmp_path):
    with pytest.raises(DataError, match=r"--voc-folders .* and --tfds-name voc/2007;"):
        proposals.main(voc_folders=(tmp_path,), tfds_name="voc/2007")


def test_voc_from_tfds(tmp_path, monkeypatch):
    (tmp_path / "dataset_info.json").touch()
    monkeypatch.setattr(tfds, "load_directory", lambda folder, split: split)
    assert voc_recipes.load(tmp_path, "07") == ("train+validation", "test")
    with pytest.raises(DataError, match=r"--years 07\+12.*VOCdevkit"):
        voc_recipes.load(tmp_path, "07+12")


def test_both_years_from_tfds(voc_folder, tmp_path, monkeypatch):
    def prepared(name, split, *, data_dir):
        assert data_dir == tmp_path
        folder = voc_folder / f"VOC20{name[-2:]}"
        wanted = "test" if split == "test" else "trainval"
        return dataclasses.replace(voc.load(folder, split=wanted), name=name)

    (tmp_path / "voc" / "2007").mkdir(parents=True)
    monkeypatch.setattr(tfds, "load", prepared)
    train, test = voc_recipes.load(tmp_path / "voc", "07+12")
    assert [name[:8] for name in train.image_ids] == ["voc/2007", "voc/2012"]
    assert test.image_ids == ("test",)
    alone, _ = voc_recipes.load(tmp_path / "voc", "07")
    assert len(alone) == 1 and alone.name == "voc/2007"


@pytest.mark.parametrize("script", FOLDER_RECIPES)
def test_folder_recipes_fit_their_data(script, coco_folder, asked):
    annotations = coco_folder / "annotations"
    detector, data_set, training, options = asked(
        script.main,
        annotations / "instances_train2017.json",
        coco_folder / "train2017",
        validation_annotations=annotations / "instances_val2017.json",
        validation_images=coco_folder / "val2017",
    )
    assert detector.num_classes == 10
    assert (len(data_set), len(options["validation"])) == (16, 6)
    for part in (data_set, options["validation"]):
        batching.check(part, training.input, batch_size=training.batch_size)
    _trace(detector, data_set, training)


@pytest.mark.parametrize("script", [*FOLDER_RECIPES, transfer_folder])
def test_images_to_evaluate_on_need_their_annotations(script, tmp_path):
    words = r"--validation-images \S+ without --validation-annotations"
    with pytest.raises(DataError, match=words):
        script.main(tmp_path / "train.json", tmp_path, validation_images=tmp_path)


@pytest.fixture
def unread(monkeypatch):
    """No weights may be read, be they those of a file or of a package."""

    def read(file):
        raise AssertionError(f"{file} is read too early")

    monkeypatch.setattr(state_dict, "read_state_dict", read)
    monkeypatch.setattr(evaluate, "read_state_dict", read)
    monkeypatch.setattr(published, "published_file", read)


@pytest.mark.parametrize(
    "main",
    [
        rcnn_voc.main,
        sppnet_voc.main,
        fast_rcnn_voc.main,
        faster_rcnn_voc.train_vgg16,
        faster_rcnn_voc.train_resnet50_c4,
        ssd300_voc.main,
        retinanet_coco.main,
        faster_rcnn_fpn_coco.main,
        mask_rcnn_coco.main,
    ],
)
def test_recipes_check_their_data_before_they_read_weights(main, tmp_path, unread):
    with pytest.raises(DataError, match=r"cannot be read|no such"):
        main(tmp_path / "nowhere", tmp_path / "some.pth")


def test_transfer_checks_options_and_data_before_it_reads_weights(
    coco_folder, tmp_path, unread
):
    data = coco_folder / "annotations" / "instances_val2017.json"
    with pytest.raises(DataError, match=r"none\.json: cannot be read"):
        transfer_folder.main(tmp_path / "none.json", tmp_path)
    seven = dataclasses.replace(transfer_folder.DETECTOR, num_classes=7)
    with pytest.raises(ConfigError, match="num-classes is 7"):
        transfer_folder.main(data, coco_folder / "val2017", seven)


@pytest.mark.parametrize("given", [{}, {"weights": pathlib.Path("some.pth")}])
def test_other_scripts_check_options_and_data_before_they_read_weights(
    given, tmp_path, unread
):
    nowhere = tmp_path / "nowhere"
    with pytest.raises(DataError, match="cannot be read"):
        evaluate.main(**given, data=nowhere)
    with pytest.raises(DataError, match=r"cannot be read|no such"):
        evaluate.main(**given, voc_folders=(nowhere,))
    with pytest.raises(DataError, match=r"--proposal-file p\.npz"):
        evaluate.main(**given, proposal_file=pathlib.Path("p.npz"))
    with pytest.raises(DataError, match="--batch-size is 0"):
        export.main(**given, batch_size=0)
    with pytest.raises(DataError, match="--canvases"):
        export.main(**given, canvases=((64, 0),))
    with pytest.raises(DataError, match="no such file"):
        detect.main((nowhere,), **given)
    with pytest.raises(DataError):
        anatomy.main(nowhere, **given)


@pytest.fixture
def transfer_data(coco_folder, monkeypatch):
    """What `transfer_folder.main` is told of COCO's folder; the weights are zeros."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    init = functools.partial(EfficientNetLite0().init, jax.random.key(0))
    zeros = jax.tree.map(lambda x: np.zeros(x.shape), jax.eval_shape(init, image))
    monkeypatch.setattr(published, "efficientnet_lite0", lambda: zeros)
    annotations = coco_folder / "annotations"
    return {
        "annotations": annotations / "instances_train2017.json",
        "images": coco_folder / "train2017",
        "validation_annotations": annotations / "instances_val2017.json",
        "validation_images": coco_folder / "val2017",
    }


def test_transfer_starts_from_what_is_known(transfer_data, asked):
    main = transfer_folder.main
    detector, data_set, training, options = asked(main, **transfer_data)
    assert detector.num_classes == 10
    assert (len(data_set), len(options["validation"])) == (16, 6)
    fresh = _trace(detector, data_set, training).variables
    before, after = fresh["params"], options["pretrained"](fresh)["params"]
    assert {part for part in after if after[part] is not before[part]} == {"backbone"}
    trainable, frozen = optimizer.partition(before, training.frozen)
    assert all(re.match("backbone/(stem|stage[12])_", path) for path in frozen)
    assert not any(re.match("backbone/(stem|stage[12])_", path) for path in trainable)


def test_transfer_from_scratch_freezes_nothing(transfer_data, asked):
    main = functools.partial(asked, transfer_folder.main, **transfer_data)
    detector, data_set, training, options = main(from_scratch=True)
    assert training.frozen == () and options["pretrained"] is None
    learned = _trace(detector, data_set, training).variables["params"]["backbone"]
    assert "stem_norm" in learned
    with pytest.raises(ValueError, match="nothing worth freezing"):
        frozen = dataclasses.replace(training, frozen=("fpn/.*",))
        main(training=frozen, from_scratch=True)


@pytest.mark.slow
def test_transfer_trains(transfer_data, tmp_path):
    small = dataclasses.replace(transfer_folder.TRAINING.input, canvases=((64, 64),))
    training = dataclasses.replace(short(transfer_folder.TRAINING), input=small)
    transfer_folder.main(**transfer_data, training=training, workdir=tmp_path)
    assert "evaluation at step 4" in log_of(tmp_path)


def test_sizes_are_those_of_small_scenes():
    # Of 10, 20 and 40 pixels: small, medium and large; the middle one is not found.
    boxes = [[0, 0, 10, 10], [20, 0, 20, 20], [60, 0, 40, 40]]
    truth = {
        "info": {},
        "images": [{"id": 1, "width": 128, "height": 128}],
        "categories": [{"id": 1, "name": "0"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": 0}
            | {"area": float(box[2] * box[3])}
            for i, box in enumerate(boxes, 1)
        ],
    }
    found = [
        {"image_id": 1, "category_id": 1, "bbox": boxes[i], "score": 0.9}
        for i in (0, 2)
    ]
    numbers = scale_comparison.metrics_by_size(truth, found)
    by_size = [numbers[name] for name in ("APs", "APm", "APl")]
    assert by_size == pytest.approx([1, 0, 1])


@pytest.mark.parametrize("way", scale_comparison.WAYS)
def test_ways_to_find_all_sizes_fit_their_data(way, few_digits):
    data_set = few_digits("train", digit_sides=scale_comparison.DIGIT_SIDES)
    detector = scale_comparison.detector(way)
    assert deserialize(detector.recipe).recipe == detector.recipe
    state = _trace(detector, data_set, scale_comparison.TRAINING)
    assert ("stage4_block0" in state.variables["params"]["backbone"]) == (
        way != "image_pyramid"
    )
    assert ("lateral2" in state.variables["params"]["fpn"]) == (way != "image_pyramid")


def test_the_scale_comparison_leaves_a_table(tmp_path, few_digits, monkeypatch, capsys):
    folders = []

    def no_train(*parts, workdir, metrics, **more):
        workdir.mkdir()
        folders.append(workdir.name)
        if workdir.name == "fpn":  # the other has nothing left to do
            metrics({}, [])
        return types.SimpleNamespace(variables={})

    def no_evaluation(*parts, metrics, **more):
        assert folders == ["plain_stages"]
        metrics({}, [])

    measured = dict.fromkeys(scale_comparison.PRECISIONS, 0.25) | {"AR1": 0.5}
    monkeypatch.setattr(scale_comparison, "train", no_train)
    monkeypatch.setattr(scale_comparison, "evaluate", no_evaluation)
    monkeypatch.setattr(scale_comparison, "metrics_by_size", lambda *_: measured)
    monkeypatch.setattr(digits, "load", few_digits)
    few_digits("train", digit_sides=scale_comparison.DIGIT_SIDES)
    capsys.readouterr()  # what TFDS says where it draws them
    scale_comparison.main(workdir=tmp_path, ways=("plain_stages", "fpn"))
    assert folders == ["plain_stages", "fpn"]
    text = (tmp_path / "scales.md").read_text()
    assert text == capsys.readouterr().out
    assert text.splitlines() == [
        "| | AP | AP50 | AP75 | APs | APm | APl |",
        "|---|---|---|---|---|---|---|",
        "| plain stages | 25.0 | 25.0 | 25.0 | 25.0 | 25.0 | 25.0 |",
        "| feature pyramid | 25.0 | 25.0 | 25.0 | 25.0 | 25.0 | 25.0 |",
    ]
    rows = json.loads((tmp_path / "scales.json").read_text())
    assert rows["fpn"] == dict.fromkeys(scale_comparison.PRECISIONS, 0.25)
    assert Image.open(tmp_path / "scales.png").format == "PNG"


def test_the_scale_comparison_is_drawn_by_size():
    sizes = {"AP": 0.7, "AP50": 0.9, "APs": 0.5, "APm": 0.75, "APl": math.nan}
    rows = {"fpn": sizes, "image_pyramid": dict.fromkeys(sizes, 0.25)}
    (axes,) = scale_comparison.figure(rows).axes
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    np.testing.assert_allclose(heights, [[70, 50, 75, math.nan], [25] * 4])
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["feature pyramid", "image pyramid"]
    sizes = [text.get_text().split()[0] for text in axes.get_xticklabels()]
    assert sizes == ["all", "small", "medium", "large"]


@pytest.mark.slow
def test_the_ways_to_find_all_sizes_are_trained(scratch):
    ways = ("image_pyramid", "fpn")  # plain stages are an FPN without its sums
    scale_comparison.main(short(scale_comparison.TRAINING), ways=ways)
    for way in ways:
        assert "evaluation at step 4" in log_of(f"runs/scale_comparison/{way}")
        assert load_trained(f"runs/scale_comparison/{way}").detector.num_classes == 10


@pytest.fixture
def scratch(few_digits, tmp_path, monkeypatch):
    """A folder to work in, where digits are few, networks narrow and proposals kept."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXDET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digits, "load", lambda split, **_: few_digits(split))
    monkeypatch.setattr(quickstart, "BACKBONE", narrow(4))
    monkeypatch.setattr(experiments.digits, "backbone", narrow)
    return tmp_path


def short(training):
    return dataclasses.replace(training, **SHORT)


def log_of(workdir):
    return (pathlib.Path(workdir) / "log.txt").read_text()


def test_fast_rcnn_learns_digits_on_proposals(scratch):
    training = short(experiments.digits.ON_PROPOSALS)
    experiments.digits.train_fast_rcnn(training=training)
    assert "evaluation at step 4" in log_of("runs/digits/fast_rcnn")
    assert list((scratch / "cache" / "proposals").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["rcnn", "rpn", "faster_rcnn", "mask_rcnn", "fcos", "ssd"]
)
def test_other_detectors_learn_digits(name, scratch):
    train = getattr(experiments.digits, f"train_{name}")
    training = inspect.signature(train).parameters["training"].default
    train(training=short(training))
    assert "evaluation at step 4" in log_of(f"runs/digits/{name}")


@pytest.mark.slow
def test_sppnet_takes_the_convolutions_of_a_fast_rcnn(scratch, monkeypatch):
    training = short(experiments.digits.ON_PROPOSALS)
    before = functools.partial(experiments.digits.train_fast_rcnn, training=training)
    monkeypatch.setattr(experiments.digits, "train_fast_rcnn", before)
    experiments.digits.train_sppnet(training=short(experiments.digits.ON_FROZEN))
    trained = [
        load_trained(f"runs/digits/{name}", step="latest").variables["params"]
        for name in ("fast_rcnn", "sppnet")
    ]
    first, second = (params["backbone"] for params in trained)
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.slow
@pytest.mark.parametrize("script", FOLDER_RECIPES)
def test_folder_recipes_train(script, coco_folder, tmp_path, monkeypatch):
    for recipe in (retinanet_folder, faster_rcnn_folder):
        monkeypatch.setattr(recipe, "BACKBONE", narrow(5))
    small = dataclasses.replace(script.TRAINING.input, canvases=((64, 64),))
    training = dataclasses.replace(short(script.TRAINING), evaluate_every=0)
    annotations = coco_folder / "annotations"
    script.main(
        annotations / "instances_train2017.json",
        coco_folder / "train2017",
        training=dataclasses.replace(training, input=small),
        validation_annotations=annotations / "instances_val2017.json",
        validation_images=coco_folder / "val2017",
        workdir=tmp_path,
    )
    assert "evaluation at step 4" in log_of(tmp_path)


def precisions(detector):
    """Those of all parts of a detector, from its recipe."""
    return set(re.findall(r'"dtype": "(\w+)"', json.dumps(detector.recipe)))


@pytest.mark.parametrize("script", [*FOLDER_RECIPES, transfer_folder])
def test_folder_recipes_compute_in_the_precision_asked(script, coco_folder, asked):
    data = coco_folder / "annotations" / "instances_val2017.json"
    options = {"from_scratch": True} if script is transfer_folder else {}
    ask = functools.partial(asked, script.main, data, coco_folder / "val2017")
    detector, *_ = ask(precision="bfloat16", **options)
    assert precisions(detector) == {"bfloat16"}


@pytest.mark.parametrize(
    "name", [name for name in dir(experiments.digits) if name.startswith("train_")]
)
def test_detectors_of_digits_compute_in_the_precision_asked(name, monkeypatch):
    models = []
    for function in ("_train", "_train_on_proposals"):
        monkeypatch.setattr(
            experiments.digits, function, lambda model, *_, **__: models.append(model)
        )
    nothing = types.SimpleNamespace(variables={})
    monkeypatch.setattr(experiments.digits, "load_trained", lambda *_, **__: nothing)
    train = getattr(experiments.digits, name)
    train(precision="bfloat16")
    assert precisions(models[-1]) == {"bfloat16"}


@pytest.mark.parametrize("script", [retinanet_coco, faster_rcnn_fpn_coco])
def test_backbones_on_coco_can_be_computed_again(script, coco_folder, asked):
    for remat in (False, True):
        detector, *_ = asked(script.main, coco_folder, remat=remat)
        assert f'"remat": {json.dumps(remat)}' in json.dumps(detector.recipe)
