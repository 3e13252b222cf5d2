"""What a test session finds around it: empty folders, several devices."""

import importlib.util
import mmap
import os
import pathlib
import site
import tempfile


def isolate() -> tempfile.TemporaryDirectory:
    """Makes an empty home for this process and those it starts; to be called first.

    A test that is green only where somebody has left something at home is red
    everywhere else.
    """
    os.environ["PYTHONUSERBASE"] = site.getuserbase()  # of `pip install --user`
    home = tempfile.TemporaryDirectory(prefix="jaxdet-tests-")
    os.environ["HOME"] = home.name
    for variable, folder in {
        "XDG_CACHE_HOME": ".cache",
        "JAXDET_CACHE": ".cache/jaxdet",
        "JAX_COMPILATION_CACHE_DIR": ".cache/programs",
    }.items():
        path = pathlib.Path(home.name, folder)
        path.mkdir()
        os.environ[variable] = str(path)
    os.environ.pop("TFDS_DATA_DIR", None)  # the default, ~/tensorflow_datasets
    return home


def set_xla_flags() -> None:
    """Asks for devices and short compilations; to be called before jax is imported.

    Laws about devices need several of them. And what is run once or twice is compiled
    in a third of the time with XLA's older way to emit fused loops, where it has that.
    """
    flags = ["--xla_force_host_platform_device_count=4"]
    if jaxlib_knows("xla_cpu_use_fusion_emitters"):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])


def jaxlib_knows(flag: str) -> bool:
    """Whether XLA has a flag of this name; nothing is imported to find that out.

    A flag that it does not know ends a process, without a Python error. The library
    holds the names of its flags as C strings: the zero at their end tells them from
    what is said about former ones.
    """
    (folder,) = importlib.util.find_spec("jaxlib").submodule_search_locations
    suffixes = {".so", ".dylib", ".pyd", ".dll"}
    files = [x for x in pathlib.Path(folder).rglob("*") if x.suffix in suffixes]
    largest = max(files, key=lambda file: file.stat().st_size)
    with (
        largest.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return content.find(f"{flag}\0".encode()) >= 0
