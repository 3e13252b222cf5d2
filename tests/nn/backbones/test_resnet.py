"""Residual networks: sizes, padding, frozen stages."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.nn.backbones.resnet import ResNet, ResNetHead
from tests.nn import drawn


def test_later_stages_are_not_made():
    network = ResNet(10, width=2, coarsest=3)
    image = jnp.zeros((1, 32, 32, 3))
    shapes, variables = jax.eval_shape(
        network.init_with_output, jax.random.key(0), image
    )
    assert {level: x.shape[-1] for level, x in shapes.items()} == {2: 2, 3: 4}
    assert not any(name.startswith("stage4") for name in variables["constants"])


def test_the_head_is_the_last_stage(rng):
    depth = 50
    network = ResNet(depth, width=2)
    pixels = jnp.asarray(rng.normal(size=(2, 96, 96, 3)), jnp.float32)
    variables = drawn.variables(rng, network, pixels)
    stages = jax.jit(network.apply)(variables, pixels)
    last = {
        collection: {n: t for n, t in trees.items() if n.startswith("stage5_")}
        for collection, trees in variables.items()
    }
    head = ResNetHead(depth, width=2)
    regions = jax.jit(head.apply)(last, stages[4], jax.random.split(jax.random.key(0)))
    expected = jnp.mean(stages[5], axis=(1, 2))
    chex.assert_trees_all_close(regions, expected, rtol=1e-5, atol=1e-5)
    shapes = jax.eval_shape(head.init, jax.random.key(0), stages[4])
    chex.assert_trees_all_equal_shapes(shapes, last)


def test_stages_end_with_the_second_to_the_fifth():
    with pytest.raises(ValueError, match="coarsest is 6; it must be in 2 to 5"):
        ResNet(10, coarsest=6).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def test_unknown_depth():
    with pytest.raises(ValueError, match="depth 51; allowed"):
        ResNet(51).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(ValueError, match="depth 51; allowed"):
        ResNetHead(51).init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)))


def test_parameter_count():
    # torchvision's documented total, less the classifier and the norms.
    init, image = ResNet(101).init, jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(init, jax.random.key(0), image)
    leaves = jax.tree.leaves(shapes["params"])
    assert sum(np.prod(leaf.shape) for leaf in leaves) == 42_394_816
