"""SPP-net with VGG-16 on Pascal VOC 2007.

    python -m experiments.train sppnet_voc --data VOCdevkit --weights vgg16

The five scales and the pyramid of 6x6, 3x3, 2x2 and 1x1 cells of the paper (He et al.
2014, 4.1), on VGG-16 as Girshick (2015) compares it: convolutions from ImageNet that
never change, 128 regions a step of two images. No published network comes with layers
for a pyramid, so the fully connected ones start afresh, and by the schedule of Fast
R-CNN, where the paper's fine-tunes them with a tenth of its rate.
Target mAP on VOC 2007 test: 63.1 (Girshick 2015, table 1), 59.2 with the paper's own
smaller network. Measured: not yet run.
"""

import dataclasses

from experiments.recipes import fast_rcnn_voc
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors import sppnet
from jaxdet.nn.backbones.vgg import first_convs

_BASE = fast_rcnn_voc.RECIPE
RECIPE = dataclasses.replace(
    _BASE,
    detector=sppnet.PAPER,
    training=dataclasses.replace(
        _BASE.training,
        # The middle one of the scales.
        input=InputConfig(canvases=((688, 928), (928, 688)), max_regions=2000),
    ),
    frozen=first_convs(13),
)
