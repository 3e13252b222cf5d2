"""Heads: order of the outputs, sharing, starting values, dropout, padding."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.nn.heads import (
    BoxPredictor,
    ConvFCHead,
    DenseHead,
    FCHead,
    FCOSHead,
    MaskHead,
    RPNHead,
)
from tests.nn import drawn

near = partial(np.testing.assert_allclose, atol=1e-5)


def two_levels(rng):
    shapes = {4: (2, 2, 1, 8), 3: (2, 4, 2, 8)}
    return {k: rng.normal(size=v).astype(np.float32) for k, v in shapes.items()}


def center_only(params, *names):
    """The layers' 3x3 kernels without what lies beside the cell itself."""
    for name in names:
        kernel = np.zeros_like(params[name]["kernel"])
        kernel[1, 1] = params[name]["kernel"][1, 1]
        params[name]["kernel"] = kernel


def output(params, name, cell):
    """Of a layer for one cell, by hand."""
    kernel = params[name]["kernel"]
    return cell @ kernel[len(kernel) // 2, len(kernel) // 2] + params[name]["bias"]


def test_outputs_run_over_levels_rows_and_columns(rng):
    pyramid, head = two_levels(rng), DenseHead(5, depth=0)
    variables = drawn.variables(rng, head, pyramid)
    params = variables["params"]
    center_only(params, "output")
    outputs = jax.jit(head.apply)(variables, pyramid)
    assert outputs.shape == (2, 4 * 2 + 2 * 1, 5)
    near(outputs[1, 1 * 2 + 1], output(params, "output", pyramid[3][1, 1, 1]))
    near(outputs[0, 8 + 1 * 1 + 0], output(params, "output", pyramid[4][0, 1, 0]))


def test_levels_share_parameters_and_outputs_start_at_the_bias():
    pyramid = {level: jnp.zeros((1, 4, 4, 8)) for level in (3, 4, 5)}
    head = DenseHead(6, depth=2, bias=-4.6, dtype=jnp.bfloat16)
    outputs, variables = head.init_with_output(jax.random.key(0), pyramid)
    assert set(variables["params"]) == {"conv0", "conv1", "output"}
    chex.assert_type(outputs, jnp.float32)
    np.testing.assert_allclose(outputs, -4.6, rtol=1e-2)


def test_anchors_run_over_levels_rows_columns_and_shapes(rng):
    pyramid, head = two_levels(rng), RPNHead(3, depth=0, outputs=2)
    variables = drawn.variables(rng, head, pyramid)
    logits, deltas = jax.jit(head.apply)(variables, pyramid)
    assert logits.shape == (2, 3 * (8 + 2), 2)
    assert deltas.shape == (2, 3 * (8 + 2), 4)
    of_layer = partial(output, variables["params"])
    of_cell = slice(3 * (3 * 2 + 1), 3 * (3 * 2 + 2))
    expected = of_layer("objectness", pyramid[3][1, 3, 1]).reshape(3, 2)
    near(logits[1, of_cell], expected)
    near(deltas[0, -3:], of_layer("deltas", pyramid[4][0, 1, 0]).reshape(3, 4))


def test_outputs_of_fcos(rng):
    pyramid, head = two_levels(rng), FCOSHead(3, depth=0)
    variables = drawn.variables(rng, head, pyramid)
    params = variables["params"]
    center_only(params, "classes", "ltrb", "centerness")
    params["scales"] = np.array([2.0, 3.0])
    logits, ltrb, centerness = jax.jit(head.apply)(variables, pyramid)
    assert logits.shape == (2, 10, 3) and ltrb.shape == (2, 10, 4)
    assert centerness.shape == (2, 10)
    for cell, index, scale in (
        (pyramid[3][1, 3, 1], 3 * 2 + 1, 2.0),
        (pyramid[4][1, 1, 0], 8 + 1, 3.0),
    ):
        near(logits[1, index], output(params, "classes", cell))
        near(ltrb[1, index], scale * output(params, "ltrb", cell))
        near(centerness[1, index], output(params, "centerness", cell)[0])


@pytest.mark.parametrize(("tower", "other"), [("box", "class"), ("class", "box")])
def test_which_tower_predicts_the_centerness(rng, tower, other):
    pyramid, head = two_levels(rng), FCOSHead(3, depth=1, centerness_on=tower)
    variables = drawn.variables(rng, head, pyramid)

    @jax.jit
    @jax.grad
    def slope(params):
        return jnp.sum(head.apply({"params": params}, pyramid)[2])

    slopes = slope(variables["params"])
    assert np.any(slopes[f"{tower}_tower"]["conv0"]["kernel"])
    assert not np.any(slopes[f"{other}_tower"]["conv0"]["kernel"])


def test_what_the_head_of_fcos_starts_with(rng):
    start = FCOSHead(3, depth=1, bias=-4.6, dtype=jnp.bfloat16).init_with_output
    outputs, variables = jax.jit(start)(jax.random.key(0), two_levels(rng))
    chex.assert_type(outputs, jnp.float32)
    params = variables["params"]
    np.testing.assert_allclose(params["classes"]["bias"], -4.6, rtol=1e-6)
    np.testing.assert_array_equal(params["scales"], [1, 1])
    for tower in ("class_tower", "box_tower"):
        # The convolutions have biases before their norms too.
        assert set(params[tower]["conv0"]) == {"kernel", "bias"}
        assert set(params[tower]["norm0"]) == {"group"}
    plain = FCOSHead(3, depth=0, level_scales=False)
    assert "scales" not in jax.eval_shape(
        plain.init, jax.random.key(0), two_levels(rng)
    )


@pytest.mark.parametrize(
    "head",
    [
        RPNHead(1, depth=2, channels=6),
        RPNHead(1, depth=2, channels=6, norm="group"),
        FCOSHead(2, depth=2),
    ],
    ids=["rpn", "rpn with norms", "fcos"],
)
def test_padding_changes_nothing(rng, head):
    features = rng.normal(size=(1, 2, 3, 4)).astype(np.float32)
    canvas = np.ones((1, 4, 4, 4), np.float32)
    canvas[:, :2, :3] = features
    variables = drawn.variables(rng, head, {4: features})
    alone = jax.jit(head.apply)(variables, {4: features})
    padded = jax.jit(head.apply)(variables, {4: canvas}, jnp.array([[32, 48]]))
    for ours, expected in zip(padded, alone, strict=True):
        kept = ours.reshape(1, 4, 4, -1)[:, :2, :3].reshape(expected.shape)
        chex.assert_trees_all_close(kept, expected, atol=1e-5)


def test_fully_connected_layers_by_hand():
    head = FCHead(2, depth=2)
    crops = jnp.arange(8.0).reshape(2, 2, 1, 2)
    first = np.array([[1.0, 0], [0, 1], [0, 0], [1, -9]])
    second = np.array([[1.0, -1], [2, 0]])
    params = {
        "fc0": {"kernel": first, "bias": np.array([0.0, 1])},
        "fc1": {"kernel": second, "bias": np.array([0.0, 4])},
    }
    # (0, 1, 2, 3) -> (3, 0) -> (3, 1) and (4, 5, 6, 7) -> (11, 0) -> (11, 0).
    outputs = jax.jit(head.apply)({"params": params}, crops)
    np.testing.assert_array_equal(outputs, [[3, 1], [11, 0]])


def test_convolutions_before_a_fully_connected_layer(rng):
    head = ConvFCHead(2, channels=3, depth=1, norm="frozen")
    crops = rng.normal(size=(4, 2, 2, 3)).astype(np.float32)
    variables = drawn.variables(rng, head, crops)
    params, norm = variables["params"], variables["constants"]["norm0"]["frozen"]
    assert set(params["conv0"]) == {"kernel"}  # the norm has the bias
    center_only(params, "conv0")
    outputs = jax.jit(head.apply)(variables, crops)
    mean, bias, factor = (
        np.reshape(x, (1, 1, 1, 3))
        for x in (
            norm["mean"],
            norm["bias"],
            norm["scale"] / np.sqrt(norm["var"] + 1e-5),
        )
    )
    x = (crops @ params["conv0"]["kernel"][1, 1] - mean) * factor + bias
    x = np.maximum(x, 0).reshape(4, -1) @ params["fc"]["kernel"]
    near(outputs, np.maximum(x + np.reshape(params["fc"]["bias"], (1, 2)), 0))


def test_dropout_is_drawn_for_each_image_alone(rng):
    crops = rng.normal(size=(6, 2, 2, 3)).astype(np.float32)
    head = FCHead(64, depth=1, dropout=0.25)
    variables = drawn.variables(rng, head, crops)
    keys = jax.random.split(jax.random.key(1), 2)
    dropped = jax.jit(head.apply)(variables, crops, keys)
    whole = jax.jit(head.apply)(variables, crops)
    gone = (dropped == 0) & (whole > 0)
    np.testing.assert_allclose(jnp.sum(gone) / jnp.sum(whole > 0), 0.25, atol=0.1)
    kept = jnp.where(gone, 0, whole) * 4 / 3
    np.testing.assert_allclose(dropped, kept, rtol=1e-5)
    other_way = jnp.concatenate([crops[3:], crops[:3]])
    swapped = jax.jit(head.apply)(variables, other_way, keys[::-1])
    np.testing.assert_allclose(swapped[3:], dropped[:3], rtol=1e-5)
    assert not np.array_equal(gone[:3], gone[3:])


def test_layers_drop_different_outputs():
    # Ones in, and each layer passes its inputs on: survivors of both have 1 / .5 ** 2.
    head = FCHead(256, depth=2, dropout=0.5)
    identity = {"kernel": jnp.eye(256), "bias": jnp.zeros(256)}
    variables = {"params": {"fc0": identity, "fc1": identity}}
    keys = jax.random.split(jax.random.key(0), 1)
    outputs = jax.jit(head.apply)(variables, jnp.ones((1, 256)), keys)
    assert set(np.unique(outputs)) == {0, 4}
    np.testing.assert_allclose(jnp.mean(outputs > 0), 0.25, atol=0.1)


def test_dropping_all_outputs_is_refused(rng):
    with pytest.raises(ValueError, match=r"dropout is 1\.0; it must be in \[0, 1\)"):
        FCHead(4, dropout=1.0).init(jax.random.key(0), rng.normal(size=(1, 2)))


@pytest.mark.parametrize(("class_agnostic", "boxes"), [(False, 5), (True, 1)])
def test_what_a_box_predictor_starts_with(rng, class_agnostic, boxes):
    features = jnp.asarray(rng.normal(size=(2, 3, 400)), jnp.bfloat16)
    head = BoxPredictor(5, class_agnostic, dtype=jnp.bfloat16)
    start = jax.jit(head.init_with_output)
    (logits, deltas), variables = start(jax.random.key(0), features)
    assert logits.shape == (2, 3, 6) and deltas.shape == (2, 3, boxes, 4)
    chex.assert_type([logits, deltas], jnp.float32)
    params = variables["params"]
    np.testing.assert_allclose(np.std(params["classes"]["kernel"]), 0.01, rtol=0.1)
    np.testing.assert_allclose(np.std(params["deltas"]["kernel"]), 0.001, rtol=0.1)
    # A box's four numbers stand together.
    x, kernel = features[1, 2].astype(jnp.float32), params["deltas"]["kernel"]
    np.testing.assert_allclose(deltas[1, 2, -1], x @ kernel[:, -4:], atol=1e-2)


def test_masks_agree_with_a_transposed_convolution(rng):
    crops = rng.normal(size=(3, 4, 4, 5)).astype(np.float32)
    head = MaskHead(2, channels=6, depth=1)
    variables = drawn.variables(rng, head, crops)
    params = variables["params"]
    assert set(params) == {"conv0", "deconv", "output"}
    center_only(params, "conv0")
    masks = jax.jit(head.apply)(variables, crops)
    x = np.maximum(output(params, "conv0", crops), 0)
    layer = params["deconv"]  # its kernel: rows, columns, from, to
    doubled = np.zeros((3, 8, 8, 6))
    for row in (0, 1):
        for column in (0, 1):
            cells = x @ layer["kernel"][row, column] + layer["bias"]
            doubled[:, row::2, column::2] = np.maximum(cells, 0)
    expected = output(params, "output", doubled)
    np.testing.assert_allclose(masks, expected, rtol=1e-4, atol=1e-4)


def test_masks_in_bfloat16_are_float32_logits():
    head = MaskHead(2, channels=4, norm="group", dtype=jnp.bfloat16)
    crops = jnp.ones((1, 2, 2, 4))
    masks, variables = jax.eval_shape(head.init_with_output, jax.random.key(0), crops)
    chex.assert_type([masks, *jax.tree.leaves(variables)], jnp.float32)
    assert {"conv3", "norm3"} <= set(variables["params"])
