"""Deformable attention's samples: by hand, and against loops over all cells."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.nn.deformable_attention import multi_scale_deformable_attention

SHAPES = ((4, 6), (2, 3))
EXTENTS = np.array([[3, 5], [2, 2]])


@pytest.fixture
def drawn(rng):
    """Values of 30 cells, two heads; points of three queries, some beyond the maps."""
    points = rng.uniform(-2, 8, (3, 2, len(SHAPES), 4, 2))
    values, weights = rng.normal(size=(30, 2, 5)), rng.normal(size=points.shape[:-1])
    return tuple(x.astype(np.float32) for x in (values, points, weights))


def looped(values, points, weights, shapes=SHAPES, extents=EXTENTS):
    """Adds up, for every point, what each cell gives to it."""
    totals, start = [], 0
    for level, (rows, columns) in enumerate(shapes):
        for i in range(extents[level, 0]):
            for j in range(extents[level, 1]):
                far = jnp.abs(points[:, :, level] - jnp.array([[[[j, i]]]]) - 0.5)
                share = jnp.prod(jnp.maximum(1 - far, 0), axis=-1)  # [Q, H, P]
                share = jnp.sum(share * weights[:, :, level], axis=-1, keepdims=True)
                totals.append(share * values[start + i * columns + j][None])
        start += rows * columns
    return sum(totals)


def test_samples_of_one_row_by_hand(transform):
    values = jnp.array([1.0, 2.0, 4.0, 8.0])[:, None, None]
    # At a center; between two; half and one cell beyond the last center; far outside.
    points = jnp.array([[1.5, 0.5], [2.5, 0.75], [4.0, 0.5], [4.5, 0.5], [1e9, -1e9]])
    sample = partial(
        multi_scale_deformable_attention, shapes=((1, 4),), extents=jnp.array([[1, 4]])
    )
    points = points[:, None, None, None]
    sampled = transform(sample)(values, points, jnp.ones((5, 1, 1, 1)))
    expected = [2.0, 0.75 * 4.0, 4.0, 0.0, 0.0]
    np.testing.assert_allclose(sampled[:, 0, 0], expected, atol=1e-6)
    # The image ends after three cells.
    sampled = sample(
        values, points, jnp.full((5, 1, 1, 1), 2.0), extents=jnp.array([[1, 3]])
    )
    np.testing.assert_allclose(sampled[:, 0, 0], [4.0, 6.0, 0.0, 0.0, 0.0], atol=1e-6)


def test_sums_and_gradients_agree_with_loops(drawn, rng):
    """Those of values, points and weights; the loops are differentiated by JAX."""
    weight = rng.normal(size=(3, 2, 5)).astype(np.float32)
    extents = jnp.array(EXTENTS)
    ours = partial(multi_scale_deformable_attention, shapes=SHAPES, extents=extents)
    results = []
    for function in (ours, looped):

        def total(*inputs, function=function):
            sums = function(*inputs)
            return jnp.sum(sums * weight), sums

        gradient = jax.value_and_grad(total, (0, 1, 2), has_aux=True)
        results.append(jax.jit(gradient)(*drawn))
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-5)


def test_images_of_a_batch_are_sampled_apart(drawn):
    ours = partial(multi_scale_deformable_attention, shapes=SHAPES)
    extents = np.stack([EXTENTS, np.array(SHAPES)])
    values = np.stack([drawn[0], drawn[0][::-1]])
    mapped = jax.vmap(ours, (0, None, None))
    batch = mapped(values, *drawn[1:], extents=extents)
    for value, extent, sampled in zip(values, extents, batch, strict=True):
        alone = looped(value, *drawn[1:], extents=extent)
        np.testing.assert_allclose(sampled, alone, rtol=1e-4, atol=1e-5)
