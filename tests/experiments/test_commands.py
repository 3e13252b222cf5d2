"""The commands people run, with small numbers: options and the files they leave."""

import dataclasses
import errno
import functools
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tyro
from PIL import Image

from experiments import command_line, detect, evaluate, export, proposals, train
from experiments import recipe as recipes
from experiments.data_option import (
    VALIDATION,
    DataOption,
    ValidationOption,
    search_proposals,
)
from experiments.lecture import anatomy
from experiments.views_option import ViewsOption
from jaxdet import parallel
from jaxdet.config import Anchors, ConfigError
from jaxdet.data import selective_search
from jaxdet.data.dataset import DataError
from jaxdet.data.formats import coco, digits
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.detector import Detector
from jaxdet.inference.preprocess import ImageDetections
from jaxdet.training import optimizer
from jaxdet.training.metrics import NonFiniteLossError
from jaxdet.training.run_folder import RunError
from jaxdet.weights import published, state_dict
from jaxdet.weights.published import TrainedDetector
from tests.data.formats import layouts
from tests.experiments.test_recipes import SHORT
from tests.golden import replay

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(few_digits, tmp_path_factory):
    """The run folder of a very short quickstart."""
    workdir = tmp_path_factory.mktemp("run")
    recipe = recipes.load("retinanet_digits")
    one_level = {"levels": (4,), "anchors": Anchors(((28.0, 40.0),))}
    small = dataclasses.replace(recipe.detector, channels=8, head_depth=1, **one_level)
    backbone = recipe.backbone.clone(width=8)
    recipe = dataclasses.replace(recipe, detector=small, backbone=backbone)
    training = dataclasses.replace(recipe.training, **SHORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "load", few_digits)
        patch.setattr(recipes, "load", lambda _: recipe)
        train.command("retinanet_digits")(training=training, workdir=workdir)
    return workdir


@pytest.fixture
def exits(monkeypatch, capsys):
    """Calls what runs a command line; its exit code and what it says in stderr."""
    logger = logging.getLogger("jaxdet")
    for name, value in {"handlers": [], "level": 0, "propagate": True}.items():
        monkeypatch.setattr(logger, name, value)
    handler = signal.getsignal(signal.SIGINT)

    def ask(function, *arguments):
        monkeypatch.setattr(sys, "argv", ["script", *arguments])
        with pytest.raises(SystemExit) as caught:
            function()
        return caught.value.code, capsys.readouterr().err

    yield ask
    signal.signal(signal.SIGINT, handler)  # an interrupted command has reset it


def test_training_lists_its_recipes(capsys):
    commands = train.commands(["faster_rcnn_small"])
    with pytest.raises(SystemExit, match="0"):
        tyro.extras.subcommand_cli_from_dict(commands, args=["--help"])
    words = capsys.readouterr().out
    assert all(name in words for name in recipes.summaries())


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
        (raising(OSError(errno.EROFS, "no", "f")), 1, "error: [Errno 30] no: 'f'"),
        (raising(KeyboardInterrupt()), 130, ""),
    ],
)
def test_what_users_can_mend_has_no_traceback(fault, code, message, exits):
    def main():
        fault()

    answer = exits(functools.partial(command_line.run, main))
    assert answer[0] == code and answer[1].startswith(message)


INTERRUPTED = """
import gc, os, signal, time
from experiments import command_line

def interrupt(*_):
    gc.callbacks.remove(interrupt)
    os.kill(os.getpid(), signal.SIGINT)

def main():
    gc.callbacks.append(interrupt)
    gc.collect()
    time.sleep(60)

command_line.run(main)
"""


def test_ctrl_c_ends_quietly_even_in_a_callback_and_during_imports(tmp_path):
    module = [sys.executable, "-m", "experiments.evaluate", str(tmp_path)]
    script = [sys.executable, "-c", INTERRUPTED]
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    # They would inherit that it is ignored.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    importing = subprocess.Popen(module, **options)
    running = subprocess.Popen(script, **options)
    signal.signal(signal.SIGINT, previous)
    time.sleep(0.5)
    importing.send_signal(signal.SIGINT)
    for process in (importing, running):
        output, _ = process.communicate(timeout=60)
        assert (process.returncode, output) in ((130, b""), (-signal.SIGINT, b""))


def test_a_command_that_is_over_counts_no_interrupts(exits):
    # Tests that a shell started in the background would ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        exits(functools.partial(command_line.run, raising(ConfigError("refused"))))
        for _ in range(4):  # the third would end this process
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            time.sleep(0.05)
    finally:
        signal.signal(signal.SIGINT, before)


def test_faults_of_ours_keep_their_traceback(exits):
    main = raising(ValueError("a fault of ours"))
    with pytest.raises(ValueError, match="a fault of ours"):
        exits(functools.partial(command_line.run, main))


def test_flags_of_several_hosts_are_taken_out_and_explained(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(parallel, "initialize", lambda *options: calls.append(options))
    hosts = ["--coordinator", "first:1234", "--processes", "2", "--process", "1"]
    rest = ["--data", "coco", "--training.steps", "7"]
    assert command_line._parse_shared_options([*hosts, *rest]) == rest
    assert command_line._parse_shared_options(rest) == rest
    assert calls == [("first:1234", 2, 1), (None, None, None)]
    command_line._parse_shared_options(["--help"])
    assert len(calls) == 2 and "--coordinator HOST:PORT" in capsys.readouterr().out
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="several processes need all three"):
        command_line._parse_shared_options(["--processes", "2"])


@pytest.fixture
def programs_folder():
    """Where programs would be kept, by the options and the environment's folder."""
    before = jax.config.jax_compilation_cache_dir

    def folder(*options, named=None):
        jax.config.update("jax_enable_compilation_cache", True)
        jax.config.update("jax_compilation_cache_dir", named)
        assert command_line._parse_shared_options([*map(str, options)]) == []
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


def test_quickstart_leaves_all_that_was_promised(run):
    assert json.loads((run / "config.json").read_text())["class_names"] == [
        *"0123456789"
    ]
    assert {path.name for path in (run / "checkpoints").iterdir()} >= {"1", "2"}
    assert "evaluation at step 2" in (run / "log.txt").read_text()
    assert list(run.glob("events*")) and list((run / "pictures").glob("*.png"))


def test_evaluate_prints_writes_and_draws(
    run, few_digits, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(digits, "load", few_digits)
    everything, file = tmp_path / "all", tmp_path / "new" / "found.json"
    evaluate.main(
        run, step=2, json_file=file, pictures=2, output=everything, min_score=0.0
    )
    assert "AP50" in capsys.readouterr().out
    assert isinstance(json.loads(file.read_text()), list)
    names = sorted(path.name for path in everything.iterdir())
    assert len(names) == 2 and names[0].startswith("000000_")


def test_detect_takes_the_minimum_score_that_a_report_has_found(
    run, few_digits, tmp_path, monkeypatch, capsys
):
    def detect_everything(detector, variables, data_set, *_, **__):
        keys = ("image_id", "category_id", "bbox")
        return [
            {key: one[key] for key in keys} | {"score": 0.8}
            for one in data_set.ground_truth()["annotations"]
        ]

    def make_detect(trained, min_score, tiles):
        taken.append(min_score)
        return lambda image: found_a_cat(image)._replace(labels=np.array([3]))

    taken, photo = [], tmp_path / "photo.png"
    Image.new("RGB", (64, 64)).save(photo)
    detect_best = functools.partial(
        detect.main, (run, photo), min_score="best", output=tmp_path / "found"
    )
    with pytest.raises(RunError, match=r"evaluate \S+ --report FOLDER"):
        detect_best()
    monkeypatch.setattr(digits, "load", few_digits)
    monkeypatch.setattr(evaluate, "detect_all", detect_everything)
    monkeypatch.setattr("jaxdet.inference.load.make_detect", make_detect)
    evaluate.main(run, report=tmp_path / "report", metrics="voc")
    written = capsys.readouterr().out
    assert "mAP" in written and "minimum score: 0.400 (f1 100.0, precision" in written
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    assert numbers["metrics"]["AP"] == pytest.approx(1)
    assert (tmp_path / "report" / "report.html").is_file()
    detect_best()
    assert taken == [0.4]
    flipped = ViewsOption(flip=True, scales=(0.5, 1.0), merge="wbf")  # other scores
    with pytest.raises(RunError, match=r"--report F\w+ --merge wbf --f.* 0\.5 1$"):
        detect_best(views=flipped)
    evaluate.main(run, report=tmp_path / "report", views=flipped)
    detect_best(views=flipped)
    with pytest.raises(RunError, match=r"checkpoint 2; measure it: .* --step 2"):
        detect_best(step=2)
    with pytest.raises(
        DataError, match="best is known of run folders alone, not of --w"
    ):
        detect.main((photo,), weights="some.pth", min_score="best")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"pictures": -1}, "--pictures is -1"),
        ({"max_detections": 10}, "--max-detections is 10; it must be at least 11"),
        ({"canvas_multiple": 0}, "--canvas-multiple is 0"),
        ({"canvas_multiple": 64}, "--canvas-multiple 64 without --weights"),
        ({"weights": "some.pth"}, "--weights some.pth and the run folder .*; one"),
    ],
)
def test_evaluate_refuses_contradictions(tmp_path, options, problem):
    with pytest.raises(DataError, match=r"--report \S+\.py is a file"):
        evaluate.main(tmp_path, report=pathlib.Path(__file__))
    with pytest.raises(DataError, match=problem):
        evaluate.main(**{"workdir": tmp_path} | options)


@pytest.mark.slow
def test_evaluate_takes_a_checkpoint_of_torchvisions(
    data_folder, tmp_path, monkeypatch, capsys
):
    """From end to end on four photographs, made small; the weights are drawn."""
    name = "fasterrcnn_resnet50_fpn"
    state, *_ = replay.load(ROOT / "tests" / "golden" / f"{name}_s0.npz")
    np.savez(tmp_path / "drawn.npz", **state)
    files = {name: tmp_path / "drawn.npz"}
    monkeypatch.setattr(evaluate.published, "weights_file", files.get)
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
    monkeypatch.setattr(evaluate.torchvision, "MIN_MAX_SIZE", (96, 160))
    found = tmp_path / "found.json"
    evaluate.main(
        weights=name,
        canvas_multiple=160,  # one for all
        source=DataOption((str(tmp_path),)),
        batch_size=2,
        json_file=found,
    )
    words = capsys.readouterr().out
    assert "AP50" in words and "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth" in words
    detections = json.loads(found.read_text())
    assert {one["image_id"] for one in detections} == kept
    ids = {category["id"] for category in truth["categories"]}
    assert {one["category_id"] for one in detections} <= ids


def test_as_many_regions_are_searched_for_as_the_detector_takes(
    few_digits, monkeypatch
):
    monkeypatch.setattr(
        selective_search,
        "with_selective_search",
        lambda data_set, max_proposals: max_proposals,
    )
    search = functools.partial(search_proposals, few_digits("validation"))
    assert search(InputConfig(max_regions=7)) == 7
    assert search(InputConfig()).proposals is None


def test_detect_draws_every_picture_and_names_those_it_cannot_read(run, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("one.png", "one.jpg"):
        noise = rng.integers(0, 255, (90, 120, 3), np.uint8)
        Image.fromarray(noise).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    output = tmp_path / "found"
    detect.main((run, folder), output=output, min_score=0.0, step="latest")
    names = {path.name for path in output.iterdir()}
    assert names == {"one.png", "one_2.png", "detections.json"}
    found = coco.load(output / "detections.json", folder)  # it is COCO's format
    assert len(found) == 2 and len(found.class_names) == 10


def found_a_cat(image):
    height, width = image.shape[:2]
    box = np.array([[0, 0, width / 2, height]], np.float32)
    return ImageDetections(box, np.array([0.75], np.float32), np.array([15]), ("cat",))


def test_detect_needs_no_run(tmp_path, monkeypatch, capsys):
    detector = Detector(None, None, None, num_classes=80)
    classes = published.CLASS_NAMES, published.CATEGORY_IDS
    trained = TrainedDetector(detector, {}, InputConfig(), *classes, "COCO")
    monkeypatch.setitem(published.DETECTORS, "ssd_mobilenet_v2", lambda: trained)
    monkeypatch.setattr(
        "jaxdet.inference.load.make_detect", lambda *given, **options: found_a_cat
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


def test_detect_watches_a_folder_that_grows(run, tmp_path, monkeypatch):
    def save(name):
        Image.fromarray(np.zeros((90, 120, 3), np.uint8)).save(photos / name)

    def pass_time(seconds):
        passed.append(seconds)
        if len(passed) == 1:
            content = (photos / "one.png").read_bytes()
            (photos / "half.png").write_bytes(content[: len(content) // 2])
            save("one.jpg")
        elif len(passed) == 2:
            (photos / "half.png").write_bytes((photos / "one.png").read_bytes())
        elif len(passed) == 5:
            raise KeyboardInterrupt

    passed, photos, output = [], tmp_path / "photos", tmp_path / "found"
    photos.mkdir()
    with pytest.raises(DataError, match="--watch without a folder"):
        detect.main((run, pathlib.Path(__file__)), watch=True)
    save("one.png")
    monkeypatch.setattr(detect.time, "sleep", pass_time)
    with pytest.raises(KeyboardInterrupt):
        detect.main((run, photos), output=output, watch=True, step="latest")
    names = {path.name for path in output.iterdir()}
    assert names == {"one.png", "one_2.png", "half.png", "detections.json"}
    images = json.loads((output / "detections.json").read_text())["images"]
    files = [pathlib.Path(one["file_name"]).name for one in images]
    assert files == ["one.png", "one.jpg", "half.png"]


def test_drawings_have_names_of_their_own():
    files = [pathlib.Path(name) for name in ("a.jpg", "a.png", "a_2.jpg", "b/A.gif")]
    targets = detect._name_drawings(files, pathlib.Path("out"))
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
    files = detect._list_pictures((tmp_path, tmp_path / "one.png"), tmp_path / "found")
    assert [file.name for file in files] == ["foundling.png", "one.png"]
    named = detect._list_pictures((tmp_path / "found" / "one.png",), tmp_path / "found")
    assert len(named) == 1


@pytest.mark.parametrize(
    ("pictures", "options", "problem"),
    [
        ((), {}, "no pictures"),
        (("nowhere.png",), {}, "no such file"),
        ((".",), {}, "no pictures"),
        ((), {"weights": "some.pth"}, r"some\.pth and the run folder"),
        ((), {"min_score": 2}, "--min-score is 2"),
    ],
)
def test_detect_refuses(run, tmp_path, monkeypatch, pictures, options, problem):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=problem):
        detect.main((run, *map(pathlib.Path, pictures)), **options)
    with pytest.raises(DataError, match="--step latest without a run folder"):
        detect.main((tmp_path / "photo.png",), step="latest")


def test_evaluate_takes_only_the_classes_of_the_run(run, coco_folder, tmp_path):
    annotations = coco_folder / "annotations" / "instances_val2017.json"
    truth = json.loads(annotations.read_text())
    truth["categories"][0]["name"] = "nought"
    others = tmp_path / "others.json"
    others.write_text(json.dumps(truth))
    with pytest.raises(DataError, match="knows the classes"):
        source = DataOption((str(others),), (coco_folder / "val2017",))
        evaluate.main(run, source)


def test_proposals_of_voc_folders_are_trained_on(
    voc_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("JAXDET_CACHE", str(tmp_path))
    files = tmp_path / "train.npz", tmp_path / "test.json"
    source = DataOption((str(voc_folder),))
    for file, split in zip(files, (None, "test"), strict=True):
        part = dataclasses.replace(source, split=split)
        proposals.main(part, max_proposals=3, output=file)
    assert "recall@0.5" in capsys.readouterr().out
    data_sets = []

    def no_training(recipe, *given, **options):
        data_sets.extend(given)

    monkeypatch.setattr(train, "train_recipe", no_training)
    command = train.command("fast_rcnn_voc")
    command(source=source, proposal_files=files)
    for part in data_sets:
        assert len(part) == 1 and 1 <= len(part.proposals[0].scores) <= 3
    with pytest.raises(DataError, match=r"test\.json: .* 1 of 1 images"):
        command(source=source, proposal_files=files[::-1])
    with pytest.raises(DataError, match=r"of 1 of 2 images of .*2007 trainval' and "):
        command(source=source, proposal_files=files[:1])
    with pytest.raises(DataError, match="takes 2, one a data set"):
        command(source=source, proposal_files=(*files, *files))


def test_training_finds_the_proposals_of_both_parts(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXDET_CACHE", str(tmp_path / "cache"))
    layouts.voc_of_labelimg(tmp_path, {"photos": layouts.example(9)})
    source = DataOption((str(tmp_path / "photos"),))
    proposals.main(source, max_proposals=3)
    assert "photos, validation part\n" in capsys.readouterr().out
    monkeypatch.setattr(selective_search, "selective_search", lambda *_, **__: 1 / 0)
    for part in VALIDATION.load(source):
        found = search_proposals(part, InputConfig(max_regions=3))
        assert len(found.proposals) == len(part) > 0
    with pytest.raises(DataError, match="is for one data set"):
        part = ValidationOption(validation_share=0.5)
        proposals.main(source, part, output=tmp_path / "a.npz")


@pytest.mark.parametrize("given", [{}, {"weights": pathlib.Path("some.pth")}])
def test_options_and_data_are_checked_before_weights_are_read(
    given, few_digits, tmp_path, monkeypatch
):
    def read(file):
        raise AssertionError(f"{file} is read too early")

    monkeypatch.setattr(digits, "load", few_digits)
    monkeypatch.setattr(evaluate, "read_state_dict", read)
    monkeypatch.setattr(published, "read_state_dict", read)
    monkeypatch.setattr(published, "package_file", read)
    nowhere = tmp_path / "nowhere"
    with pytest.raises(DataError, match="not there"):
        evaluate.main(source=DataOption((str(nowhere),)), **given)
    with pytest.raises(DataError, match=r"proposals p\.npz"):
        evaluate.main(**given, proposal_file=pathlib.Path("p.npz"))
    with pytest.raises(DataError, match="--batch-size is 0"):
        export.main(**given, batch_size=0)
    with pytest.raises(DataError, match="--canvases"):
        export.main(**given, canvases=((64, 0),))
    with pytest.raises(DataError, match="no such file"):
        detect.main((nowhere,), **given)
    with pytest.raises(DataError):
        anatomy.main(nowhere, **given)
