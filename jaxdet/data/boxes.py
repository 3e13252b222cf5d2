"""Computes overlaps of boxes in NumPy; `jaxdet.ops.boxes` does so on devices."""

import numpy as np


def pairwise_intersection(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """Computes the area that every box of one set shares with every box of another.

    `[M, 4]` and `[N, 4]` (x1, y1, x2, y2) -> `[M, N]`.
    """
    top_left = np.maximum(boxes_a[:, None, :2], boxes_b[None, :, :2])
    bottom_right = np.minimum(boxes_a[:, None, 2:], boxes_b[None, :, 2:])
    return (bottom_right - top_left).clip(0).prod(axis=-1)


def pairwise_iou(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """Computes intersection over union of boxes with area.

    `[M, 4]` and `[N, 4]` (x1, y1, x2, y2) -> `[M, N]` in [0, 1].
    """
    overlap = pairwise_intersection(boxes_a, boxes_b)
    area_a, area_b = (
        (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1) for boxes in (boxes_a, boxes_b)
    )
    return overlap / (area_a[:, None] + area_b - overlap)
