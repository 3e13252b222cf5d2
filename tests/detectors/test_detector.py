"""The interface, and recipes as JSON."""

import json
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.data.batching import InputConfig
from jaxdet.detectors.detector import describe, from_network, rebuild
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.training.config import TrainingConfig
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


@pytest.mark.parametrize(
    "value",
    [
        ResNet(depth=18, width=32, norm="group", dtype=jnp.bfloat16),
        TrainingConfig(steps=2, warmup_steps=1, input=InputConfig(canvases=((8, 16),))),
        (1, 2.5, "three", None, True, ((4.0,), (5.0,))),
        {3: "level", "four": (1, 2)},
    ],
)
def test_values_survive_json(value):
    written = json.loads(json.dumps(describe(value)))
    assert rebuild(written) == value


def test_a_call_is_made_again():
    call = partial(InputConfig, ((8, 16),), max_objects=3)
    recipe = json.loads(json.dumps(describe(call)))
    assert rebuild(recipe) == InputConfig(canvases=((8, 16),), max_objects=3)


def test_recipes_call_nothing_outside_their_packages():
    with pytest.raises(ValueError, match=r"os:getcwd.*allowed packages: jaxdet"):
        rebuild({"call": "os:getcwd", "arguments": []})
    with pytest.raises(ValueError, match=r"jaxdet\.structs:Nothing"):
        rebuild({"call": "jaxdet.structs:Nothing"})


def test_what_no_recipe_can_hold():
    with pytest.raises(TypeError, match="a recipe cannot hold <object"):
        describe({"thing": object()})
    made_by = partial(print, object())
    detector = from_network(Brightness(), loss=print, predict=print, made_by=made_by)
    assert detector.recipe is None
