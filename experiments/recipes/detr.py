"""DETR with ResNet-50, fine-tuned from COCO.

    python -m experiments.train detr --data FOLDER

The network and the weights of facebook/detr-resnet-50. The steps and the input are
those of `faster_rcnn`, optimizer, rates and clipping those of the paper (Carion et al.
2020). Measured: not yet run.
"""

import dataclasses

from experiments.recipes import detr_coco, faster_rcnn
from jaxdet.detectors import detr

_BASE = faster_rcnn.RECIPE
RECIPE = dataclasses.replace(
    detr_coco.RECIPE,
    detector=detr.TRANSFORMERS,
    training=dataclasses.replace(
        detr_coco.RECIPE.training,
        steps=_BASE.training.steps,
        batch_size=_BASE.training.batch_size,
        reference_batch_size=_BASE.training.batch_size,
        milestones=_BASE.training.milestones,
        evaluate_every=_BASE.training.evaluate_every,
        input=_BASE.training.input,
    ),
    weights="detr_resnet50",
)
