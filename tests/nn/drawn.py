"""Variables for modules under test, drawn in NumPy: no compilation."""

import math

import jax
import numpy as np


def variables(rng: np.random.Generator, module, *arguments) -> dict:
    """Kernels that keep activations in range; all else, norms too, in [0.1, 1.1)."""

    def draw(leaf):
        if leaf.ndim > 1:
            spread = math.sqrt(2 / math.prod(leaf.shape[:-1]))
            return rng.normal(0, spread, leaf.shape).astype(np.float32)
        return rng.uniform(0.1, 1.1, leaf.shape).astype(np.float32)

    shapes = jax.eval_shape(module.init, jax.random.key(0), *arguments)
    return jax.tree.map(draw, shapes)
