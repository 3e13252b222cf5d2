"""One run on several processes, several devices, or one: law 4, and how they end."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.training import host

ROOT = pathlib.Path(__file__).parents[2]
DETECTORS = ("toy", "retinanet", "faster_rcnn")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def start(*arguments, devices, log, **environment):
    """A process of so many virtual devices; what it says goes to a file."""
    flags = re.sub(r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"])
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.training.host", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": flags, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def start_two(folder, *arguments, slurm=False):
    """Two hosts of two devices each, by flags or as SLURM would start them."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    for index in (0, 1):
        if slurm:
            join, environment = (), slurm_step(port, index)
        else:
            where = f"127.0.0.1:{port}"
            join = ("--coordinator", where, "--processes", 2, "--process", index)
            environment = {}
        log = folder / f"log{index}.txt"
        yield start(folder, *arguments, *join, devices=2, log=log, **environment)


def free_port():
    """One of those from which JAX takes SLURM's, by the number of the job."""
    for port in range(61_440, 65_536):
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


def slurm_step(port, index):
    return {
        "SLURM_JOB_ID": str(port - 61_440),
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
    }


def ended(processes, folder):
    """Their exit codes."""
    codes = [process.wait(timeout=400) for process in processes]
    logs = [path.read_text()[-2000:] for path in sorted(folder.glob("log*.txt"))]
    return codes, "\n".join(logs)


def wait_for(words, log, processes):
    while words not in log.read_text():
        assert all(process.poll() is None for process in processes), log.read_text()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of each: two hosts, and one with four, two and one devices."""
    folder = tmp_path_factory.mktemp("runs")
    hosts = folder / "hosts"
    codes, logs = ended(list(start_two(hosts, *DETECTORS, "slow")), hosts)
    assert codes == [0, 0], logs
    for devices in (1, 2):
        alone = folder / str(devices)
        alone.mkdir()
        log = alone / "log.txt"
        process = start(alone, *DETECTORS[1:], devices=devices, log=log)
        codes, logs = ended([process], alone)
        assert codes == [0], logs
    host.main(folder / "4", DETECTORS)
    return folder


def arrays(folder, name):
    return dict(np.load(folder / name / "state.npz"))


@pytest.mark.parametrize("name", DETECTORS)
def test_hosts_end_with_the_same_bits(runs, name):
    first, second = (arrays(runs / "hosts" / i, name) for i in "01")
    assert first.keys() == second.keys()
    assert all(first[path].tobytes() == second[path].tobytes() for path in first)


@pytest.mark.parametrize(
    ("name", "other"),
    [(name, other) for name in DETECTORS[1:] for other in "124"] + [("toy", "4")],
)
def test_any_number_of_hosts_and_devices_makes_the_same_run(runs, name, other):
    # Not the same bits: between hosts, and on fewer devices, gradients are added up
    # in another order.
    hosts, one = arrays(runs / "hosts/0", name), arrays(runs / other / "0", name)
    assert hosts.keys() == one.keys()
    for path, expected in one.items():
        largest = np.max(np.abs(expected), initial=0)
        np.testing.assert_allclose(
            hosts[path], expected, rtol=0, atol=3e-6 * largest, err_msg=path
        )


def test_every_image_is_evaluated_once_and_all_hosts_know_it(runs):
    first, second, alone = (
        json.loads((runs / folder / "toy/found.json").read_text())
        for folder in ("hosts/0", "hosts/1", "4/0")
    )
    assert first == second
    for results in (first, alone):
        assert [found["image_id"] for found in results] == [0, 1, 2, 3, 4]
    for one, other in zip(first, alone, strict=True):
        np.testing.assert_allclose(one["bbox"], other["bbox"], rtol=1e-5)


def test_only_the_first_host_writes(runs):
    written = {path.name for path in (runs / "hosts/0/toy").iterdir()}
    assert {"config.json", "checkpoints", "log.txt"} <= written
    others = {path.name for path in (runs / "hosts/1/toy").iterdir()}
    assert others == {"state.npz", "found.json"}  # the test's own


def test_all_hosts_stop_after_the_same_step_and_go_on(runs, tmp_path):
    log, first, second = tmp_path / "log0.txt", tmp_path / "0", tmp_path / "1"
    processes = list(start_two(tmp_path, "slow", slurm=True))
    wait_for("step 10/", log, processes)
    processes[1].send_signal(signal.SIGTERM)
    codes, logs = ended(processes, tmp_path)
    assert codes == [143, 143], logs
    (step,) = re.findall(r"goes on after step (\d+)", log.read_text())
    assert 10 <= int(step) < host.SLOW_STEPS
    saved = {path.name for path in (first / "slow/checkpoints").iterdir()}
    assert step in saved
    codes, logs = ended(list(start_two(tmp_path, "slow", slurm=True)), tmp_path)
    assert codes == [0, 0], logs
    assert f"steps {step} to" in log.read_text()
    expected = arrays(runs / "hosts/0", "slow")
    for folder in (first, second):
        actual = arrays(folder, "slow")
        same = [actual[path].tobytes() == expected[path].tobytes() for path in actual]
        assert all(same)


def test_a_host_that_fails_ends_the_others(tmp_path):
    processes = list(start_two(tmp_path, "slow", "--broken", 1))
    codes, logs = ended(processes, tmp_path)
    assert codes[1] == 1 and codes[0] != 0, logs
    assert "error: the disk is gone" in (tmp_path / "log1.txt").read_text()
