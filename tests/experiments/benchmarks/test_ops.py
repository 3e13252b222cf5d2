"""The benchmark of the operators, with tiny arrays."""

import dataclasses
import json

import jax
import pytest

from experiments.benchmarks import ops, speed
from jaxdet.config import ConfigError
from tests import optional

TINY = ops.Sizes(
    height=64,
    width=96,
    channels=3,
    boxes=5,
    candidates=40,
    objects=2,
    depth=10,
    side=32,
)


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    ops.main(sizes=TINY, repeats=1, json=tmp_path / "times.json")
    rows = json.loads((tmp_path / "times.json").read_text())["rows"]
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2 + len(rows)
    assert len(rows) == 9 and sum("with gradient" in row for row in rows) == 6
    assert all(row["forward"] > 0 and row.get("with gradient", 1) > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.optional
def test_torchvisions_resnet_has_stages_of_the_same_shapes():
    optional.need("torchvision", optional.TORCH)
    try:
        rivals = speed.import_rivals().operators()
    except ConfigError as error:
        again = f"pip install --force-reinstall {optional.TORCH}"
        pytest.skip(f"torchvision does not work: {error}; {again}")
    _, two = ops.backbone_cases(dataclasses.replace(TINY, depth=50))
    calls = rivals[two.name](two)
    ours = jax.eval_shape(two.function, *two.arguments).values()
    for forward, both in zip(calls["forward"], calls["with gradient"], strict=True):
        theirs = [tuple(x.permute(0, 2, 3, 1).shape) for x in forward().values()]
        assert theirs == [x.shape for x in ours]
        both()
