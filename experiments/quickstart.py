"""A small RetinaNet on digits, from scratch: python -m experiments.quickstart

The whole way in minutes on two CPU cores: the data set is drawn, the detector trained
and evaluated; checkpoints, TensorBoard scalars and pictures are left in `workdir`.
Target: AP50 >= 90 on digits and pixels that training never saw. Measured: AP 74.1,
AP50 95.0, on two CPU cores in six minutes.
"""

import pathlib

import jax.numpy as jnp

from experiments import command_line
from experiments.command_line import Precision
from jaxdet.config import Anchors, Postprocessing
from jaxdet.data.formats import digits
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.retinanet import RetinaNetConfig, retinanet
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.training.config import TrainingConfig
from jaxdet.training.train import train

DETECTOR = RetinaNetConfig(
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
)
BACKBONE = ResNet(depth=10, width=32, norm="group", coarsest=4)
TRAINING = TrainingConfig(
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
)


def main(
    detector: RetinaNetConfig = DETECTOR,
    training: TrainingConfig = TRAINING,
    *,
    precision: Precision = "float32",
    workdir: pathlib.Path = pathlib.Path("runs/quickstart"),
):
    """Trains and evaluates; started again it goes on where it stopped.

    Args:
      detector: numbers of the detector; the classes are the ten digits.
      training: numbers of the training.
      precision: of the network's arithmetic; parameters and losses are float32.
      workdir: the run folder.
    """
    data_set = digits.load("train")
    detector = command_line.with_classes_of(data_set, detector, recipe=DETECTOR)
    train(
        retinanet(detector, BACKBONE.clone(dtype=jnp.dtype(precision).type)),
        data_set,
        training,
        workdir=workdir,
        validation=digits.load("validation"),
    )


if __name__ == "__main__":
    command_line.run(main)
