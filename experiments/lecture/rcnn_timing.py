"""Times R-CNN to Faster R-CNN: python -m experiments.lecture.rcnn_timing

R-CNN, SPP-net, Fast R-CNN and Faster R-CNN have one backbone and the same images. R-CNN
passes every region through all layers, SPP-net and Fast R-CNN only through the last,
and Faster R-CNN proposes regions itself, which the others wait for. How long do
training and prediction take, and how much of it do proposals?

    python -m experiments.lecture.rcnn_timing  # AlexNet, for two CPU cores
    python -m experiments.lecture.rcnn_timing \
        --backbone vgg16 --num-images 32 --side 600  # a GPU

Times do not depend on what a network has learned, so its variables are fresh. A step
trains on 64 regions of each of two images, the convolutions of SPP-net being frozen; 16
epochs of the 5,011 images of VOC 2007 are the 40,000 steps of Fast R-CNN's recipe.
Published numbers are of the Fast R-CNN paper (Girshick 2015, table 4, VGG-16 on a K40
GPU) and the Faster R-CNN paper (Ren et al. 2015, 198 ms an image); SPP-net's training
there has stages that store features on disk, which ours does not need. Measured numbers
stand in experiments/README.md.
"""

import dataclasses
import itertools
import pathlib
import statistics
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import command_line
from experiments.benchmarks import report
from experiments.benchmarks.timing import medians
from experiments.command_line import Precision
from experiments.data_option import NO_DATA, DataOption, Flat
from jaxdet.config import ConfigError
from jaxdet.data import batching
from jaxdet.data.dataset import DataSet, Proposals
from jaxdet.data.formats import digits
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
REGIONS_AN_IMAGE = 64  # that are trained on
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
    test_image: float  # without proposals
    proposals: float  # of an image; 0 where the detector makes them

    @property
    def training_hours(self) -> float:
        """Returns hours of `EPOCHS` over `VOC_IMAGES`, without proposals."""
        return EPOCHS * VOC_IMAGES * self.training_image / 3600

    @property
    def test_with_proposals(self) -> float:
        """Returns the time from an image to its detections."""
        return self.test_image + self.proposals


def main(
    source: Flat[DataOption] = NO_DATA,
    *,
    backbone: Backbone = "alexnet",
    num_images: int = 16,
    side: int = 480,
    regions: int = 2000,
    precision: Precision = "float32",
    output: pathlib.Path = pathlib.Path("runs/rcnn_timing"),
):
    """Times all four, and writes `timing.json`, `timing.md` and `timing.png`.

    Args:
      source: the images; digits on photographs if there is none.
      backbone: of all four detectors.
      num_images: how many are timed, an even number; times are their medians.
      side: pixels of the square canvas that holds an image.
      regions: the most that are proposed; of each image, the detectors that wait for
        them classify the median number of all images.
      precision: of the networks' arithmetic.
      output: folder for table and figure.

    Raises:
      ConfigError: if `num_images` is odd or below 2, or more than there are; or for
        several processes.
    """
    if num_images < 2 or num_images % IMAGES_A_STEP:
        raise ConfigError(
            f"--num-images is {num_images}; it must be an even number from 2 on"
        )
    if jax.process_count() > 1:
        raise ConfigError("times are those of one process: leave out --processes")
    data_set, search = _with_timed_proposals(
        _load(source, side, num_images), side, regions
    )
    regions = round(statistics.median(len(boxes) for boxes, _ in data_set.proposals))
    print(f"selective search: {regions} regions, {search:.3g} s an image", flush=True)
    models = detectors(backbone, len(data_set.class_names), precision)
    rows = {}
    for name, detector in models.items():
        training = _training(name, backbone, side, regions)
        times = _measured(detector, data_set, training)
        waits = 0.0 if name == "faster_rcnn" else search
        rows[name] = times = Times(**times, proposals=waits)
        print(
            f"{NAMES[name]}: training {times.training_image:.3g} s an image, test "
            f"{times.test_image:.3g} s, with proposals "
            f"{times.test_with_proposals:.3g} s",
            flush=True,
        )
    text = table(rows) + "\n" + summary(rows)
    print(text, end="")
    machine = report.machine()
    setting = {"backbone": backbone, "images": num_images, "side": side}
    setting |= {
        "regions": regions,
        "precision": precision,
        "devices": jax.device_count(),
    }
    seconds = {name: dataclasses.asdict(times) for name, times in rows.items()}
    measured = {"machine": machine, "setting": setting, "seconds": seconds}
    where = f"{TITLES[backbone]}, {side}x{side}, {machine['cores']} CPU cores"
    if machine["platform"] != "cpu":
        where += f", {jax.device_count()} x {machine['device']}"
    report.save(output / "timing", measured, text, figure(rows, where=where))


def detectors(
    backbone: Backbone, num_classes: int, precision: Precision
) -> dict[str, Detector]:
    """Returns the four, with the papers' numbers and as many regions to train on.

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
    convolutions = {"alexnet": AlexNet, "vgg16": VGG16}[backbone](dtype=dtype)
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
    """Returns a row for each detector, measured times beside published ones."""
    heads = ["", "training, s an image"]
    heads += [f"training, hours of {EPOCHS} epochs of VOC 2007 (extrapolated)"]
    heads += ["published, h", "test, s an image", "with proposals, s"]
    heads += ["published, s", "with proposals, s"]
    cells = []
    for name, times in rows.items():
        hours, seconds = PUBLISHED[name]
        waited = 0 if name == "faster_rcnn" else PUBLISHED_PROPOSALS
        training = f"{times.training_image:.3g}", f"{times.training_hours:.3g}"
        test = f"{times.test_image:.3g}", f"{times.test_with_proposals:.3g}"
        published = f"{seconds:g}", f"{seconds + waited:.3g}"
        published_hours = "" if hours is None else f"{hours:g}"
        cells.append([NAMES[name], *training, published_hours, *test, *published])
    return report.table(heads, cells)


def summary(rows: dict[str, Times]) -> str:
    """Says how many times as fast Fast and Faster R-CNN are, in two sentences."""
    slow, fast, faster = (rows[name] for name in ("rcnn", "fast_rcnn", "faster_rcnn"))
    training = slow.training_image / fast.training_image
    test = slow.test_image / fast.test_image
    share = fast.proposals / fast.test_with_proposals
    end_to_end = fast.test_with_proposals / faster.test_image
    return (
        f"Fast R-CNN trains {training:.1f} times as fast as R-CNN and predicts "
        f"{test:.1f} times as fast; {share:.0%} of its test time are then spent on "
        "proposals. Faster R-CNN proposes fewer regions itself, and predicts "
        f"{end_to_end:.1f} times as fast.\n"
    )


def figure(rows: dict[str, Times], *, where: str) -> Figure:
    """Returns bars of training and test times, measured above published.

    Args:
      rows: times of each detector.
      where: network and machine on which they were measured.
    """
    drawing = Figure(figsize=(9, 6), layout="constrained")
    drawing.suptitle(f"Measured: {where}. Published: VGG-16, K40 GPU")
    measured = {
        name: (times.training_hours, times.test_image, times.proposals)
        for name, times in rows.items()
    }
    published = {
        name: (*PUBLISHED[name], PUBLISHED_PROPOSALS * (name != "faster_rcnn"))
        for name in rows
    }
    titles = {"measured": measured, "published": published}
    for panels, (title, times) in zip(
        drawing.subplots(2, 2), titles.items(), strict=True
    ):
        hours = {name: (hours, 0) for name, (hours, *_) in times.items() if hours}
        unit = "hours*" if times is measured else "hours"
        seconds = {name: values[1:] for name, values in times.items()}
        _bars(panels[0], hours, title=f"Training, {title}", unit=unit)
        _bars(panels[1], seconds, title=f"Test, {title}", unit="s / image")
    note = f"* of {EPOCHS} epochs of {VOC_IMAGES:,} images, measured on few of them"
    drawing.supxlabel(note, fontsize=8)
    return drawing


def _bars(panel, rows: dict[str, tuple], *, title: str, unit: str) -> None:
    """Draws horizontal bars of the network's time and, after it, of proposals."""
    network, proposals = np.transpose([*rows.values()])
    panel.barh(range(len(rows)), network, color="tab:blue", label="network")
    if any(proposals):
        style = {"color": "tab:orange", "label": "proposals"}
        panel.barh(range(len(rows)), proposals, left=network, **style)
        panel.legend(loc="lower right")
    for row, (value, wait) in enumerate(rows.values()):
        text = f" {value:.3g}" + (f" + {wait:.2g}" if wait else "")
        panel.text(value + wait, row, text, va="center")
    panel.set_yticks(range(len(rows)), [NAMES[name] for name in rows])
    panel.invert_yaxis()
    panel.set(xlim=(0, 1.4 * max(network + proposals)), xlabel=unit, title=title)


def _load(source: DataOption, side: int, count: int) -> DataSet:
    """Opens the first images of a data set, or digits, which the canvas enlarges."""
    if not source.data:
        drawn = min(side, 256)  # the largest there are
        return digits.load(
            "train",
            side=drawn,
            digit_sides=(drawn // 8, drawn // 2),
            train_images=count,
            validation_images=1,
        )
    data_set = source.load()
    if len(data_set) < count:
        raise ConfigError(
            f"--num-images {count}, but {data_set.name} has {len(data_set)}"
        )
    return dataclasses.replace(
        data_set,
        image_ids=data_set.image_ids[:count],
        sizes=data_set.sizes[:count],
        objects=data_set.objects[:count],
    )


def _with_timed_proposals(
    data_set: DataSet, side: int, most: int
) -> tuple[DataSet, float]:
    """Adds proposals of selective search, and returns its median time in seconds."""
    config = InputConfig(canvases=((side, side),), workers=0)
    proposals, seconds = [], []
    for batch in batching.evaluation_batches(data_set, config, batch_size=1):
        height, width = batch.sizes[0]
        image = batch.images[0, :height, :width]
        start = time.perf_counter()
        boxes, scores = selective_search(image, max_proposals=most)
        seconds.append(time.perf_counter() - start)
        (boxes,) = rescale_to_original(boxes[None], batch.scales)
        proposals.append(Proposals(boxes, scores))
    with_proposals = dataclasses.replace(data_set, proposals=proposals)
    return with_proposals, statistics.median(seconds)


def _training(name: str, backbone: Backbone, side: int, regions: int) -> TrainingConfig:
    first_convs, count = {
        "alexnet": (alexnet.first_convs, 5),
        "vgg16": (vgg.first_convs, 13),
    }[backbone]
    input_config = InputConfig(
        canvases=((side, side),),
        max_regions=0 if name == "faster_rcnn" else regions,
        too_many_objects="drop",
        workers=0,  # nothing else runs while a call is timed
    )
    return TrainingConfig(
        batch_size=IMAGES_A_STEP,
        frozen=first_convs(count) if name == "sppnet" else (),
        input=input_config,
    )


def _measured(
    detector: Detector, data_set: DataSet, training: TrainingConfig
) -> dict[str, float]:
    """Times training and `predict`: median seconds an image."""
    steps = len(data_set) // IMAGES_A_STEP
    images = IMAGES_A_STEP * jax.local_device_count()
    options = {"batch_size": images, "seed": 0, "stop": 1 + steps}
    batches = batching.training_batches(data_set, training.input, **options)
    first = next(batches)
    batches = map(shard, [first, *batches])
    test_batches = [
        *batching.evaluation_batches(data_set, training.input, batch_size=1)
    ]
    state = create_state(detector, training, first)
    variables, predict = state.variables, jax.jit(detector.predict)
    rest = itertools.cycle(test_batches)
    (test,) = medians([lambda: predict(variables, next(rest))], len(test_batches) - 1)
    update = make_train_step(detector, training)
    states, key = [replicate(state)], jax.random.key(0)

    def step():
        state, metrics = update(states.pop(), next(batches), key)
        states.append(state)
        return metrics

    (training_step,) = medians([step], steps)
    return {"training_image": training_step / 1000 / images, "test_image": test / 1000}


if __name__ == "__main__":
    command_line.run(main)
