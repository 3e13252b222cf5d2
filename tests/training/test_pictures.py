import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.training import pictures
from tests.training import toy


def test_training_images_are_drawn_with_boxes_and_masks():
    batch = toy.batch_of(np.random.default_rng(0), 3)
    data_set, config = toy.data_set(), toy.config(pictures=3)

    def draw(batch):
        return pictures.draw_training_images(batch, data_set, config)["training_input"]

    boxes_only = draw(batch)
    assert boxes_only.shape[2] == 3 and min(boxes_only.shape[:2]) > 2 * 480
    cells = np.ones((3, 3, 4, 4), np.float32)
    masked = batch.replace(truth=batch.truth.replace(masks=cells))
    assert (draw(masked) != boxes_only).any()
    fractions = batch.replace(images=batch.images.astype(np.float32))
    assert (draw(fractions) == boxes_only).all()


def test_masks_and_names_of_detections_are_drawn():
    batch = toy.batch_of(np.random.default_rng(0), 1)
    found = toy.predict(lambda pixels: jnp.array([[2.0, 4.0, 8.0, 12.0]]), batch)
    found = jax.device_get(found.replace(masks=jnp.ones((1, 1, 4, 4))))

    def draw(found, name):
        return pictures._draw_truth_and_detections(batch, found, 0, ("thing",), (name,))

    whole = draw(found, "thing")
    boxes_only = draw(found.replace(masks=None), "thing")
    renamed = draw(found, "object")
    middle = whole.shape[1] // 2
    for other in (boxes_only, renamed):
        different = (whole != other).any(axis=(0, 2))
        assert different[middle:].any() and not different[:middle].any()
