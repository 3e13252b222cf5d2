"""Laws of all backbones: padding changes nothing, first layers can be frozen."""

import math
import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from jaxdet.nn import heads
from jaxdet.nn.backbones import alexnet, inverted_residual, resnet, vgg
from jaxdet.nn.backbones.mobilenet import MobileNetV2
from jaxdet.nn.layers import maybe_remat
from jaxdet.training.optimizer import combine, partition
from tests.nn import drawn


class FewBlocks(nn.Module):
    """Inverted residuals, made as in the published networks."""

    padding: str
    norm: str
    width: float = 1.0
    epsilon: float = 1e-3
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, pixels, sizes=None):
        plan = {1: ((1, 2, 3),), 2: ((2, 3, 5),), 3: ((1, 4, 3),)}
        run = inverted_residual.stages
        stages, widened = run(self, plan, self.padding, pixels, sizes)
        return stages | {-level: features for level, features in widened.items()}


OF_RESNETS = {2: (19, 13), 3: (10, 7), 4: (5, 4), 5: (3, 2)}
OF_FEW_BLOCKS = {1: (38, 25), 2: (19, 13), 3: (10, 7), -1: (38, 25), -2: (19, 13)}


@pytest.mark.parametrize(
    ("network", "extents"),
    [
        (alexnet.AlexNet(width=2), {4: (5, 4)}),
        (alexnet.AlexNet(width=2, norm="group"), {4: (5, 4)}),
        (alexnet.AlexNet(width=2, centered=False), {4: (3, 2)}),
        (vgg.VGG16(width=2), {4: (5, 4)}),
        (vgg.VGG16(width=2, norm="group"), {4: (5, 4)}),
        (vgg.VGG16SSD(width=2), {3: (10, 7), 4: (5, 4)}),
        (
            resnet.ResNet(10, 2, "group"),
            {2: (19, 13), 3: (10, 7), 4: (5, 4), 5: (3, 2)},
        ),
        (resnet.ResNet(50, 2), OF_RESNETS),
        (FewBlocks("same", "group"), OF_FEW_BLOCKS),
        (FewBlocks("centered", "frozen"), OF_FEW_BLOCKS),
    ],
    ids=lambda part: type(part).__name__,
)
def test_padding_changes_nothing(rng, network, extents):
    image = jnp.asarray(rng.normal(size=(1, 75, 49, 3)), jnp.float32)
    canvas = jnp.zeros((1, 144, 112, 3)).at[:, :75, :49].set(image)
    variables = drawn.variables(rng, network, image)
    alone = jax.jit(network.apply)(variables, image)
    padded = jax.jit(network.apply)(variables, canvas, jnp.array([[75, 49]]))
    assert {level: x.shape[1:3] for level, x in alone.items()} == extents
    for level, (rows, columns) in extents.items():
        scale = jnp.max(jnp.abs(alone[level]))
        inside = padded[level][:, :rows, :columns]
        chex.assert_trees_all_close(inside / scale, alone[level] / scale, atol=1e-5)
        assert np.std(alone[level]) > 1e-3
        if isinstance(network, alexnet.AlexNet | vgg.VGG16 | vgg.VGG16SSD):
            assert not np.any(padded[level][:, rows:])
            assert not np.any(padded[level][:, :, columns:])


def total_of(network, image, variables):
    """Adds up squares, so that every gradient depends on the features."""
    features = network.apply(variables, image)
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(features))


def kept_for_gradients(function, variables):
    """Returns the shapes of the arrays that the backward pass needs."""
    _, pull_back = jax.eval_shape(partial(jax.vjp, function), variables)
    return [x.shape for x in jax.tree.leaves(pull_back)]


@pytest.mark.parametrize(
    "network",
    [
        alexnet.AlexNet(width=2),
        vgg.VGG16(width=2),
        resnet.ResNet(50, width=4, coarsest=2),
        FewBlocks("centered", "frozen"),
        heads.DenseHead(3, depth=2),
    ],
    ids=lambda part: type(part).__name__,
)
def test_remat_gives_the_same_gradients_and_keeps_less_for_them(rng, network):
    image = jnp.asarray(rng.normal(size=(1, 64, 64, 3)), jnp.float32)
    if isinstance(network, heads.DenseHead):  # as detectors make it
        image = {3: image, 4: image[:, ::2, ::2]}
        again = maybe_remat(heads.DenseHead, remat=True)(3, depth=2)
    else:
        again = network.clone(remat=True)
    variables = drawn.variables(rng, network, image)
    same = jax.eval_shape(again.init, jax.random.key(0), image)
    chex.assert_trees_all_equal_shapes(variables, same)
    total, total_again = (partial(total_of, x, image) for x in (network, again))
    expected = jax.jit(jax.grad(total))(variables)
    found = jax.jit(jax.grad(total_again))(variables)
    for gradient, reference in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        scale = jnp.max(jnp.abs(reference))
        chex.assert_trees_all_close(gradient, reference, rtol=1e-4, atol=1e-5 * scale)
    memory, less = (
        sum(map(math.prod, kept_for_gradients(x, variables)))
        for x in (total, total_again)
    )
    assert less < 0.8 * memory


@pytest.mark.parametrize(
    ("network", "frozen", "extents"),
    [
        (resnet.ResNet(10, 2), resnet.first_stages(3), {64, 32}),
        (vgg.VGG16(2), vgg.first_convs(7), {128, 64, 32}),
        (FewBlocks("same", "frozen"), inverted_residual.first_stages(2), {64}),
    ],
    ids=lambda part: type(part).__name__,
)
def test_frozen_layers_keep_nothing_for_gradients(rng, network, frozen, extents):
    image = jnp.asarray(rng.normal(size=(1, 128, 128, 3)), jnp.float32)
    variables = drawn.variables(rng, network, image)
    patterns = [pattern.removeprefix("backbone/") for pattern in frozen]

    def kept(patterns):
        trainable, fixed = partition(variables["params"], tuple(patterns))

        def total(trainable):
            params = combine(trainable, fixed)
            last = max(network.apply({**variables, "params": params}, image).items())
            return jnp.sum(last[1] ** 2)

        shapes = kept_for_gradients(total, trainable)
        return {shape[1] for shape in shapes if len(shape) == 4 and shape[0] == 1}

    assert extents <= kept([])
    assert not extents & kept(patterns)


@pytest.mark.parametrize(
    ("first", "network", "count", "most", "expected"),
    [
        (alexnet.first_convs, alexnet.AlexNet(norm="group"), 2, 5, "(conv|norm)[12]"),
        (vgg.first_convs, vgg.VGG16(norm="group"), 4, 13, "(conv|norm)[12]_."),
        (vgg.first_convs, vgg.VGG16SSD(), 13, 13, r"conv\d_\d"),
        (resnet.first_stages, resnet.ResNet(50), 2, 5, "(stem|stage2)_.*"),
        (inverted_residual.first_stages, MobileNetV2(), 3, 5, "(stem|stage[1-3])_.*"),
    ],
    ids=["alexnet", "vgg", "ssd", "resnet", "mobilenet"],
)
def test_first_layers_are_frozen(first, network, count, most, expected):
    image = jnp.zeros((1, 64, 64, 3))
    variables = jax.eval_shape(network.init, jax.random.key(0), image)
    paths = [path.split("/", 1)[1] for path in flatten_dict(variables, sep="/")]
    patterns = first(count)
    for path in paths:
        frozen = any(re.fullmatch(pattern, f"backbone/{path}") for pattern in patterns)
        assert frozen == bool(re.fullmatch(expected, path.split("/")[0])), path
    assert first(0) == ()
    with pytest.raises(ValueError, match=f"first {most + 1}"):
        first(most + 1)
