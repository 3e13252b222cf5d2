"""A run folder that is in use, deleted, replaced or changed during a run."""

import os
import re
import shutil
import socket
import time

import chex
import jax
import pytest

from jaxdet.training.lock import RunLock
from jaxdet.training.run_folder import RunError, load_run
from jaxdet.training.train import train
from tests.training import toy
from tests.training.test_survival import failing

CONFIG = toy.config(checkpoint_every=2)


def run(workdir, data):
    return jax.device_get(train(toy.toy(), data, CONFIG, workdir=workdir))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return run(tmp_path_factory.mktemp("unbroken"), toy.data_set())


def test_a_folder_in_use_is_refused_and_what_the_dead_have_left_is_not(tmp_path):
    (tmp_path / "lock").write_text("process 1 on another host\n")
    lock = RunLock(tmp_path)
    owner = rf"process {os.getpid()} on {re.escape(socket.gethostname())}"
    with pytest.raises(RunError, match=rf"in use by another training \({owner}\)"):
        run(tmp_path, toy.data_set())
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    lock.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["file", "file/run", "/sys/run"])
def test_what_cannot_be_a_folder_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=rf"{name} cannot be a run folder: .*\w"):
        run(tmp_path / name, toy.data_set())


def wait_for_checkpoint(workdir):
    while not (workdir / "checkpoints" / "4").exists():
        time.sleep(0.01)


def delete(workdir):
    shutil.rmtree(workdir, ignore_errors=True)


def replace(workdir):
    workdir.rename(workdir.with_name("old"))
    workdir.mkdir(exist_ok=True)  # what writes a checkpoint may be faster


def faulty(fault, workdir):
    """The data set; before step 6 `fault` is called once."""
    calls = []

    def call_once():
        if not calls:
            calls.append(fault(workdir))

    return failing(toy.data_set(), call_once, reads=4 * 6)


@pytest.mark.parametrize("fault", [delete, replace])
def test_the_state_is_saved_elsewhere_if_the_folder_is_gone(unbroken, tmp_path, fault):
    workdir, elsewhere = tmp_path / "run", tmp_path / "run-rescued-1"
    message = rf"{workdir} was deleted or replaced .*step 6 is saved in {elsewhere}, "
    with pytest.raises(RunError, match=message):
        run(workdir, faulty(fault, workdir))
    chex.assert_trees_all_equal(run(elsewhere, toy.data_set()), unbroken)
    assert "steps 6 to 8" in (elsewhere / "log.txt").read_text()


def test_a_state_that_cannot_be_saved_is_said_to_be_lost(tmp_path):
    workdir = tmp_path / "runs" / "one"

    def put_a_file_there(workdir):
        wait_for_checkpoint(workdir)
        shutil.rmtree(workdir.parent)
        workdir.parent.touch()

    with pytest.raises(RunError, match=r"step 6 is lost, .* cannot be saved in "):
        run(workdir, faulty(put_a_file_there, workdir))


def test_what_is_deleted_within_the_folder_is_written_again(unbroken, tmp_path, caplog):
    def delete_config_and_checkpoints(workdir):
        wait_for_checkpoint(workdir)
        (workdir / "config.json").unlink()
        shutil.rmtree(workdir / "checkpoints")

    state = run(tmp_path, faulty(delete_config_and_checkpoints, tmp_path))
    chex.assert_trees_all_equal(state, unbroken)
    assert load_run(tmp_path).training == CONFIG
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"6", "8"}
    assert "config.json has changed" in caplog.text
    chex.assert_trees_all_equal(run(tmp_path, toy.data_set()), unbroken)
