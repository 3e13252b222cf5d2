"""What torchvision's detectors compute of golden weights, and the same here."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.data import transforms
from jaxdet.detectors import faster_rcnn, fcos, mask_rcnn, retinanet, roi_heads, ssd
from jaxdet.detectors.detector import preprocess
from jaxdet.nn.heads import MaskHead
from jaxdet.ops import anchors, masks, roi_align, sampling
from jaxdet.structs import Batch, GroundTruth
from jaxdet.weights import detectors
from tests.conftest import GOLDEN
from tests.golden import replay

CANVAS = (320, 352)  # both images fit
ONE_STAGE = {
    "retinanet": (retinanet.predict, retinanet.RetinaNetNetwork),
    "fcos": (fcos.predict, fcos.FCOSNetwork),
    "ssd300": (ssd.predict, ssd.SSDNetwork),
}


class Parity:
    """A model with golden weights; what it computes is computed once."""

    def __init__(self, name):
        self.name = name
        self.state, self.golden, about = replay.load(GOLDEN / f"{name}_s0.npz")
        self.variables = detectors.load(self.state)
        model = detectors.MODELS[name]
        self.backbone, self.epsilon = model.backbone, None
        if model.canvas is None:  # a ResNet's; all golden ones have this epsilon
            self.backbone, self.epsilon = model.backbone.clone(epsilon=1e-5), 1e-5
            self.rule = {"min_max_size": (about["min_size"], about["max_size"])}
        else:
            self.rule = {"keep_aspect": False}
        self.canvas = model.canvas or CANVAS
        self.detector = detectors.build(name, epsilon=self.epsilon)
        self.first_id = model.first_id
        self.two_stages, self.masks = "rcnn" in name, name.startswith("maskrcnn")
        (self.config,) = model.make.args
        self.box_config = self.config.faster_rcnn if self.masks else self.config
        self.dense_config = self.box_config.rpn if self.two_stages else self.config
        self.has_anchors = self.two_stages or name.startswith("retinanet")

    def both(self, key):
        """Golden arrays of the two images, `key` with {} for the image's number."""
        return np.stack([self.golden[key.format(i)] for i in range(2)])

    def levels(self, name, count):
        """Golden outputs of an RPN's head, `[2, A, count]`."""
        maps = [last(self.golden[f"eval/rpn/{name}/{level}"]) for level in range(5)]
        return np.concatenate([x.reshape(2, -1, count) for x in maps], axis=1)

    def detections(self, where, i):
        """Golden boxes, scores and labels of one image."""
        keys = "boxes", "scores", "labels"
        boxes, scores, labels = (self.golden[f"eval/{where}/{i}/{k}"] for k in keys)
        return boxes, scores, labels - self.first_id

    @functools.cached_property
    def batch(self):
        """The two images, resized, with their objects."""
        pixels = np.zeros((2, *self.canvas, 3), np.float32)
        sizes, scales, boxes, labels = [], [], [], []
        for i, canvas in enumerate(pixels):
            keys = f"in/image{i}", f"in/target{i}/boxes", f"in/target{i}/labels"
            example = transforms.Example(*(self.golden[key] for key in keys), ())
            size = example.image.shape[:2]
            example, scale = transforms.resize_to_canvas(
                example, self.canvas, **self.rule, out=canvas
            )
            sizes.append(transforms.fitted_size(size, self.canvas, **self.rule))
            scales.append(scale)
            boxes.append(example.boxes)
            labels.append(example.labels - self.first_id)
        valid = np.ones(np.shape(labels), bool)
        truth = GroundTruth(np.array(boxes), np.array(labels), valid, ~valid)
        ids = np.arange(2, dtype=np.int32)
        return Batch(pixels, np.array(sizes, np.int32), np.array(scales), ids, truth)

    @functools.cached_property
    def network(self):
        """The model's layers."""
        if not self.two_stages:
            return ONE_STAGE[self.name.split("_")[0]][1](self.config, self.backbone)
        box_head = detectors.MODELS[self.name].make.keywords["box_head"]
        mask_head = MaskHead(90, norm=self.config.mask_norm) if self.masks else None
        return faster_rcnn.FasterRCNNNetwork(
            self.box_config, self.backbone, box_head, mask_head
        )

    @functools.cached_property
    def stages(self):
        """All that lies between pixels and detections, by name."""
        run = _two_stages if self.two_stages else _one_stage
        run = jax.jit(nn.apply(functools.partial(run, parity=self), self.network))
        return jax.tree.map(np.asarray, run(self.variables, self.batch))


def last(values):
    """NCHW to NHWC."""
    return np.moveaxis(values, 1, -1)


def pyramid_anchors(config):
    """All anchors of the canvas, `[A, 4]`."""
    return anchors.pyramid_anchors(CANVAS, levels=config.levels, **vars(config.anchors))


def _one_stage(network, batch, parity):
    config = parity.config
    pixels, _ = preprocess(batch, config.preprocessing)
    features, outputs = network.backbone(pixels), network(pixels)
    if parity.name.startswith("ssd"):
        levels = [[maps[level] for level in config.levels] for maps in outputs]
        outputs = [
            jnp.concatenate([x.reshape(2, -1, x.shape[-1]) for x in maps], axis=1)
            for maps in levels
        ]
    else:
        features = network.fpn(features)
    predict, _ = ONE_STAGE[parity.name.split("_")[0]]
    stages = {"pixels": pixels, "features": features, "outputs": outputs}
    return stages | {"detections": predict(network, batch, config=config)}


def _two_stages(network, batch, parity):
    config = parity.box_config
    pixels, _ = preprocess(batch, config.rpn.preprocessing)
    pyramid = network.features(pixels)
    stages = {"pixels": pixels, "features": pyramid}
    stages["outputs"] = network.rpn_head(pyramid)
    # Those of torchvision's proposals that the file tells more about.
    proposals, image = parity.both("eval/rpn/proposals/{}").reshape(-1, 4), 1000
    which = np.repeat([0, 1], image)
    picked = np.r_[: len(which) : 13, : len(which) : 97]
    crops = _pool(pyramid, proposals[picked], which[picked], config, size=None)
    stages |= {"crops": crops, "hidden": network.box_head(crops)}
    stages["classes"], stages["deltas"] = network.box_predictor(stages["hidden"])
    predict = mask_rcnn.predict if parity.masks else faster_rcnn.predict
    stages["detections"] = predict(network, batch, config=parity.config)
    if parity.masks:
        boxes = [parity.detections("det_resized", i)[0] for i in range(2)]
        which = np.repeat([0, 1], [len(each) for each in boxes])[::29]
        crops = _pool(pyramid, np.concatenate(boxes)[::29], which, config, size=14)
        stages["mask_logits"] = network.mask_head(crops)
    return stages


def _pool(pyramid, boxes, which, config, *, size):
    """Crops of boxes `[R, 4]`, each of one of the two images."""
    boxes = jnp.stack([boxes] * 2)
    both = roi_heads.pool(pyramid, boxes, None, config.pooler, size)
    return both[which, jnp.arange(len(which))]


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
    """Returns the batch with masks, and lets sampling draw what torchvision drew."""
    draws = [parity.both(f"train_frozen/rpn/{s}_mask/{{}}") > 0 for s in ("pos", "neg")]

    def keys(key, image_ids, count):
        return (jnp.arange(len(image_ids)),) * count

    def balanced_subset(key, identity, positive, negative, **options):
        positive, negative = (jnp.asarray(draw)[key] for draw in draws)
        index = jnp.argsort(~(positive | negative))[: options["size"]]
        return sampling.Subset(index, positive[index], (positive | negative)[index])

    names = "proposals", "labels", "matched_idxs"
    drawn = [parity.both(f"train_frozen/roi/{name}/{{}}") for name in names]
    order = np.argsort(drawn[1] == 0, axis=1, kind="stable")  # positive ones first
    boxes, labels, index = (
        np.stack([values[i][order[i]] for i in range(2)]) for values in drawn
    )
    truth = parity.batch.truth
    samples = roi_heads.SampledRoIs(
        boxes=jnp.asarray(boxes),
        labels=jnp.where(labels > 0, labels - 1, 90),
        gt_index=jnp.asarray(index),
        gt_boxes=jnp.stack([truth.boxes[i][index[i]] for i in range(2)]),
        positive=jnp.asarray(labels > 0),
        valid=jnp.ones(labels.shape, bool),
    )
    monkeypatch.setattr(sampling, "image_keys", keys)
    monkeypatch.setattr(sampling, "balanced_subset", balanced_subset)
    monkeypatch.setattr(roi_heads, "sample_rois", lambda *args, **options: samples)
    if not parity.masks:
        return parity.batch
    whole = np.stack([_masks_on_canvas(parity, i) for i in range(2)])
    monkeypatch.setattr(masks, "crop_and_resize_masks", cut_from_whole_images)
    return parity.batch.replace(truth=truth.replace(masks=whole))


def _masks_on_canvas(parity, i):
    """Resized as torchvision does it; beyond the image its border goes on."""
    whole = parity.golden[f"in/target{i}/masks"]
    size = parity.batch.sizes[i]
    rows, columns = (
        np.floor(np.arange(new) * np.float32(old / new)).astype(int)
        for old, new in zip(whole.shape[1:], size, strict=True)
    )
    margins = [(0, 0), *((0, n) for n in np.array(parity.canvas) - size)]
    return np.pad(whole[:, rows][:, :, columns], margins, mode="edge")
