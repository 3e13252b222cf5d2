"""SPP-net, VGG-16, VOC 2007: python -m experiments.sppnet_voc --data VOCdevkit ...

The five scales and the pyramid of 6x6, 3x3, 2x2 and 1x1 cells of the paper (He et al.
2014, 4.1), on VGG-16 as Girshick (2015) compares it: convolutions from ImageNet that
never change, 128 regions a step of two images. No published network comes with layers
for a pyramid, so the fully connected ones start afresh, and by the schedule of Fast
R-CNN, where the paper's fine-tunes them with a tenth of its rate.
Target mAP on VOC 2007 test: 63.1 (Girshick 2015, table 1), 59.2 with the paper's own
smaller network. Measured: not yet run.
"""

import pathlib

import jax.numpy as jnp

from experiments import command_line, voc_recipes
from experiments.command_line import Precision
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors import sppnet
from jaxdet.detectors.sppnet import SPPNetConfig
from jaxdet.nn.backbones.vgg import VGG16, first_convs
from jaxdet.nn.heads import FCHead
from jaxdet.training.config import TrainingConfig
from jaxdet.training.train import train
from jaxdet.weights import state_dict

DETECTOR = sppnet.PAPER
TRAINING = TrainingConfig(
    steps=40_000,
    batch_size=2,
    reference_batch_size=2,
    learning_rate=0.001,
    milestones=(3 / 4,),
    weight_decay=5e-4,
    warmup_steps=0,
    frozen=first_convs(13),
    # The middle one of the scales.
    input=InputConfig(canvases=((688, 928), (928, 688)), max_regions=2000),
)


def main(
    data: pathlib.Path,
    backbone_weights: pathlib.Path,
    detector: SPPNetConfig = DETECTOR,
    training: TrainingConfig = TRAINING,
    *,
    years: voc_recipes.Years = "07",
    proposal_files: voc_recipes.ProposalFiles = None,
    precision: Precision = "float32",
    workdir: pathlib.Path = pathlib.Path("runs/sppnet_voc"),
):
    """Trains on trainval and evaluates on the test images of 2007.

    Args:
      data: VOCdevkit, or of prepared TFDS sets the folder `voc` or `voc/2007`.
      backbone_weights: torchvision's VGG-16 for ImageNet (.pth or .npz); the detector
        never trains its convolutions.
      detector: numbers of the detector.
      training: numbers of the training.
      years: of the trainval images; both take a folder that holds both.
      proposal_files: region proposals (.npz or .json) for the images to train on, then
        for those of the test; selective search makes and keeps some if not given.
      precision: of the network's arithmetic; parameters and losses are float32.
      workdir: the run folder; started again, a run goes on where it stopped.
    """
    dtype = jnp.dtype(precision).type
    state = state_dict.read_state_dict(backbone_weights)
    convolutions = state_dict.vgg16_from_torchvision(state)
    data_set, validation = voc_recipes.load_with_proposals(data, years, proposal_files)
    train(
        sppnet.sppnet(
            detector, VGG16(dtype=dtype), FCHead(4096, dropout=0.5, dtype=dtype)
        ),
        data_set,
        training,
        workdir=workdir,
        validation=validation,
        pretrained=state_dict.put_into("backbone", convolutions),
        metrics=voc_recipes.MEASURE,
    )


if __name__ == "__main__":
    command_line.run(main)
