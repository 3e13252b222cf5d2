"""Extra stages: their cells and padding, and the paper's way to end them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxdet.nn.convolution import Conv
from jaxdet.nn.extra_stages import ExtraStages
from jaxdet.nn.layers import zero_outside
from tests.nn import drawn


class Coarse(nn.Module):
    """A backbone of one convolution: level 3, and a copy of it as level 2."""

    @nn.compact
    def __call__(self, pixels, sizes=None):
        x = Conv(4, kernel=1, stride=8, name="conv")(pixels)
        x = zero_outside(nn.relu(x), sizes, 8)
        return {2: x, 3: x}


TWO = ((3, 6), (4, 8))


def test_levels_continue_those_of_the_backbone(rng):
    network = ExtraStages(Coarse(), TWO)
    pixels = jnp.asarray(rng.normal(size=(2, 75, 41, 3)), jnp.float32)
    variables = drawn.variables(rng, network, pixels)
    stages = jax.jit(network.apply)(variables, pixels)
    assert {level: x.shape for level, x in stages.items()} == {
        2: (2, 10, 6, 4),
        3: (2, 10, 6, 4),
        4: (2, 5, 3, 6),
        5: (2, 3, 2, 8),
    }


@pytest.mark.parametrize("norm", ["none", "group"])
def test_padding_changes_nothing(rng, norm):
    network = ExtraStages(Coarse(), TWO, norm=norm)
    image = jnp.asarray(rng.normal(size=(1, 75, 49, 3)), jnp.float32)
    canvas = jnp.zeros((1, 96, 112, 3)).at[:, :75, :49].set(image)
    variables = drawn.variables(rng, network, image)
    apply = jax.jit(network.apply)
    alone = apply(variables, image)
    padded = apply(variables, canvas, jnp.array([[75, 49]]))
    for level in (4, 5):
        _, rows, columns, _ = alone[level].shape
        inside = padded[level][:, :rows, :columns]
        chex.assert_trees_all_close(inside, alone[level], rtol=1e-4, atol=1e-5)
        assert not np.any(padded[level][:, rows:])
        assert not np.any(padded[level][:, :, columns:])
        assert np.any(alone[level])


@pytest.mark.parametrize(
    ("unpadded", "options"),
    [
        (0, {"strides": 2, "padding": [(1, 1), (1, 1)]}),
        (1, {"padding": "VALID"}),
    ],
)
@pytest.mark.parametrize("extents", [(40, 72), (48, 40)])  # 5x9 and 6x5 cells
def test_each_way_of_padding_agrees_with_flax(rng, extents, unpadded, options):
    network = ExtraStages(Coarse(), ((3, 6),), unpadded=unpadded)
    pixels = jnp.asarray(rng.normal(size=(1, *extents, 3)), jnp.float32)
    variables = drawn.variables(rng, network, pixels)
    stages = jax.jit(network.apply)(variables, pixels)
    narrow, wide = ({"params": variables["params"][f"level4_conv{i}"]} for i in (1, 2))
    x = nn.relu(nn.Conv(3, (1, 1)).apply(narrow, stages[3]))
    expected = nn.relu(nn.Conv(6, (3, 3), **options).apply(wide, x))
    chex.assert_trees_all_close(stages[4], expected, rtol=1e-5, atol=1e-5)


def test_three_cells_are_needed_without_padding():
    network = ExtraStages(Coarse(), TWO, unpadded=1)
    message = r"level 5 takes 3x3 cells.*level 4 has \(2, 4\).*\(32, 64\) pixels"
    with pytest.raises(ValueError, match=message):
        network.init(jax.random.key(0), jnp.zeros((1, 32, 64, 3)))
