"""RoI Align as on TPUs against RoI Align as elsewhere.

What both must be is in `test_roi_align.py`, whose tests run both ways.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops import roi_align, roi_align_matrices


def value_and_gradient(branch, pyramid, boxes, sizes, upstream, monkeypatch, **options):
    def choose(*arguments, **branches):
        return branches[branch](*arguments)

    def align(pyramid, boxes, size):
        return roi_align.pyramid_roi_align(
            pyramid, boxes, image_size=size, canonical_size=60, **options
        )

    @jax.jit
    def both(pyramid, boxes, sizes, upstream):
        align_all = partial(jax.vmap(align), boxes=boxes, size=sizes)
        pooled, pull = jax.vjp(align_all, pyramid)
        return pooled, pull(upstream)[0]

    monkeypatch.setattr(jax.lax, "platform_dependent", choose)
    return both(pyramid, boxes, sizes, upstream)


@pytest.mark.parametrize(
    ("samples", "aligned", "dtype"),
    [
        (2, True, jnp.bfloat16),
        (2, False, jnp.float32),
        (0, True, jnp.float32),
        (0, False, jnp.bfloat16),
    ],
)
def test_matrices_agree_with_gathers(rng, monkeypatch, samples, aligned, dtype):
    # Four blocks of rows on the finest level, one on the coarser ones; one box a chunk,
    # and in the gradient several, the last chunk not full.
    monkeypatch.setattr(roi_align_matrices, "_BYTES", 2**13)
    sizes = np.array([[149, 203], [97, 120]], np.int32)
    pyramid = {
        level: jnp.asarray(
            rng.normal(size=(2, -(-149 // 2**level), -(-203 // 2**level), 4)), dtype
        )
        for level in (2, 3, 4, 5)
    }
    corners = np.sort(rng.uniform(-30, 230, (2, 45, 2, 2)), axis=2)
    corners[:, ::3, 1] = corners[:, ::3, 0] + rng.uniform(0, 30, (2, 15, 2))
    boxes = jnp.asarray(corners.reshape(2, 45, 4), jnp.float32).at[:, -3:].set(0)
    upstream = jnp.asarray(rng.normal(size=(2, 45, 7, 7, 4)), dtype)
    levels = roi_align.assign_levels(
        boxes.reshape(-1, 4), (2, 3, 4, 5), canonical_size=60
    )
    assert set(levels.tolist()) == {2, 3, 4, 5}
    results = [
        value_and_gradient(
            branch,
            pyramid,
            boxes,
            sizes,
            upstream,
            monkeypatch,
            sampling_ratio=samples,
            aligned=aligned,
        )
        for branch in ("default", "tpu")
    ]
    for value in jax.tree.leaves(results):
        assert value.dtype == dtype
    rounding = 0 if dtype == jnp.float32 else 2**-7  # the next bfloat16
    chex.assert_trees_all_close(*results[::-1], atol=1.2e-5, rtol=rounding)
