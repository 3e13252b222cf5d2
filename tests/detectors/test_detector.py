from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.detectors.detector import from_network
from tests.detectors import scenes


class Brightness(nn.Module):
    """One learned number: a factor for the mean of all pixels."""

    @nn.compact
    def __call__(self, pixels):
        return self.param("factor", nn.initializers.constant(2.0), ()) * pixels.mean()


def test_functions_of_a_network_become_functions_of_its_variables():
    def loss(network, batch, key, axis_name=None):
        value = network(batch.images.astype(jnp.float32))
        return value, {"value": value}

    detector = from_network(
        Brightness(), loss=loss, predict=lambda network, batch: batch
    )
    batch = scenes.batch()
    variables = detector.init(jax.random.key(0), batch)
    assert variables == {"params": {"factor": 2.0}}
    value, _ = detector.loss(variables, batch, jax.random.key(0), axis_name=None)
    np.testing.assert_allclose(value, 2 * np.mean(batch.images), rtol=1e-5)


def test_a_detector_may_have_no_recipe():
    builder = partial(print, object())  # what no recipe can hold
    detector = from_network(Brightness(), loss=print, predict=print, builder=builder)
    assert detector.recipe is None
