"""Against torchvision itself: stage by stage, what it finds, how it learns."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.data import transforms
from jaxdet.data.formats import coco
from jaxdet.detectors import (
    faster_rcnn,
    fcos,
    mask_rcnn,
    retinanet,
    roi_heads,
    rpn,
    ssd,
)
from jaxdet.detectors.detector import Detector, preprocess
from jaxdet.evaluation.evaluate import paste_masks, rescale_to_original
from jaxdet.nn import layers
from jaxdet.nn.heads import MaskHead
from jaxdet.ops import anchors, images, masks, matching, roi_align, sampling
from jaxdet.structs import Batch, Detections, GroundTruth
from jaxdet.weights import torchvision
from jaxdet.weights.state_dict import WeightsError
from tests.conftest import GOLDEN
from tests.golden import record_float64, replay

CANVAS = (320, 352)  # both images fit
HASTE = {"xla_backend_optimization_level": 0}  # what is compiled runs only once
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
MODELS = [
    "retinanet_resnet50_fpn",
    slow("retinanet_resnet50_fpn_v2"),
    slow("fcos_resnet50_fpn"),
    slow("ssd300_vgg16"),
    slow("fasterrcnn_resnet50_fpn"),
    slow("fasterrcnn_resnet50_fpn_v2"),
    slow("maskrcnn_resnet50_fpn"),
    slow("maskrcnn_resnet50_fpn_v2"),
]


class Parity:
    """A model with golden weights; what it computes is computed once."""

    def __init__(self, name):
        self.name = name
        self.state, self.golden, self.about = replay.load(GOLDEN / f"{name}_s0.npz")
        self.variables = torchvision.load(self.state)
        model = torchvision.MODELS[name]
        self.canvas, self.backbone, self.epsilon = CANVAS, model.backbone, None
        if model.canvas is None:  # a ResNet's; all golden ones have this
            self.backbone, self.epsilon = self.backbone.clone(epsilon=1e-5), 1e-5
            sizes = self.about["min_size"], self.about["max_size"]
            self.rule = {"min_max_size": sizes}
        else:
            self.canvas, self.rule = model.canvas, {"keep_aspect": False}
        self.detector = torchvision.build(name, epsilon=self.epsilon)
        self.first_id = torchvision.MODELS[name].first_id
        config, *_ = model.make.args
        self.two_stages = "rcnn" in name
        self.masks = name.startswith("maskrcnn")
        self.boxes_config = config.faster_rcnn if self.masks else config
        self.config = config

    @functools.cached_property
    def batch(self):
        pixels = np.zeros((2, *self.canvas, 3), np.float32)
        sizes, scales, boxes, labels = [], [], [], []
        for i, canvas in enumerate(pixels):
            image, target = self.golden[f"in/image{i}"], f"in/target{i}"
            example = transforms.Example(
                image,
                self.golden[f"{target}/boxes"],
                self.golden[f"{target}/labels"],
                (),
            )
            example, scale = transforms.resize_to_canvas(
                example, self.canvas, **self.rule, out=canvas
            )
            size = image.shape[:2]
            sizes.append(transforms.fitted_size(size, self.canvas, **self.rule))
            scales.append(scale)
            boxes.append(example.boxes)
            labels.append(example.labels - self.first_id)
        there = np.ones(np.shape(labels), bool)
        truth = GroundTruth(np.array(boxes), np.array(labels), there, ~there)
        ids = np.arange(2, dtype=np.int32)
        return Batch(pixels, np.array(sizes, np.int32), np.array(scales), ids, truth)

    @property
    def one_stage(self):
        """Its `predict`, and its network."""
        return ONE_STAGE[self.name.split("_")[0]]

    @functools.cached_property
    def network(self):
        head = torchvision.MODELS[self.name].make.keywords.get("box_head")
        backbone = self.backbone
        if not self.two_stages:
            return self.one_stage[1](self.config, backbone)
        mask_head = None
        if self.masks:
            mask_head = MaskHead(90, norm=self.config.mask_norm)
        return faster_rcnn.FasterRCNNNetwork(
            self.boxes_config, backbone, head, mask_head
        )

    @functools.cached_property
    def stages(self):
        """All that lies between pixels and answers, by name."""
        run = _two_stages if self.two_stages else _one_stage
        run = jax.jit(nn.apply(functools.partial(run, parity=self), self.network))
        found = run(self.variables, self.batch)
        return jax.tree.map(np.asarray, found)

    def regions_asked(self):
        """Of torchvision's proposals those that the file tells more about, `[R, 4]`."""
        boxes = np.concatenate([self.golden[f"eval/rpn/proposals/{i}"] for i in (0, 1)])
        which = np.repeat([0, 1], 1000)
        return [
            np.concatenate([values[::13], values[::97]]) for values in (boxes, which)
        ]

    def found_boxes(self):
        """Torchvision's answers, `[D, 4]`, their images and their labels here."""
        parts = [
            [self.golden[f"eval/det_resized/{i}/{k}"] for i in (0, 1)]
            for k in ("boxes", "labels")
        ]
        which = np.repeat([0, 1], [len(boxes) for boxes in parts[0]])
        boxes, labels = map(np.concatenate, parts)
        return boxes, which, labels - self.first_id


ONE_STAGE = {
    "retinanet": (retinanet.predict, retinanet.RetinaNetNetwork),
    "fcos": (fcos.predict, fcos.FCOSNetwork),
    "ssd300": (ssd.predict, ssd.SSDNetwork),
}


def _one_stage(network, batch, parity):
    config = parity.config
    pixels, _ = preprocess(batch, config.preprocessing)
    features = network.backbone(pixels)
    outputs = network(pixels)
    if parity.name.startswith("ssd"):
        levels = [[maps[level] for level in config.levels] for maps in outputs]
        outputs = [
            jnp.concatenate([x.reshape(2, -1, x.shape[-1]) for x in maps], axis=1)
            for maps in levels
        ]
    else:
        features = network.fpn(features)
    return {
        "pixels": pixels,
        "features": features,
        "outputs": outputs,
        "found": parity.one_stage[0](network, batch, config=config),
    }


def _two_stages(network, batch, parity):
    config = parity.boxes_config
    pixels, _ = preprocess(batch, config.rpn.preprocessing)
    pyramid = network.features(pixels)
    objectness, deltas = network.rpn_head(pyramid)
    answer = {"pixels": pixels, "features": pyramid}
    answer |= {"logits": objectness, "deltas": deltas}
    boxes, which = parity.regions_asked()
    crops = _cut(pyramid, boxes, which, config, size=None)
    answer["crops"] = crops
    answer["hidden"] = network.box_head(crops)
    answer["classes"], answer["moves"] = network.box_predictor(answer["hidden"])
    predict = mask_rcnn.predict if parity.masks else faster_rcnn.predict
    answer["found"] = predict(network, batch, config=parity.config)
    if parity.masks:
        boxes, which, _ = parity.found_boxes()
        crops = _cut(pyramid, boxes[::29], which[::29], config, size=14)
        answer["mask_logits"] = network.mask_head(crops)
    return answer


def _cut(pyramid, boxes, which, config, *, size):
    """Of regions `[R, 4]`, each of one of the two images."""
    boxes = jnp.stack([boxes] * 2)
    both = roi_heads.pool(pyramid, boxes, None, config.pooler, size)
    return both[which, jnp.arange(len(which))]


@pytest.fixture(scope="module", params=MODELS)
def parity(request):
    return Parity(request.param)


@pytest.fixture
def two_stages(parity):
    if not parity.two_stages:
        pytest.skip("it proposes no regions")
    return parity


def assert_close(ours, theirs, tolerance):
    """Relative to the largest entry."""
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours / scale, theirs / scale, rtol=0, atol=tolerance)


def last(values):
    """NCHW to NHWC."""
    return np.moveaxis(values, 1, -1)


def test_1_pixels(parity):
    sizes = parity.golden["eval/transform/sizes"]
    np.testing.assert_array_equal(parity.batch.sizes, sizes)
    theirs = last(parity.golden["eval/transform/images[:, :, ::8, ::8]"])
    assert_close(parity.stages["pixels"][:, ::8, ::8], theirs, 1e-6)


def test_2_features(parity):
    finest = 2 if parity.two_stages else 3
    keys = [key for key in parity.golden if key.startswith("eval/features/")]
    assert len(keys) in (5, 6)
    for level, key in enumerate(keys, start=finest):
        theirs = last(parity.golden[key])
        assert_close(parity.stages["features"][level][..., :4], theirs, 1e-4)


def test_3_anchors(parity):
    if not has_anchors(parity):
        pytest.skip("its points and default boxes have golden tests of their own")
    config = parity.boxes_config.rpn if parity.two_stages else parity.config
    ours = pyramid_anchors(config)
    np.testing.assert_array_equal(ours, parity.golden["eval/anchors/0"])


def pyramid_anchors(config):
    return anchors.pyramid_anchors(CANVAS, levels=config.levels, **vars(config.anchors))


def has_anchors(parity):
    return parity.two_stages or parity.name.startswith("retinanet")


def test_4_dense_head(parity):
    if parity.two_stages:
        for ours, name, count in (("logits", "objectness", 1), ("deltas", "deltas", 4)):
            levels = [parity.golden[f"eval/rpn/{name}/{level}"] for level in range(5)]
            theirs = [last(level).reshape(2, -1, count) for level in levels]
            assert_close(parity.stages[ours], np.concatenate(theirs, axis=1), 1e-4)
        return
    logits, sides, *centerness = parity.stages["outputs"]
    theirs = parity.golden["eval/head/cls_logits[:, ::37]"]
    theirs = np.roll(theirs, -parity.first_id, axis=-1)
    assert_close(logits[:, ::37], theirs, 1e-4)
    if centerness:
        sides = np.maximum(sides, 0)  # what it hands on
        theirs = parity.golden["eval/head/bbox_ctrness[:, ::37]"]
        assert_close(centerness[0][:, ::37, None], theirs, 1e-4)
    theirs = parity.golden["eval/head/bbox_regression[::97]"]
    assert_close(sides[::97], theirs, 1e-4)


@functools.cache
def proposing(config, training):
    """Compiled once for the models that propose alike."""
    return jax.jit(functools.partial(rpn.propose, config=config, training=training))


def test_5_proposals(two_stages):
    """All of them, of torchvision's own logits: of ours, some hang on rounding."""
    golden, config = two_stages.golden, two_stages.boxes_config.rpn
    objectness, deltas = (
        jnp.concatenate(
            [
                last(golden[f"eval/rpn/{name}/{level}"]).reshape(2, -1, count)
                for level in range(5)
            ],
            axis=1,
        )
        for name, count in (("objectness", 1), ("deltas", 4))
    )
    for mode in ("eval", "train_frozen"):
        propose = proposing(config, mode == "train_frozen")
        ours = propose(objectness, deltas, two_stages.batch)
        for i in range(2):
            theirs = golden[f"{mode}/rpn/proposals/{i}"]
            scores = golden[f"{mode}/rpn/scores/{i}"]
            boxes, our_scores = np.asarray(ours.boxes[i]), np.asarray(ours.scores[i])
            np.testing.assert_allclose(our_scores, scores, atol=1e-6)
            pairs = paired(boxes, our_scores, theirs, scores)  # equal scores may swap
            assert len(pairs) == len(theirs) == ours.valid[i].sum()
            np.testing.assert_allclose(
                boxes[pairs[:, 0]], theirs[pairs[:, 1]], atol=1e-4
            )


def test_6_regions(two_stages):
    golden, stages = two_stages.golden, two_stages.stages
    classes, rest = stages["classes"][:-21], stages["moves"][-21:]
    crops = stages["crops"][-21:, ..., :16]
    assert_close(crops, last(golden["eval/roi/box_pool[::97, :16]"]), 1e-4)
    theirs = golden["eval/roi/box_head[::97, :64]"]
    assert_close(stages["hidden"][-21:, :64], theirs, 1e-4)
    theirs = np.roll(golden["eval/roi/class_logits[::13]"], -1, axis=-1)
    assert_close(classes, theirs, 1e-4)
    theirs = golden["eval/roi/box_regression[::97]"].reshape(-1, 91, 4)[:, 1:]
    assert_close(rest, theirs, 1e-4)


def test_7_masks_of_regions(two_stages):
    if not two_stages.masks:
        pytest.skip("it finds no masks")
    theirs = last(two_stages.golden["eval/roi/mask_logits[::29, ::13]"])
    assert_close(two_stages.stages["mask_logits"][..., 12::13], theirs[..., 1:], 1e-4)


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


def test_8_detections(parity):
    found, golden = parity.stages["found"], parity.golden
    boxes = rescale_to_original(found.boxes, parity.batch.scales)
    for i in range(2):
        for ours, where in ((found.boxes, "det_resized"), (boxes, "det")):
            there = found.valid[i]
            ours, scores = ours[i][there], found.scores[i][there]
            labels = found.labels[i][there] + parity.first_id
            theirs, their_scores, their_labels = (
                golden[f"eval/{where}/{i}/{key}"]
                for key in ("boxes", "scores", "labels")
            )
            assert len(ours) == len(theirs)
            pairs = paired(ours, scores, theirs, their_scores, labels, their_labels)
            assert len(pairs) == len(theirs)
            np.testing.assert_allclose(
                ours[pairs[:, 0]], theirs[pairs[:, 1]], atol=0.01
            )


def test_9_masks(two_stages):
    if not two_stages.masks:
        pytest.skip("it finds no masks")
    found, golden = two_stages.stages["found"], two_stages.golden
    boxes = rescale_to_original(found.boxes, two_stages.batch.scales)
    for i in range(2):
        there, size = found.valid[i], golden[f"in/image{i}"].shape[:2]
        ours = paste_masks(found.masks[i][there], boxes[i][there], size)
        theirs = np.unpackbits(golden[f"eval/det/{i}/masks>0.5, packbits"])
        theirs = theirs[: ours.size].reshape(ours.shape)
        keys = "boxes", "scores", "labels"
        answers = [golden[f"eval/det/{i}/{key}"] for key in keys]
        labels = found.labels[i][there] + two_stages.first_id
        pairs = paired(
            boxes[i][there],
            found.scores[i][there],
            *answers[:2],
            labels,
            answers[2],
        )
        assert np.mean(ours[pairs[:, 0]] != theirs[pairs[:, 1]]) < 1e-3


# What the parts of the loss are called there.
LOSSES = {
    "class_loss": ("classification", "loss_classifier"),
    "box_loss": ("bbox_regression", "loss_box_reg"),
    "centerness_loss": ("bbox_ctrness",),
    "objectness_loss": ("loss_objectness",),
    "rpn_box_loss": ("loss_rpn_box_reg",),
    "mask_loss": ("loss_mask",),
}


def test_matches_of_anchors(parity):
    if not has_anchors(parity):
        pytest.skip("its points and default boxes have golden tests of their own")
    config = parity.boxes_config.rpn if parity.two_stages else parity.config
    boxes = pyramid_anchors(config)
    thresholds = {
        "negative_iou": config.negative_iou,
        "positive_iou": config.positive_iou,
    }
    for i in range(2):
        truth = jax.tree.map(lambda x, i=i: x[i], parity.batch.truth)
        ours = matching.match_by_iou(boxes, truth.boxes, truth.valid, **thresholds)
        if parity.two_stages:
            answer = np.where(ours.positive, 1, np.where(ours.negative, 0, -1))
            theirs = parity.golden[f"train_frozen/rpn/labels/{i}"]
        else:
            answer = np.where(ours.negative, -1, -2)
            answer = np.where(ours.positive, ours.gt_index, answer)
            theirs = parity.golden[f"train_frozen/matched_idxs/{i}"]
        np.testing.assert_array_equal(answer, theirs)


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


def assert_losses(parts, golden, place):
    for name, theirs in LOSSES.items():
        if name in parts:
            (expected,) = (
                golden[f"{place}/{key}"] for key in theirs if f"{place}/{key}" in golden
            )
            np.testing.assert_allclose(parts[name], expected, rtol=1e-4)


def test_gradients_in_float64(parity, monkeypatch):
    """In float32 they hang on rounding, torchvision's own too: see the recording."""
    name, golden = parity.name, np.load(GOLDEN / "float64.npz")
    given = record_float64.inputs(name)
    monkeypatch.setattr(images, "normalize", normalise_in_float64)
    monkeypatch.setattr(layers, "convolve", convolve_in_float64)
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
        gradient = jax.jit(gradient, compiler_options=HASTE)
        (_, parts), gradients = gradient(variables, batch)
    assert_losses(parts, golden, f"{name}/loss")
    gradients = torchvision.export(gradients, name)
    names = [key for key in sorted(gradients) if "running" not in key]
    norms = [np.linalg.norm(gradients[key]) for key in names]
    np.testing.assert_allclose(norms, golden[f"{name}/grad_norm"], rtol=1e-4)


def in_float64(parity):
    """The detector, with the numbers of the recording."""
    numbers = record_float64.NUMBERS

    def sampling_all(config):
        if hasattr(config, "faster_rcnn"):
            boxes = sampling_all(config.faster_rcnn)
            return dataclasses.replace(config, faster_rcnn=boxes)
        rpn_config = dataclasses.replace(
            config.rpn,
            batch_size_per_image=numbers["rpn_batch_size_per_image"],
            post_nms_topk_train=numbers["rpn_post_nms_top_n_train"],
        )
        heads_config = dataclasses.replace(
            config.roi_heads,
            batch_size_per_image=numbers["box_batch_size_per_image"],
            positive_fraction=numbers["box_positive_fraction"],
        )
        return dataclasses.replace(config, rpn=rpn_config, roi_heads=heads_config)

    config = sampling_all(parity.config) if parity.two_stages else parity.config
    make = torchvision.MODELS[parity.name].make
    parts = {key: part.clone(dtype=jnp.float64) for key, part in make.keywords.items()}
    if parity.name == "ssd300_vgg16":
        backbone = ssd.vgg16_300(dtype=jnp.float64)
    else:
        backbone = parity.backbone.clone(dtype=jnp.float64)
    return make.func(config, backbone=backbone, **parts)


def normalise_in_float64(pixels, sizes, *, mean, std):
    shift, scale = (np.broadcast_to(x, pixels.shape) for x in (mean, std))
    return (pixels.astype(jnp.float64) / 255 - shift) / scale


def convolve_in_float64(x, kernel, stride, margins, dilation=1):
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


def cut_from_whole_images(masks, boxes, regions, index, *, output_size):
    """torchvision's targets, `[N, H, W]` -> `[R, S, S]`; ours see boxes alone."""

    def cut(mask, region):
        return roi_align.roi_align(
            mask[..., None].astype(jnp.float32),
            region[None],
            stride=1,
            output_size=output_size,
            sampling_ratio=0,
            aligned=False,
        )[0, ..., 0]

    return jax.vmap(cut)(masks[index], regions)


def sample_as_torchvision(parity, monkeypatch):
    """Feeds the anchors and regions that it drew; the batch, with its masks."""
    golden, batch = parity.golden, parity.batch
    draws = [
        np.stack([golden[f"train_frozen/rpn/{sign}_mask/{i}"] for i in range(2)]) > 0
        for sign in ("pos", "neg")
    ]

    def keys(key, image_ids, count):
        return (jnp.arange(len(image_ids)),) * count

    def balanced_subset(key, identity, positive, negative, **options):
        positive, negative = (jnp.asarray(draw)[key] for draw in draws)
        index = jnp.argsort(~(positive | negative))[: options["size"]]
        return sampling.Subset(index, positive[index], (positive | negative)[index])

    drawn = [
        np.stack([golden[f"train_frozen/roi/{key}/{i}"] for i in range(2)])
        for key in ("proposals", "labels", "matched_idxs")
    ]
    order = np.argsort(drawn[1] == 0, axis=1, kind="stable")  # positive ones first
    boxes, labels, objects = (
        np.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 2)), axis=1)
        for x in drawn
    )
    samples = roi_heads.SampledRoIs(
        boxes=jnp.asarray(boxes),
        labels=jnp.where(labels > 0, labels - 1, 90),
        gt_index=jnp.asarray(objects),
        gt_boxes=jax.vmap(lambda values, index: values[index])(
            batch.truth.boxes, objects
        ),
        positive=jnp.asarray(labels > 0),
        valid=jnp.ones(labels.shape, bool),
    )
    monkeypatch.setattr(sampling, "image_keys", keys)
    monkeypatch.setattr(sampling, "balanced_subset", balanced_subset)
    monkeypatch.setattr(roi_heads, "sample_rois", lambda *args, **options: samples)
    if not parity.masks:
        return batch
    whole = np.stack([masks_on_canvas(parity, i) for i in range(2)])
    monkeypatch.setattr(masks, "crop_and_resize_masks", cut_from_whole_images)
    return batch.replace(truth=batch.truth.replace(masks=whole))


def masks_on_canvas(parity, i):
    """Resized as torchvision does it; beyond the image its border goes on."""
    whole = parity.golden[f"in/target{i}/masks"]
    size = parity.batch.sizes[i]
    rows, columns = (
        np.floor(np.arange(new) * np.float32(old / new)).astype(int)
        for old, new in zip(whole.shape[1:], size, strict=True)
    )
    margins = [(0, 0), *((0, n) for n in np.array(parity.canvas) - size)]
    return np.pad(whole[:, rows][:, :, columns], margins, mode="edge")


def test_back_and_there(parity):
    state = torchvision.export(parity.variables, parity.name)
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


@pytest.mark.parametrize("name", torchvision.MODELS)
def test_every_variable_there_and_back(name):
    """Zeros of the right shapes, and the names and shapes of the golden files."""
    blank = Batch(np.zeros((1, 300, 300, 3), np.uint8), None, None, None)
    shapes = jax.eval_shape(torchvision.build(name).init, jax.random.key(0), blank)
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)
    state = torchvision.export(zeros, name)
    assert len(state) == len(jax.tree.leaves(shapes))
    assert torchvision.recognize(state) == name
    weights = json.loads((GOLDEN / f"{name}_s0.json").read_text())["weights"]
    golden = {
        key: tuple(weight["shape"])
        for key, weight in weights.items()
        if not key.endswith(".num_batches_tracked")
    }
    assert {key: tensor.shape for key, tensor in state.items()} == golden


def names_of(name):
    return {t.theirs: np.zeros(0) for t in torchvision.MODELS[name].network.tensors}


def test_checkpoints_of_something_else(rng):
    name = "retinanet_resnet50_fpn"
    state = names_of(name)
    del state["backbone.body.conv1.weight"]
    with pytest.raises(WeightsError, match=r"nearest is .*fpn,.*body\.conv1\.weight"):
        torchvision.load(state)
    state["backbone.body.conv0.weight"] = np.zeros(0)
    message = r"(?s)2 tensors .*conv1\.weight is missing.*conv0\.weight is left over"
    with pytest.raises(WeightsError, match=message):
        torchvision.load(state, name)
    state["backbone.body.conv1.weight"] = state.pop("backbone.body.conv0.weight")
    needed = r"conv1\.weight has shape \(0,\), \(64, 3, 7, 7\) is needed"
    with pytest.raises(WeightsError, match=needed):
        torchvision.load(state)
    with pytest.raises(WeightsError, match=r"no model 'yolo'; allowed: retinanet"):
        torchvision.load(state, "yolo")
    with pytest.raises(
        WeightsError, match=r"variables do not fit .*constants/backbone"
    ):
        torchvision.export({"params": {"head": {"kernel": np.zeros(3)}}}, name)


def test_its_first_checkpoints_have_no_epsilon():
    for name, epsilon in (
        ("fasterrcnn_resnet50_fpn", 0.0),
        ("retinanet_resnet50_fpn_v2", 1e-5),
    ):
        recipe = torchvision.build(name).recipe
        (backbone,) = (
            part
            for part in [*recipe["arguments"], *recipe.get("keywords", {}).values()]
            if isinstance(part, dict) and part["call"].endswith(":ResNet")
        )
        assert backbone["keywords"]["epsilon"] == epsilon


def test_classes_of_coco(data_folder):
    file = data_folder / "coco128/annotations/instances_val2017.json"
    categories = json.loads(file.read_text())["categories"]
    assert [c["id"] for c in categories] == list(coco.CATEGORY_IDS)
    assert [c["name"] for c in categories] == list(coco.CLASS_NAMES)


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "fasterrcnn_resnet50_fpn"])
def test_other_classes_than_cocos_are_discarded(monkeypatch, name):
    first_id = torchvision.MODELS[name].first_id
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
    monkeypatch.setattr(torchvision, "build", lambda name: toy)
    detector = torchvision.with_coco_labels(name)
    assert detector.num_classes == 80
    answer = jax.jit(detector.predict)({}, None)
    np.testing.assert_array_equal(answer.valid, [[True, True, True, False, False]])
    np.testing.assert_array_equal(answer.labels, [[79, 11, 0, 0, 0]])
    np.testing.assert_allclose(answer.scores, [[0.9, 0.7, 0.6, 0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(answer.boxes[0, 1], found.boxes[0, 2])
    truth = GroundTruth(None, np.array([[79, 11, 0]]), None, None)
    labels = detector.loss({}, Batch(None, None, None, None, truth), None)
    np.testing.assert_array_equal(
        labels, [[90 - first_id, 13 - first_id, 1 - first_id]]
    )


def test_input_is_resized_as_torchvision_does():
    config = torchvision.input_config("fasterrcnn_resnet50_fpn")
    assert config.min_max_size == (800, 1333) and config.float_pixels
    assert (800, 1088) in config.canvases  # of 640x480, a photograph
    fewer = torchvision.input_config("fasterrcnn_resnet50_fpn", canvas_multiple=448)
    assert len(fewer.canvases) == 5
    config = torchvision.input_config("ssd300_vgg16")
    assert config.canvases == ((300, 300),)
    assert not config.keep_aspect and config.float_pixels
