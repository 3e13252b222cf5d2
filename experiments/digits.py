"""Detectors on digits, from scratch: python -m experiments.digits faster_rcnn

The others: rcnn, sppnet, fast_rcnn, rpn, mask_rcnn, fcos, ssd; each in minutes on two
CPU cores, by the same training and evaluation, on 8,000 drawn images. Those that take
region proposals get selective search's, made once on 2,000 images and kept. SPP-net
never trains its convolutions: it takes Fast R-CNN's, which are trained first where they
are not there yet. Targets and measured numbers stand in the README's table.
"""

import dataclasses
import pathlib

import jax.numpy as jnp

from experiments import command_line, quickstart
from experiments.command_line import Precision
from jaxdet.config import Postprocessing, Preprocessing
from jaxdet.data import proposals
from jaxdet.data.dataset import DataSet
from jaxdet.data.formats import digits
from jaxdet.detectors import (
    fast_rcnn,
    faster_rcnn,
    fcos,
    mask_rcnn,
    rcnn,
    rpn,
    sppnet,
    ssd,
)
from jaxdet.detectors.roi_heads import RoIHeadsConfig
from jaxdet.inference.load import load_trained
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.heads import FCHead
from jaxdet.training.config import TrainingConfig
from jaxdet.training.train import train
from jaxdet.weights.state_dict import put_into

RUNS = pathlib.Path("runs/digits")
TRAINING = dataclasses.replace(quickstart.TRAINING, checkpoint_every=400)
WITH_PROPOSALS = dataclasses.replace(TRAINING.input, max_regions=300)
WITH_MASKS = dataclasses.replace(TRAINING.input, mask_size=28)
ON_PROPOSALS = dataclasses.replace(TRAINING, input=WITH_PROPOSALS)
ON_FROZEN = dataclasses.replace(ON_PROPOSALS, steps=1000, frozen=("backbone/.*",))
ON_MASKS = dataclasses.replace(TRAINING, steps=1600, input=WITH_MASKS)
ONE_CLASS = dataclasses.replace(TRAINING, steps=1200)

# Half of the regions are digits: to tell them apart is harder than to find them.
REGION = RoIHeadsConfig(per_image=64, positive_fraction=0.5, detections=50)
RCNN = rcnn.RCNNConfig(
    num_classes=10,
    region=dataclasses.replace(REGION, per_image=16),
    size=32,
    context=2,
    level=4,
    pool_size=2,
    chunk=512,
)
SPPNET = sppnet.SPPNetConfig(
    num_classes=10,
    region=REGION,
    level=3,
    scales=(1.0, 2.0),
    region_side=40.0,  # of the sizes that the convolutions have learned, a large one
)
FAST_RCNN = fast_rcnn.FastRCNNConfig(
    num_classes=10,
    region=REGION,
    level=3,
    pool="align",  # max pooling rounds to cells of 8 pixels, a third of a digit
    pool_size=6,
)
RPN = rpn.RPNConfig(
    levels=(3, 4),
    anchor_sizes=((14.0, 20.0), (28.0, 40.0)),
    anchor_ratios=(1.0, 2.0),  # digits are taller than wide
    channels=64,
    fpn_norm="group",
    per_image=64,
    train_candidates=200,
    train_proposals=64,
    candidates=200,
    proposals=64,
)
FASTER_RCNN = faster_rcnn.FasterRCNNConfig(
    num_classes=10,
    rpn=RPN,
    region=REGION,
    pool_levels=(3, 4),
    canonical_size=28.0,
)
MASK_RCNN = mask_rcnn.MaskRCNNConfig(
    FASTER_RCNN, mask_pool_size=10, mask_channels=32, mask_depth=2, mask_norm="group"
)
FCOS = fcos.FCOSConfig(
    num_classes=10,
    levels=(3, 4),
    regression_ranges=(24.0,),  # half of the digits to each level
    channels=64,
    head_depth=2,
    postprocessing=Postprocessing(nms_threshold=0.6, max_detections=50),
)


def _standing(*sides: float) -> tuple[tuple[float, float], ...]:
    """Default boxes of those areas, one and a half times as high as wide: digits."""
    return tuple((1.25 * side, 0.8 * side) for side in sides)


SSD = ssd.SSDConfig(
    num_classes=10,
    levels=(3, 4),
    strides=(8.0, 16.0),
    default_box_sizes=(_standing(14, 18, 23), _standing(29, 37, 46)),
    postprocessing=dataclasses.replace(ssd.PAPER.postprocessing, max_detections=50),
    preprocessing=Preprocessing(),
)


def backbone(coarsest: int, precision: Precision, *, depth: int = 10) -> ResNet:
    """A ResNet of half the usual width, up to a stage.

    Args:
      coarsest: the last stage, 2 to 5.
      precision: of the arithmetic.
      depth: layers, as of `ResNet`.
    """
    dtype = jnp.dtype(precision).type
    return ResNet(depth=depth, width=32, norm="group", coarsest=coarsest, dtype=dtype)


def box_head(precision: Precision) -> FCHead:
    """The layers that each region passes."""
    return FCHead(features=256, depth=2, dtype=jnp.dtype(precision).type)


def train_rcnn(
    detector: rcnn.RCNNConfig = RCNN,
    training: TrainingConfig = ON_PROPOSALS,
    *,
    precision: Precision = "float32",
    workdir: pathlib.Path = RUNS / "rcnn",
):
    """R-CNN: every proposal warped to 32x32, and a network for each.

    Args:
      detector: numbers of the detector; the classes are the ten digits.
      training: numbers of the training.
      precision: of the network's arithmetic; parameters and losses are float32.
      workdir: the run folder; started again, a run goes on where it stopped.
    """
    model = rcnn.rcnn(detector, backbone(4, precision), box_head(precision))
    _train_on_proposals(model, training, workdir)


def train_sppnet(
    detector: sppnet.SPPNetConfig = SPPNET,
    training: TrainingConfig = ON_FROZEN,
    *,
    precision: Precision = "float32",
    workdir: pathlib.Path = RUNS / "sppnet",
    convolutions: pathlib.Path | None = None,
):
    """SPP-net: Fast R-CNN's convolutions, frozen; new fully connected layers.

    Args:
      detector: numbers of the detector; the classes are the ten digits.
      training: numbers of the training.
      precision: of the network's arithmetic; parameters and losses are float32.
      workdir: the run folder; started again, a run goes on where it stopped.
      convolutions: a Fast R-CNN's run folder; by default that of `fast_rcnn`, which is
        trained first where it is not.
    """
    if convolutions is None:
        convolutions = RUNS / "fast_rcnn"
        train_fast_rcnn(workdir=convolutions)
    trained = load_trained(convolutions, step="latest").variables
    weights = {name: parts["backbone"] for name, parts in trained.items()}
    model = sppnet.sppnet(detector, backbone(3, precision), box_head(precision))
    pretrained = put_into("backbone", weights)
    _train_on_proposals(model, training, workdir, pretrained=pretrained)


def train_fast_rcnn(
    detector: fast_rcnn.FastRCNNConfig = FAST_RCNN,
    training: TrainingConfig = ON_PROPOSALS,
    *,
    precision: Precision = "float32",
    workdir: pathlib.Path = RUNS / "fast_rcnn",
):
    """Fast R-CNN: convolutions once an image, all layers trained.

    Args:
      detector: numbers of the detector; the classes are the ten digits.
      training: numbers of the training.
      precision: of the network's arithmetic; parameters and losses are float32.
      workdir: the run folder; started again, a run goes on where it stopped.
    """
    model = fast_rcnn.fast_rcnn(detector, backbone(3, precision), box_head(precision))
    _train_on_proposals(model, training, workdir)


def train_rpn(
    detector: rpn.RPNConfig = RPN,
    training: TrainingConfig = ONE_CLASS,
    *,
    precision: Precision = "float32",
    workdir: pathlib.Path = RUNS / "rpn",
):
    """The region proposal network alone; evaluated by the recall of its proposals.

    Args:
      detector: numbers of the detector; the classes are the ten digits.
      training: numbers of the training.
      precision: of the network's arithmetic; parameters and losses are float32.
      workdir: the run folder; started again, a run goes on where it stopped.
    """
    _train(rpn.rpn(detector, backbone(4, precision)), training, workdir)


def train_faster_rcnn(
    detector: faster_rcnn.FasterRCNNConfig = FASTER_RCNN,
    training: TrainingConfig = TRAINING,
    *,
    precision: Precision = "float32",
    workdir: pathlib.Path = RUNS / "faster_rcnn",
):
    """Faster R-CNN with a feature pyramid.

    Args:
      detector: numbers of the detector; the classes are the ten digits.
      training: numbers of the training.
      precision: of the network's arithmetic; parameters and losses are float32.
      workdir: the run folder; started again, a run goes on where it stopped.
    """
    _train(
        faster_rcnn.faster_rcnn(detector, backbone(4, precision), box_head(precision)),
        training,
        workdir,
    )


def train_mask_rcnn(
    detector: mask_rcnn.MaskRCNNConfig = MASK_RCNN,
    training: TrainingConfig = ON_MASKS,
    *,
    precision: Precision = "float32",
    workdir: pathlib.Path = RUNS / "mask_rcnn",
):
    """Mask R-CNN; the masks are the digits' ink.

    Args:
      detector: numbers of the detector; the classes are the ten digits.
      training: numbers of the training.
      precision: of the network's arithmetic; parameters and losses are float32.
      workdir: the run folder; started again, a run goes on where it stopped.
    """
    _train(
        mask_rcnn.mask_rcnn(detector, backbone(4, precision), box_head(precision)),
        training,
        workdir,
    )


def train_fcos(
    detector: fcos.FCOSConfig = FCOS,
    training: TrainingConfig = TRAINING,
    *,
    precision: Precision = "float32",
    workdir: pathlib.Path = RUNS / "fcos",
):
    """FCOS: no anchors; points that say how far the sides of their digit are.

    Args:
      detector: numbers of the detector; the classes are the ten digits.
      training: numbers of the training.
      precision: of the network's arithmetic; parameters and losses are float32.
      workdir: the run folder; started again, a run goes on where it stopped.
    """
    _train(fcos.fcos(detector, backbone(4, precision)), training, workdir)


def train_ssd(
    detector: ssd.SSDConfig = SSD,
    training: TrainingConfig = TRAINING,
    *,
    precision: Precision = "float32",
    workdir: pathlib.Path = RUNS / "ssd",
):
    """SSD: two stages of a ResNet-18 look by themselves, without a pyramid.

    Args:
      detector: numbers of the detector; the classes are the ten digits.
      training: numbers of the training.
      precision: of the network's arithmetic; parameters and losses are float32.
      workdir: the run folder; started again, a run goes on where it stopped.
    """
    _train(ssd.ssd(detector, backbone(4, precision, depth=18)), training, workdir)


def with_proposals(data_set: DataSet) -> DataSet:
    """Selective search, fit for digits; made on first use, then read."""
    return proposals.with_selective_search(
        data_set, mode="fast", max_per_image=WITH_PROPOSALS.max_regions
    )


def _train(model, training, workdir):
    train(
        model,
        digits.load("train"),
        training,
        workdir=workdir,
        validation=digits.load("validation"),
    )


def _train_on_proposals(model, training, workdir, **options):
    train(
        model,
        with_proposals(digits.load("train", train_images=2000)),
        training,
        workdir=workdir,
        validation=with_proposals(digits.load("validation", train_images=2000)),
        **options,
    )


if __name__ == "__main__":
    command_line.run(
        {
            "rcnn": train_rcnn,
            "sppnet": train_sppnet,
            "fast_rcnn": train_fast_rcnn,
            "rpn": train_rpn,
            "faster_rcnn": train_faster_rcnn,
            "mask_rcnn": train_mask_rcnn,
            "fcos": train_fcos,
            "ssd": train_ssd,
        }
    )
