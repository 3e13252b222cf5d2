import math

import pytest

from jaxdet.training.config import TrainingConfig


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("momentum", 1.0, "in [0, 1)"),
        ("schedule", "linear", "one of ('step', 'cosine')"),
        ("milestones", (0.9, 0.5), "rising"),
        ("milestones", (0.5, math.nan), "a finite number"),
        ("milestones", (60_000.0,), "in (0, 1)"),
        ("warmup_steps", 90_001, "at most steps (90000)"),
        ("clip_norm", 0.0, "above 0"),
        ("ema_decay", 1.0, "in (0, 1)"),
        ("batch_size", 2.0, "a whole number"),
    ],
)
def test_a_number_out_of_range_is_named(field, value, allowed):
    with pytest.raises(ValueError) as error:
        TrainingConfig(**{field: value})
    for words in (field, repr(value), allowed):
        assert words in str(error.value)
