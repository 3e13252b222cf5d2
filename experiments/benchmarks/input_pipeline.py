"""How fast batches are made, and how long training waits for them.

    python -m experiments.benchmarks.input_pipeline \
        --data train.json --images photos

Images a second of training's input, beside reading, decoding (libjpeg-turbo, by OpenCV)
and resizing (OpenCV) alone on as many threads. The two take turns, so that a busy
machine is fair to both. Then the share of its time that training a small RetinaNet on
the first canvas waits for batches.
"""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator

import cv2
import jax
import numpy as np
import PIL.Image

from experiments import command_line
from experiments.data_option import NO_DATA, DataOption, Flat
from experiments.recipes import retinanet_small
from jaxdet.config import ConfigError
from jaxdet.data import batching, transforms
from jaxdet.data.dataset import DataSet
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.retinanet import retinanet
from jaxdet.parallel import replicate, shard_to_devices
from jaxdet.training.config import TrainingConfig
from jaxdet.training.metrics import RecentMetrics
from jaxdet.training.step import create_state, make_train_step

PHOTOGRAPHS = 64  # made where none are given
INPUT = InputConfig(canvases=((640, 640),), too_many_objects="drop")


def main(
    source: Flat[DataOption] = NO_DATA,
    input_config: InputConfig = INPUT,
    *,
    batch_size: int = 16,
    batches: int = 16,
    repeats: int = 5,
    steps: int = 10,
):
    """Measures, and prints what it found.

    Args:
      source: the photographs; without them some are made on the spot.
      input_config: how they become batches, and on how many threads.
      batch_size: images a batch.
      batches: made in each turn, at least 1.
      repeats: turns of each, at least 1.
      steps: of training, after one in which it is compiled; 0: none.

    Raises:
      DataError: if the data set cannot be opened.
      ConfigError: for a number below 1.
    """
    for name, value in (("batches", batches), ("repeats", repeats)):
        if value < 1:
            raise ConfigError(f"--{name} is {value}; it must be at least 1")
    with contextlib.ExitStack() as stack:
        if not source.data:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            file = _make_photographs(pathlib.Path(folder))
            source = dataclasses.replace(source, data=(str(file),))
        data_set = source.load()
        _compare(data_set, input_config, batch_size, batches, repeats)
        if steps:
            share = _share_waited(data_set, input_config, batch_size, steps)
            print(f"training waits for {share:.1%} of its time")


def _make_photographs(folder: pathlib.Path) -> pathlib.Path:
    """JPEG files of 480 x 640, as most of COCO's, cut out of two photographs."""
    from skimage import data

    rng = np.random.default_rng(0)
    entries = []
    for index in range(PHOTOGRAPHS):
        photo = (data.astronaut(), data.coffee())[index % 2]
        left, top = rng.integers(0, 120, 2)
        part = PIL.Image.fromarray(photo[top : top + 270, left : left + 360])
        name = f"{index}.jpg"
        part.resize((640, 480), PIL.Image.Resampling.BICUBIC).save(folder / name)
        size = {"height": 480, "width": 640}
        entries.append({"id": index, "file_name": name, **size})
    categories = [{"id": 1, "name": "thing"}]
    described = {"images": entries, "annotations": [], "categories": categories}
    (folder / "photographs.json").write_text(json.dumps(described))
    return folder / "photographs.json"


def _compare(
    data_set: DataSet,
    config: InputConfig,
    batch_size: int,
    batches: int,
    repeats: int,
) -> None:
    """Prints the medians of images a second, and of the ratio."""

    def ours():
        run = batching.training_batches(
            data_set, config, batch_size=batch_size, seed=0, stop=batches
        )
        for _ in run:
            pass

    count = batch_size * batches
    bare = _decode_and_resize(data_set, config, count)
    speeds = np.array(
        [(_speed(bare, count), _speed(ours, count)) for _ in range(repeats)]
    )
    alone, whole = np.median(speeds, axis=0)
    print(
        f"{data_set.name}: {len(data_set)} images, {config.workers} threads\n"
        f"{'images a second':<28}{'by the clock':>14}{'of CPU time':>14}\n"
        f"{'decoding and resizing alone':<28}{alone[0]:>14.0f}{alone[1]:>14.0f}\n"
        f"{'the batches of training':<28}{whole[0]:>14.0f}{whole[1]:>14.0f}"
    )
    ratios = np.median(speeds[:, 1] / speeds[:, 0], axis=0)
    print(f"{'ratio':<28}{ratios[0]:>14.2f}{ratios[1]:>14.2f}")


def _speed(work: Callable[[], None], count: int) -> tuple[float, float]:
    """Images a second, by the clock and of the processor time of this process."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return (
        count / (time.perf_counter() - clock),
        count / (time.process_time() - processor),
    )


def _decode_and_resize(
    data_set: DataSet, config: InputConfig, count: int
) -> Callable[[], None]:
    """What no input can do without, on as many threads: `count` images each call."""
    canvas = transforms.assign_canvases(
        data_set.sizes, config.canvases, min_max_size=config.min_max_size
    )
    rule = {
        "keep_aspect": config.keep_aspect,
        "min_max_size": config.min_max_size,
    }

    def one(index: int) -> None:
        encoded = np.frombuffer(data_set.read_encoded(index), np.uint8)
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        size = image.shape[:2]
        fitted = transforms.fitted_size(size, config.canvases[canvas[index]], **rule)
        cv2.resize(image, fitted[::-1])

    def all_of_them() -> None:
        indices = itertools.islice(itertools.cycle(range(len(data_set))), count)
        with concurrent.futures.ThreadPoolExecutor(max(1, config.workers)) as threads:
            for _ in threads.map(one, indices):
                pass

    return all_of_them


def _share_waited(
    data_set: DataSet, config: InputConfig, batch_size: int, steps: int
) -> float:
    """Of the time of training on the first canvas, without the first step."""
    one_canvas = dataclasses.replace(
        config, canvases=config.canvases[:1], multi_scale=(1.0,)
    )
    training = TrainingConfig(batch_size=batch_size, input=one_canvas)
    detector = retinanet(
        dataclasses.replace(
            retinanet_small.RECIPE.detector, num_classes=len(data_set.class_names)
        ),
        retinanet_small.RECIPE.backbone,
    )
    batches: Iterator = batching.training_batches(
        data_set, one_canvas, batch_size=batch_size, seed=0, transfer=shard_to_devices
    )
    with contextlib.closing(batches):
        batch, pieces = next(batches)
        state = replicate(create_state(detector, training, batch))
        update, key = make_train_step(detector, training), replicate(jax.random.key(0))
        state, _ = jax.block_until_ready(update(state, pieces, key))
        recent = RecentMetrics(data_set, training)
        for step in range(steps):
            batch, pieces = recent.next_batch(batches)
            state, terms = update(state, pieces, key)
            recent.add(step + 1, batch.image_ids, terms)
        return recent.read()["data_time"]


if __name__ == "__main__":
    command_line.run(main)
