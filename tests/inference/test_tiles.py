"""Tiles and their merging by hand, against an oracle, and what may not change them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.config import ConfigError
from jaxdet.inference import export, load
from jaxdet.inference.preprocess import ImageDetections
from jaxdet.inference.tiles import TilesConfig, merge, tile_grid
from jaxdet.structs import Detections
from tests import oracles
from tests.inference.test_load import trained

NAMES = ("cat", "dog")
TILES = TilesConfig(size=64, overlap=0.25, batch_size=4)


@pytest.mark.parametrize(
    ("side", "size", "overlap", "expected"),
    [
        (100, 100, 0.2, [0]),
        (40, 100, 0.2, [0]),  # the image is smaller than a tile
        (200, 100, 0.0, [0, 100]),
        (201, 100, 0.0, [0, 100, 101]),  # the last is flush with the border
        (250, 100, 0.2, [0, 80, 150]),
        (260, 100, 0.2, [0, 80, 160]),
        (103, 100, 0.999, [0, 1, 2, 3]),
        (4, 2, 0.9, [0, 1, 2]),  # a step is a pixel at least
    ],
)
def test_where_tiles_begin(side, size, overlap, expected):
    config = TilesConfig(size=size, overlap=overlap)
    grid = tile_grid((side, 1), config)
    np.testing.assert_array_equal(grid[:, 1], expected)
    np.testing.assert_array_equal(grid[:, 3], np.array(expected) + min(size, side))
    np.testing.assert_array_equal(grid[:, [0, 2]], [[0, 1]] * len(expected))


def test_tiles_stand_row_by_row():
    grid = tile_grid((60, 100), TilesConfig(size=60, overlap=0.5))
    np.testing.assert_array_equal(
        grid, [[0, 0, 60, 60], [30, 0, 90, 60], [40, 0, 100, 60]]
    )


def detections(*rows):
    """Of (x1, y1, x2, y2, score, label)."""
    rows = np.array(rows, np.float32).reshape(-1, 6)
    labels = rows[:, 5].astype(np.int32)
    names = tuple(NAMES[label] for label in labels)
    return ImageDetections(rows[:, :4], rows[:, 4], labels, names)


# The whole image of 160 x 100, and two tiles of 100.
VIEWS = np.array([[0, 0, 160, 100], [0, 0, 100, 100], [60, 0, 160, 100]])


def merged(*views, **config):
    config = TilesConfig(size=100, overlap=0.4, **config)
    found = merge(VIEWS, [detections(*view) for view in views], (100, 160), config)
    return np.column_stack([found.boxes, found.scores, found.labels]), found.names


def test_coordinates_are_the_images_and_best_is_first():
    found, names = merged(
        [(90, 5, 110, 25, 0.25, 0)],
        [(10, 20, 30, 40, 0.5, 1)],
        [(30, 50, 70, 90, 0.75, 1), (30, 50, 70, 90, 0.875, 0)],
    )
    expected = [
        [90, 50, 130, 90, 0.875, 0],
        [90, 50, 130, 90, 0.75, 1],  # of another class
        [10, 20, 30, 40, 0.5, 1],
        [90, 5, 110, 25, 0.25, 0],
    ]
    np.testing.assert_array_equal(found, expected)
    assert names == ("cat", "dog", "dog", "cat")


COMPLETE = (20, 10, 60, 50, 0.5, 0)  # in the right tile: 80 to 120 of the image
CUT = (80, 10, 100, 50)  # the same, in the left tile: half of it


@pytest.mark.parametrize("score", [0.4, 0.9])  # below and above its rival's
def test_what_is_cut_gives_way_to_what_is_complete(score):
    found, _ = merged([], [(*CUT, score, 0)], [COMPLETE])
    np.testing.assert_array_equal(found, [[80, 10, 120, 50, 0.5, 0]])


def test_what_is_cut_stays_where_nothing_better_is_seen():
    cut = (*CUT, 0.9, 0)
    found, _ = merged([], [cut], [(*COMPLETE[:4], 0.4, 0)])  # too unlikely: < 0.9 / 2
    assert [round(float(score), 3) for score in found[:1, 4]] == [0.9]
    found, _ = merged([], [cut], [])
    np.testing.assert_array_equal(found, np.array([cut], np.float32))
    found, _ = merged([], [cut], [(*COMPLETE[:4], 0.5, 1)])  # another class
    assert len(found) == 2
    # Nearer than a pixel to the edge is at it; two pixels are not, nor is the border
    # of the image.
    near = (79, 10, 99, 50, 0.9, 0)
    found, _ = merged([], [near], [COMPLETE])
    assert len(found) == 1
    found, _ = merged([], [(78, 10, 98, 50, 0.9, 0)], [COMPLETE])
    assert len(found) == 2
    at_border, larger = (0, 0, 20, 40, 0.5, 0), (0, 0, 40, 40, 0.9, 0)
    found, _ = merged([larger], [at_border], [])
    assert len(found) == 2


def test_large_objects_are_the_whole_images():
    """All of it in the whole image, a half in each tile."""
    found, _ = merged(
        [(10, 10, 150, 90, 0.6, 0)],
        [(10, 10, 100, 90, 0.7, 0)],
        [(0, 10, 90, 90, 0.8, 0)],
    )
    np.testing.assert_allclose(found, [[10, 10, 150, 90, 0.6, 0]])


def test_merging_is_nms_where_nothing_is_cut():
    rng = np.random.default_rng(0)
    corners = rng.uniform(2, 60, (3, 40, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 35, (3, 40, 2))], axis=2)
    rows = [
        np.column_stack([view, rng.uniform(size=40), rng.integers(0, 2, 40)])
        for view in boxes
    ]
    found, _ = merged(*rows, nms_threshold=0.4, edge=0.0)
    assert 40 < len(found) < 110
    everything = np.concatenate(rows).astype(np.float32)
    everything[80:, [0, 2]] += 60
    boxes, scores, labels = np.split(everything, [4, 5], axis=1)
    keep = oracles.greedy_nms(boxes, scores[:, 0], 0.4, labels=labels[:, 0])
    np.testing.assert_allclose(found, everything[keep])


def red_squares(variables, batch):
    """A box around all red pixels, scored by the reddest, with half of it as mask."""
    red = batch.images[..., 0] > 0
    rows, columns = jnp.any(red, axis=2), jnp.any(red, axis=1)

    def span(any_of):
        first = jnp.argmax(any_of, axis=1)
        return first, any_of.shape[1] - jnp.argmax(any_of[:, ::-1], axis=1)

    (y1, y2), (x1, x2) = span(rows), span(columns)
    boxes = jnp.stack([x1, y1, x2, y2], axis=1)[:, None].astype(jnp.float32)
    valid = jnp.any(rows, axis=1)[:, None]
    scores = jnp.max(batch.images[..., 0], axis=(1, 2))[:, None] / 255 * valid
    return Detections(
        boxes=boxes * valid[..., None],
        scores=scores * variables["score"],
        labels=0 * valid.astype(jnp.int32),
        valid=valid,
        masks=jnp.broadcast_to(jnp.tril(jnp.ones((8, 8))), (len(boxes), 1, 8, 8)),
    )


def picture(height, width, *boxes):
    image = np.zeros((height, width, 3), np.uint8)
    for x1, y1, x2, y2 in boxes:
        image[y1:y2, x1:x2, 0] = 200
    return image


@pytest.fixture
def counted():
    """A detector, and how often it has been traced."""
    traces = []

    def predict(variables, batch):
        traces.append(batch.images.shape)
        return red_squares(variables, batch)

    return trained(predict, canvases=((64, 64), (32, 96))), traces


def test_one_compilation_for_all_sizes_of_images(counted):
    model, traces = counted
    detect = load.make_detect(model, tiles=TILES)
    for size in [(65, 64), (300, 200), (64, 500), (128, 128), (60, 64), (1, 1000)]:
        detect(np.zeros((*size, 3), np.uint8))
    assert traces == [(4, 64, 64, 3)]


def test_small_squares_are_found_where_they_are(counted):
    """In a tile of their own each; the whole image sees one box around both."""
    model, _ = counted
    image = picture(64, 160, (10, 20, 14, 26), (140, 30, 150, 32))
    found = load.make_detect(model, tiles=TILES)(image)
    expected = [[10, 20, 14, 26], [140, 30, 150, 32]]
    boxes = sorted(box.tolist() for box in found.boxes if box[2] - box[0] < 20)
    np.testing.assert_array_equal(boxes, expected)
    assert found.masks.shape == (len(found.boxes), 64, 160)
    for (x1, y1, x2, y2), mask in zip(
        found.boxes.astype(int), found.masks, strict=True
    ):
        assert mask[y2 - 1, x1] and not mask[y1, x2 - 1]  # the lower left half
        mask[max(y1 - 1, 0) : y2 + 1, max(x1 - 1, 0) : x2 + 1] = False
        assert not mask.any()


@pytest.mark.parametrize("size", [(64, 64), (10, 63), (30, 5)])
def test_tiles_change_nothing_of_an_image_no_larger(counted, size):
    model, _ = counted
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    with_tiles = load.make_detect(model, tiles=TILES)(image)
    without = load.make_detect(model)(image)
    jax.tree.map(np.testing.assert_array_equal, with_tiles, without)


def test_an_exported_detector_takes_tiles_too(counted, tmp_path):
    model, _ = counted
    export.save(tmp_path / "model", model, batch_size=3)
    artifact = export.load(tmp_path / "model")
    image = picture(100, 90, (10, 20, 14, 26))
    (found,) = export.make_detect(artifact, tiles=TILES)([image])
    expected = load.make_detect(model, tiles=TILES)(image)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("fields", [{"overlap": 1.0}, {"size": 0}])
def test_configs_are_checked(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        TilesConfig(**fields)
