"""How the benchmarks measure: calls in turns, gradients, boxes to work on."""

import statistics
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np


def medians(calls: Sequence[Callable], repeats: int) -> list[float]:
    """Milliseconds of each; they take turns, so that a busy machine is fair to all.

    Args:
      calls: each is made once more, at first, to be compiled.
      repeats: how often each is timed.
    """
    durations = [[] for _ in calls]
    for _ in range(repeats + 1):
        for call, taken in zip(calls, durations, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call())
            taken.append(1000 * (time.perf_counter() - start))
    return [statistics.median(taken[1:]) for taken in durations]


def with_gradient(function: Callable, first, *others):
    """A call and the gradient of half its sum of squares by its first argument.

    So the answer is its own incoming gradient: data, where ones would be a constant,
    and XLA may compute in advance what is made of constants.

    Args:
      function: of arrays, to a tree of arrays.
      first: the argument to differentiate by.
      *others: what the function takes besides.

    Returns:
      The function's answer, and a gradient of the shape of `first`.
    """
    value, pull = jax.vjp(lambda first: function(first, *others), first)
    (gradient,) = pull(value)
    return value, gradient


def random_boxes(
    rng: np.random.Generator, count: int, canvas: tuple[int, int]
) -> np.ndarray:
    """Boxes of a detector's shapes, within the canvas, `[count, 4]` float32.

    Args:
      rng: draws centres, sizes and shapes.
      count: how many.
      canvas: (height, width) in pixels.
    """
    limits = np.array(canvas[::-1])
    centres = rng.uniform(0, limits, (count, 2))
    sides = np.exp(rng.uniform(np.log(16), np.log(limits.min()), (count, 1)))
    sides = sides * np.exp(rng.uniform(-0.7, 0.7, (count, 2)))
    corners = np.stack([centres - sides / 2, centres + sides / 2], axis=1)
    return np.clip(corners, 0, limits).reshape(count, 4).astype(np.float32)
