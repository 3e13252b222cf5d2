"""Runs a command: shared options, one message for each user error, exit codes."""

import argparse
import contextlib
import errno
import logging
import os
import pathlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NoReturn, TypeVar

import jax
import tyro

from jaxdet import parallel
from jaxdet.config import ConfigError
from jaxdet.data.dataset import DataError

# Networks, and what trains them, are imported where they are used: an exported detector
# runs without.

Config = TypeVar("Config")
Precision = Literal["float32", "bfloat16"]

CACHE = pathlib.Path("~/.cache/jaxdet/programs")  # of compiled programs
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run(main: Callable | dict[str, Callable]) -> None:
    """Calls `main`, or the one that the first argument names, with the command line.

    With `--coordinator`, `--processes` and `--process`, on a TPU pod and in SLURM it is
    one of several processes that share the work. Compiled programs are kept in
    `--compilation-cache`, unless `--no-compilation-cache` is given.

    What a user can correct becomes one message and exit code 1 (2 where an argument
    cannot be parsed); Ctrl-C becomes exit code 130. Other errors keep their traceback.
    The third Ctrl-C ends the process even while it compiles.
    """
    _set_hooks()
    logger = logging.getLogger("jaxdet")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # libraries put handlers of their own on the root
    with _third_interrupt_ends():
        _run(main)


def _run(main: Callable | dict[str, Callable]) -> None:
    try:
        arguments = _parse_shared_options(sys.argv[1:])
        if isinstance(main, dict):
            tyro.extras.subcommand_cli_from_dict(main, args=arguments)
        else:
            tyro.cli(main, args=arguments)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # quiet from now on
        _exit(130)  # training has said how to go on
    except Exception as error:
        if isinstance(error, _user_errors()):
            _exit(1, f"error: {error}")
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            _exit(1, f"error: {error}; what was saved before is still there")
        if isinstance(error, OSError) and error.filename is not None:
            _exit(1, f"error: {error}")
        if not jax.distributed.is_initialized():
            raise
        _exit(1, traceback.format_exc())


@contextlib.contextmanager
def _third_interrupt_ends() -> Iterator[None]:
    """Makes Ctrl-C an exception, and the third one the end of the process.

    Python acts on signals between its own instructions, so not while compiled code
    runs; a compilation can take minutes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    numbers, write = os.pipe()
    os.set_blocking(write, False)
    former = signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def count() -> None:
        interrupts = 0
        while number := os.read(numbers, 1):
            interrupts += number[0] == signal.SIGINT
            if interrupts == 3:
                os._exit(130)
        os.close(numbers)

    threading.Thread(target=count, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        os.close(write)


def _set_hooks() -> None:
    """Keeps what threads and callbacks do with errors from the user.

    Orbax's threads print errors that the main thread raises too. Ctrl-C in a callback
    of the garbage collector, of which JAX has one, would be lost: it is repeated.
    """

    def of_thread(arguments: threading.ExceptHookArgs) -> None:
        if not type(arguments.thread).__module__.startswith("orbax."):
            threading.__excepthook__(arguments)

    def of_callback(arguments: Any) -> None:
        if issubclass(arguments.exc_type, KeyboardInterrupt):
            again = partial(signal.pthread_kill, threading.main_thread().ident)
            threading.Timer(0.1, again, [signal.SIGINT]).start()
        elif str(arguments.exc_value) != "Event loop is closed":  # by Orbax, too early
            sys.__unraisablehook__(arguments)

    threading.excepthook, sys.unraisablehook = of_thread, of_callback
    logging.getLogger("absl").addFilter(
        lambda record: not (record.exc_info and "orbax" in record.pathname)
    )


def _user_errors() -> tuple[type[Exception], ...]:
    """Returns the errors that a user can correct, of the modules that are imported."""
    named = {
        "jaxdet.training.checkpoint": ("CheckpointError",),
        "jaxdet.training.run_folder": ("RunError",),
        "jaxdet.training.metrics": ("NonFiniteLossError",),
        "jaxdet.weights.state_dict": ("WeightsError",),
    }
    return (
        ConfigError,
        DataError,
        *(
            getattr(sys.modules[module], name)
            for module, names in named.items()
            for name in names
            if module in sys.modules
        ),
    )


def _parse_shared_options(arguments: list[str]) -> list[str]:
    """Parses the options that every command has, and returns the other arguments."""
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, add_help=False, allow_abbrev=False
    )
    programs = parser.add_argument_group(
        "compiled programs",
        "kept on disk, so that the next run starts without compiling them again",
    )
    programs.add_argument(
        "--compilation-cache",
        type=pathlib.Path,
        metavar="FOLDER",
        help=f"where (default: JAX_COMPILATION_CACHE_DIR, or {CACHE})",
    )
    programs.add_argument(
        "--no-compilation-cache", action="store_true", help="compile everything again"
    )
    group = parser.add_argument_group(
        "several hosts",
        "the same command on each, and these; TPU pods and SLURM need none of them",
    )
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="the first host, and a free port"
    )
    group.add_argument("--processes", type=int, metavar="INT", help="how many hosts")
    group.add_argument(
        "--process", type=int, metavar="INT", help="which of them this is, from 0"
    )
    shared, rest = parser.parse_known_args(arguments)
    if {"-h", "--help"} & set(rest):
        print(parser.format_help())
        return rest
    _set_compilation_cache(shared.compilation_cache, not shared.no_compilation_cache)
    try:
        parallel.initialize(shared.coordinator, shared.processes, shared.process)
    except ValueError as error:
        _refuse(f"--{error}")
    return rest


def _set_compilation_cache(folder: pathlib.Path | None, wanted: bool) -> None:
    """Turns JAX's cache of compiled programs on or off."""
    if not wanted and folder is not None:
        _refuse(f"--compilation-cache {folder} and --no-compilation-cache; one of them")
    wanted = wanted and jax.config.jax_enable_compilation_cache
    folder = folder or jax.config.jax_compilation_cache_dir or CACHE
    folder = pathlib.Path(folder).expanduser()
    try:
        if wanted:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logging.getLogger("jaxdet").warning(
            "compiled programs are not kept: --compilation-cache %s (%s)", folder, error
        )
        wanted = False
    jax.config.update("jax_compilation_cache_dir", str(folder) if wanted else None)


def _refuse(message: str) -> NoReturn:
    raise ConfigError(message) from None


def _exit(code: int, message: str = "") -> NoReturn:
    """Ends this process; one of several hosts ends without waiting for the others.

    Python's own exit would wait for them, and they, in the next step, for this one.
    When it is gone, JAX ends them too.
    """
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(message, end="\n" if message else "", file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        os._exit(code)
    raise SystemExit(code) from None
