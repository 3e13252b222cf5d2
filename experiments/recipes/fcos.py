"""FCOS with ResNet-50-FPN, fine-tuned from COCO.

    python -m experiments.train fcos --data FOLDER

The numbers of `retinanet`, with the network and the weights of torchvision's
`fcos_resnet50_fpn`. Measured: not yet run.
"""

import dataclasses

from experiments.recipes import retinanet
from jaxdet.detectors import fcos

RECIPE = dataclasses.replace(
    retinanet.RECIPE, detector=fcos.TORCHVISION, weights="fcos_resnet50_fpn"
)
