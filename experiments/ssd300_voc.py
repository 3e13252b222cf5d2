"""SSD300, VGG-16, VOC: python -m experiments.ssd300_voc --data VOCdevkit --years 07+12

The recipe of the paper's section 3.6 (Liu et al. 2016), made for `--years 07+12`: 32
images a step, learning rate 0.001 divided by ten at 80k and 100k of 120k steps, images
stretched to 300 by 300 pixels after other colours, expansion and crops, VGG-16
pretrained on ImageNet with its fully connected layers made convolutions.
Target mAP on VOC 2007 test with both years: 77.2. Measured: not yet run.
"""

import dataclasses
import pathlib
from collections.abc import Callable

import jax.numpy as jnp

from experiments import command_line, voc_recipes
from experiments.command_line import Precision
from jaxdet.config import Preprocessing
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors import ssd
from jaxdet.detectors.ssd import SSDConfig
from jaxdet.training.config import TrainingConfig
from jaxdet.training.train import train
from jaxdet.weights import state_dict

# Pixels as torchvision's VGG-16 has learned them, not as the authors'.
DETECTOR = dataclasses.replace(ssd.PAPER, preprocessing=Preprocessing())
TRAINING = TrainingConfig(
    steps=120_000,
    batch_size=32,
    reference_batch_size=32,
    learning_rate=0.001,
    milestones=(80 / 120, 100 / 120),
    weight_decay=5e-4,
    input=InputConfig(
        canvases=((300, 300),),
        keep_aspect=False,
        distort_colors=1.0,
        expand=0.5,
        iou_crop=1.0,
    ),
)


def main(
    data: pathlib.Path,
    backbone_weights: pathlib.Path | None = None,
    detector: SSDConfig = DETECTOR,
    training: TrainingConfig = TRAINING,
    *,
    years: voc_recipes.Years = "07",
    precision: Precision = "float32",
    workdir: pathlib.Path = pathlib.Path("runs/ssd300_voc"),
):
    """Trains on trainval and evaluates on the test images of 2007.

    Args:
      data: VOCdevkit, or of prepared TFDS sets the folder `voc` or `voc/2007`.
      backbone_weights: torchvision's VGG-16 for ImageNet (.pth or .npz). Without it the
        network starts from scratch, with group norm.
      detector: numbers of the detector.
      training: numbers of the training.
      years: of the trainval images; both take a folder that holds both.
      precision: of the network's arithmetic; parameters and losses are float32.
      workdir: the run folder; started again, a run goes on where it stopped.
    """
    norm = "group" if backbone_weights is None else "none"
    backbone = ssd.vgg16_300(norm=norm, dtype=jnp.dtype(precision).type)
    data_set, validation = voc_recipes.load(data, years)
    train(
        ssd.ssd(detector, backbone),
        data_set,
        training,
        workdir=workdir,
        validation=validation,
        pretrained=_pretrained(backbone_weights),
        metrics=voc_recipes.MEASURE,
    )


def _pretrained(file: pathlib.Path | None) -> Callable[[dict], dict] | None:
    """Puts VGG-16's layers into the backbone, in which some others are new.

    The fully connected layers look at 7x7 cells; every third is kept, which dilation
    puts back in about its place, and every fourth channel (3, after Chen et al. 2015).
    """
    if file is None:
        return None
    state = state_dict.read_state_dict(file)
    layers = state_dict.vgg16_from_torchvision(state)["params"]
    head = state_dict.vgg16_head_from_torchvision(state)["params"]
    fc6 = head["fc0"]["kernel"]
    layers["conv6"] = {
        "kernel": fc6.reshape(7, 7, -1, fc6.shape[-1])[::3, ::3, :, ::4],
        "bias": head["fc0"]["bias"][::4],
    }
    layers["conv7"] = {
        "kernel": head["fc1"]["kernel"][None, None, ::4, ::4],
        "bias": head["fc1"]["bias"][::4],
    }

    def replace(variables: dict) -> dict:
        backbone = variables["params"]["backbone"]
        vgg16 = {**backbone["backbone"], **layers}
        given = {"params": {**backbone, "backbone": vgg16}}
        return state_dict.put_into("backbone", given)(variables)

    return replace


if __name__ == "__main__":
    command_line.run(main)
