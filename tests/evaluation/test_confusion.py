import numpy as np

from jaxdet.evaluation.confusion import confusion_matrix
from jaxdet.evaluation.matches import match_to_objects
from tests.evaluation.scenes import detection, random_scene, truth

OBJECTS = truth(
    (0, 0, 0, 0, 10, 10),
    (0, 1, 50, 0, 10, 10),
    (0, 1, 90, 0, 10, 10),
    (1, 0, 0, 0, 10, 10),
    (1, 0, 100, 100, 80, 80, "crowd"),
)
DETECTIONS = [
    detection(0, 0, 0.9, 0, 0, 10, 10),  # a cat
    detection(0, 1, 0.8, 0, 0, 10, 10),  # again: the object is taken
    detection(0, 0, 0.7, 50, 0, 10, 10),  # a dog taken for a cat
    detection(0, 1, 0.6, 90, 6, 10, 10),  # an IoU of 1/4: a dog missed, and nothing
    detection(1, 0, 0.5, 110, 110, 20, 20),  # in a crowd
    detection(1, 1, 0.4, 0, 0, 10, 10),  # a cat taken for a dog
]


def test_rows_are_true_classes_and_columns_detected_ones():
    matches = match_to_objects(OBJECTS, DETECTIONS)
    assert confusion_matrix(matches, 0.3).tolist() == [[1, 1, 0], [1, 0, 1], [0, 2, 0]]
    assert confusion_matrix(matches, 0.45).tolist() == [[1, 0, 1], [1, 0, 1], [0, 2, 0]]
    assert confusion_matrix(matches, 0.95).tolist() == [[0, 0, 2], [0, 0, 2], [0, 0, 0]]


def test_every_object_and_every_detection_is_counted_once(rng):
    matches = match_to_objects(*random_scene(rng))
    matrix = confusion_matrix(matches, 0.5)
    assert matrix.sum(axis=1)[:-1].tolist() == matches.counts.tolist()
    labels = matches.label[matches.score >= 0.5]
    assert matrix.sum(axis=0)[:-1].tolist() == np.bincount(labels, minlength=4).tolist()
