"""Ground truth and detections for tests of what explains errors."""

import numpy as np

from jaxdet.data.dataset import DataSet


def truth(*objects, names=("cat", "dog"), images=3):
    """Ground truth of (image, label, x, y, width, height), and "crowd" for a crowd."""
    return {
        "images": [
            {"id": image, "height": 500, "width": 500} for image in range(images)
        ],
        "categories": [{"id": 10 + k, "name": name} for k, name in enumerate(names)],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": 10 + label,
                "bbox": [x, y, width, height],
                "area": width * height,
                "iscrowd": int(bool(crowd)),
            }
            for number, (image, label, x, y, width, height, *crowd) in enumerate(
                objects, 1
            )
        ],
    }


def detection(image, label, score, *box):
    """A COCO result."""
    return {
        "image_id": image,
        "category_id": 10 + label,
        "score": score,
        "bbox": list(box),
    }


def random_scene(rng, *, images=12, classes=4, crowds=0.0):
    """Overlapping objects; detections near them, some of a wrong class, and strays."""
    objects, detections = [], []
    for image in range(images):
        for _ in range(int(rng.uniform(0, 7))):
            box = np.concatenate([rng.uniform(0, 60, 2), rng.uniform(20, 60, 2)])
            label = int(rng.uniform(0, classes))
            crowd = ["crowd"] if rng.uniform() < crowds else []
            objects.append((image, label, *box.tolist(), *crowd))
            for _ in range(int(rng.uniform(0, 4))):
                near = (box + rng.normal(0, 6, 4)).tolist()
                other = label if rng.uniform() < 0.7 else int(rng.uniform(0, classes))
                detections.append(detection(image, other, float(rng.uniform()), *near))
        for _ in range(int(rng.uniform(0, 4))):
            box = [*rng.uniform(0, 100, 2).tolist(), *rng.uniform(10, 60, 2).tolist()]
            label, score = int(rng.uniform(0, classes)), float(rng.uniform())
            detections.append(detection(image, label, score, *box))
    names = [f"class {k}" for k in range(classes)]
    return truth(*objects, names=names, images=images), detections


def data_set_of(ground_truth, read_image):
    """A data set whose images are read by a function."""
    images, categories = ground_truth["images"], ground_truth["categories"]
    return DataSet(
        name="scene",
        class_names=tuple(one["name"] for one in categories),
        category_ids=tuple(one["id"] for one in categories),
        image_ids=tuple(one["id"] for one in images),
        sizes=np.array([(one["height"], one["width"]) for one in images], np.int32),
        objects=(),
        read_image=read_image,
        ground_truth=lambda: ground_truth,
    )
