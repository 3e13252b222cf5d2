"""Files of weights come from a server on loopback, whole or not at all."""

import contextlib
import hashlib
import http.server
import subprocess
import sys
import threading

import pytest

from jaxdet.data.files import CACHE_VARIABLE
from jaxdet.weights import download
from jaxdet.weights.state_dict import WeightsError

CONTENT = bytes(range(256)) * 4096
NAME = f"some-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends `content`, or its first half as often as `server.breaks` says."""

    def do_GET(self):
        self.server.requested.append(self.path)
        if self.path not in (f"/models/{NAME}", "/models/other-00000000.pth"):
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        whole = self.server.breaks == 0
        self.server.breaks -= not whole
        self.wfile.write(CONTENT if whole else CONTENT[: len(CONTENT) // 2])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requested, server.breaks = [], 0
        url = f"http://127.0.0.1:{server.server_port}/models/"
        monkeypatch.setenv(download.URL_VARIABLE, url)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "pretrained"


def test_a_file_is_downloaded_once(server, cache):
    for _ in range(2):
        file = download.weights_file(NAME)
        assert file == cache / NAME and file.read_bytes() == CONTENT
    assert server.requested == [f"/models/{NAME}"] and list(cache.iterdir()) == [file]


def test_what_torch_has_downloaded_is_taken(server, tmp_path, monkeypatch):
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / NAME).write_bytes(CONTENT)
    assert download.weights_file(NAME) == folder / NAME
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert download.weights_file(NAME) == folder / NAME
    assert not server.requested
    (folder / NAME).write_bytes(CONTENT[:-1])
    message = (
        rf"hub/checkpoints/{NAME}: its SHA-256 begins with \w{{8}}, not .*delete it"
    )
    with pytest.raises(WeightsError, match=message):
        download.weights_file(NAME)


def test_a_broken_download_begins_again(server, cache):
    server.breaks = 2
    assert download.weights_file(NAME).read_bytes() == CONTENT
    assert len(server.requested) == 3
    (cache / NAME).unlink()
    server.breaks = 3
    with pytest.raises(WeightsError, match=f"{NAME} is not here.*: get http.*put it"):
        download.weights_file(NAME)
    assert list(cache.iterdir()) == []


def test_another_file_than_named_is_not_kept(server, cache):
    message = (
        r"begins with \w{8}, not 00000000.*it came from http.*/other-00000000\.pth"
    )
    with pytest.raises(WeightsError, match=message):
        download.weights_file("other-00000000.pth")
    assert list(cache.iterdir()) == []


def test_without_file_server_or_folder(server, cache, monkeypatch):
    with pytest.raises(
        WeightsError, match=r"absent-1234\.pth .*\(404 Not Found\): get"
    ):
        download.weights_file("absent-1234.pth")
    server.shutdown()
    server.server_close()
    url = f"http://127.0.0.1:{server.server_port}/models/{NAME}"
    with pytest.raises(WeightsError) as caught:
        download.weights_file(NAME)
    assert str(caught.value) == (
        f"{NAME} is not here and cannot be downloaded (ConnectionError): get {url} and "
        f"put it into {cache}"
    )
    monkeypatch.setenv(CACHE_VARIABLE, __file__)
    with pytest.raises(WeightsError, match=r"\(Not a directory\): get "):
        download.weights_file(NAME)


def test_processes_that_download_at_once_end_whole(server, cache):
    program = f"from jaxdet.weights import download; download.weights_file({NAME!r})"
    with contextlib.ExitStack() as stack:
        start = [
            stack.enter_context(subprocess.Popen([sys.executable, "-c", program]))
            for _ in range(2)
        ]
        assert [process.wait() for process in start] == [0, 0]
    assert (cache / NAME).read_bytes() == CONTENT and len(list(cache.iterdir())) == 1
