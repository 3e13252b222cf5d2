import numpy as np
import pytest

from jaxdet.evaluation import curves
from jaxdet.evaluation.matches import match_to_objects
from tests.evaluation.scenes import random_scene

SCORES = np.array([0.9, 0.8, 0.6, 0.8, 0.2])
TRUE = np.array([True, False, True, True, False])


def test_precision_recall_and_f1_of_five_detections_of_four_objects():
    values = curves.precision_recall_f1(SCORES, TRUE, 4, np.array([0.0, 0.8, 0.95]))
    np.testing.assert_allclose(values[0], [3 / 5, 2 / 3, np.nan])
    np.testing.assert_allclose(values[1], [3 / 4, 2 / 4, 0])
    np.testing.assert_allclose(values[2], [2 * 3 / 9, 2 * 2 / 7, 0])
    assert np.isnan(curves.precision_recall_f1(SCORES, TRUE, 0, np.zeros(1))[1:]).all()


def test_f1_is_best_halfway_between_two_scores():
    # F1 at 0.9: 2 / 5, at 0.8: 4 / 7, at 0.6: 6 / 8, at 0.2: 6 / 9.
    best = curves.best_f1(SCORES, TRUE, 4)
    assert best == pytest.approx((0.4, 6 / 8, 3 / 4, 3 / 4))
    assert curves.best_f1(SCORES, TRUE, 0) is None
    assert curves.best_f1(SCORES, np.zeros(5, bool), 4) is None
    assert curves.best_f1(np.zeros(0), np.zeros(0, bool), 4) is None
    assert curves.best_f1(SCORES[:1], TRUE[:1], 1).min_score == 0.45


def test_no_other_minimum_score_has_a_higher_f1(rng):
    scores, true = rng.uniform(size=200).round(2), rng.uniform(size=200) < 0.4
    best = curves.best_f1(scores, true, 90)
    f1 = [
        2 * true[scores >= score].sum() / ((scores >= score).sum() + 90)
        for score in np.arange(0, 1, 0.001)
    ]
    assert best.f1 == pytest.approx(max(f1))
    kept = scores >= best.min_score
    assert best.precision == pytest.approx(true[kept].mean())
    assert best.recall == pytest.approx(true[kept].sum() / 90)


def test_the_histogram_counts_every_detection_once():
    assert curves.histogram(SCORES, TRUE, 4).tolist() == [[0, 0, 1, 2], [1, 0, 0, 1]]
    matches = match_to_objects(*random_scene(np.random.RandomState(0)))
    true = matches.matched >= 0
    counts = curves.histogram(matches.score, true)
    assert counts.sum(axis=1).tolist() == [true.sum(), (~true).sum()]
