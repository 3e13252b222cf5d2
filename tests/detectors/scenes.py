"""Batches of colored rectangles, drawn so that a tiny network can learn them."""

import numpy as np

from jaxdet.structs import Batch, GroundTruth, Regions

COLORS = np.array([[230, 40, 40], [40, 230, 40], [40, 40, 230]])
SIZES = ((64, 64), (48, 64), (64, 40), (56, 56))


def batch(
    seed=0, *, counts=(3, 1, 2, 0), canvas=(64, 64), slots=5, sizes=SIZES
) -> Batch:
    """As many images as `counts`, with so many rectangles each, label = color."""
    rng = np.random.default_rng(seed)
    images = np.zeros((len(counts), *canvas, 3), np.uint8)
    boxes = np.zeros((len(counts), slots, 4), np.float32)
    labels = np.zeros((len(counts), slots), np.int32)
    valid = np.arange(slots)[None] < np.array(counts)[:, None]
    for i, (height, width) in enumerate(sizes[: len(counts)]):
        image = images[i, :height, :width]  # a view: drawn on below
        image[:] = rng.integers(100, 140, image.shape)
        for j in range(counts[i]):
            # One rectangle in each quarter, so that none hides another.
            top, left = (j // 2) * height / 2, (j % 2) * width / 2
            y1, x1 = top + rng.uniform(0, 3), left + rng.uniform(0, 3)
            y2 = top + height / 2 - rng.uniform(0, 6)
            x2 = left + width / 2 - rng.uniform(0, 6)
            corners = np.round([x1, y1, x2, y2]).astype(int)
            boxes[i, j], labels[i, j] = corners, rng.integers(3)
            x1, y1, x2, y2 = corners
            image[y1:y2, x1:x2] = COLORS[labels[i, j]]
    return Batch(
        images=images,
        sizes=np.array(sizes[: len(counts)], np.int32),
        scales=np.ones((len(counts), 2), np.float32),
        image_ids=np.arange(len(counts), dtype=np.int32),
        truth=GroundTruth(
            boxes=boxes,
            labels=labels,
            valid=valid,
            crowd=np.zeros_like(valid),
            masks=valid[..., None, None] * _ellipse(16),
        ),
        regions=_regions(seed, boxes, valid, sizes),
    )


def one_object(box: list[float], label: int = 1) -> Batch:
    """One 64x64 image with this object, and a slot of padding."""
    scene = batch(counts=(1,), slots=2)
    boxes, labels = scene.truth.boxes.copy(), scene.truth.labels.copy()
    boxes[0, 0], labels[0, 0] = box, label
    return scene.replace(truth=scene.truth.replace(boxes=boxes, labels=labels))


def _ellipse(cells: int) -> np.ndarray:
    """A mask that is not the whole box."""
    x = (np.arange(cells) + 0.5) / cells - 0.5
    return (x[:, None] ** 2 + x**2 < 0.25).astype(np.float32)


def _regions(seed, boxes, valid, sizes) -> Regions:
    """Two close to each object, others anywhere, and padding."""
    rng = np.random.default_rng([seed, 1])
    count = len(boxes)
    found = np.zeros((count, 16, 4), np.float32)
    for i, (height, width) in enumerate(sizes[:count]):
        near = np.repeat(boxes[i, valid[i]], 2, axis=0)
        near = near + rng.uniform(-4, 4, near.shape)
        corners = rng.uniform(0, 1, (14 - len(near), 2, 2)) * [width, height]
        far = np.concatenate([corners.min(axis=1), corners.max(axis=1) + 1], axis=1)
        limits = [width, height, width, height]
        found[i, :14] = np.clip(np.concatenate([near, far]), 0, limits)
    there = np.broadcast_to(np.arange(16) < 14, (count, 16))
    scores = np.where(there, np.linspace(1, 0.1, 16), 0).astype(np.float32)
    return Regions(boxes=found, scores=scores, valid=there.copy())


def pictures(batch: Batch) -> tuple[list[np.ndarray], list[list[tuple]]]:
    """The images of a batch without padding, and `(x1, y1, x2, y2, label)` of each."""
    images, objects = [], []
    for i, (height, width) in enumerate(batch.sizes):
        images.append(batch.images[i, :height, :width])
        there = batch.truth.valid[i]
        rows = zip(
            batch.truth.boxes[i, there], batch.truth.labels[i, there], strict=True
        )
        objects.append([(*box, label) for box, label in rows])
    return images, objects
