"""Mask R-CNN, ResNet-50-FPN, COCO: python -m experiments.mask_rcnn_coco --data coco

The 1x recipe of detectron2, after He et al. (2017): 16 images a step, learning rate
0.02 divided by ten at 60k and 80k of 90k steps, weights decayed by 0.0001, images of
800 by at most 1344 pixels, a ResNet pretrained on ImageNet with its first two stages
frozen. Target on val2017: 37.7 box AP and 33.9 mask AP, of Detectron1 with images of
one scale, as here (detectron2, of random scales: 38.6 and 35.2); torchvision's, trained
for 26 epochs, has 37.9 and 34.6. Measured: not yet run.
"""

import dataclasses
import pathlib

from experiments import coco_recipes, command_line
from experiments.command_line import Precision
from jaxdet.detectors.faster_rcnn import FasterRCNNConfig
from jaxdet.detectors.mask_rcnn import MaskRCNNConfig, mask_rcnn
from jaxdet.nn.heads import FCHead
from jaxdet.training.config import TrainingConfig
from jaxdet.training.train import train

DETECTOR = MaskRCNNConfig(FasterRCNNConfig(num_classes=80))
# Twice the cells of the masks that are learned, as regions cut out parts of them.
TRAINING = dataclasses.replace(
    coco_recipes.TRAINING,
    input=dataclasses.replace(coco_recipes.TRAINING.input, mask_size=56),
)


def main(
    data: pathlib.Path,
    backbone_weights: pathlib.Path | None = None,
    detector: MaskRCNNConfig = DETECTOR,
    training: TrainingConfig = TRAINING,
    *,
    precision: Precision = "float32",
    remat: bool = False,
    workdir: pathlib.Path = pathlib.Path("runs/mask_rcnn_coco"),
):
    """Trains on train2017 and evaluates on val2017.

    Args:
      data: COCO's folder (annotations, train2017, val2017); TFDS's has no masks.
      backbone_weights: torchvision's ResNet-50 for ImageNet (.pth or .npz). Without it
        the network starts from scratch, with group norm and nothing frozen.
      detector: numbers of the detector; the classes are those of the data.
      training: numbers of the training.
      precision: of the network's arithmetic; parameters and losses are float32.
      remat: compute the backbone again for the gradients, block by block: less memory,
        more arithmetic.
      workdir: the run folder; started again, a run goes on where it stopped.
    """
    backbone, training = coco_recipes.backbone(
        backbone_weights, precision, training, TRAINING, remat=remat
    )
    data_set, validation = (
        coco_recipes.load(data, split, masks=True) for split in ("train", "val")
    )
    detector = command_line.with_classes_of(data_set, detector, recipe=DETECTOR)
    train(
        mask_rcnn(
            detector,
            backbone,
            FCHead(1024, dtype=backbone.dtype),
        ),
        data_set,
        training,
        workdir=workdir,
        validation=validation,
        pretrained=coco_recipes.pretrained(backbone_weights),
    )


if __name__ == "__main__":
    command_line.run(main)
