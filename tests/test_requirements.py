"""What pip installs for requirements.txt."""

import json
import pathlib
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--retries", "1", "--timeout", "15"]


@pytest.mark.slow
@pytest.mark.optional
def test_versions_on_a_tpu_fit_together(tmp_path):
    index = [*PIP, "index", "versions", "jax"]
    if subprocess.run(index, capture_output=True).returncode:
        pytest.skip("needs pip and a package index")
    report = tmp_path / "report.json"
    command = [*PIP, "install", "--dry-run", "--ignore-installed", "--report", report]
    command += ["-r", "requirements.txt", "jax[tpu]"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    packages = [one["metadata"] for one in json.loads(report.read_text())["install"]]
    versions = {one["name"]: one["version"] for one in packages}
    print(versions)
    (jax,) = (one for one in packages if one["name"] == "jax")
    needed = [
        one
        for one in map(Requirement, jax["requires_dist"])
        if one.name in ("jaxlib", "libtpu")
        and (one.marker is None or one.marker.evaluate({"extra": "tpu"}))
    ]
    assert {one.name for one in needed} == {"jaxlib", "libtpu"}
    assert all(versions[one.name] in one.specifier for one in needed)
    assert versions["jaxlib"] == versions["jax"]
