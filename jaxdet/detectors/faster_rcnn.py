"""Faster R-CNN (Ren et al. 2015): a region proposal network and a Fast R-CNN in one.

Both look at the same features. The first proposes regions, the second classifies what
lies in them and moves them once more; four losses train all of it jointly.
"""

import dataclasses
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.detectors import roi_heads, rpn
from jaxdet.detectors.detector import Detector, from_network, require
from jaxdet.detectors.roi_heads import RoIHeadsConfig
from jaxdet.detectors.rpn import RPNConfig
from jaxdet.nn.heads import BoxPredictor
from jaxdet.structs import Batch, Detections


@dataclasses.dataclass(frozen=True)
class FasterRCNNConfig:
    """Numbers of both stages; defaults are detectron2's, but for `samples`.

    Raises:
      ValueError: for numbers that contradict each other or are out of their range.
    """

    num_classes: int = 80
    """K; labels run from 0 to K - 1."""
    rpn: RPNConfig = RPNConfig()
    """Of the trunk and the first stage."""
    region: RoIHeadsConfig = RoIHeadsConfig()
    """Of the second stage."""
    pool: Literal["align", "max"] = "align"
    """RoI Align, or Fast R-CNN's RoI max pooling, which takes one level."""
    pool_levels: tuple[int, ...] = (2, 3, 4, 5)
    """That regions are cut from, each from one, by its size (FPN 4.2)."""
    pool_size: int = 7
    """Cells a side of what is cut out."""
    samples: int = 2
    """Points a side of each cell that RoI Align averages; 0: as many as it has cells
    of the features below it."""
    aligned: bool = True
    """Without torchvision's shift by half a cell."""
    canonical_size: float = 224.0
    """Side of the regions that are cut from `canonical_level` (FPN 4.2)."""
    canonical_level: int = 4
    """See `canonical_size`."""

    def __post_init__(self):
        for name in ("num_classes", "pool_size"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "samples", self.samples >= 0, "0 or more")
        require(self, "canonical_size", self.canonical_size > 0, "above 0")
        levels = self.pool_levels
        right = bool(levels) and set(levels) <= set(self.rpn.levels)
        right = right and list(levels) == list(range(levels[0], levels[-1] + 1))
        allowed = f"one or more of the RPN's levels {self.rpn.levels}, without gaps"
        require(self, "pool_levels", right, allowed)
        require(self, "pool", self.pool in ("align", "max"), "'align' or 'max'")
        one = self.pool == "align" or len(self.pool_levels) == 1
        allowed = f"'align' where there are several pool_levels, {self.pool_levels}"
        require(self, "pool", one, allowed)


# VGG-16 at stride 16, FCHead(4096, dropout=0.5): 128 regions of one image.
PAPER = FasterRCNNConfig(
    num_classes=20,
    rpn=rpn.PAPER,
    region=dataclasses.replace(
        roi_heads.FAST_RCNN, per_image=128, hard_negative_iou=0.0
    ),
    pool="max",
    pool_levels=(4,),
)

# ResNet-50 or -101 with a feature pyramid, FCHead(1024) (Lin et al. 2017, 4.2 and 5.2).
FPN_PAPER = FasterRCNNConfig(rpn=rpn.FPN_PAPER, region=RoIHeadsConfig(box_beta=1.0))

TORCHVISION = FasterRCNNConfig(
    rpn=rpn.TORCHVISION,
    region=RoIHeadsConfig(box_beta=1 / 9, min_side=1e-2),
    aligned=False,
)

# Its second version (Li et al. 2021), with ConvFCHead(norm="frozen").
TORCHVISION_V2 = dataclasses.replace(
    TORCHVISION,
    rpn=dataclasses.replace(rpn.TORCHVISION, head_depth=2, fpn_norm="frozen"),
)

DETECTRON2 = FasterRCNNConfig(rpn=rpn.DETECTRON2, samples=0)

# ResNet(coarsest=4) and ResNetHead: the last stage looks at each region by itself.
DETECTRON2_C4 = FasterRCNNConfig(
    rpn=rpn.DETECTRON2_C4, pool_levels=(4,), pool_size=14, samples=0
)


class FasterRCNNNetwork(nn.Module):
    """Trunk, sliding head, and the layers that each region passes (Figure 2).

    Attributes:
      config: see `FasterRCNNConfig`.
      backbone: hands over what `config.rpn.levels` are made of; see `faster_rcnn`.
      box_head: what each region passes before classes and boxes; see `faster_rcnn`.
      mask_head: Mask R-CNN's third branch.
    """

    config: FasterRCNNConfig
    backbone: nn.Module
    box_head: nn.Module
    mask_head: nn.Module | None = None  # Mask R-CNN's third branch

    def setup(self):
        """Makes the layers that follow the backbone."""
        config, dtype = self.config, self.backbone.dtype
        self.neck = rpn.neck(config.rpn, dtype)
        self.rpn_head = rpn.head(config.rpn, dtype)
        self.box_predictor = BoxPredictor(
            config.num_classes, class_agnostic=config.region.class_agnostic, dtype=dtype
        )

    def __call__(self, pixels: jax.Array):
        """Runs every layer once, on no region in particular, so that `init` makes all.

        `[B, H, W, 3]` -> the answers of RPN head, predictor and, if any, mask head.
        """
        pyramid = self.features(pixels)
        boxes = jnp.zeros((len(pixels), 1, 4))
        crops = crop(pyramid, boxes, None, self.config)
        masks = None if self.mask_head is None else self.mask_head(crops[:, 0])
        return self.rpn_head(pyramid), roi_heads.classify(self, crops), masks

    def features(
        self, pixels: jax.Array, sizes: jax.Array | None = None
    ) -> dict[int, jax.Array]:
        """`[B, H, W, 3]` -> `{level: [B, H, W, C]}`, the RPN's levels."""
        return self.neck(self.backbone(pixels, sizes), sizes)


def loss(network, batch: Batch, key, *, config: FasterRCNNConfig, axis_name=None):
    """The four losses: is it an object and where, what is it and where exactly.

    Args:
      network: a bound `FasterRCNNNetwork`.
      batch: with truth.
      key: of the step; what an image draws hangs on it and on the image's id.
      config: see `FasterRCNNConfig`.
      axis_name: of the devices that share the batch, under `pmap`; None: there is one.

    Returns:
      The sum, and `{"objectness_loss", "rpn_box_loss", "class_loss", "box_loss"}`.
    """
    pyramid = look(network, batch, config)
    metrics, _ = learn(network, pyramid, batch, key, config=config, axis_name=axis_name)
    return sum(metrics.values()), metrics


def predict(network, batch: Batch, *, config: FasterRCNNConfig) -> Detections:
    """Classifies, moves and thins the proposals of the first stage.

    Args:
      network: a bound `FasterRCNNNetwork`.
      batch: truth is not looked at.
      config: see `FasterRCNNConfig`.

    Returns:
      `Detections` `[B, D]`, best first, D being `config.region.detections`.
    """
    return answer(network, look(network, batch, config), batch, config=config)


def faster_rcnn(
    config: FasterRCNNConfig, backbone: nn.Module, box_head: nn.Module
) -> Detector:
    """Faster R-CNN from what a backbone hands over.

    Args:
      config: with `rpn.channels=None` it takes one level of the backbone as it is (C4,
        VGG-16), else it builds a feature pyramid.
      backbone: `(pixels, sizes) -> {level: features}`, with a `dtype`.
      box_head: `(crops [R, S, S, C], keys) -> [R, D]`, S being `pool_size`: `FCHead`
        or `ResNetHead`.
    """
    return from_network(
        FasterRCNNNetwork(config, backbone, box_head),
        loss=partial(loss, config=config),
        predict=partial(predict, config=config),
        num_classes=config.num_classes,
        builder=partial(faster_rcnn, config, backbone, box_head),
        coverage=partial(rpn.coverage, config=config.rpn),
    )


def look(network, batch: Batch, config: FasterRCNNConfig) -> dict[int, jax.Array]:
    """The features that all stages share, `{level: [B, H, W, C]}`.

    Args:
      network: a bound `FasterRCNNNetwork`.
      batch: its images and sizes count.
      config: see `FasterRCNNConfig`.
    """
    return network.features(*rpn.pixels_and_sizes(batch, config.rpn))


def learn(network, pyramid, batch: Batch, key, *, config: FasterRCNNConfig, axis_name):
    """`loss` from the features on: the four losses, and the regions learned from.

    Args:
      network: a bound `FasterRCNNNetwork`.
      pyramid: from `look`.
      batch: with truth.
      key: of the step; what an image draws hangs on it and on the image's id.
      config: see `FasterRCNNConfig`.
      axis_name: of the devices that share the batch, under `pmap`; None: there is one.

    Returns:
      What `loss` returns second, and `Samples` `[B, R]`, positive ones first, R being
      `config.region.per_image`.
    """
    rpn_keys, region_keys, dropout_keys = roi_heads.image_keys(key, batch, 3)
    # 1. Where could an object be?
    objectness, rpn_deltas = network.rpn_head(pyramid, _true_sizes(batch, config))
    metrics = rpn.proposal_losses(
        rpn_keys, objectness, rpn_deltas, batch, config=config.rpn, axis_name=axis_name
    )
    proposals = rpn.propose(
        objectness,
        rpn_deltas,
        batch,
        config=config.rpn,
        candidates=config.rpn.train_candidates,
        proposals=config.rpn.train_proposals,
    )
    # 2. What is there?
    region_metrics, samples = roi_heads.learn(
        partial(_classify, network, pyramid, batch, config),
        (region_keys, dropout_keys),
        proposals,
        batch.truth,
        num_classes=config.num_classes,
        config=config.region,
        axis_name=axis_name,
    )
    return metrics | region_metrics, samples


def answer(network, pyramid, batch: Batch, *, config: FasterRCNNConfig) -> Detections:
    """What `predict` answers, from the features on.

    Args:
      network: a bound `FasterRCNNNetwork`.
      pyramid: from `look`.
      batch: truth is not looked at.
      config: see `FasterRCNNConfig`.

    Returns:
      `Detections` `[B, D]`, best first, D being `config.region.detections`.
    """
    objectness, rpn_deltas = network.rpn_head(pyramid, _true_sizes(batch, config))
    proposals = rpn.propose(
        objectness,
        rpn_deltas,
        batch,
        config=config.rpn,
        candidates=config.rpn.candidates,
        proposals=config.rpn.proposals,
    )
    look_at = partial(_classify, network, pyramid, batch, config)
    return roi_heads.answer(look_at, proposals, batch.sizes, config=config.region)


def crop(
    pyramid: dict[int, jax.Array],
    boxes: jax.Array,
    sizes: jax.Array | None,
    config: FasterRCNNConfig,
    *,
    size: int | None = None,
) -> jax.Array:
    """What lies in each box, `[B, R, 4]` -> `[B, R, size, size, C]`.

    Args:
      pyramid: with the levels that regions are cut from.
      boxes: in canvas pixels.
      sizes: `[B, 2]`, where the true images end; None: all of the canvas is image.
      config: how to cut.
      size: cells a side, by default `config.pool_size`.
    """
    return roi_heads.cut(
        {level: pyramid[level] for level in config.pool_levels},
        boxes,
        sizes,
        pool=config.pool,
        size=config.pool_size if size is None else size,
        samples=config.samples,
        aligned=config.aligned,
        canonical_size=config.canonical_size,
        canonical_level=config.canonical_level,
    )


def _classify(network, pyramid, batch: Batch, config: FasterRCNNConfig, boxes, keys):
    """Class logits and deltas of what lies in each box."""
    crops = crop(pyramid, boxes, _true_sizes(batch, config), config)
    return roi_heads.classify(network, crops, keys)


def _true_sizes(batch: Batch, config: FasterRCNNConfig) -> jax.Array | None:
    return batch.sizes if config.rpn.mask_padding else None
