"""The laws every detector obeys, whatever it computes.

A detector joins with one line in its own test file:

    class TestLaws(laws.DetectorLaws, detector=small_retinanet): ...

where `small_retinanet(dtype)` builds it for three classes and 64x64 images, fast to
compile and with norms that train from scratch. Two detections of a class overlap by at
most `nms_threshold`; one batch is overfitted for `steps`, by gradients that `jit`
compiles. Without classes, all labels that are detected are 0.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdet.detectors.serialization import deserialize
from jaxdet.ops import boxes as box_ops
from tests.detectors import scenes
from tests.test_structs import assert_shapes_as_annotated

# For what runs hundreds of times: with the optimizations that `conftest` leaves out.
optimized_jit = partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 3,
        "xla_llvm_disable_expensive_passes": False,
    },
)
overlaps = jax.jit(jax.vmap(box_ops.pairwise_iou))


class Compiled:
    """A detector, its variables, and its functions compiled once for all laws."""

    def __init__(self, detector, jit):
        def loss(*arguments):
            self.traces += 1
            return detector.loss(*arguments)

        self.detector = detector
        self.variables = jax.jit(detector.init)(jax.random.key(0), scenes.batch())
        self.loss = jax.jit(loss)
        self.traces = 0  # of the loss: how often it was compiled
        self.predict = jax.jit(detector.predict)
        self.gradients = jit(partial(_gradients, detector))


class DetectorLaws:
    """Tests; see the module's docstring."""

    def __init_subclass__(
        cls, *, detector, nms_threshold=0.5, steps=200, jit=optimized_jit
    ):
        cls.make = staticmethod(detector)
        cls.nms_threshold = nms_threshold
        cls.steps = steps
        cls.jit = staticmethod(jit)

    @pytest.fixture(scope="class")
    def compiled(self):
        return Compiled(self.make(jnp.float32), self.jit)

    @pytest.fixture(scope="class")
    def trained(self, compiled):
        """Variables after learning one batch by heart, and that batch."""
        batch = scenes.batch()
        return _overfit(compiled, batch, self.steps), batch

    def test_its_recipe_builds_it_again(self):
        recipe = self.make(jnp.float32).recipe
        assert deserialize(recipe).recipe == recipe

    def test_padding_changes_nothing(self, compiled, trained):
        """Neither that of the canvas nor that of the object slots."""
        variables, small = trained
        large = scenes.batch(canvas=(96, 128), slots=9)
        np.testing.assert_array_equal(large.images[:, :64, :64], small.images)
        # With fresh variables: a loss of almost nothing would be mostly rounding.
        chex.assert_trees_all_close(
            _loss(compiled, compiled.variables, small),
            _loss(compiled, compiled.variables, large),
            rtol=1e-5,
        )
        chex.assert_trees_all_close(
            compiled.predict(variables, small),
            compiled.predict(variables, large),
            rtol=1e-3,
            atol=1e-3,
        )

    def test_object_order_changes_nothing(self, compiled):
        batch = scenes.batch()
        shuffled = jax.tree.map(lambda x: x[:, ::-1], batch.truth)
        chex.assert_trees_all_close(
            _loss(compiled, compiled.variables, batch),
            _loss(compiled, compiled.variables, batch.replace(truth=shuffled)),
            rtol=1e-5,
        )

    def test_images_without_objects_teach_the_background(self, compiled):
        batch = scenes.batch(counts=(0, 0, 0, 0))
        (loss, _), gradients = compiled.gradients(compiled.variables, batch)
        chex.assert_tree_all_finite((loss, gradients))
        assert loss > 0
        assert any(map(np.any, jax.tree.leaves(gradients)))

    def test_crowds_are_no_targets(self, compiled):
        batch = scenes.batch()
        truth = batch.truth
        crowds = truth.replace(crowd=truth.valid)
        nothing = truth.replace(valid=np.zeros_like(truth.valid))
        chex.assert_trees_all_close(
            _loss(compiled, compiled.variables, batch.replace(truth=crowds)),
            _loss(compiled, compiled.variables, batch.replace(truth=nothing)),
            rtol=1e-5,
        )

    def test_four_devices_make_the_update_of_one(self, compiled):
        batch = scenes.batch()
        alone = compiled.gradients(compiled.variables, batch)
        spread = jax.tree.map(lambda x: x[:, None], batch)
        step = partial(_gradients, compiled.detector, axis_name="devices")
        together = jax.pmap(step, "devices", in_axes=(None, 0), out_axes=(None, None))
        (loss, metrics), gradients = together(compiled.variables, spread)
        chex.assert_trees_all_close((loss, metrics), alone[0], rtol=1e-4)
        largest = max(np.max(np.abs(g)) for g in jax.tree.leaves(alone[1]))
        chex.assert_trees_all_close(gradients, alone[1], rtol=1e-3, atol=1e-5 * largest)

    def test_one_batch_can_be_overfitted(self, compiled, trained):
        variables, batch = trained
        detections = jax.device_get(compiled.predict(variables, batch))
        overlap = np.asarray(overlaps(batch.truth.boxes, detections.boxes))
        for i, count in enumerate(np.sum(batch.truth.valid, axis=1)):
            # The best detections, as many as there are objects, are those objects.
            assert np.all(detections.scores[i, :count] > 0.5)
            labels = batch.truth.labels[i, :count]
            if compiled.detector.num_classes is None:
                labels = np.zeros_like(labels)
            same = labels[:, None] == detections.labels[i, None, :count]
            right = (overlap[i, :count, :count] > 0.7) & same
            assert np.all(np.sum(right, axis=1) == 1)
            if count == 0:
                assert not np.any(detections.scores[i] > 0.5)

    def test_one_compilation_however_many_objects(self, compiled):
        _loss(compiled, compiled.variables, scenes.batch())
        before = compiled.traces
        for seed, counts in enumerate([(1, 0, 0, 1), (0, 0, 0, 0), (4, 4, 4, 4)]):
            batch = scenes.batch(seed, counts=counts)
            compiled.loss(compiled.variables, batch, jax.random.key(seed))
        assert compiled.traces == before > 0

    def test_nothing_is_asked_of_the_host(self, compiled):
        batch, key = scenes.batch(), jax.random.key(0)
        loss = compiled.loss.trace(compiled.variables, batch, key)
        predict = compiled.predict.trace(compiled.variables, batch)
        for traced in (loss, predict):
            assert "dot_general" in steps_on_device(traced.jaxpr)

    def test_bfloat16_modules_give_float32_losses_close_by(self, compiled):
        detector = self.make(jnp.bfloat16)
        batch, key = scenes.batch(), jax.random.key(0)
        half = jax.jit(detector.loss)(compiled.variables, batch, key)
        full = compiled.loss(compiled.variables, batch, key)
        chex.assert_type(jax.tree.leaves(half), jnp.float32)
        chex.assert_trees_all_close(half[0], full[0], rtol=0.03)

    @pytest.mark.parametrize("learned", [False, True])
    def test_predictions_are_sane(self, compiled, trained, learned):
        batch = scenes.batch(7, counts=(2, 4, 0, 1))
        variables = trained[0] if learned else noisy(compiled.variables)
        detections = jax.device_get(compiled.predict(variables, batch))
        chex.assert_tree_all_finite(detections)
        assert_shapes_as_annotated(detections)
        assert (detections.masks is not None) == compiled.detector.has_masks
        overlap = np.asarray(overlaps(detections.boxes, detections.boxes))
        assert np.any(detections.valid)
        for i, (height, width) in enumerate(batch.sizes):
            valid = detections.valid[i]
            found, scores = detections.boxes[i, valid], detections.scores[i, valid]
            labels = detections.labels[i, valid]
            assert np.all(found >= 0)
            assert np.all(found[:, 0::2] <= width) and np.all(found[:, 1::2] <= height)
            assert np.all(np.diff(scores) <= 0) and np.all((scores > 0) & (scores <= 1))
            same = (labels[:, None] == labels[None]) & ~np.eye(len(labels), dtype=bool)
            among_found = overlap[i][valid][:, valid]
            assert np.all(among_found[same] <= self.nms_threshold + 1e-5)
        assert not np.any(detections.boxes[~detections.valid])
        assert not np.any(detections.scores[~detections.valid])


def steps_on_device(jaxpr) -> set[str]:
    """Names of all operations of a traced function, none of which asks the host."""
    names = {step.primitive.name for step in equations(jaxpr)}
    for name in names:
        assert not any(word in name for word in ("callback", "feed", "print")), name
    return names


def equations(jaxpr):
    """All operations of a traced function, and of functions within it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(tuple(equation.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def _loss(compiled: Compiled, variables, batch):
    return compiled.loss(variables, batch, jax.random.key(0))


def _gradients(detector, variables, batch, axis_name=None):
    constants = {name: v for name, v in variables.items() if name != "params"}

    def loss(params):
        key = jax.random.key(0)
        variables = {"params": params, **constants}
        return detector.loss(variables, batch, key, axis_name=axis_name)

    results = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    return results if axis_name is None else jax.lax.pmean(results, axis_name)


def _overfit(compiled: Compiled, batch, steps: int):
    optimizer = optax.adam(optax.cosine_decay_schedule(0.003, steps))

    @jax.jit
    def update(gradients, state, params):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    variables = compiled.variables
    state = jax.jit(optimizer.init)(variables["params"])
    for _ in range(steps):
        _, gradients = compiled.gradients(variables, batch)
        params, state = update(gradients, state, variables["params"])
        variables = {**variables, "params": params}
    return variables


def noisy(variables):
    """Weights that give many confident detections, all of them nonsense."""
    rng = np.random.default_rng(1)

    def moved(leaf):
        noise = rng.normal(0, 0.1, leaf.shape)
        return np.asarray(leaf) + noise.astype(np.float32)

    return {**variables, "params": jax.tree.map(moved, variables["params"])}
