"""Runs a detector over a data set and scores its detections."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np
import tqdm

from jaxdet import parallel
from jaxdet.data import batching, masks
from jaxdet.data.dataset import DataError, DataSet
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.detector import Detector
from jaxdet.evaluation.coco import (
    box_and_mask_metrics,
    check_segmentations,
    warn_once,
)
from jaxdet.evaluation.recall import proposal_recall
from jaxdet.structs import Batch, Detections

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
    """Measures how good a detector is on a data set, on all devices and hosts.

    Args:
      detector: see `detect_all`.
      variables: see `detect_all`.
      data_set: its `ground_truth()` is what the detections are compared with.
      input_config: see `detect_all`.
      batch_size: see `detect_all`.
      progress: see `detect_all`.
      metrics: such as `voc.voc_metrics`, called with the ground truth and the results;
        None: `default_metrics(detector)`.

    Returns:
      What `metrics` returns: numbers by name, the most important first.

    Raises:
      DataError: for an image that cannot be read; before any is, as
        `load_ground_truth`.
    """
    truth = load_ground_truth(detector, data_set)
    results = detect_all(
        detector,
        variables,
        data_set,
        input_config,
        batch_size=batch_size,
        progress=progress,
    )
    metrics = metrics or default_metrics(detector)
    return metrics(truth, results)


def load_ground_truth(
    detector: Detector,
    data_set: DataSet,
    *,
    bad_masks: Literal["error", "skip"] = "error",
) -> dict:
    """Returns what the results of a detector are compared with, as COCO's json.

    Args:
      detector: without masks the segmentations are left out.
      data_set: its segmentations are checked for a detector with masks; not all formats
        do so when they are loaded, and none that is loaded without masks.
      bad_masks: see `coco.check_segmentations`.

    Raises:
      DataError: for a broken segmentation.
    """
    truth = data_set.ground_truth()
    if not detector.has_masks:
        annotations = [
            {key: value for key, value in one.items() if key != "segmentation"}
            for one in truth["annotations"]
        ]
        return truth | {"annotations": annotations}
    # The json need not have the sizes that masks are drawn at.
    sizes = dict(zip(data_set.image_ids, data_set.sizes.tolist(), strict=True))
    images = [
        image | dict(zip(("height", "width"), sizes[image["id"]], strict=True))
        for image in truth["images"]
    ]
    truth = truth | {"images": images}
    try:
        return check_segmentations(truth, bad=bad_masks)
    except DataError as error:
        raise DataError(f"{data_set.name}: {error}") from error


def default_metrics(detector: Detector) -> Metrics:
    """Returns COCO's metrics, or proposal recall for a detector without classes."""
    return proposal_recall if detector.num_classes is None else box_and_mask_metrics


def label_names(detector: Detector, class_names: Sequence[str]) -> tuple[str, ...]:
    """Returns a detector's labels by name: the classes, or ("object",) without any."""
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
    """Runs a detector over all images of a data set, on all devices.

    Each of several hosts processes its share of the images; all of them must call this,
    and get the results of the whole data set.

    Args:
      detector: its `predict` is compiled once for each canvas.
      variables: of the detector, without a device axis.
      data_set: every image is processed once.
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
    fullest = max((len(objects.labels) for objects in data_set.objects), default=0)
    predict = predict_on_devices(detector, variables)
    pairs = ((batch, predict(batch)) for batch in batches)
    by_batch = []
    progress = progress and jax.process_index() == 0
    with tqdm.tqdm(total=len(data_set), unit="image", disable=not progress) as bar:
        # In pairs, so that the devices have the next batch while these are copied.
        for (batch, arrays), _ in itertools.pairwise(itertools.chain(pairs, [None])):
            detections = parallel.to_host(arrays)
            if fullest > (slots := detections.valid.shape[1]):
                warn_once(
                    f"data set {data_set.name!r} has an image of {fullest} objects, "
                    f"but the detector returns at most {slots} detections an image "
                    "(max_detections of its postprocessing)"
                )
            by_batch.append(list(_coco_results(batch, detections, data_set)))
            bar.update(hosts * np.count_nonzero(batch.image_ids >= 0))
    in_turn = itertools.zip_longest(*parallel.gather(by_batch), fillvalue=())
    return list(itertools.chain(*itertools.chain(*in_turn)))


def predict_on_devices(
    detector: Detector, variables: Any
) -> Callable[[Batch], Detections]:
    """Spreads `predict` over all devices of this host.

    Args:
      detector: compiled once for each shape of batch, however often this is called.
      variables: of the detector, without a device axis; copied to the devices once.

    Returns:
      A function from a batch, which the devices divide, to detections on the devices
      with arrays `[devices, B / devices, ...]`; `parallel.to_host` copies them.
    """
    predict = parallel.pmap(
        detector.predict, in_axes=(None, 0), out_axes=0, devices=jax.local_devices()
    )
    variables = parallel.replicate(variables)
    return lambda batch: predict(variables, parallel.shard(batch))


def paste_masks(
    cells: np.ndarray, boxes: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Pastes masks that are cut to their boxes into masks of the whole image.

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


def rescale_to_original(boxes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Converts boxes from canvas pixels to pixels of the original images.

    Args:
      boxes: `[B, D, 4]` (x1, y1, x2, y2).
      scales: `[B, 2]` canvas pixels per original pixel (height, width).

    Returns:
      `[B, D, 4]`; not clipped.
    """
    return boxes / scales[:, None, [1, 0, 1, 0]]


def _coco_results(
    batch: Batch, detections: Detections, data_set: DataSet
) -> Iterator[dict]:
    boxes = rescale_to_original(detections.boxes, batch.scales)
    for slot, position in enumerate(batch.image_ids):
        if position < 0:
            continue
        height, width = data_set.sizes[position].tolist()
        for index in np.flatnonzero(detections.valid[slot]):
            corners = np.clip(boxes[slot, index], 0, [width, height, width, height])
            x1, y1, x2, y2 = corners.tolist()
            result = {
                "image_id": data_set.image_ids[position],
                "category_id": data_set.category_ids[detections.labels[slot, index]],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(detections.scores[slot, index]),
            }
            if detections.masks is not None:
                cells = detections.masks[slot, index]
                mask = masks.paste(cells, corners, (height, width))
                result["segmentation"] = masks.encode_rle(mask)
            yield result
