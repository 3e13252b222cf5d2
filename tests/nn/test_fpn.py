"""The feature pyramid against NumPy, and its extra levels."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.nn.fpn import FPN, repeat_by_broadcast, repeat_by_convolution


@pytest.fixture(scope="module")
def stages():
    rng = np.random.default_rng(0)
    extents = {3: (7, 5), 4: (4, 3), 5: (2, 2)}  # of a 52 x 40 canvas: odd and even
    return {
        level: rng.normal(size=(1, *extent, 2 * level)).astype(np.float32)
        for level, extent in extents.items()
    }


def test_top_down_path_is_a_sum_of_nearest_neighbors(stages):
    fpn = FPN(3, 5, 4)
    variables = jax.jit(fpn.init)(jax.random.key(0), stages)
    params = variables["params"]
    lateral = {
        level: np.asarray(x) @ np.asarray(params[f"lateral{level}"]["kernel"][0, 0])
        for level, x in stages.items()
    }
    identity = np.zeros((3, 3, 4, 4), np.float32)
    identity[1, 1] = np.eye(4)
    for level in stages:
        params[f"output{level}"]["kernel"] = jnp.asarray(identity)
    four = lateral[4] + lateral[5][:, [0, 0, 1, 1]][:, :, [0, 0, 1]]
    three = lateral[3] + four[:, [0, 0, 1, 1, 2, 2, 3]][:, :, [0, 0, 1, 1, 2]]
    chex.assert_trees_all_close(
        jax.jit(fpn.apply)(variables, stages),
        {3: three, 4: four, 5: lateral[5]},
        atol=1e-5,
    )


@pytest.mark.parametrize("function", [repeat_by_broadcast, repeat_by_convolution])
def test_each_cell_is_repeated_exactly(rng, function):
    x = rng.normal(size=(2, 3, 2, 5)).astype(np.float32)
    weights = rng.normal(size=(2, 6, 4, 5)).astype(np.float32)

    def total(x):
        result = function(x)
        return jnp.sum(weights * result), result

    gradient, result = jax.jit(jax.grad(total, has_aux=True))(x)
    np.testing.assert_array_equal(result, x.repeat(2, axis=1).repeat(2, axis=2))
    sums = weights.reshape(2, 3, 2, 2, 2, 5).sum(axis=(2, 4))
    chex.assert_trees_all_close(gradient, sums, rtol=1e-5, atol=1e-6)


def test_pool_takes_every_second_cell(stages):
    init = jax.jit(FPN(3, 6, 8, extra="pool").init_with_output)
    pyramid, _ = init(jax.random.key(0), stages)
    np.testing.assert_array_equal(pyramid[6], pyramid[5][:, ::2, ::2])


@pytest.mark.parametrize(("extra", "fan_in"), [("c5", 10), ("p5", 8)])
def test_where_the_extra_levels_come_from(stages, extra, fan_in):
    fpn = FPN(3, 7, 8, extra=extra)
    variables = jax.jit(fpn.init)(jax.random.key(0), stages)
    assert variables["params"]["output6"]["kernel"].shape == (3, 3, fan_in, 8)
    pyramid = jax.jit(fpn.apply)(variables, stages)
    # One cell with zeros around: the convolution is its center tap. P7 sees relu(P6).
    center = variables["params"]["output7"]["kernel"][1, 1]
    seven = jax.nn.relu(pyramid[6]) @ center
    chex.assert_trees_all_close(pyramid[7], seven, atol=1e-5)


def test_a_missing_stage_is_named(stages):
    with pytest.raises(
        ValueError, match=r"finest level 2; the backbone has \[3, 4, 5\]"
    ):
        FPN(2, 5).init(jax.random.key(0), stages)
    gap = {level: stages[level] for level in (3, 5)}
    with pytest.raises(ValueError, match=r"finest level 3; the backbone has \[3, 5\]"):
        FPN(3, 5).init(jax.random.key(0), gap)


@pytest.mark.parametrize("norm", ["none", "group"])
@pytest.mark.parametrize("top_down", [True, False])
def test_padding_changes_nothing(stages, norm, top_down):
    fpn = FPN(3, 7, 8, norm=norm, top_down=top_down)
    variables = jax.jit(fpn.init)(jax.random.key(0), stages)
    apply = jax.jit(fpn.apply)
    alone = apply(variables, stages)
    # The same features in a larger canvas full of rubbish.
    larger = {
        level: np.pad(
            x,
            [(0, 0), *((0, (16 >> (level - 3)) - n) for n in x.shape[1:3]), (0, 0)],
            constant_values=9.0,
        )
        for level, x in stages.items()
    }
    padded = apply(variables, larger, jnp.array([[52, 40]]))
    for level, features in alone.items():
        _, height, width, _ = features.shape
        chex.assert_trees_all_close(
            padded[level][:, :height, :width], features, atol=1e-4
        )


def test_without_the_top_down_path_levels_know_nothing_of_each_other(stages):
    fpn = FPN(3, 7, 8, top_down=False)
    variables = jax.jit(fpn.init)(jax.random.key(0), stages)
    whole = jax.eval_shape(FPN(3, 7, 8).init, jax.random.key(0), stages)
    chex.assert_trees_all_equal_shapes(variables, whole)  # only the path is missing
    apply = jax.jit(fpn.apply)
    pyramid = apply(variables, stages)
    for level in stages:
        alone = jax.tree.map(np.zeros_like, stages) | {level: stages[level]}
        chex.assert_trees_all_equal(apply(variables, alone)[level], pyramid[level])
    # The coarsest stage has nothing above it in either.
    joined = jax.jit(FPN(3, 7, 8).apply)(variables, stages)
    for level, same in {3: False, 4: False, 5: True, 6: True, 7: True}.items():
        assert np.array_equal(joined[level], pyramid[level]) == same
