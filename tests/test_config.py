import dataclasses
import json
import math
import re
from typing import Annotated, Literal

import pytest

from jaxdet import config
from jaxdet.config import InRange, Preprocessing, checked_dataclass


@checked_dataclass
class Part:
    size: config.Count = 3


@checked_dataclass
class Whole:
    rate: config.Fraction = 0.5
    count: config.Size = 0
    warmup: Annotated[float, InRange(0, 1, above=True, below=True)] = 0.1
    mode: Literal["a", "b"] = "a"
    flag: bool = False
    clip: config.Positive | None = None
    pairs: tuple[tuple[config.Count, config.Count], ...] = ((1, 2),)
    levels: config.Levels = (3, 4)
    part: Part = dataclasses.field(default_factory=Part)

    def relations(self):
        yield "count", self.count <= 10 * self.rate, f"at most {10 * self.rate:g}"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rate", 1.5, "rate is 1.5; it must be in [0, 1]"),
        ("rate", math.nan, "rate is nan; it must be a finite number"),
        ("rate", "1", "rate is '1'; it must be a finite number"),
        ("count", -1, "count is -1; it must be at least 0"),
        ("count", 1.0, "count is 1.0; it must be a whole number"),
        ("count", True, "count is True; it must be a whole number"),
        ("count", 6, "count is 6; it must be at most 5"),
        ("warmup", 0.0, "warmup is 0.0; it must be in (0, 1)"),
        ("mode", "c", "mode is 'c'; it must be one of ('a', 'b')"),
        ("flag", 1, "flag is 1; it must be of type bool"),
        ("clip", 0.0, "clip is 0.0; it must be above 0, or None"),
        ("pairs", ((1, 0),), "it must be a tuple, each of its items a tuple, each"),
        ("pairs", ((1,),), "it must be a tuple, each of its items a tuple of 2"),
        ("pairs", [(1, 2)], "pairs is [(1, 2)]; it must be a tuple"),
        ("levels", (4, 3), "levels is (4, 3); it must be rising"),
        ("levels", (), "levels is (); it must be not empty"),
        ("part", None, "part is None; it must be of type Part"),
    ],
)
def test_values_out_of_bounds_are_named(field, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Whole(**{field: value})


@pytest.mark.parametrize(
    "values", [{}, {"clip": 1}, {"pairs": ()}, {"part": Part(1)}, {"mode": "b"}]
)
def test_values_in_bounds_come_back_from_json(values):
    whole = Whole(**values)
    written = json.loads(json.dumps(dataclasses.asdict(whole)))
    assert config.from_json(Whole, written) == whole


@pytest.mark.parametrize("values", [3, None, [], {"speed": 1}, {"part": 3}])
def test_json_that_is_no_config_is_refused(values):
    with pytest.raises(ValueError, match=r"must be an object|has no speed"):
        config.from_json(Whole, values)


def test_configs_are_frozen_and_checked_when_replaced():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Whole().rate = 0.1
    with pytest.raises(ValueError, match="std"):
        dataclasses.replace(Preprocessing(), std=(1.0, 1.0, 0.0))
