"""FCOS: the laws, its losses and scores worked by hand, and torchvision's stages."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.config import Postprocessing
from jaxdet.detectors.fcos import TORCHVISION, FCOSConfig, fcos, loss, predict
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.ops import anchors, box_coding, matching
from jaxdet.ops import boxes as box_ops
from tests.conftest import GOLDEN
from tests.detectors import laws, scenes

SMALL = FCOSConfig(
    num_classes=3,
    levels=(3, 4),
    regression_ranges=(20.0,),
    channels=32,
    head_depth=1,
    postprocessing=Postprocessing(nms_threshold=0.6, max_detections=20),
)
PLAIN = dataclasses.replace(
    SMALL,
    center_radius=None,
    centerness_on="class",
    ltrb_activation="exp",
    box_loss="iou",
)


def small_fcos(dtype=jnp.float32, config=SMALL):
    backbone = ResNet(depth=10, width=16, norm="group", coarsest=4, dtype=dtype)
    return fcos(config, backbone)


class TestLaws(laws.DetectorLaws, detector=small_fcos, nms_threshold=0.6, steps=300):
    def test_prior_sets_the_first_scores(self, compiled):
        bias = compiled.variables["params"]["head"]["classes"]["bias"]
        np.testing.assert_allclose(jax.nn.sigmoid(bias), 0.01, rtol=1e-5)


@pytest.mark.slow
class TestLawsWithoutImprovements(
    laws.DetectorLaws,
    detector=partial(small_fcos, config=PLAIN),
    nms_threshold=0.6,
    steps=300,
):
    """The paper's exponentials and IoU loss obey them too."""


def constant_network(logits, sides, centerness):
    """A network of constant outputs, for tests of what is not learned."""
    return lambda pixels, sizes=None: (logits, sides, centerness)


# Four points, (16 or 48, 16 or 48), and all objects are theirs.
FOUR_POINTS = dataclasses.replace(
    SMALL, levels=(5,), regression_ranges=(), center_radius=None
)
UNDECIDED = constant_network(
    jnp.zeros((1, 4, 3)), jnp.full((1, 4, 4), 0.5), jnp.zeros((1, 4))
)


def metrics_of(box, network=UNDECIDED, **changes):
    config = dataclasses.replace(FOUR_POINTS, **changes)
    run = jax.jit(partial(loss, network, key=None, config=config))
    total, metrics = run(scenes.one_object(box))
    return float(total), {name: float(value) for name, value in metrics.items()}


def test_loss_worked_by_hand():
    # The first point is in the object, the third on its side: not in it.
    total, metrics = metrics_of([0, 0, 32, 48])
    # Scores of 1/2: the object's class costs .25 * (1/2)**2 * ln 2, each of the other
    # eleven class scores .75 * (1/2)**2 * ln 2; all over one point.
    expected = {
        "class_loss": (0.25 + 11 * 0.75) * 0.25 * np.log(2),
        # Half a stride to each side: (0, 0, 32, 32), two thirds of the object.
        "box_loss": 1 / 3,
        "centerness_loss": np.log(2),  # whatever the target, of a logit of 0
        "positives": 1.0,
    }
    assert metrics == pytest.approx(expected, rel=1e-5)
    assert total == pytest.approx(sum(expected.values()) - 1, rel=1e-5)
    heavy, _ = metrics_of([0, 0, 32, 48], box_weight=3.0)
    assert heavy == pytest.approx(total + 2 / 3, rel=1e-5)


def test_box_losses_worked_by_hand():
    box = [0, 0, 32, 48]
    _, metrics = metrics_of(box, box_loss="iou")
    assert metrics["box_loss"] == pytest.approx(np.log(1537 / 1025), rel=1e-5)
    _, metrics = metrics_of(box, box_loss="l2")
    assert metrics["box_loss"] == pytest.approx(0.25, rel=1e-5)  # half a stride short
    # Exponentials are pixels: 16 of them, and one, on the left and above.
    sides = jnp.full((1, 4, 4), np.log(16)).at[..., :2].set(0.0)
    network = constant_network(jnp.zeros((1, 4, 3)), sides, jnp.zeros((1, 4)))
    _, metrics = metrics_of(box, network, box_loss="l2", ltrb_activation="exp")
    expected = 2 * (15 / 32) ** 2 + 0.25
    assert metrics["box_loss"] == pytest.approx(expected, rel=1e-5)


def test_central_points_learn_the_box_most():
    # Two points: (16, 16), 44 above the lower side, and (16, 48), 12 above it.
    misses = 1 - np.array([32 * 32 / (32 * 60), 32 * 28 / (32 * 64)])  # GIoU is IoU
    central = np.sqrt([16 / 44, 12 / 48])
    _, metrics = metrics_of([0, 0, 32, 60])
    assert metrics["positives"] == 2
    expected = np.sum(misses * central) / np.sum(central)
    assert metrics["box_loss"] == pytest.approx(expected, rel=1e-5)
    _, metrics = metrics_of([0, 0, 32, 60], box_weighting="uniform")
    assert metrics["box_loss"] == pytest.approx(np.mean(misses), rel=1e-5)


def test_centerness_learns_its_target():
    central = np.sqrt([16 / 44, 12 / 48])
    logits = jnp.zeros((1, 4)).at[0, jnp.array([0, 2])].set(jnp.array([2.0, -1.0]))
    network = constant_network(jnp.zeros((1, 4, 3)), jnp.full((1, 4, 4), 0.5), logits)
    _, metrics = metrics_of([0, 0, 32, 60], network)
    said = 1 / (1 + np.exp([-2.0, 1.0]))
    entropy = -central * np.log(said) - (1 - central) * np.log(1 - said)
    assert metrics["centerness_loss"] == pytest.approx(np.mean(entropy), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "positives"),
    [
        # Farthest sides are 20 or 28 pixels from the 16 points of level 3, 24 from the
        # four of level 4, and 16 from the one of level 5.
        ({"regression_ranges": (26.0, 40.0)}, 4),
        ({"regression_ranges": (40.0, 50.0)}, 16),
        ({"regression_ranges": (40.0, 50.0), "center_radius": 1.0}, 4),
        ({"regression_ranges": (12.0, 24.0), "inclusive_ranges": True}, 4),
        ({"regression_ranges": (12.0, 24.0), "inclusive_ranges": False}, 0),
    ],
)
def test_levels_share_the_objects(changes, positives):
    changes = {"levels": (3, 4, 5), "center_radius": None, **changes}
    config = dataclasses.replace(SMALL, **changes)
    count = anchors.num_anchors((64, 64), levels=config.levels, per_cell=1)
    zeros = jnp.zeros((1, count))
    network = constant_network(
        jnp.zeros((1, count, 3)), jnp.zeros((1, count, 4)), zeros
    )
    run = jax.jit(partial(loss, network, key=None, config=config))
    assert run(scenes.one_object([0, 0, 32, 32]))[1]["positives"] == positives


@pytest.mark.parametrize("box_loss", ["l2", "iou", "giou"])
@pytest.mark.parametrize("activation", ["exp", "relu"])
def test_wild_predictions_have_finite_gradients(box_loss, activation):
    config = dataclasses.replace(
        FOUR_POINTS, box_loss=box_loss, ltrb_activation=activation
    )
    batch = scenes.one_object([0, 0, 32, 60])

    @jax.jit
    @jax.value_and_grad
    def total(sides):
        network = constant_network(jnp.zeros((1, 4, 3)), sides, jnp.zeros((1, 4)))
        return loss(network, batch, None, config=config)[0]

    for value in (-1e6, 0.0, 1e6):
        chex.assert_tree_all_finite(total(jnp.full((1, 4, 4), value)))


def logit(score):
    return np.log(score / (1 - score))


def detections_of(scores, centerness, sides, score_threshold=0.05, **changes):
    postprocessing = Postprocessing(
        score_threshold=score_threshold, nms_threshold=0.6, max_detections=3
    )
    config = dataclasses.replace(FOUR_POINTS, postprocessing=postprocessing, **changes)
    network = constant_network(
        jnp.asarray(logit(np.array(scores)), jnp.float32)[None],
        jnp.asarray(sides, jnp.float32)[None],
        jnp.asarray(logit(np.array(centerness)), jnp.float32)[None],
    )
    run = jax.jit(partial(predict, network, config=config))
    return jax.tree.map(lambda x: x[0], run(scenes.batch(counts=(1,))))


def test_predict_takes_the_best_and_clips():
    scores = np.full((4, 3), 0.01)
    scores[0, 2], scores[3, 1], scores[2, 0] = 0.8, 0.6, 0.04
    sides = np.full((4, 4), 0.5)
    sides[3] = [0.25, 0.5, 1.0, 0.25]  # right of (48, 48), beyond the image
    found = detections_of(scores, [0.5, 0.9, 0.9, 0.8], sides)
    np.testing.assert_allclose(
        found.boxes, [[40, 32, 64, 56], [0, 0, 32, 32], [0, 0, 0, 0]], atol=1e-4
    )
    np.testing.assert_array_equal(found.labels, [1, 2, 0])
    np.testing.assert_array_equal(found.valid, [True, True, False])
    np.testing.assert_allclose(found.scores, [0.48, 0.4, 0], rtol=1e-5)
    pixels = detections_of(
        scores,
        [0.5, 0.9, 0.9, 0.8],
        np.log([[4.0, 1, 2, 8]] * 4),
        ltrb_activation="exp",
    )
    np.testing.assert_allclose(pixels.boxes[1], [12, 15, 18, 24], rtol=1e-5)


def test_what_the_threshold_is_on():
    scores = np.full((4, 3), 0.01)
    scores[0, 0], scores[1, 0] = 0.06, 0.9
    sides, centerness = np.full((4, 4), 0.5), [0.5, 0.04, 0.5, 0.5]
    detect = partial(detections_of, scores, centerness, sides)
    found = detect()  # class scores above .05
    np.testing.assert_allclose(found.scores, [0.036, 0.03, 0], rtol=1e-5)
    found = detect(score="square_root")
    np.testing.assert_allclose(found.scores, [0.036**0.5, 0.03**0.5, 0], rtol=1e-5)
    # Of the square roots, .19 and .17.
    found = detect(score="square_root", threshold_on="score", score_threshold=0.18)
    np.testing.assert_allclose(found.scores, [0.036**0.5, 0, 0], rtol=1e-5)


@pytest.fixture(scope="module")
def golden():
    """What torchvision's `fcos_resnet50_fpn` computes for two images."""
    return dict(np.load(GOLDEN / "fcos_resnet50_fpn_s0.npz"))


CANVAS = (320, 352)  # that the two images are padded to


def torchvision_points():
    return anchors.cell_centers(
        CANVAS,
        levels=TORCHVISION.levels,
        offset=TORCHVISION.point_offset,
        rounded=TORCHVISION.point_rounded,
    )


def test_torchvisions_points(golden):
    squares = golden["eval/anchors/0"]
    centers = (squares[:, :2] + squares[:, 2:]) / 2
    np.testing.assert_array_equal(torchvision_points(), centers)


@pytest.mark.parametrize("image", [0, 1])
def test_torchvisions_matches(golden, image):
    height, width = golden["eval/transform/sizes"][image]
    old_height, old_width, _ = golden[f"in/image{image}"].shape
    scale = np.array([width / old_width, height / old_height] * 2, np.float32)
    boxes = golden[f"in/target{image}/boxes"] * scale
    strides = golden["eval/anchors/0"][:, 2] - golden["eval/anchors/0"][:, 0]
    index, positive = jax.jit(partial(matching.match_points, inclusive=False))(
        torchvision_points(),
        boxes,
        np.ones(len(boxes), bool),
        regression_ranges=np.stack(
            [
                np.where(strides == 8, 0, 4 * strides),
                np.where(strides == 128, np.inf, 8 * strides),
            ],
            axis=-1,
        ),
        center_radius=TORCHVISION.center_radius * strides,
    )
    expected = golden[f"train_frozen/matched_idxs/{image}"]
    np.testing.assert_array_equal(np.where(positive, index, -1), expected)
    assert TORCHVISION.regression_ranges == tuple(
        8 * s for s in sorted(set(strides))[:-1]
    )


def test_torchvisions_boxes(golden):
    strides = golden["eval/anchors/0"][:, 2:3] - golden["eval/anchors/0"][:, 0:1]
    sides = golden["eval/head/bbox_regression[::97]"][0]
    boxes = box_coding.decode_ltrb(sides * strides, torchvision_points())
    boxes = np.asarray(box_ops.clip(boxes, golden["eval/transform/sizes"][0]))
    # Each detection is the box of some point.
    found = golden["eval/det_resized/0/boxes"]
    errors = np.max(np.abs(found[:, None] - boxes[None]), axis=-1)
    np.testing.assert_array_less(np.min(errors, axis=1), 0.01)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"levels": (3, 4, 5)}, "regression_ranges is .* one number between each two"),
        ({"regression_ranges": (0.0,)}, r"regression_ranges is \(0.0,\); .* above 0"),
        ({"center_radius": 0.0}, "center_radius is 0.0; .* above 0, or None"),
    ],
)
def test_contradictions_are_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(SMALL, **change)
