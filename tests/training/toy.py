"""A detector of a few dozen parameters that learns the mean box of an image."""

import dataclasses
import functools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.data.dataset import DataSet
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.detector import Detector, from_network
from jaxdet.ops.losses import device_mean_count
from jaxdet.structs import Batch, Detections, GroundTruth
from jaxdet.training.config import TrainingConfig
from tests.data.in_memory import in_memory_data_set

CANVAS = (16, 16)


class ToyNetwork(nn.Module):
    width: int = 4

    @nn.compact
    def __call__(self, pixels):
        features = nn.relu(nn.Conv(self.width, (3, 3), strides=8, name="stem")(pixels))
        features = features.mean((1, 2))  # so any canvas will do
        shift = self.variable("constants", "shift", lambda: jnp.full((1, 4), 8.0))
        return nn.Dense(4, name="box")(features) + shift.value


def loss(network, batch, key, *, axis_name=None):
    """Squared distance to every box, and to a random point of the image's own key."""
    predicted = network(batch.images / 255.0)
    truth = batch.truth
    count = device_mean_count(truth.valid, axis_name=axis_name)
    distance = jnp.square(predicted[:, None] - truth.boxes).sum(-1) / 256
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch.image_ids)
    points = jax.vmap(lambda key: jax.random.uniform(key, (4,)))(keys)
    images = device_mean_count(jnp.ones(len(predicted), bool), axis_name=axis_name)
    metrics = {
        "box_loss": jnp.sum(distance, where=truth.valid) / count,
        "noise_loss": 0.01
        * jnp.sum(jnp.square(predicted - 16 * points))
        / 256
        / images,
    }
    return sum(metrics.values()), metrics


def predict(network, batch):
    boxes = network(batch.images / 255.0)[:, None]
    sides = jnp.tile(batch.sizes[:, None, ::-1], (1, 1, 2)).astype(boxes.dtype)
    return Detections(
        boxes=jnp.clip(boxes, 0.0, sides),
        scores=jnp.full(boxes.shape[:2], 0.9),
        labels=jnp.zeros(boxes.shape[:2], jnp.int32),
        valid=jnp.ones(boxes.shape[:2], bool),
    )


@functools.cache  # so that it is compiled once
def toy(width: int = 4) -> Detector:
    return from_network(
        ToyNetwork(width),
        loss=loss,
        predict=predict,
        num_classes=1,
        builder=partial(toy, width),
    )


def batch_of(rng: np.random.Generator, count: int) -> Batch:
    """Noise, with 0 to 3 objects an image: devices with unlike numbers of them."""
    corners = rng.uniform(0, 8, (count, 3, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 8, (count, 3, 2))], -1)
    valid = np.arange(3) < rng.integers(0, 4, (count, 1))
    return Batch(
        images=rng.integers(0, 256, (count, *CANVAS, 3), dtype=np.uint8),
        sizes=np.full((count, 2), 16, np.int32),
        scales=np.ones((count, 2), np.float32),
        image_ids=np.arange(count, dtype=np.int32),
        truth=GroundTruth(
            boxes=np.where(valid[..., None], boxes, 0).astype(np.float32),
            labels=np.zeros((count, 3), np.int32),
            valid=valid,
            crowd=np.zeros((count, 3), bool),
        ),
    )


def data_set(images: int = 12, *, tall: int = 0) -> DataSet:
    """Noise with one box an image, in memory; the last `tall` images are upright."""
    rng = np.random.default_rng(1)
    sizes = np.full((images, 2), 16)
    sizes[images - tall :, 1] = 8
    pixels = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    objects = [[(1, 2, *rng.integers(5, 8, 2), 0)] for _ in range(images)]
    made = in_memory_data_set(
        pixels, objects, class_names=("thing",), category_ids=(7,)
    )
    return dataclasses.replace(made, name="toy")


def config(**changes) -> TrainingConfig:
    values = {
        "steps": 8,
        "batch_size": 4,
        "learning_rate": 0.05,
        "reference_batch_size": 4,
        "warmup_steps": 2,
        "log_every": 2,
        "checkpoint_every": 3,
        "pictures": 0,
        "input": InputConfig(canvases=(CANVAS,), max_objects=3, workers=0),
    }
    return TrainingConfig(**values | changes)
