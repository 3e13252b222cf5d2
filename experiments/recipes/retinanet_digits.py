"""RetinaNet with a small ResNet on digits; the quickstart.

    python -m experiments.quickstart
    python -m experiments.train retinanet_digits

Target: AP50 90 on digits and photographs that training never saw. Measured: AP 74.1,
AP50 94.8, in five minutes on two CPU cores.
"""

from experiments.recipe import Recipe
from jaxdet.config import Anchors, Postprocessing
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.retinanet import RetinaNetConfig
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.training.config import TrainingConfig

RECIPE = Recipe(
    detector=RetinaNetConfig(
        num_classes=10,
        levels=(3, 4),
        anchors=Anchors(
            ((14.0, 20.0), (28.0, 40.0)),
            ratios=(1.0, 2.0),  # digits are taller than wide
        ),
        channels=64,
        head_depth=2,
        head_norm="group",
        postprocessing=Postprocessing(max_detections=50),
    ),
    backbone=ResNet(depth=10, width=32, norm="group", coarsest=4),
    training=TrainingConfig(
        steps=2400,
        batch_size=8,
        reference_batch_size=8,
        optimizer="adamw",
        learning_rate=2e-3,
        weight_decay=0.05,
        clip_norm=1.0,
        schedule="cosine",
        warmup_steps=100,
        checkpoint_every=500,
        evaluate_every=0,
        input=InputConfig(canvases=((128, 128),), max_objects=10, flip=0.0),
    ),
    data=("digits",),
)
