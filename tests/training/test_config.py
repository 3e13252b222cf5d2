import math

import pytest

from jaxdet.training.config import TrainingConfig


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("milestones", (0.9, 0.5), "rising"),
        ("milestones", (0.5, math.nan), "a finite number"),
        ("warmup_steps", 90_001, "at most steps (90000)"),
    ],
)
def test_a_number_out_of_range_is_named(field, value, allowed):
    with pytest.raises(ValueError) as error:
        TrainingConfig(**{field: value})
    for words in (field, repr(value), allowed):
        assert words in str(error.value)


@pytest.mark.parametrize("evaluate_every", [0, 90_000])
def test_patience_needs_a_schedule(evaluate_every):
    allowed = rf"0 unless evaluate_every \({evaluate_every}\) is above 0 and below"
    with pytest.raises(ValueError, match=f"patience is 2; it must be {allowed}"):
        TrainingConfig(patience=2, evaluate_every=evaluate_every)
