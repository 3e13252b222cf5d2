from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops import images

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
normalize = partial(images.normalize, mean=MEAN, std=STD)


def test_pixels_by_hand(transform):
    pixels, size = jnp.array([[[0, 51, 255]]], jnp.uint8), jnp.array([1, 1])
    settings = {"mean": (0.5, 0.2, 0.0), "std": (0.25, 1.0, 0.5)}
    scaled = transform(partial(images.normalize, **settings))(pixels, size)
    assert scaled.dtype == jnp.float32
    chex.assert_trees_all_close(scaled, jnp.array([[[-2.0, 0.0, 2.0]]]), atol=1e-6)


def test_padding_is_zero_whatever_it_holds(rng):
    pixels = rng.integers(0, 256, (5, 7, 3), np.uint8)
    scaled = np.asarray(jax.jit(normalize)(pixels, np.array([3, 4])))
    assert (scaled[3:] == 0).all()
    assert (scaled[:, 4:] == 0).all()
    expected = (pixels[:3, :4] / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(scaled[:3, :4], expected, atol=1e-5)


def naive_crop(image, box, *, size, context):
    """One crop, one pixel at a time; around the image there are zeros."""
    height, width, channels = image.shape
    crop = np.zeros((size, size, channels))
    x1, y1, x2, y2 = box.astype(np.float64)
    for i, j in np.ndindex(size, size):
        y = y1 + (i + 0.5 - context) / (size - 2 * context) * (y2 - y1) - 0.5
        x = x1 + (j + 0.5 - context) / (size - 2 * context) * (x2 - x1) - 0.5
        for row in {int(np.floor(y)), int(np.floor(y)) + 1} & set(range(height)):
            for column in {int(np.floor(x)), int(np.floor(x)) + 1} & set(range(width)):
                share = (1 - abs(y - row)) * (1 - abs(x - column))
                crop[i, j] += share * image[row, column]
    return crop


def test_crops_by_hand(transform):
    image = jnp.arange(12.0).reshape(3, 4, 1) + 1
    boxes = jnp.array([[1.0, 1, 3, 3], [1.0, 1, 2, 2], [3.0, 1, 5, 3]])
    crops = transform(partial(images.crop_and_warp, output_size=2))(image, boxes)[
        ..., 0
    ]
    assert crops[0].tolist() == [[6.0, 7.0], [10.0, 11.0]]  # pixel for pixel
    # A pixel enlarged twice: a quarter of the way to its neighbors.
    assert crops[1].tolist() == [[4.75, 5.25], [6.75, 7.25]]
    assert crops[2].tolist() == [[8.0, 0.0], [12.0, 0.0]]  # half outside


def test_context_surrounds_the_box(transform):
    image = jnp.arange(36.0).reshape(6, 6, 1)
    warp = transform(partial(images.crop_and_warp, output_size=4, context=1))
    crop = warp(image, jnp.array([[2.0, 2, 4, 4]]))[0]
    chex.assert_trees_all_close(crop, image[1:5, 1:5])  # the middle 2x2 is the box


@pytest.mark.parametrize("context", [0, 3])
def test_crops_agree_with_the_oracle(rng, context):
    image = rng.normal(size=(9, 11, 3)).astype(np.float32)
    corners = np.sort(rng.uniform(-6, 16, (8, 2, 2)), axis=1).reshape(8, 4)
    boxes = np.concatenate([corners, np.zeros((1, 4))]).astype(np.float32)
    warp = partial(images.crop_and_warp, output_size=9, context=context)
    expected = [naive_crop(image, box, size=9, context=context) for box in boxes]
    np.testing.assert_allclose(jax.jit(warp)(image, boxes), expected, atol=1e-5)


def test_padding_the_canvas_changes_no_crop(rng):
    image = rng.normal(size=(9, 11, 3)).astype(np.float32)
    boxes = np.array([[0, 0, 11, 9], [5, 5, 11, 9], [4, -3, 14, 12]], np.float32)
    warp = jax.jit(partial(images.crop_and_warp, output_size=8, context=1))
    padded = np.pad(image, [(0, 4), (0, 6), (0, 0)])
    chex.assert_trees_all_close(warp(image, boxes), warp(padded, boxes), atol=1e-6)


def test_boxes_of_no_area_and_no_boxes(rng):
    image = rng.normal(size=(5, 6, 3)).astype(np.float32)
    warp = jax.jit(partial(images.crop_and_warp, output_size=7, context=2))
    crop = warp(image, jnp.array([[2.5, 3.5, 2.5, 3.5]]))[0]
    expected = jnp.broadcast_to(image[3, 2], (7, 7, 3))
    chex.assert_trees_all_close(crop, expected, atol=1e-6)
    assert warp(image, jnp.zeros((0, 4))).shape == (0, 7, 7, 3)


@pytest.mark.parametrize("context", [-1, 4])
def test_a_context_that_leaves_no_box_is_refused(context):
    with pytest.raises(ValueError, match=f"context {context}.*crop of 8"):
        images.crop_and_warp(
            jnp.zeros((4, 4, 3)), jnp.zeros((1, 4)), output_size=8, context=context
        )


def test_half_the_size_averages_four_pixels(rng):
    image = rng.normal(size=(6, 8, 3)).astype(np.float32)
    half = jax.jit(lambda image: images.rescale(image, 0.5))(image)
    expected = image.reshape(3, 2, 4, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(half, expected, atol=1e-6)


def test_rescaling_a_plane_by_an_odd_factor():
    y, x = np.meshgrid(np.arange(20) + 0.5, np.arange(30) + 0.5, indexing="ij")
    plane = np.stack([x, y, 2 * x - y], axis=-1).astype(np.float32)
    large = np.asarray(jax.jit(lambda image: images.rescale(image, 1.3))(plane))
    assert large.shape == (26, 39, 3)
    y, x = np.meshgrid(np.arange(26) + 0.5, np.arange(39) + 0.5, indexing="ij")
    expected = np.stack([x, y, 2 * x - y], axis=-1) / 1.3
    inside = np.s_[1:-1, 1:-1]
    np.testing.assert_allclose(large[inside], expected[inside], rtol=1e-4)


def test_rescaling_does_not_see_where_the_canvas_ends(rng):
    image = rng.normal(size=(7, 9, 3)).astype(np.float32)
    larger = np.pad(image, ((0, 4), (0, 5), (0, 0)))
    rescale = jax.jit(lambda image: images.rescale(image, 0.7))
    small, large = rescale(image), rescale(larger)
    np.testing.assert_allclose(large[:5, :7], small, atol=1e-6)
