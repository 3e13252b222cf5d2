"""Fast R-CNN with VGG-16 on Pascal VOC 2007.

    python -m experiments.train fast_rcnn_voc --data VOCdevkit --weights vgg16

The recipe of the paper (Girshick 2015, 2.3 and 4.1): 64 regions of each of two images a
step, learning rate 0.001 divided by ten at 30k of 40k steps, images of 600 by at most
1000 pixels, VGG-16 pretrained on ImageNet with its first four convolutions frozen. For
2007 and 2012 add `--data VOCdevkit/VOC2007 VOCdevkit/VOC2012 --training.steps 60000`.
Target mAP on VOC 2007 test: 66.9, of both years 70.0. Measured: not yet run.
"""

from experiments.recipe import Recipe
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors import fast_rcnn
from jaxdet.nn.backbones.vgg import VGG16, first_convs
from jaxdet.nn.heads import FCHead
from jaxdet.training.config import TrainingConfig

RECIPE = Recipe(
    detector=fast_rcnn.PAPER,
    backbone=VGG16(),
    heads=(FCHead(4096, dropout=0.5),),
    training=TrainingConfig(
        steps=40_000,
        batch_size=2,
        reference_batch_size=2,
        learning_rate=0.001,
        milestones=(3 / 4,),
        weight_decay=5e-4,
        warmup_steps=0,
        input=InputConfig(canvases=((608, 1024), (1024, 608)), max_regions=2000),
    ),
    frozen=first_convs(4),
    metrics="voc07",
)
