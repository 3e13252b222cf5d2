"""Against torchvision itself: stage by stage, detections, losses and gradients."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.data.formats import coco
from jaxdet.detectors import faster_rcnn, rpn, ssd
from jaxdet.detectors.detector import Detector
from jaxdet.evaluation.evaluate import paste_masks, rescale_to_original
from jaxdet.nn import convolution
from jaxdet.ops import images, masks, matching
from jaxdet.structs import Batch, Detections, GroundTruth
from jaxdet.weights import detectors
from jaxdet.weights.state_dict import WeightsError
from tests.conftest import GOLDEN
from tests.golden import record_float64
from tests.weights.parity import (
    Parity,
    cut_from_whole_images,
    last,
    pyramid_anchors,
    sample_as_torchvision,
)

NO_OPTIMIZATION = {"xla_backend_optimization_level": 0}  # what runs only once
FAST = "retinanet_resnet50_fpn"
NAMES = [
    name for name, model in detectors.MODELS.items() if model.published.url is None
]  # the others are transformers'
MODELS = [
    name if name == FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in NAMES
]


@pytest.fixture(scope="module", params=MODELS)
def parity(request):
    return Parity(request.param)


@pytest.fixture
def two_stages(parity):
    if not parity.two_stages:
        pytest.skip("it proposes no regions")
    return parity


@pytest.fixture
def with_masks(two_stages):
    if not two_stages.masks:
        pytest.skip("it predicts no masks")
    return two_stages


@pytest.fixture
def with_anchors(parity):
    if not parity.has_anchors:
        pytest.skip("its points and default boxes have golden tests of their own")
    return parity


def assert_close(ours, theirs, tolerance=1e-4):
    """Relative to the largest entry."""
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours / scale, theirs / scale, rtol=0, atol=tolerance)


def test_1_pixels(parity):
    sizes = parity.golden["eval/transform/sizes"]
    np.testing.assert_array_equal(parity.batch.sizes, sizes)
    theirs = last(parity.golden["eval/transform/images[:, :, ::8, ::8]"])
    assert_close(parity.stages["pixels"][:, ::8, ::8], theirs, 1e-6)


def test_2_features(parity):
    keys = [key for key in parity.golden if key.startswith("eval/features/")]
    assert len(keys) in (5, 6)
    for level, key in enumerate(keys, start=2 if parity.two_stages else 3):
        theirs = last(parity.golden[key])
        assert_close(parity.stages["features"][level][..., :4], theirs)


def test_3_anchors_and_their_matches(with_anchors):
    parity, config = with_anchors, with_anchors.dense_config
    boxes = pyramid_anchors(config)
    np.testing.assert_array_equal(boxes, parity.golden["eval/anchors/0"])
    thresholds = {
        "negative_iou": config.negative_iou,
        "positive_iou": config.positive_iou,
    }
    for i in range(2):
        truth = jax.tree.map(lambda x, i=i: x[i], parity.batch.truth)
        ours = matching.match_by_iou(boxes, truth.boxes, truth.valid, **thresholds)
        if parity.two_stages:
            matches = np.where(ours.positive, 1, np.where(ours.negative, 0, -1))
            theirs = parity.golden[f"train_frozen/rpn/labels/{i}"]
        else:
            matches = np.where(ours.negative, -1, -2)
            matches = np.where(ours.positive, ours.gt_index, matches)
            theirs = parity.golden[f"train_frozen/matched_idxs/{i}"]
        np.testing.assert_array_equal(matches, theirs)


def test_4_dense_head(parity):
    logits, deltas, *centerness = parity.stages["outputs"]
    if parity.two_stages:
        assert_close(logits.reshape(2, -1, 1), parity.levels("objectness", 1))
        assert_close(deltas, parity.levels("deltas", 4))
        return
    theirs = parity.golden["eval/head/cls_logits[:, ::37]"]
    assert_close(logits[:, ::37], np.roll(theirs, -parity.first_id, axis=-1))
    if centerness:
        deltas = np.maximum(deltas, 0)  # torchvision's head ends with a ReLU
        theirs = parity.golden["eval/head/bbox_ctrness[:, ::37]"]
        assert_close(centerness[0][:, ::37, None], theirs)
    assert_close(deltas[::97], parity.golden["eval/head/bbox_regression[::97]"])


@functools.cache
def compiled_propose(config, training):
    """Compiled once for the models that propose alike."""
    return jax.jit(functools.partial(rpn.propose, config=config, training=training))


def test_5_proposals(two_stages):
    """From torchvision's own logits: with ours, some proposals depend on rounding."""
    golden = two_stages.golden
    outputs = two_stages.levels("objectness", 1), two_stages.levels("deltas", 4)
    for mode in ("eval", "train_frozen"):
        propose = compiled_propose(two_stages.dense_config, mode == "train_frozen")
        ours = jax.tree.map(np.asarray, propose(*outputs, two_stages.batch))
        for i in range(2):
            theirs = golden[f"{mode}/rpn/proposals/{i}"]
            scores = golden[f"{mode}/rpn/scores/{i}"]
            np.testing.assert_allclose(ours.scores[i], scores, atol=1e-6)
            # Equal scores may swap.
            pairs = paired(ours.boxes[i], ours.scores[i], theirs, scores)
            assert len(pairs) == len(theirs) == ours.valid[i].sum()
            boxes = ours.boxes[i][pairs[:, 0]]
            np.testing.assert_allclose(boxes, theirs[pairs[:, 1]], atol=1e-4)


def test_6_box_head(two_stages):
    golden, stages = two_stages.golden, two_stages.stages
    crops = last(golden["eval/roi/box_pool[::97, :16]"])
    assert_close(stages["crops"][-21:, ..., :16], crops)
    assert_close(stages["hidden"][-21:, :64], golden["eval/roi/box_head[::97, :64]"])
    classes = np.roll(golden["eval/roi/class_logits[::13]"], -1, axis=-1)
    assert_close(stages["classes"][:-21], classes)
    deltas = golden["eval/roi/box_regression[::97]"].reshape(-1, 91, 4)
    assert_close(stages["deltas"][-21:], deltas[:, 1:])


def test_7_mask_head(with_masks):
    theirs = last(with_masks.golden["eval/roi/mask_logits[::29, ::13]"])
    assert_close(with_masks.stages["mask_logits"][..., 12::13], theirs[..., 1:])


def paired(boxes, scores, other_boxes, other_scores, labels=None, other_labels=None):
    """Pairs of nearest boxes among those of one label and nearly one score."""
    free, pairs = np.ones(len(other_boxes), bool), []
    for index, (box, score) in enumerate(zip(boxes, scores, strict=True)):
        fits = free & (np.abs(other_scores - score) <= 1e-4)
        if labels is not None:
            fits &= other_labels == labels[index]
        if fits.any():
            distance = np.abs(other_boxes - box[None]).max(axis=1)
            pairs.append((index, np.where(fits, distance, np.inf).argmin()))
            free[pairs[-1][1]] = False
    return np.array(pairs)


def detections_beside_golden(parity, where):
    """Yields both sides' detections of each image, and which are the same."""
    detections = parity.stages["detections"]
    boxes = detections.boxes
    if where == "det":
        boxes = rescale_to_original(boxes, parity.batch.scales)
    for i in range(2):
        values = boxes, detections.scores, detections.labels
        boxes_i, scores, labels = (x[i][detections.valid[i]] for x in values)
        theirs, their_scores, their_labels = parity.detections(where, i)
        pairs = paired(boxes_i, scores, theirs, their_scores, labels, their_labels)
        yield boxes_i, theirs, pairs


@pytest.mark.parametrize("where", ["det_resized", "det"])
def test_8_detections(parity, where):
    for ours, theirs, pairs in detections_beside_golden(parity, where):
        assert len(ours) == len(theirs) == len(pairs)
        ours, theirs = ours[pairs[:, 0]], theirs[pairs[:, 1]]
        np.testing.assert_allclose(ours, theirs, atol=0.01)


def test_9_masks(with_masks):
    detections, golden = with_masks.stages["detections"], with_masks.golden
    found = detections_beside_golden(with_masks, "det")
    for i, (boxes, _, pairs) in enumerate(found):
        size = golden[f"in/image{i}"].shape[:2]
        ours = paste_masks(detections.masks[i][detections.valid[i]], boxes, size)
        theirs = np.unpackbits(golden[f"eval/det/{i}/masks>0.5, packbits"])
        theirs = theirs[: ours.size].reshape(ours.shape)
        assert np.mean(ours[pairs[:, 0]] != theirs[pairs[:, 1]]) < 1e-3


# What the parts of the loss are called in torchvision.
LOSSES = {
    "class_loss": ("classification", "loss_classifier"),
    "box_loss": ("bbox_regression", "loss_box_reg"),
    "centerness_loss": ("bbox_ctrness",),
    "objectness_loss": ("loss_objectness",),
    "rpn_box_loss": ("loss_rpn_box_reg",),
    "mask_loss": ("loss_mask",),
}


def assert_losses(parts, golden, place):
    for name, theirs in LOSSES.items():
        if name in parts:
            keys = [f"{place}/{key}" for key in theirs]
            (expected,) = (golden[key] for key in keys if key in golden)
            np.testing.assert_allclose(parts[name], expected, rtol=1e-4)


@pytest.mark.slow
def test_losses(parity, monkeypatch):
    batch = parity.batch
    if parity.two_stages:
        batch = sample_as_torchvision(parity, monkeypatch)

    def loss(variables, batch, features=None):
        if features is not None:  # those of test 2, not computed again
            network = faster_rcnn.FasterRCNNNetwork
            monkeypatch.setattr(network, "features", lambda *_: features)
        return parity.detector.loss(variables, batch, jax.random.key(0))

    features = [parity.stages["features"]] if parity.two_stages else []
    _, parts = jax.jit(loss)(parity.variables, batch, *features)
    assert_losses(parts, parity.golden, "train_frozen/loss")


@pytest.mark.slow
def test_gradients_in_float64(parity, monkeypatch):
    """In float32 they depend on rounding, torchvision's own too: see the recording."""
    name, golden = parity.name, np.load(GOLDEN / "float64.npz")
    given = record_float64.inputs(name)
    monkeypatch.setattr(images, "normalize", normalize_in_float64)
    monkeypatch.setattr(convolution, "convolve", convolve_in_float64)
    monkeypatch.setattr(masks, "crop_and_resize_masks", cut_from_whole_images)
    with jax.enable_x64(True):
        detector = in_float64(parity)
        truth = GroundTruth(
            boxes=given["boxes"][None],
            labels=given["labels"][None] - parity.first_id,
            valid=np.ones((1, 3), bool),
            crowd=np.zeros((1, 3), bool),
            masks=given["masks"][None],
        )
        size = np.array([given["image"].shape[:2]], np.int32)
        ones, ids = np.ones((1, 2), np.float32), np.zeros(1, np.int32)
        batch = Batch(given["image"][None], size, ones, ids, truth)

        def loss(variables, batch):
            return detector.loss(variables, batch, jax.random.key(0))

        variables = jax.tree.map(np.float64, parity.variables)
        gradient = jax.value_and_grad(loss, has_aux=True)
        gradient = jax.jit(gradient, compiler_options=NO_OPTIMIZATION)
        (_, parts), gradients = gradient(variables, batch)
    assert_losses(parts, golden, f"{name}/loss")
    gradients = detectors.export(gradients, name)
    names = [key for key in sorted(gradients) if "running" not in key]
    norms = [np.linalg.norm(gradients[key]) for key in names]
    np.testing.assert_allclose(norms, golden[f"{name}/grad_norm"], rtol=1e-4)


def in_float64(parity):
    """The detector, with the numbers of the recording."""
    config, box_config = parity.config, parity.box_config
    if parity.two_stages:
        numbers = record_float64.NUMBERS
        rpn_config = dataclasses.replace(
            box_config.rpn,
            batch_size_per_image=numbers["rpn_batch_size_per_image"],
            post_nms_topk_train=numbers["rpn_post_nms_top_n_train"],
        )
        heads_config = dataclasses.replace(
            box_config.roi_heads,
            batch_size_per_image=numbers["box_batch_size_per_image"],
            positive_fraction=numbers["box_positive_fraction"],
        )
        parts = {"rpn": rpn_config, "roi_heads": heads_config}
        config = dataclasses.replace(box_config, **parts)
        if parity.masks:
            config = dataclasses.replace(parity.config, faster_rcnn=config)
    make = detectors.MODELS[parity.name].make
    heads = {key: head.clone(dtype=jnp.float64) for key, head in make.keywords.items()}
    if parity.name == "ssd300_vgg16":
        backbone = ssd.vgg16_300(dtype=jnp.float64)
    else:
        backbone = parity.backbone.clone(dtype=jnp.float64)
    return make.func(config, backbone=backbone, **heads)


def normalize_in_float64(pixels, sizes, *, mean, std):
    shift, scale = (np.broadcast_to(x, pixels.shape) for x in (mean, std))
    return (pixels.astype(jnp.float64) / 255 - shift) / scale


def convolve_in_float64(x, kernel, stride=1, margins=(0, 0), dilation=1):
    """As one product of matrices: XLA's own is a thousand times slower on CPU."""
    reach = (len(kernel) - 1) * dilation
    x = jnp.pad(x, ((0, 0), margins, margins, (0, 0)))
    for axis in (1, 2):
        extent = x.shape[axis] - reach
        taps = [
            jax.lax.slice_in_dim(x, tap, tap + extent, stride, axis)
            for tap in range(0, reach + 1, dilation)
        ]
        x = jnp.concatenate(taps, axis=-1)
    kernel = kernel.swapaxes(0, 1).reshape(-1, kernel.shape[-1])  # columns outside
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


def test_back_and_there(parity):
    state = detectors.export(parity.variables, parity.name)
    for key, tensor in state.items():
        expected = parity.state[key]
        for unused, rows in (
            ("roi_heads.box_predictor.bbox_pred", 4),
            ("roi_heads.mask_predictor.mask_fcn_logits", 1),
        ):
            if unused in key:
                expected = expected.copy()
                expected[:rows] = 0  # of the background
        np.testing.assert_array_equal(tensor, expected, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_there_and_back(name):
    """Zeros of the right shapes, and the names and shapes of the golden files."""
    blank = Batch(np.zeros((1, 300, 300, 3), np.uint8), None, None, None)
    shapes = jax.eval_shape(detectors.build(name).init, jax.random.key(0), blank)
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)
    state = detectors.export(zeros, name)
    assert len(state) == len(jax.tree.leaves(shapes))
    assert detectors.recognize(state) == name
    weights = json.loads((GOLDEN / f"{name}_s0.json").read_text())["weights"]
    golden = {
        key: tuple(weight["shape"])
        for key, weight in weights.items()
        if not key.endswith(".num_batches_tracked")
    }
    assert {key: tensor.shape for key, tensor in state.items()} == golden


def test_checkpoints_of_something_else():
    tensors = detectors.MODELS["retinanet_resnet50_fpn"].network.tensors
    state = {tensor.theirs: np.zeros(0) for tensor in tensors}
    with pytest.raises(WeightsError, match=r"no model 'yolo'; allowed: retinanet"):
        detectors.load(state, "yolo")
    del state["backbone.body.conv1.weight"]
    with pytest.raises(WeightsError, match=r"nearest is .*fpn,.*body\.conv1\.weight"):
        detectors.load(state)


def test_classes_of_coco(data_folder):
    file = data_folder / "coco128/annotations/instances_val2017.json"
    categories = json.loads(file.read_text())["categories"]
    assert [c["id"] for c in categories] == list(coco.CATEGORY_IDS)
    assert [c["name"] for c in categories] == list(coco.CLASS_NAMES)


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "fasterrcnn_resnet50_fpn"])
def test_other_classes_than_cocos_are_discarded(monkeypatch, name):
    first_id = detectors.MODELS[name].first_id
    ids = np.array([[90, 12, 13, 1, 91]])  # toothbrush, nothing, stop sign, person
    found = Detections(
        boxes=np.arange(20.0).reshape(1, 5, 4),
        scores=np.array([[0.9, 0.8, 0.7, 0.6, 0.0]]),
        labels=np.clip(ids - first_id, 0, 90 - first_id),
        valid=np.array([[True, True, True, True, False]]),
    )
    toy = Detector(
        init=None,
        loss=lambda variables, batch, key, axis_name: batch.truth.labels,
        predict=lambda variables, batch: found,
        num_classes=91 - first_id,
    )
    monkeypatch.setattr(detectors, "build", lambda name: toy)
    detector = detectors.with_coco_labels(name)
    assert detector.num_classes == 80
    predicted = jax.jit(detector.predict)({}, None)
    np.testing.assert_array_equal(predicted.valid, [[True, True, True, False, False]])
    np.testing.assert_array_equal(predicted.labels, [[79, 11, 0, 0, 0]])
    np.testing.assert_allclose(predicted.scores, [[0.9, 0.7, 0.6, 0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(predicted.boxes[0, 1], found.boxes[0, 2])
    truth = GroundTruth(None, np.array([[79, 11, 0]]), None, None)
    labels = detector.loss({}, Batch(None, None, None, None, truth), None)
    np.testing.assert_array_equal(
        labels, [[90 - first_id, 13 - first_id, 1 - first_id]]
    )


def test_input_is_resized_as_torchvision_does():
    config = detectors.input_config("fasterrcnn_resnet50_fpn")
    assert config.min_max_size == (800, 1333) and config.float_pixels
    assert (800, 1088) in config.canvases  # of 640x480, a photograph
    fewer = detectors.input_config("fasterrcnn_resnet50_fpn", canvas_multiple=448)
    assert len(fewer.canvases) == 5
    config = detectors.input_config("ssd300_vgg16")
    assert config.canvases == ((300, 300),)
    assert not config.keep_aspect and config.float_pixels
