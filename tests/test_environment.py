"""No test sees what a machine happens to have."""

import os
import pathlib
import pwd
import subprocess
import sys
import tempfile

import tensorflow_datasets as tfds

from jaxdet.data.files import cache_folder
from tests import environment

ROOT = pathlib.Path(__file__).parents[1]
PROGRAM = """
import pathlib
import jax
from jaxdet.data.files import cache_folder, write_atomically
print(pathlib.Path.home(), cache_folder(), jax.config.jax_compilation_cache_dir)
"""


def test_home_and_caches_are_the_sessions_own():
    home = pathlib.Path.home()
    assert home.parent == pathlib.Path(tempfile.gettempdir())
    assert home != pathlib.Path(pwd.getpwuid(os.getuid()).pw_dir)
    assert cache_folder() == home / ".cache" / "jaxdet"
    assert home in pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).parents
    assert pathlib.Path(os.environ["XDG_CACHE_HOME"]) == home / ".cache"
    assert home in pathlib.Path(tfds.core.constants.DATA_DIR).expanduser().parents


def test_subprocesses_have_the_same():
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    programs = os.environ["JAX_COMPILATION_CACHE_DIR"]
    assert done.stdout.split() == [
        str(pathlib.Path.home()),
        str(cache_folder()),
        programs,
    ]


def test_isolation_makes_empty_folders(monkeypatch, tmp_path):
    for variable in ("HOME", "XDG_CACHE_HOME", "JAXDET_CACHE", "PYTHONUSERBASE"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with environment.isolate() as home:
        assert pathlib.Path.home() == pathlib.Path(home) != tmp_path
        assert not [x for x in pathlib.Path(home).rglob("*") if x.is_file()]
        assert list(cache_folder().iterdir()) == []
        assert "TFDS_DATA_DIR" not in os.environ


def test_flags_of_xla_are_known_by_their_whole_names():
    assert environment.jaxlib_knows("xla_force_host_platform_device_count")
    assert not environment.jaxlib_knows("xla_force_host_platform_device")
    assert not environment.jaxlib_knows("xla_no_such_flag")
