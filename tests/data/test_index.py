import logging
import os

import chex
import numpy as np
import pytest

from jaxdet.data import index
from jaxdet.data.dataset import DataError, Objects


def an_index(image_ids=(7, 3, 9)):
    """Of three images: two of three objects kept, none of one, and none at all."""
    boxes = np.array([[0, 1, 2.5, 3], [5, 6, 7, 8]], np.float32)
    full = Objects(boxes, np.array([4, 0], np.int32), np.array([False, True]))
    none = Objects(*(values[:0] for values in full))
    return index.Index(
        image_ids=image_ids,
        sizes=np.array([[40, 60], [30, 20], [5, 6]], np.int32),
        objects=(full, none, none),
        areas=(np.array([4.5, 3.0]), np.zeros(0), np.zeros(0)),
        kept=(np.array([1, 0, 1], bool), np.zeros(1, bool), np.zeros(0, bool)),
    )


def assert_same(found, expected):
    assert found.image_ids == expected.image_ids
    chex.assert_trees_all_equal(found[1:], expected[1:], strict=True)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Of a data set with one file."""
    monkeypatch.setenv("JAXDET_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "shard").write_text("pixels")
    return folder


@pytest.fixture
def load(folder):
    """Loads, counting in `load.made` what had to be made."""

    def load(key="train", expected=None):
        def make():
            load.made += 1
            return expected or an_index()

        return index.load(folder, key, [folder / "shard"], make)

    load.made = 0
    return load


@pytest.mark.parametrize("image_ids", [(7, 3, 9), ("a", "bcd", "ü")])
def test_what_is_made_once_is_read(load, image_ids):
    expected = an_index(image_ids)
    for _ in range(2):
        assert_same(load(expected=expected), expected)
    assert load.made == 1


def test_every_key_has_its_own(load, folder):
    for key in ("train[:10%]", "train[10%:]", "train[:10%]", "train"):
        load(key)
    assert load.made == 3
    names = [file.name for file in folder.glob("index-*.npz")]
    assert sum(name.startswith("index-train_10_-") for name in names) == 2


@pytest.mark.parametrize("content", ["more pixels", "pixels"])
def test_a_changed_file_makes_it_old(load, folder, content):
    load()
    before = (folder / "shard").stat()
    (folder / "shard").write_text(content)  # of another size, or of another time
    later = 0 if content == "more pixels" else 10**9
    os.utime(folder / "shard", ns=(before.st_atime_ns, before.st_mtime_ns + later))
    load()
    load()
    assert load.made == 2


def test_a_missing_file_is_an_error(load, folder):
    (folder / "shard").unlink()
    with pytest.raises(DataError, match="shard: cannot be read"):
        load()
    assert load.made == 0


def test_the_folder_can_be_moved(load, folder):
    load()
    moved = folder.rename(folder.with_name("moved"))
    found = index.load(moved, "train", [moved / "shard"], pytest.fail)
    assert_same(found, an_index())


def test_a_broken_index_is_made_anew(load, folder, rng):
    load()
    (file,) = folder.glob("index-*.npz")
    content = file.read_bytes()
    for _ in range(40):
        broken = bytearray(content)
        start = int(rng.integers(len(content)))
        if rng.random() < 0.5:
            del broken[start:]
        else:
            broken[start] ^= 1 << int(rng.integers(8))
        file.write_bytes(broken)
        assert_same(load(), an_index())


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_folder_that_is_read_only(
    load, folder, tmp_path, monkeypatch, caplog, everywhere
):
    write = index.write_atomically

    def write_atomically(file, content):  # root may write anywhere
        if everywhere or file.is_relative_to(folder):
            raise PermissionError(13, "Permission denied")
        write(file, content)

    monkeypatch.setattr(index, "write_atomically", write_atomically)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert_same(load(), an_index())
    assert not list(folder.glob("index-*"))
    cached = len(list((tmp_path / "cache" / "indexes").rglob("index-*.npz")))
    assert (load.made, cached) == ((2, 0) if everywhere else (1, 1))
    refused = "no index can be kept" in caplog.text and "denied" in caplog.text
    assert refused == everywhere
