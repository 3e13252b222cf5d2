"""DETR on digits: a set of queries that attend to all cells of one map.

    python -m experiments.train detr_digits \
        --weights runs/speed_accuracy/retinanet_resnet10

From a backbone that knows digits, as the paper's knows ImageNet; `runs/quickstart` will
do, too. Target: none, since DETR learns slowly. Measured: AP 36.4, AP50 65.3, in 46
minutes on two CPU cores, most of them at a low priority beside other jobs.
"""

import dataclasses

from experiments.recipe import Recipe
from experiments.recipes import deformable_detr_digits
from jaxdet.detectors.detr import DETRConfig
from jaxdet.detectors.set_prediction import SetLossConfig, SetPostprocessing

_BASE = deformable_detr_digits.RECIPE
RECIPE = Recipe(
    detector=DETRConfig(
        num_classes=10,
        num_queries=50,
        channels=128,
        num_heads=8,
        hidden=256,
        encoder_depth=2,
        decoder_depth=3,
        dropout=0.0,
        # By the paper's 1, boxes were learned in 5,000 steps, and classes not at all.
        set_loss=SetLossConfig(class_weight=5.0),
        postprocessing=SetPostprocessing(max_detections=50),
    ),
    backbone=_BASE.backbone,
    training=dataclasses.replace(
        _BASE.training,
        steps=8000,
        learning_rate=5e-4,
        backbone_multiplier=0.2,
        warmup_steps=500,
        clip_norm=0.1,
    ),
    data=("digits",),
)
