"""Which cells belong to the image."""

import jax.numpy as jnp
import numpy as np

from jaxdet.nn import padding


def test_cells_that_touch_the_image():
    inside = padding.inside(jnp.array([[17, 8], [0, 40]]), (2, 4, 4, 3), 8)
    np.testing.assert_array_equal(
        inside[0, :, :, 0], np.outer([1, 1, 1, 0], [1, 0, 0, 0])
    )
    assert not np.any(inside[1])


def test_zero_outside():
    features = jnp.ones((1, 2, 2, 1))
    np.testing.assert_array_equal(padding.zero_outside(features, None, 8), features)
    kept = padding.zero_outside(features, jnp.array([[8, 16]]), 8)
    np.testing.assert_array_equal(kept[0, :, :, 0], [[1, 1], [0, 0]])
