"""DETRs against transformers' own: stages, detections' parts, losses and gradients."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.detectors import deformable_detr, detr, set_prediction
from jaxdet.detectors.detector import preprocess
from jaxdet.nn import convolution, layers
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.ops import images
from jaxdet.structs import Batch, GroundTruth
from jaxdet.weights import detectors, mapping, transformers_maps
from jaxdet.weights.mapping import NetworkMap
from tests.conftest import GOLDEN
from tests.golden import replay
from tests.golden.record_transformers import CONFIGS as THEIR_CONFIGS
from tests.weights.test_detectors import (
    NO_OPTIMIZATION,
    assert_close,
    convolve_in_float64,
    normalize_in_float64,
)

LOSSES = {"class_loss": "loss_ce", "l1_loss": "loss_bbox", "giou_loss": "loss_giou"}


def config_of(name):
    theirs = THEIR_CONFIGS[name]
    config, fields = detr.TRANSFORMERS, {}
    if name != "detr":
        config = deformable_detr.TRANSFORMERS
        fields["refine_boxes"] = name == "deformable_detr_refined"
        # The authors' weight of the class loss is 2, that of transformers 1.
        fields["set_loss"] = dataclasses.replace(config.set_loss, class_weight=1.0)
    return dataclasses.replace(
        config,
        num_classes=theirs["num_labels"],
        num_queries=theirs["num_queries"],
        channels=theirs["d_model"],
        num_heads=theirs["encoder_attention_heads"],
        hidden=theirs["encoder_ffn_dim"],
        encoder_depth=theirs["encoder_layers"],
        decoder_depth=theirs["decoder_layers"],
        dropout=0.0,
        **fields,
    )


class Golden:
    """One of the networks, and what transformers computes of it."""

    def __init__(self, name):
        self.state, self.arrays, about = replay.load(GOLDEN / f"{name}_s0.npz")
        self.published, self.config = about["published"], config_of(name)
        small = {"resnet": 18, "depths": (2, 2), "heads": 4}
        if name == "detr":
            maps = transformers_maps.detr(**small)
            self.make_network, self.make_detector = detr.DETRNetwork, detr.detr
        else:
            small["channels"] = self.config.channels
            refine = self.config.refine_boxes
            maps = transformers_maps.deformable_detr(**small, refine_boxes=refine)
            self.make_network = deformable_detr.DeformableDETRNetwork
            self.make_detector = deformable_detr.deformable_detr
        self.map = NetworkMap(f"a small {name}", tuple(maps))


@pytest.fixture(scope="module", params=THEIR_CONFIGS)
def golden(request):
    return Golden(request.param)


def batch_of(arrays):
    """Both images, on one canvas, with slots of padding."""
    sizes = arrays["in/sizes"]
    pixels = np.zeros((2, *np.max(sizes, axis=0), 3), np.uint8)
    boxes, labels = np.zeros((2, 4, 4), np.float32), np.zeros((2, 4), np.int32)
    valid = np.zeros((2, 4), bool)
    for i, (height, width) in enumerate(sizes):
        pixels[i, :height, :width] = arrays[f"in/image{i}"]
        count = len(arrays[f"in/boxes{i}"])
        boxes[i, :count] = arrays[f"in/boxes{i}"]
        labels[i, :count], valid[i, :count] = arrays[f"in/labels{i}"], True
    truth = GroundTruth(boxes, labels, valid, np.zeros_like(valid))
    scales, ids = np.ones((2, 2), np.float32), np.arange(2, dtype=np.int32)
    return Batch(pixels, sizes.astype(np.int32), scales, ids, truth)


def inside_images(memory):
    """Which of the cells belong to their image, `[B, T, 1]`."""
    if isinstance(memory, detr.Memory):
        return np.asarray(memory.mask)[:, 0, 0, :, None]
    return np.all((memory.centers() > 0) & (memory.centers() < 1), -1, keepdims=True)


def test_every_stage(golden):
    arrays, config = golden.arrays, golden.config
    variables = mapping.to_variables(golden.state, golden.map)
    batch = batch_of(arrays)
    network = golden.make_network(config, ResNet(18))
    is_detr = isinstance(network, detr.DETRNetwork)
    pixels, sizes = preprocess(batch, config.preprocessing)

    def forward(pixels, sizes):
        apply = functools.partial(network.apply, variables)
        memory = apply(pixels, sizes, method="encode")
        if is_detr:
            queries = apply(memory, method="decode")
            return memory, queries, *apply(queries, method="heads")
        heads, sown = apply(memory, method="decode", capture_intermediates=True)
        sown = sown["intermediates"]
        queries = [sown[f"decoder_{i}"]["__call__"][0] for i in (0, 1)]
        return memory, jnp.stack(queries), *heads

    memory, queries, logits, boxes = jax.jit(forward)(pixels, sizes)
    inside = inside_images(memory)
    levels = (16 * 20 + 12 * 24) // 4, 4 * 5 + 3 * 6, 2 * 3 + 2 * 3, 1 * 2 + 1 * 2
    assert np.sum(inside) == (levels[1] if is_detr else sum(levels))
    # Cells of padding, which nothing attends to, have other positions there.
    assert_close(memory.features * inside, arrays["float32/encoder"] * inside)
    assert_close(queries, arrays["float32/queries"])
    assert_close(logits, arrays["float32/logits"])
    assert_close(boxes, arrays["float32/boxes"])
    truth = set_prediction._in_fractions(batch.truth, sizes)
    for layer in range(2):
        match = jax.jit(set_prediction.match_queries, static_argnums=3)
        index, positive = match(logits[layer], boxes[layer], truth, config.set_loss)
        for i in range(2):
            matched = np.flatnonzero(positive[i])
            pairs = np.stack([matched, index[i][matched]])
            np.testing.assert_array_equal(pairs, arrays[f"float32/matched/{layer}/{i}"])
    run = jax.jit(set_prediction.losses_per_layer, static_argnums=4)
    parts = run(logits, boxes, batch.truth, sizes, config.set_loss)
    for name, theirs in LOSSES.items():
        expected = [arrays[f"float32/loss/{theirs}{end}"] for end in ("_0", "")]
        np.testing.assert_allclose(parts[name], expected, rtol=1e-4)


@pytest.mark.slow
def test_gradients_in_float64(golden, monkeypatch):
    arrays = golden.arrays

    def normalize(pixels, sizes, **statistics):
        pixels = normalize_in_float64(pixels, sizes, **statistics)
        return layers.zero_outside(pixels, sizes, 1)

    monkeypatch.setattr(images, "normalize", normalize)
    monkeypatch.setattr(convolution, "convolve", convolve_in_float64)
    with jax.enable_x64(True):
        detector = golden.make_detector(golden.config, ResNet(18, dtype=jnp.float64))
        variables = mapping.to_variables(golden.state, golden.map)
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
    gradients = mapping.to_state_dict(gradients, golden.map)
    frozen = {
        tensor.theirs
        for tensor in golden.map.tensors
        if tensor.ours.startswith("constants")
    }
    norms = [np.linalg.norm(gradients[x]) for x in sorted(gradients.keys() - frozen)]
    # Those of the keys' biases, which no softmax sees, are 0 but for rounding.
    np.testing.assert_allclose(norms, arrays["float64/grad_norm"], 1e-5, 1e-8)


def test_every_variable_there_and_back(golden):
    """Of the small network its numbers, of the published one names and shapes."""
    state = golden.state
    back = mapping.to_state_dict(mapping.to_variables(state, golden.map), golden.map)
    assert back.keys() == state.keys()
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, state[name], err_msg=name)
    shapes = golden.published
    state = {x: np.broadcast_to(np.float32(0), shape) for x, shape in shapes.items()}
    name = detectors.recognize(state)
    back = detectors.export(detectors.load(state), name)
    assert {name: list(x.shape) for name, x in back.items()} == shapes
    config = detectors.MODELS[name].make.args[0]
    assert type(config) is type(golden.config)
    assert vars(config).get("refine_boxes") == vars(golden.config).get("refine_boxes")


@pytest.mark.parametrize(
    ("name", "size"), [("detr", 166_587_896), ("deformable_detr", 160_769_532)]
)
def test_published_files_hold_these_names(name, size):
    """Bytes of facebook/detr-resnet-50's and SenseTime/deformable-detr's safetensors.

    A file has 8, a header of all names and shapes that spaces fill up to a multiple
    of 8, and the numbers. Four counters of batches, which are not read, come first.
    """
    stage = "model.backbone.conv_encoder.model.layer{}.0.downsample.1"
    counters = [f"{stage.format(i)}.num_batches_tracked" for i in range(1, 5)]
    tensors = [(counter, "I64", []) for counter in counters]
    shapes = Golden(name).published
    tensors += [(name, "F32", shapes[name]) for name in sorted(shapes)]
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for tensor, dtype, shape in tensors:
        start, end = end, end + math.prod(shape) * int(dtype[1:]) // 8
        offsets = {"data_offsets": [start, end]}
        header[tensor] = {"dtype": dtype, "shape": shape} | offsets
    length = len(json.dumps(header, separators=(",", ":")))
    assert 8 + -(-length // 8) * 8 + end == size


def test_other_names_of_refined_heads_are_read():
    """Those of files that older versions of transformers wrote."""
    golden = Golden("deformable_detr_refined")
    old = {
        x.replace("model.decoder.bbox", "bbox"): golden.state[x] for x in golden.state
    }
    assert old.keys() != golden.state.keys()
    variables = mapping.to_variables(old, golden.map)
    jax.tree.map(
        np.testing.assert_array_equal,
        variables,
        mapping.to_variables(golden.state, golden.map),
    )
