"""What the scripts share: their command line, and options that depend on the data."""

import argparse
import dataclasses
import errno
import functools
import logging
import os
import pathlib
import sys
import traceback
from collections.abc import Callable
from typing import Literal, NoReturn, TypeVar

import jax
import tyro

from jaxdet import parallel
from jaxdet.config import ConfigError
from jaxdet.data.dataset import DataError, DataSet
from jaxdet.data.formats import coco

# Networks, and what trains them, are imported where they are used: an exported detector
# runs without.

Config = TypeVar("Config")
Precision = Literal["float32", "bfloat16"]

CACHE = pathlib.Path("~/.cache/jaxdet/programs")  # of compiled programs
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def run(main: Callable | dict[str, Callable]) -> None:
    """Calls `main`, or that of the name that comes first, with the command line.

    With `--coordinator`, `--processes` and `--process`, on a TPU pod and in SLURM it is
    one of several processes that share the work. Compiled programs are kept in
    `--compilation-cache`, unless `--no-compilation-cache` is given.

    What a user can mend becomes one message and exit code 1 (2 where an argument cannot
    be parsed); Ctrl-C becomes exit code 130. Any other error keeps its traceback.
    """
    logger = logging.getLogger("jaxdet")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # libraries put handlers of their own on the root
    try:
        arguments = _take_shared_options(sys.argv[1:])
        if isinstance(main, dict):
            tyro.extras.subcommand_cli_from_dict(main, args=arguments)
        else:
            tyro.cli(main, args=arguments)
    except KeyboardInterrupt:
        _exit(130)  # training has said how to go on
    except Exception as error:
        if isinstance(error, _mendable()):
            _exit(1, f"error: {error}")
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            _exit(1, f"error: {error}; what was saved before is still there")
        if not jax.distributed.is_initialized():
            raise
        _exit(1, traceback.format_exc())


def _mendable() -> tuple[type[Exception], ...]:
    """What a user can do something about; modules that are not there raise nothing."""
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


def _take_shared_options(arguments: list[str]) -> list[str]:
    """Does what options that every script has ask for; what is left are main's."""
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, add_help=False, allow_abbrev=False
    )
    programs = parser.add_argument_group(
        "compiled programs",
        "they are kept, so that the next run starts without compiling them again",
    )
    programs.add_argument(
        "--compilation-cache",
        type=pathlib.Path,
        metavar="FOLDER",
        help=f"where (default: JAX_COMPILATION_CACHE_DIR, or {CACHE})",
    )
    programs.add_argument(
        "--no-compilation-cache", action="store_true", help="compile everything anew"
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
    _keep_programs(shared.compilation_cache, not shared.no_compilation_cache)
    try:
        parallel.initialize(shared.coordinator, shared.processes, shared.process)
    except ValueError as error:
        _refuse(f"--{error}")
    return rest


def _keep_programs(folder: pathlib.Path | None, wanted: bool) -> None:
    """Turns JAX's cache of compiled programs on, or off."""
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
    """Ends this process; of several at once, though they have not ended.

    Python's own exit would wait for them, and they, in the next step, for this one.
    When it is gone, JAX ends them too.
    """
    print(message, end="\n" if message else "", file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        os._exit(code)
    raise SystemExit(code) from None


def with_classes_of(
    data_set: DataSet, detector: Config, *, recipe: Config, option: str = "--detector"
) -> Config:
    """The detector with as many classes as the data.

    Args:
      data_set: what it is trained on.
      detector: a config with `num_classes`, or one of which a part has them.
      recipe: that of the script, where nobody has asked for anything.
      option: under which the detector's numbers are given.

    Raises:
      ConfigError: if it has neither the recipe's number of classes nor the data's: then
        somebody asked for another.
    """
    from jaxdet.detectors.mask_rcnn import MaskRCNNConfig

    if isinstance(detector, MaskRCNNConfig):
        boxes = with_classes_of(
            data_set,
            detector.faster_rcnn,
            recipe=recipe.faster_rcnn,
            option=f"{option}.faster-rcnn",
        )
        return dataclasses.replace(detector, faster_rcnn=boxes)
    count = len(data_set.class_names)
    if detector.num_classes not in (recipe.num_classes, count):
        _refuse(
            f"{option}.num-classes is {detector.num_classes}, but the data set "
            f"{data_set.name!r} has {count} classes; leave the option out, or give "
            f"{count}"
        )
    return dataclasses.replace(detector, num_classes=count)


def from_scratch(training: Config, *, recipe: Config) -> Config:
    """The training without pretrained weights, where nothing can be frozen.

    Raises:
      ConfigError: if somebody asked for other layers to be frozen than the recipe does.
    """
    if training.frozen not in ((), recipe.frozen):
        _refuse(
            f"--training.frozen {training.frozen} without pretrained weights; "
            "a network from scratch has nothing worth freezing: leave it out"
        )
    return dataclasses.replace(training, frozen=())


def at_most_one(sources: dict[str, object]) -> None:
    """Refuses a command that names several data sets.

    Args:
      sources: options and their values, None or empty where an option is not given.

    Raises:
      DataError: naming those given.
    """
    named = [f"{option} {value}" for option, value in sources.items() if value]
    if len(named) > 1:
        raise DataError(f"{' and '.join(named)}; one data set at a time: leave one out")


def only_with(option: str, value: object, needed: str, given: object) -> None:
    """Refuses an option that says nothing without another.

    Args:
      option: such as "--images".
      value: the option's; None where it is not given.
      needed: the other option.
      given: the other's value, or None.

    Raises:
      DataError: if `option` has a value and `needed` has none.
    """
    if value is not None and given is None:
        raise DataError(f"{option} {value} without {needed}; give both or neither")


def load_folders(
    training: tuple[pathlib.Path, pathlib.Path],
    validation: tuple[pathlib.Path | None, pathlib.Path | None],
    *,
    bad_boxes: Literal["error", "skip"],
    masks: bool = False,
) -> tuple[DataSet, DataSet | None]:
    """The data sets of the scripts for a folder of one's own.

    Args:
      training: a json in COCO's format, and the folder of its image files.
      validation: likewise, of None without one; by default in the same folder.
      bad_boxes: see `coco.load`.
      masks: see `coco.load`.

    Raises:
      DataError: for a folder to validate on without its json.
    """
    annotations, images = validation
    needed = "--validation-annotations"
    only_with("--validation-images", images, needed, annotations)
    load = functools.partial(coco.load, bad_boxes=bad_boxes, masks=masks)
    if annotations is None:
        return load(*training), None
    return load(*training), load(annotations, images or training[1])
