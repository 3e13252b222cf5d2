"""The deformable transformer's layers, against NumPy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.nn.deformable_attention import multi_scale_deformable_attention
from jaxdet.nn.deformable_transformer import (
    DeformableAttention,
    LevelProjections,
    Maps,
    one_by_one,
)
from tests.nn.test_transformer import softmax

SHAPES = ((3, 5), (2, 3))
EXTENTS = np.array([[[3, 4], [2, 2]]])
HEADS, POINTS, CHANNELS = 2, 3, 8


@pytest.fixture
def maps(rng):
    features = rng.normal(size=(1, 21, CHANNELS)).astype(np.float32)
    return Maps(features, EXTENTS, SHAPES)


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def sample(cells, x, y):
    """The bilinear value of `[rows, columns, D]` at a point; 0 beyond."""
    total = 0.0
    for i, j in np.ndindex(cells.shape[:2]):
        total += (
            cells[i, j] * max(0, 1 - abs(x - j - 0.5)) * max(0, 1 - abs(y - i - 0.5))
        )
    return total


def attend(params, query, reference, features):
    """Equation 3 of the paper for one query, and A.4's points around boxes."""
    layout = HEADS, len(SHAPES), POINTS
    offsets = dense(params["sampling_offsets"], query).reshape(*layout, 2)
    weights = dense(params["attention_weights"], query).reshape(HEADS, -1)
    weights = softmax(weights).reshape(layout)
    values = dense(params["value"], features).reshape(-1, HEADS, CHANNELS // HEADS)
    heads = np.zeros((HEADS, CHANNELS // HEADS))
    for head, level, point in np.ndindex(layout):
        rows, columns = SHAPES[level]
        start = sum(h * w for h, w in SHAPES[:level])
        cells = values[start : start + rows * columns, head].reshape(rows, columns, -1)
        height, width = EXTENTS[0, level]
        offset = offsets[head, level, point]
        if len(reference) == 4:
            offset = offset / POINTS * reference[2:] / 2 * [width, height]
        x, y = reference[:2] * [width, height] + offset
        inside = sample(cells[:height, :width], x, y)
        heads[head] += weights[head, level, point] * inside
    return dense(params["out"], heads.reshape(-1))


@pytest.mark.parametrize("coordinates", [2, 4])
def test_attention_agrees_with_numpy(rng, maps, coordinates):
    queries = rng.normal(size=(1, 4, CHANNELS)).astype(np.float32)
    references = rng.uniform(0.1, 0.9, (1, 4, coordinates)).astype(np.float32)
    layer = DeformableAttention(HEADS, POINTS)
    params = layer.init(jax.random.key(0), queries, references, maps)["params"]
    params = jax.tree.map(lambda p: np.float32(rng.normal(p, 0.3)), params)
    ours = layer.apply({"params": params}, queries, references, maps)[0]
    for query, reference, attended in zip(queries[0], references[0], ours, strict=True):
        theirs = attend(params, query, reference, maps.features[0])
        np.testing.assert_allclose(attended, theirs, rtol=1e-4, atol=1e-5)


def test_heads_start_out_in_different_directions(maps):
    layer = DeformableAttention(4, 2)
    queries = maps.features[:, :1]
    references = np.zeros((1, 1, 2), np.float32)
    params = layer.init(jax.random.key(0), queries, references, maps)["params"]
    offsets = params["sampling_offsets"]["bias"].reshape(4, len(SHAPES), 2, 2)
    steps = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
    for level in range(len(SHAPES)):
        np.testing.assert_allclose(offsets[:, level, 0], steps, atol=1e-6)
        np.testing.assert_allclose(offsets[:, level, 1], 2 * steps, atol=1e-6)


def test_what_is_sampled_is_sown(maps):
    """At first all points weigh the same; the first head's lie on the right."""
    layer, queries = DeformableAttention(4, 2), maps.features[:, :1]
    references = np.full((1, 1, 2), 0.5, np.float32)
    variables = layer.init(jax.random.key(0), queries, references, maps)
    _, state = layer.apply(
        variables, queries, references, maps, mutable=["intermediates"]
    )
    ((center, points, weights),) = state["intermediates"]["samples"]
    np.testing.assert_array_equal(center.ravel(), [0.5, 0.5])
    np.testing.assert_allclose(weights, np.full((1, 1, 4, 2, 2), 1 / 4))
    # By one and two cells, of four in the first map's image and two in the second's.
    right = [[[0.75, 0.5], [1.0, 0.5]], [[1.0, 0.5], [1.5, 0.5]]]
    np.testing.assert_allclose(points[0, 0, 0], right)


def test_centers_of_cells_are_fractions_of_the_image(maps):
    centers = np.asarray(maps.centers())[0]
    np.testing.assert_allclose(centers[:2], [[1 / 8, 1 / 6], [3 / 8, 1 / 6]], rtol=1e-6)
    np.testing.assert_allclose(centers[-3], [1 / 4, 3 / 4], rtol=1e-6)


def test_missing_levels_are_made_but_not_the_finest(rng):
    stages = {level: rng.normal(size=(1, 8 >> level, 4, 6)) for level in (1, 2)}
    layer = LevelProjections((2, 3, 4), 8)
    features, _ = layer.init_with_output(jax.random.key(0), stages)
    assert [x.shape for x in features] == [(1, 2, 4, 8), (1, 1, 2, 8), (1, 1, 1, 8)]
    with pytest.raises(ValueError, match=r"level is 3.* levels \[1, 2\]"):
        LevelProjections((3, 4), 8).init(jax.random.key(0), stages)


def test_images_one_by_one_are_the_batch(rng):
    shape = (2, 5, HEADS, len(SHAPES), POINTS)
    values = jnp.asarray(rng.normal(size=(2, 21, HEADS, 4)), jnp.float32)
    points = jnp.asarray(rng.uniform(-1, 6, (*shape, 2)), jnp.float32)
    weights = jnp.asarray(rng.uniform(size=shape), jnp.float32)
    extents = jnp.asarray([EXTENTS[0], [[2, 5], [1, 3]]])

    @functools.partial(jax.jit, static_argnums=0)
    def sums_and_gradients(over_images):
        run = over_images(attend)
        sums, pull = jax.vjp(lambda *x: run(*x, extents), values, points, weights)
        return sums, pull(jnp.sin(sums))

    def attend(values, points, weights, extents):
        return multi_scale_deformable_attention(
            values, points, weights, shapes=SHAPES, extents=extents
        )

    ours = sums_and_gradients(lambda attend: functools.partial(one_by_one, attend))
    chex.assert_trees_all_close(
        ours, sums_and_gradients(jax.vmap), rtol=1e-5, atol=1e-6
    )
