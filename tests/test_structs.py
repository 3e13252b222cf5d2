"""Structs against the shapes in their annotations."""

import typing

import numpy as np
import pytest
from jaxtyping import jaxtyped

from tests.detectors import scenes


def assert_shapes_as_annotated(struct):
    """Checks arrays and, within, those of other structs; letters mean the same."""
    with jaxtyped("context"):
        for name, hint in typing.get_type_hints(type(struct)).items():
            kinds = typing.get_args(hint) or (hint,)  # of `... | None`
            assert any(isinstance(getattr(struct, name), kind) for kind in kinds), name
    for value in vars(struct).values():
        if hasattr(value, "__dataclass_fields__"):
            assert_shapes_as_annotated(value)


def test_a_batch_of_four_images():
    batch = scenes.batch()
    assert batch.images.shape == (4, 64, 64, 3) and batch.truth.boxes.shape == (4, 5, 4)
    assert_shapes_as_annotated(batch)


@pytest.mark.parametrize(
    "change",
    [
        {"sizes": np.zeros((3, 2), np.int32)},  # of three images
        {"scales": np.ones((4, 2), np.int32)},  # whole numbers
        {"images": np.zeros((4, 3, 64, 64), np.uint8)},  # channels first
    ],
)
def test_other_shapes_and_dtypes_are_found(change):
    with pytest.raises(AssertionError):
        assert_shapes_as_annotated(scenes.batch().replace(**change))
