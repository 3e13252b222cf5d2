"""The command that draws the ideas of detection: which network has which."""

import jax
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from PIL import Image

from experiments.lecture import anatomy
from experiments.recipes import mask_rcnn_digits
from jaxdet.config import Anchors
from jaxdet.data.dataset import DataError, Objects
from jaxdet.data.formats.coco import CATEGORY_IDS
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.deformable_detr import deformable_detr
from jaxdet.detectors.detr import detr
from jaxdet.detectors.faster_rcnn import FasterRCNNNetwork
from jaxdet.detectors.fcos import FCOSConfig, FCOSNetwork, fcos
from jaxdet.detectors.mask_rcnn import mask_rcnn
from jaxdet.detectors.rcnn import RCNNConfig, rcnn
from jaxdet.detectors.retinanet import RetinaNetConfig, retinanet
from jaxdet.detectors.rpn import RPNConfig, rpn
from jaxdet.detectors.ssd import SSDConfig, ssd
from jaxdet.inference import load
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.weights import detectors
from jaxdet.weights.published import TrainedDetector
from jaxdet.weights.state_dict import WeightsError
from tests.detectors.test_deformable_detr import SMALL as SMALL_DEFORMABLE_DETR
from tests.detectors.test_detr import SMALL as SMALL_DETR

BACKBONE = ResNet(depth=10, width=8, norm="group", coarsest=4)
INPUT = InputConfig(canvases=((64, 64),))
ALWAYS = {"receptive_fields", "projected_region", "roi_pool_and_align", "levels"}
ALWAYS |= {"focal_curves", "centerness"}


def outlines_in(axes):
    """The boxes whose outlines were drawn first, `[N, 4]`."""
    outlines = [part for part in axes.collections if isinstance(part, LineCollection)]
    corners = np.array(outlines[0].get_segments())
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=-1)


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


def test_networks_of_detectors():
    network, outputs = anatomy.network_of(
        detectors.with_coco_labels("fcos_resnet50_fpn")
    )
    assert type(network) is FCOSNetwork and network.config.num_classes == 91
    np.testing.assert_array_equal(outputs, CATEGORY_IDS)
    config, (head,) = mask_rcnn_digits.RECIPE.detector, mask_rcnn_digits.RECIPE.heads
    network, outputs = anatomy.network_of(mask_rcnn(config, BACKBONE, head))
    assert type(network) is FasterRCNNNetwork and outputs is None
    assert network.config == config.faster_rcnn and network.backbone == BACKBONE
    assert anatomy.network_of(rcnn(RCNNConfig(), BACKBONE, head)) == (None, None)


def test_without_a_network_the_rest_is_drawn(tmp_path, monkeypatch, capsys):
    def not_installed():
        raise WeightsError("pip install weights")

    photo = tmp_path / "photo.png"
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    Image.fromarray(noise).save(photo)
    monkeypatch.setattr(anatomy, "WITHOUT_NETWORK", INPUT)
    monkeypatch.setattr(anatomy.published, "ssd_mobilenet_v2", not_installed)
    anatomy.main(photo, output=tmp_path / "drawn")
    drawn = {file.stem for file in (tmp_path / "drawn").glob("*.jpg")}
    assert drawn == ALWAYS | {"anchors"}
    assert "left out objectness" in capsys.readouterr().out


def test_what_contradicts_itself_is_refused(tmp_path):
    with pytest.raises(DataError, match="one detector at a time"):
        anatomy.main(run=tmp_path, weights=tmp_path / "a.pth")
    with pytest.raises(DataError, match="--min-score is 2"):
        anatomy.main(min_score=2)


def fresh(detector):
    """An untrained detector of two classes, as if from a run folder."""
    image = np.zeros((64, 64, 3), np.uint8)
    batch = anatomy.scene_of(image, INPUT, None).batch
    variables = jax.jit(detector.init)(jax.random.key(1), batch)
    classes = ("cat", "dog"), (1, 2)
    return TrainedDetector(detector, variables, INPUT, *classes, "pets")


RETINANET = RetinaNetConfig(
    num_classes=2,
    levels=(3, 4),
    anchors=Anchors(((16.0,), (32.0,))),
    channels=8,
    head_depth=1,
    head_norm="group",
    prior=0.4,  # above --min-score: it finds something
)
RPN = RPNConfig(
    levels=(3, 4),
    anchors=Anchors(((16.0,), (32.0,))),
    channels=8,
    fpn_norm="group",
)
FCOS = FCOSConfig(
    num_classes=2,
    levels=(3, 4),
    regression_ranges=(32.0,),
    channels=8,
    head_depth=1,
    prior=0.7,
)


SSD = SSDConfig(
    num_classes=2,
    levels=(3, 4),
    strides=(8.0, 16.0),
    default_box_sizes=(((12, 12),), ((24, 24),)),
    score_function="sigmoid",
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
        monkeypatch.setattr(load, "load_detector", lambda *_, **__: trained)
        noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "photo.png")
        anatomy.main(tmp_path / "photo.png", run=tmp_path, output=tmp_path)
        return figures, load.make_detect(trained)(noise)

    return draw


@pytest.mark.slow
def test_an_rpn_has_the_proposals_that_are_drawn(drawn_by):
    figures, detections = drawn_by(rpn(RPN, BACKBONE))
    names = {"anchors", "objectness", "proposals", "detections"}
    assert figures.keys() == ALWAYS | names
    kept = outlines_in(figures["proposals"].axes[1])[::-1]
    np.testing.assert_allclose(kept, detections.boxes[: len(kept)], atol=1e-3)
    maps = [axes.images[-1].get_array() for axes in figures["objectness"].axes[1:3]]
    assert [values.shape for values in maps] == [(6, 8), (3, 4)]  # 48 x 64 pixels
    assert max(map(np.max, maps)) == pytest.approx(detections.scores[0])


@pytest.mark.slow
def test_one_stage_shows_its_loss(drawn_by):
    figures, _ = drawn_by(retinanet(RETINANET, BACKBONE))
    assert figures.keys() == ALWAYS | {"anchors", "loss_shares", "detections"}
    counts = [
        int(axes.get_title().split()[1].replace(",", ""))
        for axes in figures["anchors"].axes
    ]
    assert sum(counts) == 3 * (6 * 8 + 3 * 4)
    positive, _, negative = counts
    (title,) = [axes.get_title() for axes in figures["loss_shares"].axes]
    used = 2 * (positive + negative)
    assert title == f"{used} logits, {positive} of them positive"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("detector", "names"),
    [
        (fcos(FCOS, BACKBONE), {"fcos_maps"}),
        (ssd(SSD, BACKBONE), {"anchors", "loss_shares"}),
        (detr(SMALL_DETR, BACKBONE), {"attention"}),
    ],
    ids=["fcos", "ssd", "detr"],
)
def test_others_of_one_stage(detector, names, drawn_by):
    figures, _ = drawn_by(detector)
    assert figures.keys() == ALWAYS | names | {"detections"}


@pytest.mark.slow
def test_a_deformable_detr_samples_points_around_its_boxes():
    """At first: those of one head on the right of the center, of the other left."""
    trained = fresh(deformable_detr(SMALL_DEFORMABLE_DETR, BACKBONE))
    network, _ = anatomy.network_of(trained.detector)
    scene = anatomy.scene_of(np.zeros((48, 64, 3), np.uint8), INPUT, None)
    outputs = anatomy.forward(network, trained.variables, scene.batch)
    drawn = anatomy._KINDS[type(network)](scene, network.config, outputs)
    *panels, _ = drawn["sampling_points"].axes
    assert len(panels) == 4
    for axes in panels:
        box = outlines_in(axes)[0]
        center, extent = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
        np.testing.assert_allclose(extent, np.array([64, 48]) / (1 + np.exp(2)), 1e-4)
        np.testing.assert_allclose(np.ravel(axes.lines[0].get_data()), center, 1e-4)
        dots = axes.collections[1].get_offsets()
        steps = np.repeat([-1 / 2, -1 / 4, 1 / 4, 1 / 2], 2)  # on both levels
        across = center[0] + steps * extent[0]
        np.testing.assert_allclose(np.sort(dots[:, 0]), across, 1e-4)
        np.testing.assert_allclose(dots[:, 1], center[1], 1e-4)
