"""What the time of a detector goes into, with tiny networks on tiny canvases."""

import jax
import numpy as np
import pytest

from experiments.benchmarks import models, parts
from tests.experiments.benchmarks.test_models import TINY


@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("ssd", False),
        pytest.param("ssd", True, marks=pytest.mark.slow),
        pytest.param("faster_rcnn", False, marks=pytest.mark.slow),
        pytest.param("faster_rcnn", True, marks=pytest.mark.slow),
        pytest.param("deformable_detr", False, marks=pytest.mark.slow),
    ],
)
def test_the_parts_are_what_is_between_the_layers(name, training, monkeypatch):
    """Of 10 ms, 4 are the backbone's and 7 its and the heads'."""
    results = []

    def medians(calls, repeats):
        results.extend(call() for call in calls)
        return [10.0, 4.0, 7.0]

    monkeypatch.setattr(parts, "medians", medians)
    model = models.MODELS[name]._replace(**TINY[name])
    detector = model.detector("float32")
    batch = models.random_batch(2, (64, 64), 3, detector.num_classes)
    variables = jax.jit(detector.init)(jax.random.key(0), batch)
    measured = parts.measure(
        lambda: None, model, "float32", variables, batch, training, repeats=1
    )
    expected = {"backbone": 4, "neck and heads": 3, "all else": 3, "whole": 10}
    assert measured == expected
    _, backbone, both = results
    if training:  # the backbone alone teaches nothing but the backbone
        (_, backbone), (_, both) = backbone, both
        learned = [
            {key for key, values in gradient.items() if any_nonzero(values)}
            for gradient in (backbone, both)
        ]
        assert learned[0] == {"backbone"} < learned[1]
    else:
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((backbone, both)))


def any_nonzero(tree):
    return any(np.any(values) for values in jax.tree.leaves(tree))
