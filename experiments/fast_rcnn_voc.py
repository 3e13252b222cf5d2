"""Fast R-CNN, VGG-16, VOC 2007: python -m experiments.fast_rcnn_voc --data VOCdevkit

The recipe of the paper (Girshick 2015, 2.3 and 4.1): 64 regions of each of two images a
step, learning rate 0.001 divided by ten at 30k of 40k steps, images of 600 by at most
1000 pixels, VGG-16 pretrained on ImageNet with its first four convolutions frozen. With
`--years 07+12` give `--training.steps 60000`.
Target mAP on VOC 2007 test: 66.9, of both years 70.0. Measured: not yet run.
"""

import pathlib

from experiments import command_line, voc_recipes
from experiments.command_line import Precision
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors import fast_rcnn
from jaxdet.detectors.fast_rcnn import FastRCNNConfig
from jaxdet.nn.backbones.vgg import first_convs
from jaxdet.training.config import TrainingConfig
from jaxdet.training.train import train

DETECTOR = fast_rcnn.PAPER
TRAINING = TrainingConfig(
    steps=40_000,
    batch_size=2,
    reference_batch_size=2,
    learning_rate=0.001,
    milestones=(3 / 4,),
    weight_decay=5e-4,
    warmup_steps=0,
    frozen=first_convs(4),
    input=InputConfig(canvases=((608, 1024), (1024, 608)), max_regions=2000),
)


def main(
    data: pathlib.Path,
    backbone_weights: pathlib.Path | None = None,
    detector: FastRCNNConfig = DETECTOR,
    training: TrainingConfig = TRAINING,
    *,
    years: voc_recipes.Years = "07",
    proposal_files: voc_recipes.ProposalFiles = None,
    precision: Precision = "float32",
    workdir: pathlib.Path = pathlib.Path("runs/fast_rcnn_voc"),
):
    """Trains on trainval and evaluates on the test images of 2007.

    Args:
      data: VOCdevkit, or of prepared TFDS sets the folder `voc` or `voc/2007`.
      backbone_weights: torchvision's VGG-16 for ImageNet (.pth or .npz). Without it the
        network starts from scratch, with group norm and nothing frozen.
      detector: numbers of the detector.
      training: numbers of the training.
      years: of the trainval images; both take a folder that holds both.
      proposal_files: region proposals (.npz or .json) for the images to train on, then
        for those of the test; selective search makes and keeps some if not given.
      precision: of the network's arithmetic; parameters and losses are float32.
      workdir: the run folder; started again, a run goes on where it stopped.
    """
    if backbone_weights is None:
        training = command_line.from_scratch(training, recipe=TRAINING)
    data_sets = voc_recipes.load(data, years, proposal_files)
    network = voc_recipes.vgg16(backbone_weights, precision)
    data_set, validation = voc_recipes.with_proposals(data_sets)
    train(
        fast_rcnn.fast_rcnn(detector, network.backbone, network.box_head),
        data_set,
        training,
        workdir=workdir,
        validation=validation,
        pretrained=network.pretrained,
        metrics=voc_recipes.MEASURE,
    )


if __name__ == "__main__":
    command_line.run(main)
