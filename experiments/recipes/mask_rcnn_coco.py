"""Mask R-CNN with ResNet-50-FPN on COCO, the 1x schedule.

    python -m experiments.train mask_rcnn_coco --data coco --weights resnet50

The recipe of detectron2, after He et al. (2017): 16 images a step, learning rate 0.02
divided by ten at 60k and 80k of 90k steps, weights decayed by 0.0001, images of 800 by
at most 1344 pixels, a ResNet pretrained on ImageNet with its first two stages frozen.
Target on val2017: 37.7 box AP and 33.9 mask AP, of Detectron1 with images of one scale,
as here (detectron2, of random scales: 38.6 and 35.2); torchvision's, trained for 26
epochs, has 37.9 and 34.6. Measured: not yet run.
"""

import dataclasses

from experiments.recipes import faster_rcnn_coco
from jaxdet.detectors.mask_rcnn import MaskRCNNConfig

_BASE = faster_rcnn_coco.RECIPE
RECIPE = dataclasses.replace(
    _BASE,
    detector=MaskRCNNConfig(_BASE.detector),
    # Twice the cells of the masks that are predicted, as regions cut out parts of them.
    training=dataclasses.replace(
        _BASE.training,
        input=dataclasses.replace(_BASE.training.input, mask_size=56),
    ),
)
