"""Laws of all backbones: padding changes nothing, first layers can be frozen."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from jaxdet.nn.backbones import alexnet, inverted_residual, resnet, vgg
from jaxdet.nn.backbones.mobilenet import MobileNetV2
from tests.nn import drawn


class FewBlocks(nn.Module):
    """Inverted residuals, made as in the published networks."""

    padding: str
    norm: str
    width: float = 1.0
    epsilon: float = 1e-3
    dtype: jnp.dtype = jnp.float32

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
