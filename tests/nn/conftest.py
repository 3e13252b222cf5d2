"""Fixtures for tests of layers."""

import jax
import pytest

from jaxdet.nn import convolution


@pytest.fixture(params=["cpu", "cuda", "tpu"])
def platform(request, monkeypatch):
    """Computes as on each platform; all of them can be on CPUs."""

    def choose(*arguments, default, **branches):
        return branches.get(request.param, default)(*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", choose)
    convolution._convolve_1x1.clear_cache()
    yield request.param
    convolution._convolve_1x1.clear_cache()
