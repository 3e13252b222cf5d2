"""Precision, recall and F1 of detections above a score."""

from typing import NamedTuple

import numpy as np

GRID = np.linspace(0, 1, 101)
"""Scores at which curves are drawn."""


class BestF1(NamedTuple):
    """The minimum score at which F1 is highest, and what detections above it reach."""

    min_score: float
    f1: float
    precision: float
    recall: float


def precision_recall_f1(
    scores: np.ndarray, true: np.ndarray, count: int, min_scores: np.ndarray
) -> np.ndarray:
    """Returns precision, recall and F1 of the detections of a minimum score or more.

    Args:
      scores: `[D]`, in any order.
      true: `[D]` bool: true positives; all others are false ones.
      count: how many objects have to be found.
      min_scores: `[T]`.

    Returns:
      `[3, T]` float64 in [0, 1]; NaN for the precision without detections, and for
      recall and F1 without objects.
    """
    order = np.argsort(scores, kind="stable")
    kept = len(scores) - np.searchsorted(scores[order], min_scores)
    from_top = np.cumsum(np.append(0, true[order][::-1]))
    positives = from_top[kept]
    with np.errstate(invalid="ignore"):
        precision = np.where(kept > 0, positives / np.maximum(kept, 1), np.nan)
        recall = positives / count if count else np.full(len(kept), np.nan)
        f1 = 2 * positives / (kept + count) if count else np.full(len(kept), np.nan)
    return np.stack([precision, recall, f1])


def best_f1(scores: np.ndarray, true: np.ndarray, count: int) -> BestF1 | None:
    """Finds the minimum score of the highest F1.

    The minimum lies halfway to the next lower score, so that no rounding of a score
    decides; of several as good, it is the highest.

    Args:
      scores: `[D]` in [0, 1], in any order.
      true: `[D]` bool: true positives; all others are false ones.
      count: how many objects have to be found.

    Returns:
      None without objects, or if no detection is true.
    """
    if not count or not true.any():
        return None
    levels = np.unique(scores)[::-1]
    precision, recall, f1 = precision_recall_f1(scores, true, count, levels)
    best = int(np.argmax(f1))
    lower = np.append(levels, 0.0)[best + 1]
    values = (levels[best] + lower) / 2, f1[best], precision[best], recall[best]
    return BestF1(*map(float, values))


def histogram(scores: np.ndarray, true: np.ndarray, bins: int = 20) -> np.ndarray:
    """Counts true and false positives by score.

    Args:
      scores: `[D]` in [0, 1].
      true: `[D]` bool: true positives; all others are false ones.
      bins: of equal width, from 0 to 1.

    Returns:
      `[2, bins]` int: true and false positives.
    """
    parts = (scores[true], scores[~true])
    return np.stack([np.histogram(part, bins, (0, 1))[0] for part in parts])
