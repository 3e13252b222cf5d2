from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops import anchors

OCTAVE = [2**0, 2 ** (1 / 3), 2 ** (2 / 3)]
RETINANET = {
    "sizes": [[int(x * step) for step in OCTAVE] for x in (32, 64, 128, 256, 512)],
    "ratios": (0.5, 1.0, 2.0),
    "levels": (3, 4, 5, 6, 7),
}
RPN = {
    "sizes": [[x] for x in (32, 64, 128, 256, 512)],
    "ratios": (0.5, 1.0, 2.0),
    "levels": (2, 3, 4, 5, 6),
}


@pytest.mark.parametrize("name, layout", [("retinanet", RETINANET), ("rpn", RPN)])
def test_equal_torchvision(golden_ops, name, layout):
    boxes = anchors.pyramid_anchors((256, 320), **layout, offset=0.0, rounded=True)
    assert isinstance(boxes, jax.Array)
    chex.assert_trees_all_equal(boxes, golden_ops[f"anchors/{name}_256x320"])


def test_one_cell_by_hand():
    boxes = anchors.pyramid_anchors(
        (16, 16), sizes=[(10, 20)], ratios=(1, 4), levels=[4]
    )
    expected = [[3, 3, 13, 13], [-2, -2, 18, 18], [5.5, -2, 10.5, 18], [3, -12, 13, 28]]
    assert boxes.dtype == jnp.float32
    chex.assert_trees_all_close(boxes, jnp.array(expected, jnp.float32))


def test_order_is_level_row_column_ratio_size():
    boxes = np.asarray(
        anchors.pyramid_anchors(
            (16, 24), sizes=[(4, 8), (16, 32)], ratios=(1, 4), levels=(3, 4)
        )
    )
    assert len(boxes) == 2 * 3 * 4 + 1 * 2 * 4
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    fine = [(x, y) for y in (4, 12) for x in (4, 12, 20) for _ in range(4)]
    coarse = [(x, 8) for x in (8, 24) for _ in range(4)]
    np.testing.assert_allclose(centres, fine + coarse)
    sides = boxes[:, 2:] - boxes[:, :2]
    np.testing.assert_allclose(sides[:4], [(4, 4), (8, 8), (2, 8), (4, 16)])
    np.testing.assert_allclose(sides[-4:], [(16, 16), (32, 32), (8, 32), (16, 64)])


def test_offset_counts_strides():
    grid = partial(
        anchors.pyramid_anchors, (32, 32), sizes=[(8,)], ratios=(1,), levels=(4,)
    )
    chex.assert_trees_all_equal(grid(offset=0.5), grid(offset=0.0) + 8)
    chex.assert_trees_all_equal(grid()[0], jnp.array([4.0, 4.0, 12.0, 12.0]))


def test_rounding_is_half_to_even():
    grid = partial(
        anchors.pyramid_anchors, (8, 8), ratios=(1,), levels=(3,), offset=0.0
    )
    for size, half in [(5, 2.0), (7, 4.0), (6, 3.0)]:
        box = grid(sizes=[(size,)], rounded=True)
        chex.assert_trees_all_equal(box, jnp.array([[-half, -half, half, half]]))
        box = grid(sizes=[(size,)])
        half = size / 2
        chex.assert_trees_all_equal(box, jnp.array([[-half, -half, half, half]]))


def test_jit_equals_eager():
    canvas = (64, 96)
    grid = partial(anchors.pyramid_anchors, canvas, **RETINANET)
    chex.assert_trees_all_equal(jax.jit(grid)(), grid())


def test_every_level_needs_sizes():
    with pytest.raises(ValueError, match="1 groups of sizes for 2 levels"):
        anchors.pyramid_anchors((8, 8), sizes=[(4,)], ratios=(1,), levels=(2, 3))


@pytest.mark.parametrize("canvas", [(64, 64), (65, 127), (1, 1)])
def test_count_is_the_number_of_anchors(canvas):
    boxes = anchors.pyramid_anchors(canvas, **RETINANET)
    count = anchors.count(canvas, levels=RETINANET["levels"], per_cell=9)
    assert len(boxes) == count


@pytest.mark.parametrize("size", [(64, 96), (40, 33), (1, 96), (0, 0)])
def test_anchors_on_an_image_are_those_of_a_canvas_of_its_size(size):
    belongs = jax.jit(
        partial(anchors.on_image, (64, 96), levels=RETINANET["levels"], per_cell=9)
    )(jnp.array(size))
    boxes = anchors.pyramid_anchors((64, 96), **RETINANET)
    if 0 in size:
        assert not belongs.any()
    else:
        smaller = anchors.pyramid_anchors(size, **RETINANET)
        np.testing.assert_array_equal(np.asarray(boxes)[belongs], smaller)


def test_anchors_on_the_images_of_a_batch():
    layout, sizes = {"levels": (3, 4), "per_cell": 2}, jnp.array([[16, 9], [32, 32]])
    belong = jax.jit(partial(anchors.on_images, (2, 32, 32, 3), **layout))(sizes)
    np.testing.assert_array_equal(belong.sum(axis=1), [2 * (2 * 2 + 1), 2 * (16 + 4)])
    for row, size in zip(belong, sizes, strict=True):
        own = anchors.on_image((32, 32), size, **layout)
        np.testing.assert_array_equal(row, own)
    assert jnp.all(anchors.on_images((2, 32, 32, 3), None, **layout))
