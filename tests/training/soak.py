"""Kills a run twenty times, and leaves one alone: python -m tests.training.soak FOLDER

It forks before JAX has started any thread, so that only one process imports everything.
"""

import dataclasses
import itertools
import os
import pathlib
import random
import signal
import sys
import threading

from jaxdet.training import evaluator, train
from jaxdet.training.checkpoint import Checkpoints
from jaxdet.training.log import Log
from tests.training import toy

STEPS, KILLS = 450, 20
SECONDS = {  # that each moment lasts, about
    "startup": 1.0,
    "step": 0.01,
    "writing": 0.05,
    "evaluation": 0.1,
    "pictures": 0.02,
}
OCCURRENCES = {"startup": 1, "step": 50, "writing": 4, "evaluation": 2, "pictures": 2}


def run(workdir, killed_in=None, *, occurrence=0, delay=0.0):
    """Trains the toy; after so many seconds of such a moment, the process is killed."""
    count = itertools.count()

    def kill():
        with (workdir / "kills.txt").open("a") as file:
            file.write(f"{killed_in}\n")
        os.kill(os.getpid(), signal.SIGKILL)

    def marked(moment, function):
        def call(*arguments, **options):
            if moment == killed_in and next(count) == occurrence:
                threading.Timer(delay, kill).start()
            return function(*arguments, **options)

        return call

    train.check_run = marked("startup", train.check_run)
    evaluator.evaluate = marked("evaluation", evaluator.evaluate)
    Checkpoints.save = marked("writing", Checkpoints.save)
    Log.pictures = marked("pictures", Log.pictures)
    Log.advance = marked("step", Log.advance)
    inputs = dataclasses.replace(toy.config().input, workers=2)
    config = toy.config(
        steps=STEPS,
        log_every=10,
        checkpoint_every=7,
        evaluate_every=30,
        pictures=1,
        input=inputs,
    )
    held_out = toy.data_set(6)
    train.train(toy.toy(), toy.data_set(), config, workdir=workdir, validation=held_out)


def fork(*arguments, **options):
    """Runs `run` in a process of its own; returns how it ended."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        run(*arguments, **options)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(1)
    os._exit(0)


def main(folder):
    """Makes both runs."""
    chance = random.Random(0)
    broken, whole = folder / "broken", folder / "whole"
    broken.mkdir()
    assert fork(whole) == 0
    kills = [*SECONDS] * (KILLS // len(SECONDS))
    chance.shuffle(kills)
    for moment in kills:
        occurrence = chance.randrange(OCCURRENCES[moment])
        delay = chance.uniform(0, SECONDS[moment])
        code = fork(broken, moment, occurrence=occurrence, delay=delay)
        assert code == -signal.SIGKILL, f"{moment} {occurrence}: it ended by itself"
    assert fork(broken) == 0


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
