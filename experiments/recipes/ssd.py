"""SSD300 with VGG-16, fine-tuned from COCO.

    python -m experiments.train ssd --data FOLDER

The network and the weights are torchvision's `ssd300_vgg16`, whose first stage stays as
it is; augmentation and rate are those of the paper (Liu et al. 2016). Measured: not yet
run.
"""

from experiments.recipe import Recipe
from experiments.recipes import ssd300_voc
from jaxdet.detectors import ssd
from jaxdet.training.config import TrainingConfig

RECIPE = Recipe(
    detector=ssd.TORCHVISION,
    backbone=ssd.vgg16_300(),
    training=TrainingConfig(
        steps=1000,
        batch_size=16,
        reference_batch_size=32,
        learning_rate=0.001,
        weight_decay=5e-4,
        warmup_steps=100,
        checkpoint_every=250,
        evaluate_every=500,
        input=ssd300_voc.RECIPE.training.input,
    ),
    weights="ssd300_vgg16",
    frozen=("backbone/backbone/conv1_.*",),
)
