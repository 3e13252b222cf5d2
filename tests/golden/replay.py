"""Rebuilds a golden file's torchvision-layout state dict with NumPy alone."""

import json
import pathlib
import zlib

import numpy as np


def drawn_tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """N(0, 2 / fan_in) from NumPy's frozen legacy stream, keyed by the name."""
    stream = np.random.RandomState((zlib.crc32(name.encode()) + seed) & 0xFFFFFFFF)
    fan_in = int(np.prod(shape[1:]))
    return (stream.standard_normal(shape) * np.sqrt(2.0 / fan_in)).astype(np.float32)


def load(
    path, part: str = ""
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict]:
    """`MODEL_sSEED.npz` -> (state dict, golden arrays, the json beside it).

    Only the tensors whose names start with `part` are drawn.
    """
    path = pathlib.Path(path)
    about = json.loads(path.with_suffix(".json").read_text())
    arrays = dict(np.load(path))
    state = {}
    for name, weight in about["weights"].items():
        if not name.startswith(part):
            continue
        if "scale" in weight:
            drawn = drawn_tensor(name, tuple(weight["shape"]), about["seed"])
            state[name] = drawn * np.float32(weight["scale"])
        else:
            state[name] = arrays.pop("param/" + name)
    return state, arrays, about
