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
    ],
)
def test_a_number_out_of_range_is_named(field, value, allowed):
    with pytest.raises(ValueError) as error:
        TrainingConfig(**{field: value})
    for words in (field, repr(value), allowed):
        assert words in str(error.value)
