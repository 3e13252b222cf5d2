"""Heads: order of the answers, sharing, starting values, dropout, doubling."""

import functools

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


def test_answers_run_over_levels_rows_and_columns(rng):
    pyramid = {
        4: jnp.asarray(rng.normal(size=(2, 2, 2, 8)), jnp.float32),
        3: jnp.asarray(rng.normal(size=(2, 4, 3, 8)), jnp.float32),
    }
    head = DenseHead(5, depth=0)
    variables = head.init(jax.random.key(0), pyramid)
    answers = head.apply(variables, pyramid)
    assert answers.shape == (2, 4 * 3 + 2 * 2, 5)
    # Only the cell itself matters with a kernel that looks at its centre alone.
    kernel = variables["params"]["output"]["kernel"]
    centre = jnp.zeros_like(kernel).at[1, 1].set(kernel[1, 1])
    answers = head.apply(
        {"params": {"output": {"kernel": centre, "bias": 0 * kernel[0, 0, 0]}}}, pyramid
    )
    np.testing.assert_allclose(
        answers[1, 1 * 3 + 2], pyramid[3][1, 1, 2] @ kernel[1, 1], atol=1e-6
    )
    np.testing.assert_allclose(
        answers[0, 12 + 1 * 2 + 0], pyramid[4][0, 1, 0] @ kernel[1, 1], atol=1e-6
    )


def test_levels_share_parameters_and_answers_start_at_the_bias():
    pyramid = {level: jnp.zeros((1, 4, 4, 8)) for level in (3, 4, 5)}
    head = DenseHead(6, depth=2, bias=-4.6, dtype=jnp.bfloat16)
    answers, variables = head.init_with_output(jax.random.key(0), pyramid)
    assert set(variables["params"]) == {"conv0", "conv1", "output"}
    chex.assert_type(answers, jnp.float32)
    np.testing.assert_allclose(answers, -4.6, rtol=1e-2)


def test_proposals_run_over_levels_rows_columns_and_shapes(rng):
    pyramid = {
        5: jnp.asarray(rng.normal(size=(2, 2, 1, 8)), jnp.float32),
        4: jnp.asarray(rng.normal(size=(2, 4, 2, 8)), jnp.float32),
    }
    head = RPNHead(3, depth=0, outputs=2)
    variables = drawn.variables(rng, head, pyramid)
    (logits, deltas) = jax.jit(head.apply)(variables, pyramid)
    assert logits.shape == (2, 3 * (8 + 2), 2)
    assert deltas.shape == (2, 3 * (8 + 2), 4)

    def answer(cell, name):
        layer = variables["params"][name]
        return (cell @ layer["kernel"][0, 0] + layer["bias"]).reshape(3, -1)

    cell = pyramid[4][1, 3, 1]
    of_cell = slice(3 * (3 * 2 + 1), 3 * (3 * 2 + 2))
    np.testing.assert_allclose(
        logits[1, of_cell], answer(cell, "objectness"), atol=1e-5
    )
    cell = pyramid[5][0, 1, 0]
    np.testing.assert_allclose(deltas[0, -3:], answer(cell, "deltas"), atol=1e-5)


@pytest.mark.parametrize("norm", ["none", "group"])
def test_proposals_do_not_see_the_padding(rng, norm):
    features = jnp.asarray(rng.normal(size=(1, 2, 3, 4)), jnp.float32)
    canvas = jnp.ones((1, 4, 4, 4)).at[:, :2, :3].set(features)
    head = RPNHead(1, depth=2, channels=6, norm=norm)
    variables = drawn.variables(rng, head, {4: features})
    assert variables["params"]["conv1"]["kernel"].shape == (3, 3, 6, 6)
    alone = jax.jit(head.apply)(variables, {4: features})
    padded = jax.jit(head.apply)(variables, {4: canvas}, jnp.array([[32, 48]]))
    for ours, expected in zip(padded, alone, strict=True):
        kept = ours.reshape(1, 4, 4, -1)[:, :2, :3].reshape(expected.shape)
        chex.assert_trees_all_close(kept, expected, atol=1e-5)


def test_fully_connected_layers_by_hand():
    head = FCHead(2, depth=2)
    regions = jnp.arange(8.0).reshape(2, 2, 1, 2)
    first = np.array([[1.0, 0], [0, 1], [0, 0], [1, -9]])
    second = np.array([[1.0, -1], [2, 0]])
    params = {
        "fc0": {"kernel": first, "bias": np.array([0.0, 1])},
        "fc1": {"kernel": second, "bias": np.array([0.0, 4])},
    }
    # (0, 1, 2, 3) -> (3, 0) -> (3, 1) and (4, 5, 6, 7) -> (11, 0) -> (11, 0).
    answers = jax.jit(head.apply)({"params": params}, regions)
    np.testing.assert_array_equal(answers, [[3, 1], [11, 0]])


def test_convolutions_before_a_fully_connected_layer(rng):
    head = ConvFCHead(2, channels=3, depth=1, norm="frozen")
    regions = jnp.asarray(rng.normal(size=(4, 2, 2, 3)), jnp.float32)
    variables = drawn.variables(rng, head, regions)
    params, norm = variables["params"], variables["constants"]["norm0"]["frozen"]
    assert set(params["conv0"]) == {"kernel"}  # the norm has the bias
    kernel = jnp.zeros((3, 3, 3, 3)).at[1, 1].set(params["conv0"]["kernel"][1, 1])
    params = {**params, "conv0": {"kernel": kernel}}
    answer = jax.jit(head.apply)({**variables, "params": params}, regions)
    x = np.asarray(regions) @ np.asarray(kernel[1, 1])
    factor = norm["scale"] / np.sqrt(norm["var"] + 1e-5)
    x = (x - np.reshape(norm["mean"], (1, 1, 1, 3))) * np.reshape(factor, (1, 1, 1, 3))
    x = np.maximum(x + np.reshape(norm["bias"], (1, 1, 1, 3)), 0).reshape(4, -1)
    fc = params["fc"]
    expected = np.maximum(x @ fc["kernel"] + np.reshape(fc["bias"], (1, 2)), 0)
    np.testing.assert_allclose(answer, expected, atol=1e-5)


def test_dropout_is_drawn_for_each_image_alone(rng):
    regions = jnp.asarray(rng.normal(size=(6, 2, 2, 3)), jnp.float32)
    head = FCHead(64, depth=1, dropout=0.25)
    variables = drawn.variables(rng, head, regions)
    keys = jax.random.split(jax.random.key(1), 2)
    dropped = jax.jit(head.apply)(variables, regions, keys)
    whole = jax.jit(head.apply)(variables, regions)
    gone = (dropped == 0) & (whole > 0)
    np.testing.assert_allclose(jnp.sum(gone) / jnp.sum(whole > 0), 0.25, atol=0.1)
    kept = jnp.where(gone, 0, whole) * 4 / 3
    np.testing.assert_allclose(dropped, kept, rtol=1e-5)
    other_way = jnp.concatenate([regions[3:], regions[:3]])
    swapped = jax.jit(head.apply)(variables, other_way, keys[::-1])
    np.testing.assert_allclose(swapped[3:], dropped[:3], rtol=1e-5)
    assert not np.array_equal(gone[:3], gone[3:])


def test_dropping_all_outputs_is_refused(rng):
    with pytest.raises(ValueError, match=r"dropout is 1\.0; it must be in \[0, 1\)"):
        FCHead(4, dropout=1.0).init(jax.random.key(0), rng.normal(size=(1, 2)))


def test_layers_drop_different_outputs():
    # Ones in, and each layer passes its inputs on: survivors of both have 1 / .5 ** 2.
    head = FCHead(256, depth=2, dropout=0.5)
    identity = {"kernel": jnp.eye(256), "bias": jnp.zeros(256)}
    variables = {"params": {"fc0": identity, "fc1": identity}}
    answer = jax.jit(head.apply)(
        variables, jnp.ones((1, 256)), jax.random.split(jax.random.key(0), 1)
    )
    assert set(np.unique(answer)) == {0, 4}
    np.testing.assert_allclose(jnp.mean(answer > 0), 0.25, atol=0.1)


@pytest.mark.parametrize(("class_agnostic", "boxes"), [(False, 5), (True, 1)])
def test_what_a_region_predictor_starts_with(rng, class_agnostic, boxes):
    features = jnp.asarray(rng.normal(size=(2, 3, 400)), jnp.bfloat16)
    head = BoxPredictor(5, class_agnostic, dtype=jnp.bfloat16)
    start = jax.jit(head.init_with_output)
    (logits, deltas), variables = start(jax.random.key(0), features)
    assert logits.shape == (2, 3, 6)
    assert deltas.shape == (2, 3, boxes, 4)
    chex.assert_type([logits, deltas], jnp.float32)
    params = variables["params"]
    np.testing.assert_allclose(np.std(params["classes"]["kernel"]), 0.01, rtol=0.1)
    np.testing.assert_allclose(np.std(params["deltas"]["kernel"]), 0.001, rtol=0.1)
    # A box's four numbers stand together.
    x, kernel = features[1, 2].astype(jnp.float32), params["deltas"]["kernel"]
    np.testing.assert_allclose(deltas[1, 2, -1], x @ kernel[:, -4:], atol=1e-2)


def test_masks_agree_with_a_transposed_convolution(rng):
    regions = jnp.asarray(rng.normal(size=(3, 4, 4, 5)), jnp.float32)
    head = MaskHead(2, channels=6, depth=1)
    variables = drawn.variables(rng, head, regions)
    masks = jax.jit(head.apply)(variables, regions)
    assert masks.shape == (3, 8, 8, 2)
    params = variables["params"]
    assert set(params) == {"conv0", "doubling", "output"}
    same = jax.lax.conv_general_dilated(
        regions,
        params["conv0"]["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x = np.maximum(np.asarray(same) + params["conv0"]["bias"], 0)
    layer = params["doubling"]  # its kernel: rows, columns, from, to
    doubled = np.zeros((3, 8, 8, 6))
    for row in (0, 1):
        for column in (0, 1):
            answer = x @ layer["kernel"][row, column] + layer["bias"]
            doubled[:, row::2, column::2] = np.maximum(answer, 0)
    expected = doubled @ params["output"]["kernel"][0, 0] + params["output"]["bias"]
    np.testing.assert_allclose(masks, expected, rtol=1e-4, atol=1e-4)


def test_masks_in_bfloat16_are_float32_logits():
    head = MaskHead(2, channels=4, norm="group", dtype=jnp.bfloat16)
    regions = jnp.ones((1, 2, 2, 4))
    masks, variables = jax.eval_shape(head.init_with_output, jax.random.key(0), regions)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    assert masks.dtype == jnp.float32
    assert {"conv3", "norm3"} <= set(variables["params"])


def fcos_pyramid(rng):
    shapes = {4: (2, 2, 1, 8), 3: (2, 4, 2, 8)}
    return {k: rng.normal(size=v).astype(np.float32) for k, v in shapes.items()}


@pytest.mark.parametrize("tower", ["box", "class"])
def test_what_the_towers_of_fcos_answer(rng, tower):
    pyramid = fcos_pyramid(rng)
    head = FCOSHead(3, depth=0, centerness_on=tower)
    variables = drawn.variables(rng, head, pyramid)
    params = variables["params"]
    # Each answer is read from the cell alone, and no level is as large as another.
    for name in ("classes", "sides", "centerness"):
        kernel = np.zeros_like(params[name]["kernel"])
        kernel[1, 1] = params[name]["kernel"][1, 1]
        params[name]["kernel"] = kernel
    params["scales"] = np.array([2.0, 3.0])
    logits, sides, centerness = jax.jit(head.apply)(variables, pyramid)
    assert logits.shape == (2, 10, 3) and sides.shape == (2, 10, 4)
    assert centerness.shape == (2, 10)

    def answer(cell, name):
        return cell @ params[name]["kernel"][1, 1] + params[name]["bias"]

    for cell, index, scale in (
        (pyramid[3][1, 3, 1], 3 * 2 + 1, 2.0),
        (pyramid[4][1, 1, 0], 8 + 1, 3.0),
    ):
        near = functools.partial(np.testing.assert_allclose, atol=1e-5)
        near(logits[1, index], answer(cell, "classes"))
        near(sides[1, index], scale * answer(cell, "sides"))
        near(centerness[1, index], answer(cell, "centerness")[0])


@pytest.mark.parametrize(("tower", "other"), [("box", "class"), ("class", "box")])
def test_which_tower_says_the_centerness(rng, tower, other):
    pyramid = fcos_pyramid(rng)
    head = FCOSHead(3, depth=1, centerness_on=tower)
    variables = drawn.variables(rng, head, pyramid)

    @jax.jit
    @jax.grad
    def slope(params):
        return jnp.sum(head.apply({"params": params}, pyramid)[2])

    slopes = slope(variables["params"])
    assert np.any(slopes[f"{tower}_tower"]["conv0"]["kernel"])
    assert not np.any(slopes[f"{other}_tower"]["conv0"]["kernel"])


def test_what_the_head_of_fcos_starts_with(rng):
    pyramid = fcos_pyramid(rng)
    params = jax.jit(FCOSHead(3, depth=0, bias=-4.6).init)(jax.random.key(0), pyramid)
    np.testing.assert_allclose(params["params"]["classes"]["bias"], -4.6, rtol=1e-6)
    np.testing.assert_array_equal(params["params"]["scales"], [1, 1])
    start = FCOSHead(3, depth=1, dtype=jnp.bfloat16).init_with_output
    answers, params = jax.eval_shape(start, jax.random.key(0), pyramid)
    chex.assert_type(answers, jnp.float32)
    params = params["params"]
    for tower in ("class_tower", "box_tower"):
        # The convolutions have biases before their norms too.
        assert set(params[tower]["conv0"]) == {"kernel", "bias"}
        assert set(params[tower]["norm0"]) == {"group"}
    plain = FCOSHead(3, depth=0, level_scales=False)
    assert "scales" not in jax.eval_shape(plain.init, jax.random.key(0), pyramid)


def test_the_head_of_fcos_does_not_see_the_padding(rng):
    features = rng.normal(size=(1, 2, 3, 4)).astype(np.float32)
    canvas = np.ones((1, 4, 4, 4), np.float32)
    canvas[:, :2, :3] = features
    head = FCOSHead(2, depth=2)
    variables = drawn.variables(rng, head, {4: features})
    alone = jax.jit(head.apply)(variables, {4: features})
    padded = jax.jit(head.apply)(variables, {4: canvas}, jnp.array([[32, 48]]))
    for ours, expected in zip(padded, alone, strict=True):
        kept = ours.reshape(1, 4, 4, -1)[:, :2, :3].reshape(expected.shape)
        chex.assert_trees_all_close(kept, expected, atol=1e-5)
