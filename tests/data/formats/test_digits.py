import itertools
import subprocess
import sys

import numpy as np
import pycocotools.mask
import pytest
import sklearn.datasets

from jaxdet.data import masks
from jaxdet.data.boxes import pairwise_intersection
from jaxdet.data.dataset import DataError
from jaxdet.data.formats import digits
from jaxdet.evaluation.coco import box_and_mask_metrics

SMALL = {"train_images": 40, "validation_images": 10}
TINY = {"train_images": 5, "validation_images": 1}
GRAY = (np.full((200, 200, 3), 128, np.uint8),)
"""A flat photograph, on which every pixel that differs is ink."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("digits")


@pytest.fixture(scope="module")
def train(folder):
    return digits.load("train", data_dir=folder, **SMALL)


@pytest.fixture(scope="module")
def validation(folder):
    return digits.load("validation", data_dir=folder, **SMALL)


def test_both_splits_have_what_was_asked_for(train, validation):
    assert (len(train), len(validation)) == (40, 10)
    assert train.class_names == tuple("0123456789")
    assert train.category_ids == tuple(range(10))
    np.testing.assert_array_equal(train.sizes, np.full((40, 2), 128))
    counts = [len(objects.boxes) for objects in train.objects]
    assert min(counts) == 0 and 5 < max(counts) <= 10
    assert not any(objects.crowd.any() for objects in train.objects)
    pixels = train.read_image(3)
    assert pixels.shape == (128, 128, 3) and pixels.dtype == np.uint8
    assert len(train.ground_truth()["annotations"]) == sum(counts)


def test_boxes_hardly_overlap_and_lie_inside(train):
    overlaps = 0
    for boxes, *_ in train.objects:
        assert (boxes >= 0).all() and (boxes <= 128).all()
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        common = np.triu(pairwise_intersection(boxes, boxes), 1)
        assert (common <= 0.15 * np.minimum(areas[:, None], areas) + 0.01).all()
        overlaps += np.count_nonzero(common)
    assert overlaps > 5  # though there is some


def test_boxes_are_tight_around_what_was_drawn():
    scenes = digits.DigitsConfig(1, 1, 128, (14, 56), 1, 0)
    glyphs, _ = digits._digits("train")
    drawn = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        pixels, boxes, _, chosen = digits._draw_scene(rng, scenes, glyphs, GRAY)
        assert len(boxes) == len(chosen) <= 1
        for x1, y1, x2, y2 in boxes.astype(int):
            changed = np.abs(pixels.astype(int) - 128).max(axis=-1)
            # A quarter of ink of opacity 0.8, some channel of which is 80 away.
            rows, columns = np.nonzero(changed > 0.25 * 0.8 * 80 - 1)
            assert (columns.min(), columns.max() + 1) == (x1, x2)
            assert (rows.min(), rows.max() + 1) == (y1, y2)
            assert changed.max() >= 0.8 * 0.9 * 80  # a person can see it
            drawn += 1
    assert drawn > 20


def test_boxes_labels_and_masks_are_stored_as_they_were_drawn(train):
    scenes = digits.DigitsConfig(40, 10, 128, (18, 52), 10, 0)
    glyphs, labels = digits._digits("train")
    for index in (0, 7, 39):
        rng = np.random.default_rng([0, 0, index])
        pixels, boxes, grids, chosen = digits._draw_scene(
            rng, scenes, glyphs, digits._photographs("train")
        )
        np.testing.assert_array_equal(train.objects[index].boxes, boxes)
        np.testing.assert_array_equal(train.objects[index].labels, labels[chosen])
        grids = np.array(grids, np.float32).reshape(-1, 28, 28) / 255
        np.testing.assert_array_equal(train.read_masks(index, 28), grids)
        difference = train.read_image(index).astype(int) - pixels
        assert np.abs(difference).mean() < 4  # JPEG


def test_a_mask_is_the_ink_cut_to_its_box(rng):
    glyphs, _ = digits._digits("train")
    for glyph in glyphs[:20]:
        ink = digits._write(rng, glyph, (18, 52))
        height, width = ink.shape
        mask = digits._mask(ink)
        # Each pixel 28 x 28 times as fine, then each cell's mean.
        fine = np.repeat(np.repeat(ink > 0.25, 28, axis=0), 28, axis=1)
        shares = fine.reshape(28, height, 28, width).mean(axis=(1, 3))
        np.testing.assert_allclose(mask, 255 * shares, atol=0.51)
        assert mask.shape == (28, 28) and mask.dtype == np.uint8


def test_masks_in_the_ground_truth_show_the_ink():
    """All but what another digit hides, where two of them overlap."""
    scenes = digits.DigitsConfig(1, 1, 128, (18, 52), 4, 0)
    glyphs, _ = digits._digits("train")
    overlaps = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        pixels, boxes, grids, _ = digits._draw_scene(rng, scenes, glyphs, GRAY)
        changed = np.abs(pixels.astype(int) - 128).max(axis=-1)
        for box, grid in zip(boxes, grids, strict=True):
            x1, y1, x2, y2 = box.astype(int)
            inside = changed[y1:y2, x1:x2]
            ink = inside > 0.25 * inside.max()
            mask = masks.paste(grid / 255, box, (128, 128))[y1:y2, x1:x2].astype(bool)
            overlaps.append((mask & ink).sum() / (mask | ink).sum())
    assert len(overlaps) > 50
    assert min(overlaps) > 0.6 and np.median(overlaps) > 0.9


def test_masks_can_be_evaluated(validation):
    truth = validation.ground_truth()
    annotations = truth["annotations"]
    for annotation in annotations:
        _, _, width, height = annotation["bbox"]
        assert annotation["area"] == width * height
        ink = pycocotools.mask.area(annotation["segmentation"])
        assert 0.2 < ink / annotation["area"] < 1
    results = [annotation | {"score": 1.0} for annotation in annotations]
    assert box_and_mask_metrics(truth, results)["mask/AP"] == pytest.approx(1)


@pytest.mark.parametrize("least, greatest", [(14, 14), (40, 60)])
def test_digits_have_the_sides_asked_for(rng, least, greatest):
    glyphs, _ = digits._digits("validation")
    sides = (least, greatest)
    heights = [len(digits._write(rng, glyph, sides)) for glyph in glyphs[:100]]
    assert least * 0.8 < np.median(heights) < greatest * 1.3
    assert max(heights) <= greatest * 1.5


def test_no_digit_and_no_pixel_of_a_photograph_is_in_both_splits():
    (train, train_labels), (validation, labels) = map(digits._digits, digits._SPLITS)
    assert len(train) + len(validation) == 1797
    assert len(train) == len(train_labels) and len(validation) == len(labels) == 360
    assert set(labels) == set(train_labels) == set(range(10))
    known = {glyph.tobytes() for glyph in train}
    assert not any(glyph.tobytes() in known for glyph in validation)
    china = sklearn.datasets.load_sample_image("china.jpg")
    parts = [digits._photographs(split) for split in digits._SPLITS]
    np.testing.assert_array_equal(np.hstack([parts[0][0], parts[1][0]]), china)
    assert len(parts[0]) == len(parts[1]) == 10
    for part in (*parts[0], *parts[1]):
        assert part.dtype == np.uint8 and part.shape[2] == 3
        assert min(part.shape[:2]) >= 128


def test_the_same_seed_draws_the_same(train, tmp_path):
    again = digits.load("train", data_dir=tmp_path, **TINY)
    other = digits.load("train", data_dir=tmp_path, **TINY, seed=1)
    for position in range(5):
        pixels = train.read_image(position)
        np.testing.assert_array_equal(pixels, again.read_image(position))
        assert (pixels != other.read_image(position)).any()
        boxes = train.objects[position].boxes
        np.testing.assert_array_equal(boxes, again.objects[position].boxes)


def test_parameters_tell_stored_sets_apart(train, folder, monkeypatch):
    options = {"side": 64, "digit_sides": (10, 20), "max_digits": 2, **TINY}
    data = digits.load("train", data_dir=folder, **options)
    assert data.read_image(0).shape == (64, 64, 3)
    assert max(len(objects.boxes) for objects in data.objects) <= 2
    monkeypatch.setattr(digits, "_draw_scene", None)  # as nothing is drawn again
    assert len(digits.load("train", data_dir=folder, **SMALL)) == 40


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXDET_CACHE", str(tmp_path / "cache"))
    digits.load("validation", train_images=1, validation_images=1)
    assert [path.name[:6] for path in (tmp_path / "cache").iterdir()] == ["digits"]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAXDET_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match=str(tmp_path / "file")):
        digits.load("train", **TINY)


def test_an_interrupted_build_leaves_nothing_behind(tmp_path, monkeypatch):
    draws = itertools.count()
    draw = digits._draw_scene

    def interrupted(*arguments):
        if next(draws) == 2:
            raise KeyboardInterrupt
        return draw(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(digits, "_draw_scene", interrupted)
        with pytest.raises(KeyboardInterrupt):
            digits.load("train", data_dir=tmp_path, **TINY)
    assert len(digits.load("train", data_dir=tmp_path, **TINY)) == 5
    assert len(digits.load("validation", data_dir=tmp_path, **TINY)) == 1


def test_two_processes_may_build_at_once(tmp_path, monkeypatch):
    build = digits.Digits.download_and_prepare

    def overtaken(builder):
        """The other process finishes while this one is still drawing."""
        build(digits.Digits(builder.config, builder.data_dir_root))
        raise OSError("Directory not empty")

    monkeypatch.setattr(digits.Digits, "download_and_prepare", overtaken)
    assert len(digits.load("train", data_dir=tmp_path, **TINY)) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_images": 0}, "digits: train_images is 0; it must be at least 1"),
        ({"validation_images": -1}, "validation_images is -1"),
        ({"side": 512}, r"side is 512; it must be in \[32, 256\]"),
        ({"digit_sides": (30, 20)}, r"is \(30, 20\); it must be 8 <= least"),
        ({"digit_sides": (14, 65)}, r"digit_sides is \(14, 65\)"),
        ({"max_digits": 0}, "max_digits is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"split": "test"}, "no split 'test'; allowed: train, validation"),
    ],
)
def test_parameters_out_of_range_are_errors(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        digits.load(**{"split": "train", "data_dir": tmp_path} | options)
    assert not list(tmp_path.iterdir())


def test_what_drawing_and_reading_import(tmp_path):
    """Neither of the frameworks; what tells formats apart not even TFDS."""
    code = f"""
import sys
import jaxdet.data.formats.open
names = ["jax", "tensorflow", "tensorflow_datasets"]
assert not sys.modules.keys() & names
from jaxdet.data.formats import digits
data_set = digits.load(
    "train", data_dir={str(tmp_path)!r}, train_images=1, validation_images=1
)
data_set.read_image(0)
assert not sys.modules.keys() & names[:2]
"""
    subprocess.run([sys.executable, "-c", code], check=True)
