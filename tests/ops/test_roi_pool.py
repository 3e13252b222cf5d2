import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops import roi_pool

STRIDE = 8
BOXES = np.array(
    [
        [0, 0, 96, 72],  # all of the map
        [20, 12, 20, 12],  # a point
        [-60, -50, -30, -40],  # outside
        [80, 60, 140, 130],  # half outside
        [-900, -500, 2000, 3000],  # the map is but a part of one bin
        [13.7, 5.1, 92.3, 9.8],
        [0, 0, 0, 0],  # padding
    ],
    np.float32,
)


@pytest.fixture
def features(rng):
    """With many equal values."""
    return np.round(rng.normal(size=(9, 12, 3)) * 2).astype(np.float32)


def bins_of(box, *, stride, size, height, width):
    """For each bin its rows and its columns, as two slices."""
    halves_away_from_zero = [math.copysign(int(abs(x) + 0.5), x) for x in box / stride]
    x1, y1, x2, y2 = map(int, halves_away_from_zero)

    def cells(first, last, index, extent):
        side = max(last - first + 1, 1)
        start = first + math.floor(index * side / size)
        end = first + math.ceil((index + 1) * side / size)
        return slice(min(max(start, 0), extent), min(max(end, 0), extent))

    for i, j in np.ndindex(size, size):
        yield (i, j), cells(y1, y2, i, height), cells(x1, x2, j, width)


def naive_roi_max_pool(features, boxes, upstream, *, stride, output_size):
    """Maxima, one bin at a time, and the gradient of the features."""
    height, width, channels = features.shape
    pooled, gradient = np.zeros_like(upstream), np.zeros_like(features)
    for r, box in enumerate(boxes.astype(np.float64)):
        settings = {
            "stride": stride,
            "size": output_size,
            "height": height,
            "width": width,
        }
        for (i, j), rows, columns in bins_of(box, **settings):
            cells = features[rows, columns].reshape(-1, channels)
            if len(cells) == 0:
                continue
            pooled[r, i, j] = cells.max(axis=0)
            for c, first in enumerate(cells.argmax(axis=0)):
                row, column = divmod(first, columns.stop - columns.start)
                target = rows.start + row, columns.start + column, c
                gradient[target] += upstream[r, i, j, c]
    return pooled, gradient


def value_and_gradient(pool, features, boxes, upstream):
    @jax.jit
    def run(features, boxes, upstream):
        pooled, pull = jax.vjp(pool, features, boxes)
        return pooled, pull(upstream)

    pooled, (of_features, of_boxes) = run(features, boxes, upstream)
    assert not np.any(of_boxes)
    return pooled, of_features


def test_one_box_by_hand(transform):
    features = jnp.arange(12.0).reshape(3, 4, 1)
    # Cells 1 to 3 by 0 to 1: 4 / 8 is rounded up to 1, and 20 / 8 to 3.
    boxes = jnp.array([[4.0, 3.9, 20.0, 4.0]])
    pool = partial(roi_pool.roi_max_pool, stride=8, output_size=2)
    # Bins of 1.5 columns share the one in the middle.
    expected = jnp.array([[2.0, 3.0], [6.0, 7.0]])
    chex.assert_trees_all_equal(transform(pool)(features, boxes)[0, :, :, 0], expected)


def test_halves_are_rounded_away_from_zero():
    values = jnp.array([-1.5, -0.5, -0.4, 0.49999997, 0.5, 1.5, 2.5])
    rounded = roi_pool._rounded(values)
    assert rounded.tolist() == [-2, -1, 0, 0, 1, 2, 3]


def test_agrees_with_torchvision(golden_ops):
    pooled, gradient = value_and_gradient(
        partial(roi_pool.roi_max_pool, stride=8),
        golden_ops["roi/features (NHWC)"],
        golden_ops["roi/boxes"],
        golden_ops["roi/upstream gradient [R,7,7,C]"],
    )
    chex.assert_trees_all_equal(pooled, golden_ops["roi/pool stride 8 size 7"])
    np.testing.assert_allclose(
        gradient, golden_ops["roi/pool, gradient of features"], atol=1e-5
    )


@pytest.mark.parametrize("size", [1, 3])
def test_agrees_with_the_oracle(rng, features, size):
    corners = np.sort(rng.uniform(-20, 110, (20, 2, 2)), axis=1).reshape(20, 4)
    boxes = np.concatenate([BOXES, corners.astype(np.float32)])
    upstream = rng.normal(size=(len(boxes), size, size, 3)).astype(np.float32)
    settings = {"stride": STRIDE, "output_size": size}
    pool = partial(roi_pool.roi_max_pool, **settings)
    pooled, gradient = value_and_gradient(pool, features, boxes, upstream)
    expected = naive_roi_max_pool(features, boxes, upstream, **settings)
    chex.assert_trees_all_equal(pooled, expected[0])
    np.testing.assert_allclose(gradient, expected[1], atol=1e-4)


def test_pyramid_is_the_grids_one_after_the_other(features):
    pyramid = jax.jit(partial(roi_pool.spatial_pyramid_pool, stride=STRIDE))
    pooled = pyramid(features, BOXES)
    assert pooled.shape == (len(BOXES), 36 + 9 + 4 + 1, 3)
    start = 0
    for size in (6, 3, 2, 1):
        settings = {"stride": STRIDE, "output_size": size}
        upstream = np.zeros((len(BOXES), size, size, 3), np.float32)
        expected, _ = naive_roi_max_pool(features, BOXES, upstream, **settings)
        for (i, j), values in zip(
            np.ndindex(size, size), np.moveaxis(pooled[:, start:], 1, 0), strict=False
        ):
            chex.assert_trees_all_equal(values, expected[:, i, j])
        start += size**2


@pytest.mark.parametrize(
    "pool",
    [
        partial(roi_pool.roi_max_pool, stride=STRIDE),
        partial(roi_pool.spatial_pyramid_pool, stride=STRIDE, bins=(3, 1)),
    ],
    ids=["grid", "pyramid"],
)
def test_zeros_beyond_the_image_change_nothing(rng, features, pool):
    corners = np.sort(rng.uniform(0, [[[96, 72]]], (30, 2, 2)), axis=1)
    boxes = np.concatenate([corners.reshape(30, 4), [[0, 0, 96, 72], [95, 71, 96, 72]]])
    positive = np.maximum(features, 0)
    longer = np.pad(positive, [(0, 5), (0, 3), (0, 0)])
    pool, boxes = jax.jit(pool), boxes.astype(np.float32)
    chex.assert_trees_all_equal(pool(positive, boxes), pool(longer, boxes))


def test_no_boxes(features):
    none, upstream = np.zeros((0, 4), np.float32), np.zeros((0, 7, 7, 3), np.float32)
    pool = partial(roi_pool.roi_max_pool, stride=STRIDE)
    pooled, gradient = value_and_gradient(pool, features, none, upstream)
    assert pooled.shape == (0, 7, 7, 3)
    assert (gradient == 0).all()
    pyramid = partial(roi_pool.spatial_pyramid_pool, stride=STRIDE, bins=(2,))
    assert jax.jit(pyramid)(features, none).shape == (0, 4, 3)


def test_bfloat16_stays(rng, features):
    pool = partial(roi_pool.roi_max_pool, stride=STRIDE, output_size=3)
    upstream = jnp.asarray(rng.normal(size=(len(BOXES), 3, 3, 3)), jnp.bfloat16)
    coarse = jnp.asarray(features, jnp.bfloat16)
    pooled = value_and_gradient(pool, coarse, BOXES, upstream)
    exact = value_and_gradient(pool, features, BOXES, upstream.astype(jnp.float32))
    chex.assert_trees_all_equal(
        pooled, jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact)
    )


@pytest.mark.parametrize(
    ("extent", "size", "window", "stride"), [(13, 6, 3, 2), (14, 7, 2, 2), (5, 5, 1, 1)]
)
def test_grid_pooling_is_the_networks_own(rng, extent, size, window, stride):
    maps = rng.normal(size=(2, extent, extent, 3)).astype(np.float32)
    expected = jax.lax.reduce_window(
        maps,
        -jnp.inf,
        jax.lax.max,
        (1, window, window, 1),
        (1, stride, stride, 1),
        "VALID",
    )
    pool = jax.jit(partial(roi_pool.adaptive_max_pool, output_size=size))
    chex.assert_trees_all_equal(pool(maps), expected)


def test_grid_pooling_by_hand(transform):
    column = jnp.array([4.0, 1.0, 3.0, 2.0, 5.0]).reshape(1, 5, 1, 1)
    # Of 5 rows the bins of 3 are 0 and 1, 1 to 3, 3 and 4; all bins see the one column.
    pooled = transform(partial(roi_pool.adaptive_max_pool, output_size=3))(column)
    assert pooled[0, :, :, 0].T.tolist() == [[4.0, 3.0, 5.0]] * 3
