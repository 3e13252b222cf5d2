"""RetinaNet with ResNet-50-FPN, fine-tuned from COCO.

    python -m experiments.train retinanet --data FOLDER

The numbers of `faster_rcnn`, with the network and the weights of torchvision's
`retinanet_resnet50_fpn` and its rate on COCO, 0.01 for 16 images. Measured: not yet
run.
"""

import dataclasses

from experiments.recipes import faster_rcnn
from jaxdet.detectors import retinanet

_BASE = faster_rcnn.RECIPE
RECIPE = dataclasses.replace(
    _BASE,
    detector=retinanet.TORCHVISION,
    heads=(),
    training=dataclasses.replace(_BASE.training, learning_rate=0.01),
    weights="retinanet_resnet50_fpn",
)
