"""The public surface."""

import subprocess
import sys

import pytest

import jaxdet


def test_every_public_name_is_there():
    assert {*jaxdet.__all__} == {*jaxdet._MODULES} and len(jaxdet.__all__) <= 20
    for name in jaxdet.__all__:
        assert getattr(jaxdet, name).__name__ == name
    assert {*jaxdet.__all__} <= {*dir(jaxdet)}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jaxdet.nothing  # noqa: B018


def test_importing_the_package_imports_nothing_else():
    code = "import jaxdet, sys; assert not {'jax', 'numpy', 'flax'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
