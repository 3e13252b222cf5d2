import os
import pathlib

import pytest

from jaxdet.data import files
from jaxdet.data.dataset import DataError
from jaxdet.data.files import cache_folder, read_json, write_atomically, write_json
from jaxdet.data.formats.open import open_dataset


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXDET_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("JAXDET_CACHE")
    assert cache_folder() == pathlib.Path.home() / ".cache" / "jaxdet"


def test_files_are_whole_or_not_there(tmp_path):
    def fail(stream):
        stream.write(b"half")
        raise OSError("disk full")

    file = tmp_path / "file"
    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, fail)
    assert not list(tmp_path.iterdir())
    write_atomically(file, lambda stream: stream.write(b"old"))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, fail)
    assert file.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_json_comes_back(tmp_path):
    file = tmp_path / "numbers.json"
    write_json(file, {"a": [1, 2.5]})
    assert read_json(file) == {"a": [1, 2.5]}
    file.write_text("{")
    with pytest.raises(DataError, match="not json"):
        read_json(file)
    with pytest.raises(DataError, match=r"lost.json: cannot be read \(No such"):
        read_json(tmp_path / "lost.json")


@pytest.mark.parametrize("name", ["a.json", "a.yaml", "a.jsonl"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=r"not a regular file|none of the known"):
        open_dataset(tmp_path / name)


def test_listed_files(tmp_path):
    names = ["b/c.txt", "b.txt", "._b.txt", ".git/d.txt", "b/__MACOSX/e.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert files.list_files(tmp_path) == ["b.txt", "b/c.txt"]
    assert files.list_files(tmp_path / "lost") == []
    present = files.FileListings()
    assert str(tmp_path / "b.txt") in present and str(tmp_path / "c.txt") not in present
    (tmp_path / "c.txt").touch()
    assert str(tmp_path / "c.txt") not in present  # Each folder is listed once.
    assert str(tmp_path / "lost" / "c.txt") not in present


def test_splits_are_folders():
    assert files.split_of("images/train/a.jpg") == "train"
    assert files.split_of("Valid/test/a.jpg") == "Valid"
    assert files.split_of("images/train.jpg") is None
    paths = ["test/a.jpg", "b/val/c.jpg", "train/d.jpg", "train/e.jpg"]
    assert files.splits_of("here", paths) == ("train", "val", "test")
    assert files.splits_of("here", ["a.jpg"]) == files.splits_of("here", []) == ()
    with pytest.raises(DataError, match=r"here: a\.jpg is in no folder of a split"):
        files.splits_of("here", ["a.jpg", *paths])
