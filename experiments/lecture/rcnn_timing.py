"""From R-CNN to Faster R-CNN, timed: python -m experiments.lecture.rcnn_timing

Four detectors with one backbone on the same images: R-CNN passes every region through
all layers, SPP-net and Fast R-CNN only through the last, and Faster R-CNN makes its own
regions, which the others wait for. How long do they learn, how long do they look at an
image, and how much of that do proposals take?

    python -m experiments.lecture.rcnn_timing  # AlexNet, for two CPU cores
    python -m experiments.lecture.rcnn_timing \
        --backbone vgg16 --images 32 --side 600  # a GPU

Times do not depend on what a network knows, so it is fresh. A step learns from 64
regions of each of two images with all four, the convolutions of SPP-net staying as they
are; 16 epochs of the 5,011 images of VOC 2007 are the 40,000 steps of Fast R-CNN's
recipe. Published beside it: the Fast R-CNN paper (Girshick 2015, table 4, VGG-16 on a
K40 GPU) and the Faster R-CNN paper (Ren et al. 2015, 198 ms an image); SPP-net's
training there has stages that store features on disk, which ours does not need.
Measured numbers stand in experiments/README.md.
"""

import dataclasses
import itertools
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import command_line
from experiments.command_line import Precision
from jaxdet.config import ConfigError
from jaxdet.data import batching
from jaxdet.data.dataset import DataSet, Proposals
from jaxdet.data.formats import coco, digits
from jaxdet.data.input_config import InputConfig
from jaxdet.data.selective_search import selective_search
from jaxdet.detectors import fast_rcnn, faster_rcnn, rcnn, sppnet
from jaxdet.detectors.detector import Detector
from jaxdet.evaluation.evaluate import rescale_to_original
from jaxdet.nn.backbones import alexnet, vgg
from jaxdet.nn.backbones.alexnet import AlexNet
from jaxdet.nn.backbones.vgg import VGG16
from jaxdet.nn.heads import FCHead
from jaxdet.parallel import replicate, shard
from jaxdet.structs import Batch
from jaxdet.training.config import TrainingConfig
from jaxdet.training.step import create_state, make_train_step

Backbone = Literal["alexnet", "vgg16"]
TITLES = {"alexnet": "AlexNet", "vgg16": "VGG-16"}
NAMES = {
    "rcnn": "R-CNN",
    "sppnet": "SPP-net",
    "fast_rcnn": "Fast R-CNN",
    "faster_rcnn": "Faster R-CNN",
}
EPOCHS = 16
VOC_IMAGES = 5011  # of VOC 2007's trainval
IMAGES_A_STEP = 2
REGIONS_AN_IMAGE = 64  # that are learned from
PUBLISHED_PROPOSALS = 2.0  # seconds an image: selective search (Ren et al. 2015, 1)
# Hours of training, and seconds an image without proposals.
PUBLISHED = {
    "rcnn": (84.0, 47.0),
    "sppnet": (25.0, 2.3),
    "fast_rcnn": (9.5, 0.32),
    "faster_rcnn": (None, 0.198),
}


@dataclasses.dataclass(frozen=True)
class Times:
    """What one detector takes, in seconds."""

    training_image: float  # one image of one step
    test_image: float  # its proposals are there already
    proposals: float  # to make those of an image; 0 where the detector does

    @property
    def training_hours(self) -> float:
        """Of `EPOCHS` over `VOC_IMAGES`, from the time of one; without proposals."""
        return EPOCHS * VOC_IMAGES * self.training_image / 3600

    @property
    def test_with_proposals(self) -> float:
        """From an image to its detections."""
        return self.test_image + self.proposals


def main(
    *,
    backbone: Backbone = "alexnet",
    images: int = 16,
    side: int = 480,
    regions: int = 2000,
    annotations: pathlib.Path | None = None,
    image_folder: pathlib.Path | None = None,
    precision: Precision = "float32",
    output: pathlib.Path = pathlib.Path("runs/rcnn_timing"),
):
    """Times all four, and writes `timing.json`, `timing.md` and `timing.png`.

    Args:
      backbone: of all four detectors.
      images: how many are looked at, an even number; times are their medians.
      side: pixels of the square canvas that holds an image.
      regions: the most that are proposed; of each image, the detectors that wait for
        them look at the median number that are.
      annotations: COCO json of the images; digits on photographs if not given.
      image_folder: of the json's images.
      precision: of the networks' arithmetic.
      output: folder for table and figure.

    Raises:
      ConfigError: if `images` is odd or less than 2, or several processes run this.
    """
    if images < 2 or images % IMAGES_A_STEP:
        raise ConfigError(f"--images is {images}; it must be an even number from 2 on")
    if jax.process_count() > 1:
        raise ConfigError("times are those of one process: leave out --processes")
    data_set = _load(annotations, image_folder, side, images)
    data_set, search = _with_timed_proposals(data_set, side, regions)
    regions = round(statistics.median(len(found) for found, _ in data_set.proposals))
    print(f"selective search: {regions} regions, {search:.3g} s an image", flush=True)
    models = detectors(backbone, len(data_set.class_names), precision)
    rows = {}
    for name, detector in models.items():
        training = _training(name, backbone, side, regions)
        times = _measured(detector, data_set, training)
        waits = 0.0 if name == "faster_rcnn" else search
        rows[name] = Times(**times, proposals=waits)
        print(_line(name, rows[name]), flush=True)
    text = table(rows) + "\n" + finding(rows)
    print(text, end="")
    output.mkdir(parents=True, exist_ok=True)
    setting = {"backbone": backbone, "images": images, "side": side}
    setting |= {"regions": regions, "precision": precision}
    setting |= {"device": jax.devices()[0].device_kind, "devices": jax.device_count()}
    setting |= {"cores": os.cpu_count()}
    seconds = {name: dataclasses.asdict(times) for name, times in rows.items()}
    report = {"setting": setting, "seconds": seconds}
    (output / "timing.json").write_text(json.dumps(report, indent=2) + "\n")
    (output / "timing.md").write_text(text)
    where = f"{TITLES[backbone]}, {side}x{side}, {_machine(setting)}"
    figure(rows, where=where).savefig(output / "timing.png", dpi=110)


def detectors(
    backbone: Backbone, num_classes: int, precision: Precision
) -> dict[str, Detector]:
    """The four, with the papers' numbers and as many regions to learn from.

    Args:
      backbone: whose convolutions come before the regions, and whose two fully
        connected layers after.
      num_classes: of the data.
      precision: of their arithmetic.
    """
    dtype = jnp.dtype(precision).type
    head = FCHead(4096, dropout=0.5, dtype=dtype)
    cells = {"alexnet": 6, "vgg16": 7}[backbone]
    size = {"alexnet": 227, "vgg16": 224}[backbone]
    convolutions = _convolutions(backbone, dtype)
    crops = convolutions
    if backbone == "alexnet":  # the published paddings, for images of one size
        crops = convolutions.clone(centered=False)

    def config(paper: Any, **changes):
        changes["roi_heads"] = dataclasses.replace(
            paper.roi_heads, batch_size_per_image=REGIONS_AN_IMAGE
        )
        return dataclasses.replace(paper, num_classes=num_classes, **changes)

    pooler = dataclasses.replace(fast_rcnn.PAPER.pooler, output_size=cells)
    warped = config(rcnn.PAPER, crop_size=size, pool_size=cells)
    pooled = config(fast_rcnn.PAPER, pooler=pooler)
    proposed = config(faster_rcnn.PAPER, pooler=pooler)
    return {
        "rcnn": rcnn.rcnn(warped, crops, head),
        "sppnet": sppnet.sppnet(config(sppnet.PAPER), convolutions, head),
        "fast_rcnn": fast_rcnn.fast_rcnn(pooled, convolutions, head),
        "faster_rcnn": faster_rcnn.faster_rcnn(proposed, convolutions, head),
    }


def table(rows: dict[str, Times]) -> str:
    """Markdown: a row a detector, what was measured beside what was published."""
    lines = [
        f"| | training, s an image | training, hours of {EPOCHS} epochs of VOC 2007 "
        "(extrapolated) | published, h | test, s an image | with proposals, s "
        "| published, s | with proposals, s |",
        "|---" * 8 + "|",
    ]
    for name, times in rows.items():
        hours, seconds = PUBLISHED[name]
        waited = 0 if name == "faster_rcnn" else PUBLISHED_PROPOSALS
        published = ["" if hours is None else f"{hours:g}", f"{seconds:g}"]
        cells = [f"{times.training_image:.3g}", f"{times.training_hours:.3g}"]
        cells += published[:1]
        cells += [f"{times.test_image:.3g}", f"{times.test_with_proposals:.3g}"]
        cells += [*published[1:], f"{seconds + waited:.3g}"]
        lines.append(f"| {NAMES[name]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def finding(rows: dict[str, Times]) -> str:
    """What the times say, in two sentences."""
    slow, fast, faster = (rows[name] for name in ("rcnn", "fast_rcnn", "faster_rcnn"))
    learns = slow.training_image / fast.training_image
    looks = slow.test_image / fast.test_image
    share = fast.proposals / fast.test_with_proposals
    answers = fast.test_with_proposals / faster.test_image
    return (
        f"Fast R-CNN learns an image {learns:.1f} times as fast as R-CNN and looks at "
        f"one {looks:.1f} times as fast; {share:.0%} of its test time are then spent "
        "on proposals. Faster R-CNN waits for none and looks at fewer, those of its "
        f"RPN: it answers {answers:.1f} times as fast.\n"
    )


def figure(rows: dict[str, Times], *, where: str) -> Figure:
    """The lecture's two bar charts, measured above published.

    Args:
      rows: times of each detector.
      where: network and machine on which they were measured.
    """
    drawing = Figure(figsize=(9, 6), layout="constrained")
    panels = drawing.subplots(2, 2)
    names = list(rows)
    measured = [rows[name] for name in names]
    hours = [times.training_hours for times in measured]
    seconds = [times.test_image for times in measured]
    waits = [times.proposals for times in measured]
    drawing.suptitle(f"Measured: {where}. Published: VGG-16, K40 GPU")
    _bars(panels[0, 0], names, hours, title="Training, measured", unit="hours*")
    _bars(panels[0, 1], names, seconds, waits, title="Test, measured", unit="s / image")
    known = [name for name in names if PUBLISHED[name][0] is not None]
    hours = [PUBLISHED[name][0] for name in known]
    _bars(panels[1, 0], known, hours, title="Training, published", unit="hours")
    seconds = [PUBLISHED[name][1] for name in names]
    waits = [PUBLISHED_PROPOSALS * (name != "faster_rcnn") for name in names]
    title = "Test, published"
    _bars(panels[1, 1], names, seconds, waits, title=title, unit="s / image")
    note = f"* of {EPOCHS} epochs of {VOC_IMAGES:,} images, from the time of one image"
    drawing.supxlabel(note, fontsize=8)
    return drawing


def _machine(setting: dict[str, Any]) -> str:
    """By its cores, and its accelerators where it has some."""
    cores = f"{setting['cores']} CPU cores"
    if setting["device"] == "cpu":
        return cores
    return f"{setting['devices']} x {setting['device']}, {cores}"


def _bars(
    panel,
    names: list[str],
    values: list[float],
    waits: list[float] | None = None,
    *,
    title: str,
    unit: str,
) -> None:
    """Horizontal bars with their numbers, the wait for proposals at their ends."""
    places = np.arange(len(names))
    waits = waits or [0.0] * len(names)
    panel.barh(places, values, color="tab:blue", label="network")
    if any(waits):
        panel.barh(places, waits, left=values, color="tab:orange", label="proposals")
        panel.legend(loc="lower right")
    for place, value, wait in zip(places, values, waits, strict=True):
        text = f"{value:.3g}" + (f" + {wait:.2g}" if wait else "")
        panel.text(value + wait, place, f" {text}", va="center")
    panel.set_yticks(places, [NAMES[name] for name in names])
    panel.invert_yaxis()
    panel.set_xlim(0, 1.4 * max(np.add(values, waits)))
    panel.set_xlabel(unit)
    panel.set_title(title)


def _load(
    annotations: pathlib.Path | None,
    folder: pathlib.Path | None,
    side: int,
    count: int,
) -> DataSet:
    """The first images of a json, or drawn ones; the canvas enlarges small ones."""
    if (annotations is None) != (folder is None):
        raise ConfigError("--annotations and --image-folder go together")
    if annotations is None:
        drawn = min(side, 256)  # the largest there are
        return digits.load(
            "train",
            side=drawn,
            digit_sides=(drawn // 8, drawn // 2),
            train_images=count,
            validation_images=1,
        )
    data_set = coco.load(annotations, folder)
    if len(data_set) < count:
        raise ConfigError(f"--images {count}, but {annotations} has {len(data_set)}")
    return dataclasses.replace(
        data_set,
        image_ids=data_set.image_ids[:count],
        sizes=data_set.sizes[:count],
        objects=data_set.objects[:count],
    )


def _with_timed_proposals(
    data_set: DataSet, side: int, most: int
) -> tuple[DataSet, float]:
    """Selective search's of the images on their canvas, and its seconds an image."""
    config = InputConfig(canvases=((side, side),), workers=0)
    found, seconds = [], []
    for batch in batching.evaluation_batches(data_set, config, batch_size=1):
        height, width = batch.sizes[0]
        image = batch.images[0, :height, :width]
        start = time.perf_counter()
        boxes, scores = selective_search(image, max_proposals=most)
        seconds.append(time.perf_counter() - start)
        (boxes,) = rescale_to_original(boxes[None], batch.scales)
        found.append(Proposals(boxes, scores))
    return dataclasses.replace(data_set, proposals=found), statistics.median(seconds)


def _training(name: str, backbone: Backbone, side: int, regions: int) -> TrainingConfig:
    first_convs, count = {
        "alexnet": (alexnet.first_convs, 5),
        "vgg16": (vgg.first_convs, 13),
    }[backbone]
    input_config = InputConfig(
        canvases=((side, side),),
        max_regions=0 if name == "faster_rcnn" else regions,
        too_many_objects="drop",
        workers=0,  # nothing else is done while the clock runs
    )
    return TrainingConfig(
        batch_size=IMAGES_A_STEP,
        frozen=first_convs(count) if name == "sppnet" else (),
        input=input_config,
    )


def _measured(
    detector: Detector, data_set: DataSet, training: TrainingConfig
) -> dict[str, float]:
    """Median seconds an image, of training and of `predict`, once compiled."""
    steps = len(data_set) // IMAGES_A_STEP
    batches = batching.training_batches(
        data_set,
        training.input,
        batch_size=IMAGES_A_STEP * jax.local_device_count(),
        seed=0,
        stop=1 + steps,
    )
    first = next(batches)
    state = create_state(detector, training, first)
    predict = jax.jit(detector.predict)
    variables = state.variables
    alone = batching.evaluation_batches(data_set, training.input, batch_size=1)
    test = statistics.median(_seconds(lambda batch: predict(variables, batch), alone))
    update = make_train_step(detector, training)
    state = replicate(state)
    key = jax.random.key(0)

    def learn(batch: Batch):
        nonlocal state
        state, metrics = update(state, shard(batch), key)
        return metrics

    learned = _seconds(learn, itertools.chain([first], batches))
    a_step = IMAGES_A_STEP * jax.local_device_count()
    return {"training_image": statistics.median(learned) / a_step, "test_image": test}


def _seconds(function: Callable, batches: Iterator[Batch]) -> list[float]:
    """Of each call but the first, in which it is compiled."""
    seconds = []
    for batch in batches:
        start = time.perf_counter()
        jax.block_until_ready(function(batch))
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def _line(name: str, times: Times) -> str:
    return (
        f"{NAMES[name]}: training {times.training_image:.3g} s an image, "
        f"test {times.test_image:.3g} s, with proposals "
        f"{times.test_with_proposals:.3g} s"
    )


def _convolutions(backbone: Backbone, dtype: type) -> nn.Module:
    return {"alexnet": AlexNet, "vgg16": VGG16}[backbone](dtype=dtype)


if __name__ == "__main__":
    command_line.run(main)
