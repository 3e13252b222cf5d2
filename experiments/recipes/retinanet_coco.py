"""RetinaNet with ResNet-50-FPN on COCO, the 1x schedule.

    python -m experiments.train retinanet_coco --data coco --weights resnet50

The recipe of the paper's table 2 (Lin et al. 2017): 16 images a step, learning rate
0.01 divided by ten at 60k and 80k of 90k steps, weights decayed by 0.0001, images of
800 by at most 1344 pixels, a ResNet pretrained on ImageNet with its first two stages
frozen. Target on val2017: 37.4 box AP (detectron2), 36.4 (torchvision). Measured: not
yet run.
"""

import dataclasses

from experiments.recipes import faster_rcnn_coco
from jaxdet.detectors.retinanet import RetinaNetConfig

_BASE = faster_rcnn_coco.RECIPE
RECIPE = dataclasses.replace(
    _BASE,
    detector=RetinaNetConfig(num_classes=80),
    heads=(),
    training=dataclasses.replace(_BASE.training, learning_rate=0.01),
)
