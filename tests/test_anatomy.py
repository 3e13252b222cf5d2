"""The script that draws the ideas of detection: what is drawn, worked out by hand."""

import dataclasses

import jax
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from PIL import Image

from experiments import anatomy
from experiments.digits import MASK_RCNN, region_head
from jaxdet import inference, torchvision
from jaxdet.data.batching import InputConfig
from jaxdet.data.coco import CATEGORY_IDS
from jaxdet.data.dataset import DataError, Objects
from jaxdet.detectors.faster_rcnn import FasterRCNNNetwork
from jaxdet.detectors.fcos import FCOSConfig, FCOSNetwork, fcos
from jaxdet.detectors.mask_rcnn import mask_rcnn
from jaxdet.detectors.rcnn import RCNNConfig, rcnn
from jaxdet.detectors.retinanet import RetinaNetConfig, retinanet
from jaxdet.detectors.rpn import RPNConfig, rpn
from jaxdet.detectors.ssd import SSDConfig, ssd
from jaxdet.inference import Trained
from jaxdet.nn.resnet import ResNet
from jaxdet.ops.matching import Matches
from jaxdet.ops.receptive_field import Field
from jaxdet.training.checkpoint import Run
from jaxdet.training.config import TrainingConfig
from jaxdet.weights import WeightsError

PICTURE = np.full((160, 160, 3), 100, np.uint8)
BACKBONE = ResNet(depth=10, width=8, norm="group", coarsest=4)
INPUT = InputConfig(canvases=((64, 64),))
ALWAYS = {"receptive_fields", "projected_region", "roi_pool_and_align", "levels"}
ALWAYS |= {"focal_curves", "centerness"}


def boxes_in(axes, index=0):
    """The boxes of one of the sets of outlines that are drawn, `[N, 4]`."""
    outlines = [part for part in axes.collections if isinstance(part, LineCollection)]
    corners = np.array(outlines[index].get_segments())
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=-1)


def texts_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_pooling_snaps_to_the_cells_of_both_corners():
    # In cells 1.25 to 6.25 and 2.25 to 8.25: columns 1 to 6, rows 2 to 8, of which both
    # rows of bins take the middle one.
    box = np.array([20, 36, 100, 132], np.float32)
    bins = anatomy.pool_bins(box, (160, 160), stride=16, size=2)
    left, right, upper, lower = (16, 64), (64, 112), (32, 96), (80, 144)
    expected = [
        [[x[0], y[0], x[1], y[1]] for x in (left, right)] for y in (upper, lower)
    ]
    np.testing.assert_array_equal(bins, expected)
    figure = anatomy.roi_pool_and_align(PICTURE, box, stride=16)
    assert "moved by\n-4, -4, +12, +12" in figure.axes[0].get_title()


def test_pooling_ends_with_the_map_and_leaves_bins_without_a_cell():
    box = np.array([20, 36, 100, 132], np.float32)
    bins = anatomy.pool_bins(box, (128, 160), stride=16, size=2)
    np.testing.assert_array_equal(bins[1, 0], [16, 80, 64, 128])
    beyond = np.array([0, 112, 16, 160], np.float32)  # rows 7 to 10, of 8
    bins = anatomy.pool_bins(beyond, (128, 160), stride=16, size=2)
    assert np.isnan(bins[1]).all() and not np.isnan(bins[0]).any()


@pytest.mark.parametrize("shift", [0.0, 4.5])
def test_align_reads_between_cells_and_moves_nothing(shift):
    box = np.array([16, 32, 80, 96], np.float32) + shift
    points = anatomy.align_points(box, (160, 160), stride=16, size=2, samples=2)
    x, y = np.meshgrid([24, 40, 56, 72], [40, 56, 72, 88])
    np.testing.assert_allclose(points, np.stack([x, y], axis=-1) + shift, atol=1e-4)


def test_cells_see_what_their_layers_add_up_to():
    figure = anatomy.receptive_fields(
        PICTURE, [(7, 2, 3), (3, 2, 1)], name="two layers"
    )
    (axes,) = figure.axes
    expected = ["stride 2: 7 x 7 pixels", "stride 4: 11 x 11 pixels"]
    assert texts_of(axes) == expected
    # The first centre is 0.5; cells 40 and 20 have theirs at 80.5.
    np.testing.assert_array_equal(boxes_in(axes, 0), [[77, 77, 84, 84]])
    np.testing.assert_array_equal(boxes_in(axes, 1), [[75, 75, 86, 86]])


def test_a_region_goes_to_cells_and_whole_cells_come_back():
    field, box = Field(size=16, stride=16, centre=8.0), np.array([24, 40, 72, 88.0])
    left, right = anatomy.projected_region(PICTURE, box, field, name="it").axes
    np.testing.assert_allclose(boxes_in(right, 0), [[1.5, 2.5, 4.5, 5.5]])
    np.testing.assert_allclose(boxes_in(right, 1), [[1, 2, 5, 6]])
    np.testing.assert_allclose(boxes_in(left, 0), box[None])
    np.testing.assert_allclose(boxes_in(left, 1), [[16, 32, 80, 96]])


def test_each_anchor_stands_in_the_panel_of_its_label():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 20, 20], [0, 0, 30, 30]], np.float32)
    flags = np.eye(3, dtype=bool)
    matches = Matches(np.zeros(3, np.int32), flags[0], flags[2], np.zeros(3))
    panels = anatomy.anchor_labels(PICTURE, boxes, matches, boxes[:1]).axes
    for axes, box, name in zip(
        panels, boxes, ("positive", "ignored", "negative"), strict=True
    ):
        np.testing.assert_array_equal(boxes_in(axes), box[None])
        np.testing.assert_array_equal(boxes_in(axes, 1), boxes[:1])
        assert axes.get_title() == f"{name}: 1 anchors"


def test_of_many_anchors_some_are_drawn():
    boxes = np.tile(np.array([[0, 0, 10, 10]], np.float32), (100, 1))
    negative = np.ones(100, bool)
    matches = Matches(np.zeros(100, np.int32), ~negative, negative, np.zeros(100))
    *_, axes = anatomy.anchor_labels(PICTURE, boxes, matches, boxes[:1]).axes
    assert len(boxes_in(axes)) == 34  # every third
    assert axes.get_title() == "negative: 100 anchors, 34 drawn"


def test_maps_lie_on_their_cells():
    maps = {3: np.arange(4).reshape(2, 2) / 4, 4: np.array([[0.5]])}
    _, fine, coarse, _ = anatomy.objectness(PICTURE, maps).axes
    for axes, scores in zip((fine, coarse), maps.values(), strict=True):
        np.testing.assert_array_equal(axes.images[-1].get_array(), scores)
        assert axes.images[-1].get_extent() == [0, 16, 16, 0]
    of_point = np.array([[[0.1, 0.2, 0.02]]])
    figure = anatomy.fcos_maps({4: of_point})
    drawn = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    np.testing.assert_array_equal(drawn, of_point.reshape(3, 1, 1))


def test_proposals_before_and_after_suppression():
    boxes = np.array([[0, 0, 9, 9], [1, 1, 9, 9], [20, 20, 30, 30]], np.float32)
    scores, kept = np.array([0.9, 0.8, 0.7]), np.array([0, 2])
    figure = anatomy.proposals(PICTURE, boxes, scores, kept, threshold=0.7)
    before, after, _ = figure.axes
    np.testing.assert_array_equal(boxes_in(before), boxes[::-1])  # the best on top
    np.testing.assert_array_equal(boxes_in(after), boxes[[2, 0]])
    np.testing.assert_array_equal(after.collections[0].get_array(), [0.7, 0.9])


def test_regions_go_to_levels_by_their_size():
    sides = np.array([100, 120, 250, 500], np.float32)  # 4 + log2(side / 224), floored
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=-1)
    chart, axes = anatomy.region_levels(PICTURE, boxes).axes
    counts = ["level 2: 1", "level 3: 1", "level 4: 1", "level 5: 1"]
    assert texts_of(chart) == ["rule", *counts]
    rule, *dots = (line.get_xydata() for line in chart.lines)
    np.testing.assert_array_equal(
        np.concatenate(dots), np.stack([sides, [2, 3, 4, 5]], 1)
    )
    expected = np.clip(np.floor(4 + np.log2(rule[:, 0] / 224)), 2, 5)
    assert np.mean(rule[:, 1] == expected) > 0.99  # but where it steps
    np.testing.assert_array_equal(boxes_in(axes, 0), boxes[:1])


def test_curves_of_the_focal_loss():
    (axes,) = anatomy.focal_curves((0.0, 2.0)).axes
    for line, gamma in zip(axes.lines, (0, 2), strict=True):
        right, loss = line.get_xydata().T
        np.testing.assert_allclose(
            loss, -((1 - right) ** gamma) * np.log(right), rtol=1e-4
        )


# Negatives with scores 0.05, 0.05 and 0.5; a positive one with 0.5.
SCORES, TARGETS = np.array([0.05, 0.05, 0.5, 0.5]), np.array([0, 0, 0, 1])
LOGITS = np.log(SCORES / (1 - SCORES)).astype(np.float32)


@pytest.mark.parametrize("gamma", [0, 2])
def test_shares_of_the_loss(gamma):
    easy = -2 * 0.05**gamma * np.log(0.95)
    hard = -(0.5**gamma) * np.log(0.5)
    shares = anatomy.shares_of_loss(LOGITS, TARGETS, gamma=gamma)
    expected = np.array([easy, hard, hard]) / (easy + 2 * hard)
    assert [*shares] == ["easy negatives", "hard negatives", "positives"]
    np.testing.assert_allclose([*shares.values()], expected, rtol=1e-5)


def test_bars_are_the_shares():
    (axes,) = anatomy.loss_shares(LOGITS, TARGETS, (0.0, 2.0)).axes
    widths = [[bar.get_width() for bar in part] for part in axes.containers]
    rows = [anatomy.shares_of_loss(LOGITS, TARGETS, gamma=gamma) for gamma in (0, 2)]
    expected = [[100 * share for share in row.values()] for row in rows]
    np.testing.assert_allclose(np.transpose(widths), expected)
    ends = [bar.get_x() + bar.get_width() for bar in axes.containers[-1]]
    np.testing.assert_allclose(ends, [100, 100])
    assert axes.get_title() == "4 answers, 1 of them should be yes"


def test_centerness_of_two_points_and_of_all():
    box = np.array([40, 40, 120, 120], np.float32)
    left, right, _ = anatomy.centerness(PICTURE, box, stride=16).axes
    # A quarter in: the near sides are a third of the far ones, across and down.
    assert texts_of(left) == ["centerness 1.00", "centerness 0.33"]
    np.testing.assert_allclose(boxes_in(left, 1), box[None])
    central = right.images[-1].get_array()
    assert central.shape == (10, 10) and central[2, 2] == 0  # (40, 40), on the corner
    np.testing.assert_allclose(central[4, 3], np.sqrt((32 / 48) * (16 / 64)))


def test_distances_make_boxes():
    points = np.array([[50.0, 60.0]])
    distances, scores = np.array([[10.0, 20.0, 30.0, 40.0]]), np.array([0.25])
    (axes,) = anatomy.fcos_distances(PICTURE, points, distances, scores).axes
    np.testing.assert_array_equal(boxes_in(axes), [[40, 40, 80, 100]])
    assert texts_of(axes) == ["score 0.25"]


def test_a_photo_comes_onto_its_canvas_with_its_objects():
    image = np.full((50, 100, 3), 7, np.uint8)
    boxes = np.array([[0, 0, 10, 10], [50, 0, 100, 50], [9, 9, 9, 30]], np.float32)
    objects = Objects(boxes, np.array([3, 4, 5], np.int32), np.zeros(3, bool))
    scene = anatomy.scene_of(image, INPUT, objects)
    assert scene.picture.shape == (32, 64, 3)
    np.testing.assert_allclose(scene.objects, 0.64 * boxes[[1, 0]])  # the larger first
    np.testing.assert_array_equal(scene.labels, [4, 3])
    scene = anatomy.scene_of(image, INPUT, None)
    np.testing.assert_array_equal(scene.objects, [[16, 8, 48, 24]])


def test_detectors_are_taken_apart():
    network, outputs = anatomy.take_apart(torchvision.of_coco("fcos_resnet50_fpn"))
    assert type(network) is FCOSNetwork and network.config.num_classes == 91
    np.testing.assert_array_equal(outputs, CATEGORY_IDS)
    head = region_head("float32")
    network, outputs = anatomy.take_apart(mask_rcnn(MASK_RCNN, BACKBONE, head))
    assert type(network) is FasterRCNNNetwork and outputs is None
    assert network.config == MASK_RCNN.faster_rcnn and network.backbone == BACKBONE
    assert anatomy.take_apart(rcnn(RCNNConfig(), BACKBONE, head)) == (None, None)


def test_without_a_network_the_rest_is_drawn(tmp_path, monkeypatch, capsys):
    def not_installed():
        raise WeightsError("pip install weights")

    photo = tmp_path / "photo.png"
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    Image.fromarray(noise).save(photo)
    monkeypatch.setattr(anatomy, "WITHOUT_NETWORK", INPUT)
    monkeypatch.setattr(anatomy.pretrained, "trained_ssd_mobilenet_v2", not_installed)
    anatomy.main(photo, output=tmp_path / "drawn")
    drawn = {file.stem for file in (tmp_path / "drawn").glob("*.jpg")}
    assert drawn == ALWAYS | {"anchors"}
    said = capsys.readouterr().out
    assert "without a trained network: pip install weights" in said
    assert all(f"left out {name}" in said for name in set(anatomy.IDEAS) - drawn)


def test_what_contradicts_itself_is_refused(tmp_path):
    with pytest.raises(DataError, match="one detector at a time"):
        anatomy.main(run=tmp_path, weights=tmp_path / "a.pth")
    with pytest.raises(DataError, match="--min-score is 2"):
        anatomy.main(min_score=2)


def fresh(detector):
    """A detector of two classes that has learned nothing, as if from a run folder."""
    image = np.zeros((64, 64, 3), np.uint8)
    batch = anatomy.scene_of(image, INPUT, None).batch
    variables = jax.jit(detector.init)(jax.random.key(1), batch)
    run = Run(
        recipe=detector.recipe,
        training=TrainingConfig(input=INPUT),
        class_names=("cat", "dog"),
        category_ids=(1, 2),
        data_set="pets",
        images=0,
        versions={},
    )
    return Trained(detector, variables, run)


RETINANET = RetinaNetConfig(
    num_classes=2,
    levels=(3, 4),
    anchor_sizes=((16.0,), (32.0,)),
    channels=8,
    head_depth=1,
    head_norm="group",
    prior=0.4,  # above --min-score: it finds something
)
RPN = RPNConfig(
    levels=(3, 4), anchor_sizes=((16.0,), (32.0,)), channels=8, fpn_norm="group"
)
FCOS = FCOSConfig(
    num_classes=2, levels=(3, 4), limits=(32.0,), channels=8, head_depth=1, prior=0.7
)
SSD = SSDConfig(
    num_classes=2, levels=(3, 4), steps=(8.0, 16.0), shapes=(((12, 12),), ((24, 24),))
)


@pytest.fixture
def drawn_by(tmp_path, monkeypatch):
    """What `main` draws with a fresh detector, its figures by name."""

    def draw(detector):
        figures = {}

        def save(drawn, file):
            figures[file.stem] = drawn
            to_file(drawn, file)
            assert file.stat().st_size < 200_000

        trained, to_file = fresh(detector), anatomy._save
        monkeypatch.setattr(anatomy, "_save", save)
        monkeypatch.setattr(anatomy.inference, "load_trained", lambda *_, **__: trained)
        noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "photo.png")
        anatomy.main(tmp_path / "photo.png", run=tmp_path, output=tmp_path)
        found = inference.detect_with(trained)(noise)
        return figures, found

    return draw


@pytest.mark.slow
def test_an_rpn_proposes_what_is_drawn(drawn_by):
    figures, found = drawn_by(rpn(RPN, BACKBONE))
    names = {"anchors", "objectness", "proposals", "detections"}
    assert figures.keys() == ALWAYS | names
    kept = boxes_in(figures["proposals"].axes[1])[::-1]
    np.testing.assert_allclose(kept, found.boxes[: len(kept)], atol=1e-3)
    maps = [axes.images[-1].get_array() for axes in figures["objectness"].axes[1:3]]
    assert [values.shape for values in maps] == [(6, 8), (3, 4)]  # 48 x 64 pixels
    assert max(map(np.max, maps)) == pytest.approx(found.scores[0])


@pytest.mark.slow
def test_an_fcos_says_what_is_drawn(drawn_by):
    figures, found = drawn_by(fcos(FCOS, BACKBONE))
    assert figures.keys() == ALWAYS | {"fcos_maps", "fcos_distances", "detections"}
    (axes,) = figures["fcos_distances"].axes
    best = boxes_in(axes)[0]
    np.testing.assert_allclose(np.clip(best, 0, (64, 48, 64, 48)), found.boxes[0])
    assert texts_of(axes)[0] == f"score {found.scores[0]:.2f}"
    scores = [part.images[0].get_array() for part in figures["fcos_maps"].axes[4:6]]
    assert max(map(np.max, scores)) == pytest.approx(found.scores[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("detector", "anchor_count"),
    [
        (retinanet(RETINANET, BACKBONE), 3 * (6 * 8 + 3 * 4)),
        (ssd(dataclasses.replace(SSD, scores="sigmoid"), BACKBONE), 6 * 8 + 3 * 4),
    ],
    ids=["retinanet", "ssd"],
)
def test_one_stage_shows_its_loss(detector, anchor_count, drawn_by):
    figures, _ = drawn_by(detector)
    assert figures.keys() == ALWAYS | {"anchors", "loss_shares", "detections"}
    counts = [
        int(axes.get_title().split()[1].replace(",", ""))
        for axes in figures["anchors"].axes
    ]
    assert sum(counts) == anchor_count
    positive, _, negative = counts
    (title,) = [axes.get_title() for axes in figures["loss_shares"].axes]
    judged = 2 * (positive + negative)
    assert title == f"{judged} answers, {positive} of them should be yes"
