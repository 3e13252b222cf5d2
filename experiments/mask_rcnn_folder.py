"""Mask R-CNN on your own photographs: any COCO-format json with segmentations.

    python -m experiments.mask_rcnn_folder --annotations train.json --images photos \
        --validation-annotations test.json --validation-images photos

From scratch, ResNet-18-FPN of half width with group norm, sized for a few hundred
images and a machine without an accelerator. To see that it learns, let it learn the 128
photographs of coco128 by heart, with `--training.input.flip 0` and the same json and
folder for both: target AP50 50 of boxes, 40 of masks, on those. Measured: 84.3 and
70.6.
"""

import dataclasses
import pathlib
from typing import Literal

import jax.numpy as jnp

from experiments import command_line, faster_rcnn_folder
from experiments.command_line import Precision
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.mask_rcnn import MaskRCNNConfig, mask_rcnn
from jaxdet.training.config import TrainingConfig
from jaxdet.training.train import train

DETECTOR = MaskRCNNConfig(
    faster_rcnn_folder.DETECTOR, mask_channels=64, mask_depth=2, mask_norm="group"
)
TRAINING = dataclasses.replace(
    faster_rcnn_folder.TRAINING,
    steps=2000,
    evaluate_every=1000,
    input=InputConfig(canvases=((192, 256), (256, 192)), max_objects=64, mask_size=56),
)


def main(
    annotations: pathlib.Path,
    images: pathlib.Path,
    detector: MaskRCNNConfig = DETECTOR,
    training: TrainingConfig = TRAINING,
    *,
    validation_annotations: pathlib.Path | None = None,
    validation_images: pathlib.Path | None = None,
    bad_boxes: Literal["error", "skip"] = "error",
    precision: Precision = "float32",
    workdir: pathlib.Path = pathlib.Path("runs/mask_rcnn_folder"),
):
    """Trains on a COCO-format folder and evaluates on another, if there is one.

    Args:
      annotations: json with images, annotations and categories to train on.
      images: folder of the image files that it names.
      detector: numbers of the detector; the classes are those of the json.
      training: numbers of the training.
      validation_annotations: json to evaluate on, with the same categories.
      validation_images: folder of its image files; by default `images`.
      bad_boxes: what becomes of a box outside its image, or a broken segmentation.
      precision: of the network's arithmetic; parameters and losses are float32.
      workdir: the run folder; started again, a run goes on where it stopped.
    """
    data_set, validation = command_line.load_folders(
        (annotations, images),
        (validation_annotations, validation_images),
        bad_boxes=bad_boxes,
        masks=True,
    )
    detector = command_line.with_classes_of(data_set, detector, recipe=DETECTOR)
    dtype = jnp.dtype(precision).type
    model = mask_rcnn(
        detector,
        faster_rcnn_folder.BACKBONE.clone(dtype=dtype),
        faster_rcnn_folder.BOX_HEAD.clone(dtype=dtype),
    )
    train(model, data_set, training, workdir=workdir, validation=validation)


if __name__ == "__main__":
    command_line.run(main)
