"""One process of a run, for tests: python -m tests.training.host FOLDER toy ...

With `--coordinator`, `--processes` and `--process` it is one of several.
"""

import dataclasses
import functools
import json
import pathlib
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments import command_line
from jaxdet.config import Anchors, Postprocessing
from jaxdet.data.dataset import DataError, DataSet
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.faster_rcnn import FasterRCNNConfig, faster_rcnn
from jaxdet.detectors.retinanet import RetinaNetConfig, retinanet
from jaxdet.detectors.roi_heads import RoIHeadsConfig, RoIPoolerConfig
from jaxdet.detectors.rpn import RPNConfig
from jaxdet.evaluation.evaluate import detect_all
from jaxdet.nn.heads import FCHead
from jaxdet.training.train import train
from tests.data.in_memory import in_memory_data_set
from tests.detectors import scenes
from tests.training import toy

SLOW_STEPS = 120
# On one level, since every process compiles them anew.
RETINANET = RetinaNetConfig(
    num_classes=3, levels=(4,), anchors=Anchors(((28.0,),)), channels=8, head_depth=1
)
FASTER_RCNN = FasterRCNNConfig(
    num_classes=3,
    rpn=RPNConfig(
        levels=(4,),
        anchors=Anchors(((28.0,),)),
        channels=None,
        pre_nms_topk=20,
        pre_nms_topk_train=20,
        post_nms_topk=10,
        post_nms_topk_train=10,
    ),
    pooler=RoIPoolerConfig(levels=(4,), output_size=2),
    roi_heads=RoIHeadsConfig(
        batch_size_per_image=8, postprocessing=Postprocessing(max_detections=5)
    ),
)


class Stage(nn.Module):
    """A backbone of one layer, for images that fill their canvas."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, pixels, sizes=None):
        return {4: nn.relu(nn.Conv(8, (16, 16), 16)(pixels))}


def run_toy(folder: pathlib.Path, data: DataSet, *, steps: int) -> None:
    """Trains the toy, and writes its arrays and its detections."""
    # Of unlike numbers of batches for two hosts, the last of them half padding.
    held_out = toy.data_set(5)
    config = toy.config(steps=steps, log_every=5, checkpoint_every=60, evaluate_every=0)
    state = train(toy.toy(), data, config, workdir=folder, validation=held_out)
    _save(folder, state)
    found = detect_all(
        toy.toy(), state.variables, held_out, config.input, batch_size=4, progress=False
    )
    (folder / "found.json").write_text(json.dumps(found))


def run_detector(folder: pathlib.Path, detector) -> None:
    """Trains a detector for three steps on scenes, and writes its arrays."""
    batch = scenes.batch(counts=(3, 1, 2, 4, 2, 1, 4, 3), sizes=8 * ((64, 64),))
    data = in_memory_data_set(*scenes.pictures(batch), class_names=("r", "g", "b"))
    inputs = InputConfig(canvases=((64, 64),), max_objects=5, workers=0)
    config = toy.config(steps=3, learning_rate=0.01, input=inputs)
    _save(folder, train(detector, data, config, workdir=folder))


def _save(folder: pathlib.Path, state) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    paths, _ = jax.tree.flatten_with_path(jax.device_get(state))
    arrays = {jax.tree_util.keystr(path): array for path, array in paths}
    np.savez(folder / "state.npz", **arrays)


def slow(data_set: DataSet, *, broken: bool) -> DataSet:
    """Whose images take ten milliseconds; after a while none can be read."""
    start = time.monotonic()

    def read_image(position):
        time.sleep(0.01)
        if broken and time.monotonic() > start + 3:
            raise DataError("the disk is gone")
        return data_set.read_image(position)

    return dataclasses.replace(data_set, read_image=read_image)


def main(folder: pathlib.Path, what: tuple[str, ...], /, *, broken: int = -1) -> None:
    """Trains "toy", "slow", "retinanet", "faster_rcnn" in a folder of this process.

    Args:
      folder: of all processes.
      what: which of them.
      broken: the process that loses its images.
    """
    folder = folder / str(jax.process_index())
    for name in what:
        if name == "toy":
            run_toy(folder / name, toy.data_set(), steps=8)
        elif name == "slow":
            data = slow(toy.data_set(), broken=jax.process_index() == broken)
            run_toy(folder / name, data, steps=SLOW_STEPS)
        elif name == "retinanet":
            run_detector(folder / name, retinanet(RETINANET, Stage()))
        else:
            detector = faster_rcnn(FASTER_RCNN, Stage(), FCHead(16, depth=1))
            run_detector(folder / name, detector)


if __name__ == "__main__":
    if "--broken" in sys.argv:  # JAX waits for 100 seconds for a host that is gone
        jax.distributed.initialize = functools.partial(
            jax.distributed.initialize, heartbeat_timeout_seconds=10
        )
    command_line.run(main)
