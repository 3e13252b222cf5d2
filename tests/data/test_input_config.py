import re

import pytest

from jaxdet.data.input_config import InputConfig, scale_canvas


def test_scaled_canvases_by_hand():
    # 50 and 150 are rounded to 64 and 160; a factor of 1 rounds nothing.
    config = InputConfig(canvases=((64, 100), (96, 64)), multi_scale=(0.5, 1.0, 1.5))
    landscape = ((32, 64), (64, 100), (96, 160))
    upright = ((64, 32), (96, 64), (128, 96))  # 48 and 144: Python rounds to even
    assert config.training_canvases == (*landscape, *upright)
    assert InputConfig(canvases=((64, 100),)).training_canvases == ((64, 100),)
    assert scale_canvas((64, 100), 0.01) == scale_canvas((96, 64), 0.02) == (32, 32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"canvases": ((32, 32), (0, 32))}, "each of its items in [1, 16384]"),
        ({"scale_jitter": (2.0, 0.1)}, "two numbers, the second no less"),
        ({"min_max_size": (800, 600)}, "two numbers, the second no less"),
        ({"keep_aspect": False, "min_max_size": (5, 8)}, "True with min_max_size (5,"),
        ({"iou_crop": 1.0, "min_max_size": (5, 8)}, "0 with min_max_size (5, 8)"),
        ({"mosaic": 0.5, "min_max_size": (5, 8)}, "0 with min_max_size (5, 8)"),
        ({"mosaic": 0.5, "max_regions": 9}, "0 with max_regions 9"),
        ({"copy_paste": 0.5, "max_regions": 9}, "0 with max_regions 9"),
        ({"multi_scale": (1, 2), "min_max_size": (5, 8)}, "(1,) with min_max_size"),
    ],
)
def test_what_is_out_of_range_is_named(fields, message):
    name, value = next(iter(fields.items()))
    message = f"{re.escape(f'{name} is {value!r}; it must be')}.*{re.escape(message)}"
    with pytest.raises(ValueError, match=message):
        InputConfig(**fields)
