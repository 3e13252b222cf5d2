"""Faster R-CNN with ResNet-50-FPN, fine-tuned from COCO.

    python -m experiments.train faster_rcnn --data FOLDER

The network and the weights are torchvision's `fasterrcnn_resnet50_fpn`. As in its
examples and detectron2's, the first two stages and all batch norms stay as they are,
and the rate is that of the training on COCO, 0.02 for 16 images. For one GPU; shorter
sides of 640 instead of 800 pixels. Measured: not yet run.
"""

from experiments.recipe import Recipe
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors import faster_rcnn
from jaxdet.nn.backbones.resnet import ResNet, first_stages
from jaxdet.nn.heads import FCHead
from jaxdet.training.config import TrainingConfig

RECIPE = Recipe(
    detector=faster_rcnn.TORCHVISION,
    backbone=ResNet(50),
    heads=(FCHead(1024),),
    training=TrainingConfig(
        steps=1000,
        batch_size=4,
        learning_rate=0.02,
        warmup_steps=100,
        checkpoint_every=250,
        evaluate_every=500,
        # 128 divides the sides: torchvision rounds strides.
        input=InputConfig(canvases=((640, 896), (896, 640))),
    ),
    weights="fasterrcnn_resnet50_fpn",
    frozen=first_stages(2),
)
