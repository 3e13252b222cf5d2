"""DETR with ResNet-50 on COCO, the paper's 500 epochs.

    python -m experiments.train detr_coco --data coco --weights resnet50

The recipe of the paper's table 1 (Carion et al. 2020): AdamW, 64 images a step,
learning rate 0.0001, a tenth of it for the backbone and after 400 of 500 epochs,
weights decayed by 0.0001, gradients clipped to a norm of 0.1, half of the images
cropped, shorter sides of 480 to 800 pixels, a ResNet pretrained on ImageNet with its
first two stages frozen. Target on val2017: 42.0 box AP. Measured: not yet run.
"""

from experiments.recipe import Recipe
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.detr import DETRConfig
from jaxdet.nn.backbones.resnet import ResNet, first_stages
from jaxdet.training.config import TrainingConfig

RECIPE = Recipe(
    detector=DETRConfig(num_classes=80),
    backbone=ResNet(depth=50, norm="frozen"),
    training=TrainingConfig(
        steps=924_000,  # 1848 an epoch
        batch_size=64,
        reference_batch_size=64,
        optimizer="adamw",
        learning_rate=1e-4,
        backbone_multiplier=0.1,
        milestones=(400 / 500,),
        weight_decay=1e-4,
        clip_norm=0.1,
        warmup_steps=0,
        evaluate_every=18_480,
        input=InputConfig(
            canvases=((800, 1344), (1344, 800)),
            random_crop=0.5,
            scale_jitter=(0.6, 1.0),
        ),
    ),
    frozen=first_stages(2),
)
