"""Rewrites a traced function for jax2onnx, which lacks some of JAX's operators.

Gathers become lookups of rows, scatters comparisons with all indices, selections of
booleans logic, loops of batches loops that end with their last element, and functions
within functions part of the one that calls them. The numbers stay the same.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")  # where primitives keep functions


def evaluate(function: core.ClosedJaxpr, *args: Any) -> list[Any]:
    """Evaluates a traced function by operators that jax2onnx knows.

    Args:
      function: from `jax.make_jaxpr`.
      *args: its arguments, flat.

    Returns:
      Its results, flat.

    Raises:
      NotImplementedError: for a scatter that no detector of jaxdet makes.
    """
    return _evaluate(function.jaxpr, function.consts, args)


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(variable: Any) -> Any:
        return variable.val if hasattr(variable, "val") else values[variable]

    for equation in jaxpr.eqns:
        results = _apply(equation, [read(variable) for variable in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _apply(equation: Any, args: list[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if name == "platform_index":  # of `lax.platform_dependent`
        platforms = list(enumerate(params["platforms"]))
        return [next(np.int32(i) for i, own in platforms if not own or "cpu" in own)]
    if name == "while":
        return _while(args, params)
    if name == "cond":
        branches = params["branches"]
        if not isinstance(args[0], jax.core.Tracer):  # of the platform
            return evaluate(branches[int(args[0])], *args[1:])
        calls = [lambda *x, branch=branch: evaluate(branch, *x) for branch in branches]
        return lax.switch(args[0], calls, *args[1:])
    inner = next((params[key] for key in _INNER if key in params), None)
    if inner is not None and name != "scan":
        return _evaluate(
            getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), args
        )
    if name == "select_n" and len(args) == 3:
        return [_select(*args)]
    if name == "gather":
        return [_gather(args[0], args[1], equation.outvars[0].aval.shape, params)]
    if name == "scatter":
        return [_scatter(args[0], args[1], args[2], params["dimension_numbers"])]
    known = args and not any(isinstance(x, jax.core.Tracer) for x in args)
    small = all(out.aval.size <= 1 for out in equation.outvars)
    with jax.ensure_compile_time_eval() if known and small else nullcontext():
        results = equation.primitive.bind(*args, **params)
    return results if equation.primitive.multiple_results else [results]


def _while(args: list[Any], params: dict[str, Any]) -> list[Any]:
    split = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    of_cond, of_body = args[: split[0]], args[split[0] : split[1]]

    def goes_on(state: list[Any]) -> Any:
        return evaluate(params["cond_jaxpr"], *of_cond, *state)[0]

    def step(state: list[Any]) -> list[Any]:
        new = evaluate(params["body_jaxpr"], *of_body, *state)
        running = goes_on(state)
        if not running.ndim:
            return new
        return [  # the elements of a batch that are done stay as they are
            _select(
                running.reshape(running.shape + (1,) * (x.ndim - running.ndim)), x, y
            )
            for x, y in zip(state, new, strict=True)
        ]

    return lax.while_loop(lambda state: jnp.any(goes_on(state)), step, args[split[1] :])


def _select(which: Any, no: Any, yes: Any) -> Any:
    no, yes = jnp.asarray(no), jnp.asarray(yes)
    if no.dtype == bool:  # onnxruntime's Where takes none
        return (which & yes) | (~which & no)
    return lax.select_n(jnp.broadcast_to(which, no.shape), no, yes)


def _scatter(operand: Any, indices: Any, updates: Any, numbers: Any) -> Any:
    """Writes updates `[B, M, ...]` into rows of `[B, S, ...]`, or one into a vector."""
    dims = numbers.operand_batching_dims, numbers.inserted_window_dims
    if dims == ((), (0,)) and indices.shape == (1,) and operand.ndim == 1:
        return jnp.where(jnp.arange(len(operand)) == indices, updates, operand)
    if dims != ((0,), (1,)) or indices.ndim != 3 or operand.dtype == bool:
        raise NotImplementedError(f"scatter of {operand.shape} by {numbers}")
    slots = jnp.arange(operand.shape[1], dtype=indices.dtype)
    hits = indices[:, None, :, 0] == slots[None, :, None]  # [B, S, M]
    tail = (1,) * (operand.ndim - 2)
    zero = jnp.zeros((), operand.dtype)  # jax2onnx would take 0 for an int32
    chosen = jnp.where(hits.reshape(hits.shape + tail), updates[:, None], zero)
    written = jnp.any(hits, axis=2).reshape(hits.shape[:2] + tail)
    return jnp.where(written, jnp.sum(chosen, axis=2, dtype=operand.dtype), operand)


def _gather(operand: Any, indices: Any, shape: tuple[int, ...], params: dict) -> Any:
    """Looks rows up by their number: all that comes before the whole dimensions."""
    operand, indices = jnp.asarray(operand), jnp.asarray(indices)
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    hidden = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    shown = [k for k in range(operand.ndim) if k not in hidden]
    offsets = dict(zip(shown, numbers.offset_dims, strict=True))
    before, rank = operand.ndim, len(shape)  # of the whole dimensions, in and out
    while (
        before
        and sizes[before - 1] == operand.shape[before - 1]
        and offsets.get(before - 1) == rank - 1
    ):
        before, rank = before - 1, rank - 1
    batch = [k for k in range(len(shape)) if k not in numbers.offset_dims]

    def along(values: Any, dims: Sequence[int]) -> Any:
        """Gives values the dimensions `dims` of the result."""
        sides = dict(zip(dims, values.shape, strict=True))
        return values.reshape([sides.get(k, 1) for k in range(rank)])

    rows, inside = jnp.zeros((1,) * rank, jnp.int32), jnp.ones((1,) * rank, bool)
    for k in range(before):
        rows = rows * operand.shape[k]
        if k in numbers.start_index_map:
            start = indices[..., numbers.start_index_map.index(k)].astype(jnp.int32)
            last = operand.shape[k] - sizes[k]
            inside &= along((start >= 0) & (start <= last), batch)
            rows += along(jnp.clip(start, 0, last), batch)
        if k in numbers.operand_batching_dims:
            place = numbers.operand_batching_dims.index(k)
            place = numbers.start_indices_batching_dims[place]
            rows += along(jnp.arange(operand.shape[k], dtype=jnp.int32), [batch[place]])
        if k in offsets:
            rows += along(jnp.arange(sizes[k], dtype=jnp.int32), [offsets[k]])
    flat = operand.reshape(-1, *operand.shape[before:])
    numbers_only = flat.astype(jnp.int32) if flat.dtype == bool else flat
    rows = jnp.broadcast_to(rows, shape[:rank])
    found = jnp.take(numbers_only, rows, axis=0, mode="clip").astype(operand.dtype)
    if params["mode"] != lax.GatherScatterMode.FILL_OR_DROP:
        return found
    inside = inside.reshape(inside.shape + (1,) * (len(shape) - rank))
    filling = jnp.full(
        shape, _filling(operand.dtype, params["fill_value"]), operand.dtype
    )
    return _select(jnp.broadcast_to(inside, shape), filling, found)


def _filling(dtype: Any, value: Any) -> Any:
    """Returns what a gather gives outside, by JAX's rules."""
    if value is not None:
        return value
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.nan
    if jnp.issubdtype(dtype, jnp.signedinteger):
        return jnp.iinfo(dtype).min
    return True if jnp.issubdtype(dtype, jnp.bool_) else jnp.iinfo(dtype).max
