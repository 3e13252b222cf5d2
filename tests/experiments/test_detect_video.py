"""Videos on the command line: what is written, and what is refused."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from experiments import detect
from jaxdet.data import video
from jaxdet.data.dataset import DataError
from jaxdet.inference.preprocess import ImageDetections

NAMES = ("cat", "dog")


@pytest.fixture
def clip(tmp_path):
    """Six frames of gray, 320 x 240."""
    file = tmp_path / "clip.mp4"
    with video.open_writer(file, 10.0) as add:
        for number in range(6):
            add(np.full((240, 320, 3), 40 * number, np.uint8))
    return file


def find_one(image):
    """A dog in each frame, scored by its gray."""
    box = np.array([[40, 20, 120, 200]], np.float32)
    score = np.array([image.mean() / 255], np.float32)
    return ImageDetections(box, score, np.array([1]), ("dog",))


@pytest.fixture(autouse=True)
def loaded(monkeypatch):
    def load(*options):
        return detect.Loaded(find_one, NAMES, (1, 2))

    monkeypatch.setattr(detect, "_load_detector", load)


@pytest.mark.parametrize(("every", "numbers"), [(1, range(6)), (4, [0, 4])])
def test_a_video_and_its_lines(clip, tmp_path, capsys, every, numbers):
    target = tmp_path / "deep" / "annotated.mp4"
    detect.main((clip,), output=target, every=every)
    lines = target.with_suffix(".jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    assert [line["frame"] for line in lines] == list(numbers)
    assert [line["seconds"] for line in lines] == [number / 10 for number in numbers]
    for line, number in zip(lines, numbers, strict=True):
        assert line["boxes"] == [[40, 20, 120, 200]] and line["names"] == ["dog"]
        assert line["labels"] == [1]
        np.testing.assert_allclose(line["scores"], [40 * number / 255], atol=0.02)
    frames = [frame.image for frame in video.read_frames(target)]
    assert len(frames) == len(numbers)
    info = video.read_info(target)
    assert info.frames_per_second == pytest.approx(10 / every, rel=1e-3)
    for image, number in zip(frames, numbers, strict=True):  # the codec is lossy
        gray = np.full((240, 320, 3), 40 * number, np.uint8)
        drawn = np.array(detect.draw_detections(gray, find_one(gray), NAMES))
        assert image.shape == drawn.shape
        assert np.abs(image - drawn.astype(float)).mean() < 8 < np.ptp(drawn)
    assert f"{len(numbers)} frames" in capsys.readouterr().out


def test_the_usual_names(clip, tmp_path):
    detect.main((clip,), output=tmp_path / "found", json_file=tmp_path / "x" / "y")
    assert [path.name for path in (tmp_path / "found").iterdir()] == ["clip.mp4"]
    assert len((tmp_path / "x" / "y").read_text().splitlines()) == 6


def test_videos_in_folders_are_named(clip, tmp_path, capsys):
    Image.new("RGB", (320, 240)).save(tmp_path / "photo.png")
    output = tmp_path / "detections"
    output.mkdir()
    (output / "written.mp4").write_bytes(b"")  # does not count
    detect.main((tmp_path,), output=output)
    printed = capsys.readouterr().out
    assert f"left out, videos in folders: 1, such as {clip}; to detect" in printed
    assert "in 1 of 1 pictures" in printed


def test_an_interruption_leaves_what_there_is(clip, tmp_path, monkeypatch):
    def load(*options):
        def interrupted(image):
            if image.mean() > 100:  # the fourth
                raise KeyboardInterrupt
            return find_one(image)

        return detect.Loaded(interrupted, NAMES, (1, 2))

    monkeypatch.setattr(detect, "_load_detector", load)
    target = tmp_path / "annotated.mp4"
    with pytest.raises(KeyboardInterrupt):
        detect.main((clip,), output=target)
    assert len(list(video.read_frames(target))) == 3
    lines = (tmp_path / "annotated.jsonl").read_text().splitlines()
    assert [json.loads(line)["frame"] for line in lines] == [0, 1, 2]


def test_what_is_refused(clip, tmp_path, monkeypatch):
    """Before a detector is loaded."""
    monkeypatch.setattr(detect, "_load_detector", None)
    other = tmp_path / "no.mp4"
    for pictures, options, problem in (
        ((clip, tmp_path), {}, r"clip\.mp4 is a video; it must be the only one"),
        ((clip,), {"every": 0}, "--every is 0; it must be at least 1"),
        ((tmp_path,), {"every": 2}, "--every 2 without a video"),
        ((tmp_path,), {"output": pathlib.Path("a.mp4")}, r"a\.mp4 without a video"),
        ((clip,), {"output": clip}, r"clip\.mp4 would be overwritten"),
        ((clip,), {"output": tmp_path}, r"clip\.mp4 would be overwritten"),
        ((clip,), {"json_file": clip}, r"clip\.mp4 would be .* another --json"),
        ((other,), {}, r"no\.mp4: no such file"),
        ((clip,), {"output": tmp_path / "a.webm"}, r"a\.webm: no video is written so"),
    ):
        with pytest.raises(DataError, match=problem):
            detect.main(pictures, **options)
