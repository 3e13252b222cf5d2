"""What CPUs compute in the place of a convolution, against JAX's own."""

import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from experiments.benchmarks import timing
from jaxdet.nn import cpu_convolution
from jaxdet.nn.convolution import Conv
from tests.nn import drawn


@pytest.fixture
def winograd(monkeypatch):
    """Takes Winograd's way, however small the images."""
    monkeypatch.setattr(cpu_convolution, "_MANY_PRODUCTS", 0)
    monkeypatch.setattr(cpu_convolution, "_MANY_CHANNELS", 2)


# Bands of one or two rows.
@pytest.mark.parametrize(
    ("side", "stride", "margins", "dilation"),
    [
        (3, 1, (1, 1), 1),
        (3, 1, (0, 0), 1),
        (4, 1, (2, 1), 1),
        (3, 1, (6, 6), 6),
        (3, 2, (1, 1), 1),
        (3, 2, (0, 1), 1),  # as TensorFlow pads
        (2, 3, (0, 0), 1),  # with cells that nothing reads
        (3, 2, (2, 2), 2),
    ],
)
@pytest.mark.parametrize("extents", [(10, 11), (9, 12)])
def test_gradients_made_for_cpus_agree_with_xla_s(
    rng, monkeypatch, side, stride, margins, dilation, extents
):
    monkeypatch.setattr(cpu_convolution, "_BAND_CELLS", 2 * 12 * 2 // stride)
    x = jnp.asarray(rng.normal(size=(2, *extents, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(side, side, 3, 4)), jnp.float32)

    def xla(x, kernel):
        numbers, stride_of_both = ("NHWC", "HWIO", "NHWC"), (stride, stride)
        return lax.conv_general_dilated(
            *(x, kernel, stride_of_both, (margins, margins)),
            rhs_dilation=(dilation, dilation),
            dimension_numbers=numbers,
        )

    def gradients(convolution):
        def total(x, kernel):
            return jnp.sum(convolution(x, kernel) ** 2)

        return jax.jit(jax.grad(total, argnums=(0, 1)))(x, kernel)

    how = {"stride": stride, "margins": margins, "dilation": dilation}
    ours = gradients(partial(cpu_convolution.convolve, **how))
    chex.assert_trees_all_close(ours, gradients(xla), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (7, 2)])
def test_gradients_made_for_cpus_agree_with_flax(rng, monkeypatch, kernel, stride):
    monkeypatch.setattr(cpu_convolution, "_BAND_CELLS", 2 * 6 * 2)
    x = jnp.asarray(rng.normal(size=(2, 5 * stride, 6 * stride, 2)), jnp.float32)
    ours = Conv(7, kernel, stride)
    margin = [(kernel // 2, kernel // 2)] * 2
    flax = nn.Conv(7, (kernel, kernel), (stride, stride), padding=margin)
    variables = drawn.variables(rng, flax, x)

    def gradients(module):
        def total(variables, x):
            return jnp.sum(module.apply(variables, x) ** 2)

        return jax.jit(jax.grad(total, argnums=(0, 1)))(variables, x)

    chex.assert_trees_all_close(gradients(ours), gradients(flax), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(0, 6, 6, 2), (2, 0, 6, 2), (2, 6, 1, 2)])
def test_gradients_of_nothing_are_zero(shape):
    def total(kernel):
        return jnp.sum(cpu_convolution.convolve(jnp.ones(shape), kernel))

    gradient = jax.jit(jax.grad(total))(jnp.ones((2, 2, 2, 3)))
    chex.assert_trees_all_equal(gradient, jnp.zeros((2, 2, 2, 3)))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("split", ["images", "features"])
def test_gradients_are_summed_over_the_devices_of_a_shard_map(
    rng, winograd, split, stride
):
    images, features = (P("d"), P()), (P(), P(None, None, None, "d"))
    specs = images if split == "images" else features
    x = jnp.asarray(rng.normal(size=(4, 5, 6, 2)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 2, 8)), jnp.float32)

    def total(x, kernel):
        return jnp.sum(cpu_convolution.convolve(x, kernel, stride, (1, 1)) ** 2)

    def on_each(x, kernel):
        return jax.grad(total, argnums=(0, 1))(x, kernel)

    mesh = Mesh(jax.devices()[:2], ("d",))
    mapped = jax.shard_map(on_each, mesh=mesh, in_specs=specs, out_specs=specs)
    chex.assert_trees_all_close(
        jax.jit(mapped)(x, kernel), on_each(x, kernel), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("margins", [(3, 0), (0, 3), (-1, 1)])
def test_margins_out_of_reach_are_refused(margins):
    x, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1))
    with pytest.raises(ValueError, match="each must be from 0 to 2"):
        cpu_convolution.convolve(x, kernel, margins=margins)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about CPUs")
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_in_a_loop_do_not_take_ten_times_as_long(rng, stride):
    """XLA's own gradient by the kernel takes 20 to 200 times as long in one."""
    x = jnp.asarray(rng.normal(size=(8, 14, 14, 128)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 128, 128)), jnp.float32)

    def total(kernel):
        return jnp.sum(cpu_convolution.convolve(x, kernel, stride, (1, 1)) ** 2)

    def in_a_loop(kernel, steps):
        def add(_, gradient):
            return gradient + jax.grad(total)(kernel)

        return lax.fori_loop(0, steps, add, jnp.zeros_like(kernel))

    alone, loop = jax.jit(jax.grad(total)), jax.jit(in_a_loop)
    calls = partial(alone, kernel), partial(loop, kernel, jnp.int32(1))
    chex.assert_trees_all_close(calls[1](), calls[0](), rtol=1e-4, atol=1e-2)
    milliseconds = timing.medians(calls, 5)
    assert milliseconds[1] < 10 * milliseconds[0]


@pytest.mark.parametrize("extents", [(4, 6), (5, 6), (4, 7), (1, 1)])
def test_winograd_agrees_with_flax(rng, winograd, extents):
    x = jnp.asarray(rng.normal(size=(2, *extents, 3)), jnp.float32)
    flax, ours = nn.Conv(5, (3, 3), padding=1), Conv(5)
    variables = drawn.variables(rng, flax, x)

    def answer_and_gradients(module):
        def total(variables, x):
            answer = module.apply(variables, x)
            return jnp.sum(answer**2), answer

        return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(variables, x)

    chex.assert_trees_all_close(
        answer_and_gradients(ours), answer_and_gradients(flax), rtol=1e-4, atol=1e-4
    )


def test_winograd_is_exact_for_whole_numbers(rng, winograd):
    x = jnp.asarray(rng.integers(-99, 99, (1, 6, 5, 4)), jnp.float32)
    kernel = jnp.asarray(4 * rng.integers(-9, 9, (3, 3, 4, 3)), jnp.float32)
    answer = jax.jit(partial(cpu_convolution.convolve, margins=(1, 1)))(x, kernel)
    expected = cpu_convolution._convolution(x, kernel, (1, (1, 1), 1))
    chex.assert_trees_all_equal(answer, expected)


@pytest.mark.parametrize(
    ("side", "margins", "channels", "extent"),
    [
        (3, (2, 0), 256, 64),
        (5, (2, 2), 256, 64),
        (3, (1, 1), 64, 256),  # too few channels
        (3, (1, 1), 256, 32),  # too few products
    ],
)
def test_other_convolutions_are_xla_s_own(side, margins, channels, extent):
    shapes = (1, extent, extent, channels), (side, side, channels, channels)
    x, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    lowered = jax.jit(partial(cpu_convolution.convolve, margins=margins)).lower(
        x, kernel
    )
    assert "stablehlo.convolution" in lowered.as_text()


@pytest.mark.parametrize("way", ["winograd", "bands"])
def test_ways_of_cpus_round_bfloat16_once(rng, monkeypatch, way):
    monkeypatch.setattr(cpu_convolution, "_BAND_CELLS", 8)
    if way == "winograd":
        monkeypatch.setattr(cpu_convolution, "_MANY_PRODUCTS", 0)
        monkeypatch.setattr(cpu_convolution, "_MANY_CHANNELS", 2)
    shapes = (1, 16, 8, 3), (3, 3, 3, 4), (1, 16, 8, 4)
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes]

    def answers(x, kernel, gradient):
        answer, pull = jax.vjp(
            partial(cpu_convolution.convolve, margins=(1, 1)), x, kernel
        )
        return answer, *pull(gradient)

    ours = jax.jit(answers)(*arrays)
    chex.assert_type(ours, jnp.bfloat16)
    exact = jax.jit(answers)(*(array.astype(jnp.float32) for array in arrays))
    for value, expected in zip(ours, exact, strict=True):
        # Half of the last of eight bits, and float32's own rounding.
        chex.assert_trees_all_close(
            value.astype(jnp.float32), expected, rtol=2**-8, atol=1e-4
        )


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_what_is_made_for_cpus_costs_accelerators_nothing(platform):
    x, kernel = jnp.zeros((1, 96, 96, 160)), jnp.zeros((3, 3, 160, 160))
    gradient = jnp.zeros((1, 96, 96, 160))

    def operations(convolution):
        def answers(x, kernel, gradient):
            answer, pull = jax.vjp(convolution, x, kernel)
            return answer, *pull(gradient)

        traced = jax.jit(answers).trace(x, kernel, gradient)
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        # A case is of the platform, with one branch left: XLA puts it in its place.
        return re.findall(r"stablehlo\.(?!return|constant|case)\w+", program)

    ours = operations(partial(cpu_convolution.convolve, margins=(1, 1)))
    plain = operations(partial(cpu_convolution._convolution, steps=(1, (1, 1), 1)))
    assert sorted(ours) == sorted(plain)
