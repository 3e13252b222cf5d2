"""Settings and fixtures for every test."""

import os
import pathlib

if "PYTEST_XDIST_WORKER" not in os.environ:  # once: workers inherit it
    from tests import environment

    HOME = environment.isolate()  # as long as this is referred to
    environment.set_xla_flags()
# What is run once or twice takes less time without optimizations.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What a test compiles is nobody else's.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import jax
import jaxtyping
import numpy as np
import pytest
from beartype import BeartypeConf, beartype

jax.config.update("jax_numpy_rank_promotion", "raise")
# Before jaxdet is imported: every call of an op is checked against its annotations.
typecheck = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float
jaxtyping.Array = jax.Array | np.ndarray  # outside of jit one is as good as the other
jaxtyping.install_import_hook("jaxdet.ops", f"{__name__}.typecheck")

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=[lambda f: f, jax.jit], ids=["eager", "jit"])
def transform(request):
    return request.param


@pytest.fixture
def optimized():
    """With optimizations: a training of many steps is worth a longer compilation."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def golden_ops():
    """What torchvision's operators compute, by name."""
    return dict(np.load(GOLDEN / "ops.npz"))


@pytest.fixture(scope="session")
def golden_ssd():
    """What torchvision's `ssd300_vgg16` computes for two images, by name."""
    return dict(np.load(GOLDEN / "ssd300_vgg16_s0.npz"))


@pytest.fixture(scope="session")
def data_folder():
    """The folder of real data sets; tests that need it are skipped without it."""
    if not (folder := os.environ.get("JAXDET_DATA")):
        pytest.skip("needs real data sets; set JAXDET_DATA to their folder")
    if not pathlib.Path(folder).is_dir():
        pytest.skip(f"no real data at JAXDET_DATA={folder}")
    return pathlib.Path(folder)
