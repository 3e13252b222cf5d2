import importlib.util

import jax
import numpy as np
import pytest

from jaxdet.training import distributed

STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
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
    distributed.join()
    distributed.join(processes=1)
    assert not joined
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "libtpu")
    distributed.join()  # asks the TPU, of which there is none
    assert joined == [((), {})]


def test_flags_ask_nobody_else(joined, monkeypatch):
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    distributed.join("first:1234", 2, 1)
    alone = {"cluster_detection_method": "deactivate"}
    assert joined == [(("first:1234", 2, 1), alone)]


def test_slurm_is_asked_in_a_step_of_several_tasks(joined, monkeypatch):
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    distributed.join()
    assert joined == [((), {"cluster_detection_method": "slurm"})]
    monkeypatch.setenv("SLURM_NTASKS", "1")
    distributed.join()
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.delenv("SLURM_STEP_NODELIST")  # the batch script around the steps
    distributed.join()
    assert len(joined) == 1


@pytest.mark.parametrize(
    "arguments",
    [("first:1234",), ("first:1234", 2), (None, 2, 0), ("first:1", 2, 2)],
)
def test_arguments_that_are_not_enough_are_named(joined, arguments):
    with pytest.raises(ValueError, match=f"coordinator {arguments[0]}, .* all three"):
        distributed.join(*arguments)
    assert not joined


def test_one_host_has_what_it_has():
    value = {"any": np.arange(3)}
    assert distributed.gather(value) == [value]
    assert distributed.from_first(value) is value
