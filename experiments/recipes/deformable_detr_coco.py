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

from experiments.recipe import Recipe
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.deformable_detr import DeformableDETRConfig
from jaxdet.nn.backbones.resnet import ResNet, first_stages
from jaxdet.training.config import TrainingConfig

RECIPE = Recipe(
    detector=DeformableDETRConfig(num_classes=80),
    backbone=ResNet(depth=50, norm="frozen"),
    training=TrainingConfig(
        steps=184_800,  # 3696 an epoch
        batch_size=32,
        reference_batch_size=32,
        optimizer="adamw",
        learning_rate=2e-4,
        backbone_multiplier=0.1,
        milestones=(40 / 50,),
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
