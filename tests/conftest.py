"""Settings and fixtures for every test."""

import os
import pathlib

# Before jax is imported. Laws about devices need several of them; and what is run once
# or twice is compiled in two thirds of the time without LLVM's optimisations.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=[lambda f: f, jax.jit], ids=["eager", "jit"])
def transform(request):
    return request.param


@pytest.fixture(scope="session")
def golden_ops():
    """What torchvision's operators compute, by name."""
    return dict(np.load(GOLDEN / "ops.npz"))


@pytest.fixture(scope="session")
def golden_ssd():
    """Default boxes, objects and matches of torchvision's SSD300, by name."""
    return dict(np.load(GOLDEN / "ssd300_vgg16_s0_stages.npz"))


@pytest.fixture(scope="session")
def data_folder():
    """The folder of real data sets; tests that need it are skipped without it."""
    default = pathlib.Path(__file__).parents[2] / "shared" / "datasets"
    folder = pathlib.Path(os.environ.get("JAXDET_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set JAXDET_DATA")
    return folder
