import dataclasses
import functools
import itertools
import logging

import chex
import jax
import numpy as np
import pytest

from jaxdet.data import batching
from jaxdet.data.dataset import DataError, Proposals
from jaxdet.data.input_config import InputConfig
from tests.data.in_memory import in_memory_data_set

CONFIG = InputConfig(
    canvases=((16, 32), (32, 16)), max_objects=3, workers=2, prefetch=3
)
WIDE, TALL = (10, 20), (20, 10)
SKIP = {"unreadable_images": "skip", "max_unreadable": 1.0}


def images_of(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 256, (*size, 3), np.uint8) for size in sizes]


@pytest.fixture
def mixed():
    """Seven wide and four tall images; image i holds i % 4 objects, at most 3 valid."""
    sizes = [WIDE, TALL, WIDE, (9, 20), TALL, WIDE, WIDE, (10, 19), TALL, WIDE, TALL]
    objects = [[(1, 1, 4 + n, 5, n % 2) for n in range(i % 4)] for i in range(11)]
    return in_memory_data_set(images_of(sizes), objects)


def take(batches, count):
    return list(itertools.islice(batches, count))


class TestTraining:
    @pytest.mark.parametrize("workers", [0, 1, 4])
    def test_starting_later_repeats_the_unbroken_run(self, mixed, workers):
        config = dataclasses.replace(CONFIG, workers=workers)
        unbroken = take(
            batching.training_batches(mixed, CONFIG, batch_size=4, seed=3), 13
        )
        later = batching.training_batches(mixed, config, batch_size=4, seed=3, start=7)
        for expected, actual in zip(unbroken[7:], later, strict=False):
            chex.assert_trees_all_equal(actual, expected)

    def test_stop_ends_the_run(self, mixed):
        arguments = {"batch_size": 2, "seed": 0}
        run = batching.training_batches(mixed, CONFIG, start=2, stop=5, **arguments)
        assert len(list(run)) == 3
        run = batching.training_batches(mixed, CONFIG, start=5, stop=5, **arguments)
        assert list(run) == []

    def test_hosts_share_the_global_batch(self, mixed):
        arguments = {"batch_size": 4, "seed": 5, "stop": 6}
        whole = batching.training_batches(mixed, CONFIG, **arguments)
        shares = [
            batching.training_batches(
                mixed, CONFIG, process=process, processes=2, **arguments
            )
            for process in range(2)
        ]
        for batch, first, second in zip(whole, *shares, strict=True):
            joined = jax.tree.map(lambda *parts: np.concatenate(parts), first, second)
            chex.assert_trees_all_equal(joined, batch)

    def test_shapes_types_and_padding(self, mixed):
        for batch in take(
            batching.training_batches(mixed, CONFIG, batch_size=4, seed=0), 5
        ):
            canvas = batch.images.shape[1:3]
            assert canvas in CONFIG.canvases
            chex.assert_shape(batch.images, (4, *canvas, 3))
            chex.assert_shape([batch.sizes, batch.scales], (4, 2))
            chex.assert_shape(batch.truth.boxes, (4, 3, 4))
            types = {
                "images": np.uint8,
                "sizes": np.int32,
                "scales": np.float32,
                "image_ids": np.int32,
            }
            for name, dtype in types.items():
                value = getattr(batch, name)
                assert isinstance(value, np.ndarray) and value.dtype == dtype
            assert batch.truth.boxes.dtype == np.float32
            assert batch.truth.labels.dtype == np.int32
            assert batch.truth.valid.dtype == batch.truth.crowd.dtype == bool
            assert batch.truth.masks is None and batch.regions is None
            counts = batch.truth.valid.sum(axis=1)
            np.testing.assert_array_equal(counts, batch.image_ids % 4)
            assert not batch.truth.boxes[~batch.truth.valid].any()
            assert not batch.truth.labels[~batch.truth.valid].any()
            for image, (height, width) in zip(batch.images, batch.sizes, strict=True):
                assert image[:height, :width].all()  # pixels of these images are >= 1
                assert not image[height:].any() and not image[:, width:].any()
                assert height == canvas[0] or width == canvas[1]

    def test_flips_are_of_image_and_boxes_and_as_often_as_asked(self):
        image = np.full((16, 32, 3), 50, np.uint8)
        image[4:8, 2:10] = 200
        data_set = in_memory_data_set([image] * 8, [[(2, 4, 10, 8, 1)]] * 8)

        def flipped(flip):
            config = dataclasses.replace(CONFIG, flip=flip)
            run = batching.training_batches(
                data_set, config, batch_size=8, seed=1, stop=50
            )
            boxes = np.concatenate([batch.truth.boxes[:, 0] for batch in run])
            for batch in take(
                batching.training_batches(data_set, config, batch_size=8, seed=1), 1
            ):
                for pixels, box in zip(
                    batch.images, batch.truth.boxes[:, 0].astype(int), strict=True
                ):
                    x1, y1, x2, y2 = box
                    assert (pixels[y1:y2, x1:x2] == 200).all()
            assert set(map(tuple, boxes)) <= {(2, 4, 10, 8), (22, 4, 30, 8)}
            return np.mean(boxes[:, 0] == 22)

        assert flipped(0.0) == 0 and flipped(1.0) == 1
        assert 0.2 < flipped(0.3) < 0.4  # 400 draws: four standard deviations

    def test_the_same_image_is_flipped_anew_every_time(self):
        data_set = in_memory_data_set(images_of([(16, 32)] * 2))
        run = batching.training_batches(data_set, CONFIG, batch_size=2, seed=0, stop=12)
        seen = {batch.images[slot].tobytes() for batch in run for slot in range(2)}
        assert len(seen) == 4  # two images, each as it is and mirrored

    def test_boxes_and_scales_follow_the_canvas(self):
        data_set = in_memory_data_set(
            images_of([(15, 20)]), [[(4, 3, 8, 6, 1), (0, 0, 20, 15, 0, True)]]
        )
        config = dataclasses.replace(CONFIG, flip=0.0)
        (batch,) = batching.training_batches(
            data_set, config, batch_size=1, seed=0, stop=1
        )
        np.testing.assert_array_equal(batch.sizes, [[16, 21]])  # 16 / 15 * 20 = 21.3
        np.testing.assert_allclose(batch.scales, [[16 / 15, 21 / 20]], rtol=1e-6)
        expected = [[4.2, 3.2, 8.4, 6.4], [0, 0, 21, 16], [0, 0, 0, 0]]
        np.testing.assert_allclose(batch.truth.boxes[0], expected, rtol=1e-6)
        np.testing.assert_array_equal(batch.truth.labels, [[1, 0, 0]])
        np.testing.assert_array_equal(batch.truth.valid, [[True, True, False]])
        np.testing.assert_array_equal(batch.truth.crowd, [[False, True, False]])

    def test_boxes_thinner_than_a_hair_stay_finite(self):
        data_set = in_memory_data_set(
            [np.ones((4000, 8000, 3), np.uint8)], [[(10, 10, 10.001, 4000, 0)]]
        )
        (batch,) = batching.training_batches(
            data_set, CONFIG, batch_size=1, seed=0, stop=1
        )
        assert np.isfinite(batch.truth.boxes).all() and batch.truth.valid[0, 0]

    def test_the_smallest_of_too_many_objects_are_dropped(self, caplog):
        boxes = [(0, 0, side, side, side % 2) for side in (5, 2, 9, 3, 7)]
        data_set = in_memory_data_set(images_of([(16, 32)] * 2), [boxes, boxes[:4]])
        config = dataclasses.replace(CONFIG, too_many_objects="drop", flip=0.0)
        with caplog.at_level(logging.WARNING):
            run = batching.training_batches(
                data_set, config, batch_size=2, seed=0, stop=1
            )
            (batch,) = run
        assert "2 images have more than 3 objects; their 3 smallest" in caplog.text
        row = list(batch.image_ids).index(0)
        np.testing.assert_array_equal(batch.truth.boxes[row, :, 2], [5, 9, 7])
        np.testing.assert_array_equal(batch.truth.labels[row], [1, 1, 1])

    def test_data_errors_come_out_as_they_are(self):
        data_set = in_memory_data_set([WIDE], image_ids=["broken"])
        for workers in (0, 2):
            config = dataclasses.replace(CONFIG, workers=workers)
            run = batching.training_batches(data_set, config, batch_size=1, seed=0)
            with pytest.raises(DataError, match="image 'broken' cannot be read"):
                next(run)

    def test_pixels_of_another_size_than_annotated(self):
        data_set = in_memory_data_set(images_of([WIDE]), image_ids=["turned"])
        data_set = dataclasses.replace(data_set, sizes=np.array([TALL], np.int32))
        run = batching.training_batches(data_set, CONFIG, batch_size=1, seed=0)
        with pytest.raises(DataError, match=r"'turned'.*\(10, 20, 3\).*\(20, 10, 3\)"):
            next(run)

    def test_another_image_of_the_canvas_replaces_an_unreadable_one(self, caplog):
        images = [WIDE, *images_of([WIDE, WIDE, TALL])]
        data_set = in_memory_data_set(images, image_ids=["broken", "b", "c", "d"])
        config = dataclasses.replace(CONFIG, **SKIP)
        arguments = {"batch_size": 3, "seed": 0}
        with caplog.at_level(logging.WARNING):
            run = take(batching.training_batches(data_set, config, **arguments), 8)
        assert caplog.text.count("unreadable images so far: 1") == 1
        for batch in run:
            wide = batch.images.shape[1:3] == (16, 32)
            assert set(batch.image_ids) <= ({1, 2} if wide else {3})
        replaced = {tuple(sorted(b.image_ids)) for b in run if 3 not in b.image_ids}
        assert replaced == {(1, 1, 2), (1, 2, 2)}
        later = batching.training_batches(data_set, config, start=5, **arguments)
        chex.assert_trees_all_equal(next(later), run[5])

    def test_an_unreadable_image_is_read_once_and_changes_no_substitute(self):
        images = [WIDE, WIDE, *images_of([WIDE] * 4)]
        data_set = in_memory_data_set(images)
        calls = []

        def read_image(position):
            calls.append(int(position))
            return data_set.read_image(position)

        counted = dataclasses.replace(data_set, read_image=read_image)
        config = dataclasses.replace(CONFIG, **SKIP, workers=0)
        arguments = {"batch_size": 4, "seed": 0}
        run = take(batching.training_batches(counted, config, **arguments), 12)
        assert calls.count(0) == calls.count(1) == 1
        for step, batch in enumerate(run):  # alone, each step knows of no others
            alone = batching.training_batches(
                data_set, config, start=step, stop=step + 1, **arguments
            )
            chex.assert_trees_all_equal(next(alone), batch)

    def test_a_canvas_without_a_readable_image(self):
        data_set = in_memory_data_set([WIDE, WIDE])
        config = dataclasses.replace(CONFIG, **SKIP)
        run = batching.training_batches(data_set, config, batch_size=2, seed=0)
        with pytest.raises(DataError, match="none of the 2 images of one canvas"):
            next(run)

    def test_no_more_images_than_a_share_are_skipped(self, caplog):
        data_set = in_memory_data_set([WIDE, *images_of([WIDE] * 7), WIDE, WIDE])
        config = dataclasses.replace(
            CONFIG, unreadable_images="skip", max_unreadable=0.2, workers=0
        )
        run = batching.training_batches(data_set, config, batch_size=1, seed=0)
        words = r"3 of 10 images .* max_unreadable=0\.2; the last: image \d cannot be"
        with pytest.raises(DataError, match=words):
            take(run, 10)
        assert caplog.text.count("unreadable images so far") == 3

    def test_what_cannot_be_prepared_is_named(self):
        def read_image(position):
            raise RuntimeError("a fault of the decoder")

        broken = dataclasses.replace(
            in_memory_data_set(images_of([WIDE]), image_ids=["odd"]),
            read_image=read_image,
        )
        run = batching.training_batches(broken, CONFIG, batch_size=1, seed=0, start=6)
        with pytest.raises(RuntimeError, match="decoder") as raised:
            next(run)
        assert "while preparing image 'odd' for step 7" in raised.value.__notes__


class TestEvaluation:
    def test_every_image_once_in_order_and_padded(self, mixed):
        run = list(batching.evaluation_batches(mixed, CONFIG, batch_size=3))
        ids = [batch.image_ids.tolist() for batch in run]
        assert ids == [[0, 2, 3], [5, 6, 7], [9, -1, -1], [1, 4, 8], [10, -1, -1]]
        for batch in run:
            padding = batch.image_ids < 0
            assert not batch.images[padding].any()
            assert not batch.truth.valid[padding].any()
            np.testing.assert_array_equal(batch.scales[padding], 1)
            assert (batch.sizes[padding] == batch.images.shape[1:3]).all()
            counts = batch.truth.valid.sum(axis=1)
            np.testing.assert_array_equal(
                counts[~padding], batch.image_ids[~padding] % 4
            )

    def test_hosts_get_batches_in_turn(self, mixed):
        whole = list(batching.evaluation_batches(mixed, CONFIG, batch_size=3))
        shares = [
            list(
                batching.evaluation_batches(
                    mixed, CONFIG, batch_size=3, process=process, processes=2
                )
            )
            for process in (0, 1)
        ]
        chex.assert_trees_all_equal(shares[0], whole[0::2])
        chex.assert_trees_all_equal(shares[1], whole[1::2])

    def test_too_many_objects_are_no_error(self):
        boxes = [(0, 0, side, side, 0) for side in (2, 3, 4, 5)]
        data_set = in_memory_data_set(images_of([(16, 32)]), [boxes])
        (batch,) = batching.evaluation_batches(data_set, CONFIG, batch_size=1)
        np.testing.assert_array_equal(batch.truth.boxes[0, :, 2], [3, 4, 5])

    def test_unreadable_images(self):
        data_set = in_memory_data_set([WIDE, *images_of([WIDE])])
        with pytest.raises(DataError, match="image 0 cannot be read"):
            list(batching.evaluation_batches(data_set, CONFIG, batch_size=2))
        config = dataclasses.replace(CONFIG, **SKIP)
        (batch,) = batching.evaluation_batches(data_set, config, batch_size=2)
        np.testing.assert_array_equal(batch.image_ids, [-1, 1])

    def test_an_empty_data_set_gives_no_batches(self):
        empty = in_memory_data_set([])
        assert list(batching.evaluation_batches(empty, CONFIG, batch_size=2)) == []


@pytest.fixture
def proposed():
    """Two wide images, twice as large as 16 x 32; three proposals and none."""
    boxes = np.array([[0, 0, 64, 32], [4, 2, 20, 12], [60, 30, 64, 32]], np.float32)
    proposals = [
        Proposals(boxes, np.array([0.9, 0.5, 0.1], np.float32)),
        Proposals(np.zeros((0, 4), np.float32), np.zeros(0, np.float32)),
    ]
    data_set = in_memory_data_set(
        images_of([(32, 64)] * 2), [[(4, 2, 20, 12, 1)], [(0, 0, 8, 8, 0)]]
    )
    return dataclasses.replace(data_set, proposals=proposals)


class TestRegions:
    CONFIG = dataclasses.replace(CONFIG, max_regions=2, flip=0.0)

    def test_the_best_are_scaled_and_padded(self, proposed):
        (batch,) = batching.evaluation_batches(proposed, self.CONFIG, batch_size=3)
        regions = batch.regions
        expected = [[[0, 0, 32, 16], [2, 1, 10, 6]], np.zeros((2, 4)), np.zeros((2, 4))]
        np.testing.assert_array_equal(regions.boxes, expected)
        expected = np.array([[0.9, 0.5], [0, 0], [0, 0]], np.float32)
        np.testing.assert_array_equal(regions.scores, expected)
        np.testing.assert_array_equal(regions.valid, expected > 0)
        assert regions.boxes.dtype == regions.scores.dtype == np.float32
        assert regions.valid.dtype == bool

    def test_fewer_than_slots(self, proposed):
        config = dataclasses.replace(self.CONFIG, max_regions=5)
        (batch,) = batching.evaluation_batches(proposed, config, batch_size=2)
        np.testing.assert_array_equal(batch.regions.valid.sum(axis=1), [3, 0])
        np.testing.assert_array_equal(batch.regions.boxes[0, 2], [30, 15, 32, 16])

    def test_they_are_flipped_with_their_image(self, proposed):
        config = dataclasses.replace(self.CONFIG, flip=1.0)
        run = batching.training_batches(proposed, config, batch_size=2, seed=0, stop=1)
        (batch,) = run
        row = list(batch.image_ids).index(0)
        expected = [[0, 0, 32, 16], [22, 1, 30, 6]]
        np.testing.assert_array_equal(batch.regions.boxes[row], expected)
        np.testing.assert_array_equal(batch.truth.boxes[row, 0], expected[1])

    def test_a_data_set_without_proposals(self, mixed):
        for call in (
            batching.check,
            functools.partial(batching.training_batches, seed=0),
            batching.evaluation_batches,
        ):
            with pytest.raises(
                DataError,
                match=r"'in memory' has no region proposals.* 2; .*proposal_files",
            ):
                call(mixed, self.CONFIG, batch_size=1)


class TestMasks:
    CONFIG = dataclasses.replace(CONFIG, mask_size=2)

    @pytest.fixture
    def masked(self):
        """An image whose objects are, in this order, dark on the left and all light."""
        data_set = in_memory_data_set(
            images_of([(16, 32)]), [[(2, 4, 10, 8, 1), (0, 0, 30, 16, 0)]]
        )

        def read_masks(position, cells):
            assert (position, cells) == (0, 2)
            return np.array([[[0, 1], [0, 1]], [[1, 1], [1, 1]]], np.float32)

        return dataclasses.replace(data_set, read_masks=read_masks)

    def test_masks_go_with_their_objects(self, masked):
        for flip, first in ((0.0, [[0, 1], [0, 1]]), (1.0, [[1, 0], [1, 0]])):
            config = dataclasses.replace(self.CONFIG, flip=flip)
            (batch,) = batching.training_batches(
                masked, config, batch_size=1, seed=0, stop=1
            )
            expected = [[first, [[1, 1], [1, 1]], [[0, 0], [0, 0]]]]
            np.testing.assert_array_equal(batch.truth.masks, expected)
            assert batch.truth.masks.dtype == np.float32

    def test_masks_of_dropped_objects_are_dropped(self, masked):
        config = dataclasses.replace(
            self.CONFIG, max_objects=1, too_many_objects="drop"
        )
        (batch,) = batching.training_batches(
            masked, config, batch_size=1, seed=0, stop=1
        )
        np.testing.assert_array_equal(batch.truth.masks, np.ones((1, 1, 2, 2)))

    def test_evaluation_has_none(self, masked):
        (batch,) = batching.evaluation_batches(masked, self.CONFIG, batch_size=1)
        assert batch.truth.masks is None

    def test_a_data_set_without_masks(self, mixed):
        with pytest.raises(DataError, match=r"'in memory' has no masks.* is 2; load"):
            batching.check(mixed, self.CONFIG, batch_size=1)


class TestAugmentation:
    ALL = dataclasses.replace(
        CONFIG,
        distort_colors=1.0,
        expand=0.5,
        iou_crop=1.0,
        random_crop=0.5,
        scale_jitter=(0.5, 1.5),
    )

    @pytest.fixture
    def marked(self):
        """Black images, each with a white object, its mask and its region."""
        image = np.zeros((32, 64, 3), np.uint8)
        image[8:24, 10:40] = 255
        data_set = in_memory_data_set([image] * 4, [[(10, 8, 40, 24, 1)]] * 4)
        boxes = np.array([[10, 8, 40, 24]], np.float32)
        return dataclasses.replace(
            data_set,
            read_masks=lambda position, cells: np.ones((1, cells, cells), np.float32),
            proposals=[Proposals(boxes, np.ones(1, np.float32))] * 4,
        )

    def run(self, data_set, config, **arguments):
        return batching.training_batches(
            data_set, config, batch_size=4, seed=0, **arguments
        )

    def test_starting_later_repeats_the_unbroken_run(self, mixed):
        unbroken = take(self.run(mixed, self.ALL), 6)
        chex.assert_trees_all_equal(
            next(self.run(mixed, self.ALL, start=5)), unbroken[5]
        )
        plain = take(self.run(mixed, CONFIG), 6)
        assert not np.array_equal(plain[5].images, unbroken[5].images)
        np.testing.assert_array_equal(plain[5].image_ids, unbroken[5].image_ids)

    @pytest.mark.parametrize(
        "left_out",
        [{"random_crop": 0.0, "scale_jitter": (1.0, 1.0)}, {"expand": 0.0}],
    )
    def test_all_that_is_known_moves_with_the_image(self, marked, left_out):
        config = dataclasses.replace(
            self.ALL, distort_colors=0.0, mask_size=2, max_regions=2, **left_out
        )
        counts, regions = [], []
        for batch in self.run(marked, config, stop=20):
            valid = batch.truth.valid
            counts.extend(valid.sum(axis=1))
            assert not batch.truth.boxes[~valid].any()
            np.testing.assert_array_equal(
                batch.truth.masks.max(axis=(2, 3)), valid.astype(np.float32)
            )
            there, boxes = batch.regions.valid, batch.regions.boxes
            assert there[valid[:, 0], 0].all() and not there[:, 1].any()
            assert not boxes[~there].any() and not batch.regions.scores[~there].any()
            assert (boxes[there][:, 2:] > boxes[there][:, :2]).all()
            regions.extend(there[:, 0])
            for slot in np.flatnonzero(valid[:, 0]):
                height, width = batch.sizes[slot]
                assert not batch.images[slot, height:].any()
                assert not batch.images[slot, :, width:].any()
                box = batch.truth.boxes[slot, 0]
                rows, columns = np.nonzero(batch.images[slot, ..., 0] > 190)
                seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                np.testing.assert_allclose(box, seen, atol=1.1)
                np.testing.assert_allclose(batch.regions.boxes[slot, 0], box)
        assert set(counts) == {0, 1} and not all(regions)

    @pytest.mark.parametrize(
        "name", ["distort_colors", "expand", "iou_crop", "random_crop"]
    )
    def test_each_is_done_as_often_as_asked(self, marked, name):
        def changed(probability):
            config = dataclasses.replace(CONFIG, flip=0.0, **{name: probability})
            (plain,) = self.run(marked, dataclasses.replace(CONFIG, flip=0.0), stop=1)
            run = self.run(marked, config, stop=50)
            images = np.concatenate([batch.images for batch in run])
            return np.mean(np.any(images != plain.images[:1], axis=(1, 2, 3)))

        assert changed(0.0) == 0
        often, always = changed(0.4), changed(1.0)
        assert always > 0.5  # not every draw changes this picture
        assert 0.25 < often / always < 0.55

    def test_what_a_random_crop_leaves_is_seen_larger(self, marked):
        config = dataclasses.replace(CONFIG, flip=0.0, random_crop=1.0)
        run = self.run(marked, config, stop=10)
        scales = np.concatenate([batch.scales.max(axis=1) for batch in run])
        assert min(scales) >= 0.5  # all of 32 x 64 fits into 16 x 32
        assert 0.55 < np.mean(scales) < 0.8

    def test_jittered_images_are_smaller_than_their_canvas_or_cut_to_it(self, mixed):
        config = dataclasses.replace(CONFIG, flip=0.0, scale_jitter=(0.25, 2.0))
        shares, scales = [], []
        for batch in self.run(mixed, config, stop=30):
            canvas = batch.images.shape[1:3]
            for image, (height, width) in zip(batch.images, batch.sizes, strict=True):
                assert image[:height, :width].all()  # pixels of these images are >= 1
                assert not image[height:].any() and not image[:, width:].any()
            shares.extend(np.prod(batch.sizes / canvas, axis=1))
            scales.extend(batch.scales.min(axis=1))
        assert min(shares) < 0.1 and max(shares) == 1
        # 1.6 is the scale of most images that just fit; the factor's mean is 1.125.
        np.testing.assert_allclose(np.mean(scales), 1.6 * 1.125, atol=0.3)
        assert min(scales) < 0.6 and max(scales) > 2.8

    def test_jittered_images_that_fill_their_canvas_whatever_their_shape(self):
        data_set = in_memory_data_set(images_of([(16, 16)]))
        config = dataclasses.replace(CONFIG, keep_aspect=False, scale_jitter=(0.5, 0.5))
        (batch,) = self.run(data_set, config, stop=1)
        np.testing.assert_array_equal(batch.sizes, [[8, 16]] * 4)

    def test_evaluation_changes_nothing(self, mixed):
        arguments = {"batch_size": 4}
        chex.assert_trees_all_equal(
            list(batching.evaluation_batches(mixed, self.ALL, **arguments)),
            list(batching.evaluation_batches(mixed, CONFIG, **arguments)),
        )


class TestMultiScale:
    CONFIG = dataclasses.replace(
        CONFIG, canvases=((64, 100), (96, 64)), multi_scale=(0.5, 1.0, 1.5)
    )

    def test_images_and_boxes_fill_the_canvas_that_was_drawn(self, mixed):
        run = batching.training_batches(
            mixed, self.CONFIG, batch_size=3, seed=0, stop=20
        )
        for batch in run:
            canvas = batch.images.shape[1:3]
            assert canvas in self.CONFIG.training_canvases
            full = batch.sizes == np.array(canvas)
            assert full.any(axis=1).all()
            for boxes, there, scale in zip(
                batch.truth.boxes, batch.truth.valid, batch.scales, strict=True
            ):
                heights = (boxes[:, 3] - boxes[:, 1])[there]  # of 4 pixels in the file
                np.testing.assert_allclose(heights, 4 * scale[0], rtol=1e-5)

    def test_starting_later_and_sharing_repeat_the_unbroken_run(self, mixed):
        arguments = {"batch_size": 4, "seed": 5, "stop": 9}
        whole = list(batching.training_batches(mixed, self.CONFIG, **arguments))
        assert len({batch.images.shape for batch in whole}) > 2
        shares = [
            batching.training_batches(
                mixed, self.CONFIG, process=i, processes=2, start=4, **arguments
            )
            for i in range(2)
        ]
        for batch, first, second in zip(whole[4:], *shares, strict=True):
            joined = jax.tree.map(lambda *parts: np.concatenate(parts), first, second)
            chex.assert_trees_all_equal(joined, batch)


class TestStretch:
    @pytest.mark.parametrize("training", [True, False])
    def test_images_fill_their_canvas(self, training):
        data_set = in_memory_data_set(images_of([(15, 20)]), [[(4, 3, 8, 6, 1)]])
        config = dataclasses.replace(CONFIG, flip=0.0, keep_aspect=False)
        (batch,) = (
            batching.training_batches(data_set, config, batch_size=1, seed=0, stop=1)
            if training
            else batching.evaluation_batches(data_set, config, batch_size=1)
        )
        np.testing.assert_array_equal(batch.sizes, [[16, 32]])
        np.testing.assert_allclose(batch.scales, [[16 / 15, 32 / 20]], rtol=1e-6)
        np.testing.assert_allclose(batch.truth.boxes[0, 0], [6.4, 3.2, 12.8, 6.4])
        assert batch.images.all()


class TestTorchvisionsPixels:
    @pytest.mark.parametrize("training", [True, False])
    def test_sides_and_fractions(self, training):
        image = np.full((10, 20, 3), 200, np.uint8)
        data_set = in_memory_data_set([image], [[(4, 3, 8, 6, 1)]])
        config = dataclasses.replace(
            CONFIG,
            flip=0.0,
            canvases=((64, 64), (32, 32), (16, 32)),
            min_max_size=(15, 31),
            float_pixels=True,
        )
        (batch,) = (
            batching.training_batches(data_set, config, batch_size=1, seed=0, stop=1)
            if training
            else batching.evaluation_batches(data_set, config, batch_size=1)
        )
        assert batch.images.shape == (1, 16, 32, 3)  # the smallest that holds it
        assert batch.images.dtype == np.float32
        np.testing.assert_array_equal(batch.sizes, [[15, 30]])
        np.testing.assert_allclose(batch.truth.boxes[0, 0], [6, 4.5, 12, 9])
        np.testing.assert_allclose(batch.images[0, :15, :30], 200, rtol=1e-6)
        assert not batch.images[0, 15:].any() and not batch.images[0, :, 30:].any()

    def test_no_canvas_holds_an_image(self):
        data_set = in_memory_data_set(images_of([(10, 20)]))
        config = dataclasses.replace(CONFIG, canvases=((8, 8),), min_max_size=(15, 31))
        with pytest.raises(DataError, match=r"canvases is .*resized to 15x30"):
            next(batching.evaluation_batches(data_set, config, batch_size=1))


class TestCheck:
    def test_empty_data_set(self):
        with pytest.raises(DataError, match="'in memory' holds no images"):
            batching.check(in_memory_data_set([]), CONFIG, batch_size=1)

    def test_too_many_objects(self):
        objects = [[], [(0, 0, 1, 1, 0)] * 5, [(0, 0, 1, 1, 0)] * 4]
        data_set = in_memory_data_set(
            images_of([WIDE] * 3), objects, image_ids=["a", "full", "c"]
        )
        message = "'full' has 5 objects, more than max_objects=3; set max_objects=5 or"
        with pytest.raises(DataError, match=message):
            batching.check(data_set, CONFIG, batch_size=1)
        with pytest.raises(DataError, match=message):
            batching.training_batches(data_set, CONFIG, batch_size=1, seed=0)
        config = dataclasses.replace(CONFIG, too_many_objects="drop")
        batching.check(data_set, config, batch_size=1)

    @pytest.mark.parametrize("batch_size", [0, -4, 6])
    def test_batch_size_and_devices(self, mixed, batch_size):
        with pytest.raises(DataError, match=f"batch size {batch_size} .* 4 devices"):
            batching.check(mixed, CONFIG, batch_size=batch_size, devices=4)

    def test_batch_size_and_processes(self, mixed):
        with pytest.raises(DataError, match=r"batch size 3 .* 2 processes"):
            batching.training_batches(mixed, CONFIG, batch_size=3, seed=0, processes=2)
