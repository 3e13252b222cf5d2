import dataclasses
import json

import numpy as np
import pytest

from jaxdet.data import proposal_files
from jaxdet.data.dataset import DataError, subset
from tests.data.in_memory import in_memory_data_set
from tests.data.test_selective_search import assert_same, of, scenes


@pytest.fixture
def data_set():
    """Two images of 48 x 64, called "a" and 7; three proposals and none."""
    image = np.zeros((48, 64, 3), np.uint8)
    data_set = in_memory_data_set([image, image], image_ids=["a", 7])
    found = of((0, 0, 10, 6, 0.9), (0, 0, 64, 48, 0.5), (0, 0, 10, 8.5, 0.25))
    return dataclasses.replace(data_set, proposals=(found, of()))


@pytest.mark.parametrize("name", ["p.npz", "deep/p.json"])
def test_what_was_saved_is_loaded(tmp_path, data_set, name):
    proposal_files.save(tmp_path / name, data_set)
    bare = dataclasses.replace(data_set, proposals=None)
    (loaded,) = proposal_files.load(tmp_path / name, bare)
    assert_same(loaded.proposals, data_set.proposals)
    assert bare.proposals is None and loaded.read_image is bare.read_image


def test_the_order_of_images_is_the_data_sets(tmp_path, data_set):
    entries = [
        {"image_id": 7, "boxes": [[1, 2, 3, 4], [5, 6, 7, 8]], "scores": [0.1, 3]},
        {"image_id": "a", "boxes": [[9, 8, 20, 30], [0, 0, 1, 1]]},
    ]
    (tmp_path / "p.json").write_text(json.dumps(entries))
    (loaded,) = proposal_files.load(tmp_path / "p.json", data_set)
    expected = [
        of((9, 8, 20, 30, 1), (0, 0, 1, 1, 0.5)),
        of((5, 6, 7, 8, 3), (1, 2, 3, 4, 0.1)),
    ]
    assert_same(loaded.proposals, expected)


def test_both_parts_of_a_data_set(tmp_path, data_set):
    proposal_files.save(tmp_path / "p.npz", data_set)
    parts = subset(data_set, [1], "one"), subset(data_set, [0], "other")
    bare = [dataclasses.replace(part, proposals=None) for part in parts]
    for part, loaded in zip(
        parts, proposal_files.load(tmp_path / "p.npz", *bare), strict=True
    ):
        assert_same(loaded.proposals, part.proposals)
    (alone,) = proposal_files.load(tmp_path / "p.npz", bare[1])  # as to evaluate on it
    assert_same(alone.proposals, parts[1].proposals)
    with pytest.raises(DataError, match="'one' and 'in memory' share image ids"):
        proposal_files.load(tmp_path / "p.npz", parts[0], data_set)


def test_a_file_made_elsewhere(tmp_path):
    boxes = np.array([[0, 0, 5, 5], [1, 1, 7, 7]], np.int16)
    ids, counts = np.array([1, 0]), np.array([0, 2])
    np.savez(tmp_path / "p.npz", image_ids=ids, counts=counts, boxes=boxes)
    (loaded,) = proposal_files.load(tmp_path / "p.npz", scenes(2))
    assert_same(loaded.proposals, [of((0, 0, 5, 5, 1), (1, 1, 7, 7, 0.5)), of()])


def test_overhang_is_clipped_and_no_area_dropped(tmp_path, data_set, caplog):
    boxes = [[-1.5, -2, 65, 50], [3, 3, 3, 9], [3, 9, 8, 9], [64, 0, 66, 9]]
    entries = [{"image_id": 7, "boxes": []}, {"image_id": "a", "boxes": boxes}]
    (tmp_path / "p.json").write_text(json.dumps(entries))
    (loaded,) = proposal_files.load(tmp_path / "p.json", data_set)
    assert_same(loaded.proposals, [of((0, 0, 64, 48, 1)), of()])
    assert "p.json: dropped 3 proposals without area" in caplog.text


NAN = float("nan")


def of_7(*boxes, **others):
    return [{"image_id": 7, "boxes": boxes, **others}]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "a list of objects with image_id and boxes"),
        ([{"image_id": 7}], "a list of objects with image_id and boxes"),
        ([], r"no proposals of 2 of 2 images of 'in memory', the first is 'a'"),
        ([{"image_id": "a", "boxes": []}], r"1 of 2 images .*, the first is '7'"),
        ([{"image_id": "b", "boxes": []}], r"2 of 2 images .*, the first is 'a'"),
        (of_7() * 2, "image 7 stands there twice"),
        (of_7([1, 2, 3]), r"shape \(1, 3\), scores \(1,\)"),
        (of_7(1, 2, 3, 4), r"shape \(4,\)"),
        (of_7([1, 2, 3, "x"]), "not numbers"),
        (of_7([1, 2], [3]), "not numbers"),
        (of_7([1, 2, 3, 4], scores=[1, 2]), r"shape \(1, 4\), scores \(2,\)"),
        (of_7([1, 2, 3, 4], [0, 0, NAN, 5]), "box 1 is .*nan.*finite"),
        (
            of_7([0, 0, 66.5, 5]),
            "box 0 is .*66.5.*height 48 and width 64, give or take 2 pixels",
        ),
        (of_7([0, 0, 5, 5], scores=[NAN]), "box 0 is .*score nan"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, data_set, entries, message):
    (tmp_path / "p.json").write_text(json.dumps(entries))
    with pytest.raises(DataError, match=rf"p\.json: .*{message}"):
        proposal_files.load(tmp_path / "p.json", data_set)


def test_that_of_images_of_another_size(tmp_path, data_set):
    proposal_files.save(tmp_path / "p.npz", data_set)
    larger = dataclasses.replace(data_set, sizes=data_set.sizes * 2)
    message = r"image 'a' is of .* \(48, 64\) there, \(96, 128\) in the data set"
    with pytest.raises(DataError, match=message):
        proposal_files.load(tmp_path / "p.npz", larger)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": np.zeros((2, 4))}, r"boxes has shape \(2, 4\)"),
        ({"scores": np.zeros(4)}, r"scores has shape \(4,\)"),
        ({"counts": np.array([4, -1])}, "boxes has shape|scores has shape"),
        ({"counts": np.array([1.5, 1.5])}, "boxes has shape|scores has shape"),
        ({"counts": np.array([1, 1, 1])}, "counts has 3 rows"),
        ({"sizes": np.zeros((1, 2))}, "counts has 2 rows"),
        ({"boxes": None}, "no array 'boxes'; needed: image_ids, counts, boxes"),
        ({"boxes": np.array([{}] * 3, object)}, "cannot be read as npz"),
    ],
)
def test_broken_npz(tmp_path, data_set, change, message):
    proposal_files.save(tmp_path / "p.npz", data_set)
    arrays = {**np.load(tmp_path / "p.npz"), **change}
    arrays = {key: value for key, value in arrays.items() if value is not None}
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(DataError, match=rf"p\.npz: .*({message})"):
        proposal_files.load(tmp_path / "p.npz", data_set)


@pytest.mark.parametrize("name", ["p.npz", "p.json"])
def test_no_file_and_no_such_format(tmp_path, data_set, name):
    with pytest.raises(DataError, match=f"{name}: cannot be read"):
        proposal_files.load(tmp_path / name, data_set)
    (tmp_path / name).write_text("neither")
    with pytest.raises(DataError, match=f"{name}: (not json|cannot be read as npz)"):
        proposal_files.load(tmp_path / name, data_set)


def test_other_endings_and_nothing_to_save(tmp_path, data_set):
    for call in (proposal_files.load, proposal_files.save):
        with pytest.raises(DataError, match=r"p\.pkl: .* in \.npz or \.json"):
            call(tmp_path / "p.pkl", data_set)
    with pytest.raises(DataError, match="has no region proposals"):
        proposal_files.save(tmp_path / "p.npz", scenes(1))
