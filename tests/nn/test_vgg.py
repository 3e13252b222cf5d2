"""VGG-16: size, padding, frozen layers."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxdet.nn.vgg import VGG16, first_convs, layers
from tests.nn import drawn


def test_parameter_count():
    # torchvision's documented total, less the classifier.
    shapes = jax.eval_shape(VGG16().init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 14_714_688


@pytest.mark.parametrize(
    ("norm", "size"), [("none", (64, 48)), ("none", (75, 49)), ("group", (75, 49))]
)
def test_padding_changes_nothing(rng, norm, size):
    height, width = size
    network = VGG16(width=2, norm=norm)
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


def test_first_convs():
    assert first_convs(0) == ()
    shapes = jax.eval_shape(
        VGG16(width=2, norm="group").init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
    )
    names = flatten_dict(shapes["params"], sep="/")
    patterns = first_convs(4, backbone="vgg")
    frozen = {
        name.split("/")[0]
        for name in names
        if any(re.fullmatch(pattern, f"vgg/{name}") for pattern in patterns)
    }
    assert frozen == {
        f"{kind}{name}"
        for kind in ("conv", "norm")
        for name in ("1_1", "1_2", "2_1", "2_2")
    }
    everything = first_convs(13)
    assert all(
        any(re.fullmatch(pattern, f"backbone/{name}") for pattern in everything)
        for name in names
    )
    with pytest.raises(ValueError, match="first 14"):
        first_convs(14)


def test_layers():
    conv, pool = (3, 1, 1), (2, 2, 0)
    two, three = (conv,) * 2, (conv,) * 3
    assert layers() == (*two, pool, *two, pool, *three, pool, *three, pool, *three)
