"""What the recipes on Pascal VOC share: their data, measure and pretrained networks."""

import functools
import pathlib
from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from experiments.command_line import Precision
from jaxdet.data import proposals
from jaxdet.data.dataset import DataError, DataSet, join
from jaxdet.data.formats import tfds, voc
from jaxdet.evaluation.voc import voc_metrics
from jaxdet.nn.backbones.alexnet import AlexNet
from jaxdet.nn.backbones.resnet import ResNet, ResNetHead
from jaxdet.nn.backbones.vgg import VGG16
from jaxdet.nn.heads import FCHead
from jaxdet.weights import state_dict

Years = Literal["07", "07+12"]
ProposalFiles = tuple[pathlib.Path, pathlib.Path] | None
MEASURE = functools.partial(voc_metrics, eleven_points=True)  # as in 2007


class Halves(NamedTuple):
    """A classification network, divided for detection, and its pretrained weights."""

    backbone: nn.Module
    box_head: nn.Module
    pretrained: Callable[[dict], dict] | None  # for `train`


def load(
    data: pathlib.Path, years: Years, files: ProposalFiles = None
) -> tuple[DataSet, DataSet]:
    """Trainval of the years, and test of 2007.

    Args:
      data: `VOCdevkit`, with `VOC2007` and `VOC2012`; or the folder `voc` of prepared
        TFDS sets, with `2007` and `2012`, or that of the prepared `voc/2007` alone.
      years: "07+12" takes a folder that holds both.
      files: of region proposals, for trainval and for test.

    Raises:
      DataError: a file is missing, broken, or, of proposals, of other images.
    """
    data_sets = _load(data, years)
    return data_sets if files is None else tuple(map(proposals.load, files, data_sets))


def with_proposals(data_sets: tuple[DataSet, DataSet]) -> tuple[DataSet, DataSet]:
    """Those without proposals get selective search's: hours, on first use.

    All else is to be checked before.
    """
    return tuple(
        proposals.with_selective_search(data_set)
        if data_set.proposals is None
        else data_set
        for data_set in data_sets
    )


def _load(data: pathlib.Path, years: Years) -> tuple[DataSet, DataSet]:
    if (data / "2007").is_dir():  # TFDS's folder of all years
        read = functools.partial(tfds.load, data_dir=data.parent)
        train = [read(f"voc/20{year}", "train+validation") for year in years.split("+")]
        return train[0] if len(train) == 1 else join(*train), read("voc/2007", "test")
    if not (data / "dataset_info.json").exists():
        folders = [data / f"VOC20{year}" for year in years.split("+")]
        return voc.load(*folders), voc.load(data / "VOC2007", split="test")
    if years != "07":
        raise DataError(
            f"--years {years}, but --data {data} is a data set that TFDS prepared, of "
            "one year; give VOCdevkit, the folder of VOC2007 and VOC2012, or TFDS's voc"
        )
    splits = ("train+validation", "test")
    return tuple(tfds.load_directory(data, split) for split in splits)


def alexnet(file: pathlib.Path | None, precision: Precision) -> Halves:
    """For crops; from torchvision's AlexNet, else with group norm, from scratch."""
    dtype, norm = _dtype(precision), _norm(file, "none")
    return Halves(
        AlexNet(norm=norm, centered=False, dtype=dtype),
        FCHead(4096, dropout=0.5, dtype=dtype),
        _pretrained(
            file,
            state_dict.alexnet_from_torchvision,
            state_dict.alexnet_head_from_torchvision,
        ),
    )


def vgg16(file: pathlib.Path | None, precision: Precision) -> Halves:
    """From torchvision's VGG-16, else with group norm, from scratch."""
    dtype, norm = _dtype(precision), _norm(file, "none")
    return Halves(
        VGG16(norm=norm, dtype=dtype),
        FCHead(4096, dropout=0.5, dtype=dtype),
        _pretrained(
            file,
            state_dict.vgg16_from_torchvision,
            state_dict.vgg16_head_from_torchvision,
        ),
    )


def resnet50_c4(file: pathlib.Path | None, precision: Precision) -> Halves:
    """Stages 1 to 4, and stage 5; from torchvision's ResNet-50, else from scratch."""
    dtype, norm = _dtype(precision), _norm(file, "frozen")
    return Halves(
        ResNet(depth=50, norm=norm, coarsest=4, dtype=dtype),
        ResNetHead(depth=50, norm=norm, dtype=dtype),
        _pretrained(
            file,
            functools.partial(_stages, pattern=r"stem_.*|stage[2-4]_.*"),
            functools.partial(_stages, pattern=r"stage5_.*"),
        ),
    )


def _dtype(precision: Precision) -> type:
    return jnp.dtype(precision).type


def _norm(file: pathlib.Path | None, of_pretrained: str) -> str:
    return "group" if file is None else of_pretrained


def _stages(state: dict, *, pattern: str) -> dict:
    return state_dict.submodules(state_dict.resnet_from_torchvision(state), pattern)


def _pretrained(
    file: pathlib.Path | None, backbone: Callable, box_head: Callable
) -> Callable[[dict], dict] | None:
    """Puts into both halves what their readers find in a file."""
    if file is None:
        return None
    state = state_dict.read_state_dict(file)
    into_backbone = state_dict.put_into("backbone", backbone(state))
    into_head = state_dict.put_into("box_head", box_head(state))
    return lambda variables: into_head(into_backbone(variables))
