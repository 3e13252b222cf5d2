"""R-CNN, AlexNet, VOC 2007: python -m experiments.rcnn_voc --data VOCdevkit

The recipe of the paper (Girshick et al. 2014, 2.3) and its code: 128 regions a step,
learning rate 0.001 divided by ten every 20k of 70k steps, AlexNet pretrained on
ImageNet, 2,000 regions an image from selective search's fast mode. Softmax and box
layers are trained with the network, where the paper trains them on stored features.
Target mAP on VOC 2007 test: 54.2, with box regression 58.5. Measured: not yet run.
"""

import pathlib

from experiments import command_line, voc_recipes
from experiments.command_line import Precision
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors import rcnn
from jaxdet.detectors.rcnn import RCNNConfig
from jaxdet.training.config import TrainingConfig
from jaxdet.training.train import train

DETECTOR = rcnn.PAPER
TRAINING = TrainingConfig(
    steps=70_000,
    batch_size=2,
    reference_batch_size=2,
    learning_rate=0.001,
    milestones=(20 / 70, 40 / 70, 60 / 70),
    weight_decay=5e-4,
    warmup_steps=0,
    # Most images are of 375 x 500 pixels; crops are enlarged anyway.
    input=InputConfig(canvases=((384, 512), (512, 384)), max_regions=2000),
)


def main(
    data: pathlib.Path,
    backbone_weights: pathlib.Path | None = None,
    detector: RCNNConfig = DETECTOR,
    training: TrainingConfig = TRAINING,
    *,
    years: voc_recipes.Years = "07",
    proposal_files: voc_recipes.ProposalFiles = None,
    precision: Precision = "float32",
    workdir: pathlib.Path = pathlib.Path("runs/rcnn_voc"),
):
    """Trains on trainval and evaluates on the test images of 2007.

    Args:
      data: VOCdevkit, or of prepared TFDS sets the folder `voc` or `voc/2007`.
      backbone_weights: torchvision's AlexNet for ImageNet (.pth or .npz). Without it
        the network starts from scratch, with group norm.
      detector: numbers of the detector.
      training: numbers of the training.
      years: of the trainval images; both take a folder that holds both.
      proposal_files: region proposals (.npz or .json) for the images to train on, then
        for those of the test; selective search makes and keeps some if not given.
      precision: of the network's arithmetic; parameters and losses are float32.
      workdir: the run folder; started again, a run goes on where it stopped.
    """
    data_sets = voc_recipes.load(data, years, proposal_files)
    network = voc_recipes.alexnet(backbone_weights, precision)
    data_set, validation = voc_recipes.with_proposals(data_sets)
    train(
        rcnn.rcnn(detector, network.backbone, network.box_head),
        data_set,
        training,
        workdir=workdir,
        validation=validation,
        pretrained=network.pretrained,
        metrics=voc_recipes.MEASURE,
    )


if __name__ == "__main__":
    command_line.run(main)
