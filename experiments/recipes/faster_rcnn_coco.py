"""Faster R-CNN with ResNet-50-FPN on COCO, the 1x schedule.

    python -m experiments.train faster_rcnn_coco --data coco --weights resnet50

The recipe of detectron2, after Lin et al. (2016): 16 images a step, learning rate 0.02
divided by ten at 60k and 80k of 90k steps, weights decayed by 0.0001, images of 800 by
at most 1344 pixels, a ResNet pretrained on ImageNet with its first two stages frozen.
Target on val2017: 36.9 box AP, of detectron2 with images of one scale, as here (of
random scales: 37.9); torchvision's, trained for 26 epochs, has 37.0. Measured: not yet
run.
"""

from experiments.recipe import Recipe
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.faster_rcnn import FasterRCNNConfig
from jaxdet.nn.backbones.resnet import ResNet, first_stages
from jaxdet.nn.heads import FCHead
from jaxdet.training.config import TrainingConfig

RECIPE = Recipe(
    detector=FasterRCNNConfig(num_classes=80),
    backbone=ResNet(depth=50, norm="frozen"),
    heads=(FCHead(1024),),
    training=TrainingConfig(
        steps=90_000,
        batch_size=16,
        learning_rate=0.02,
        milestones=(60 / 90, 80 / 90),
        weight_decay=1e-4,
        warmup_steps=1000,
        input=InputConfig(canvases=((800, 1344), (1344, 800))),
    ),
    frozen=first_stages(2),
)
