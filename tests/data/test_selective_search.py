import dataclasses
import logging
import re

import cv2
import numpy as np
import pytest

from jaxdet.data import selective_search as module
from jaxdet.data.dataset import DataError, Proposals
from jaxdet.data.selective_search import recall, selective_search
from tests import oracles
from tests.data.in_memory import in_memory_data_set


def scene(seed, size=(48, 64)):
    """A gray image with two colored rectangles, and their boxes."""
    rng = np.random.default_rng(seed)
    image = np.full((*size, 3), 128, np.uint8)
    boxes = []
    for color, left in (((250, 20, 20), 2), ((20, 20, 250), size[1] // 2 + 2)):
        x, y = left + rng.integers(0, 6), rng.integers(2, 12)
        width, height = rng.integers(14, 22, 2)
        image[y : y + height, x : x + width] = color
        boxes.append((x, y, x + width, y + height, 0))
    return image, boxes


def scenes(count, seed=0, **options):
    images, boxes = zip(*(scene(seed + i) for i in range(count)), strict=True)
    return in_memory_data_set(list(images), list(boxes), **options)


def of(*boxes_and_scores):
    """Proposals from (x1, y1, x2, y2, score) rows."""
    rows = np.array(boxes_and_scores, np.float32).reshape(-1, 5)
    return Proposals(rows[:, :4], rows[:, 4])


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)
        assert one.boxes.dtype == one.scores.dtype == np.float32
        assert one.boxes.shape == (len(one.scores), 4)


def best_iou(box, boxes):
    return max(oracles.iou(np.array(box), one) for one in boxes)


class TestSelectiveSearch:
    def test_what_stands_out_is_found(self):
        for seed in range(3):
            image, boxes = scene(seed)
            found = selective_search(image).boxes
            assert all(best_iou(box[:4], found) > 0.7 for box in boxes)

    @pytest.mark.parametrize("mode", ["fast", "quality"])
    def test_proposals_are_in_order_and_always_the_same(self, mode):
        image, _ = scene(3)
        first, second = (selective_search(image, mode=mode) for _ in range(2))
        assert_same([first], [second])
        assert len(np.unique(first.boxes, axis=0)) == len(first.boxes) > 2
        assert (np.diff(first.scores) <= 0).all() and first.scores[0] == 1
        assert (first.scores >= 0).all()
        few = selective_search(image, mode=mode, max_proposals=2)
        assert_same([few], [Proposals(first.boxes[:2], first.scores[:2])])

    def test_each_is_the_one_least_like_those_before(self):
        boxes, scores = selective_search(scene(4)[0])
        assert oracles.area(boxes[0]) == max(map(oracles.area, boxes))
        for rank in range(1, len(boxes)):
            closest = oracles.pairwise(oracles.iou, boxes[rank:], boxes[:rank]).max(1)
            assert closest[0] == pytest.approx(closest.min(), abs=1e-6)
            assert scores[rank] == pytest.approx(1 - closest[0], abs=1e-6)

    def test_order_and_scores_by_hand(self):
        rows = [(0, 0, 4, 4), (0, 0, 10, 10), (0, 0, 10, 9), (20, 0, 24, 6)]
        boxes, scores = module._rank_by_novelty(np.array(rows, np.float32), 4)
        # The largest; nothing like it; a part of 16 / 100; one of 90 / 100.
        np.testing.assert_array_equal(boxes, np.array(rows)[[1, 3, 0, 2]])
        np.testing.assert_allclose(scores, [1, 1, 0.84, 0.1], rtol=1e-6)

    @pytest.mark.parametrize(("min_side", "is_found"), [(0.04, True), (0.2, False)])
    def test_small_ones_are_left_out(self, monkeypatch, min_side, is_found):
        monkeypatch.setattr(module, "MIN_SIDE", min_side)
        image = np.full((100, 100, 3), 128, np.uint8)
        image[40:55, 20:36] = (250, 20, 20)
        boxes, _ = selective_search(image)
        assert (boxes[:, 2:] - boxes[:, :2]).min() >= min_side * 100
        assert (best_iou([20, 40, 36, 55], boxes) > 0.7) == is_found

    def test_wide_images_are_shrunk_and_boxes_in_their_own_pixels(self, monkeypatch):
        monkeypatch.setattr(module, "WIDTH", 64)
        image, boxes = scene(6)
        large = cv2.resize(image, (320, 250), interpolation=cv2.INTER_NEAREST)
        found, _ = selective_search(large)
        assert (found >= 0).all() and (found <= [320, 250, 320, 250]).all()
        np.testing.assert_array_equal(found[0], [0, 0, 320, 250])
        factors = np.array([5, 250 / 48, 5, 250 / 48])
        assert all(best_iou(box[:4] * factors, found) > 0.7 for box in boxes)

    @pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (12, 12)])
    def test_images_with_nothing_to_see(self, size):
        image = np.zeros((*size, 3), np.uint8)
        boxes, scores = selective_search(image)
        assert boxes.shape == (len(scores), 4) and len(boxes) <= 1

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"mode": "slow"}, 'mode is \'slow\'; allowed: "fast", "quality"'),
            ({"max_proposals": 0}, "max_proposals is 0; allowed: 1 or more"),
            (
                {"image": np.zeros((4, 5), np.uint8)},
                r"5\) uint8; it must be \[H, W, 3\]",
            ),
        ],
    )
    def test_options_out_of_range(self, options, message):
        with pytest.raises(ValueError, match=message):
            selective_search(**{"image": scene(0)[0], **options})


def search(data_set, **options):
    return module.with_selective_search(data_set, progress=False, workers=2, **options)


def counting(data_set, broken=()):
    """The data set and the positions it has read; it stops at the broken ones."""
    read = []

    def read_image(position):
        read.append(position)
        if position in broken:
            raise KeyboardInterrupt
        return data_set.read_image(position)

    return dataclasses.replace(data_set, read_image=read_image), read


class TestCache:
    @pytest.fixture(autouse=True)
    def shards_of_two(self, monkeypatch):
        monkeypatch.setattr(module, "_SHARD", 2)

    def test_made_once_then_read(self, tmp_path, caplog):
        data_set, read = counting(scenes(5))
        with caplog.at_level(logging.INFO):
            made = search(data_set, cache_dir=tmp_path / "cache")
        assert sorted(read) == [0, 1, 2, 3, 4]
        expected = [selective_search(data_set.read_image(i)) for i in range(5)]
        assert_same(made.proposals, expected)
        assert data_set.proposals is None and made.objects is data_set.objects
        assert "recall@0.5 1.000, recall@0.7 1.000" in caplog.text
        read.clear()
        caplog.clear()
        again = search(data_set, cache_dir=tmp_path / "cache")
        assert_same(again.proposals, expected)
        assert not read and not caplog.text

    def test_it_goes_on_after_an_interruption(self, tmp_path):
        interrupted, _ = counting(scenes(5), broken=[3])
        with pytest.raises(KeyboardInterrupt):
            search(interrupted, cache_dir=tmp_path)
        files = sorted(file.name for file in tmp_path.iterdir())
        assert files == ["0000000.npz", "index.json"]
        data_set, read = counting(scenes(5))
        made = search(data_set, cache_dir=tmp_path)
        assert sorted(read) == [2, 3, 4]
        anew = search(data_set, cache_dir=tmp_path / "new")
        assert_same(made.proposals, anew.proposals)

    def test_every_data_set_and_option_has_a_default_folder(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setenv("JAXDET_CACHE", str(tmp_path))
        first, second = scenes(1), scenes(1, seed=1)
        for data_set in (first, second, first):
            search(data_set)
        made = search(first, max_proposals=1)
        assert len(made.proposals[0].boxes) == 1
        folders = sorted((tmp_path / "proposals").iterdir())
        assert len(folders) == 3
        assert all(folder.name.startswith("in_memory-") for folder in folders)

    def test_that_of_another_data_set_or_option_is_refused(self, tmp_path):
        data_set = scenes(3)
        search(data_set, cache_dir=tmp_path)
        renamed = dataclasses.replace(data_set, name="other")
        doubled = dataclasses.replace(data_set, sizes=data_set.sizes * 2)
        for other, options, what in (
            (scenes(4), {}, "images is 3 there, 4 here"),
            (renamed, {}, "data set is 'in memory'"),
            (scenes(3, image_ids=["a", "b", "c"]), {}, "image ids is"),
            (scenes(3, seed=9), {}, "objects is"),
            (doubled, {}, "image sizes is"),
            (data_set, {"mode": "quality"}, "mode is 'fast' there, 'quality' here"),
        ):
            message = (
                rf"{re.escape(str(tmp_path))}/index\.json: .*{what}.*; give another"
            )
            with pytest.raises(DataError, match=message):
                search(other, cache_dir=tmp_path, **options)
        search(data_set, cache_dir=tmp_path)

    def test_broken_files_are_named(self, tmp_path):
        data_set = scenes(3)
        made = search(data_set, cache_dir=tmp_path)
        shard = tmp_path / "0000002.npz"
        whole = shard.read_bytes()
        shard.write_bytes((tmp_path / "0000000.npz").read_bytes())
        message = r"0000002\.npz: proposals of 2 images, not"
        with pytest.raises(DataError, match=message):
            search(data_set, cache_dir=tmp_path)
        shard.write_bytes(whole[:100])
        with pytest.raises(DataError, match=r"0000002\.npz: cannot be read as npz"):
            search(data_set, cache_dir=tmp_path)
        shard.unlink()
        assert_same(search(data_set, cache_dir=tmp_path).proposals, made.proposals)
        (tmp_path / "index.json").write_text("{")
        with pytest.raises(DataError, match=r"index\.json: broken"):
            search(data_set, cache_dir=tmp_path)

    def test_unreadable_images_have_none(self, tmp_path, caplog):
        data_set = in_memory_data_set([scene(0)[0], (20, 30)])
        made = search(data_set, cache_dir=tmp_path)
        assert len(made.proposals[0].boxes) and not len(made.proposals[1].boxes)
        assert "unreadable image: image 1 cannot be read" in caplog.text


class TestRecall:
    def test_by_hand(self):
        # The crowd does not count. Best of the first object 0.85, of the second none.
        objects = [[(0, 0, 10, 10, 0), (20, 20, 40, 30, 1, True)], [(5, 5, 9, 9, 0)]]
        data_set = in_memory_data_set([scene(0)[0]] * 2, objects)
        found = of((0, 0, 10, 6, 0.9), (0, 0, 64, 48, 0.5), (0, 0, 10, 8.5, 0.25))
        data_set = dataclasses.replace(data_set, proposals=(found, of()))
        expected = {"recall@0.5": 0.5, "recall@0.7": 0.5, "proposals": 1.5}
        assert recall(data_set) == expected

    def test_against_the_oracle(self, rng):
        def boxes(count):
            first = rng.uniform(0, 30, (count, 2))
            return np.hstack([first, first + rng.uniform(2, 20, (count, 2))])

        rows = [[(*box, 0) for box in boxes(count)] for count in (4, 0, 7)]
        data_set = in_memory_data_set([scene(0)[0]] * 3, rows)
        found = [Proposals(boxes(40).astype(np.float32), None) for _ in range(3)]
        data_set = dataclasses.replace(data_set, proposals=found)
        numbers = recall(data_set)
        best = [
            best_iou(box, proposals.boxes)
            for objects, proposals in zip(data_set.objects, found, strict=True)
            for box in objects.boxes
        ]
        assert numbers["recall@0.5"] == pytest.approx(np.mean(np.array(best) >= 0.5))
        assert 0 < numbers["recall@0.5"] < 1

    def test_nothing_to_find(self):
        data_set = in_memory_data_set([scene(0)[0]])
        numbers = recall(dataclasses.replace(data_set, proposals=[of()]))
        assert np.isnan(numbers["recall@0.5"]) and numbers["proposals"] == 0
