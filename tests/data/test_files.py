import functools
import hashlib
import http.server
import os
import pathlib
import subprocess
import sys
import threading

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
    with pytest.raises(DataError, match=r"not a regular file|no known"):
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
    assert files.split_of("obj_valid_data/a.jpg") == "valid"  # as CVAT has it
    paths = ["test/a.jpg", "b/val/c.jpg", "train/d.jpg", "train/e.jpg"]
    assert files.splits_of("here", paths) == ("train", "val", "test")
    assert files.splits_of("here", ["a.jpg"]) == files.splits_of("here", []) == ()
    with pytest.raises(DataError, match=r"here: a\.jpg is in no folder of a split"):
        files.splits_of("here", ["a.jpg", *paths])


FILLING = """
import pathlib, sys, time
from jaxdet.data import dataset, selective_search
from jaxdet.data.formats import digits
from jaxdet.weights import download

own, other = map(pathlib.Path, sys.argv[1:3])
own.touch()
while not other.exists():
    time.sleep(0.001)
data = digits.load("train", train_images=60, validation_images=5)
data = selective_search.with_selective_search(data, max_proposals=5, progress=False)
file = download.weights_file(sys.argv[3])
print(dataset.digests(data), file)
"""


@pytest.mark.slow
def test_two_processes_fill_the_caches_at_once(tmp_path, monkeypatch):
    content = bytes(10**7)
    name = f"weights-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / name).write_bytes(content)
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=tmp_path / "server"
    )
    monkeypatch.setenv("JAXDET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("JAXDET_WEIGHTS_URL", url)
        ready = [str(tmp_path / "first"), str(tmp_path / "second")]
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", FILLING, *order, name],
                stdout=subprocess.PIPE,
                text=True,
            )
            for order in (ready, ready[::-1])
        ]
        first, second = (process.communicate()[0].splitlines() for process in processes)
        server.shutdown()
    assert [process.returncode for process in processes] == [0, 0]
    assert first[-1] == second[-1] and "proposals" in first[-1]
    left = {path.name for path in (tmp_path / "cache").rglob("*")}
    assert not [one for one in left if "unfinished" in one or "incomplete" in one]
    assert (tmp_path / "cache" / "pretrained" / name).read_bytes() == content
