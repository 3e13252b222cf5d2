from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.ops import images

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
normalise = partial(images.normalise, mean=MEAN, std=STD)


def test_pixels_by_hand(transform):
    pixels = np.array([[[0, 51, 255]]], np.uint8)
    settings = {"mean": (0.5, 0.2, 0.0), "std": (0.25, 1.0, 0.5)}
    scaled = transform(partial(images.normalise, **settings))(pixels, np.array([1, 1]))
    assert scaled.dtype == jnp.float32
    chex.assert_trees_all_close(scaled, jnp.array([[[-2.0, 0.0, 2.0]]]), atol=1e-6)


def test_padding_is_zero_whatever_it_holds(rng):
    pixels = rng.integers(0, 256, (5, 7, 3), np.uint8)
    scaled = np.asarray(jax.jit(normalise)(pixels, np.array([3, 4])))
    assert (scaled[3:] == 0).all()
    assert (scaled[:, 4:] == 0).all()
    expected = (pixels[:3, :4] / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(scaled[:3, :4], expected, atol=1e-5)


def test_an_image_of_no_size_is_all_padding():
    pixels = np.full((4, 4, 3), 200, np.uint8)
    assert (jax.jit(normalise)(pixels, np.array([0, 0])) == 0).all()


def test_leading_axes_and_vmap_agree(rng):
    pixels = rng.integers(0, 256, (2, 3, 5, 7, 3), np.uint8)
    sizes = rng.integers(1, 6, (2, 3, 2))
    batched = jax.jit(normalise)(pixels, sizes)
    mapped = jax.jit(jax.vmap(jax.vmap(normalise)))(pixels, sizes)
    chex.assert_trees_all_close(batched, mapped, atol=1e-6)
    shared = jax.jit(normalise)(pixels, sizes[0, 0])
    chex.assert_trees_all_close(shared[0, 0], batched[0, 0], atol=1e-6)
