"""Videos of a few frames, written and read again."""

import numpy as np
import pytest

from jaxdet.data import video
from jaxdet.data.dataset import DataError


def frames(count, size=(48, 64)):
    """Of rising gray, with a red left half."""
    images = [np.full((*size, 3), 40 * i, np.uint8) for i in range(count)]
    for image in images:
        image[:, : size[1] // 2] = (200, 0, 0)
    return images


def write(path, images, rate=10.0):
    with video.open_writer(path, rate) as add:
        for image in images:
            add(image)


@pytest.mark.parametrize("suffix", video.WRITABLE)
def test_frames_come_back(tmp_path, suffix):
    file = tmp_path / f"a{suffix}"
    write(file, frames(6))
    info = video.read_info(file)
    assert info.frames_per_second == pytest.approx(10)
    assert info.num_frames == 6
    found = list(video.read_frames(file))
    assert [frame.number for frame in found] == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose([x.seconds for x in found], np.arange(6) / 10)
    for frame, image in zip(found, frames(6), strict=True):  # the codec is lossy
        np.testing.assert_allclose(frame.image[::47, ::63], image[::47, ::63], atol=12)
    some = list(video.read_frames(file, every=4))
    assert [(x.number, round(x.seconds, 3)) for x in some] == [(0, 0), (4, 0.4)]
    np.testing.assert_array_equal(some[1].image, found[4].image)


def test_odd_sizes_are_written_too(tmp_path):
    write(tmp_path / "a.mp4", frames(2, (47, 63)))
    assert len(list(video.read_frames(tmp_path / "a.mp4"))) == 2


def test_an_interrupted_video_is_playable(tmp_path):
    file = tmp_path / "a.mp4"
    with pytest.raises(KeyboardInterrupt), video.open_writer(file, 10.0) as add:
        add(frames(1)[0])
        raise KeyboardInterrupt
    assert len(list(video.read_frames(file))) == 1


def test_what_cannot_be_read_or_written(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video at all")
    for name, problem in (("a.mp4", "no video that OpenCV"), ("b.mp4", "no such file")):
        with pytest.raises(DataError, match=rf"{name}: {problem}"):
            next(video.read_frames(tmp_path / name))
    with pytest.raises(DataError, match=r"c\.webm: no video is written so; allowed"):
        write(tmp_path / "c.webm", frames(1))
    with pytest.raises(DataError, match=r"c\.mp4: OpenCV cannot write mp4v of 64x48"):
        write(tmp_path / "nowhere" / "c.mp4", frames(1))
    with pytest.raises(DataError, match=r"a frame is \(10, 10, 3\), the first \(48"):
        write(tmp_path / "d.mp4", [*frames(1), *frames(1, (10, 10))])


def test_a_video_without_frames(tmp_path, monkeypatch):
    write(tmp_path / "a.mp4", frames(1))
    monkeypatch.setattr(video.cv2.VideoCapture, "grab", lambda self: False)
    with pytest.raises(DataError, match=r"a\.mp4: a video without frames"):
        list(video.read_frames(tmp_path / "a.mp4"))
