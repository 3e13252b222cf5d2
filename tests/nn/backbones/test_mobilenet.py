"""MobileNetV2: shapes, and further stages. tests/weights has its features."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.nn.backbones.mobilenet import MobileNetV2
from tests.nn import drawn


def test_parameter_count_and_channels():
    image = jnp.zeros((1, 64, 96, 3))
    network = MobileNetV2(wide=True)
    features, variables = jax.eval_shape(
        network.init_with_output, jax.random.key(0), image
    )
    # torchvision's documented total, less the classifier and the norms.
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    assert count == 3_504_872 - 1_281_000 - 34_112
    shapes = {level: x.shape[1:] for level, x in features.items()}
    assert shapes == {
        2: (16, 24, 144),
        3: (8, 12, 192),
        4: (4, 6, 576),
        5: (2, 3, 1280),
    }
    features, variables = jax.eval_shape(
        MobileNetV2().init_with_output, jax.random.key(0), image
    )
    assert [x.shape[-1] for x in features.values()] == [24, 32, 96, 320]
    assert "last_conv" not in variables["params"]


def test_extra_stages_end_with_an_activation(rng):
    network = MobileNetV2(0.05, extra=((64, 64),), padding="same", norm="none")
    pixels = jnp.asarray(rng.normal(size=(1, 64, 64, 3)), jnp.float32)
    variables = drawn.variables(rng, network, pixels)
    features = jax.jit(network.apply)(variables, pixels)
    assert features[5].min() < 0 and features[6].shape == (1, 1, 1, 4)
    assert 0 <= features[6].min() < features[6].max() <= 6
