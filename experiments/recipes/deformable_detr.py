"""Deformable DETR with ResNet-50, fine-tuned from COCO.

    python -m experiments.train deformable_detr --data FOLDER

The network and the weights of SenseTime/deformable-detr. The numbers of `detr`, with
the learning rate of the paper (Zhu et al. 2021). Measured: not yet run.
"""

import dataclasses

from experiments.recipes import deformable_detr_coco, detr
from jaxdet.detectors import deformable_detr

RECIPE = dataclasses.replace(
    detr.RECIPE,
    detector=deformable_detr.TRANSFORMERS,
    training=dataclasses.replace(
        detr.RECIPE.training,
        learning_rate=deformable_detr_coco.RECIPE.training.learning_rate,
    ),
    weights="deformable_detr",
)
