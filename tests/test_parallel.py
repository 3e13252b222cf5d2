import importlib.util
import os

import jax
import numpy as np
import pytest

from jaxdet import parallel
from jaxdet.training.config import ConfigError

STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


@pytest.fixture
def joined(monkeypatch):
    """What `jax.distributed.initialize` is called with; no cluster is there."""
    calls = []

    def initialize(*arguments, **options):
        calls.append((arguments, options))
        if not arguments and not options:
            raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    for name in STEP:
        monkeypatch.delenv(name, raising=False)
    return calls


def test_a_process_without_others_stays_alone(joined, monkeypatch):
    parallel.join()
    parallel.join(processes=1)
    assert not joined
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "libtpu")
    parallel.join()  # asks the TPU, of which there is none
    assert joined == [((), {})]


def test_flags_ask_nobody_else(joined, monkeypatch):
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    parallel.join("first:1234", 2, 1)
    alone = {"cluster_detection_method": "deactivate"}
    assert joined == [(("first:1234", 2, 1), alone)]


def test_slurm_is_asked_in_a_step_of_several_tasks(joined, monkeypatch):
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    parallel.join()
    assert joined == [((), {"cluster_detection_method": "slurm"})]
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    parallel.join()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.delenv("SLURM_STEP_NODELIST")  # the batch script around the steps
    parallel.join()
    assert len(joined) == 1


@pytest.mark.parametrize(
    ("of_the_step", "of_the_job", "together"),
    [
        ("2", "8", "2"),
        ("2", None, "2"),
        (None, "2", "2"),
        ("1", "8", None),
        (None, None, None),
    ],
)
def test_the_tasks_of_the_step_count(
    joined, monkeypatch, of_the_step, of_the_job, together
):
    given = {"SLURM_STEP_NUM_TASKS": of_the_step, "SLURM_NTASKS": of_the_job}
    for name, value in {**STEP, **given}.items():
        monkeypatch.setenv(name, value or "")
        if value is None:
            monkeypatch.delenv(name)
    parallel.join()
    assert bool(joined) == bool(together)
    if together:
        assert os.environ["SLURM_NTASKS"] == together  # which JAX reads


@pytest.mark.parametrize(
    "arguments",
    [("first:1234",), ("first:1234", 2), (None, 2, 0), ("first:1", 2, 2)],
)
def test_arguments_that_are_not_enough_are_named(joined, arguments):
    with pytest.raises(ValueError, match=f"coordinator {arguments[0]}, .* all three"):
        parallel.join(*arguments)
    assert not joined


def test_one_host_has_what_it_has():
    value = {"any": np.arange(3)}
    assert parallel.gather(value) == [value]
    assert parallel.from_first(value) is value


def test_hosts_that_differ_are_refused_by_name(monkeypatch):
    def fail():
        raise AssertionError("nobody is there to compare with")

    parallel.require_same(fail)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    changes = [{}, {}, {}]
    monkeypatch.setattr(
        parallel, "gather", lambda value: [value | more for more in changes]
    )
    parallel.require_same(lambda: {"seed": 1, "boxes": "ab"})
    changes[2] = {"boxes": "cd", "more": 3}
    with pytest.raises(ConfigError) as error:
        parallel.require_same(lambda: {"seed": 1, "boxes": "ab"})
    assert "boxes: 'ab' on host 0, 'cd' on host 2" in str(error.value)
    assert "more: 'absent' on host 0, 3 on host 2" in str(error.value)
    assert "seed" not in str(error.value) and "host 1" not in str(error.value)
