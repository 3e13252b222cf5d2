"""Finds published files of weights on this machine, or downloads them."""

import hashlib
import os
import pathlib
from typing import BinaryIO

from jaxdet.data.files import cache_folder, write_atomically
from jaxdet.weights.state_dict import WeightsError

URL = "https://download.pytorch.org/models"
URL_VARIABLE = "JAXDET_WEIGHTS_URL"  # names a mirror, a folder of the same files
_ATTEMPTS = 3  # of a download that breaks off


def weights_file(name: str, url: str | None = None) -> pathlib.Path:
    """Returns a file of weights, which is downloaded if it is not here.

    It is looked for in torch's cache, then in the folder `pretrained` of
    `cache_folder`, where a download is put.

    Args:
      name: ends with the first digits of the file's SHA-256, as in
        "resnet50-0676ba61.pth".
      url: of the file, whatever it is called there; None: in the folder `URL`.

    Raises:
      WeightsError: if it cannot be downloaded, or its SHA-256 is another.
    """
    folders = _torch_cache(), cache_folder() / "pretrained"
    for folder in folders:
        if (folder / name).is_file():
            _check_sha256(folder / name, name, "delete it, to have it downloaded")
            return folder / name
    file = folders[-1] / name
    folder = os.environ.get(URL_VARIABLE)
    if folder or url is None:
        url = f"{(folder or URL).rstrip('/')}/{name}"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda stream: _download(url, stream, name))
    except OSError as error:  # those of requests are some
        raise WeightsError(
            f"{name} is not here and cannot be downloaded ({_reason(error)}): "
            f"get {url} and put it into {file.parent}"
        ) from error
    return file


def _torch_cache() -> pathlib.Path:
    """Returns where `torch.hub` keeps its downloads."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))
    return pathlib.Path(home).expanduser() / "hub" / "checkpoints"


def _download(url: str, stream: BinaryIO, name: str) -> None:
    """Writes what a URL holds; begins again where the connection breaks."""
    from pooch import HTTPDownloader

    download = HTTPDownloader(progressbar=True, chunk_size=2**16)
    for attempt in range(1, _ATTEMPTS + 1):
        stream.seek(0)
        try:
            download(url, stream, None)
            break
        except OSError:
            if attempt == _ATTEMPTS or not stream.tell():
                raise
    _check_sha256(pathlib.Path(stream.name), name, f"it came from {url}")


def _check_sha256(file: pathlib.Path, name: str, advice: str) -> None:
    wanted = pathlib.Path(name).stem.rpartition("-")[-1]
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if not digest.startswith(wanted):
        raise WeightsError(
            f"{file}: its SHA-256 begins with {digest[: len(wanted)]}, not {wanted}: "
            f"it is damaged or another file; {advice}"
        )


def _reason(error: OSError) -> str:
    """Returns a few words; those of requests are long."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"{response.status_code} {response.reason}"
    return error.strerror or type(error).__name__
