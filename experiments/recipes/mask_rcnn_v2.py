"""Mask R-CNN in torchvision's second version, fine-tuned from COCO.

    python -m experiments.train mask_rcnn_v2 --data FOLDER

The numbers of `mask_rcnn`, with the network and the weights of torchvision's
`maskrcnn_resnet50_fpn_v2`: 47.4 box AP on COCO instead of 37.9. Measured: not yet run.
"""

import dataclasses

from experiments.recipes import faster_rcnn_v2
from experiments.recipes import mask_rcnn as first
from jaxdet.detectors import mask_rcnn

RECIPE = dataclasses.replace(
    first.RECIPE,
    detector=mask_rcnn.TORCHVISION_V2,
    heads=faster_rcnn_v2.RECIPE.heads,
    weights="maskrcnn_resnet50_fpn_v2",
)
