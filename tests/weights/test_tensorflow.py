"""Every constant of TensorFlow's SSD-MobileNetV2 has its place."""

import chex
import jax
import numpy as np
import pytest

from jaxdet.detectors.ssd import ssd
from jaxdet.weights import published, tensorflow
from tests.detectors import scenes


def layers_of_a_graph():
    """Constants of SSD-MobileNetV2 by the names of their nodes, and their shapes."""
    root = "FeatureExtractor/MobilenetV2"
    shapes = {}

    def conv(name, before, after, *, kernel=1, depthwise=False):
        kind, last = ("depthwise_weights", 1) if depthwise else ("weights", after)
        shapes[f"{root}/{name}/{kind}"] = (kernel, kernel, before, last)
        for part in ("gamma", "beta", "moving_mean", "moving_variance"):
            shapes[f"{root}/{name}/BatchNorm/{part}"] = (after,)

    conv("Conv", 3, 32, kernel=3)
    channels, index = 32, 0
    plan = [(1, 16), (2, 24), (3, 32), (4, 64), (3, 96), (3, 160), (1, 320)]
    for count, after in plan:
        for _ in range(count):
            place = "expanded_conv" + (f"_{index}" if index else "")
            between = 6 * channels if index else channels
            if index:
                conv(f"{place}/expand", channels, between)
            conv(f"{place}/depthwise", between, between, kernel=3, depthwise=True)
            conv(f"{place}/project", between, after)
            channels, index = after, index + 1
    conv("Conv_1", 320, 1280)
    channels, inputs = 1280, [(576, 3), (1280, 6)]
    extra = ((256, 512), (128, 256), (128, 256), (64, 128))
    for number, (between, after) in enumerate(extra, start=2):
        last = f"layer_19_2_Conv2d_{number}_3x3_s2_{after}"
        conv(f"layer_19_1_Conv2d_{number}_1x1_{between}", channels, between)
        conv(f"{last}_depthwise", between, between, kernel=3, depthwise=True)
        conv(last, between, after)
        channels = after
        inputs.append((after, 6))
    for index, (before, count) in enumerate(inputs):
        for name, outputs in (("Class", 91), ("BoxEncoding", 4)):
            place = f"BoxPredictor_{index}/{name}Predictor"
            shapes[f"{place}/weights"] = (3, 3, before, count * outputs)
            shapes[f"{place}/biases"] = (count * outputs,)
    return shapes


@pytest.fixture
def graph():
    constants = {
        name: np.broadcast_to(np.float32(0), shape)
        for name, shape in layers_of_a_graph().items()
    }
    unused = {"MultipleGridAnchorGenerator/mul_55/x": np.zeros(6), "scalar": np.ones(1)}
    return constants | unused


def test_the_detector_has_as_many_variables_of_these_shapes(graph):
    variables = tensorflow.load_ssd_mobilenet_v2(graph, published.CATEGORY_IDS)
    detector = ssd(
        published.SSD_MOBILENET_V2_CONFIG, published.SSD_MOBILENET_V2_BACKBONE
    )
    shapes = jax.eval_shape(detector.init, jax.random.key(0), scenes.batch())
    chex.assert_trees_all_equal_shapes(variables, shapes)


def test_outputs_are_reordered(graph):
    """Three boxes a cell, each with a background and 90 categories; y, x, h, w."""
    classes = np.arange(3 * 91, dtype=np.float32)
    deltas = np.arange(12, dtype=np.float32)
    graph["BoxPredictor_0/ClassPredictor/biases"] = classes
    graph["BoxPredictor_0/BoxEncodingPredictor/biases"] = deltas
    place = "FeatureExtractor/MobilenetV2/expanded_conv/depthwise/depthwise_weights"
    graph[place] = np.arange(9 * 32, dtype=np.float32).reshape(3, 3, 32, 1)
    variables = tensorflow.load_ssd_mobilenet_v2(graph, category_ids=(1, 4))["params"]
    bias = variables["classes4"]["bias"]
    np.testing.assert_array_equal(bias, [1, 4, 92, 95, 183, 186])
    bias = variables["deltas4"]["bias"]
    np.testing.assert_array_equal(bias, [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10])
    kernel = variables["backbone"]["stage1_block0"]["depthwise_conv"]["kernel"]
    np.testing.assert_array_equal(kernel, graph[place].reshape(3, 3, 1, 32))
