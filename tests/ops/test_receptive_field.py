"""Receptive fields, by hand and against what networks look at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.nn.backbones import alexnet, resnet, vgg
from jaxdet.ops import anchors
from jaxdet.ops import receptive_field as rf


def test_two_layers_by_hand():
    # Cell 0 of the first sees pixels -1 to 1, cell 1 pixels 1 to 3; a cell of the
    # second, which has holes, sees cells 0, 2 and 4: pixels -1 to 9.
    first, second = rf.Layer(3, stride=2, padding=1), rf.Layer(3, dilation=2)
    fields = rf.receptive_fields([first, second])
    assert fields == [rf.Field(3, 2, 0.5), rf.Field(11, 2, 4.5)]
    assert rf.receptive_field([first, second]) == fields[-1]
    seen = rf.receptive_boxes(jnp.array([[0, 1]]), fields[-1])
    np.testing.assert_array_equal(seen, [[1, -1, 12, 10]])


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (vgg.layers(), rf.Field(196, 16, 8.0)),
        (alexnet.layers(), rf.Field(163, 16, 7.5)),
        (alexnet.layers(centered=False), rf.Field(163, 16, 15.5)),
        (resnet.layers(4, depth=18), rf.Field(211, 16, 0.5)),
        (resnet.layers(5, depth=18), rf.Field(435, 32, 0.5)),
        (resnet.layers(5, depth=50), rf.Field(427, 32, 0.5)),
    ],
)
def test_published_networks(layers, expected):
    assert rf.receptive_field(layers) == expected


def test_the_proposals_of_vgg_see_228_pixels():
    # As Ren et al. 2015, 3.1 say: conv5_3 and a 3x3 convolution.
    assert rf.receptive_field([*vgg.layers(), (3, 1, 1)]).size == 228


@pytest.mark.parametrize(
    ("network", "layers"),
    [
        (vgg.VGG16(width=1), vgg.layers()),
        (alexnet.AlexNet(width=1), alexnet.layers()),
        (alexnet.AlexNet(width=1, centered=False), alexnet.layers(centered=False)),
        (resnet.ResNet(10, 1, "none", coarsest=4), resnet.layers(4, depth=10)),
    ],
    ids=["vgg", "alexnet", "published-alexnet", "resnet"],
)
def test_a_network_looks_where_its_field_is(network, layers):
    # One pixel after another lights up, on the diagonal. Weights are positive, so that
    # nothing cancels: exactly the cells that see the pixel answer.
    side, lit = 224, np.array([0, 7, 8, 60, 95, 96, 111, 223])
    pixels = jnp.zeros((len(lit), side, side, 3))
    pixels = pixels.at[jnp.arange(len(lit)), lit, lit].set(1.0)
    shapes = jax.eval_shape(network.init, jax.random.key(0), pixels[:1])
    variables = jax.tree.map(
        lambda leaf: np.full(leaf.shape, leaf.ndim > 1, np.float32), shapes
    )
    features = jax.jit(network.apply)(variables, pixels)[4]
    cells = jnp.arange(features.shape[1])
    seen = rf.receptive_boxes(jnp.stack([cells, cells], -1), rf.receptive_field(layers))
    begin, end = np.asarray(seen[:, 0]), np.asarray(seen[:, 2])
    sees = (begin <= lit[:, None]) & (lit[:, None] + 1 <= end)  # [pixels, cells]
    expected = sees[:, :, None] & sees[:, None, :]
    np.testing.assert_array_equal(features[..., 0] > 0, expected)
    assert expected.any(axis=(1, 2)).all() and not expected.all(axis=(1, 2)).any()


def test_centers_of_cells_and_of_what_they_see(rng):
    field = rf.Field(size=11, stride=4, center=5.5)
    points = jnp.array([[5.5, 5.5], [9.5, 17.5]])
    expected = [[0.5, 0.5], [1.5, 3.5]]
    np.testing.assert_array_equal(rf.project(points, field), expected)
    np.testing.assert_array_equal(
        rf.project(points.reshape(4), field), np.ravel(expected)
    )
    some = jnp.asarray(rng.uniform(-10, 300, (5, 4)), jnp.float32)
    there = rf.project(some, field)
    np.testing.assert_allclose(rf.unproject(there, field), some, atol=1e-4)
    there = rf.project(some[:, :2], field)
    np.testing.assert_allclose(rf.unproject(there, field), some[:, :2], atol=1e-4)


def test_anchors_of_vgg_stand_where_its_cells_look():
    boxes = anchors.pyramid_anchors((48, 70), sizes=[[40]], ratios=[1.0], levels=[4])
    cells = jnp.stack(jnp.indices((3, 5)), -1).reshape(-1, 2)
    seen = rf.receptive_boxes(cells, rf.receptive_field(vgg.layers()))
    centers = [(x[:, :2] + x[:, 2:]) / 2 for x in (boxes, seen)]
    np.testing.assert_array_equal(*centers)


@pytest.mark.parametrize("layer", [(0,), (3, 0), (3, 1, -1), (3, 1, 0, 0)])
def test_impossible_layers(layer):
    with pytest.raises(ValueError, match="kernel, stride and dilation of at least 1"):
        rf.receptive_field([layer])
