r"""RetinaNet from scratch, for a few hundred photographs and a machine without a GPU.

    python -m experiments.train retinanet_small --data train.json --images photos \
        --validation-data test.json

ResNet-18 of half width with group norm. Target on BCCD (blood cells, 205 photographs to
train on, 72 to test): AP50 60. Measured: AP 51.5, AP50 85.6; an earlier run took
28 minutes on two CPU cores.
"""

from experiments.recipe import Recipe
from jaxdet.config import Anchors
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.retinanet import RetinaNetConfig
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.training.config import TrainingConfig

RECIPE = Recipe(
    detector=RetinaNetConfig(
        levels=(3, 4, 5, 6),
        anchors=Anchors(
            tuple((size, size * 2**0.5) for size in (16.0, 32.0, 64.0, 128.0))
        ),
        channels=64,
        head_depth=2,
        head_norm="group",
    ),
    backbone=ResNet(depth=18, width=32, norm="group"),
    training=TrainingConfig(
        steps=1600,
        batch_size=8,
        reference_batch_size=8,
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=0.05,
        clip_norm=1.0,
        schedule="cosine",
        warmup_steps=100,
        checkpoint_every=250,
        evaluate_every=400,
        input=InputConfig(canvases=((240, 320), (320, 240)), max_objects=64),
    ),
)
