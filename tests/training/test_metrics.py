import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.training.metrics import NonFiniteLossError, RecentMetrics
from tests.training import toy


def recent(*losses):
    """Three steps, four images each, from step 5 on."""
    metrics = RecentMetrics(toy.data_set(), toy.config())
    for step, values in enumerate(losses, 5):
        ids = np.arange(4) + step - 5
        metrics.add(step, ids, {name: jnp.asarray(x) for name, x in values.items()})
    return metrics


def test_means_and_rate():
    metrics = recent({"loss": 1.0}, {"loss": 2.0}, {"loss": 6.0})
    values = metrics.read()
    assert values["loss"] == 3.0
    # Of 8 steps the seventh, counted from 0 the sixth, is past the milestone at 5 1/3.
    assert values["learning_rate"] == pytest.approx(0.05 / 10)


def test_speed_and_wait_by_the_clock(monkeypatch):
    clock = iter([10.0, 11.0, 12.5, 15.0])  # made, asked for data, got it, read
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    metrics = RecentMetrics(toy.data_set(), toy.config())
    assert metrics.next_batch(iter(["batch"])) == "batch"
    metrics.add(1, np.arange(4), {"loss": jnp.asarray(1.0)})
    metrics.add(2, np.arange(4), {"loss": jnp.asarray(1.0)})
    metrics.leave_out(2.0)
    monkeypatch.setattr(jax, "device_get", lambda values: values)
    values = metrics.read()
    assert values["images_per_second"] == 2 * 4 / 3.0
    assert values["data_time"] == 1.5 / 3.0


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"box_loss": jnp.nan, "loss": jnp.nan, "gradient_norm": jnp.nan}, "box_loss"),
        ({"box_loss": 1.0, "loss": 1.0, "gradient_norm": jnp.inf}, "gradient_norm"),
    ],
)
def test_the_first_bad_step_and_its_terms_are_named(bad, named):
    good = {"box_loss": 1.0, "loss": 1.0, "gradient_norm": 1.0}
    with pytest.raises(NonFiniteLossError) as error:
        recent(good, bad, dict.fromkeys(good, jnp.nan)).read()
    message = str(error.value)
    assert message.startswith(f"{named} is {bad[named]} at step 6, images [1, 2, 3, 4]")
