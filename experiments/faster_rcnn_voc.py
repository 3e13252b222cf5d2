"""Faster R-CNN, VOC: python -m experiments.faster_rcnn_voc vgg16 --data VOCdevkit

`vgg16` is the recipe of the authors' joint training (Ren et al. 2015): two images a
step, learning rate 0.001 divided by ten at 50k of 70k steps, images of 600 by at most
1000 pixels, VGG-16 pretrained on ImageNet with its first four convolutions frozen. With
`--years 07+12` give `--training.steps 110000`.
Target mAP on VOC 2007 test: 69.9, of both years 73.2. Measured: not yet run.

`resnet50_c4` is detectron2's, made for `--years 07+12`: 16 images a step, 0.02 divided
by ten at 12k and 16k of 18k steps, images of 800 by at most 1344 pixels; the last stage
of the ResNet looks at each region. Target with both years: AP50 80.3, which detectron2
reaches with images of random scales; here they have one. Measured: not yet run.
"""

import dataclasses
import pathlib

from experiments import command_line, voc_recipes
from experiments.command_line import Precision
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors import faster_rcnn
from jaxdet.detectors.faster_rcnn import FasterRCNNConfig
from jaxdet.nn.backbones import resnet, vgg
from jaxdet.training.config import TrainingConfig
from jaxdet.training.train import train

VGG16 = faster_rcnn.PAPER
VGG16_TRAINING = TrainingConfig(
    steps=70_000,
    batch_size=2,
    reference_batch_size=2,
    learning_rate=0.001,
    milestones=(50 / 70,),
    weight_decay=5e-4,
    warmup_steps=0,
    frozen=vgg.first_convs(4),
    input=InputConfig(canvases=((608, 1024), (1024, 608))),
)
RESNET50_C4 = dataclasses.replace(faster_rcnn.DETECTRON2_C4, num_classes=20)
RESNET50_C4_TRAINING = TrainingConfig(
    steps=18_000,
    learning_rate=0.02,
    milestones=(12 / 18, 16 / 18),
    warmup_steps=100,
    evaluate_every=6000,
    frozen=resnet.first_stages(2),
)


def train_vgg16(
    data: pathlib.Path,
    backbone_weights: pathlib.Path | None = None,
    detector: FasterRCNNConfig = VGG16,
    training: TrainingConfig = VGG16_TRAINING,
    *,
    years: voc_recipes.Years = "07",
    precision: Precision = "float32",
    workdir: pathlib.Path = pathlib.Path("runs/faster_rcnn_voc/vgg16"),
):
    """VGG-16, the authors' recipe; evaluates on the test images of 2007.

    Args:
      data: VOCdevkit, or of prepared TFDS sets the folder `voc` or `voc/2007`.
      backbone_weights: torchvision's VGG-16 for ImageNet (.pth or .npz). Without it the
        network starts from scratch, with group norm and nothing frozen.
      detector: numbers of the detector.
      training: numbers of the training.
      years: of the trainval images; both take a folder that holds both.
      precision: of the network's arithmetic; parameters and losses are float32.
      workdir: the run folder; started again, a run goes on where it stopped.
    """
    if backbone_weights is None:
        training = command_line.from_scratch(training, recipe=VGG16_TRAINING)
    data_sets = voc_recipes.load(data, years)
    network = voc_recipes.vgg16(backbone_weights, precision)
    _train(detector, network, data_sets, training, workdir)


def train_resnet50_c4(
    data: pathlib.Path,
    backbone_weights: pathlib.Path | None = None,
    detector: FasterRCNNConfig = RESNET50_C4,
    training: TrainingConfig = RESNET50_C4_TRAINING,
    *,
    years: voc_recipes.Years = "07",
    precision: Precision = "float32",
    workdir: pathlib.Path = pathlib.Path("runs/faster_rcnn_voc/resnet50_c4"),
):
    """ResNet-50-C4, detectron2's recipe; evaluates on the test images of 2007.

    Args:
      data: VOCdevkit, or of prepared TFDS sets the folder `voc` or `voc/2007`.
      backbone_weights: torchvision's ResNet-50 for ImageNet (.pth or .npz). Without it
        the network starts from scratch, with group norm and nothing frozen.
      detector: numbers of the detector.
      training: numbers of the training.
      years: of the trainval images; both take a folder that holds both.
      precision: of the network's arithmetic; parameters and losses are float32.
      workdir: the run folder; started again, a run goes on where it stopped.
    """
    if backbone_weights is None:
        training = command_line.from_scratch(training, recipe=RESNET50_C4_TRAINING)
    data_sets = voc_recipes.load(data, years)
    network = voc_recipes.resnet50_c4(backbone_weights, precision)
    _train(detector, network, data_sets, training, workdir)


def _train(detector, network, data_sets, training, workdir):
    data_set, validation = data_sets
    train(
        faster_rcnn.faster_rcnn(detector, network.backbone, network.box_head),
        data_set,
        training,
        workdir=workdir,
        validation=validation,
        pretrained=network.pretrained,
        metrics=voc_recipes.MEASURE,
    )


if __name__ == "__main__":
    command_line.run({"vgg16": train_vgg16, "resnet50_c4": train_resnet50_c4})
