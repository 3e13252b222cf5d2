"""The transformer's layers, against NumPy; what padding and dropout may change."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.nn import transformer


def inside(canvas, size):
    rows, columns = (np.arange(extent) for extent in canvas)
    return ((rows < size[0])[:, None] & (columns < size[1])[None])[None]


def test_positions_run_once_around_each_image():
    found = transformer.sine_position_embedding(inside((3, 5), (2, 4)), 8)
    row, column = np.split(np.asarray(found[0, 0, 1]), 2)  # the 1st of 2, the 2nd of 4
    for embedded in (row, column):  # half a turn, at two wave lengths
        turns = np.pi / np.array([1, 100])
        waves = np.stack([np.sin(turns), np.cos(turns)], axis=1)
        np.testing.assert_allclose(embedded, waves.reshape(-1), atol=1e-5)
    centers = transformer.sine_position_embedding(
        inside((1, 2), (1, 2)), 8, offset=-0.5
    )
    half, quarter = np.asarray(centers[0, 0, 0])[[0, 4]]
    np.testing.assert_allclose([half, quarter], [0.0, 1.0], atol=1e-5)


def test_positions_do_not_depend_on_the_canvas():
    small = transformer.sine_position_embedding(inside((2, 4), (2, 4)), 16)
    large = transformer.sine_position_embedding(inside((6, 7), (2, 4)), 16)
    np.testing.assert_array_equal(small, large[:, :2, :4])


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def attend(params, q, k, v, mask):
    """Multi-head attention of one image, one head at a time."""
    total = params["out"]["bias"]
    for head, out in enumerate(params["out"]["kernel"]):
        q_, k_, v_ = (
            x @ params[name]["kernel"][:, head] + params[name]["bias"][head]
            for x, name in ((q, "query"), (k, "key"), (v, "value"))
        )
        scores = np.where(mask, q_ @ k_.T / np.sqrt(q_.shape[-1]), -np.inf)
        total = total + softmax(scores) @ v_ @ out
    return total


def norm(params, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * params["scale"] + params["bias"]


def feed_forward(params, x):
    hidden = np.maximum(x @ params["fc1"]["kernel"] + params["fc1"]["bias"], 0)
    added = hidden @ params["fc2"]["kernel"] + params["fc2"]["bias"]
    return norm(params["norm"], x + added)


def test_layers_agree_with_numpy(rng):
    """Positions are added to what is compared, never to what is summed."""
    memory, places = rng.normal(size=(2, 1, 6, 8)).astype(np.float32)
    x, queries = rng.normal(size=(2, 1, 3, 8)).astype(np.float32)
    mask = np.arange(6) < 4
    encoder = transformer.EncoderLayer(heads=2, hidden=16)
    decoder = transformer.DecoderLayer(heads=2, hidden=16)
    for layer, arguments in (
        (encoder, (memory, places)),
        (decoder, (x, queries, memory, places)),
    ):
        given = (*arguments, mask[None, None, None])
        params = layer.init(jax.random.key(0), *given)["params"]
        params = jax.tree.map(lambda p: np.float32(rng.normal(p, 0.3)), params)
        ours = jax.jit(layer.apply)({"params": params}, *given)[0]
        features, placed = arguments[0][0], (arguments[0] + arguments[1])[0]
        own_mask = mask if layer is encoder else np.ones(3, bool)
        added = attend(params["self_attention"], placed, placed, features, own_mask)
        theirs = norm(params["self_attention_norm"], features + added)
        if layer is decoder:
            keys = (memory + places)[0]
            where = theirs + queries[0], keys, memory[0], mask
            added = attend(params["cross_attention"], *where)
            theirs = norm(params["cross_attention_norm"], theirs + added)
        theirs = feed_forward(params["feed_forward"], theirs)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_dropout_keeps_the_mean_and_depends_on_the_token_alone():
    keys = jax.random.split(jax.random.key(0), 2)
    small = transformer.cell_keys(keys, 20, 30)
    large = transformer.cell_keys(keys[1:], 22, 50)
    ones = jnp.ones((2, 600, 64))
    dropped = transformer.dropout(ones, small, 0.25)
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
    np.testing.assert_allclose(np.mean(dropped), 1.0, atol=0.01)
    alone = transformer.dropout(jnp.ones((1, 1100, 64)), large, 0.25)
    alone = alone.reshape(22, 50, 64)[:20, :30]
    np.testing.assert_array_equal(dropped[1].reshape(20, 30, 64), alone)
    assert not np.array_equal(dropped[0], dropped[1])
    first, second = transformer.split_keys(small, 2)
    different = [transformer.dropout(ones, x, 0.25) for x in (small, first, second)]
    assert len({np.asarray(x).tobytes() for x in different}) == 3
