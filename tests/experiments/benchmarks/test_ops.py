"""The benchmark of the operators, with tiny arrays."""

import dataclasses
import json
import sys
import types
from functools import partial

import chex
import jax
import numpy as np
import pytest

from experiments.benchmarks import ops, timing
from jaxdet.config import ConfigError
from tests import optional

TINY = ops.Sizes(
    height=64,
    width=96,
    channels=3,
    boxes=5,
    candidates=40,
    objects=2,
    rpn_height=64,
    rpn_width=128,
    photo=96,
    depth=10,
    side=32,
)


def test_every_operator_is_timed(tmp_path, capsys):
    output = tmp_path / "times.json"
    ops.main(sizes=TINY, repeats=1, json=output)
    rows = json.loads(output.read_text())["rows"]
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 + len(rows)
    differentiable = {row["name"] for row in rows if "both" in row}
    assert len(rows) == 14
    assert len(differentiable) == 6
    assert all(row["forward"] > 0 and row.get("both", 1) > 0 for row in rows)
    for line, row in zip(printed[2:], rows, strict=True):
        assert line.startswith(row["name"])
        assert f"{row['forward']:.1f}" in line
        assert line.endswith(row["sizes"])
    assert "5 boxes on 16x24x3" in printed[2]
    # Cells of 4, 8, 16 and 32 pixels, three anchors each.
    assert "1530 anchors, 2 objects" in printed[8]
    # Cells of 4 to 64 pixels: 512, 128, 32, 8 and 2, three anchors each.
    assert "2046 anchors, 1000 proposals" in printed[9]
    assert printed[10].startswith("RPN, 2000 a level")
    assert "256 of 2046 anchors" in printed[11]
    assert "96x96 photograph" in printed[13]
    assert printed[14].startswith("ResNet-10, batch 1") and "both" not in rows[12]
    assert "32x32, stages 2 to 5" in printed[15]


def test_a_rivals_line_has_the_ratio():
    row = {"name": "NMS", "sizes": "few", "forward": 2.0, "torchvision forward": 3.0}
    assert ops._line(row).splitlines()[1].endswith("3.0 ms, ours / its 0.67")


def test_the_ratio_is_that_to_the_best_setting(monkeypatch):
    case = ops.Case("sum", "few", sum, (np.ones(3),))
    monkeypatch.setattr(ops, "medians", lambda calls, repeats: [5, 4, 3])
    row = ops._measured(case, lambda case: {"forward": [min, max]}, 1)
    assert row["forward"] == 5 and row["torchvision forward"] == 3


def test_the_resnet_learns_by_all_of_its_parameters():
    one, two = ops._backbone_cases(TINY)
    assert one.arguments[-1].shape == (1, 32, 32, 3) and not one.differentiable
    assert two.arguments[-1].shape == (2, 32, 32, 3) and two.differentiable
    both = partial(timing.with_gradient, two.function)
    stages, gradients = jax.eval_shape(both, *two.arguments)
    assert [*stages] == [2, 3, 4, 5]
    chex.assert_trees_all_equal_shapes(gradients, two.arguments[0])


@pytest.mark.slow
@pytest.mark.optional
def test_the_rival_of_the_resnet_gives_stages_of_the_same_shapes():
    optional.need("torchvision", optional.TORCH)
    try:
        rivals = ops._torchvision_operators()
    except ConfigError as error:
        again = f"pip install --force-reinstall {optional.TORCH}"
        pytest.skip(f"torchvision does not work: {error}; {again}")
    _, two = ops._backbone_cases(dataclasses.replace(TINY, depth=50))
    calls = rivals[two.name](two)
    ours = jax.eval_shape(two.function, *two.arguments).values()
    for forward, both in zip(calls["forward"], calls["both"], strict=True):
        theirs = [tuple(x.permute(0, 2, 3, 1).shape) for x in forward().values()]
        assert theirs == [x.shape for x in ours]
        both()


def test_torchvision_that_is_missing_or_broken(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ConfigError, match="--compare needs torch and torchvision"):
        ops.main(sizes=TINY, compare=True)


def test_torchvision_beside_ours(monkeypatch, capsys):
    """With a torch of NumPy arrays, without gradients."""

    ops = types.SimpleNamespace(nms=lambda boxes, scores, iou_threshold: None)
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(ops=ops))
    torch = types.SimpleNamespace(tensor=np.asarray)
    monkeypatch.setitem(sys.modules, "torch", torch)
    cases = [x for x in ops._array_cases(TINY) if not x.differentiable]
    monkeypatch.setattr(ops, "_array_cases", lambda sizes: cases)
    for others in ("_rpn_cases", "_proposal_cases", "_backbone_cases"):
        monkeypatch.setattr(ops, others, lambda sizes: [])
    ops.main(sizes=TINY, repeats=1, compare=True)
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in lines] == ["NMS", "torchvision", "matching"]


def test_no_repeats_are_refused():
    with pytest.raises(ConfigError, match="--repeats is 0"):
        ops.main(sizes=TINY, repeats=0)
