from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax import losses as optax_losses

from jaxdet.ops import losses
from tests import oracles


def random_boxes(rng, *shape):
    corners = rng.uniform(-20, 50, (*shape, 2))
    sides = rng.uniform(1, 40, (*shape, 2))
    return np.concatenate([corners, corners + sides], -1).astype(np.float32)


def test_focal_loss_agrees_with_torchvision(golden_ops):
    logits, targets = golden_ops["losses/logits"], golden_ops["losses/targets"]
    focal = partial(losses.focal_loss, logits, targets > 0)
    golden = golden_ops["losses/focal alpha .25 gamma 2"]
    loss = jax.jit(partial(focal, alpha=0.25, gamma=2.0))()
    chex.assert_trees_all_close(loss, golden, rtol=1e-5, atol=1e-7)
    golden = golden_ops["losses/focal alpha off gamma 1.5"]
    loss = 2 * jax.jit(partial(focal, alpha=0.5, gamma=1.5))()
    chex.assert_trees_all_close(loss, golden, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_focal_loss_and_its_gradient_agree_with_optax(rng, gamma):
    extremes = np.array([0.0, 1e-20, 40.0, -40.0, 1e4, -1e4])
    logits = np.append(rng.normal(0, 5, 200), extremes).astype(np.float32)
    targets = rng.uniform(size=len(logits)) < 0.3
    weights = rng.uniform(size=len(logits)).astype(np.float32)
    options = {"alpha": 0.25, "gamma": gamma}

    def loss_and_gradient(function):
        return jax.jit(jax.value_and_grad(lambda x: weights @ function(x)))(logits)

    ours = loss_and_gradient(partial(losses.focal_loss, targets=targets, **options))
    optax = partial(optax_losses.sigmoid_focal_loss, labels=targets, **options)
    chex.assert_trees_all_close(ours, loss_and_gradient(optax), rtol=1e-5, atol=1e-7)


def test_smooth_l1_by_hand(transform):
    errors = jnp.array([0.0, 0.5, -0.5, 1.0, 3.0, -3.0])
    loss = transform(partial(losses.smooth_l1_loss, beta=1.0))(
        errors + 2, jnp.full(6, 2.0)
    )
    chex.assert_trees_all_close(loss, jnp.array([0, 0.125, 0.125, 0.5, 2.5, 2.5]))
    loss = transform(partial(losses.smooth_l1_loss, beta=0))(errors, jnp.zeros(6))
    chex.assert_trees_all_close(loss, jnp.abs(errors))


@pytest.mark.parametrize("beta, name", [(1 / 9, "0.1111"), (1.0, "1.0000")])
def test_smooth_l1_agrees_with_torchvision(golden_ops, beta, name):
    a, b = golden_ops["losses/boxes a"], golden_ops["losses/boxes b"]
    loss = jax.jit(partial(losses.smooth_l1_loss, beta=beta))(a, b)
    chex.assert_trees_all_close(loss, golden_ops[f"losses/smooth_l1 beta {name}"])


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_slope_of_smooth_l1_is_bounded(beta):
    errors = jnp.array([-1e6, -0.25, 0.0, 0.25, 1e6])
    slope = jax.jit(jax.vmap(jax.grad(partial(losses.smooth_l1_loss, beta=beta))))
    edge = 1.0 if beta == 0 else 0.5
    expected = jnp.array([-1.0, -edge, 0.0, edge, 1.0])
    chex.assert_trees_all_close(slope(errors, jnp.zeros(5)), expected)


def test_giou_loss_by_hand(transform):
    unit = jnp.tile(jnp.array([0.0, 0.0, 1.0, 1.0]), (3, 1))
    targets = jnp.array([[0.0, 0, 1, 1], [2.0, 0, 3, 1], [0.0, 0, 2, 2]])
    loss = transform(losses.giou_loss)(unit, targets)
    chex.assert_trees_all_close(loss, jnp.array([0.0, 4 / 3, 0.75]))


def test_giou_loss_agrees_with_torchvision(golden_ops):
    a, b = golden_ops["losses/boxes a"], golden_ops["losses/boxes b"]
    loss = jax.jit(losses.giou_loss)(a, b)
    chex.assert_trees_all_close(loss, golden_ops["losses/giou"], atol=1e-6)


def test_count_and_sum_on_four_devices():
    count = partial(losses.device_mean_count, axis_name="devices")
    add = partial(losses.device_mean_sum, axis_name="devices", minimum=0.5)
    counted, summed = (jax.pmap(mean, "devices") for mean in (count, add))
    flags, weights = np.zeros((4, 5), bool), np.zeros((4, 5), np.float32)
    chex.assert_trees_all_close(counted(flags), jnp.full(4, 1 / 4))
    chex.assert_trees_all_close(summed(weights), jnp.full(4, 0.5 / 4))
    flags[0], flags[2, :2] = True, True
    weights[0], weights[2, :2] = 0.25, 0.125
    chex.assert_trees_all_close(counted(flags), jnp.full(4, 7 / 4))
    chex.assert_trees_all_close(summed(weights), jnp.full(4, 1.5 / 4))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.7])
def test_mean_gradient_of_four_devices_is_that_of_one(rng, share):
    values = rng.normal(size=(4, 6)).astype(np.float32)
    flags = rng.uniform(size=(4, 6)) < share

    def loss(weight, values, flags, axis_name=None):
        count = losses.device_mean_count(flags, axis_name=axis_name)
        return jnp.sum((weight * values - 1) ** 2, where=flags) / count

    def step(weight, values, flags):
        pair = jax.value_and_grad(partial(loss, axis_name="devices"))(
            weight, values, flags
        )
        return jax.lax.pmean(pair, "devices")

    many = jax.pmap(step, "devices", in_axes=(None, 0, 0), out_axes=None)
    alone = jax.jit(jax.value_and_grad(loss))(2.0, values, flags)
    chex.assert_trees_all_close(many(2.0, values, flags), alone, rtol=1e-5)


def test_iou_loss_by_hand(transform):
    boxes = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 3, 1], [5, 5, 5, 5]])
    targets = jnp.array([[0.0, 0, 10, 10], [5, 0, 15, 10], [9, 9, 11, 13], [5] * 4])
    loss = transform(losses.iou_loss)(boxes, targets)
    expected = [0.0, np.log(151 / 51), np.log(12), 0.0]
    np.testing.assert_allclose(loss, expected, atol=1e-6)


def test_iou_loss_is_about_the_logarithm_of_the_iou(rng):
    a = 10 * random_boxes(rng, 2, 20)
    b = a + rng.uniform(-5, 5, a.shape).astype(np.float32)
    pairs = zip(a.reshape(-1, 4), b.reshape(-1, 4), strict=True)
    expected = np.array([-np.log(oracles.iou(p, q)) for p, q in pairs])
    usual = expected < 2
    assert usual.sum() > 20
    loss = jax.jit(losses.iou_loss)(a, b)
    assert loss.shape == (2, 20)
    np.testing.assert_allclose(loss.reshape(-1)[usual], expected[usual], atol=0.05)


@pytest.mark.parametrize("loss", [losses.giou_loss, losses.iou_loss])
def test_losses_of_padding_empty_and_wild_boxes_are_finite(loss):
    kinds = [[0, 0, 0, 0], [5, 5, 5, 5], [5, 5, 5, 9], [9, 9, 5, 5], [1, 1, 9, 9]]
    wild = [[-1e20, 0, 1e20, 1e20], [0, 0, 3e38, 1], [1e12, 0, 1e13, 1e12]]
    targets = [*kinds, [10, 10, 20, 30]]
    pairs = [[p, q] for p in kinds + wild for q in targets]
    a, b = np.array(pairs, np.float32).swapaxes(0, 1)

    def total(a, b):
        values = loss(a, b)
        return jnp.sum(values), values

    slope = jax.value_and_grad(total, has_aux=True)
    (_, values), of_boxes = jax.jit(slope)(a, b)
    of_targets = jax.jit(jax.grad(total, 1, has_aux=True))(a[:30], b[:30])
    chex.assert_tree_all_finite((values, of_boxes, of_targets))


def test_giou_loss_of_padding_is_one_and_flat():
    zeros = jnp.zeros(4)
    value, slope = jax.value_and_grad(losses.giou_loss)(zeros, zeros)
    assert value == 1 and not np.any(slope)


def test_centerness_by_hand(transform):
    distances = [
        [4.0, 4, 4, 4],
        [1, 2, 4, 2],
        [1, 1, 4, 9],
        [0, 2, 4, 2],
        [-1, 2, 5, 2],
    ]
    central = transform(losses.centerness)(jnp.array(distances))
    expected = [1.0, 0.5, 0.5 / 3, 0.0, 0.0]
    np.testing.assert_allclose(central, expected, rtol=1e-6)


def test_slope_of_centerness_is_finite():
    sides = np.array([-1e30, -1, 0, 1e-40, 1e-20, 1e-8, 1e-7, 1, 1e8, 1e30], np.float32)
    distances = np.stack(np.meshgrid(*[sides] * 4), axis=-1)

    @jax.jit
    @jax.value_and_grad
    def total(distances):
        return jnp.sum(losses.centerness(distances))

    value, slopes = total(distances)
    chex.assert_tree_all_finite((value, slopes))
    assert not np.any(slopes[np.min(distances, axis=-1) <= 0])
    assert np.any(slopes)
