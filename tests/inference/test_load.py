"""A run folder, a file or a name becomes a function from images to named boxes."""

import contextlib
import operator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.data.dataset import Proposals
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.detector import Detector
from jaxdet.evaluation.evaluate import detect_all
from jaxdet.inference import export, load, preprocess
from jaxdet.structs import Detections
from jaxdet.training.checkpoint import Checkpoints
from jaxdet.training.config import TrainingConfig
from jaxdet.training.run_folder import RunError, save_run
from jaxdet.training.step import TrainState
from jaxdet.weights import published
from jaxdet.weights.published import TrainedDetector
from jaxdet.weights.state_dict import WeightsError
from tests.data.in_memory import in_memory_data_set
from tests.detectors import scenes
from tests.detectors.test_image_pyramid import tiny_retinanet

CANVASES = ((64, 64), (32, 96))


def trained(predict, num_classes=2, **fields):
    """A detector of cats and dogs that has nothing but `predict`."""
    detector = Detector(None, None, predict, num_classes=num_classes)
    config = InputConfig(**{"canvases": CANVASES} | fields)
    variables = {"score": np.float32(0.75)}
    return TrainedDetector(detector, variables, config, ("cat", "dog"), (1, 2), "pets")


def predict(variables, batch):
    """The lower right quarter of each image is a dog; the whole, less sure, a cat."""
    height, width = batch.sizes[:, 0].astype(float), batch.sizes[:, 1].astype(float)
    quarter = jnp.stack([width / 2, height / 2, width, height], axis=-1)
    whole = jnp.stack([0 * width, 0 * height, width, height], axis=-1)
    boxes = jnp.stack([quarter, whole, 0 * whole], axis=1)
    ones = jnp.ones((len(boxes), 1), jnp.int32)
    return Detections(
        boxes=boxes,
        scores=ones * jnp.array([[variables["score"], 0.2, 0.0]]),
        labels=ones * jnp.array([[1, 0, 0]]),
        valid=(ones * jnp.array([[1, 1, 0]])) > 0,
    )


@pytest.fixture(scope="module")
def detect():
    return load.make_detect(trained(predict))


@pytest.mark.parametrize("size", [(100, 80), (10, 11), (200, 640), (64, 64), (1, 1)])
def test_boxes_are_in_the_images_own_pixels(detect, size):
    height, width = size
    found = detect(np.zeros((height, width, 3), np.uint8))
    expected = [[width / 2, height / 2, width, height], [0, 0, width, height]]
    np.testing.assert_allclose(found.boxes, expected, rtol=1e-5)
    assert found.names == ("dog", "cat")
    np.testing.assert_allclose(found.scores, [0.75, 0.2])


def test_results_of_a_data_set_are_those_of_evaluation(detect):
    images = [np.zeros((*size, 3), np.uint8) for size in [(64, 64), (128, 96)]]
    data_set = in_memory_data_set(images, image_ids=(7, 5), category_ids=(3, 9))
    model = trained(predict)
    found = load.detect_data_set(detect, data_set, progress=False)
    arguments = model.detector, model.variables, data_set, model.input
    expected = detect_all(*arguments, batch_size=4, progress=False)
    assert [one["image_id"] for one in found] == [7, 7, 5, 5]
    key = operator.itemgetter("image_id", "category_id")
    for one, other in zip(
        sorted(found, key=key), sorted(expected, key=key), strict=True
    ):
        np.testing.assert_allclose(one.pop("bbox"), other.pop("bbox"), rtol=1e-5)
        assert one == other


@pytest.mark.parametrize(
    ("fields", "shape", "dtype"),
    [
        ({"canvases": ((64, 64),), "keep_aspect": False}, (1, 64, 64, 3), np.uint8),
        (
            {"canvases": ((64, 64), (32, 64)), "min_max_size": (30, 63)}
            | {"float_pixels": True},
            (1, 32, 64, 3),
            np.float32,
        ),
    ],
)
def test_images_are_resized_as_in_training(fields, shape, dtype):
    def check(variables, batch):
        assert batch.images.shape == shape and batch.images.dtype == dtype
        return predict(variables, batch)

    detect = load.make_detect(trained(check, **fields), min_score=0.5)
    found = detect(np.zeros((20, 40, 3), np.uint8))
    np.testing.assert_allclose(found.boxes, [[20, 10, 40, 20]], rtol=1e-5)
    assert found.names == ("dog",)


@pytest.mark.parametrize("given", [True, False])
def test_proposals_reach_the_detector_and_come_back_in_their_place(monkeypatch, given):
    def return_regions(variables, batch):
        regions = batch.regions
        labels = jnp.zeros(regions.valid.shape, jnp.int32)
        return Detections(regions.boxes, regions.scores, labels, regions.valid)

    boxes = np.array([[10, 20, 30, 60], [0, 0, 80, 100], [5, 5, 6, 6]], np.float32)
    image = np.full((100, 80, 3), 7, np.uint8)

    def propose(seen, **limit):
        assert limit == ({} if given else {"max_proposals": slots})
        np.testing.assert_array_equal(seen, image)
        return Proposals(boxes, np.array([0.9, 0.8, 0.7], np.float32))

    monkeypatch.setattr(preprocess, "selective_search", propose)
    for slots, count in ((2, 2), (5, 3)):
        classless = trained(return_regions, num_classes=None, max_regions=slots)
        detect = load.make_detect(classless, propose=propose if given else None)
        found = detect(image)
        np.testing.assert_allclose(found.boxes, boxes[:count], rtol=1e-5)
        np.testing.assert_allclose(found.scores, [0.9, 0.8, 0.7][:count])
        assert set(found.names) == {"object"}  # it does not tell cats from dogs


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3)),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((8, 0, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(detect, image):
    with pytest.raises(ValueError, match=r"uint8\[H, W, 3\] is needed"):
        detect(image)


def test_a_run_folder_is_all_that_is_needed(rng, tmp_path):
    images, _ = scenes.pictures(scenes.batch())
    detector, names = tiny_retinanet(), ("a", "b", "c")
    shapes = jax.eval_shape(detector.init, jax.random.key(0), scenes.batch())
    variables = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape), shapes)
    variables = jax.tree.map(np.float32, variables)
    config = InputConfig(canvases=((64, 64),))
    data_set = in_memory_data_set(images, class_names=names)
    save_run(tmp_path, detector, data_set, TrainingConfig(input=config))
    with contextlib.closing(Checkpoints(tmp_path, keep=1)) as checkpoints:
        step = np.int32(2)
        checkpoints.save(2, TrainState(step, variables, opt_state={"count": step}))
    loaded, detect = load.load_detector(tmp_path), load.load(tmp_path)
    chex.assert_trees_all_equal(loaded.variables, variables)
    expected = jax.jit(detector.predict)(variables, scenes.batch(counts=(3,)))
    detections = detect(images[0])
    assert len(detections.names) == expected.valid.sum() > 0
    np.testing.assert_allclose(
        detections.boxes, expected.boxes[expected.valid], atol=1e-3
    )
    assert (loaded.input, loaded.class_names) == (config, names)


ATTACK = {"call": "os:system", "arguments": ["touch run"]}
CONFIG = {"call": "jaxdet.detectors.retinanet:RetinaNetConfig"}
RETINANET = {"call": "jaxdet.detectors.retinanet:retinanet"}


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        ({"call": "elsewhere:detector"}, "calls 'elsewhere:detector'"),
        ({"call": "jaxdet.detectors.retinanet:later"}, "no detector, config or"),
        ({"call": "jaxdet.detectors.retinanet:retinanet"}, "missing"),
        ({"called": "by no name"}, "call"),
        ("no recipe", "no detector"),
        (3, "no detector"),
        (ATTACK, "a recipe that calls"),
        (RETINANET | {"arguments": [CONFIG, 3]}, "cannot be followed"),
        (RETINANET | {"arguments": [CONFIG, ATTACK]}, "a recipe that calls"),
        (RETINANET | {"arguments": [3, CONFIG]}, "cannot be followed"),
    ],
)
def test_recipes_that_cannot_be_followed(tmp_path, recipe, problem):
    data_set = in_memory_data_set([np.zeros((8, 8, 3), np.uint8)])
    detector = Detector(init=None, loss=None, predict=predict, recipe=recipe)
    save_run(tmp_path, detector, data_set, TrainingConfig())
    with pytest.raises(RunError, match=problem) as caught:
        load.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_folders_without_a_run(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        load.load(tmp_path)
    with pytest.raises(RunError, match=r"ssd_v3 is no folder.*: ssd_mobilenet_v2"):
        load.load("ssd_v3")


def test_weights_that_are_not_finite_are_named_once(monkeypatch, tmp_path, caplog):
    arrays = {"b": np.array([1.0, np.nan, -np.inf]), "c": np.float32(np.nan)}
    made = trained(predict)._replace(variables={"a": np.ones(2), "params": arrays})
    monkeypatch.setitem(published.DETECTORS, "broken", lambda: made)
    load.load_detector("broken")
    assert caplog.messages == [
        "broken: 2 of 3 numbers of params/b are not finite; do not expect detections"
    ]
    caplog.clear()
    made = trained(predict)._replace(variables={"score": np.float32(np.inf)})
    export.save(tmp_path / "model", made)
    export.load(tmp_path / "model")
    (message,) = caplog.messages
    assert "model: 1 of 1 numbers of score are not finite" in message


def test_published_names_and_files(tmp_path, monkeypatch):
    made = trained(predict)
    monkeypatch.setitem(published.DETECTORS, "some_detector", lambda: made)
    assert load.load_detector("some_detector") is made
    monkeypatch.setattr(published, "coco_detector", {"some.pth": made}.get)
    assert load.load_detector("some.pth") is made
    monkeypatch.undo()
    (tmp_path / "weights.txt").touch()
    with pytest.raises(WeightsError, match=r"weights\.txt: allowed are \.npz"):
        load.load_detector(tmp_path / "weights.txt")
