"""What the time of a detector goes into, with tiny networks on tiny canvases."""

import jax
import numpy as np
import pytest

from experiments.benchmarks import models, parts
from jaxdet.structs import Detections
from tests.experiments.benchmarks.test_models import TINY

SLOW = pytest.mark.slow


def prepared(name):
    """A detector, its variables, a batch, and what its parts are made of."""
    model = models.MODELS[name]._replace(**TINY[name])
    detector = model.detector("float32")
    masks = name == "mask_rcnn"
    batch = models.random_batch(2, (64, 64), 3, detector.num_classes, masks=masks)
    variables = models.at_rest(jax.jit(detector.init)(jax.random.key(0), batch))
    network = parts.network(model.config, *model.layers("float32"))
    return detector, variables, batch, network, model.config


@pytest.mark.parametrize(
    "name",
    ["ssd", *(pytest.param(x, marks=SLOW) for x in ("retinanet", "fcos", "mask_rcnn"))],
)
def test_the_parts_make_the_whole(name):
    """The last part of `predict` answers what the detector does."""
    detector, variables, batch, network, config = prepared(name)
    predict = jax.jit(detector.predict)
    variables = models.with_answers(predict, variables, batch)
    found = predict(variables, batch)
    assert np.any(found.valid)
    bench = parts.Workbench(network, variables, batch, training=False)
    parts.add_parts(bench, config)
    answers = [part.function(*part.arguments) for part in bench.parts]
    (answer,) = [x for x in answers if isinstance(x, Detections)]
    for field in ("boxes", "scores", "labels", "valid"):
        ours, theirs = getattr(answer, field), getattr(found, field)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    if name == "mask_rcnn":
        assert answers[-1].shape[0] == found.valid.size


@pytest.mark.parametrize(
    "name", ["faster_rcnn_c4", pytest.param("mask_rcnn", marks=SLOW)]
)
def test_the_parts_of_a_step_are_those_of_its_losses(name):
    detector, variables, batch, network, config = prepared(name)
    bench = parts.Workbench(network, variables, batch, training=True)
    parts.add_parts(bench, config)
    names = [part.name for part in bench.parts]
    masks = ["RoI Align of masks", "RoI Align of masks, backward"]
    masks += ["mask head", "mask targets"]
    assert names == [
        *("pixels", "backbone", "neck", "RPN head", "proposals"),
        *("best scores, decoding", "NMS", "RPN matching and losses", "matching"),
        *("sampling", "RoI Align", "RoI Align, backward"),
        *("box head", "region losses"),
        *(masks if name == "mask_rcnn" else []),
    ]
    within = {part.name: part.within for part in bench.parts if part.within}
    assert within == {
        "best scores, decoding": "proposals",
        "NMS": "proposals",
        "matching": "RPN matching and losses",
    }
    layers = [part.name for part in bench.parts if part.layers]
    mask_head = ["mask head"] if name == "mask_rcnn" else []
    assert layers == ["backbone", "neck", "RPN head", "box head", *mask_head]
    found = {part.name: part.function(*part.arguments) for part in bench.parts}
    losses, _ = found["region losses"]
    _, metrics = jax.eval_shape(detector.loss, variables, batch, jax.random.key(0))
    objectness = found["RPN matching and losses"][0]["objectness_loss"]
    assert {*losses, "objectness_loss"} <= metrics.keys()
    assert np.isfinite([*losses.values(), objectness]).all()
    _, (gradients, _) = found["backbone"]
    assert [*gradients] == ["backbone"]
    assert all(np.any(x) for x in jax.tree.leaves(gradients))
    the_candidates_that_nms_keeps_are_the_proposals(found)
    cut = next(part for part in bench.parts if part.name == "RoI Align")
    the_backward_pass_is_the_transpose(cut, found)


def test_the_whole_takes_turns_with_its_parts(monkeypatch):
    answers = []

    def medians(calls, repeats):
        answers.extend(call() for call in calls)
        return [float(repeats), 2.0, 1.0]

    def add_parts(bench, config):
        doubled = bench.add("double", lambda x: 2 * x, config, layers=True)
        bench.add("square", lambda x: x**2, doubled, within="double")

    monkeypatch.setattr(parts, "medians", medians)
    monkeypatch.setattr(parts, "add_parts", add_parts)
    given = {"network": None, "variables": {}, "batch": None, "optimizer": None}
    found = parts.measure(lambda: 7, config=3, **given, training=False, repeats=5)
    assert answers == [7, 6, 36]
    double = {"name": "double", "milliseconds": 2, "within": "", "layers": True}
    square = {"name": "square", "milliseconds": 1, "within": "double", "layers": False}
    assert found == {"parts_whole": 5, "parts": [double, square]}


def the_candidates_that_nms_keeps_are_the_proposals(found):
    boxes, scores, *_ = found["best scores, decoding"]
    keep, there = found["NMS"]
    proposals = found["proposals"]
    assert there.any() and np.array_equal(there, proposals.valid)
    for image, kept in enumerate(there):
        best = keep[image][kept]
        np.testing.assert_allclose(boxes[image][best], proposals.boxes[image][kept])
        np.testing.assert_allclose(scores[image][best], proposals.scores[image][kept])


def the_backward_pass_is_the_transpose(cut, found):
    """Sums of crops are sums of features, each as often as it was read."""
    features = jax.tree.leaves(cut.arguments[0])
    gradients = jax.tree.leaves(found["RoI Align, backward"])
    both = zip(features, gradients, strict=True)
    total = float(sum(np.sum(x * y) for x, y in both))
    assert np.sum(found["RoI Align"]) == pytest.approx(total, rel=1e-4) and total != 0
