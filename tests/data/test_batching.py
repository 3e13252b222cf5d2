import dataclasses
import functools
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
changed = functools.partial(dataclasses.replace, CONFIG)
STILL = changed(flip=0.0)
AUGMENTED = changed(
    distort_colors=1.0,
    expand=0.5,
    iou_crop=1.0,
    random_crop=0.5,
    scale_jitter=(0.5, 1.5),
)
MIXED = dataclasses.replace(
    AUGMENTED, mosaic=0.6, copy_paste=0.6, max_objects=20, mask_size=6
)
MULTI_SCALE = changed(canvases=((64, 100), (96, 64)), multi_scale=(0.5, 1.0, 1.5))
SKIP = {"unreadable_images": "skip", "max_unreadable": 1.0}
WIDE, TALL = (10, 20), (20, 10)


def images_of(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(1, 256, (*size, 3), np.uint8) for size in sizes]


@pytest.fixture(scope="module")
def mixed():
    """Seven wide and four tall images; image i holds i % 4 objects, at most 3 valid."""
    sizes = [WIDE, TALL, WIDE, (9, 20), TALL, WIDE, WIDE, (10, 19), TALL, WIDE, TALL]
    objects = [[(1, 1, 4 + n, 5, n % 2) for n in range(i % 4)] for i in range(11)]

    def read_masks(position, cells):
        return np.ones((position % 4, cells, cells), np.float32)

    made = in_memory_data_set(images_of(*sizes), objects)
    return dataclasses.replace(made, read_masks=read_masks)


def train(data_set, config=CONFIG, *, batch_size=4, seed=0, stop=1, **options):
    """Returns the batches before step `stop`."""
    options = {"batch_size": batch_size, "seed": seed, "stop": stop, **options}
    return list(batching.training_batches(data_set, config, **options))


def evaluate(data_set, config=CONFIG, *, batch_size=1, **options):
    options["batch_size"] = batch_size
    return list(batching.evaluation_batches(data_set, config, **options))


def assert_padded(batch):
    """Images without a black pixel lie in the corner of a black canvas."""
    for image, (height, width) in zip(batch.images, batch.sizes, strict=True):
        assert image[:height, :width].all()
        assert not image[height:].any() and not image[:, width:].any()


class TestTraining:
    @pytest.mark.parametrize("workers", [0, 1, 4])
    @pytest.mark.parametrize("config", [CONFIG, AUGMENTED, MIXED, MULTI_SCALE])
    def test_batches_are_a_function_of_seed_and_step(self, mixed, config, workers):
        """However many threads and hosts make them, and from whichever step on."""
        whole = train(mixed, config, seed=5, stop=9)
        threads = dataclasses.replace(config, workers=workers)
        shares = [
            train(mixed, threads, seed=5, start=4, stop=9, process=i, processes=2)
            for i in range(2)
        ]
        for batch, *parts in zip(whole[4:], *shares, strict=True):
            joined = jax.tree.map(lambda *parts: np.concatenate(parts), *parts)
            chex.assert_trees_all_equal(joined, batch)

    def test_stop_ends_the_run(self, mixed):
        assert len(train(mixed, start=2, stop=5)) == 3
        assert train(mixed, start=5, stop=5) == []
        endless = batching.training_batches(mixed, CONFIG, batch_size=4, seed=0)
        chex.assert_trees_all_equal(next(endless), train(mixed)[0])

    def test_shapes_types_and_padding(self, mixed):
        for batch in train(mixed, stop=5):
            canvas = batch.images.shape[1:3]
            assert canvas in CONFIG.canvases
            chex.assert_shape(batch.images, (4, *canvas, 3))
            chex.assert_shape([batch.sizes, batch.scales], (4, 2))
            chex.assert_shape(batch.truth.boxes, (4, 3, 4))
            assert batch.truth.masks is None and batch.regions is None
            leaves = jax.tree.leaves(batch)
            assert all(isinstance(leaf, np.ndarray) for leaf in leaves)
            types = ["uint8", "int32", "float32", "int32"]
            types += ["float32", "int32", "bool", "bool"]  # of the truth
            assert sorted(leaf.dtype.name for leaf in leaves) == sorted(types)
            counts = batch.truth.valid.sum(axis=1)
            np.testing.assert_array_equal(counts, batch.image_ids % 4)
            assert not batch.truth.boxes[~batch.truth.valid].any()
            assert not batch.truth.labels[~batch.truth.valid].any()
            assert_padded(batch)
            assert (batch.sizes == canvas).any(axis=1).all()

    @pytest.mark.parametrize(
        ("flip", "low", "high"), [(0, 0, 0), (1, 1, 1), (0.3, 0.2, 0.4)]
    )
    def test_flips_are_of_image_and_boxes_and_as_often_as_asked(self, flip, low, high):
        image = np.full((16, 32, 3), 50, np.uint8)
        image[4:8, 2:10] = 200
        data_set = in_memory_data_set([image] * 8, [[(2, 4, 10, 8, 1)]] * 8)
        run = train(data_set, changed(flip=float(flip)), batch_size=8, seed=1, stop=50)
        boxes = np.concatenate([batch.truth.boxes[:, 0] for batch in run])
        images = np.concatenate([batch.images for batch in run])
        for pixels, (x1, y1, x2, y2) in zip(images, boxes.astype(int), strict=True):
            assert (pixels[y1:y2, x1:x2] == 200).all()
        assert set(map(tuple, boxes)) <= {(2, 4, 10, 8), (22, 4, 30, 8)}
        # 400 draws: four standard deviations.
        assert low <= np.mean(boxes[:, 0] == 22) <= high

    def test_the_same_image_is_flipped_anew_every_time(self):
        data_set = in_memory_data_set(images_of((16, 32), (16, 32)))
        run = train(data_set, batch_size=2, stop=12)
        seen = {image.tobytes() for batch in run for image in batch.images}
        assert len(seen) == 4  # two images, each as it is and mirrored

    def test_boxes_and_scales_follow_the_canvas(self):
        objects = [(4, 3, 8, 6, 1), (0, 0, 20, 15, 0, True)]
        data_set = in_memory_data_set(images_of((15, 20)), [objects])
        (batch,) = train(data_set, STILL, batch_size=1)
        np.testing.assert_array_equal(batch.sizes, [[16, 21]])  # 16 / 15 * 20 = 21.3
        np.testing.assert_allclose(batch.scales, [[16 / 15, 21 / 20]], rtol=1e-6)
        expected = [[4.2, 3.2, 8.4, 6.4], [0, 0, 21, 16], [0, 0, 0, 0]]
        np.testing.assert_allclose(batch.truth.boxes[0], expected, rtol=1e-6)
        np.testing.assert_array_equal(batch.truth.labels, [[1, 0, 0]])
        np.testing.assert_array_equal(batch.truth.valid, [[True, True, False]])
        np.testing.assert_array_equal(batch.truth.crowd, [[False, True, False]])

    def test_boxes_thinner_than_a_hair_stay_finite(self):
        image = np.ones((400, 8000, 3), np.uint8)
        data_set = in_memory_data_set([image], [[(10, 10, 10.001, 400, 0)]])
        (batch,) = train(data_set, batch_size=1)
        assert np.isfinite(batch.truth.boxes).all() and batch.truth.valid[0, 0]

    def test_the_smallest_of_too_many_objects_are_dropped(self, caplog):
        boxes = [(0, 0, side, side, side % 2) for side in (5, 2, 9, 3, 7)]
        data_set = in_memory_data_set(images_of((16, 32), (16, 32)), [boxes, boxes[:4]])
        config = dataclasses.replace(STILL, too_many_objects="drop")
        with caplog.at_level(logging.WARNING):
            (batch,) = train(data_set, config, batch_size=2)
        assert "2 images have more than 3 objects; their 3 smallest" in caplog.text
        row = list(batch.image_ids).index(0)
        np.testing.assert_array_equal(batch.truth.boxes[row, :, 2], [5, 9, 7])
        np.testing.assert_array_equal(batch.truth.labels[row], [1, 1, 1])
        (batch,) = evaluate(data_set, batch_size=2)  # whatever the config says
        np.testing.assert_array_equal(batch.truth.boxes[0, :, 2], [5, 9, 7])


class TestUnreadable:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_data_errors_come_out_as_they_are(self, workers):
        data_set = in_memory_data_set([WIDE], image_ids=["broken"])
        for run in (train, evaluate):
            with pytest.raises(DataError, match="image 'broken' cannot be read"):
                run(data_set, changed(workers=workers), batch_size=1)

    def test_pixels_of_another_size_than_annotated(self):
        data_set = in_memory_data_set(images_of(WIDE), image_ids=["turned"])
        data_set = dataclasses.replace(data_set, sizes=np.array([TALL], np.int32))
        with pytest.raises(DataError, match=r"'turned'.*\(10, 20, 3\).*\(20, 10, 3\)"):
            train(data_set, batch_size=1)

    def test_what_cannot_be_prepared_is_named(self):
        def read_image(position):
            raise RuntimeError("a fault of the decoder")

        data_set = in_memory_data_set(images_of(WIDE), image_ids=["odd"])
        broken = dataclasses.replace(data_set, read_image=read_image)
        with pytest.raises(RuntimeError, match="decoder") as raised:
            train(broken, batch_size=1, start=6, stop=7)
        assert "while preparing image 'odd' for step 7" in raised.value.__notes__

    def test_another_image_of_the_canvas_takes_the_place(self, caplog):
        images = [WIDE, *images_of(WIDE, WIDE, TALL)]
        with caplog.at_level(logging.WARNING):
            run = train(
                in_memory_data_set(images), changed(**SKIP), batch_size=3, stop=8
            )
        assert caplog.text.count("unreadable images so far: 1") == 1
        wide, tall = (
            {tuple(sorted(b.image_ids)) for b in run if b.images.shape[1:3] == canvas}
            for canvas in CONFIG.canvases
        )
        assert wide == {(1, 1, 2), (1, 2, 2)} and tall == {(3, 3, 3)}

    def test_an_unreadable_image_is_read_once_and_changes_no_substitute(self):
        data_set = in_memory_data_set([WIDE, WIDE, *images_of(*[WIDE] * 4)])
        calls = []

        def read_image(position):
            calls.append(int(position))
            return data_set.read_image(position)

        counted = dataclasses.replace(data_set, read_image=read_image)
        config = changed(**SKIP, workers=0)
        run = train(counted, config, stop=12)
        assert calls.count(0) == calls.count(1) == 1
        for step, batch in enumerate(run):  # alone, each step knows of no others
            (alone,) = train(data_set, config, start=step, stop=step + 1)
            chex.assert_trees_all_equal(alone, batch)

    def test_a_canvas_without_a_readable_image(self):
        with pytest.raises(DataError, match="none of the 2 images that are put"):
            train(in_memory_data_set([WIDE, WIDE]), changed(**SKIP), batch_size=2)

    def test_no_more_images_than_a_share_are_skipped(self, caplog):
        data_set = in_memory_data_set([WIDE, *images_of(*[WIDE] * 7), WIDE, WIDE])
        config = changed(unreadable_images="skip", max_unreadable=0.2, workers=0)
        words = r"3 of 10 images .* max_unreadable=0\.2; the last: image \d cannot be"
        with pytest.raises(DataError, match=words):
            train(data_set, config, batch_size=1, stop=10)
        assert caplog.text.count("unreadable images so far") == 3

    def test_evaluation_leaves_their_slots_empty(self):
        data_set = in_memory_data_set([WIDE, *images_of(WIDE)])
        (batch,) = evaluate(data_set, changed(**SKIP), batch_size=2)
        np.testing.assert_array_equal(batch.image_ids, [-1, 1])


class TestEvaluation:
    def test_every_image_once_in_order_and_padded(self, mixed):
        run = evaluate(mixed, batch_size=3)
        ids = [batch.image_ids.tolist() for batch in run]
        assert ids == [[0, 2, 3], [5, 6, 7], [9, -1, -1], [1, 4, 8], [10, -1, -1]]
        for batch in run:
            padding = batch.image_ids < 0
            assert not batch.images[padding].any()
            np.testing.assert_array_equal(batch.scales[padding], 1)
            assert (batch.sizes[padding] == batch.images.shape[1:3]).all()
            expected = np.where(padding, 0, batch.image_ids % 4)
            np.testing.assert_array_equal(batch.truth.valid.sum(axis=1), expected)
        assert evaluate(in_memory_data_set([])) == []

    def test_hosts_get_batches_in_turn(self, mixed):
        whole = evaluate(mixed, batch_size=3)
        for host in range(2):
            share = evaluate(mixed, batch_size=3, process=host, processes=2)
            chex.assert_trees_all_equal(share, whole[host::2])

    def test_augmentation_changes_nothing(self, mixed):
        plain, augmented = evaluate(mixed, CONFIG), evaluate(mixed, AUGMENTED)
        chex.assert_trees_all_equal(augmented, plain)


class TestRegions:
    @pytest.fixture(scope="class")
    def proposed(self):
        """Two wide images, twice as large as 16 x 32; three proposals and none."""
        boxes = np.array([[0, 0, 64, 32], [4, 2, 20, 12], [60, 30, 64, 32]], np.float32)
        scores = np.array([0.9, 0.5, 0.1], np.float32)
        images = images_of((32, 64), (32, 64))
        objects = [[(4, 2, 20, 12, 1)], [(0, 0, 8, 8, 0)]]
        proposals = [Proposals(boxes, scores), Proposals(boxes[:0], scores[:0])]
        data_set = in_memory_data_set(images, objects)
        return dataclasses.replace(data_set, proposals=proposals)

    def test_the_best_are_scaled_and_padded(self, proposed):
        (batch,) = evaluate(proposed, changed(max_regions=2), batch_size=3)
        regions = batch.regions
        expected = [[[0, 0, 32, 16], [2, 1, 10, 6]], np.zeros((2, 4)), np.zeros((2, 4))]
        np.testing.assert_array_equal(regions.boxes, expected)
        expected = np.array([[0.9, 0.5], [0, 0], [0, 0]], np.float32)
        np.testing.assert_array_equal(regions.scores, expected)
        np.testing.assert_array_equal(regions.valid, expected > 0)
        types = [values.dtype for values in jax.tree.leaves(regions)]
        assert sorted(map(str, types)) == ["bool", "float32", "float32"]
        (batch,) = evaluate(proposed, changed(max_regions=5), batch_size=2)
        np.testing.assert_array_equal(batch.regions.valid.sum(axis=1), [3, 0])
        np.testing.assert_array_equal(batch.regions.boxes[0, 2], [30, 15, 32, 16])

    def test_they_are_flipped_with_their_image(self, proposed):
        (batch,) = train(proposed, changed(flip=1.0, max_regions=2), batch_size=2)
        row = list(batch.image_ids).index(0)
        expected = [[0, 0, 32, 16], [22, 1, 30, 6]]
        np.testing.assert_array_equal(batch.regions.boxes[row], expected)
        np.testing.assert_array_equal(batch.truth.boxes[row, 0], expected[1])

    @pytest.mark.parametrize("call", [batching.check, train, evaluate])
    def test_a_data_set_without_proposals(self, mixed, call):
        message = r"'in memory' has no region proposals.* 2; .*proposal_files"
        with pytest.raises(DataError, match=message):
            call(mixed, changed(max_regions=2), batch_size=1)


class TestMasks:
    @pytest.fixture(scope="class")
    def masked(self):
        """An image whose objects are, in this order, dark on the left and all light."""

        def read_masks(position, cells):
            assert (position, cells) == (0, 2)
            return np.array([[[0, 1], [0, 1]], [[1, 1], [1, 1]]], np.float32)

        objects = [(2, 4, 10, 8, 1), (0, 0, 30, 16, 0)]
        data_set = in_memory_data_set(images_of((16, 32)), [objects])
        return dataclasses.replace(data_set, read_masks=read_masks)

    @pytest.mark.parametrize(("flip", "first"), [(0.0, [0, 1]), (1.0, [1, 0])])
    def test_masks_go_with_their_objects(self, masked, flip, first):
        (batch,) = train(masked, changed(mask_size=2, flip=flip), batch_size=1)
        expected = [[[first] * 2, np.ones((2, 2)), np.zeros((2, 2))]]
        np.testing.assert_array_equal(batch.truth.masks, expected)
        assert batch.truth.masks.dtype == np.float32

    def test_masks_of_dropped_objects_are_dropped(self, masked):
        config = changed(mask_size=2, max_objects=1, too_many_objects="drop")
        (batch,) = train(masked, config, batch_size=1)
        np.testing.assert_array_equal(batch.truth.masks, np.ones((1, 1, 2, 2)))
        assert evaluate(masked, config)[0].truth.masks is None

    def test_a_data_set_without_masks(self, mixed):
        with pytest.raises(DataError, match=r"'in memory' has no masks.* is 2; load"):
            without = dataclasses.replace(mixed, read_masks=None)
            batching.check(without, changed(mask_size=2), batch_size=1)


class TestAugmentation:
    @pytest.fixture(scope="class")
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

    def test_it_changes_pixels_and_no_order(self, mixed):
        for plain, changed in zip(
            *(train(mixed, c, stop=3) for c in (CONFIG, AUGMENTED)), strict=True
        ):
            assert not np.array_equal(plain.images, changed.images)
            np.testing.assert_array_equal(plain.image_ids, changed.image_ids)

    @pytest.mark.parametrize(
        "left_out",
        [{"random_crop": 0.0, "scale_jitter": (1.0, 1.0)}, {"expand": 0.0}],
    )
    def test_all_that_is_known_moves_with_the_image(self, marked, left_out):
        config = dataclasses.replace(
            AUGMENTED, distort_colors=0.0, mask_size=2, max_regions=2, **left_out
        )
        counts, seen_regions = [], []
        for batch in train(marked, config, stop=20):
            valid, boxes = batch.truth.valid, batch.truth.boxes
            counts.extend(valid.sum(axis=1))
            assert not boxes[~valid].any()
            masks = batch.truth.masks.max(axis=(2, 3))
            np.testing.assert_array_equal(masks, valid.astype(np.float32))
            seen, regions = batch.regions.valid, batch.regions.boxes
            assert seen[valid[:, 0], 0].all() and not seen[:, 1].any()
            assert not regions[~seen].any() and not batch.regions.scores[~seen].any()
            assert (regions[seen][:, 2:] > regions[seen][:, :2]).all()
            seen_regions.extend(seen[:, 0])
            for slot in np.flatnonzero(valid[:, 0]):
                height, width = batch.sizes[slot]
                assert not batch.images[slot, height:].any()
                assert not batch.images[slot, :, width:].any()
                rows, columns = np.nonzero(batch.images[slot, ..., 0] > 190)
                white = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                np.testing.assert_allclose(boxes[slot, 0], white, atol=1.1)
                np.testing.assert_allclose(regions[slot, 0], boxes[slot, 0])
        assert set(counts) == {0, 1} and not all(seen_regions)

    @pytest.mark.parametrize(
        "name", ["distort_colors", "expand", "iou_crop", "random_crop"]
    )
    def test_each_is_done_as_often_as_asked(self, marked, name):
        (plain,) = train(marked, STILL)

        def share_of_changed(probability):
            config = dataclasses.replace(STILL, **{name: probability})
            run = train(marked, config, stop=50)
            images = np.concatenate([batch.images for batch in run])
            return np.mean(np.any(images != plain.images[:1], axis=(1, 2, 3)))

        assert share_of_changed(0.0) == 0
        often, always = share_of_changed(0.4), share_of_changed(1.0)
        assert always > 0.5  # not every draw changes this picture
        assert 0.25 < often / always < 0.55

    def test_jittered_images_are_smaller_than_their_canvas_or_cut_to_it(self, mixed):
        config = dataclasses.replace(STILL, scale_jitter=(0.25, 2.0))
        shares, scales = [], []
        for batch in train(mixed, config, stop=30):
            assert_padded(batch)
            shares.extend(np.prod(batch.sizes / batch.images.shape[1:3], axis=1))
            scales.extend(batch.scales.min(axis=1))
        assert min(shares) < 0.1 and max(shares) == 1
        # 1.6 is the scale of most images that just fit; the factor's mean is 1.125.
        np.testing.assert_allclose(np.mean(scales), 1.6 * 1.125, atol=0.3)
        assert min(scales) < 0.6 and max(scales) > 2.8


def test_images_and_boxes_fill_the_canvas_that_was_drawn(mixed):
    run = train(mixed, MULTI_SCALE, batch_size=3, stop=20)
    canvases = [batch.images.shape[1:3] for batch in run]
    assert set(canvases) <= set(MULTI_SCALE.training_canvases)
    assert len(set(canvases)) > 2
    for batch, canvas in zip(run, canvases, strict=True):
        assert (batch.sizes == canvas).any(axis=1).all()
        heights = batch.truth.boxes[..., 3] - batch.truth.boxes[..., 1]  # of 4 pixels
        expected = np.where(batch.truth.valid, 4 * batch.scales[:, :1], 0)
        np.testing.assert_allclose(heights, expected, rtol=1e-5)


@pytest.mark.parametrize("run", [train, evaluate])
class TestSizes:
    def test_stretched_images_fill_their_canvas(self, run):
        data_set = in_memory_data_set(images_of((15, 20)), [[(4, 3, 8, 6, 1)]])
        config = dataclasses.replace(STILL, keep_aspect=False)
        (batch,) = run(data_set, config, batch_size=1)
        np.testing.assert_array_equal(batch.sizes, [[16, 32]])
        np.testing.assert_allclose(batch.scales, [[16 / 15, 32 / 20]], rtol=1e-6)
        np.testing.assert_allclose(batch.truth.boxes[0, 0], [6.4, 3.2, 12.8, 6.4])
        assert batch.images.all()

    def test_torchvisions_sizes_and_fractions(self, run):
        image = np.full((10, 20, 3), 200, np.uint8)
        data_set = in_memory_data_set([image], [[(4, 3, 8, 6, 1)]])
        config = dataclasses.replace(
            STILL,
            canvases=((64, 64), (32, 32), (16, 32)),
            min_max_size=(15, 31),
            float_pixels=True,
        )
        (batch,) = run(data_set, config, batch_size=1)
        assert batch.images.shape == (1, 16, 32, 3)  # the smallest that holds it
        assert batch.images.dtype == np.float32
        np.testing.assert_array_equal(batch.sizes, [[15, 30]])
        np.testing.assert_allclose(batch.truth.boxes[0, 0], [6, 4.5, 12, 9])
        np.testing.assert_allclose(batch.images[0, :15, :30], 200, rtol=1e-6)
        assert not batch.images[0, 15:].any() and not batch.images[0, :, 30:].any()

    def test_no_canvas_holds_an_image(self, run):
        config = changed(canvases=((8, 8),), min_max_size=(15, 31))
        with pytest.raises(DataError, match=r"canvases is .*resized to 15x30"):
            run(in_memory_data_set(images_of((10, 20))), config)


class TestCheck:
    def test_empty_data_set(self):
        with pytest.raises(DataError, match="'in memory' holds no images"):
            batching.check(in_memory_data_set([]), CONFIG, batch_size=1)

    def test_too_many_objects(self):
        objects = [[], [(0, 0, 1, 1, 0)] * 5, [(0, 0, 1, 1, 0)] * 4]
        ids = ["a", "full", "c"]
        data_set = in_memory_data_set(images_of(*[WIDE] * 3), objects, image_ids=ids)
        message = "'full' has 5 objects, more than max_objects=3; set max_objects=5 or"
        for call in (batching.check, train):
            with pytest.raises(DataError, match=message):
                call(data_set, CONFIG, batch_size=1)
        batching.check(data_set, changed(too_many_objects="drop"), batch_size=1)

    @pytest.mark.parametrize(
        ("fields", "most"),
        [({"mosaic": 0.1}, 12), ({"copy_paste": 1.0}, 6), ({"mosaic": 1.0}, 12)],
    )
    def test_joined_images_need_more_slots(self, mixed, fields, most):
        message = f"such images joined {most}, more than max_objects={most - 1}; set"
        with pytest.raises(DataError, match=message):
            batching.check(mixed, changed(**fields, max_objects=most - 1), batch_size=1)
        batching.check(mixed, changed(**fields, max_objects=most), batch_size=1)

    def test_copy_paste_needs_masks(self):
        config = changed(copy_paste=0.5)
        with pytest.raises(DataError, match=r"no masks, but copy_paste is 0\.5; load"):
            train(in_memory_data_set(images_of(WIDE)), config, batch_size=1)

    @pytest.mark.parametrize("batch_size", [0, -4, 6])
    def test_batch_size_and_devices(self, mixed, batch_size):
        with pytest.raises(DataError, match=f"batch size {batch_size} .* 4 devices"):
            batching.check(mixed, CONFIG, batch_size=batch_size, devices=4)

    def test_batch_size_and_processes(self, mixed):
        with pytest.raises(DataError, match=r"batch size 3 .* 2 processes"):
            train(mixed, batch_size=3, processes=2)
