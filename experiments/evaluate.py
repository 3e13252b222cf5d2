"""Evaluates a trained detector: python -m experiments.evaluate runs/quickstart

On the digits' validation split by default, or on any data set that `--data` takes.
`--pictures 20` also draws as many of its images, the truth beside the detections. The
pretrained SSD-MobileNetV2 on COCO's validation images (val2017 and annotations, in one
folder), or a published detector, which is downloaded, and whose documented AP
is then printed beside the measured one:

python -m experiments.evaluate --data coco
python -m experiments.evaluate --weights fasterrcnn_resnet50_fpn --data coco
"""

import collections
import functools
import json
import pathlib
import re
from typing import Literal

import jax
import numpy as np
import tyro
from PIL import Image

from experiments import command_line
from experiments.data_option import (
    DIGITS,
    DataOption,
    Flat,
    read_proposals,
    search_proposals,
)
from experiments.views_option import ONE_VIEW, ViewsOption
from jaxdet.data.dataset import DataError, DataSet
from jaxdet.data.formats import coco
from jaxdet.data.input_config import InputConfig
from jaxdet.data.masks import decode_rle
from jaxdet.detectors.detector import Detector
from jaxdet.evaluation.coco import MAX_DETECTIONS, Backend, box_and_mask_metrics
from jaxdet.evaluation.evaluate import (
    Metrics,
    default_metrics,
    detect_all,
    label_names,
    load_ground_truth,
)
from jaxdet.evaluation.html_report import write_report
from jaxdet.evaluation.recall import proposal_recall
from jaxdet.evaluation.report import format_metrics
from jaxdet.evaluation.voc import voc_metrics
from jaxdet.inference.load import detect_data_set, load_detector, make_detect
from jaxdet.inference.tiles import TilesConfig
from jaxdet.training.run_folder import save_min_score
from jaxdet.visualize import truth_beside_detections
from jaxdet.weights import detectors, published
from jaxdet.weights.published import TrainedDetector
from jaxdet.weights.state_dict import read_state_dict

MetricsName = Literal["coco", "voc", "voc07", "recall"]
METRICS: dict[MetricsName, Metrics] = {
    "coco": box_and_mask_metrics,
    "voc": voc_metrics,
    "voc07": functools.partial(voc_metrics, eleven_points=True),
    "recall": proposal_recall,
}


def main(
    workdir: tyro.conf.Positional[pathlib.Path | None] = None,
    source: Flat[DataOption] = DIGITS,
    *,
    weights: str | None = None,
    canvas_multiple: int | None = None,
    validation_share: float = 0.0,
    proposal_file: pathlib.Path | None = None,
    metrics: MetricsName | None = None,
    max_detections: int = MAX_DETECTIONS,
    coco_backend: Backend = "pycocotools",
    step: int | Literal["best", "latest"] = "best",
    batch_size: int = 8,
    json_file: pathlib.Path | None = None,
    report: pathlib.Path | None = None,
    pictures: int = 0,
    output: pathlib.Path = pathlib.Path("detections"),
    min_score: float = 0.3,
    views: Flat[ViewsOption] = ONE_VIEW,
):
    """Evaluates a run.

    Args:
      workdir: the run folder that training wrote; without one and without `--weights`
        the pretrained SSD-MobileNetV2 is evaluated.
      source: the images to evaluate on.
      weights: the name of a published detector on COCO, or its checkpoint
        (.pth, .safetensors or .npz), instead of a run.
      canvas_multiple: of which heights and widths of its canvases are; if not given 32,
        which is exactly as torchvision has it; more needs fewer compilations.
      validation_share: of data without a split to validate on, evaluate on the images
        that training with this share has set aside (0.1 by default); 0: on all.
      proposal_file: region proposals, for a detector that needs them; selective search
        makes and keeps some if not given.
      metrics: COCO's (of masks too), VOC's mean average precision (from 2010 on, or as
        in 2007), or recall of proposals; if not given, recall for a detector that tells
        no classes apart, COCO's for others.
      max_detections: how many detections of an image and class COCO's metrics count;
        how many the detector returns is a number of its run.
      coco_backend: which library computes COCO's metrics; hotcoco (pip install hotcoco)
        gives the same numbers many times faster.
      step: which checkpoint; "best" is that of the highest AP, or whatever its run
        measured first.
      batch_size: images at a time.
      json_file: where to write the detections in COCO's format.
      report: folder for a page that shows why the detector fails, `report.html`, and
        its numbers, `report.json`. The run keeps the minimum score of the highest F1
        with these views, which `--min-score best` of experiments.detect takes.
      pictures: how many images to draw, the first ones.
      output: folder for these pictures.
      min_score: lower scores are not drawn; they count in the numbers.
      views: what is detected in beside each image as a whole; tiles on one device of
        each host, all else on all of them.

    Raises:
      DataError: for options that do not go together, and classes that are not the
        detector's.
    """
    _check_numbers(batch_size, canvas_multiple, pictures, max_detections)
    _check_options(workdir, weights, canvas_multiple, views.tiles, proposal_file)
    if report is not None and report.is_file():
        raise DataError(f"--report {report} is a file; it must be a folder")
    tiles = views.tiles_config(batch_size=batch_size)
    trained, data_set, documented = _load(
        (workdir, step),
        (weights, canvas_multiple),
        source,
        proposal_file,
        validation_share,
    )
    detector_name = str(workdir or weights or "SSD-MobileNetV2")
    _require_same_classes(trained, data_set, detector_name)
    trained = views.apply(trained)
    detector = trained.detector
    if report is not None and detector.num_classes is None:
        raise DataError(f"--report {report}: {detector_name} tells no classes apart")
    truth = load_ground_truth(detector, data_set, bad_masks=source.bad_boxes)
    options = {"max_detections": max_detections, "backend": coco_backend}
    measure = _choose_metrics(detector, metrics, **options)
    detections = _detect(trained, data_set, tiles, batch_size)
    if jax.process_index() > 0:
        return  # every host has all detections; the first one prints and writes
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(detections))
    explained = None
    if report is not None:
        inputs = data_set, truth, detections
        explained = write_report(
            report, *inputs, detector_name=detector_name, **options
        )
    as_coco = explained is not None and metrics in (None, "coco")
    measured = explained["metrics"] if as_coco else measure(truth, detections)
    print(format_metrics(measured))
    if documented is not None and "AP" in measured:
        print(_beside_published(measured, documented))
    if explained is not None:
        print(f"why it fails: see {report / 'report.html'}")
        best = explained["boxes"]["best_f1"]
        _keep_best_min_score(best, workdir, step, data_set.name, views)
    if pictures:
        _draw_first(pictures, detector, data_set, detections, output, min_score)


def _check_options(
    workdir: pathlib.Path | None,
    weights: str | None,
    canvas_multiple: int | None,
    tiles: int | None,
    proposal_file: pathlib.Path | None,
) -> None:
    """Raises a DataError for options that contradict."""
    if workdir is not None and weights is not None:
        raise DataError(
            f"--weights {weights} and the run folder {workdir}; one detector at a time"
        )
    if canvas_multiple is not None and weights is None:
        raise DataError(
            f"--canvas-multiple {canvas_multiple} without --weights, a published "
            "checkpoint"
        )
    if tiles is not None and proposal_file is not None:
        raise DataError(
            f"--tiles {tiles} and --proposal-file {proposal_file}: its proposals are "
            "of whole images; without a file each tile gets its own"
        )


def _check_numbers(
    batch_size: int, canvas_multiple: int | None, pictures: int, max_detections: int
) -> None:
    """Raises a DataError for a number out of range."""
    for name, value, least in (
        ("batch-size", batch_size, 1),
        ("canvas-multiple", canvas_multiple, 1),
        ("pictures", pictures, 0),
        ("max-detections", max_detections, 11),
    ):
        if value is not None and value < least:
            raise DataError(f"--{name} is {value}; it must be at least {least}")


def _detect(
    trained: TrainedDetector,
    data_set: DataSet,
    tiles: TilesConfig | None,
    batch_size: int,
) -> list[dict]:
    """Returns the detections in all images, as COCO's results."""
    if tiles is not None:
        return detect_data_set(make_detect(trained, tiles=tiles), data_set)
    data_set = search_proposals(data_set, trained.input)
    detector, variables, config = trained[:3]
    return detect_all(detector, variables, data_set, config, batch_size=batch_size)


def _choose_metrics(
    detector: Detector,
    name: MetricsName | None,
    max_detections: int,
    backend: Backend,
) -> Metrics:
    """Returns the named metrics, or those of the detector, with COCO's options.

    Raises:
      DataError: for options of COCO's metrics with others.
    """
    measure = METRICS[name] if name else default_metrics(detector)
    if measure is box_and_mask_metrics:
        options = {"max_detections": max_detections, "backend": backend}
        return functools.partial(measure, **options)
    if max_detections != MAX_DETECTIONS:
        raise DataError(
            f"--max-detections {max_detections} is a limit of COCO's metrics alone; "
            "others count all detections"
        )
    if backend != "pycocotools":
        raise DataError(f"--coco-backend {backend} computes COCO's metrics alone")
    return measure


def _keep_best_min_score(
    best: dict[str, float] | None,
    workdir: pathlib.Path | None,
    step: int | str,
    data_name: str,
    views: ViewsOption,
) -> None:
    """Prints the minimum score of the highest F1, and stores it in the run folder."""
    if best is None:
        print("no minimum score is best: no detection is right, at an IoU of 0.5")
        return
    shares = ", ".join(
        f"{name} {100 * best[name]:.1f}" for name in ("f1", "precision", "recall")
    )
    print(f"best minimum score: {best['min_score']:.3f} ({shares}, at an IoU of 0.5)")
    if workdir is not None:
        best = best | {"data_set": data_name}
        save_min_score(workdir, step, best, str(views))


def _load(
    run: tuple[pathlib.Path | None, int | str],
    checkpoint: tuple[str | None, int | None],
    source: DataOption,
    proposal_file: pathlib.Path | None,
    validation_share: float,
) -> tuple[TrainedDetector, DataSet, detectors.Published | None]:
    """Loads the detector, the data set, and what is documented of the detector.

    A run knows its classes, which VOC is read for; published weights may be a download,
    before which the data is checked.
    """
    (workdir, step), trained = run, None
    if workdir is not None:
        trained = load_detector(workdir, step=step)
    data_set = _load_data(source, trained, proposal_file, validation_share)
    if trained is not None:
        return trained, data_set, None
    trained, documented = _load_published(*checkpoint)
    return trained, data_set, documented


def _load_data(
    source: DataOption,
    trained: TrainedDetector | None,
    proposal_file: pathlib.Path | None,
    validation_share: float,
) -> DataSet:
    """Opens the data set, with the classes of a run or COCO's, and its proposals."""
    names, config = coco.CLASS_NAMES, InputConfig()
    if trained is not None:
        classless = trained.detector.num_classes is None
        names = None if classless else trained.class_names
        config = trained.input
    files = [] if proposal_file is None else [proposal_file]
    data_set = source.load(
        role="validation", validation_share=validation_share, class_names=names
    )
    return read_proposals([data_set], files, config)[0]


def _load_published(
    weights: str | None, canvas_multiple: int | None
) -> tuple[TrainedDetector, detectors.Published | None]:
    """Loads a published checkpoint with its documented AP, or the SSD."""
    if weights in (None, "ssd_mobilenet_v2"):
        return load_detector("ssd_mobilenet_v2"), None
    by_name = weights in detectors.MODELS
    state = read_state_dict(published.weights_file(weights) if by_name else weights)
    name = detectors.recognize(state)
    trained = published.coco_detector(
        state, name, canvas_multiple=canvas_multiple or 32
    )
    return trained, detectors.MODELS[name].published


def _require_same_classes(
    trained: TrainedDetector, data_set: DataSet, detector_name: str
) -> None:
    names = trained.class_names
    if trained.detector.num_classes is not None and names != data_set.class_names:
        raise DataError(
            f"{detector_name} knows the classes {names}, {data_set.name} has "
            f"{data_set.class_names}"
        )


def _beside_published(
    measured: dict[str, float], checkpoint: detectors.Published
) -> str:
    """Returns the documented AP and the measured one's distance from it, in percent."""
    parts = []
    documented = {"AP": checkpoint.box_ap, "mask/AP": checkpoint.mask_ap}
    for name, target in documented.items():
        if target is not None and name in measured:
            here = 100 * measured[name]
            parts.append(f"{name} {target}, here {here:.1f} ({here - target:+.1f})")
    return (
        f"documented for {checkpoint.file}, on the 5,000 images of val2017: "
        + "; ".join(parts)
    )


def _draw_first(
    count: int,
    detector: Detector,
    data_set: DataSet,
    detections: list[dict],
    output: pathlib.Path,
    min_score: float,
) -> None:
    """Writes `POSITION_ID.png` for the first images; detections are COCO's results."""
    detection_names = label_names(detector, data_set.class_names)
    of_image = collections.defaultdict(list)
    for detection in detections:
        if detection["score"] >= min_score:
            of_image[detection["image_id"]].append(detection)
    labels = {number: label for label, number in enumerate(data_set.category_ids)}
    output.mkdir(parents=True, exist_ok=True)
    for position, image_id in enumerate(data_set.image_ids[:count]):
        try:
            image = data_set.read_image(position)
        except DataError as error:
            print(f"left out: {error}")
            continue
        results = of_image[image_id]
        boxes = np.array([one["bbox"] for one in results], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = None
        if results and "segmentation" in results[0]:
            masks = decode_rle([one["segmentation"] for one in results])
        picture = truth_beside_detections(
            image,
            data_set.objects[position],
            (
                boxes,
                np.array([labels[one["category_id"]] for one in results], int),
                np.array([one["score"] for one in results], float),
            ),
            class_names=data_set.class_names,
            detection_names=detection_names,
            masks=masks,
        )
        name = re.sub(r"[^\w.-]+", "_", str(image_id))
        Image.fromarray(picture).save(output / f"{position:06d}_{name}.png")
    print(f"pictures of the first {min(count, len(data_set))} images: see {output}")


if __name__ == "__main__":
    command_line.run(main)
