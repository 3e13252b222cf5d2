"""Faster R-CNN with VGG-16 on Pascal VOC 2007.

    python -m experiments.train faster_rcnn_voc --data VOCdevkit --weights vgg16

The recipe of the authors' joint training (Ren et al. 2015): two images a step, learning
rate 0.001 divided by ten at 50k of 70k steps, images of 600 by at most 1000 pixels,
VGG-16 pretrained on ImageNet with its first four convolutions frozen. For 2007 and 2012
add `--data VOCdevkit/VOC2007 VOCdevkit/VOC2012 --training.steps 110000`.
Target mAP on VOC 2007 test: 69.9, of both years 73.2. Measured: not yet run.
"""

import dataclasses

from experiments.recipes import fast_rcnn_voc
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors import faster_rcnn

_BASE = fast_rcnn_voc.RECIPE
RECIPE = dataclasses.replace(
    _BASE,
    detector=faster_rcnn.PAPER,
    training=dataclasses.replace(
        _BASE.training,
        steps=70_000,
        milestones=(50 / 70,),
        input=InputConfig(canvases=((608, 1024), (1024, 608))),
    ),
)
