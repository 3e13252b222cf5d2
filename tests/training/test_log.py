import io
import struct
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from jaxdet.training.log import Log, Trace
from tests.training import toy


def events(workdir):
    """What TensorBoard reads: (step, tag, number; None for a picture)."""
    found = []
    for file in sorted(workdir.glob("events.out.tfevents.*")):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            for value in event.summary.value:
                number = value.simple_value if value.HasField("simple_value") else None
                found.append((event.step, value.tag, number))
            content = content[12 + length + 4 :]
    return found


@pytest.fixture
def log(tmp_path):
    opened = Log(tmp_path, start=2, config=toy.config())
    yield opened
    opened.close()


def test_progress_is_printed_where_there_is_no_terminal(log, tmp_path, capsys):
    assert not log.in_terminal
    log.line("hello")
    log.progress(4, {"loss": 0.5, "images_per_second": 2.0})
    lines = ["hello", "step 4/8  loss 0.5  images_per_second 2  left 0:00:08"]
    assert capsys.readouterr().out.splitlines() == lines
    written = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split("  ", 1)[1] for line in written] == lines


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_in_a_terminal_progress_is_printed_above_a_bar(tmp_path, capsys, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    log = Log(tmp_path, start=2, config=toy.config())
    assert log.in_terminal
    log.progress(4, {"loss": 0.5, "images_per_second": 2.0})
    log.close()
    line = "step 4/8  loss 0.5  images_per_second 2  left 0:00:08\n"
    assert capsys.readouterr().out == line
    assert (tmp_path / "log.txt").read_text().endswith(line)
    assert "loss=0.5, images/s=2" in terminal.getvalue()


def test_numbers_and_pictures_reach_tensorboard(log, tmp_path):
    log.progress(4, {"loss": 0.5, "images_per_second": 2.0})
    log.evaluation(4, {"AP": 0.25, "APm": float("nan")})
    image = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    log.picture(4, "a/b c.jpg", image)
    log.close()
    assert events(tmp_path) == [
        (4, "training/loss", 0.5),
        (4, "training/images_per_second", 2.0),
        (4, "validation/AP", 0.25),
        (4, "pictures/a_b_c.jpg", None),
    ]
    saved = Image.open(tmp_path / "pictures" / "0000004_a_b_c.jpg.png")
    np.testing.assert_array_equal(np.asarray(saved), image)


def test_classes_are_a_table_in_the_file_and_a_group_of_their_own(
    log, tmp_path, capsys
):
    log.evaluation(4, {"AP": 0.25, "AP/cat": 0.5, "mask/AP/dog": float("nan")})
    log.close()
    line = "evaluation at step 4  AP 0.25\n"
    assert capsys.readouterr().out == line
    written = (tmp_path / "log.txt").read_text()
    assert line in written and "AP/cat        50.0\nmask/AP/dog      -\n" in written
    assert events(tmp_path) == [(4, "validation/AP", 0.25), (4, "classes/AP/cat", 0.5)]


@pytest.mark.parametrize(
    ("profile", "start", "steps", "traced"),
    [
        (3, 0, 30, [11, 12, 13]),
        (3, 20, 40, [31, 32, 33]),
        (3, 0, 8, [6, 7, 8]),  # too short a run to wait for
        (3, 7, 8, [8]),
        (0, 0, 30, []),
    ],
)
def test_the_steps_that_are_traced(
    log, tmp_path, capsys, monkeypatch, profile, start, steps, traced
):
    running, found = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", running.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", running.clear)
    config = toy.config(profile_steps=profile, steps=steps)
    trace = Trace(tmp_path, start=start, config=config, log=log)
    for step in range(start + 1, steps + 1):
        trace.begin(step)
        found += [step] * len(running)
        trace.end(step, np.zeros(()))
    assert found == traced and not running
    said = capsys.readouterr().out
    if traced:
        folder = tmp_path / "profile"
        assert f"traced steps {traced[0]} to {traced[-1]} into {folder}: open" in said
    else:
        assert not said


def test_a_trace_that_has_no_end_is_closed(log, tmp_path, monkeypatch):
    stopped = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: stopped.append(True))
    config = toy.config(profile_steps=3, steps=30)
    trace = Trace(tmp_path, start=0, config=config, log=log)
    trace.close()
    assert not stopped
    trace.begin(11)
    trace.close()
    assert stopped == [True]


def test_going_on_adds_to_the_diary(tmp_path):
    for start in (0, 4):
        log = Log(tmp_path, start=start, config=toy.config())
        log.line(f"from {start}")
        log.close()
    text = (tmp_path / "log.txt").read_text()
    assert "from 0\n" in text and text.endswith("from 4\n")
