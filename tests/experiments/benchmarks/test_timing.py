"""How the benchmarks measure."""

from functools import partial

import jax
import numpy as np

from experiments.benchmarks import timing


def test_calls_take_turns_and_the_first_round_is_not_counted(monkeypatch):
    now, made = [0.0], []

    def call(name, durations):
        made.append(name)
        now[0] += durations.pop(0)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    ours, theirs = [9.0, 0.5, 0.25, 4.0], [9.0, 1.0, 2.0, 3.0]
    calls = [lambda: call("ours", ours), lambda: call("theirs", theirs)]
    assert timing.medians(calls, 3) == [500, 2000]
    assert made == ["ours", "theirs"] * 4


def test_a_call_with_its_gradient():
    value, gradient = timing.with_gradient(
        lambda x, factor: {"a": factor * x["b"] ** 2}, {"b": np.float32([1, 3])}, 2.0
    )
    # Half of (2 x^2)^2 is 2 x^4.
    assert value["a"].tolist() == [2, 18] and gradient["b"].tolist() == [8, 216]


def test_the_incoming_gradient_is_no_constant():
    def double(x):
        return 2 * x

    program = jax.make_jaxpr(partial(timing.with_gradient, double))(np.ones(3))
    value, gradient = program.jaxpr.outvars
    (last,) = [line for line in program.eqns if gradient in line.outvars]
    assert value in last.invars
