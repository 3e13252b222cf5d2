"""What a step costs, where it can be counted instead of timed."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import models
from jaxdet.nn import cpu_convolution
from jaxdet.ops import matching
from jaxdet.training.step import TrainState, create_state, gradient_flops, train_step
from tests.detectors.laws import equations, steps_on_device


def arithmetic(jaxpr) -> int:
    """Multiplications and additions of all convolutions and products, by shape."""
    total = 0
    for equation in equations(jaxpr):
        if equation.primitive.name == "conv_general_dilated":
            *kernel, channels, _ = equation.invars[1].aval.shape
            terms = math.prod(kernel) * channels
        elif equation.primitive.name == "dot_general":
            (axes, _), _ = equation.params["dimension_numbers"]
            terms = math.prod(equation.invars[0].aval.shape[axis] for axis in axes)
        else:
            continue
        total += 2 * terms * math.prod(equation.outvars[0].aval.shape)
    return total


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_a_step_needs_three_times_the_arithmetic_of_looking(name, monkeypatch):
    """Once forward, once for the gradient of the inputs, once for the kernels'."""
    # Convolutions as they are defined, not as CPUs compute large ones.
    monkeypatch.setattr(cpu_convolution, "_MANY_PRODUCTS", math.inf)
    detector = models.MODELS[name].detector("float32")
    batch = models.random_batch(1, (256, 256), 5, detector.num_classes)
    key = jax.random.key(0)
    variables = jax.eval_shape(detector.init, key, batch)
    with monkeypatch.context() as patch:  # one way to compute each layer, not all
        patch.setattr(
            *(jax.lax, "platform_dependent"), lambda *x, default, **_: default(*x)
        )
        jax.clear_caches()
        looking = arithmetic(jax.make_jaxpr(detector.loss)(variables, batch, key).jaxpr)
    state = TrainState(jnp.zeros((), jnp.int32), variables, opt_state=())
    flops = gradient_flops(detector, models.TRAINING, state, batch)
    assert 3 * looking * 0.9 < flops < 3 * looking * 1.1


def test_a_step_asks_nothing_of_the_host():
    """Not for accumulation, averages or a clipped gradient either."""
    config = dataclasses.replace(
        models.TRAINING, accumulation_steps=2, ema_decay=0.9, clip_norm=1.0
    )
    detector = models.MODELS["retinanet"].detector("bfloat16")
    batch = models.random_batch(2, (64, 64), 3, detector.num_classes)
    state = jax.eval_shape(partial(create_state, detector, config), batch)
    step = partial(train_step, detector=detector, config=config)
    traced = jax.make_jaxpr(step)(state, batch, jax.random.key(0))
    assert "conv_general_dilated" in steps_on_device(traced.jaxpr)


# Everything between anchors and objects is made once, but for one copy on CPU.
@pytest.mark.parametrize(
    ("match", "matrices"),
    [
        (
            lambda *boxes: matching.match_by_iou(
                *boxes, negative_iou=0.3, positive_iou=0.7
            ),
            2,
        ),
        (lambda *boxes: matching.match_default_boxes(*boxes, positive_iou=0.5), 1),
    ],
    ids=["by IoU", "default boxes"],
)
def test_matching_needs_no_more_memory_than_its_overlaps(optimized, match, matrices):
    anchors, objects = 200_000, 100
    shapes = (
        jax.ShapeDtypeStruct((anchors, 4), jnp.float32),
        jax.ShapeDtypeStruct((objects, 4), jnp.float32),
        jax.ShapeDtypeStruct((objects,), bool),
    )
    memory = jax.jit(match).lower(*shapes).compile().memory_analysis()
    overlaps = 4 * anchors * objects
    assert memory.temp_size_in_bytes < (matrices + 0.1) * overlaps
