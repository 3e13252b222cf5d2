"""What is rewritten for jax2onnx gives the same numbers as before."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxdet.inference.onnx_operators import evaluate
from jaxdet.ops import nms

VALUES = np.arange(60, dtype=np.float32).reshape(3, 5, 4)
INDEX = np.array([[4, 0, 9], [-7, 2, 2], [1, 3, 0]], np.int32)  # also out of range


def slice_of(values, start):
    return lax.dynamic_slice(values, (start, jnp.int32(1)), (2, 3))


FUNCTIONS = {
    "rows": lambda x, i: x[1][i],
    "columns": lambda x, i: x[:, :, i % 4],
    "single numbers": lambda x, i: x[i % 3, i % 5, i % 4],
    "rows of each": jax.vmap(lambda x, i: x[i]),
    "a slice of each": jax.vmap(lambda x, i: slice_of(x, i[0])),
    "clipped": jax.vmap(lambda x, i: jnp.take(x, i, axis=0, mode="clip")),
    "filled": jax.vmap(lambda x, i: jnp.take(x, i, axis=0, mode="fill")),
    "filled integers": lambda x, i: jnp.take(x.astype(int), i, axis=1, mode="fill"),
    "booleans": lambda x, i: jnp.take(x > 20, i, axis=1, mode="fill"),
    "along": lambda x, i: jnp.take_along_axis(x[:, 0], i % 4, axis=1),
    "written": jax.vmap(lambda x, i: x.at[i].set(i[:, None] + 0.5, mode="drop")),
    "one written": lambda x, i: x[0, 0].at[i[2, 0]].set(7.0),
    "chosen": lambda x, i: jnp.where(i > 0, x[:, :3, 0] > 9, x[:, 1:4, 0] > 20),
    "switched": lambda x, i: lax.switch(i[0, 0] - 3, [jnp.sin, jnp.cos], x),
    "looped, each": jax.vmap(
        lambda x, i: lax.while_loop(
            lambda s: s[0] < i[2] + 1,
            lambda s: (s[0] + 1, s[1] * 2, ~s[2]),
            (0, x, i > 1),
        )
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rewritten_functions_are_the_same(name):
    function = FUNCTIONS[name]
    index = INDEX
    if name == "written":  # once each, as of duplicates any may win
        index = np.array([[4, 0, 9], [7, 2, 1], [1, 3, 0]], np.int32)
    expected = jax.tree.leaves(function(jnp.asarray(VALUES), jnp.asarray(index)))
    traced = jax.make_jaxpr(function)(VALUES, index)
    found = evaluate(traced, VALUES, index)
    again = jax.make_jaxpr(functools.partial(evaluate, traced))(VALUES, index)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
    names = {equation.primitive.name for equation in again.eqns}
    assert "scatter" not in names


def test_nms_of_a_batch_is_the_same(rng):
    corners = rng.uniform(0, 60, (2, 150, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + rng.uniform(5, 40, (2, 150, 2))], -1)
    boxes, scores = boxes.astype(np.float32), rng.random((2, 150)).astype(np.float32)
    select = functools.partial(
        nms.select_detections, iou_threshold=0.5, max_detections=20
    )
    labels = rng.integers(0, 2, (2, 150)).astype(np.int32)

    def function(boxes, scores, labels):
        return jax.vmap(lambda *x: select(*x, valid=x[1] > 0.1))(boxes, scores, labels)

    traced = jax.make_jaxpr(function)(boxes, scores, labels)
    found = evaluate(traced, boxes, scores, labels)
    expected = jax.tree.leaves(function(boxes, scores, labels))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_scatter_is_named():
    traced = jax.make_jaxpr(lambda x: x.at[0, 1, 2].set(3.0))(VALUES)
    with pytest.raises(NotImplementedError, match=r"scatter of \(3, 5, 4\)"):
        evaluate(traced, VALUES)
