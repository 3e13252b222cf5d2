"""The confusion matrix of a detector, with a row and a column for the background."""

import numpy as np

from jaxdet.evaluation.matches import Matches


def confusion_matrix(matches: Matches, min_score: float) -> np.ndarray:
    """Counts which class each object was taken for.

    The detections of this score or more, best first, are each matched to the remaining
    object, of whatever class, that they overlap most, if the IoU is 0.5 or more. Those
    left over within a crowd of their class are not counted.

    Args:
      matches: of detections and objects.
      min_score: detections that score lower are left out.

    Returns:
      `[K + 1, K + 1]` int: rows are true classes, columns detected ones. The last
      column counts missed objects, the last row detections without an object.
    """
    background = len(matches.class_names)
    matched = matches.matched_any
    kept = (matches.score >= min_score) & ((matched >= 0) | ~matches.in_crowd)
    has_object, matched, label = matched[kept] >= 0, matched[kept], matches.label[kept]
    missed = ~matches.crowd
    missed[matched[has_object]] = False
    truth = np.append(matches.object_label, background)[matched]  # -1: the last
    missed = matches.object_label[missed]
    rows = np.concatenate([truth, missed])
    columns = np.concatenate([label, np.full(len(missed), background)])
    size = background + 1
    return np.bincount(rows * size + columns, minlength=size**2).reshape(size, size)
