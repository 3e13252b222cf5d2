"""What each kind of error costs (TIDE, Bolya et al. 2020)."""

from typing import NamedTuple

import numpy as np

from jaxdet.evaluation.matches import IOU, Matches

BACKGROUND_IOU = 0.1
"""Below it, a detection has nothing to do with an object."""
ERRORS = (
    "classification",
    "localization",
    "both",
    "duplicate",
    "background",
    "missed",
)
_RECALLS = np.linspace(0, 1, 101)


class ErrorCost(NamedTuple):
    """How often an error is made, and what it costs."""

    count: int  # type: ignore[assignment]  # tuples' own is not needed
    dap50: float  # AP50 without these errors, less AP50; in [0, 1]


def tide_errors(matches: Matches) -> dict[str, ErrorCost]:
    """Counts errors by their kind, and measures the AP50 that each kind costs.

    Each false positive is of the first kind that applies (2.2):

    - localization: its IoU with an object of its class is in [0.1, 0.5];
    - classification: its IoU with an object of another class is 0.5 or more;
    - duplicate: its IoU with an object of its class that has a better detection is 0.5
      or more;
    - background: its IoU with every object is at most 0.1;
    - both: what remains, a wrong class and a wrong place.

    An object is missed if it is neither found nor within reach of an error of
    classification or localization. The cost of a kind is measured alone, with an oracle
    (2.3): the best detection of those that are wrong about an object not found becomes
    right, and others of this kind go; missed objects are no longer counted. Detections
    that COCO ignores in crowds are no errors.

    Args:
      matches: of detections and objects.

    Returns:
      The cost of each of `ERRORS`, and of all `false positives` (with every one of them
      scored 0) and all `false negatives` (with no object unfound).
    """
    kinds = classify_errors(matches)
    targets, fixed_labels = _targets(matches, kinds)
    found = matches.found_at(-np.inf)
    within_reach = np.zeros(len(found), bool)
    within_reach[targets[targets >= 0]] = True
    unfound = ~found & ~matches.crowd
    missed = unfound & ~within_reach
    counted = (kinds == "true positive") | np.isin(kinds, ERRORS)
    true = kinds == "true positive"
    base = _mean_ap(matches, counted, true)
    best = _best_of_each(targets, matches.score)
    costs = {}
    for kind in ERRORS[:-1]:
        of_kind = kinds == kind
        becomes_true = of_kind & best
        ap = _mean_ap(
            matches,
            counted & (~of_kind | becomes_true),
            true | becomes_true,
            labels=np.where(of_kind, fixed_labels, matches.label),
        )
        costs[kind] = ErrorCost(int(of_kind.sum()), max(ap - base, 0.0))
    for kind, gone in (("missed", missed), ("false negatives", unfound)):
        ap = _mean_ap(matches, counted, true, gone=gone)
        costs[kind] = ErrorCost(int(gone.sum()), max(ap - base, 0.0))
    ap = _mean_ap(matches, counted & true, true)
    false = ErrorCost(int((counted & ~true).sum()), max(ap - base, 0.0))
    order = (*ERRORS, "false positives", "false negatives")
    return {kind: {**costs, "false positives": false}[kind] for kind in order}


def classify_errors(matches: Matches) -> np.ndarray:
    """Names the kind of each detection.

    Args:
      matches: of detections and objects.

    Returns:
      `[D]` of `ERRORS` without "missed", "true positive", or "ignored" in a crowd.
    """
    found = matches.found_at(-np.inf)
    same, other = matches.same_iou, matches.other_iou
    # At an IoU of 0.5 or more, an object of the class has a better detection, or else
    # it would be matched.
    duplicate = (same >= IOU) & np.append(found, False)[matches.same_class]
    conditions = {
        "true positive": matches.matched >= 0,
        "ignored": matches.ignored,
        "localization": (same >= BACKGROUND_IOU) & (same <= IOU),
        "classification": other >= IOU,
        "duplicate": duplicate,
        "background": np.maximum(same, other) <= BACKGROUND_IOU,
    }
    return np.select(list(conditions.values()), list(conditions), "both")


def _targets(matches: Matches, kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which object each detection could have found, if it were mended.

    Returns:
      `[D]` objects, -1 where there is none, or it is found already; and `[D]` labels
      that are right.
    """
    targets, labels = np.full(len(kinds), -1), matches.label.copy()
    localization, wrong_class = kinds == "localization", kinds == "classification"
    targets[localization] = matches.same_class[localization]
    targets[wrong_class] = matches.other_class[wrong_class]
    labels[wrong_class] = matches.object_label[targets[wrong_class]]
    targets[np.append(matches.found_at(-np.inf), True)[targets]] = -1
    return targets, labels


def _best_of_each(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Marks the best detection of each target, of whatever kind; `[D]` bool."""
    rows = np.flatnonzero(targets >= 0)
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    _, first = np.unique(targets[rows], return_index=True)
    best = np.zeros(len(targets), bool)
    best[rows[first]] = True
    return best


def _mean_ap(
    matches: Matches,
    counted: np.ndarray,
    true: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    gone: np.ndarray | None = None,
) -> float:
    """Returns the mean AP50 of the classes that have objects.

    Args:
      matches: of detections and objects.
      counted: `[D]` bool: detections that count.
      true: `[D]` bool: true positives.
      labels: `[D]`, if they are others.
      gone: `[N]` bool: objects that need not be found. A class of which none remains
        has an AP of 0 if it has detections, and leaves the mean if it has none.
    """
    labels = matches.label if labels is None else labels
    counts = matches.counts
    known = np.flatnonzero(counts)
    if gone is not None:
        removed = matches.object_label[gone & ~matches.crowd]
        counts = counts - np.bincount(removed, minlength=len(counts))
    rows = np.flatnonzero(counted)
    rows = rows[np.lexsort((-matches.score[rows], labels[rows]))]
    starts, ends = (np.searchsorted(labels[rows], known, s) for s in ("left", "right"))
    parts = zip(known, starts, ends, strict=True)
    values = [
        average_precision(true[rows[start:end]], counts[k])
        for k, start, end in parts
        if counts[k] or start < end
    ]
    return float(np.mean(values)) if values else 0.0


def average_precision(true: np.ndarray, count: int) -> float:
    """Returns the mean precision at the recalls 0, 0.01, ..., 1, as COCOeval's.

    Args:
      true: `[D]` bool, best score first.
      count: how many objects have to be found; 0: the result is 0.
    """
    if not count:
        return 0.0
    positives = np.cumsum(true)
    precision = positives / np.arange(1, len(true) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(positives / count, _RECALLS)
    return float(np.append(best, np.zeros(1))[places].mean())
