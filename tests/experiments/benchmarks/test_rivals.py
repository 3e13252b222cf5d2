"""Torchvision's detectors beside ours: the same detections and losses.

Skipped where torch and torchvision with its operators are not installed.
"""

import importlib
import types

import jax
import numpy as np
import pytest

from experiments.benchmarks import models
from jaxdet.config import ConfigError
from tests import optional

pytestmark = pytest.mark.optional


@pytest.fixture(scope="module")
def rivals():
    optional.need("torchvision", optional.TORCH)
    try:
        return importlib.import_module("experiments.benchmarks.rivals")
    except (ImportError, RuntimeError) as error:  # without its operators
        again = f"pip install --force-reinstall {optional.TORCH}"
        pytest.skip(f"torchvision does not work: {error}; {again}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("retinanet", 1e-3), ("faster_rcnn", 0.2)],  # the latter samples
)
def test_both_sides_have_the_same_detections_and_losses(
    monkeypatch, rivals, name, tolerance
):
    monkeypatch.setattr(rivals, "SETTINGS", ("eager", "channels last"))
    model = models.MODELS[name]
    detector = model.detector("float32")
    batch = models.random_batch(1, (64, 96), 3, detector.num_classes)
    variables = jax.jit(detector.init)(jax.random.key(0), batch)
    variables = models.calibrate_boxes(variables)
    predict = jax.jit(detector.predict)
    variables = models.calibrate_scores(predict, variables, batch)
    count = models.mean_detections(predict(variables, batch))
    loss, _ = jax.jit(detector.loss)(variables, batch, jax.random.key(0))
    assert count > 0
    given = model.rival, variables, batch, "float32"
    theirs = rivals.calls(*given, training=False)
    assert {k: x.output for k, x in theirs.items()} == dict.fromkeys(theirs, count)
    theirs = rivals.calls(*given, training=True)
    assert [*theirs] == ["eager", "channels last"]
    losses = [rival.output for rival in theirs.values()]
    np.testing.assert_allclose(losses, float(loss), rtol=tolerance)
    rivals.release()


@pytest.mark.slow
def test_a_setting_that_does_not_work_is_left_out(monkeypatch, rivals, capsys):
    def predict(setting, images, precision):
        if setting == "compiled":
            raise RuntimeError("no compiler\nat all")
        return [{"scores": np.ones(3)}, {"scores": np.ones(4)}]

    def model(name, state, setting):
        return types.SimpleNamespace(eval=lambda: setting)

    monkeypatch.setattr(rivals, "_model", model)
    monkeypatch.setattr(rivals, "_predict", predict)
    monkeypatch.setattr(rivals.translation, "export", lambda variables, name: {})
    batch = models.random_batch(2, (32, 32), 1, 3)
    working = rivals.calls("any", {}, batch, "float32", training=False)
    outputs = {setting: rival.output for setting, rival in working.items()}
    assert outputs == {"eager": 3.5, "channels last": 3.5}
    assert capsys.readouterr().out == "torchvision, compiled: no compiler\n"


@pytest.mark.slow
def test_a_gpu_is_not_compared_with_a_cpu(monkeypatch, rivals):
    monkeypatch.setattr(rivals, "DEVICE", "cpu")
    rivals.require_device("cpu")
    with pytest.raises(ConfigError, match="--compare on gpu, but torch has cpu alone"):
        rivals.require_device("gpu")
