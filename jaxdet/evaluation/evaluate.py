"""Runs a detector over a data set, and scores what it finds."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from jaxdet import parallel
from jaxdet.data import batching, masks
from jaxdet.data.batching import InputConfig
from jaxdet.data.dataset import DataSet
from jaxdet.detectors.detector import Detector
from jaxdet.evaluation.coco import box_and_mask_metrics
from jaxdet.evaluation.recall import proposal_recall
from jaxdet.structs import Batch, Detections
from jaxdet.training.step import replicate, shard

Metrics = Callable[[dict, list[dict]], dict[str, float]]
"""From ground truth (COCO json) and results to numbers, the most important first."""


def evaluate(
    detector: Detector,
    variables: Any,
    data_set: DataSet,
    input_config: InputConfig,
    *,
    batch_size: int = 8,
    progress: bool = True,
    metrics: Metrics | None = None,
) -> dict[str, float]:
    """How good a detector is on a data set.

    Of several hosts each looks at its share of the images; every one of them must call
    this, and gets the numbers of all.

    Args:
      detector: its `predict` is compiled once for each canvas.
      variables: of the detector, without a device axis.
      data_set: its `ground_truth()` is what the answers are held against.
      input_config: its canvases, workers and `unreadable_images`; nothing is flipped.
      batch_size: images at a time over all devices, rounded up to a multiple of them.
      progress: whether to draw a bar, on the first host.
      metrics: such as `voc.voc_metrics`, called with the ground truth and the results;
        None: `default_metrics(detector)`.

    Returns:
      What `metrics` returns: numbers by name, the most important first.

    Raises:
      DataError: for an image that cannot be read.
    """
    results = detect_all(
        detector,
        variables,
        data_set,
        input_config,
        batch_size=batch_size,
        progress=progress,
    )
    metrics = metrics or default_metrics(detector)
    return metrics(data_set.ground_truth(), results)


def default_metrics(detector: Detector) -> Metrics:
    """COCO's, or the recall of a detector that only tells objects from background."""
    return proposal_recall if detector.num_classes is None else box_and_mask_metrics


def names_of_labels(detector: Detector, class_names: Sequence[str]) -> tuple[str, ...]:
    """What a detector's labels are called: the classes, or ("object",) without any."""
    return ("object",) if detector.num_classes is None else tuple(class_names)


def detect_all(
    detector: Detector,
    variables: Any,
    data_set: DataSet,
    input_config: InputConfig,
    *,
    batch_size: int = 8,
    progress: bool = True,
) -> list[dict]:
    """Everything a detector finds in a data set, on all devices.

    Of several hosts each looks at its share of the images; every one of them must call
    this, and gets the results of all.

    Args:
      detector: its `predict` is compiled once for each canvas.
      variables: of the detector, without a device axis.
      data_set: every image is looked at once.
      input_config: its canvases, workers and `unreadable_images`; nothing is flipped.
      batch_size: images at a time over all devices, rounded up to a multiple of them.
      progress: whether to draw a bar, on the first host.

    Returns:
      COCO results: `image_id` and `category_id` of the source, `bbox` (x, y, width,
      height) in pixels of the original image and inside it, `score`; with masks, also
      `segmentation`, run lengths of the original image.

    Raises:
      DataError: for an image that cannot be read.
    """
    hosts, devices = jax.process_count(), jax.local_device_count()
    batches = batching.evaluation_batches(
        data_set,
        input_config,
        batch_size=-(-batch_size // (hosts * devices)) * devices,
        process=jax.process_index(),
        processes=hosts,
    )
    predict = predict_on_devices(detector, variables)
    answers = ((batch, predict(batch)) for batch in batches)
    by_batch = []
    progress = progress and jax.process_index() == 0
    with tqdm.tqdm(total=len(data_set), unit="image", disable=not progress) as bar:
        # In pairs, so that the devices have the next batch while these are fetched.
        for (batch, answer), _ in itertools.pairwise(itertools.chain(answers, [None])):
            by_batch.append(list(_coco_results(batch, fetch(answer), data_set)))
            bar.update(hosts * np.count_nonzero(batch.image_ids >= 0))
    in_turn = itertools.zip_longest(*parallel.gather(by_batch), fillvalue=())
    return list(itertools.chain(*itertools.chain(*in_turn)))


def predict_on_devices(
    detector: Detector, variables: Any
) -> Callable[[Batch], Detections]:
    """`predict` spread over all devices of this host.

    Args:
      detector: compiled once for each shape of batch, however often this is called.
      variables: of the detector, without a device axis; placed on the devices once.

    Returns:
      From a batch, which the devices divide, to detections still on the devices with
      arrays `[devices, B / devices, ...]`; `fetch` brings them here.
    """
    devices = jax.local_devices()
    predict = jax.pmap(detector.predict, in_axes=(None, 0), devices=devices)
    variables = replicate(variables)
    return lambda batch: predict(variables, shard(batch, len(devices)))


def fetch(detections: Detections) -> Detections:
    """From `[devices, B / devices, ...]` on devices to NumPy arrays `[B, ...]`."""
    return jax.tree.map(np.concatenate, jax.device_get(detections))


def paste_all(
    cells: np.ndarray, boxes: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Masks cut to their boxes to masks of the whole image.

    Args:
      cells: `[D, M, M]` in [0, 1].
      boxes: `[D, 4]` (x1, y1, x2, y2) in pixels of the image.
      size: its (height, width).

    Returns:
      `[D, height, width]` bool.
    """
    whole = np.zeros((len(cells), *size), bool)
    for index, (mask, box) in enumerate(zip(cells, boxes, strict=True)):
        whole[index] = masks.paste(mask, box, size)
    return whole


def to_original(boxes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Canvas pixels to pixels of the original images.

    Args:
      boxes: `[B, D, 4]` (x1, y1, x2, y2).
      scales: `[B, 2]` canvas pixels per original pixel (height, width).

    Returns:
      `[B, D, 4]`; not clipped.
    """
    return boxes / scales[:, None, [1, 0, 1, 0]]


def _coco_results(batch: Batch, found: Detections, data_set: DataSet) -> Iterator[dict]:
    boxes = to_original(found.boxes, batch.scales)
    for slot, position in enumerate(batch.image_ids):
        if position < 0:
            continue
        height, width = data_set.sizes[position].tolist()
        for index in np.flatnonzero(found.valid[slot]):
            corners = np.clip(boxes[slot, index], 0, [width, height, width, height])
            x1, y1, x2, y2 = corners.tolist()
            result = {
                "image_id": data_set.image_ids[position],
                "category_id": data_set.category_ids[found.labels[slot, index]],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(found.scores[slot, index]),
            }
            if found.masks is not None:
                mask = masks.paste(found.masks[slot, index], corners, (height, width))
                result["segmentation"] = masks.encode(mask)
            yield result
