"""What the experiments on COCO share: folders, the schedule, pretrained weights.

It is no experiment itself; see `retinanet_coco`, `faster_rcnn_fpn_coco` and
`mask_rcnn_coco`.
"""

import pathlib
from functools import partial

import jax.numpy as jnp

from experiments import command_line
from experiments.command_line import Precision
from jaxdet.data.dataset import DataSet
from jaxdet.data.formats import coco, tfds
from jaxdet.data.input_config import InputConfig
from jaxdet.nn.backbones.resnet import ResNet, first_stages
from jaxdet.training.config import TrainingConfig
from jaxdet.weights import state_dict

# The 1x schedule of detectron2, whose warm-up is 1000 steps.
TRAINING = TrainingConfig(
    steps=90_000,
    batch_size=16,
    learning_rate=0.02,
    milestones=(60 / 90, 80 / 90),
    weight_decay=1e-4,
    warmup_steps=1000,
    frozen=first_stages(2),
    input=InputConfig(canvases=((800, 1344), (1344, 800))),
)


def backbone(
    file: pathlib.Path | None,
    precision: Precision,
    training: TrainingConfig,
    recipe: TrainingConfig,
    *,
    remat: bool,
) -> tuple[ResNet, dict | None, TrainingConfig]:
    """ResNet-50 with the weights of a file; without one from scratch, with group norm.

    Args:
      file: torchvision's ResNet-50 for ImageNet (.pth or .npz), or None.
      precision: of the network's arithmetic.
      training: as the user wants it.
      recipe: the experiment's own, which freezes what a pretrained network has learned.
      remat: see `ResNet`.

    Returns:
      The backbone, what `train` takes as `pretrained`, and the training, with nothing
      frozen where there is no file.
    """
    make = partial(ResNet, depth=50, dtype=jnp.dtype(precision).type, remat=remat)
    if file is None:
        training = command_line.from_scratch(training, recipe=recipe)
        return make(norm="group"), None, training
    part = state_dict.resnet_from_torchvision(state_dict.read_state_dict(file))
    pretrained = state_dict.put_into("backbone", part)
    return make(norm="frozen"), pretrained, training


def load(data: pathlib.Path, split: str, *, masks: bool = False) -> DataSet:
    """COCO 2017 from its folder, or from that of a prepared TFDS data set.

    Args:
      data: with annotations, train2017 and val2017, or with a dataset_info.json.
      split: `"train"` or `"val"`.
      masks: read the segmentations of the folder too; a prepared set has them or not.
    """
    if (data / "dataset_info.json").exists():
        return tfds.load_directory(data, {"val": "validation"}.get(split, split))
    annotations = data / "annotations" / f"instances_{split}2017.json"
    return coco.load(annotations, data / f"{split}2017", masks=masks)
