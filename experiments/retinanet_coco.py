"""RetinaNet, ResNet-50-FPN, COCO, 90k steps: python -m experiments.retinanet_coco

The 1x recipe of the paper's table 2 (Lin et al. 2017): 16 images a step, learning rate
0.01 divided by ten at 60k and 80k, weights decayed by 0.0001, images of 800 by at most
1344 pixels, a ResNet pretrained on ImageNet with its first two stages frozen.
Target 37.4 box AP on val2017 (detectron2), 36.4 (torchvision). Measured: not yet run.
"""

import pathlib

import jax.numpy as jnp

from experiments import command_line
from experiments.command_line import Precision
from jaxdet import weights
from jaxdet.data import coco, tfds
from jaxdet.data.batching import InputConfig
from jaxdet.detectors.retinanet import RetinaNetConfig, retinanet
from jaxdet.nn.resnet import ResNet, first_stages
from jaxdet.training.config import TrainingConfig
from jaxdet.training.loop import train

DETECTOR = RetinaNetConfig(num_classes=80)
TRAINING = TrainingConfig(
    steps=90_000,
    batch_size=16,
    learning_rate=0.01,
    milestones=(60 / 90, 80 / 90),
    weight_decay=1e-4,
    warmup_steps=1000,
    frozen=first_stages(2),
    input=InputConfig(canvases=((800, 1344), (1344, 800))),
)


def main(
    data: pathlib.Path,
    backbone_weights: pathlib.Path | None = None,
    detector: RetinaNetConfig = DETECTOR,
    training: TrainingConfig = TRAINING,
    *,
    precision: Precision = "float32",
    workdir: pathlib.Path = pathlib.Path("runs/retinanet_coco"),
):
    """Trains on train2017 and evaluates on val2017.

    Args:
      data: COCO's folder (annotations, train2017, val2017), or the folder of a prepared
        TFDS `coco/2017`.
      backbone_weights: torchvision's ResNet-50 for ImageNet (.pth or .npz). Without it
        the network starts from scratch, with group norm and nothing frozen.
      detector: numbers of the detector; the classes are those of the data.
      training: numbers of the training.
      precision: of the network's arithmetic; parameters and losses are float32.
      workdir: the run folder; started again, a run goes on where it stopped.
    """
    dtype = jnp.dtype(precision).type
    if backbone_weights is None:
        pretrained, norm = None, "group"
        training = command_line.from_scratch(training, recipe=TRAINING)
    else:
        state = weights.read_state_dict(backbone_weights)
        part = weights.resnet_from_torchvision(state)
        pretrained, norm = weights.put_into("backbone", part), "frozen"
    data_set = _load(data, "train")
    detector = command_line.with_classes_of(data_set, detector, recipe=DETECTOR)
    train(
        retinanet(detector, ResNet(depth=50, norm=norm, dtype=dtype)),
        data_set,
        training,
        workdir=workdir,
        validation=_load(data, "val"),
        pretrained=pretrained,
    )


def _load(data: pathlib.Path, split: str):
    if (data / "dataset_info.json").exists():
        return tfds.load_directory(data, {"val": "validation"}.get(split, split))
    annotations = data / "annotations" / f"instances_{split}2017.json"
    return coco.load(annotations, data / f"{split}2017")


if __name__ == "__main__":
    command_line.run(main)
