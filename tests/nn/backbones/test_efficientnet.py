"""EfficientNet-Lite0 against a plain one, written from its published layout."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdet.nn.backbones.efficientnet import EfficientNetLite0
from jaxdet.weights import backbones

# Blocks, kernel, stride, widening, channels before and after, as its authors list them.
LAYOUT = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


def blocks():
    """(kernel, stride, widening, channels before, channels after) of each."""
    for repeats, kernel, stride, widening, before, after in LAYOUT:
        yield kernel, stride, widening, before, after
        for _ in range(repeats - 1):
            yield kernel, 1, widening, after, after


def state_dict(rng):
    """Drawn tensors by the names and of the shapes of the published file."""
    state = {}

    def conv(name, *shape):
        spread = np.sqrt(2 / np.prod(shape[1:]))
        state[f"{name}.weight"] = rng.normal(0, spread, shape).astype(np.float32)

    def norm(name, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            values = rng.uniform(0.5, 1.5, channels) - (
                part in ("bias", "running_mean")
            )
            state[f"{name}.{part}"] = values.astype(np.float32)
        state[f"{name}.num_batches_tracked"] = np.zeros((), np.int64)

    conv("_conv_stem", 32, 3, 3, 3)
    norm("_bn0", 32)
    for index, (kernel, _, widening, before, after) in enumerate(blocks()):
        place, between = f"_blocks.{index}", widening * before
        if widening > 1:
            conv(f"{place}._expand_conv", between, before, 1, 1)
            norm(f"{place}._bn0", between)
        conv(f"{place}._depthwise_conv", between, 1, kernel, kernel)
        norm(f"{place}._bn1", between)
        conv(f"{place}._project_conv", after, between, 1, 1)
        norm(f"{place}._bn2", after)
    conv("_conv_head", 1280, 320, 1, 1)
    norm("_bn1", 1280)
    conv("_fc", 1000, 1280)
    return state


def plain_features(state, pixels):
    """`[B, H, W, 3]` -> features before each halving and at the end, in NCHW inside."""

    def conv(name, x, stride=1, groups=1):
        return lax.conv_general_dilated(
            x,
            state[f"{name}.weight"],
            (stride,) * 2,
            "SAME",
            feature_group_count=groups,
        )

    def norm(name, x):
        weight, bias, mean, var = (
            state[f"{name}.{part}"][None, :, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / jnp.sqrt(var + 1e-3) * weight + bias

    x = jnp.clip(
        norm("_bn0", conv("_conv_stem", pixels.transpose(0, 3, 1, 2), 2)), 0, 6
    )
    stages = []
    for index, (_, stride, widening, before, after) in enumerate(blocks()):
        place, y = f"_blocks.{index}", x
        if stride == 2:
            stages.append(x)
        if widening > 1:
            y = jnp.clip(norm(f"{place}._bn0", conv(f"{place}._expand_conv", y)), 0, 6)
        y = conv(f"{place}._depthwise_conv", y, stride, widening * before)
        y = jnp.clip(norm(f"{place}._bn1", y), 0, 6)
        y = norm(f"{place}._bn2", conv(f"{place}._project_conv", y))
        x = x + y if stride == 1 and before == after else y
    return [features.transpose(0, 2, 3, 1) for features in (*stages[1:], x)]


def test_agrees_with_a_plain_one(rng):
    """On a canvas of its own size, and on a larger one."""
    state = state_dict(rng)
    image = jnp.asarray(rng.normal(size=(1, 50, 63, 3)), jnp.float32)
    canvas = jnp.zeros((1, 64, 96, 3)).at[:, :50, :63].set(image)
    expected = jax.jit(plain_features)(state, image)
    variables = backbones.load(state, "efficientnet_lite0")
    network = EfficientNetLite0()
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)
    chex.assert_trees_all_equal_shapes(variables, shapes)
    stages = jax.jit(network.apply)(variables, canvas, jnp.array([[50, 63]]))
    assert list(stages) == [2, 3, 4, 5]
    for (level, features), plain in zip(stages.items(), expected, strict=True):
        assert features.shape[1:3] == (64 // 2**level, 96 // 2**level)
        _, rows, columns, _ = plain.shape
        scale = np.abs(plain).max()
        features = features[:, :rows, :columns] / scale
        chex.assert_trees_all_close(features, plain / scale, atol=1e-4)


def test_channels_are_multiples_of_the_published_ones():
    network = EfficientNetLite0(width=0.5, norm="group")
    shapes, variables = jax.eval_shape(
        network.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 96, 3))
    )
    assert [x.shape[-1] for x in shapes.values()] == [12, 20, 56, 160]
    assert "constants" not in variables
