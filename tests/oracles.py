"""What the operators should compute, in plain NumPy, slowly, in the obvious way."""

import numpy as np


def area(box):
    x1, y1, x2, y2 = box
    return max(x2 - x1, 0) * max(y2 - y1, 0)


def overlap(a, b):
    top_left, bottom_right = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    return area((*top_left, *bottom_right))


def iou(a, b):
    """Of two boxes, in the precision they come in."""
    shared = overlap(a, b)
    union = area(a) + area(b) - shared
    return shared / union if union > 0 else 0.0


def giou(a, b):
    """Rezatofighi et al. 2019, algorithm 1; of two boxes."""
    hull = area((*np.minimum(a[:2], b[:2]), *np.maximum(a[2:], b[2:])))
    union = area(a) + area(b) - overlap(a, b)
    return iou(a, b) - ((hull - union) / hull if hull > 0 else 0.0)


def pairwise(measure, boxes_a, boxes_b):
    return np.array([[measure(a, b) for b in boxes_b] for a in boxes_a])


def greedy_nms(boxes, scores, threshold, *, labels=None, valid=None):
    """Indices of the boxes that stay, best first, one decision at a time."""
    stay = []
    for i in np.argsort(-scores, kind="stable"):
        if np.isnan(scores[i]) or (valid is not None and not valid[i]):
            continue
        rivals = [j for j in stay if labels is None or labels[i] == labels[j]]
        if all(iou(boxes[i], boxes[j]) <= threshold for j in rivals):
            stay.append(i)
    return stay


def box_voting(boxes, scores, labels, keep, threshold, *, valid):
    """The boxes that stay, each the mean of those of its class that overlap it."""
    voted = []
    for i in keep:
        heard = [
            j
            for j in range(len(boxes))
            if valid[j]
            and labels[j] == labels[i]
            and iou(boxes[i], boxes[j]) >= threshold
        ]
        weights = np.maximum(scores[heard], 0).astype(np.float64)
        some = weights.sum() > 0
        voted.append(np.average(boxes[heard], 0, weights) if some else boxes[i])
    return np.array(voted)


def match(
    anchors, boxes, valid, *, negative_iou, positive_iou, allow_low_quality_matches=True
):
    """For each anchor the object it answers for, -1 if none, -2 if it is ignored."""
    objects = np.flatnonzero(valid)
    answers = np.full(len(anchors), -1)
    if len(objects) == 0:
        return answers
    table = pairwise(iou, anchors, boxes[objects])
    for i, row in enumerate(table):
        forced = allow_low_quality_matches and any(
            row[j] > 0 and row[j] == table[:, j].max() for j in range(len(objects))
        )
        if row.max() >= positive_iou or forced:
            answers[i] = objects[row.argmax()]
        elif row.max() >= negative_iou:
            answers[i] = -2
    return answers


def match_default_boxes(anchors, boxes, valid, *, positive_iou):
    """For each anchor: the index of its object, or -1 for background."""
    answers = match(
        anchors,
        boxes,
        valid,
        negative_iou=positive_iou,
        positive_iou=positive_iou,
        allow_low_quality_matches=False,
    )
    claims = {}
    for i, box in enumerate(boxes):
        overlaps = [iou(anchor, box) for anchor in anchors]
        best = int(np.argmax(overlaps))
        if valid[i] and overlaps[best] > claims.get(best, (0.0, None))[0]:
            claims[best] = overlaps[best], i
    for place, (_, i) in claims.items():
        answers[place] = i
    return answers


def focal_loss(logits, targets, *, alpha, gamma):
    """Lin et al. 2017, equation 5, for targets 0 and 1, in float64."""
    margin = np.where(targets == 1, logits, -logits).astype(np.float64)
    right = 1 / (1 + np.exp(-margin))
    wrong = 1 / (1 + np.exp(margin))
    weight = np.where(targets == 1, alpha, 1 - alpha)
    return weight * wrong**gamma * -np.log(right)


def match_points(
    points, boxes, valid, *, regression_ranges, inclusive, center_radius=None
):
    """For each point the smallest object it lies in and is in charge of, or -1."""
    answers = []
    for i, (x, y) in enumerate(points):
        low, high = regression_ranges[i]
        smallest, answer = np.inf, -1
        for j in np.flatnonzero(valid):
            x1, y1, x2, y2 = boxes[j]
            farthest = max(x - x1, y - y1, x2 - x, y2 - y)
            in_charge = low < farthest < high
            if inclusive:
                in_charge = low <= farthest <= high
            central = center_radius is None or (
                max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) < center_radius[i]
            )
            inside = x1 < x < x2 and y1 < y < y2
            if inside and central and in_charge and area(boxes[j]) < smallest:
                smallest, answer = area(boxes[j]), j
        answers.append(answer)
    return np.array(answers)
