"""Times calls in turns for all benchmarks, and makes gradients and boxes."""

import statistics
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxdet.config import ConfigError


def medians(calls: Sequence[Callable], repeats: int) -> list[float]:
    """Times calls that take turns, so that a busy machine is fair to all of them.

    Args:
      calls: functions without arguments; each is called once more, before it is timed,
        to be compiled.
      repeats: how often each is timed, at least once.

    Returns:
      The median of each, in milliseconds.

    Raises:
      ConfigError: if `repeats` is below 1.
    """
    if repeats < 1:
        raise ConfigError(f"repeats is {repeats}; it must be at least 1")
    durations = [[] for _ in calls]
    for _ in range(repeats + 1):
        for call, taken in zip(calls, durations, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call())
            taken.append(1000 * (time.perf_counter() - start))
    return [statistics.median(taken[1:]) for taken in durations]


def with_gradient(function: Callable, first, *others):
    """Calls a function and differentiates half of the sum of its squared outputs.

    Then the incoming gradient is the output itself. It is data: were it a constant,
    XLA could compute parts of the gradient at compilation.

    Args:
      function: takes arrays, and returns a tree of arrays.
      first: the argument to differentiate by.
      *others: the other arguments.

    Returns:
      The output, and a gradient of the shape of `first`.
    """
    value, pull = jax.vjp(lambda first: function(first, *others), first)
    (gradient,) = pull(value)
    return value, gradient


def random_boxes(
    rng: np.random.Generator, count: int, canvas: tuple[int, int]
) -> np.ndarray:
    """Samples boxes of the sizes and shapes that detectors see, within the canvas.

    Args:
      rng: draws centers, sizes and shapes.
      count: how many.
      canvas: (height, width) in pixels.

    Returns:
      `[count, 4]` float32.
    """
    limits = np.array(canvas[::-1])
    centers = rng.uniform(0, limits, (count, 2))
    sides = np.exp(rng.uniform(np.log(16), np.log(limits.min()), (count, 1)))
    sides = sides * np.exp(rng.uniform(-0.7, 0.7, (count, 2)))
    corners = np.stack([centers - sides / 2, centers + sides / 2], axis=1)
    return np.clip(corners, 0, limits).reshape(count, 4).astype(np.float32)
