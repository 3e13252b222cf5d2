import chex
import numpy as np
import pytest

from jaxdet.data import epoch_plan
from jaxdet.data.input_config import InputConfig
from tests.data.in_memory import in_memory_data_set

CANVASES = ((16, 32), (32, 16))
CONFIG = InputConfig(canvases=CANVASES)
WIDE, TALL = (10, 20), (20, 10)


def plan(sizes, config=CONFIG, *, batch_size=3, seed=0, epoch=0):
    data_set = in_memory_data_set(sizes)
    return epoch_plan.plan_epoch(data_set, config, batch_size, seed, epoch)


MIXED = [TALL if i in (1, 4, 8, 10) else WIDE for i in range(11)]


@pytest.mark.parametrize("epoch", range(3))
def test_every_image_is_in_every_epoch_on_its_canvas(epoch):
    positions, canvases, _ = plan(MIXED, epoch=epoch)
    assert positions.shape == (5, 3)  # ceil(7 / 3) + ceil(4 / 3)
    assert set(positions.ravel()) == set(range(11))
    assert sorted(canvases) == [0, 0, 0, 1, 1]
    for row, canvas in zip(positions, canvases, strict=True):
        assert len(set(row)) == 3
        assert {MIXED[position] for position in row} == {(WIDE, TALL)[canvas]}
    assert epoch_plan.steps_per_epoch(in_memory_data_set(MIXED), CONFIG, 3) == 5


def test_a_canvas_with_fewer_images_than_a_batch_repeats_them():
    positions, canvases, _ = plan([WIDE, TALL, TALL], batch_size=5)
    assert sorted(canvases) == [0, 1]
    assert set(positions[list(canvases).index(0)]) == {0}
    assert set(positions[list(canvases).index(1)]) == {1, 2}


def test_seed_and_epoch_decide_the_order():
    plans = [
        plan([WIDE] * 40 + [TALL] * 40, batch_size=8, seed=seed, epoch=epoch)
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
    data_set = in_memory_data_set([(19, 10), (21, 10), (10, 90)])
    first, second = epoch_plan.positions_by_canvas(data_set, config)
    assert first.tolist() == [0, 2] and second.tolist() == [1]


def test_each_batch_draws_a_factor():
    factors = (0.5, 1.0, 1.5)
    config = InputConfig(canvases=CANVASES, multi_scale=factors)
    drawn = []
    for epoch in range(60):
        *order, scales = plan(MIXED, config, epoch=epoch)
        chex.assert_trees_all_equal(tuple(order), plan(MIXED, epoch=epoch)[:2])
        drawn.append(scales)
    assert np.shape(drawn) == (60, 5)
    for factor in factors:  # 300 draws: four standard deviations
        assert 0.22 < np.mean(np.array(drawn) == factor) < 0.44
