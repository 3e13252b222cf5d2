"""Starting from other weights: what is kept, and which outputs follow their classes."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdet.weights import transfer
from jaxdet.weights.state_dict import WeightsError
from jaxdet.weights.transfer import Weights
from tests.detectors import scenes
from tests.detectors.test_deformable_detr import small_deformable_detr
from tests.detectors.test_detr import small_detr
from tests.detectors.test_fast_rcnn import small_fast_rcnn
from tests.detectors.test_faster_rcnn import small_faster_rcnn
from tests.detectors.test_fcos import small_fcos
from tests.detectors.test_mask_rcnn import small_mask_rcnn
from tests.detectors.test_rcnn import small_rcnn
from tests.detectors.test_retinanet import small_retinanet
from tests.detectors.test_rpn import small_rpn
from tests.detectors.test_sppnet import small_sppnet
from tests.detectors.test_ssd import SMALL as SMALL_SSD
from tests.detectors.test_ssd import small_ssd

NAMES = ("cat", "dog", "cow")
SHA256 = "0" * 64


SIGMOID_SSD = dataclasses.replace(SMALL_SSD, score_function="sigmoid")


def sigmoid_ssd(config=SIGMOID_SSD):
    return small_ssd(config=config)


CLASSIFIERS = (
    small_retinanet,
    small_fcos,
    small_detr,
    small_ssd,
    sigmoid_ssd,
    small_rcnn,
    small_sppnet,
    small_fast_rcnn,
    small_faster_rcnn,
    small_mask_rcnn,
    small_deformable_detr,
)


def with_classes(config, count):
    if hasattr(config, "faster_rcnn"):
        boxes = with_classes(config.faster_rcnn, count)
        return dataclasses.replace(config, faster_rcnn=boxes)
    known = {"num_classes": count} if hasattr(config, "num_classes") else {}
    return dataclasses.replace(config, **known)


def of_classes(make, count):
    config = inspect.signature(make).parameters["config"].default
    return make(config=with_classes(config, count))


def shapes(detector):
    return jax.eval_shape(detector.init, jax.random.key(0), scenes.batch())


@pytest.mark.parametrize("make", [*CLASSIFIERS, small_rpn], ids=lambda x: x.__name__)
def test_the_layers_of_classes_are_those_whose_shapes_depend_on_them(make):
    three, six = (shapes(of_classes(make, count)) for count in (3, 6))
    paths = jax.tree_util.tree_leaves_with_path(three)
    changed = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, ours), other in zip(paths, jax.tree.leaves(six), strict=True)
        if ours.shape != other.shape
    }
    assert (len(changed) > 0) == (make is not small_rpn)
    forgotten = Weights(three, "a.npz", SHA256, (None,) * 3)
    started = transfer.compare(forgotten, three, NAMES)
    assert set(started.new) == changed
    assert started.kept == len(paths) - len(changed)
    assert transfer.compare(Weights(three, "", SHA256, NAMES), three, NAMES).new == ()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, marks=[pytest.mark.slow] * (make is not sigmoid_ssd))
        for make in (
            small_retinanet,
            small_fcos,
            small_ssd,
            sigmoid_ssd,
            small_mask_rcnn,
        )
    ],
    ids=lambda make: make.__name__,
)
def test_detections_follow_the_names_of_the_classes(make):
    """In another order, among new classes that score nothing: the same detections."""
    known, detector, batch = of_classes(make, 3), of_classes(make, 5), scenes.batch()
    theirs = jax.jit(known.init)(jax.random.key(0), batch)
    forgotten = Weights(theirs, "a.npz", SHA256, (None,) * 3)
    changed = transfer.compare(forgotten, theirs, NAMES).new
    theirs, rng = flatten_dict(theirs, sep="/"), np.random.default_rng(0)
    for path in changed:
        noise = rng.normal(0, 0.2, theirs[path].shape)
        theirs[path] = np.asarray(theirs[path] + noise, np.float32)
    theirs = unflatten_dict(theirs, sep="/")
    fresh = {
        path: np.full(x.shape, -30.0 if path.endswith("bias") else 0.0, np.float32)
        for path, x in flatten_dict(shapes(detector), sep="/").items()
    }
    ours = transfer.apply(
        Weights(theirs, "a.npz", SHA256, NAMES),
        unflatten_dict(fresh, sep="/"),
        ("cow", "ox", "Cat", "dog", "hen"),
    )
    before = jax.jit(known.predict)(theirs, batch)
    after = jax.jit(detector.predict)(ours, batch)
    np.testing.assert_array_equal(after.valid, before.valid)
    assert len(set(before.labels[before.valid].tolist())) == 3
    labels = jnp.array([2, -1, 0, 1, -1])[after.labels]
    np.testing.assert_array_equal(labels[before.valid], before.labels[before.valid])
    np.testing.assert_allclose(after.scores, before.scores, atol=1e-5)
    np.testing.assert_allclose(after.boxes, before.boxes, atol=1e-3)
    if before.masks is not None:
        np.testing.assert_allclose(after.masks, before.masks, atol=1e-3)


def variables(bias, *, value, backbone=2):
    layers = {
        "backbone": {"kernel": np.full(backbone, value)},
        "classes4": {"bias": np.array(bias, float)},
        "deltas4": {"bias": np.full(8, value)},  # of two default boxes
    }
    return {"params": layers}


@pytest.mark.parametrize(
    ("known", "kept", "expected"),
    [
        # Of each box: cow, Dog and ox are new, then comes the background.
        (("cat", "dog"), ("Dog",), [-1, 1, -1, 2, -1, 4, -1, 5]),
        ((None, "dog"), ("Dog",), [-1, 1, -1, 2, -1, 4, -1, 5]),
        ((None, None), (), [-1] * 8),
        (("cat", "fox"), (), [-1] * 8),
    ],
)
def test_outputs_of_known_classes_are_kept(known, kept, expected):
    fresh = variables([-1] * 8, value=-1.0)
    weights = Weights(variables(range(6), value=7.0), "a.npz", SHA256, known)
    names = ("cow", "Dog", "ox")
    started = transfer.compare(weights, fresh, names)
    assert started.class_names == kept and started.kept == 2
    assert started.new == ("params/classes4/bias",)
    params = transfer.apply(weights, fresh, names)["params"]
    np.testing.assert_array_equal(params["classes4"]["bias"], expected)
    np.testing.assert_array_equal(params["backbone"]["kernel"], [7, 7])
    np.testing.assert_array_equal(params["deltas4"]["bias"], [7] * 8)
    assert fresh["params"]["classes4"]["bias"].max() == -1
    line = (
        f"started from a.npz (SHA-256 {SHA256[:16]}): kept 2 tensors, 1 new: classes4"
    )
    assert str(started) == line + ("; kept classes: Dog" if kept else "")


def test_weights_of_another_network_are_refused():
    weights = Weights(
        variables([0] * 6, value=0.0), "a.npz", SHA256, hint="it is for the recipe ssd"
    )
    with pytest.raises(WeightsError) as error:
        transfer.compare(weights, variables([0] * 8, value=0.0, backbone=5), NAMES)
    assert str(error.value) == (
        "a.npz is of another network: 1 of the 1 tensors of the backbone do not fit:\n"
        "  params/backbone/kernel: (2,) given, (5,) needed\n"
        "it is for the recipe ssd"
    )


def test_hashes_of_variables_depend_on_names_and_numbers():
    hashes = {
        transfer.hash_variables({"params": {name: np.full(2, value)}})
        for name in ("a", "b")
        for value in (0.0, 1.0)
    }
    assert len(hashes) == 4
