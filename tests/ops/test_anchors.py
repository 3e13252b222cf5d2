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


def test_one_cell_by_hand():
    boxes = anchors.pyramid_anchors(
        (16, 16), sizes=[(10, 20)], ratios=(1, 4), levels=[4]
    )
    expected = [[3, 3, 13, 13], [-2, -2, 18, 18], [5.5, -2, 10.5, 18], [3, -12, 13, 28]]
    assert boxes.dtype == jnp.float32
    chex.assert_trees_all_close(boxes, jnp.array(expected, jnp.float32))


@pytest.mark.parametrize("name, layout", [("retinanet", RETINANET), ("rpn", RPN)])
def test_equal_torchvision(golden_ops, name, layout):
    boxes = anchors.pyramid_anchors((256, 320), **layout, offset=0.0, rounded=True)
    assert isinstance(boxes, jax.Array)
    chex.assert_trees_all_equal(boxes, golden_ops[f"anchors/{name}_256x320"])


def test_order_is_level_row_column_ratio_size():
    boxes = np.asarray(
        anchors.pyramid_anchors(
            (16, 24), sizes=[(4, 8), (16, 32)], ratios=(1, 4), levels=(3, 4)
        )
    )
    assert len(boxes) == 2 * 3 * 4 + 1 * 2 * 4
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    fine = [(x, y) for y in (4, 12) for x in (4, 12, 20) for _ in range(4)]
    coarse = [(x, 8) for x in (8, 24) for _ in range(4)]
    np.testing.assert_allclose(centers, fine + coarse)
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


def test_rounded_cells_take_canvases_like_torchvisions():
    layout = {"sizes": [(8,)], "ratios": (1,), "rounded": True}
    anchors.pyramid_anchors((800, 1344), **layout, levels=[7])  # 6.25 x 10.5 strides
    anchors.pyramid_anchors((8, 24), **layout, levels=[3])
    for canvas, level, multiple in (((8, 20), 3, 8), ((48, 64), 7, 32)):
        with pytest.raises(ValueError, match=f"must be a multiple of {multiple}"):
            anchors.pyramid_anchors(canvas, **layout, levels=[level])


def test_every_level_needs_sizes():
    with pytest.raises(ValueError, match="1 groups of sizes for 2 levels"):
        anchors.pyramid_anchors((8, 8), sizes=[(4,)], ratios=(1,), levels=(2, 3))


@pytest.mark.parametrize("size", [(64, 96), (40, 33), (1, 96), (0, 0)])
def test_anchors_on_an_image_are_those_of_a_canvas_of_its_size(size):
    mask = partial(anchors.inside_mask, levels=RETINANET["levels"], per_cell=9)
    belongs = jax.jit(partial(mask, (1, 64, 96)))(jnp.array([size]))[0]
    boxes = anchors.pyramid_anchors((64, 96), **RETINANET)
    if 0 in size:
        assert not belongs.any()
    else:
        smaller = anchors.pyramid_anchors(size, **RETINANET)
        np.testing.assert_array_equal(np.asarray(boxes)[belongs], smaller)


def test_anchors_on_the_images_of_a_batch():
    layout, sizes = {"levels": (3, 4), "per_cell": 2}, jnp.array([[16, 9], [32, 32]])
    belong = jax.jit(partial(anchors.inside_mask, (2, 32, 32, 3), **layout))(sizes)
    np.testing.assert_array_equal(belong.sum(axis=1), [2 * (2 * 2 + 1), 2 * (16 + 4)])
    assert jnp.all(anchors.inside_mask((2, 32, 32, 3), None, **layout))


@pytest.mark.parametrize(
    ("canvas", "options"),
    [
        ((64, 96), {}),
        ((41, 100), {"offset": 0.0}),
        ((1, 1), {}),
        ((64, 128), {"offset": 0.0, "rounded": True}),
        ((96, 160), {"offset": 0.0, "rounded": True}),  # no multiples of level 6's 64
    ],
)
def test_cell_centers_are_those_of_anchors(canvas, options):
    levels = (3, 6)
    points = anchors.cell_centers(canvas, levels=levels, **options)
    boxes = anchors.pyramid_anchors(
        canvas, sizes=[(8,), (8,)], ratios=(1,), levels=levels, **options
    )
    assert points.dtype == jnp.float32
    chex.assert_trees_all_close(points, (boxes[:, :2] + boxes[:, 2:]) / 2)


def test_the_best_of_each_level(transform):
    # A canvas of 2x1 cells, and of one on the next level; two anchors a cell.
    scores = [[9.0, 1], [2, 3], [4, 8], [7, 5], [0, -1], [-1, 6]]
    best = partial(
        anchors.topk_per_level, canvas=(16, 8), levels=(3, 4), per_cell=2, k=3
    )
    found = transform(best)(jnp.array(scores))
    np.testing.assert_array_equal(found[0], [9, 8, 7, 6, 0, -1])
    np.testing.assert_array_equal(found[1], [0, 2, 3, 5, 4, 4])
    np.testing.assert_array_equal(found[2], [0, 1, 0, 1, 0, 1])


@pytest.mark.parametrize("classes", [1, 4])
def test_best_of_a_level_are_the_first_of_all_its_scores(rng, classes):
    scores = rng.integers(0, 12, (64, classes)).astype(np.float32)  # many are equal
    layout = {"canvas": (64, 64), "levels": (3,), "per_cell": 1, "k": 50}
    best, index, labels = anchors.topk_per_level(jnp.asarray(scores), **layout)
    order = np.argsort(-scores.reshape(-1), kind="stable")[:50]
    np.testing.assert_array_equal(best, scores.reshape(-1)[order])
    np.testing.assert_array_equal(index * classes + labels, order)


def test_rows_are_sorted_at_once_as_one_by_one(rng):
    rows = jnp.asarray(rng.integers(0, 12, (3, 40)), jnp.float32)  # many are equal
    chex.assert_trees_all_equal(
        anchors.topk_at_once(rows, [7, 2, 40]), anchors.topk_by_rows(rows, [7, 2, 40])
    )


def test_a_level_with_few_scores_gives_them_all():
    scores = jnp.arange(5.0)[:, None]
    found = anchors.topk_per_level(scores, (16, 16), levels=(3, 4), per_cell=1, k=1000)
    np.testing.assert_array_equal(found[1], [3, 2, 1, 0, 4])


def test_default_boxes_by_hand():
    boxes = anchors.default_boxes(
        [(1, 2), (1, 1)],
        strides=(10, 25),
        sizes=[[(4, 8), (6, 6)], [(30, 20)]],
    )
    assert boxes.dtype == jnp.float32
    np.testing.assert_array_equal(
        boxes,
        [
            [1, 3, 9, 7],
            [2, 2, 8, 8],
            [11, 3, 19, 7],
            [12, 2, 18, 8],
            [2.5, -2.5, 22.5, 27.5],
        ],
    )
    with pytest.raises(ValueError, match="zip"):
        anchors.default_boxes([(1, 1)], strides=(8, 16), sizes=[[(4, 8)]])


def test_default_boxes_of_torchvision(golden_ssd):
    # Sides 21, 45, ... and the ratios 2, or 2 and 3; at most 300 (torchvision clips
    # the shapes, not the boxes).
    sides = np.array([21, 45, 99, 153, 207, 261, 315])
    shapes = []
    for place, ratios in enumerate([(2,), (2, 3), (2, 3), (2, 3), (2,), (2,)]):
        side = sides[place]
        between = np.sqrt(side * sides[place + 1])
        of_map = [(side, side), (between, between)]
        for root in np.sqrt(ratios):
            of_map += [(side / root, side * root), (side * root, side / root)]
        shapes.append(np.minimum(of_map, 300).tolist())
    boxes = anchors.default_boxes(
        [(cells, cells) for cells in (38, 19, 10, 5, 3, 1)],
        strides=(8, 16, 32, 64, 100, 300),
        sizes=shapes,
    )
    assert len(boxes) == 8732
    chex.assert_trees_all_close(boxes, golden_ssd["eval/anchors/0"], atol=1e-4)
