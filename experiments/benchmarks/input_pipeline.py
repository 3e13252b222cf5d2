"""Measures how fast the batches of training are made.

    python -m experiments.benchmarks.input_pipeline \
        --data train.json --images photos

Measures the images a second of training's input, in turns with reading, decoding
(libjpeg-turbo, by OpenCV) and resizing (OpenCV) alone on as many threads, so that a
busy machine is fair to both. The share of its time that a training waits for batches
is "data_time" in its own log.
"""

import concurrent.futures
import dataclasses
import itertools
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import PIL.Image
import skimage.data

from experiments import command_line
from experiments.benchmarks import report
from experiments.data_option import NO_DATA, DataOption, Flat
from jaxdet.config import ConfigError
from jaxdet.data import batching, files, transforms
from jaxdet.data.dataset import DataSet
from jaxdet.data.input_config import InputConfig

PHOTOGRAPHS = 64  # made if none are given
INPUT = InputConfig(canvases=((640, 640),), too_many_objects="drop")


def main(
    source: Flat[DataOption] = NO_DATA,
    input_config: InputConfig = INPUT,
    *,
    batch_size: int = 16,
    batches: int = 16,
    repeats: int = 5,
):
    """Measures both, and prints images a second.

    Args:
      source: the photographs; if there is none, some are made.
      input_config: how they become batches, and on how many threads.
      batch_size: images a batch.
      batches: made in each turn, at least 1.
      repeats: turns of each, at least 1.

    Raises:
      DataError: if the data set cannot be opened.
      ConfigError: for a number below 1.
    """
    for name, value in (("batches", batches), ("repeats", repeats)):
        if value < 1:
            raise ConfigError(f"--{name} is {value}; it must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        if not source.data:
            file = make_photographs(pathlib.Path(folder))
            source = dataclasses.replace(source, data=(str(file),))
        data_set = source.load()
        options = {"batch_size": batch_size, "seed": 0, "stop": batches}

        def make_batches():
            for _ in batching.training_batches(data_set, input_config, **options):
                pass

        count = batch_size * batches
        alone = decode_and_resize(data_set, input_config, count)
        turns = [
            (speed(alone, count), speed(make_batches, count)) for _ in range(repeats)
        ]
        print(
            f"{data_set.name}: {len(data_set)} images, {input_config.workers} threads"
        )
        print(speed_table(turns), end="")


def make_photographs(folder: pathlib.Path) -> pathlib.Path:
    """Makes JPEG files of 480 x 640, as most of COCO's, of two photographs.

    Returns:
      Their json in COCO's format.
    """
    rng = np.random.default_rng(0)
    entries = []
    for index in range(PHOTOGRAPHS):
        photo = (skimage.data.astronaut(), skimage.data.coffee())[index % 2]
        left, top = rng.integers(0, 120, 2)
        part = PIL.Image.fromarray(photo[top : top + 270, left : left + 360])
        name = f"{index}.jpg"
        part.resize((640, 480), PIL.Image.Resampling.BICUBIC).save(folder / name)
        entries.append({"id": index, "file_name": name, "height": 480, "width": 640})
    categories = [{"id": 1, "name": "thing"}]
    content = {"images": entries, "annotations": [], "categories": categories}
    files.write_json(folder / "photographs.json", content)
    return folder / "photographs.json"


def speed(work: Callable[[], None], count: int) -> tuple[float, float]:
    """Returns images a second, of the clock and of this process's CPU time."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return (
        count / (time.perf_counter() - clock),
        count / (time.process_time() - processor),
    )


def speed_table(turns: Sequence[tuple]) -> str:
    """Returns the medians of both speeds, and of their ratio.

    Args:
      turns: for each turn, the speeds of decoding alone, and of the batches.
    """
    speeds = np.array(turns)  # [turns, 2, 2]
    alone, whole = np.median(speeds, axis=0)
    ratio = np.median(speeds[:, 1] / speeds[:, 0], axis=0)
    rows = [
        ["decoding and resizing alone", *(f"{value:.0f}" for value in alone)],
        ["the batches of training", *(f"{value:.0f}" for value in whole)],
        ["ratio", *(f"{value:.2f}" for value in ratio)],
    ]
    return report.table(("images a second", "by the clock", "of CPU time"), rows)


def decode_and_resize(
    data_set: DataSet, config: InputConfig, count: int
) -> Callable[[], None]:
    """Returns a function that decodes and resizes on as many threads as training.

    Args:
      data_set: its images, again from the first if they are too few.
      config: canvases and number of threads.
      count: images of a call.
    """
    rule = {"keep_aspect": config.keep_aspect, "min_max_size": config.min_max_size}
    canvas = transforms.assign_canvases(
        data_set.sizes, config.canvases, min_max_size=config.min_max_size
    )

    def one(index: int) -> None:
        encoded = np.frombuffer(data_set.read_encoded(index), np.uint8)
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        size = image.shape[:2]
        fitted = transforms.fitted_size(size, config.canvases[canvas[index]], **rule)
        cv2.resize(image, fitted[::-1])

    def work() -> None:
        indices = itertools.islice(itertools.cycle(range(len(data_set))), count)
        with concurrent.futures.ThreadPoolExecutor(max(1, config.workers)) as threads:
            list(threads.map(one, indices))

    return work


if __name__ == "__main__":
    command_line.run(main)
