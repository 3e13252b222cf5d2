"""DETR against transformers' own: stages, detections' parts, losses and gradients."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.detectors import detr, set_prediction
from jaxdet.detectors.detector import preprocess
from jaxdet.nn import layers
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.ops import images
from jaxdet.structs import Batch, GroundTruth
from jaxdet.weights import detectors, mapping, transformers_maps
from jaxdet.weights.mapping import NetworkMap
from tests.conftest import GOLDEN
from tests.golden import replay
from tests.golden.record_transformers import CONFIG, SIZES
from tests.weights.test_detectors import (
    NO_OPTIMIZATION,
    assert_close,
    convolve_in_float64,
    normalize_in_float64,
)

CANVAS = (128, 192)
NETWORK = NetworkMap(
    "a small DETR", tuple(transformers_maps.detr(resnet=18, depths=(2, 2), heads=4))
)
SMALL = detr.DETRConfig(
    num_classes=CONFIG["num_labels"],
    num_queries=CONFIG["num_queries"],
    channels=CONFIG["d_model"],
    num_heads=CONFIG["encoder_attention_heads"],
    hidden=CONFIG["encoder_ffn_dim"],
    encoder_depth=CONFIG["encoder_layers"],
    decoder_depth=CONFIG["decoder_layers"],
    dropout=0.0,
    mask_padding=False,
)
LOSSES = {"class_loss": "loss_ce", "l1_loss": "loss_bbox", "giou_loss": "loss_giou"}


@pytest.fixture(scope="module")
def golden():
    """The state dict, and what transformers computes of it."""
    return replay.load(GOLDEN / "detr_s0.npz")[:2]


def batch_of(arrays):
    """Both images, on one canvas, with slots of padding."""
    pixels = np.zeros((2, *CANVAS, 3), np.uint8)
    boxes, labels = np.zeros((2, 4, 4), np.float32), np.zeros((2, 4), np.int32)
    valid = np.zeros((2, 4), bool)
    for i, (height, width) in enumerate(SIZES):
        pixels[i, :height, :width] = arrays[f"in/image{i}"]
        count = len(arrays[f"in/boxes{i}"])
        boxes[i, :count] = arrays[f"in/boxes{i}"]
        labels[i, :count], valid[i, :count] = arrays[f"in/labels{i}"], True
    truth = GroundTruth(boxes, labels, valid, np.zeros_like(valid))
    scales, ids = np.ones((2, 2), np.float32), np.arange(2, dtype=np.int32)
    return Batch(pixels, np.array(SIZES, np.int32), scales, ids, truth)


def test_every_stage(golden):
    state, arrays = golden
    variables = mapping.to_variables(state, NETWORK)
    batch = batch_of(arrays)
    network = detr.DETRNetwork(SMALL, ResNet(18))
    run = jax.jit(
        lambda variables, method, *given: network.apply(
            variables, *given, method=method
        ),
        static_argnums=1,
    )
    pixels, sizes = preprocess(batch, SMALL.preprocessing)
    memory = run(variables, "encode", pixels, sizes)
    inside = np.asarray(memory.mask)[:, 0, 0, :, None]
    assert np.sum(inside) == 4 * 5 + 3 * 6
    # Cells of padding, which nothing attends to, have other positions there.
    assert_close(memory.features * inside, arrays["float32/encoder"] * inside)
    queries = run(variables, "decode", memory)
    assert_close(queries, arrays["float32/queries"])
    logits, boxes = run(variables, "heads", queries)
    assert_close(logits, arrays["float32/logits"])
    assert_close(boxes, arrays["float32/boxes"])
    truth = set_prediction._in_fractions(batch.truth, sizes)
    for layer in range(2):
        match = jax.jit(set_prediction.match_queries, static_argnums=3)
        index, positive = match(logits[layer], boxes[layer], truth, SMALL.set_loss)
        for i in range(2):
            matched = np.flatnonzero(positive[i])
            pairs = np.stack([matched, index[i][matched]])
            np.testing.assert_array_equal(pairs, arrays[f"float32/matched/{layer}/{i}"])
    run = jax.jit(set_prediction.losses_per_layer, static_argnums=4)
    parts = run(logits, boxes, batch.truth, sizes, SMALL.set_loss)
    for name, theirs in LOSSES.items():
        expected = [arrays[f"float32/loss/{theirs}{end}"] for end in ("_0", "")]
        np.testing.assert_allclose(parts[name], expected, rtol=1e-4)


@pytest.mark.slow
def test_gradients_in_float64(golden, monkeypatch):
    state, arrays = golden

    def normalize(pixels, sizes, **statistics):
        pixels = normalize_in_float64(pixels, sizes, **statistics)
        return layers.zero_outside(pixels, sizes, 1)

    monkeypatch.setattr(images, "normalize", normalize)
    monkeypatch.setattr(layers, "convolve", convolve_in_float64)
    with jax.enable_x64(True):
        detector = detr.detr(SMALL, ResNet(18, dtype=jnp.float64))
        variables = mapping.to_variables(state, NETWORK)
        variables = jax.tree.map(np.float64, variables)

        def loss(params, batch):
            given = {**variables, "params": params}
            return detector.loss(given, batch, jax.random.key(0))[0]

        gradient = jax.value_and_grad(loss)
        gradient = jax.jit(gradient, compiler_options=NO_OPTIMIZATION)
        total, gradients = gradient(variables["params"], batch_of(arrays))
    np.testing.assert_allclose(total, arrays["float64/loss"], rtol=1e-5)
    constants = variables["constants"]
    gradients = {"params": gradients, "constants": constants}
    gradients = mapping.to_state_dict(gradients, NETWORK)
    frozen = {
        tensor.theirs
        for tensor in NETWORK.tensors
        if tensor.ours.startswith("constants")
    }
    norms = [np.linalg.norm(gradients[x]) for x in sorted(gradients.keys() - frozen)]
    # Those of the keys' biases, which no softmax sees, are 0 but for rounding.
    np.testing.assert_allclose(norms, arrays["float64/grad_norm"], 1e-5, 1e-8)


def test_every_variable_there_and_back(golden):
    """Of the small network its numbers, of the published one names and shapes."""
    state, _ = golden
    back = mapping.to_state_dict(mapping.to_variables(state, NETWORK), NETWORK)
    assert back.keys() == state.keys()
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, state[name], err_msg=name)
    shapes = json.loads((GOLDEN / "detr_s0.json").read_text())["detr_resnet50"]
    state = {x: np.broadcast_to(np.float32(0), shape) for x, shape in shapes.items()}
    assert detectors.recognize(state) == "detr_resnet50"
    back = detectors.export(detectors.load(state), "detr_resnet50")
    assert {name: list(x.shape) for name, x in back.items()} == shapes
