"""Mask R-CNN with ResNet-50-FPN, fine-tuned from COCO.

    python -m experiments.train mask_rcnn --data FOLDER

The numbers of `faster_rcnn`, with the network and the weights of torchvision's
`maskrcnn_resnet50_fpn`; the data needs segmentations. Measured: not yet run.
"""

import dataclasses

from experiments.recipes import faster_rcnn
from jaxdet.detectors import mask_rcnn

_BASE = faster_rcnn.RECIPE
RECIPE = dataclasses.replace(
    _BASE,
    detector=mask_rcnn.TORCHVISION,
    # Twice the cells of the masks that are predicted, as regions cut out parts of them.
    training=dataclasses.replace(
        _BASE.training,
        input=dataclasses.replace(_BASE.training.input, mask_size=56),
    ),
    weights="maskrcnn_resnet50_fpn",
)
