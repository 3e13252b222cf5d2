"""Reads and writes videos frame by frame, so that memory holds one."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import cv2
import numpy as np

from jaxdet.data.dataset import DataError

SUFFIXES = frozenset(
    {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
)
"""Of files that are taken for videos, in lower case."""
WRITABLE = (".avi", ".m4v", ".mkv", ".mov", ".mp4")
"""Suffixes of the containers that take `_CODEC`."""
_CODEC = "mp4v"  # MPEG-4, which OpenCV's wheels can write on every platform
_USUAL_RATE = 25.0  # of a video that does not say


class VideoInfo(NamedTuple):
    """What the header of a video says."""

    frames_per_second: float
    num_frames: int  # 0 where the header does not say


class Frame(NamedTuple):
    """One frame of a video."""

    number: int  # from 0
    seconds: float  # from the beginning
    image: np.ndarray  # [H, W, 3] uint8 RGB


def has_video_suffix(path: str | os.PathLike) -> bool:
    """Tells whether a file is taken for a video, by its name."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def read_info(path: str | os.PathLike) -> VideoInfo:
    """Reads the header of a video.

    Raises:
      DataError: it cannot be read.
    """
    with _opened(path) as capture:
        rate, count = (
            capture.get(cv2.CAP_PROP_FPS),
            capture.get(cv2.CAP_PROP_FRAME_COUNT),
        )
    known = np.isfinite(rate) and rate > 0
    return VideoInfo(rate if known else _USUAL_RATE, max(int(count), 0))


def read_frames(path: str | os.PathLike, every: int = 1) -> Iterator[Frame]:
    """Yields the frames of a video, turned upright as its header says.

    Args:
      path: of the file.
      every: of so many frames the first.

    Returns:
      One frame at a time. A video that is cut short ends where decoding fails.

    Raises:
      DataError: it cannot be read, or has no frame.
    """
    rate = read_info(path).frames_per_second
    with _opened(path) as capture:
        number = 0
        while capture.grab():
            if number % every == 0:
                decoded, image = capture.retrieve()
                if not decoded:
                    break
                image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
                yield Frame(number, number / rate, image)
            number += 1
    if number == 0:
        raise DataError(f"{path}: a video without frames")


def check_writable(path: str | os.PathLike) -> None:
    """Checks the suffix of a video that is to be written.

    Raises:
      DataError: it is none of `WRITABLE`.
    """
    if os.path.splitext(path)[1].lower() not in WRITABLE:
        raise DataError(
            f"{path}: no video is written so; allowed: {', '.join(WRITABLE)}"
        )


@contextlib.contextmanager
def open_writer(
    path: str | os.PathLike, frames_per_second: float
) -> Iterator[Callable[[np.ndarray], None]]:
    """Writes a video that is playable however the block ends.

    Args:
      path: of the file, whose suffix is one of `WRITABLE`; its folder exists.
      frames_per_second: of the video.

    Returns:
      A context, in which a function adds frames, `[H, W, 3]` uint8 RGB, all of one
      size; the codec cuts off the last row or column of an odd number.

    Raises:
      DataError: it cannot be written, or a frame has another size than the first.
    """
    check_writable(path)
    writer, shape = cv2.VideoWriter(), []

    def write(frame: np.ndarray) -> None:
        if not shape:
            shape.append(frame.shape)
            codec, size = cv2.VideoWriter_fourcc(*_CODEC), frame.shape[1::-1]
            if not writer.open(str(path), codec, frames_per_second, size):
                raise DataError(
                    f"{path}: OpenCV cannot write {_CODEC} of {size[0]}x{size[1]} there"
                )
        if frame.shape != shape[0]:
            raise DataError(f"{path}: a frame is {frame.shape}, the first {shape[0]}")
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    try:
        yield write
    finally:
        writer.release()


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[cv2.VideoCapture]:
    if not os.path.isfile(path):
        raise DataError(f"{path}: no such file")
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise DataError(f"{path}: no video that OpenCV can read")
        yield capture
    finally:
        capture.release()
