"""The scripts people run, with small numbers: every option, every file they leave."""

import ast
import dataclasses
import functools
import inspect
import itertools
import json
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from experiments import (
    command_line,
    detect,
    evaluate,
    quickstart,
    retinanet_coco,
    retinanet_folder,
)
from jaxdet.data import coco, digits
from jaxdet.data.batching import InputConfig
from jaxdet.data.dataset import DataError
from jaxdet.detectors.retinanet import RetinaNetConfig
from jaxdet.training.checkpoint import RunError
from jaxdet.training.config import TrainingConfig

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = sorted(
    path.stem
    for path in (ROOT / "experiments").glob("*.py")
    if path.stem not in ("__init__", "command_line")
)
SHORT = {"steps": 4, "warmup_steps": 1, "checkpoint_every": 2, "log_every": 2}


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
        quickstart.main(training=training, workdir=workdir)
    return workdir


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains(script):
    command = [sys.executable, "-m", f"experiments.{script}", "--help"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "the run folder" in answer.stdout


@pytest.mark.parametrize("config", [RetinaNetConfig, TrainingConfig, InputConfig])
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


def fails(*arguments):
    """Runs Python; its exit code and stderr, in which there is no traceback."""
    command = [sys.executable, *map(str, arguments)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" not in answer.stderr, answer.stderr
    return answer.returncode, answer.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "code", "message"),
    [
        ("evaluate", ["{0}"], 1, "error: {0} holds no run"),
        ("detect", ["{0}", "{0}/none.png"], 1, "error: {0}/none.png: no such file"),
        ("evaluate", ["{0}", "--step", "abc"], 2, "best"),
        ("quickstart", ["--training.steps", "0"], 2, "steps is 0"),
    ],
)
def test_user_errors_are_one_message(script, arguments, code, message, tmp_path):
    arguments = [argument.format(tmp_path) for argument in arguments]
    answer = fails("-m", f"experiments.{script}", *arguments)
    assert answer[0] == code and message.format(tmp_path) in answer[1]


@pytest.mark.parametrize(
    ("statement", "code", "message"),
    [
        ("raise weights.WeightsError('wrong')", 1, "error: wrong\n"),
        ("raise metrics.NonFiniteLossError('NaN')", 1, "error: NaN\n"),
        ("optimizer.partition({'a': 1}, ('b',))", 1, "error: frozen: 'b' matches no"),
        ("raise KeyboardInterrupt", 130, ""),
        ("int('a fault of ours')", 1, None),
    ],
)
def test_only_what_users_can_mend_loses_its_traceback(statement, code, message):
    program = (
        "from experiments import command_line\n"
        "from jaxdet import weights\n"
        "from jaxdet.training import metrics, optimizer\n"
        f"def main():\n    {statement}\n"
        "command_line.run(main)\n"
    )
    if message is None:
        with pytest.raises(AssertionError, match="Traceback"):
            fails("-c", program)
    else:
        answer = fails("-c", program)
        assert answer[0] == code and answer[1].startswith(message)


def test_the_number_of_classes_follows_the_data(few_digits):
    data_set = few_digits("validation")
    recipe = RetinaNetConfig(num_classes=80)
    adapt = functools.partial(command_line.with_classes_of, data_set, recipe=recipe)
    assert adapt(recipe).num_classes == 10
    asked = dataclasses.replace(recipe, num_classes=10, channels=8)
    assert adapt(asked) == asked
    with pytest.raises(ValueError, match=r"num-classes is 7.*has 10 classes"):
        adapt(dataclasses.replace(recipe, num_classes=7))


def test_nothing_can_be_frozen_from_scratch(tmp_path):
    training = dataclasses.replace(retinanet_coco.TRAINING, frozen=("fpn/.*",))
    with pytest.raises(ValueError, match=r"fpn.*without --backbone-weights"):
        retinanet_coco.main(tmp_path, training=training)


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
    evaluate._draw_first(2, data_set, [], tmp_path / "none")
    found, nothing = (
        np.array(Image.open(folder / names[1])).astype(int)
        for folder in (everything, tmp_path / "none")
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
    ],
)
def test_evaluate_refuses_contradictions(tmp_path, options, problem):
    with pytest.raises(DataError, match=problem):
        evaluate.main(tmp_path, **options)


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
    detect.main(run, (folder,), output=output, min_score=0.0, step="latest")
    names = {path.name for path in output.iterdir()}
    assert names == {"one.png", "one_2.png", "detections.json"}
    found = coco.load(output / "detections.json", folder)  # it is COCO's format
    assert len(found) == 2 and len(found.class_names) == 10


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
            detect.main(tmp_path, (pathlib.Path("."),), output=output)
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
        detect.main(run, tuple(map(pathlib.Path, pictures)))


def test_a_coco_format_folder_trains(few_digits, tmp_path):
    data_set = few_digits("train")
    truth = data_set.ground_truth()
    for position, image in enumerate(truth["images"]):
        image["file_name"] = f"{position}.png"
        pixels = Image.fromarray(data_set.read_image(position))
        pixels.save(tmp_path / image["file_name"])
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps(truth))
    training = dataclasses.replace(
        retinanet_folder.TRAINING,
        **SHORT,
        evaluate_every=0,
        input=dataclasses.replace(
            retinanet_folder.TRAINING.input, canvases=((64, 64),)
        ),
    )
    assert isinstance(training, TrainingConfig)
    workdir = tmp_path / "run"
    retinanet_folder.main(
        annotations,
        tmp_path,
        training=training,
        workdir=workdir,
        validation_annotations=annotations,
    )
    assert "evaluation at step 4" in (workdir / "log.txt").read_text()
    with pytest.raises(DataError, match="knows the classes"):
        truth["categories"][0]["name"] = "nought"
        annotations.write_text(json.dumps(truth))
        evaluate.main(workdir, annotations=annotations, images=tmp_path)
