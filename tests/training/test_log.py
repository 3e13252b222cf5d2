import errno
import io
import resource
import struct
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from jaxdet.training.log import Log, Profiler
from tests.training import toy

VALUES = {"loss": 0.5, "images_per_second": 2.0}
# Of the 8 steps of 4 images 4 are left.
LINE = "step 4/8  loss 0.5  images_per_second 2  left 0:00:08"


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


def test_runs_within_a_second_keep_each_other_s_events(monkeypatch, tmp_path):
    monkeypatch.setattr("tensorboardX.event_file_writer.time.time", lambda: 1e9)
    for start in (0, 4):
        opened = Log(tmp_path, start=start, config=toy.config())
        opened.progress(start + 2, VALUES)
        opened.close()
    assert {step for step, _, _ in events(tmp_path)} == {2, 6}


class Terminal(io.StringIO):
    def isatty(self):
        return True


class ClosedTerminal(Terminal):
    def write(self, text):
        raise OSError(errno.EIO, "Input/output error")


def test_a_run_goes_on_when_its_terminal_is_closed(log, monkeypatch, tmp_path):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, ClosedTerminal())
    opened = Log(tmp_path, start=2, config=toy.config())
    opened.line("before")
    opened.advance()
    opened.progress(4, VALUES)
    opened.close()
    written = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split("  ", 1)[1] for line in written] == ["before", LINE]


def test_a_full_disk_ends_the_log_rather_than_to_hang(log):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            for _ in range(2000):
                log._scalars(4, VALUES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("in_terminal", [False, True])
def test_progress_is_printed_and_in_a_terminal_above_a_bar(
    tmp_path, capsys, monkeypatch, in_terminal
):
    errors = Terminal() if in_terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    for start in (2, 3):  # the second adds to the file
        log = Log(tmp_path, start=start, config=toy.config())
        assert log.in_terminal == in_terminal
        log.line(f"from {start}")
        log.progress(4, VALUES)
        log.close()
    lines = ["from 2", LINE, "from 3", LINE]
    assert capsys.readouterr().out.splitlines() == lines
    written = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split("  ", 1)[1] for line in written] == lines
    assert ("loss=0.5, images/s=2" in errors.getvalue()) == in_terminal


def test_numbers_and_pictures_reach_tensorboard(log, tmp_path, capsys):
    log.progress(4, VALUES)
    log.evaluation(4, {"AP": 0.25, "APm": float("nan"), "AP/cat": 0.5})
    image = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    log.pictures(4, {"a/b c.jpg": image})
    log.close()
    assert events(tmp_path) == [
        (4, "training/loss", 0.5),
        (4, "training/images_per_second", 2.0),
        (4, "validation/AP", 0.25),
        (4, "classes/AP/cat", 0.5),
        (4, "pictures/a_b_c.jpg", None),
    ]
    saved = Image.open(tmp_path / "pictures" / "0000004_a_b_c.jpg.png")
    np.testing.assert_array_equal(np.asarray(saved), image)
    # Classes are a table, and only in the file.
    assert "AP/cat" not in capsys.readouterr().out
    assert "AP/cat   50.0\n" in (tmp_path / "log.txt").read_text()


def test_names_are_those_of_tensorboard_and_allowed_by_trackers(tmp_path):
    def on_metrics(step, numbers):
        handed.extend((step, name, number) for name, number in numbers.items())

    handed = []
    log = Log(tmp_path, start=2, config=toy.config(), on_metrics=on_metrics)
    log.evaluation(4, {"AP/R&D (new) + old": 0.5, "recall@0.5/64": 0.25})
    log.close()
    assert (
        handed
        == events(tmp_path)
        == [
            (4, "validation/recall_0.5/64", 0.25),
            (4, "classes/AP/R_D__new____old", 0.5),
        ]
    )


@pytest.mark.parametrize(
    ("profile_steps", "start", "steps", "traced"),
    [
        (3, 0, 30, [11, 12, 13]),
        (3, 20, 40, [31, 32, 33]),
        (3, 0, 8, [6, 7, 8]),  # too short a run to wait for
        (3, 7, 8, [8]),
        (0, 0, 30, []),
    ],
)
def test_the_steps_that_are_traced(
    log, tmp_path, capsys, monkeypatch, profile_steps, start, steps, traced
):
    running, found = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", running.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", running.clear)
    config = toy.config(profile_steps=profile_steps, steps=steps)
    profiler = Profiler(log, start=start, config=config)
    for step in range(start + 1, steps + 1):
        profiler.begin(step)
        found += [step] * len(running)
        profiler.end(step, np.zeros(()))
    assert found == traced and not running
    printed = capsys.readouterr().out
    if traced:
        assert f"traced steps {traced[0]} to {traced[-1]} into {tmp_path}" in printed
    profiler.begin(11)
    profiler.close()  # as when a run ends within a trace
    assert not running
