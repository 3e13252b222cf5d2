"""Draws the ideas of detection, a function each, which takes arrays.

`lecture.anatomy` calls them for a photo and a network; a notebook can call any of them.
Boxes and points are in pixels of the picture, which is `[H, W, 3]` uint8.
"""

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
import optax
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxdet.detectors.roi_heads import RoIPoolerConfig
from jaxdet.ops import box_coding, losses, receptive_field, roi_align, roi_pool
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.matching import Matches
from jaxdet.ops.receptive_field import Field

BINS, SAMPLES = 2, 2  # along each side of a region that is pooled, and of a bin
POINT_STRIDE = 8  # pixels between points whose centerness is drawn
MOST = 40  # boxes of a kind that are drawn
QUERIES = 4  # whose attention is drawn
EASY = 0.1  # a negative with a lower score is easy
GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)  # Lin et al. 2017, Figure 1
RED = "#c8102e"  # of regions and objects only
BLUE, GREEN, BROWN, VIOLET, BLACK = "#0047ba", "#00843d", "#b35900", "#7b2d8b", "#222"
COLORS = (BLUE, GREEN, BROWN, VIOLET, BLACK)


def receptive_fields(
    picture: np.ndarray, layers: Sequence[tuple], *, name: str
) -> Figure:
    """Returns a figure of the middle cell's receptive field at each stride.

    Args:
      picture: `[H, W, 3]` uint8.
      layers: as of `receptive_field.receptive_fields`.
      name: of the network.
    """
    figure, axes = _canvas(picture)
    stages = {field.stride: field for field in receptive_field.receptive_fields(layers)}
    middle = np.array(picture.shape[:2]) / 2
    for color, (stride, field) in zip(COLORS, stages.items(), strict=False):
        cell = np.round((middle - field.center) / stride)
        seen = np.asarray(receptive_field.receptive_boxes(cell, field))
        label = f"stride {stride}: {field.size} x {field.size} pixels"
        _outline(axes, seen[None], color=color, label=label)
    reach = max(field.size / 2 + field.stride, *middle)
    axes.set(xlim=middle[1] + reach * np.array([-1, 1]))
    axes.set(ylim=middle[0] + reach * np.array([1, -1]))
    axes.set_title(f"What one cell of {name} sees")
    _legend(axes)
    return figure


def projected_region(
    picture: np.ndarray, box: np.ndarray, field: Field, *, name: str
) -> Figure:
    """Returns a figure of a region on the features, and of its whole cells.

    Args:
      picture: `[H, W, 3]` uint8.
      box: `[4]` pixels.
      field: of the features.
      name: of the network.
    """
    in_cells = np.asarray(receptive_field.project(box, field))
    whole = np.concatenate([np.floor(in_cells[:2]), np.ceil(in_cells[2:])])
    back = np.asarray(receptive_field.unproject(whole, field))
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


def roi_pool_and_align(picture: np.ndarray, box: np.ndarray, *, stride: int) -> Figure:
    """Returns a figure of what RoI pooling and RoI Align read.

    Args:
      picture: `[H, W, 3]` uint8.
      box: `[4]` pixels, within the picture.
      stride: of the features, in pixels.
    """
    canvas = picture.shape[:2]
    figure, (left, right) = _canvas(picture, 2)
    bins = pool_bins(box, canvas, stride=stride).reshape(-1, 4)
    snapped = np.nanmin(bins[:, :2], axis=0), np.nanmax(bins[:, 2:], axis=0)
    snapped = np.concatenate(snapped)
    for number, cells in enumerate(bins):
        x1, y1, x2, y2 = cells
        color = COLORS[number % len(COLORS)]
        left.fill([x1, x2, x2, x1], [y1, y1, y2, y2], color=color, alpha=0.3)
        _outline(left, cells[None], color=color)
    moves = ", ".join(f"{move:+.0f}" for move in snapped - box)
    left.set_title(f"RoI pooling: {BINS} x {BINS} bins, moved by\n{moves} pixels")
    points = align_points(box, canvas, stride=stride)
    right.plot(*points.reshape(-1, 2).T, "o", color=BLUE, label="read, bilinearly")
    edges = np.linspace(box[:2], box[2:], BINS + 1)
    right.vlines(edges[:, 0], box[1], box[3], color=RED, linewidth=1)
    right.hlines(edges[:, 1], box[0], box[2], color=RED, linewidth=1)
    points_a_bin = f"{SAMPLES} x {SAMPLES} points in each"
    right.set_title(f"RoI Align: {BINS} x {BINS} bins, not moved,\n{points_a_bin}")
    shown = snapped + stride * np.array([-1.5, -1.5, 1.5, 1.5])
    for axes in (left, right):
        _grid(axes, -(-np.array(canvas) // stride), stride)
        _outline(axes, box[None], color=RED, label=f"region; cells of {stride} pixels")
        axes.set(xlim=shown[[0, 2]], ylim=shown[[3, 1]])
        _legend(axes)
    return figure


def pool_bins(box: np.ndarray, canvas: tuple[int, int], *, stride: int) -> np.ndarray:
    """Returns the cells of each bin, from pooling features with a channel a cell.

    Args:
      box: `[4]` pixels.
      canvas: (height, width) in pixels.
      stride: pixels per cell.

    Returns:
      `[BINS, BINS, 4]` pixels; NaN in bins without a cell.
    """
    first, (rows, columns) = _cells_around(box, canvas, stride)
    channels = np.eye(rows * columns, dtype=np.float32).reshape(rows, columns, -1)
    local = (box - stride * np.tile(first, 2))[None]
    pool = partial(roi_pool.roi_max_pool, stride=stride, output_size=BINS)
    pooled = jax.jit(pool)(channels, local)
    read = np.asarray(pooled[0]).reshape(BINS, BINS, rows, columns) > 0
    bins = np.full((BINS, BINS, 4), np.nan)
    for i, j in np.argwhere(read.any(axis=(2, 3))):
        y, x = np.nonzero(read[i, j])
        bins[i, j] = x.min(), y.min(), x.max() + 1, y.max() + 1
    return stride * (bins + np.tile(first, 2))


def align_points(
    box: np.ndarray, canvas: tuple[int, int], *, stride: int
) -> np.ndarray:
    """Returns the points that RoI Align reads, from features that are (x, y).

    Args:
      box: `[4]` pixels.
      canvas: (height, width) in pixels.
      stride: pixels per cell.

    Returns:
      `[BINS * SAMPLES, BINS * SAMPLES, 2]` (x, y) in pixels.
    """
    first, (rows, columns) = _cells_around(box, canvas, stride)
    centers = np.meshgrid(np.arange(columns) + 0.5, np.arange(rows) + 0.5)
    centers = np.stack(centers, axis=-1).astype(np.float32)
    local = (box - stride * np.tile(first, 2))[None]
    options = {"output_size": BINS * SAMPLES, "sampling_ratio": 1}
    align = partial(roi_align.roi_align, stride=stride, **options)
    points = jax.jit(align)(centers, local)
    return stride * (np.asarray(points[0]) + first)


def anchor_labels(
    picture: np.ndarray, boxes: np.ndarray, matches: Matches, objects: np.ndarray
) -> Figure:
    """Returns a figure of positive, ignored and negative anchors, at most `MOST` each.

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
    for axes, (name, (which, color)) in zip(panels, kinds.items(), strict=True):
        those = np.flatnonzero(which)
        shown = those[:: -(-len(those) // MOST) or 1]
        _outline(axes, boxes[shown], color=color, linewidth=0.8, label=name)
        _outline(axes, objects, color=RED, linestyle="--", label="object")
        drawn = f", {len(shown)} drawn" if len(shown) < len(those) else ""
        axes.set_title(f"{name}: {len(those):,} anchors{drawn}")
        axes.set(xlim=(-width / 4, 1.25 * width), ylim=(1.25 * height, -height / 4))
        _legend(axes)
    return figure


def objectness(picture: np.ndarray, maps: dict[int, np.ndarray]) -> Figure:
    """Returns a figure of the score of the best anchor in each cell, level by level.

    Maps are `{level: [rows, columns]}` in [0, 1], level l of stride `2**l`.
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
    """Returns a figure of the best boxes of an RPN, and those that NMS keeps.

    Args:
      picture: `[H, W, 3]` uint8.
      boxes: `[N, 4]`, best first.
      scores: `[N]` in [0, 1].
      kept: `[M]`, indices of those left.
      threshold: IoU above which the worse of two boxes of a level is removed.
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
    picture: np.ndarray, boxes: np.ndarray, config: RoIPoolerConfig
) -> Figure:
    """Returns a figure of the level that pools each region (FPN, equation 1).

    Args:
      picture: `[H, W, 3]` uint8.
      boxes: `[R, 4]`, the regions.
      config: of the levels, and which region belongs to which.
    """
    levels, size, canonical = (
        config.levels,
        config.canonical_size,
        config.canonical_level,
    )
    rule = {"canonical_size": size, "canonical_level": canonical}
    chosen = np.asarray(roi_align.assign_levels(boxes, levels, **rule))
    sides = np.sqrt(box_ops.area(boxes))
    figure, (chart, axes) = _canvas(picture, 2)
    chart.clear()
    chart.set_aspect("auto")
    finest = size * 2.0 ** (levels[0] - 1 - canonical)
    coarsest = size * 2.0 ** (levels[-1] + 1 - canonical)
    low, high = np.clip(min(sides), 1, finest), max(coarsest, *sides)
    line = np.geomspace(low, high, 500)
    corners = np.stack([0 * line, 0 * line, line, line], axis=-1)
    steps = roi_align.assign_levels(corners, levels, **rule)
    chart.plot(line, steps, color="gray", label="rule")
    for level, color in zip(levels, COLORS, strict=False):
        here = chosen == level
        label = f"level {level}: {here.sum()}"
        chart.plot(sides[here], chosen[here], "o", color=color, label=label)
        _outline(axes, boxes[here], color=color, linewidth=0.8)
    chart.set_xscale("log", base=2)
    chart.xaxis.set_major_formatter("{x:g}")
    chart.set_yticks(levels)
    chart.set(xlabel="side of the region: square root of its area, canvas pixels")
    chart.set(ylabel="level", title=f"{len(boxes)} regions by size")
    chart.legend(loc="lower right")
    axes.set_title("The same regions")
    return figure


def focal_curves() -> Figure:
    """Returns a figure of the focal loss by probability (Lin et al., Figure 1)."""
    figure = Figure(figsize=(6.5, 4.5), layout="constrained", dpi=110)
    axes = figure.subplots()
    right = np.linspace(0.01, 0.999, 300)
    logits = np.log(right / (1 - right))
    for gamma, color in zip(GAMMAS, COLORS, strict=True):
        loss = optax.losses.sigmoid_focal_loss(logits, 0 * logits + 1, gamma=gamma)
        name = "0, cross-entropy" if gamma == 0 else f"{gamma:g}"
        axes.plot(right, loss, color=color, label=rf"$\gamma$ = {name}")
    axes.axvspan(1 - EASY, 1, color="gray", alpha=0.2, label="easy")
    axes.set(xlim=(0, 1), ylim=(0, 5), title=r"$-(1 - p_t)^\gamma \, \ln p_t$")
    axes.set(xlabel="$p_t$, probability of the right class", ylabel="loss")
    axes.legend()
    return figure


def shares_of_loss(
    logits: np.ndarray, targets: np.ndarray, *, gamma: float
) -> dict[str, float]:
    """Returns the shares of the focal loss of positives and negatives.

    Args:
      logits: `[...]` of binary classifications.
      targets: `[...]`, 1 or 0.
      gamma: of the loss, without alpha; 0 is the cross-entropy.

    Returns:
      The shares of "easy negatives", whose score is below `EASY`, of "hard negatives"
      and of "positives"; they sum to 1.
    """
    loss = optax.losses.sigmoid_focal_loss(logits, targets, gamma=gamma)
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


def loss_shares(logits: np.ndarray, targets: np.ndarray) -> Figure:
    """Returns a figure of `shares_of_loss` of one network, a bar for each gamma."""
    figure = Figure(figsize=(7.5, 4), layout="constrained", dpi=110)
    axes = figure.subplots()
    rows = [shares_of_loss(logits, targets, gamma=gamma) for gamma in GAMMAS]
    start = np.zeros(len(rows))
    for name, color in zip(rows[0], (BLUE, BROWN, GREEN), strict=True):
        share = 100 * np.array([row[name] for row in rows])
        bars = axes.barh(range(len(rows)), share, left=start, color=color, label=name)
        texts = [f"{here:.1f}" if here >= 4 else "" for here in share]  # if they fit
        axes.bar_label(bars, texts, label_type="center", color="white")
        start += share
    names = [
        rf"$\gamma$ = {gamma:g}: {100 * row['easy negatives']:.1f} easy"
        for gamma, row in zip(GAMMAS, rows, strict=True)
    ]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    xlabel = r"share of the class loss, %; with $\gamma$ = 0 it is the cross-entropy"
    axes.set(xlim=(0, 100), xlabel=xlabel)
    positives = int((targets == 1).sum())
    axes.set_title(f"{targets.size:,} logits, {positives} of them positive")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def centerness(picture: np.ndarray, box: np.ndarray) -> Figure:
    """Returns a figure of points' distances to the sides of a box, and centerness."""
    figure, (left, right) = _canvas(picture, 2)
    points = box[:2] + np.array([[0.5, 0.5], [0.25, 0.25]]) * (box[2:] - box[:2])
    distances = np.asarray(box_coding.encode_ltrb(box[None], points))
    values = np.asarray(losses.centerness(distances))
    texts = [f"centerness {value:.2f}" for value in values]
    _draw_distances(left, points, distances, texts)
    left.set_title("Left, top, right, bottom from two points")
    height, width = picture.shape[:2]
    stride = POINT_STRIDE
    x, y = (np.arange(stride / 2, extent, stride) for extent in (width, height))
    grid = np.stack(np.meshgrid(x, y), axis=-1)
    central = losses.centerness(box_coding.encode_ltrb(box[None, None], grid))
    heat = _heat(right, np.asarray(central), stride)
    _outline(right, box[None], color=RED, label="object")
    right.set_title(f"Centerness of all points, one every {stride} pixels")
    figure.colorbar(heat, ax=right, shrink=0.6, label="centerness")
    return figure


def fcos_maps(maps: dict[int, np.ndarray]) -> Figure:
    """Returns a figure of class score, centerness, and their product, level by level.

    Maps are `{level: [rows, columns, 3]}` in [0, 1], level l of stride `2**l`.
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


def attention(
    picture: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    maps: np.ndarray,
    *,
    stride: int,
) -> Figure:
    """Returns a figure of what queries attend to, and of the boxes that they predict.

    Args:
      picture: `[H, W, 3]` uint8.
      boxes: `[N, 4]` canvas pixels, of as many queries as there are panels.
      scores: `[N]` in [0, 1].
      maps: `[N, rows, columns]`, the weight of each cell.
      stride: canvas pixels of a cell.
    """
    figure, panels = _query_panels(picture, boxes, scores)
    for axes, weights in zip(panels, maps, strict=True):
        heat = _heat(axes, weights / weights.max(), stride)
        heat.set_alpha(0.7)
    figure.colorbar(heat, ax=panels, shrink=0.6, label="attention over its maximum")
    return figure


def sampling_points(
    picture: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    centers: np.ndarray,
    points: np.ndarray,
    weights: np.ndarray,
) -> Figure:
    """Returns a figure of the points that queries sample, and of the boxes predicted.

    Args:
      picture: `[H, W, 3]` uint8.
      boxes: `[N, 4]` canvas pixels, of as many queries as there are panels.
      scores: `[N]` in [0, 1].
      centers: `[N, 2]`, the reference points (x, y), which the others lie around.
      points: `[N, P, 2]`, of all heads and levels; some may lie beyond the picture.
      weights: `[N, P]`, of each point.
    """
    figure, panels = _query_panels(picture, boxes, scores)
    for axes, center, around, weight in zip(
        panels, centers, points, weights, strict=True
    ):
        order = np.argsort(weight)  # the heaviest on top
        colors = weight[order] / weight.max()
        style = {"s": 9, "cmap": "turbo", "vmin": 0, "vmax": 1, "zorder": 2}
        dots = axes.scatter(*around[order].T, c=colors, **style)
        style = {"color": BLACK, "markersize": 10, "markeredgewidth": 2}
        axes.plot(*center, "+", **style, label="reference point")
    parts = panels[0].get_legend_handles_labels()
    figure.legend(*parts, loc="outside lower center", ncols=2)
    figure.colorbar(dots, ax=panels, shrink=0.6, label="attention over its maximum")
    return figure


def _query_panels(picture: np.ndarray, boxes: np.ndarray, scores: np.ndarray):
    """Makes a figure of panels with a query's box and score each."""
    figure, panels = _canvas(picture, len(boxes))
    panels, (height, width) = np.atleast_1d(panels), picture.shape[:2]
    for axes, box, score in zip(panels, boxes, scores, strict=True):
        axes.set(xlim=(0, width), ylim=(height, 0), title=f"score {score:.2f}")
        _outline(axes, box[None], color="red", label="predicted box")
    return figure, panels


def _cells_around(
    box: np.ndarray, canvas: tuple[int, int], stride: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns the first cell (x, y), and (rows, columns), that a pooling may read."""
    cells = np.ceil(np.array(canvas[::-1]) / stride)
    first = np.maximum(np.floor(box[:2] / stride) - 1, 0)
    last = np.minimum(np.ceil(box[2:] / stride) + 1, cells)
    columns, rows = (last - first).astype(int)
    return first.astype(np.float32), (rows, columns)


def _canvas(picture: np.ndarray, panels: int = 1):
    """Makes a figure of panels side by side, each with the picture, faded."""
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
    """Draws lines between (rows, columns) of cells."""
    rows, columns = cells
    style = {"color": "gray", "linewidth": 0.4}
    axes.vlines(stride * np.arange(columns + 1), 0, stride * rows, **style)
    axes.hlines(stride * np.arange(rows + 1), 0, stride * columns, **style)


def _legend(axes) -> None:
    """Places a legend below the axes, where it hides nothing."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)


def _heat(axes, values: np.ndarray, stride: int):
    """Draws `[rows, columns]` in [0, 1], a cell being `stride` pixels."""
    rows, columns = values.shape
    extent = 0, columns * stride, rows * stride, 0
    return axes.imshow(values, extent=extent, vmin=0, vmax=1)


def _draw_distances(axes, points, distances, texts: Sequence[str]) -> None:
    for point, sides, text, color in zip(
        points, distances, texts, COLORS, strict=False
    ):
        box = np.concatenate([point - sides[:2], point + sides[2:]])
        _outline(axes, box[None], color=color)
        arrows = np.array([[-1, 0], [0, -1], [1, 0], [0, 1]]) * sides[:, None]
        style = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.006}
        axes.quiver(*np.tile(point, (4, 1)).T, *arrows.T, color=color, **style)
        axes.plot(*point, "o", color=color, label=text)
    _legend(axes)
