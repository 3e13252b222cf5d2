"""Draws pictures during a run: training images, and detections beside the truth."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxdet.data import batching
from jaxdet.data.dataset import DataSet
from jaxdet.detectors.detector import Detector
from jaxdet.evaluation.evaluate import label_names, paste_masks, predict_on_devices
from jaxdet.parallel import to_host
from jaxdet.structs import Batch, Detections
from jaxdet.training.config import TrainingConfig
from jaxdet.visualize import (
    contact_sheet,
    draw,
    enlarge,
    enlarge_masks,
    truth_beside_detections,
)

MIN_SCORE = 0.3  # of detections that are drawn


def draw_training_images(
    batch: Batch, data_set: DataSet, config: TrainingConfig
) -> dict[str, np.ndarray]:
    """Draws the first images of a batch, augmented, on their whole canvas.

    Args:
      batch: NumPy arrays `[B, ...]`.
      data_set: what the batch is of.
      config: how many images are drawn.

    Returns:
      `[H', W', 3]` uint8, two images a row, by the name of the picture.
    """
    rows = range(min(config.pictures, len(batch.images)))
    drawn = [_draw_training_image(batch, row, data_set.class_names) for row in rows]
    return {"training_input": contact_sheet(drawn, columns=2)} if drawn else {}


def draw_validation_images(
    detector: Detector, variables: Any, validation: DataSet, config: TrainingConfig
) -> dict[str, np.ndarray]:
    """Draws the truth beside the detections of the first `config.pictures` images.

    Args:
      detector: its `predict` is compiled already for batches of the evaluation.
      variables: of the detector, without a device axis.
      validation: whose images.
      config: how they become batches, and how many are drawn.

    Returns:
      `[H', W', 3]` uint8 by the id of the image.
    """
    if not config.pictures:
        return {}
    one_thread = dataclasses.replace(config.input, workers=0)
    batches = batching.evaluation_batches(
        validation, one_thread, batch_size=config.batch_size // jax.process_count()
    )
    with contextlib.closing(batches):  # type: ignore[type-var]
        batch = next(batches)  # of a shape that is compiled
    detections = to_host(predict_on_devices(detector, variables)(batch))
    names = validation.class_names
    detected_names = label_names(detector, names)
    rows = np.flatnonzero(batch.image_ids >= 0)[: config.pictures]
    return {
        str(validation.image_ids[batch.image_ids[row]]): _draw_truth_and_detections(
            batch, detections, row, names, detected_names
        )
        for row in rows
    }


def _draw_training_image(
    batch: Batch, row: int, class_names: Sequence[str]
) -> np.ndarray:
    image, truth, valid = _pixels(batch, row), batch.truth, batch.truth.valid[row]
    picture, factor = enlarge(image)
    boxes, masks = truth.boxes[row, valid], None
    if truth.masks is not None:
        masks = paste_masks(truth.masks[row, valid], boxes, image.shape[:2])
        masks = enlarge_masks(masks, factor)
    return draw(
        picture,
        factor * boxes,
        truth.labels[row, valid],
        class_names=class_names,
        crowd=truth.crowd[row, valid],
        masks=masks,
    )


def _draw_truth_and_detections(
    batch: Batch,
    detections: Detections,
    row: int,
    class_names: Sequence[str],
    detected_names: Sequence[str],
) -> np.ndarray:
    height, width = batch.sizes[row].tolist()
    truth, valid = batch.truth, batch.truth.valid[row]
    shown = detections.valid[row] & (detections.scores[row] >= MIN_SCORE)
    boxes, masks = detections.boxes[row, shown], None
    if detections.masks is not None:
        masks = paste_masks(detections.masks[row, shown], boxes, (height, width))
    return truth_beside_detections(
        _pixels(batch, row)[:height, :width],
        (truth.boxes[row, valid], truth.labels[row, valid], truth.crowd[row, valid]),
        (boxes, detections.labels[row, shown], detections.scores[row, shown]),
        class_names=class_names,
        detection_names=detected_names,
        masks=masks,
    )


def _pixels(batch: Batch, row: int) -> np.ndarray:
    """Returns an image as `[H, W, 3]` uint8; batches may hold fractions."""
    return np.rint(batch.images[row]).astype(np.uint8)
