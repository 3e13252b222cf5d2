"""Deformable DETR with ResNet-50 on COCO, the paper's 50 epochs.

    python -m experiments.train deformable_detr_coco --data coco --weights resnet50

The recipe of the paper's table 1 (Zhu et al. 2021): AdamW, 32 images a step, learning
rate 0.0002 (the backbone's a tenth), a tenth of it after 40 of 50 epochs, weights
decayed by 0.0001, gradients clipped to a norm of 0.1, half of the images cropped,
shorter sides of 480 to 800 pixels, a ResNet pretrained on ImageNet with its first two
stages frozen. The paper trains reference points and sampling offsets at a tenth of the
rate, too; here they have all of it. Target on val2017: 43.8 box AP, with
`refine_boxes` 45.4. Measured: not yet run.
"""

import dataclasses

from experiments.recipes import detr_coco
from jaxdet.detectors.deformable_detr import DeformableDETRConfig

_BASE = detr_coco.RECIPE  # backbone, optimizer, clipping and augmentation are the same
RECIPE = dataclasses.replace(
    _BASE,
    detector=DeformableDETRConfig(num_classes=80),
    training=dataclasses.replace(
        _BASE.training,
        steps=184_800,  # 3696 an epoch
        batch_size=32,
        reference_batch_size=32,
        learning_rate=2e-4,
        milestones=(40 / 50,),
    ),
)
