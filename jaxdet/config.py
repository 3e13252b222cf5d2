"""Frozen dataclasses whose annotations carry their bounds, and parts that they share.

@checked_dataclass
class FocalLossConfig:
    alpha: Fraction = 0.25
    gamma: NonNegative = 2.0

FocalLossConfig(alpha=3)  # ValueError: alpha is 3; it must be in [0, 1]
"""

import dataclasses
import itertools
import math
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

T = TypeVar("T")
Kind = TypeVar("Kind", bound=type)


class ConfigError(ValueError):
    """A config that does not fit the detector, the data or the other hosts."""


@dataclasses.dataclass(frozen=True)
class InRange:
    """A bound on a number: `Annotated[float, InRange(0, 1)]`."""

    low: float = -math.inf  # the smallest number allowed
    high: float = math.inf  # the greatest
    above: bool = False  # whether `low` itself is excluded
    below: bool = False  # whether `high` itself is excluded

    def __contains__(self, value: float) -> bool:
        over = value > self.low if self.above else value >= self.low
        under = value < self.high if self.below else value <= self.high
        return over and under

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        opening, closing = "(" if self.above else "[", ")" if self.below else "]"
        return f"in {opening}{self.low:g}, {self.high:g}{closing}"


@dataclasses.dataclass(frozen=True)
class Rising:
    """A bound on a tuple of numbers: each is greater than the one before."""

    def __contains__(self, values: tuple[float, ...]) -> bool:
        return list(values) == sorted(set(values))

    def __str__(self) -> str:
        return "rising"


@dataclasses.dataclass(frozen=True)
class Consecutive:
    """A bound on a tuple of whole numbers: each is the one before, plus one."""

    def __contains__(self, values: tuple[int, ...]) -> bool:
        return all(b - a == 1 for a, b in itertools.pairwise(values))

    def __str__(self) -> str:
        return "consecutive"


@dataclasses.dataclass(frozen=True)
class NotEmpty:
    """A bound on a tuple: it has at least one item."""

    def __contains__(self, values: tuple) -> bool:
        return len(values) > 0

    def __str__(self) -> str:
        return "not empty"


Count = Annotated[int, InRange(1)]
Size = Annotated[int, InRange(0)]
Positive = Annotated[float, InRange(0, above=True)]
NonNegative = Annotated[float, InRange(0)]
Fraction = Annotated[float, InRange(0, 1)]
Probability = Annotated[float, InRange(0, 1, above=True, below=True)]
"""Neither impossible nor certain."""
PositiveFraction = Annotated[float, InRange(0, 1, above=True)]
Depth = Annotated[int, InRange(0, 100)]
"""Layers one after the other."""
PositiveDepth = Annotated[int, InRange(1, 100)]
"""The same where there is at least one."""
Level = Annotated[int, InRange(0, 16)]
"""Of a feature pyramid; its stride is two to this power."""
Levels = Annotated[tuple[Level, ...], NotEmpty(), Rising()]
PyramidLevels = Annotated[tuple[Level, ...], NotEmpty(), Consecutive()]
"""Finest first."""


@dataclass_transform(frozen_default=True)
def checked_dataclass(kind: Kind) -> Kind:
    """Makes a frozen dataclass that checks its fields against their annotations.

    A class may also have a method `relations`, which yields a field's name, whether its
    value fits the other fields, and what would be allowed, to end "it must be ...".
    """

    def __post_init__(self):
        hints = typing.get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            problem = _problem(value, hints[field.name])
            if problem:
                raise ConfigError(f"{field.name} is {value!r}; it must be {problem}")
        for name, fits, allowed in getattr(self, "relations", tuple)():
            if not fits:
                value = getattr(self, name)
                raise ConfigError(f"{name} is {value!r}; it must be {allowed}")

    kind.__post_init__ = __post_init__  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True)(kind)  # type: ignore[return-value]


def from_json(kind: type[T], values: Any) -> T:
    """Makes a config from what `json.loads(json.dumps(dataclasses.asdict(config)))` is.

    Raises:
      ValueError: for fields that `kind` lacks, and for values that it refuses.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{kind.__name__} is {values!r}; it must be an object")
    hints = typing.get_type_hints(kind)
    unknown = sorted(values.keys() - hints.keys())
    if unknown:
        raise ValueError(f"{kind.__name__} has no {', '.join(map(str, unknown))}")
    arguments = {}
    for name, value in values.items():
        nested = [hints[name], *typing.get_args(hints[name])]
        part = next(filter(dataclasses.is_dataclass, nested), None)
        if part is not None and value is not None:
            arguments[name] = from_json(part, value)  # type: ignore[arg-type]
        else:
            arguments[name] = tuples_from_lists(value)
    return kind(**arguments)


def tuples_from_lists(value: Any) -> Any:
    """Turns JSON's lists, nested ones too, into the tuples that they were."""
    return tuple(map(tuples_from_lists, value)) if isinstance(value, list) else value


def _problem(value: Any, hint: Any) -> str | None:
    """Says what a value of an annotation must be; None if it is that."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        inner, *bounds = arguments
        problem = _problem(value, inner)
        broken = [str(bound) for bound in bounds if not problem and value not in bound]
        return problem or " and ".join(broken) or None
    if origin is Literal:
        fits = any(type(value) is type(one) and value == one for one in arguments)
        return None if fits else f"one of {arguments}"
    if origin in (typing.Union, types.UnionType):
        problems = [_problem(value, argument) for argument in arguments]
        return None if None in problems else ", or ".join(filter(None, problems))
    if origin is tuple:
        return _problem_of_tuple(value, arguments)
    if hint is Any:
        return None
    if hint is None or hint is type(None):
        return None if value is None else "None"
    if hint in (int, float):
        return _problem_of_number(value, hint)
    if isinstance(hint, type) and not isinstance(value, hint):
        return f"of type {hint.__name__}"
    return None


def _problem_of_number(value: Any, hint: type) -> str | None:
    # A bool is an int to Python, and NumPy's numbers are no JSON.
    whole = isinstance(value, int) and not isinstance(value, bool)
    if hint is int:
        return None if whole else "a whole number"
    fits = whole or (isinstance(value, float) and math.isfinite(value))
    return None if fits else "a finite number"


def _problem_of_tuple(value: Any, hints: tuple) -> str | None:
    if not isinstance(value, tuple):
        return "a tuple"
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(value)
    if len(value) != len(hints):
        return f"a tuple of {len(hints)}"
    pairs = zip(value, hints, strict=True)
    problems = filter(None, (_problem(item, hint) for item, hint in pairs))
    first = next(problems, None)
    return first and f"a tuple, each of its items {first}"


@checked_dataclass
class Preprocessing:
    """What is subtracted from pixels and what they are divided by."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of red, green and blue, on a scale from 0 to 1; ImageNet's."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """Of the same."""


@checked_dataclass
class Anchors:
    """Anchor boxes of a pyramid's levels."""

    sizes: tuple[Annotated[tuple[Positive, ...], NotEmpty()], ...]
    """Square roots of the areas in canvas pixels, a tuple for each level."""
    ratios: Annotated[tuple[Positive, ...], NotEmpty()] = (0.5, 1.0, 2.0)
    """Height over width."""
    offset: Fraction = 0.5
    """Of the center within its cell, in strides; torchvision and detectron2 use 0."""
    rounded: bool = False
    """Whether sides are whole pixels; for torchvision's weights."""

    def relations(self) -> Iterator[tuple[str, bool, str]]:
        """Checks that all levels have as many sizes."""
        yield "sizes", len(set(map(len, self.sizes))) == 1, "tuples of one length"

    @property
    def per_cell(self) -> int:
        """Anchors of each cell."""
        return len(self.sizes[0]) * len(self.ratios)


@checked_dataclass
class Postprocessing:
    """How scored boxes become detections."""

    score_threshold: Fraction = 0.05
    """Detections that score lower are discarded."""
    pre_nms_topk: Count = 1000
    """Highest scores that reach the NMS."""
    nms_threshold: Fraction = 0.5
    """Of two boxes of a class with a higher IoU, the lower-scoring one is removed."""
    max_detections: Count = 100
    """Detections an image."""
