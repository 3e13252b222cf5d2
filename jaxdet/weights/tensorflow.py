"""Converts TensorFlow's SSD-MobileNetV2 to variables of our `ssd`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxdet.weights.backbones import MOBILENET_V2_BLOCKS
from jaxdet.weights.mapping import (
    SAME,
    Layout,
    NetworkMap,
    TensorMap,
    select_outputs,
    to_variables,
)

_ROOT = "FeatureExtractor/MobilenetV2"
_CLASSES = 91  # outputs a default box: background and the category ids 1 to 90
# HWIO is the layout of our kernels, but depthwise kernels are HWC1, ours HW1C.
_DEPTHWISE_KERNEL = Layout(
    lambda kernel: kernel.swapaxes(2, 3), lambda kernel: kernel.swapaxes(2, 3)
)
_DELTAS = select_outputs((1, 0, 3, 2), group=4)  # theirs are (y, x, height, width)
# Of the four blocks behind MobileNetV2, named by their channels.
_EXTRA_CHANNELS = ((256, 512), (128, 256), (128, 256), (64, 128))
# Other constants of the graph: anchors, sizes, thresholds.
_UNUSED = (
    r"(.*/)?(?!(depthwise_weights|weights|biases)$)"
    r"(?!(gamma|beta|moving_mean|moving_variance)$)[^/]*"
)


def load_ssd_mobilenet_v2(
    constants: Mapping[str, np.ndarray], category_ids: Sequence[int]
) -> dict[str, Any]:
    """Returns TensorFlow's SSD-MobileNetV2 as variables of `ssd` with sigmoid scores.

    Its background class and the categories that are not asked for are left out.

    Args:
      constants: of its frozen graph, from `read_state_dict`.
      category_ids: label k is its category `category_ids[k]`, of 1 to 90.

    Raises:
      WeightsError: for constants of another network, naming the first.
    """
    network = NetworkMap("SSD-MobileNetV2", tuple(_tensors(category_ids)), _UNUSED)
    return to_variables(constants, network)


def _tensors(category_ids: Sequence[int]) -> Iterator[TensorMap]:
    yield from _conv_norm(f"{_ROOT}/Conv", "stem")
    for index, block in enumerate(MOBILENET_V2_BLOCKS):
        place = f"{_ROOT}/expanded_conv" + (f"_{index}" if index else "")
        if index:  # the first block widens nothing
            yield from _conv_norm(f"{place}/expand", f"{block}/expand")
        yield from _conv_norm(f"{place}/depthwise", f"{block}/depthwise")
        yield from _conv_norm(f"{place}/project", f"{block}/project")
    yield from _conv_norm(f"{_ROOT}/Conv_1", "last")
    for number, (between, channels) in enumerate(_EXTRA_CHANNELS, start=2):
        block = f"stage{number + 4}_block0"
        project = f"{_ROOT}/layer_19_2_Conv2d_{number}_3x3_s2_{channels}"
        expand = f"{_ROOT}/layer_19_1_Conv2d_{number}_1x1_{between}"
        yield from _conv_norm(expand, f"{block}/expand")
        yield from _conv_norm(f"{project}_depthwise", f"{block}/depthwise")
        yield from _conv_norm(project, f"{block}/project")
    classes = select_outputs(category_ids, group=_CLASSES)
    for index in range(6):
        for theirs, ours, layout in (
            ("ClassPredictor", f"classes{index + 4}", classes),
            ("BoxEncodingPredictor", f"deltas{index + 4}", _DELTAS),
        ):
            place = f"BoxPredictor_{index}/{theirs}"
            yield TensorMap(f"{place}/weights", f"params/{ours}/kernel", layout)
            yield TensorMap(f"{place}/biases", f"params/{ours}/bias", layout)


def _conv_norm(theirs: str, ours: str) -> Iterator[TensorMap]:
    """Maps a convolution of the backbone and its batch norm."""
    if ours.endswith("depthwise"):
        kernel, layout = "depthwise_weights", _DEPTHWISE_KERNEL
    else:
        kernel, layout = "weights", SAME
    ours = f"backbone/{ours}"
    yield TensorMap(f"{theirs}/{kernel}", f"params/{ours}_conv/kernel", layout)
    parts = {"gamma": "scale", "beta": "bias"}
    parts |= {"moving_mean": "mean", "moving_variance": "var"}
    for part, our_part in parts.items():
        our_name = f"constants/{ours}_norm/frozen/{our_part}"
        yield TensorMap(f"{theirs}/BatchNorm/{part}", our_name, SAME)
