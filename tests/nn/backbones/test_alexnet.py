"""AlexNet: size, padding, cells, frozen layers."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxdet.nn.backbones.alexnet import AlexNet, first_convs, layers
from tests.nn import drawn


def test_parameter_count():
    # torchvision's documented total, less the classifier.
    shapes = jax.eval_shape(
        AlexNet().init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
    )
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 2_469_696


@pytest.mark.parametrize(
    ("norm", "size"), [("none", (64, 48)), ("none", (75, 49)), ("group", (75, 49))]
)
def test_padding_changes_nothing(rng, norm, size):
    height, width = size
    network = AlexNet(width=2, norm=norm)
    image = jnp.asarray(rng.normal(size=(1, height, width, 3)), jnp.float32)
    canvas = jnp.zeros((1, 96, 96, 3)).at[:, :height, :width].set(image)
    variables = drawn.variables(rng, network, image)
    alone = jax.jit(network.apply)(variables, image)[4]
    padded = jax.jit(network.apply)(variables, canvas, jnp.array([size]))[4]
    rows, columns = -(-height // 16), -(-width // 16)
    assert alone.shape[1:3] == (rows, columns)
    assert padded.shape[1:3] == (6, 6)
    chex.assert_trees_all_close(
        padded[:, :rows, :columns] / alone.max(), alone / alone.max(), atol=1e-5
    )
    assert not np.any(padded[:, rows:]) and not np.any(padded[:, :, columns:])


def test_published_paddings():
    network = AlexNet(width=2, centered=False)
    image = jnp.zeros((1, 224, 224, 3))
    features = jax.eval_shape(network.init_with_output, jax.random.key(0), image)[0]
    assert features[4].shape == (1, 13, 13, 8)


def test_padding_changes_nothing_with_published_paddings(rng):
    network = AlexNet(width=2, centered=False)
    image = jnp.asarray(rng.normal(size=(1, 70, 63, 3)), jnp.float32)
    canvas = jnp.zeros((1, 128, 96, 3)).at[:, :70, :63].set(image)
    variables = drawn.variables(rng, network, image)
    alone = jax.jit(network.apply)(variables, image)[4]
    padded = jax.jit(network.apply)(variables, canvas, jnp.array([[70, 63]]))[4]
    assert alone.shape == (1, 3, 3, 8)  # 16, 7 and 3 rows; 15, 7 and 3 columns
    scale = alone.max()
    chex.assert_trees_all_close(padded[:, :3, :3] / scale, alone / scale, atol=1e-5)
    assert not np.any(padded[:, 3:]) and not np.any(padded[:, :, 3:])


def test_centered_cells_see_the_same_patterns_half_a_cell_earlier(rng):
    # Far from all borders: the features of an image are those of the same image moved
    # by 8 pixels on the published grid.
    image = jnp.asarray(rng.uniform(size=(1, 384, 384, 3)), jnp.float32)
    network = AlexNet(width=2)
    variables = drawn.variables(rng, network, image)
    centered = jax.jit(network.apply)(variables, image)[4]
    moved = jnp.roll(image, (8, 8), axis=(1, 2))
    published = jax.jit(AlexNet(width=2, centered=False).apply)(variables, moved)[4]
    middle = slice(8, 16)
    chex.assert_trees_all_close(
        centered[:, middle, middle], published[:, middle, middle], atol=1e-4
    )
    assert np.std(centered[:, middle, middle]) > 1e-2


def test_first_convs():
    assert first_convs(0) == ()
    shapes = jax.eval_shape(
        AlexNet(width=2, norm="group").init,
        jax.random.key(0),
        jnp.zeros((1, 64, 64, 3)),
    )
    names = flatten_dict(shapes["params"], sep="/")
    patterns = first_convs(2, backbone="vgg")
    frozen = {
        name.split("/")[0]
        for name in names
        if any(re.fullmatch(pattern, f"vgg/{name}") for pattern in patterns)
    }
    assert frozen == {"conv1", "norm1", "conv2", "norm2"}
    everything = first_convs(5)
    assert all(
        any(re.fullmatch(pattern, f"backbone/{name}") for pattern in everything)
        for name in names
    )
    with pytest.raises(ValueError, match="first 6"):
        first_convs(6)


def test_layers():
    pool = (3, 2, 0)
    convs = [(11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)]
    assert layers(centered=False) == (convs[0], pool, convs[1], pool, *convs[2:])
    assert layers() == (convs[0], pool, convs[1], (3, 2, 1), *convs[2:])
