r"""Faster R-CNN with ResNet-50-C4 on Pascal VOC 2007 and 2012.

    python -m experiments.train faster_rcnn_c4_voc --weights resnet50 \
        --data VOCdevkit/VOC2007 VOCdevkit/VOC2012

The recipe of detectron2: 16 images a step, learning rate 0.02 divided by ten at 12k and
16k of 18k steps, images of 800 by at most 1344 pixels; the last stage of the ResNet is
the box head. Target on VOC 2007 test: AP50 80.3, which detectron2 reaches with images
of random scales; here they have one. Measured: not yet run.
"""

import dataclasses

from experiments.recipe import Recipe
from jaxdet.detectors import faster_rcnn
from jaxdet.nn.backbones.resnet import ResNet, ResNetHead, first_stages
from jaxdet.training.config import TrainingConfig

RECIPE = Recipe(
    detector=dataclasses.replace(faster_rcnn.DETECTRON2_C4, num_classes=20),
    backbone=ResNet(depth=50, norm="frozen", coarsest=4),
    heads=(ResNetHead(depth=50, norm="frozen"),),
    training=TrainingConfig(
        steps=18_000,
        learning_rate=0.02,
        milestones=(12 / 18, 16 / 18),
        warmup_steps=100,
        evaluate_every=6000,
    ),
    frozen=first_stages(2),
    metrics="voc07",
)
