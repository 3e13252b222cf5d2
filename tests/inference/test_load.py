"""From a run folder, or a detector, to boxes in a picture's own pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.data.dataset import Proposals
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.detector import Detector
from jaxdet.inference import load
from jaxdet.structs import Detections
from jaxdet.training.config import TrainingConfig
from jaxdet.training.run_folder import RunError, load_run, save_run
from jaxdet.training.train import train
from tests.data.in_memory import in_memory_data_set
from tests.detectors import scenes
from tests.detectors.test_image_pyramid import tiny_retinanet

CANVASES = ((64, 64), (32, 96))


def predict(variables, batch):
    """One sure answer, the lower right quarter of each image, and one unsure."""
    height, width = batch.sizes[:, 0].astype(float), batch.sizes[:, 1].astype(float)
    quarter = jnp.stack([width / 2, height / 2, width, height], axis=-1)
    whole = jnp.stack([0 * width, 0 * height, width, height], axis=-1)
    boxes = jnp.stack([quarter, whole, 0 * whole], axis=1)
    ones = jnp.ones((len(boxes), 1), jnp.int32)
    return Detections(
        boxes=boxes,
        scores=ones * jnp.array([[variables["sure"], 0.2, 0.0]]),
        labels=ones * jnp.array([[1, 0, 0]]),
        valid=(ones * jnp.array([[1, 1, 0]])) > 0,
    )


@pytest.fixture(scope="module")
def detect():
    detector = Detector(init=None, loss=None, predict=predict)
    variables = {"sure": np.float32(0.75)}
    names = ("cat", "dog")
    return load.make_detect(detector, variables, names, canvases=CANVASES)


@pytest.mark.parametrize("size", [(100, 80), (10, 11), (200, 640), (64, 64), (1, 1)])
def test_boxes_are_in_the_pictures_own_pixels(detect, size):
    height, width = size
    found = detect(np.zeros((height, width, 3), np.uint8))
    expected = [[width / 2, height / 2, width, height], [0, 0, width, height]]
    np.testing.assert_allclose(found.boxes, expected, rtol=1e-5)
    assert found.names == ("dog", "cat")
    np.testing.assert_allclose(found.scores, [0.75, 0.2])


def test_a_stretched_picture_fills_its_canvas():
    def check(variables, batch):
        assert batch.images.shape == (1, 64, 64, 3)
        return predict(variables, batch)

    detector = Detector(init=None, loss=None, predict=check)
    detect = load.make_detect(
        detector,
        {"sure": np.float32(0.75)},
        ("cat", "dog"),
        canvases=CANVASES[:1],
        keep_aspect=False,
    )
    found = detect(np.zeros((40, 200, 3), np.uint8))
    expected = [[100, 20, 200, 40], [0, 0, 200, 40]]
    np.testing.assert_allclose(found.boxes, expected, rtol=1e-5)


def test_torchvisions_pixels():
    def check(variables, batch):
        assert batch.images.shape == (1, 32, 64, 3)
        assert batch.images.dtype == np.float32
        return predict(variables, batch)

    detect = load.make_detect(
        Detector(init=None, loss=None, predict=check),
        {"sure": np.float32(0.75)},
        ("cat", "dog"),
        canvases=[(64, 64), (32, 64)],
        min_max_size=(30, 63),
        float_pixels=True,
    )
    found = detect(np.zeros((20, 40, 3), np.uint8))
    expected = [[20, 10, 40, 20], [0, 0, 40, 20]]
    np.testing.assert_allclose(found.boxes, expected, rtol=1e-5)


def test_a_run_says_whether_pictures_are_stretched(tmp_path):
    def sizes(variables, batch):
        found = predict({"sure": 0.75}, batch)
        return found.replace(scores=found.scores * 0 + batch.sizes[:, :1] / 100)

    for keep_aspect, height in ((False, 64), (True, 32)):
        config = TrainingConfig(
            input=InputConfig(canvases=((64, 64),), keep_aspect=keep_aspect)
        )
        detector = Detector(None, None, sizes, num_classes=2)
        workdir = tmp_path / str(keep_aspect)
        save_run(workdir, detector, in_memory_data_set([]), config)
        trained = load.Trained(detector, {}, load_run(workdir))
        found = load.detect_with(trained)(np.zeros((40, 80, 3), np.uint8))
        np.testing.assert_allclose(found.scores, height / 100)


def test_scores_below_the_least_are_left_out():
    detector = Detector(init=None, loss=None, predict=predict)
    detect = load.make_detect(
        detector, {"sure": 0.75}, ("cat", "dog"), canvases=CANVASES, min_score=0.5
    )
    assert detect(np.zeros((8, 8, 3), np.uint8)).names == ("dog",)


def test_masks_cover_the_pictures_own_pixels():
    def with_masks(variables, batch):
        """Of each box, only the left half."""
        found = predict(variables, batch)
        cells = jnp.zeros((1, 3, 28, 28)).at[..., :14].set(1.0)
        return found.replace(masks=cells)

    detect = load.make_detect(
        Detector(None, None, with_masks),
        {"sure": np.float32(0.75)},
        ("cat", "dog"),
        canvases=CANVASES,
    )
    found = detect(np.zeros((100, 80, 3), np.uint8))
    assert found.masks.shape == (2, 100, 80) and found.masks.dtype == bool
    quarter, whole = np.zeros((2, 100, 80), bool)
    quarter[50:, 40:60] = True
    whole[:, :40] = True
    for mask, expected in zip(found.masks, (quarter, whole), strict=True):
        # Torchvision's pasting shifts edges by up to a cell: 80 / 28 pixels.
        wrong = mask != expected
        assert wrong.sum() <= 0.1 * expected.sum()


def echo(variables, batch):
    """The regions it was given."""
    given = batch.regions
    labels = jnp.zeros(given.valid.shape, jnp.int32)
    return Detections(given.boxes, given.scores, labels, given.valid)


def test_proposals_reach_the_detector_and_come_back_in_their_place():
    boxes = np.array([[10, 20, 30, 60], [0, 0, 80, 100], [5, 5, 6, 6]], np.float32)
    proposals = Proposals(boxes, np.array([0.9, 0.8, 0.7], np.float32))
    detector = Detector(None, None, echo)
    image = np.full((100, 80, 3), 7, np.uint8)

    def propose(seen):
        np.testing.assert_array_equal(seen, image)
        return proposals

    for slots, count in ((2, 2), (5, 3)):
        detect = load.make_detect(
            detector,
            {},
            ("object",),
            canvases=CANVASES,
            propose=propose,
            max_regions=slots,
        )
        found = detect(image)
        np.testing.assert_allclose(found.boxes, boxes[:count], rtol=1e-5)
        np.testing.assert_allclose(found.scores, proposals.scores[:count])
    with pytest.raises(ValueError, match="max_regions is 5, but propose is None"):
        load.make_detect(detector, {}, ("object",), canvases=CANVASES, max_regions=5)


def test_what_others_trained_is_like_a_run_folder(tmp_path):
    config = InputConfig(canvases=CANVASES, float_pixels=True)
    detector = Detector(None, None, predict, num_classes=80, recipe={"call": "some"})
    trained = load.published(detector, {"sure": np.float32(0.75)}, config)
    assert trained.run.training.input == config
    assert trained.run.recipe == detector.recipe
    assert trained.run.category_ids[11] == 13
    assert trained.run.versions["jax"] == jax.__version__
    found = load.detect_with(trained)(np.zeros((64, 64, 3), np.uint8))
    assert found.names == ("bicycle", "person")


@pytest.mark.parametrize("own", [True, False])
def test_a_run_with_regions_searches_for_them(tmp_path, monkeypatch, own):
    config = TrainingConfig(input=InputConfig(canvases=CANVASES, max_regions=4))
    save_run(tmp_path, Detector(None, None, echo), in_memory_data_set([]), config)
    trained = load.Trained(Detector(None, None, echo), {}, load_run(tmp_path))
    box = np.array([[1, 2, 30, 40]], np.float32)

    def propose(image):
        return Proposals(box, np.ones(1, np.float32))

    def search(image, *, max_proposals):
        assert max_proposals == 4
        return propose(image)

    if not own:
        monkeypatch.setattr(load, "selective_search", search)
    detect = load.detect_with(trained, propose=propose if own else None)
    found = detect(np.zeros((100, 80, 3), np.uint8))
    np.testing.assert_allclose(found.boxes, box, rtol=1e-5)
    assert found.names == ("object",)  # it does not tell cats from dogs


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


def test_a_run_folder_is_all_that_is_needed(tmp_path):
    """Trains for two steps, then finds by the folder what the detector itself finds."""
    pictures, objects = scenes.pictures(scenes.batch())
    data_set = in_memory_data_set(pictures, objects, class_names=("a", "b", "c"))
    config = TrainingConfig(
        steps=2,
        batch_size=4,
        warmup_steps=0,
        input=InputConfig(canvases=((64, 64),), max_objects=5, workers=0),
    )
    detector = tiny_retinanet()
    state = train(detector, data_set, config, workdir=tmp_path)
    detect = load.from_run(tmp_path)
    direct = load.make_detect(
        detector,
        jax.device_get(state.variables),
        data_set.class_names,
        canvases=config.input.canvases,
    )
    for image in pictures[:2]:
        again, expected = detect(image), direct(image)
        assert again.names == expected.names != ()
        np.testing.assert_array_equal(again.boxes, expected.boxes)


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
        load.from_run(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_folders_without_a_run(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        load.from_run(tmp_path)
