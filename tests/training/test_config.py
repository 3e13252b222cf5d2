import math

import numpy as np
import pytest

from jaxdet.training.config import TrainingConfig


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("steps", 0, "at least 1"),
        ("learning_rate", 0.0, "above 0"),
        ("momentum", 1.0, "[0, 1)"),
        ("schedule", "linear", "cosine"),
        ("milestones", (0.9, 0.5), "rising"),
        ("milestones", (60_000,), "fractions"),
        ("warmup_steps", 90_001, "steps (90000)"),
        ("clip_norm", 0.0, "above 0"),
        ("accumulate", 0, "at least 1"),
        ("ema_decay", 1.0, "(0, 1)"),
        ("profile", -1, "0 or more"),
        ("learning_rate", math.inf, "a finite number"),
        ("weight_decay", math.inf, "a finite number"),
        ("momentum", math.nan, "a finite number"),
        ("clip_norm", math.inf, "a finite number"),
        ("milestones", (0.5, math.nan), "finite numbers"),
        ("steps", 10.5, "a whole number"),
        ("batch_size", 2.0, "a whole number"),
        ("seed", None, "a whole number"),
        ("log_every", "20", "a whole number"),
    ],
)
def test_a_number_out_of_range_is_named(field, value, allowed):
    with pytest.raises(ValueError) as error:
        TrainingConfig(**{field: value})
    for words in (field, repr(value), allowed):
        assert words in str(error.value)


def test_numbers_of_numpy_are_numbers():
    config = TrainingConfig(steps=np.int64(2000), learning_rate=np.float32(0.5))
    assert config == TrainingConfig(steps=2000, learning_rate=0.5)
    assert TrainingConfig(momentum=0, weight_decay=1) is not None  # whole ones are real
