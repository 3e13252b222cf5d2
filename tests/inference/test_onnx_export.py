"""ONNX files detect what JAX does; they need jax2onnx and onnxruntime."""

import importlib
import json

import jax
import numpy as np
import pytest

from jaxdet.data.dataset import DataError
from jaxdet.data.input_config import InputConfig
from jaxdet.inference import onnx_export
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
@pytest.mark.parametrize("name", ["retinanet", "fcos", "ssd", "faster_rcnn"])
def test_onnxruntime_detects_the_same(tmp_path, rng, name):
    need("jax2onnx", onnx_export.REQUIREMENT)
    import onnx

    image = rng.integers(0, 256, (50, 60, 3), np.uint8)
    file = tmp_path / "model.onnx"
    assert onnx_export.save(file, trained(name), image, canvas=(64, 64)) > 3
    model = onnx.load(file)
    about = {one.key: json.loads(one.value) for one in model.metadata_props}
    assert about["class_names"] == ["a", "b", "c"]
    assert [one.name for one in model.graph.output] == list(onnx_export.OUTPUTS)


def test_other_detections_are_refused():
    boxes, labels = np.zeros((1, 2, 4)), np.array([[0, 1]])
    found = [boxes, np.ones((1, 2)), labels, np.ones((1, 2), bool)]
    onnx_export.compare([boxes + 0.09, *found[1:]], tuple(found))
    for wrong in ([boxes + 0.11, *found[1:]], [*found[:2], labels + 1, found[3]]):
        with pytest.raises(DataError, match="detections differ from JAX's: boxes by"):
            onnx_export.compare(wrong, tuple(found))
