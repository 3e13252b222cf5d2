"""Published weights: where they are, what is wrong with them, what they find."""

import functools
import hashlib
import json
import sys

import chex
import jax
import numpy as np
import pytest

from jaxdet.data.formats import coco
from jaxdet.detectors.serialization import deserialize
from jaxdet.evaluation.coco import box_and_mask_metrics
from jaxdet.evaluation.evaluate import detect_all
from jaxdet.inference import load
from jaxdet.nn.backbones.efficientnet import EfficientNetLite0
from jaxdet.weights import detectors, published
from jaxdet.weights.state_dict import WeightsError
from tests import optional, oracles
from tests.weights import torch_files


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a file of weights, installed."""
    file = tmp_path / "some_weights" / "models" / "some.npz"
    file.parent.mkdir(parents=True)
    (tmp_path / "some_weights" / "__init__.py").write_text("raise ImportError")
    np.savez(file, tensor=np.arange(3.0))
    monkeypatch.syspath_prepend(tmp_path)
    return published.Package(
        requirement="some-weights==1.0",
        module="some_weights",
        file="models/some.npz",
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
    )


def test_a_package_is_found_without_being_imported(package, tmp_path):
    file = published.package_file(package)
    assert file == tmp_path / "some_weights" / "models" / "some.npz"
    assert "some_weights" not in sys.modules


def test_missing_packages_and_other_files(package):
    missing = package._replace(module="no_such_weights")
    message = "no_such_weights is not installed.*pip install some-weights==1.0$"
    with pytest.raises(WeightsError, match=message):
        published.package_file(missing)
    again = "pip install --force-reinstall --no-deps some-weights==1.0"
    file = published.package_file(package)
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(WeightsError, match=rf"some\.npz: its SHA-256 .*{again}"):
        published.package_file(package)
    file.unlink()
    with pytest.raises(WeightsError, match=rf"some\.npz: no such file; {again}"):
        published.package_file(package)


def test_unknown_names_are_refused():
    with pytest.raises(WeightsError, match=r"'resnet51'; allowed: .*resnet50, "):
        published.weights_file("resnet51")


def test_detectors_know_their_classes_and_input(monkeypatch):
    monkeypatch.setattr(published, "package_file", lambda package: "graph.pb")
    monkeypatch.setattr(published, "read_state_dict", lambda path: {})
    monkeypatch.setattr(
        published.tensorflow, "load_ssd_mobilenet_v2", lambda graph, ids: {"ids": ids}
    )
    trained = published.DETECTORS["ssd_mobilenet_v2"]()
    assert trained.detector.num_classes == 80 == len(trained.variables["ids"])
    assert deserialize(trained.detector.recipe).recipe == trained.detector.recipe
    assert trained.input.canvases == ((300, 300),)
    names = dict(zip(trained.category_ids, trained.class_names, strict=True))
    assert (names[1], names[17], names[90]) == ("person", "cat", "toothbrush")


def test_torchvisions_detectors_have_cocos_classes(monkeypatch):
    monkeypatch.setattr(detectors, "load", lambda state, name: {})
    tensors = detectors.MODELS["fasterrcnn_resnet50_fpn"].network.tensors
    state = {tensor.theirs: np.zeros(0) for tensor in tensors}
    trained = published.coco_detector(state, canvas_multiple=448)
    assert deserialize(trained.detector.recipe).num_classes == 80
    assert len(trained.input.canvases) == 5
    assert (trained.class_names[11], trained.category_ids[11]) == ("stop sign", 13)


def test_torchvisions_detectors_are_loaded_by_name(tmp_path, monkeypatch):
    file = tmp_path / "some.pth"
    torch_files.write({"weight": np.ones(2)}, file)
    files = {"fcos_resnet50_fpn": file}
    monkeypatch.setattr(published, "weights_file", files.get)
    monkeypatch.setattr(detectors, "load", lambda state, name: {name: state})
    trained = load.load_detector("fcos_resnet50_fpn")
    loaded = trained.variables["fcos_resnet50_fpn"]
    np.testing.assert_array_equal(loaded["weight"], [1, 1])
    assert len(trained.class_names) == 80


@pytest.fixture(scope="module")
def installed():
    """SSD-MobileNetV2; tests that need it are skipped where it is not installed."""
    optional.need_package(published.SSD_MOBILENET_V2)
    return published.ssd_mobilenet_v2()


@pytest.mark.optional
def test_efficientnet_lite0_is_read():
    """A file of torch before 1.6."""
    optional.need_package(published.EFFICIENTNET_LITE0)
    variables = published.efficientnet_lite0()
    init = functools.partial(EfficientNetLite0(norm="frozen").init, jax.random.key(0))
    fresh = jax.eval_shape(init, jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32))
    chex.assert_trees_all_equal_shapes(variables, fresh)


@pytest.mark.slow
@pytest.mark.optional
def test_it_scores_as_published(installed, data_folder):
    folder = data_folder / "coco128"
    annotations = folder / "annotations" / "instances_val2017.json"
    data_set = coco.load(annotations, folder / "val2017")
    assert data_set.category_ids == installed.category_ids
    assert data_set.class_names == installed.class_names
    detector, variables, config = installed[:3]
    results = detect_all(detector, variables, data_set, config, progress=False)
    metrics = box_and_mask_metrics(data_set.ground_truth(), results)
    assert metrics["AP"] == pytest.approx(0.372, abs=0.003)
    assert metrics["AP50"] == pytest.approx(0.561, abs=0.005)
    file = folder / "results" / "ssd_mobilenet_v2_val2017_bbox.json"
    sure = [each for each in json.loads(file.read_text()) if each["score"] >= 0.1]
    assert len(sure) > 500
    assert all(any(_same(one, other) for other in results) for one in sure)


def _same(one: dict, other: dict) -> bool:
    """Whether both are of one image and class, and nearly of one box and score."""
    keys = "image_id", "category_id"
    if any(one[key] != other[key] for key in keys):
        return False
    corners = np.array([one["bbox"], other["bbox"]])
    corners[:, 2:] += corners[:, :2]
    return abs(one["score"] - other["score"]) < 1e-3 and oracles.iou(*corners) > 0.98


@pytest.mark.slow
@pytest.mark.optional
def test_it_names_what_is_on_photographs(installed):
    from skimage import data

    detect = load.make_detect(installed, min_score=0.3)
    for image, names in (
        (data.astronaut(), {"person"}),
        (data.chelsea(), {"cat"}),
        (data.coffee(), {"cup", "dining table"}),
    ):
        detections = detect(image)
        assert names <= set(detections.names) and detections.names[0] in names
