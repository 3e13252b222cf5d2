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
