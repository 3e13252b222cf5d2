import dataclasses

import chex
import numpy as np
import pytest

from jaxdet.data import epoch_plan
from jaxdet.data.input_config import InputConfig
from tests.data.in_memory import in_memory_data_set

CONFIG = InputConfig(canvases=((16, 32), (32, 16)))
WIDE, TALL = (10, 20), (20, 10)


def of_sizes(sizes):
    return in_memory_data_set([np.zeros((*size, 3), np.uint8) for size in sizes])


@pytest.fixture(scope="module")
def mixed():
    """Seven wide and four tall images."""
    kinds = "wtwwtwwwtwt"
    return of_sizes([WIDE if kind == "w" else TALL for kind in kinds])


def test_every_image_is_in_every_epoch(mixed):
    for epoch in range(3):
        positions, canvases, _ = epoch_plan.plan_epoch(mixed, CONFIG, 3, 0, epoch)
        assert positions.shape == (5, 3)  # ceil(7 / 3) + ceil(4 / 3)
        assert sorted(canvases) == [0, 0, 0, 1, 1]
        assert set(positions.ravel()) == set(range(11))
    assert epoch_plan.steps_per_epoch(mixed, CONFIG, 3) == 5


def test_a_batch_holds_images_of_one_canvas_and_none_twice(mixed):
    tall = {1, 4, 8, 10}
    positions, canvases, _ = epoch_plan.plan_epoch(mixed, CONFIG, 3, 0, 0)
    for row, canvas in zip(positions, canvases, strict=True):
        assert len(set(row)) == 3
        assert (set(row) <= tall) == (canvas == 1)
        assert not set(row) & tall or canvas == 1


def test_a_canvas_with_fewer_images_than_a_batch_repeats_them():
    data_set = of_sizes([WIDE, TALL, TALL])
    positions, canvases, _ = epoch_plan.plan_epoch(data_set, CONFIG, 5, 0, 0)
    assert sorted(canvases) == [0, 1]
    assert set(positions[list(canvases).index(0)]) == {0}
    assert sorted(np.unique(positions[list(canvases).index(1)])) == [1, 2]


def test_seed_and_epoch_decide_the_order():
    data_set = of_sizes([WIDE] * 40 + [TALL] * 40)
    plans = [
        epoch_plan.plan_epoch(data_set, CONFIG, 8, seed, epoch)
        for seed, epoch in [(0, 0), (0, 0), (0, 1), (1, 0), (1, 1)]
    ]
    chex.assert_trees_all_equal(plans[0], plans[1])
    assert len({tuple(positions.ravel()) for positions, *_ in plans}) == 4
    company = [set(map(frozenset, positions)) for positions, *_ in plans]
    assert not company[0] & company[2] and not company[0] & company[3]
    canvases = plans[0][1]
    assert np.count_nonzero(np.diff(canvases)) > 1 and len(canvases) == 10


def test_the_canvas_is_the_nearest_by_log_ratio():
    # Ratios 1 and 4: their middle is 2 by logarithm, 2.5 without it.
    config = InputConfig(canvases=((10, 10), (40, 10)))
    data_set = of_sizes([(19, 10), (21, 10), (10, 90)])
    first, second = epoch_plan.positions_by_canvas(data_set, config)
    assert first.tolist() == [0, 2] and second.tolist() == [1]


def test_each_batch_draws_a_factor(mixed):
    factors = (0.5, 1.0, 1.5)
    config = dataclasses.replace(CONFIG, multi_scale=factors)
    seen = []
    for epoch in range(60):
        *plan, drawn = epoch_plan.plan_epoch(mixed, config, 3, 0, epoch)
        assert drawn.shape == (5,)
        seen.extend(drawn)
        plain = epoch_plan.plan_epoch(mixed, CONFIG, 3, 0, epoch)[:2]
        chex.assert_trees_all_equal(tuple(plan), plain)
    for factor in factors:  # 300 draws: four standard deviations
        assert 0.22 < np.mean(np.array(seen) == factor) < 0.44
