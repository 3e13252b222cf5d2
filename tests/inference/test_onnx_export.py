"""ONNX files detect what JAX does; they need jax2onnx and onnxruntime."""

import importlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.data.dataset import DataError
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.detector import Detector
from jaxdet.inference import onnx_export
from jaxdet.structs import Detections
from jaxdet.weights.published import TrainedDetector
from tests.detectors import scenes
from tests.optional import need


def trained(name):
    """A small detector of random weights, which finds something everywhere."""
    module = importlib.import_module(f"tests.detectors.test_{name}")
    detector = getattr(module, f"small_{name}")()
    shapes = jax.eval_shape(detector.init, jax.random.key(0), scenes.batch())
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes
    )
    config = InputConfig(canvases=((64, 64),))
    return TrainedDetector(detector, variables, config, ("a", "b", "c"), (7, 8, 9), "")


@pytest.mark.optional
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name", ["retinanet", "fcos", "ssd", "faster_rcnn", "detr", "deformable_detr"]
)
def test_onnxruntime_detects_the_same(tmp_path, rng, name, monkeypatch):
    need("jax2onnx", onnx_export.REQUIREMENT)
    import onnx

    monkeypatch.setattr(jnp, "cumsum", jnp.cumsum)  # jax2onnx leaves another there
    image = rng.integers(0, 256, (50, 60, 3), np.uint8)
    file = tmp_path / "model.onnx"
    assert onnx_export.save(file, trained(name), image, canvas=(64, 64)) > 3
    model = onnx.load(file)
    about = {one.key: json.loads(one.value) for one in model.metadata_props}
    assert about["class_names"] == ["a", "b", "c"]
    assert [one.name for one in model.graph.output] == list(onnx_export.OUTPUTS)


def test_a_picture_of_nothing_compares_nothing(tmp_path, monkeypatch):
    for name in ("jax2onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, json)  # not to be used
    slots = jnp.zeros((1, 3))
    nothing = Detections(jnp.zeros((1, 3, 4)), slots, slots.astype(int), slots > 0)
    detector = Detector(None, None, lambda variables, batch: nothing)
    config = InputConfig(canvases=((64, 64),))
    one = TrainedDetector(detector, {}, config, ("a",), (7,), "")
    image, file = np.zeros((50, 60, 3), np.uint8), tmp_path / "model.onnx"
    with pytest.raises(DataError, match=r"nothing is detected .* as --picture"):
        onnx_export.save(file, one, image, canvas=(64, 64))


def test_other_detections_are_refused():
    boxes = np.array([[[0, 0, 9, 9], [5, 5, 8, 8], [0, 0, 0, 0]]], np.float64)
    scores, labels = np.array([[0.9, 0.9, 0.0]]), np.array([[0, 1, 0]])
    valid = np.array([[True, True, False]])
    expected = boxes, scores, labels, valid
    onnx_export.compare((boxes + 0.09, scores + 9e-4, labels, valid), expected)
    order = [1, 0, 2]  # of equal scores
    onnx_export.compare([x[:, order] for x in expected], expected)
    for wrong in (
        (boxes + 0.11, scores, labels, valid),
        (boxes, scores - 1.1e-3, labels, valid),
        (boxes, scores, labels + 1, valid),
        (boxes[:, order], scores, labels, valid),
    ):
        with pytest.raises(DataError, match="2 of JAX's are missing, 2 are others"):
            onnx_export.compare(wrong, expected)
    with pytest.raises(DataError, match=r"1 detections are not JAX's 2: 1 .* 0 are"):
        onnx_export.compare((boxes, scores, labels, valid & (labels == 0)), expected)
