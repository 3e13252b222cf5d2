r"""SSD300 with VGG-16 on Pascal VOC 2007 and 2012.

    python -m experiments.train ssd300_voc --weights vgg16 \
        --data VOCdevkit/VOC2007 VOCdevkit/VOC2012

The recipe of the paper's section 3.6 (Liu et al. 2016): 32 images a step, learning rate
0.001 divided by ten at 80k and 100k of 120k steps, images stretched to 300 by 300
pixels after other colors, expansion and crops, VGG-16 pretrained on ImageNet with its
fully connected layers made convolutions.
Target mAP on VOC 2007 test with both years: 77.2. Measured: not yet run.
"""

import dataclasses

from experiments.recipe import Recipe
from jaxdet.config import Preprocessing
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors import ssd
from jaxdet.training.config import TrainingConfig

RECIPE = Recipe(
    # Pixels as torchvision's VGG-16 takes them, not as the authors'.
    detector=dataclasses.replace(ssd.PAPER, preprocessing=Preprocessing()),
    backbone=ssd.vgg16_300(),
    training=TrainingConfig(
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
    ),
    metrics="voc07",
)
