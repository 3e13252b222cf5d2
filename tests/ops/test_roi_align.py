import math
import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops import roi_align

STRIDE = 8
BOXES = np.array(
    [
        [0, 0, 96, 72],  # all of the map
        [20, 12, 20, 12],  # a point
        [-60, -50, -30, -40],  # outside
        [80, 60, 140, 130],  # half outside
        [13.7, 5.1, 52.3, 9.8],
        [-7, 30, 1, 70],
        [0, 0, 0, 0],  # padding
    ],
    np.float32,
)


@pytest.fixture(autouse=True, params=["default", "tpu"])
def branch(request, monkeypatch):
    """Runs each test both as on CPUs and GPUs and as on TPUs."""

    def choose(*arguments, **branches):
        return branches[request.param](*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", choose)
    return request.param


@pytest.fixture
def features(rng):
    return rng.normal(size=(9, 12, 3)).astype(np.float32)


def plane(height, width, stride, a=0.3, b=-0.2, c=5.0):
    """A map of the values `a x + b y + c`, x and y in pixels."""
    y, x = (np.indices((height, width)) + 0.5) * stride
    return (a * x + b * y + c)[..., None].astype(np.float32)


def test_one_box_by_hand(transform):
    # Cells 2 pixels wide; the box is the middle two, its bins are those cells.
    features = jnp.array([[[1.0], [2.0], [4.0], [8.0]]])
    boxes = jnp.array([[2.0, 0.0, 6.0, 2.0]])
    align = partial(roi_align.roi_align, stride=2, output_size=2, sampling_ratio=1)
    chex.assert_trees_all_close(
        transform(align)(features, boxes)[0, :, :, 0], jnp.array([[2.0, 4.0]] * 2)
    )
    # Half a cell further right: between the middle two, and between the last two.
    legacy = transform(partial(align, aligned=False))(features, boxes)
    chex.assert_trees_all_close(legacy[0, :, :, 0], jnp.array([[3.0, 6.0]] * 2))


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("samples", [1, 2, 3, 0])
def test_agrees_with_torchvision(golden_ops, samples, aligned):
    name = f"stride 8 size 7 samples {samples or -1} aligned {aligned}"
    align = partial(
        roi_align.roi_align,
        stride=8,
        output_size=7,
        sampling_ratio=samples,
        aligned=aligned,
    )
    pooled = jax.jit(align)(golden_ops["roi/features (NHWC)"], golden_ops["roi/boxes"])
    np.testing.assert_allclose(pooled, golden_ops[f"roi/align {name}"], atol=2e-5)


@pytest.mark.parametrize("aligned", [True, False])
def test_gradient_agrees_with_torchvision(golden_ops, aligned):
    upstream = golden_ops["roi/upstream gradient [R,7,7,C]"]

    def pull(features, boxes):
        align = partial(roi_align.roi_align, stride=8, aligned=aligned)
        return jax.vjp(align, features, boxes)[1](upstream)

    gradient, of_boxes = jax.jit(pull)(
        golden_ops["roi/features (NHWC)"], golden_ops["roi/boxes"]
    )
    name = f"roi/align samples 2 aligned {aligned}, gradient of features"
    np.testing.assert_allclose(gradient, golden_ops[name], atol=2e-5)
    assert (of_boxes == 0).all()


@pytest.mark.parametrize("branch", ["default"], indirect=True)  # of gathers alone
@pytest.mark.parametrize("samples", [1, 2])
def test_few_cells_are_summed_as_many_are(rng, features, samples, monkeypatch):
    def answers():
        align = partial(roi_align.roi_align, stride=STRIDE, sampling_ratio=samples)
        pooled, pull = jax.vjp(lambda features: align(features, BOXES), features)
        return pooled, *pull(jnp.sin(pooled))

    few = jax.jit(lambda: answers())()
    monkeypatch.setattr(roi_align, "_FEW_CELLS", 0)
    many = jax.jit(lambda: answers())()  # a new function, so that it is traced again
    chex.assert_trees_all_close(many, few, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("optimized")
def test_the_loop_of_the_gradient_has_a_known_length(features, branch):
    def gradient(features, boxes):
        align = partial(roi_align.roi_align, boxes=boxes, stride=STRIDE)
        return jax.grad(lambda x: jnp.sum(align(x) ** 2))(features)

    text = jax.jit(gradient).lower(features, BOXES).compile().as_text()
    lengths = re.findall(r'known_trip_count":\{"n":"(\d+)"', text)
    # 4 rows times 4 columns, without a word from the host; matrices have no such loop.
    assert ("16" in lengths) == (branch == "default")


def test_the_gradient_is_the_transpose(rng, features):
    @jax.jit
    def value_and_gradient(features, upstream):
        align = partial(
            roi_align.roi_align, stride=STRIDE, output_size=3, sampling_ratio=0
        )
        pooled, pull = jax.vjp(align, features, BOXES)
        return pooled, pull(upstream)[0]

    upstream = rng.normal(size=(len(BOXES), 3, 3, 3)).astype(np.float32)
    _, gradient = value_and_gradient(features, upstream)
    assert np.isfinite(gradient).all()
    # The op is linear: its derivative along any map is the op of that map.
    other = rng.normal(size=features.shape).astype(np.float32)
    pooled, _ = value_and_gradient(other, upstream)
    np.testing.assert_allclose(
        np.vdot(gradient, other), np.vdot(upstream, pooled), rtol=1e-4
    )


@pytest.mark.parametrize("samples", [3, 0])
def test_of_a_plane_are_its_values_at_the_bin_centers(rng, samples):
    corners = np.sort(rng.uniform(4, 60, (20, 2, 2)), axis=1).astype(np.float32)
    boxes = corners.reshape(20, 4)
    align = partial(
        roi_align.roi_align, stride=4, output_size=5, sampling_ratio=samples
    )
    pooled = jax.jit(align)(plane(16, 16, 4), boxes)
    middle = (np.arange(5) + 0.5) / 5
    x = boxes[:, 0, None] + middle * (boxes[:, 2] - boxes[:, 0])[:, None]
    y = boxes[:, 1, None] + middle * (boxes[:, 3] - boxes[:, 1])[:, None]
    expected = 0.3 * x[:, None] - 0.2 * y[:, :, None] + 5
    np.testing.assert_allclose(pooled[..., 0], expected, atol=1e-4)


def random_pyramid(rng, levels):
    """Of 72x96 pixels."""
    shapes = {level: (-(-72 // 2**level), -(-96 // 2**level), 2) for level in levels}
    return {
        level: rng.normal(size=shape).astype(np.float32)
        for level, shape in shapes.items()
    }


def cut_and_padded(pyramid, size, value):
    """The cells that touch an image, at least one, and these with a margin."""
    cut, padded = {}, {}
    for level, features in pyramid.items():
        rows, columns = (max(math.ceil(x / 2**level), 1) for x in size)
        cut[level] = features[:rows, :columns]
        padded[level] = np.full_like(features, value)
        padded[level][:rows, :columns] = cut[level]
    return cut, padded


@pytest.mark.parametrize("samples", [2, 0])
@pytest.mark.parametrize("levels", [(3,), (3, 4)], ids=["map", "pyramid"])
def test_what_lies_beyond_the_image_does_not_count(rng, levels, samples):
    # They end within a cell, between two, with the map; and an image of nothing.
    sizes = [(33, 57), (40, 96), (72, 96), (0, 0)]
    pyramid = random_pyramid(rng, levels)

    @jax.jit
    def value_and_gradient(pyramid, image_size=None):
        options = {
            "output_size": 3,
            "sampling_ratio": samples,
            "image_size": image_size,
        }

        boxes = jnp.asarray(BOXES)

        def pool(pyramid):
            if levels == (3,):
                return roi_align.roi_align(pyramid[3], boxes, stride=8, **options)
            return roi_align.pyramid_roi_align(
                pyramid, boxes, canonical_size=16, canonical_level=3, **options
            )

        pooled, pull = jax.vjp(pool, pyramid)
        return pooled, pull(jnp.cos(pooled))[0]

    images, expected = [], []
    for size in sizes:
        cut, padded = cut_and_padded(pyramid, size, np.nan)
        pooled, gradient = value_and_gradient(cut)
        margins = {
            level: [
                (0, x - y)
                for x, y in zip(features.shape, cut[level].shape, strict=True)
            ]
            for level, features in pyramid.items()
        }
        gradient = {level: np.pad(gradient[level], margins[level]) for level in levels}
        images.append(padded)
        expected.append((pooled, gradient))
    images, expected = (
        jax.tree.map(lambda *x: np.stack(x), *x) for x in (images, expected)
    )
    together = jax.jit(jax.vmap(value_and_gradient))(images, np.array(sizes))
    chex.assert_trees_all_close(together, expected, atol=1e-5)


@pytest.mark.parametrize("samples", [2, 0])
def test_no_boxes(features, samples):
    @jax.jit
    def value_and_gradient(features, boxes):
        align = partial(roi_align.roi_align, stride=STRIDE, sampling_ratio=samples)
        pooled, pull = jax.vjp(align, features, boxes)
        return pooled, pull(pooled)[0]

    pooled, gradient = value_and_gradient(features, np.zeros((0, 4), np.float32))
    assert pooled.shape == (0, 7, 7, 3)
    assert gradient.shape == features.shape and not np.any(gradient)


def test_bfloat16_features_are_summed_in_float32(rng, features):
    upstream = jnp.asarray(rng.normal(size=(len(BOXES), 3, 3, 3)), jnp.bfloat16)
    coarse = jnp.asarray(features, jnp.bfloat16)

    @jax.jit
    def value_and_gradient(features, upstream):
        align = partial(
            roi_align.roi_align, boxes=jnp.asarray(BOXES), stride=STRIDE, output_size=3
        )
        pooled, pull = jax.vjp(align, features)
        return pooled, pull(upstream)[0]

    pooled = value_and_gradient(coarse, upstream)
    exact = value_and_gradient(coarse.astype(jnp.float32), upstream.astype(jnp.float32))
    chex.assert_trees_all_equal(
        pooled, jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact)
    )


def test_levels_by_hand(transform):
    sides = jnp.array([0, 10, 111, 112, 223, 224, 447, 448, 1e5])
    boxes = jnp.stack([0 * sides, 0 * sides, 4 * sides, sides / 4], axis=-1)
    assign_levels = partial(roi_align.assign_levels, levels=(2, 3, 4, 5))
    levels = transform(assign_levels)(boxes)
    assert levels.tolist() == [2, 2, 2, 3, 3, 4, 4, 5, 5]
    finer = assign_levels(boxes, canonical_size=56, canonical_level=4)
    assert finer.tolist() == [2, 2, 4, 5, 5, 5, 5, 5, 5]


def test_levels_with_a_gap_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 4\].*finest to coarsest"):
        roi_align.assign_levels(jnp.zeros((1, 4)), (4, 2))


def multiscale(golden_ops):
    names = {level: f"multiscale/level{level} (NHWC)" for level in (2, 3, 4, 5)}
    pyramid = {level: golden_ops[name] for level, name in names.items()}
    return pyramid, jnp.asarray(golden_ops["multiscale/boxes"])


def test_pyramid_agrees_with_torchvision(golden_ops):
    pyramid, boxes = multiscale(golden_ops)
    pooled = jax.jit(partial(roi_align.pyramid_roi_align, aligned=False))(
        pyramid, boxes
    )
    name = "multiscale/align canvas 256x320 size 7 samples 2 aligned False"
    np.testing.assert_allclose(pooled, golden_ops[name], atol=2e-5)


def test_each_box_reads_its_own_level(rng, golden_ops):
    pyramid, boxes = multiscale(golden_ops)
    levels = np.asarray(roi_align.assign_levels(boxes, sorted(pyramid)))
    assert set(levels) == {2, 3, 4}

    upstream = rng.normal(size=(len(boxes), 7, 7, 4)).astype(np.float32)

    def own_level(pyramid):
        return roi_align.pyramid_roi_align(pyramid, boxes, sampling_ratio=0)

    def every_level(pyramid):
        pooled = 0
        for level, features in pyramid.items():
            align = partial(roi_align.roi_align, stride=2**level, sampling_ratio=0)
            pooled += align(features, boxes) * (levels == level)[:, None, None, None]
        return pooled

    def value_and_gradient(pool):
        def both(pyramid, upstream):
            pooled, pull = jax.vjp(pool, pyramid)
            return pooled, pull(upstream)[0]

        return jax.jit(both)(pyramid, upstream)

    expected = value_and_gradient(every_level)
    chex.assert_trees_all_close(value_and_gradient(own_level), expected, atol=1e-4)


def test_more_samples_than_there_may_be(features, monkeypatch):
    # A bin of 12 cells by 9, yet two samples each way: as if 2 had been asked for.
    monkeypatch.setattr(roi_align, "MAX_SAMPLING_RATIO", 2)
    align = partial(roi_align.roi_align, stride=STRIDE, output_size=1)
    adaptive, two = (
        jax.jit(partial(align, sampling_ratio=samples))(features, BOXES[:1])
        for samples in (0, 2)
    )
    chex.assert_trees_all_close(adaptive, two, atol=1e-5)
