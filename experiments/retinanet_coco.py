"""RetinaNet, ResNet-50-FPN, COCO, 90k steps: python -m experiments.retinanet_coco

The 1x recipe of the paper's table 2 (Lin et al. 2017): 16 images a step, learning rate
0.01 divided by ten at 60k and 80k, weights decayed by 0.0001, images of 800 by at most
1344 pixels, a ResNet pretrained on ImageNet with its first two stages frozen.
Target 37.4 box AP on val2017 (detectron2), 36.4 (torchvision). Measured: not yet run.
"""

import dataclasses
import pathlib

from experiments import coco_recipes, command_line
from experiments.command_line import Precision
from jaxdet.detectors.retinanet import RetinaNetConfig, retinanet
from jaxdet.training.config import TrainingConfig
from jaxdet.training.train import train

DETECTOR = RetinaNetConfig(num_classes=80)
TRAINING = dataclasses.replace(coco_recipes.TRAINING, learning_rate=0.01)


def main(
    data: pathlib.Path,
    backbone_weights: pathlib.Path | None = None,
    detector: RetinaNetConfig = DETECTOR,
    training: TrainingConfig = TRAINING,
    *,
    precision: Precision = "float32",
    remat: bool = False,
    workdir: pathlib.Path = pathlib.Path("runs/retinanet_coco"),
):
    """Trains on train2017 and evaluates on val2017.

    Args:
      data: COCO's folder (annotations, train2017, val2017), or the folder of a prepared
        TFDS `coco/2017`.
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
        coco_recipes.load(data, split) for split in ("train", "val")
    )
    detector = command_line.with_classes_of(data_set, detector, recipe=DETECTOR)
    train(
        retinanet(detector, backbone),
        data_set,
        training,
        workdir=workdir,
        validation=validation,
        pretrained=coco_recipes.pretrained(backbone_weights),
    )


if __name__ == "__main__":
    command_line.run(main)
