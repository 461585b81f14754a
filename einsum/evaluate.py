"""Reference evaluation of a cascade in NumPy, fp64: what the text means, slowly enough to be plainly right.

    outputs = evaluate(load("one_pass"), {"m": 6, "n": 16, "e": 5, "f": 7, "n0": 4}, {"Q": q, "K": k, "V": v})

Every Einsum is computed over all its points at once: coordinates are index grids of only the variables that an operand
uses, so that `exp(QK[m,n])` touches M*N elements and not more. Only the steps of an `iterate` block run in a loop.

    absent points     excluded by a predicate on output variables: stored as NaN, so that a wrong read shows
    empty reductions  give the identity: 0 for +, 1 for *, -inf for max, inf for min
    several reducers  sums that `::` does not name come first, then those of `::` from left to right
    out of range      an error, unless the predicate excludes the point
    0/0               a row without any key is NaN wherever the cascade divides by the row's denominator
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from einsight.einsum.expression import (
    REDUCERS,
    Access,
    Apply,
    Expression,
    Number,
    Symbol,
    conjunction,
    conjuncts,
    variables,
)
from einsight.einsum.format import format_expression
from einsight.einsum.ir import Cascade, Einsum, Initial, Iterate
from einsight.einsum.resolve import bind, resolve

Array = NDArray[Any]

_EXACT = 2.0**53
"""Whole numbers below this are integers in index arithmetic; above, a literal such as -1e30 is only a value."""


class EvaluationError(ValueError):
    """The inputs do not fit the cascade, or an Einsum reads an element that does not exist."""


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * np.asarray(x, dtype=np.float64))))


def _select(condition: Array, yes: Array, no: Array) -> Array:
    return np.asarray(np.where(condition, yes, no))


_FUNCTIONS: Mapping[str, Callable[..., Array]] = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.true_divide, "%": np.mod, "floordiv": np.floor_divide,
    "neg": np.negative, "max": np.maximum, "min": np.minimum, "exp": np.exp, "log": np.log, "sigmoid": _sigmoid,
    "tanh": np.tanh, "softplus": lambda x: np.logaddexp(0.0, x), "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "relu": lambda x: np.maximum(x, 0.0), "abs": np.abs, "cos": np.cos, "sin": np.sin,
    "select": _select,
    "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal, "==": np.equal, "!=": np.not_equal,
    "&&": np.logical_and, "||": np.logical_or,
}  # fmt: skip

_REDUCE: Mapping[str, np.ufunc] = {"+": np.add, "*": np.multiply, "max": np.maximum, "min": np.minimum}


def evaluate(
    cascade: Cascade,
    sizes: Mapping[str, SupportsIndex],
    inputs: Mapping[str, ArrayLike],
    intermediates: bool = False,
) -> dict[str, NDArray[np.float64]]:
    """The outputs by name, and with `intermediates` every tensor that is computed on the way (views are not).

    inputs  one array per input tensor, in the order of its ranks as the file declares them; a number for TENSOR[]
    Raises SizeError (`resolve.bind`) and EvaluationError.
    """
    bound = bind(cascade, sizes)
    cascade = resolve(cascade)
    state = _State(cascade.name, bound, _checked(cascade, bound, inputs))
    _allocate(cascade, state)
    with np.errstate(all="ignore"):
        for statement in cascade.statements:
            if isinstance(statement, Iterate):
                for step in range(_steps(statement, bound)):
                    for einsum in statement.body:
                        _compute(einsum, state, {statement.variable: step})
            elif isinstance(statement, Initial):
                _compute(Einsum(statement.output, statement.expression), state, {})
            else:
                _compute(statement, state, {})
    outputs = {t.name for t in cascade.outputs}
    given = {t.name for t in cascade.inputs}
    return {n: a for n, a in state.tensors.items() if n in outputs or (intermediates and n not in given)}


@dataclass(slots=True)
class _State:
    """What is known while a cascade runs. `limits` counts, per tensor and rank, the coordinates that exist so far."""

    cascade: str
    sizes: Mapping[str, int]
    tensors: dict[str, NDArray[np.float64]]
    limits: dict[str, list[int]] = field(default_factory=dict)


def _checked(
    cascade: Cascade, sizes: Mapping[str, int], inputs: Mapping[str, ArrayLike]
) -> dict[str, NDArray[np.float64]]:
    names = [t.name for t in cascade.inputs]
    if missing := [n for n in names if n not in inputs]:
        raise EvaluationError(f"cascade {cascade.name}: {', '.join(missing)} has no value; it reads {_list(names)}")
    if unknown := [n for n in inputs if n not in names]:
        raise EvaluationError(f"cascade {cascade.name} has no input {', '.join(unknown)}; it reads {_list(names)}")
    arrays = {}
    for tensor in cascade.inputs:
        array = _real(cascade, tensor.name, inputs[tensor.name])
        expected = tuple(sizes[r] for r in tensor.ranks)
        if array.shape != expected:
            ranks = ", ".join(f"{r}={sizes[r]}" for r in tensor.ranks) or "rank 0"
            raise EvaluationError(
                f"cascade {cascade.name}: input {tensor.name} has shape {array.shape}; expected {expected} ({ranks})"
            )
        arrays[tensor.name] = array
    return arrays


def _real(cascade: Cascade, name: str, values: ArrayLike) -> NDArray[np.float64]:
    try:
        if not np.iscomplexobj(found := np.asarray(values)):
            return found.astype(np.float64, copy=False)
    except (TypeError, ValueError):  # text, or rows of several lengths
        pass
    raise EvaluationError(f"cascade {cascade.name}: input {name} is no array of real numbers")


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


# -- where tensors live -------------------------------------------------------------------------------------------


def _allocate(cascade: Cascade, state: _State) -> None:
    """NaN everywhere, in the shape that the left-hand sides reach. A step axis starts with no coordinate existing."""
    for name, array in state.tensors.items():
        state.limits[name] = list(array.shape)
    shapes: dict[str, list[int]] = {}
    steps: dict[str, set[int]] = {}
    for output, block in _writes(cascade):
        fixed = {block.variable: _steps(block, state.sizes)} if block else {}
        reach = [_reach(i, state.sizes, fixed) for i in output.indices]
        known = shapes.setdefault(output.tensor, reach)
        shapes[output.tensor] = [max(a, b) for a, b in zip(known, reach, strict=True)]
        steps.setdefault(output.tensor, set()).update(
            axis for axis, i in enumerate(output.indices) if variables(i) <= fixed.keys()
        )
    for tensor in cascade.outputs:
        if tensor.name not in shapes:
            raise EvaluationError(f"cascade {cascade.name}: output {tensor.name} is never computed")
        shapes[tensor.name] = [state.sizes[r] for r in tensor.ranks]
    for name, shape in shapes.items():
        state.tensors[name] = np.full(shape, np.nan)
        state.limits[name] = [0 if axis in steps[name] else size for axis, size in enumerate(shape)]


def _writes(cascade: Cascade) -> Iterable[tuple[Access, Iterate | None]]:
    for statement in cascade.statements:
        if isinstance(statement, Initial):
            yield statement.output, None
    for einsum, block in cascade.placed():
        yield einsum.output, block


def _reach(index: Expression, sizes: Mapping[str, int], fixed: Mapping[str, int]) -> int:
    """One more than the largest value of an index of a left-hand side."""
    names = sorted(variables(index))
    extents = [fixed.get(v) or sizes[v.upper()] for v in names]
    grids = dict(zip(names, np.ix_(*(np.arange(n) for n in extents)), strict=True))
    return int(np.max(np.asarray(_arithmetic(index, sizes, grids)))) + 1


def _steps(block: Iterate, sizes: Mapping[str, int]) -> int:
    return int(_arithmetic(block.bound, sizes, {}))


def _arithmetic(node: Expression, sizes: Mapping[str, int], coordinates: Mapping[str, Any]) -> Any:
    """An index expression: no tensor in it."""
    return _value(node, _Points(_State("", sizes, {}), "", coordinates, None))


# -- one Einsum ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Points:
    """The iteration space of one Einsum (in one step of a block).

    coordinates  an index grid per variable, along an axis of its own; the iterate variable is a plain number
    present      where the predicate holds, None for everywhere; broadcasts over the axes
    """

    state: _State
    einsum: str
    coordinates: Mapping[str, Any]
    present: Array | None


def _compute(einsum: Einsum, state: _State, fixed: Mapping[str, int]) -> None:
    reduced, written = einsum.reduced, einsum.output_variables
    axes = _axes(einsum, reduced, fixed)
    extents = [state.sizes[v.upper()] for v in axes]
    grids = np.ix_(*(np.arange(n) for n in extents)) if axes else ()
    coordinates = {**fixed, **dict(zip(axes, grids, strict=True))}
    everywhere = _Points(state, einsum.name, coordinates, None)
    clauses = conjuncts(einsum.predicate)
    inner = tuple(c for c in clauses if not variables(c) <= written | fixed.keys())
    outer = tuple(c for c in clauses if c not in inner)
    present = _condition(clauses, everywhere)
    points = _Points(state, einsum.name, coordinates, present)
    kept = len([v for v in axes if v not in reduced])
    result = _contracted(einsum, axes, extents, kept, inner, points)
    if result is None:
        result = _reduced(einsum, axes, extents, kept, points)
    exists = _condition(outer, everywhere)
    if exists is not None:
        exists = np.broadcast_to(exists.reshape(exists.shape[:kept]) if exists.ndim else exists, extents[:kept])
        result = np.where(exists, result, np.nan)
    _store(einsum.output, result, exists, axes[:kept], points)


def _axes(einsum: Einsum, reduced: frozenset[str], fixed: Mapping[str, int]) -> list[str]:
    """Output variables in the order of the left-hand side, then the reduced ones."""
    named = [v for i in einsum.output.indices for v in sorted(variables(i))]
    return [v for v in dict.fromkeys([*named, *sorted(reduced)]) if v not in fixed]


def _condition(clauses: tuple[Expression, ...], points: _Points) -> Array | None:
    predicate = conjunction(clauses)
    return None if predicate is None else np.asarray(_value(predicate, points), dtype=bool)


def _contracted(
    einsum: Einsum, axes: list[str], extents: list[int], kept: int, inner: tuple[Expression, ...], points: _Points
) -> Array | None:
    """A sum of products as one contraction, without a temporary over all axes; None where that is not possible.

    Points that the predicate takes out of the sum are zeroed in a factor that walks all of the predicate's variables.
    A factor that is not finite would turn such a zero into NaN: then the plain way is taken.
    """
    factors = _factors(einsum.expression)
    if len(factors) < 2 or kept == len(axes) or any(einsum.reducer(v) != "+" for v in axes[kept:]):
        return None
    walked = [[v for v in axes if v in used] for used in map(variables, factors)]
    if not set(axes) <= {v for vs in walked for v in vs}:
        return None
    condition = _condition(inner, points)
    names = {v for c in inner for v in variables(c)} & set(axes)
    masked = next((k for k, vs in enumerate(walked) if names <= set(vs)), None)
    if masked is None:
        return None
    operands: list[Any] = []
    for k, (factor, vs) in enumerate(zip(factors, walked, strict=True)):
        value = np.asarray(_value(factor, points), dtype=np.float64)
        if condition is not None and k == masked:
            value = np.where(condition, value, 0.0)
        shape = [n if v in vs else 1 for v, n in zip(axes, extents, strict=True)]
        value = np.broadcast_to(value, shape).reshape([n for v, n in zip(axes, extents, strict=True) if v in vs])
        if condition is not None and not np.isfinite(value).all():
            return None
        operands += [value, [axes.index(v) for v in vs]]
    return np.asarray(np.einsum(*operands, list(range(kept)), optimize=True))


def _factors(node: Expression) -> list[Expression]:
    if isinstance(node, Apply) and node.op == "*":
        return [f for a in node.args for f in _factors(a)]
    return [node]


def _reduced(einsum: Einsum, axes: list[str], extents: list[int], kept: int, points: _Points) -> Array:
    """The expression at every point, then folded axis by axis over the points that exist."""
    values = np.asarray(_value(einsum.expression, points), dtype=np.float64)
    values = np.broadcast_to(values, extents)
    if kept == len(axes):
        return values
    exists = np.broadcast_to(np.asarray(True) if points.present is None else points.present, extents)
    named = [v for r in einsum.reductions for v in r.variables]
    order = [*(v for v in axes[kept:] if v not in named), *(v for v in named if v in axes[kept:])]
    for variable in order:
        op, axis = einsum.reducer(variable), axes.index(variable)
        values = _REDUCE[op].reduce(values, axis=axis, where=exists, initial=REDUCERS[op], keepdims=True)
        exists = np.any(exists, axis=axis, keepdims=True)
    return values.reshape(extents[:kept])


def _store(output: Access, result: Array, exists: Array | None, axes: list[str], points: _Points) -> None:
    state, name = points.state, output.tensor
    index: list[Any] = []
    for axis, expression in enumerate(output.indices):
        value = points.coordinates.get(expression.name) if isinstance(expression, Symbol) else None
        if value is None:
            value = _value(expression, points)
        if np.ndim(value) == 0:
            state.limits[name][axis] = max(state.limits[name][axis], int(value) + 1)
        index.append(value if np.ndim(value) == 0 else value.reshape(value.shape[: len(axes)]))
    size = state.tensors[name].shape
    plain = [i.name for i in output.indices if isinstance(i, Symbol) and i.name in axes]
    if plain == axes and all(np.ndim(i) == 0 or i.size == n for i, n in zip(index, size, strict=True)):
        state.tensors[name][tuple(i if np.ndim(i) == 0 else slice(None) for i in index)] = result
        return
    place = np.broadcast_arrays(*(np.asarray(i) for i in index), result)[:-1]
    where = np.ones(result.shape, dtype=bool) if exists is None else exists
    for axis, (coordinate, n) in enumerate(zip(place, size, strict=True)):
        _check_range(output, axis, coordinate, n, where, points)
    state.tensors[name][tuple(c[where] for c in place)] = result[where]


# -- values -------------------------------------------------------------------------------------------------------


def _value(node: Expression, points: _Points) -> Any:
    """The expression at all points: an array that broadcasts over the axes, of length 1 where it does not vary."""
    if isinstance(node, Number):
        whole = abs(node.value) < _EXACT and node.value.is_integer()
        return int(node.value) if whole else node.value
    if isinstance(node, Symbol):
        return points.coordinates[node.name] if node.is_variable else points.state.sizes[node.name]
    if isinstance(node, Access):
        return _read(node, points)
    return _FUNCTIONS[node.op](*(_value(a, points) for a in node.args))


def _read(access: Access, points: _Points) -> Any:
    tensor = points.state.tensors.get(access.tensor)
    if tensor is None:
        raise EvaluationError(
            f"Einsum {points.einsum} reads {access.tensor}, which is neither an input nor computed above"
        )
    coordinates = [np.asarray(_value(i, points)) for i in access.indices]
    limits = points.state.limits[access.tensor]
    safe = []
    for axis, (coordinate, limit) in enumerate(zip(coordinates, limits, strict=True)):
        if coordinate.dtype.kind not in "iu":
            text = format_expression(access.indices[axis])
            raise EvaluationError(f"Einsum {points.einsum}: index {text} of {access.tensor} is not a whole number")
        if coordinate.min() < 0 or coordinate.max() >= limit:
            _check_range(access, axis, coordinate, limit, points.present, points)
            coordinate = np.clip(coordinate, 0, max(limit - 1, 0))
        safe.append(coordinate)
    return tensor[tuple(safe)]


def _check_range(
    access: Access, axis: int, coordinate: Array, limit: int, present: Array | None, points: _Points
) -> None:
    outside = (coordinate < 0) | (coordinate >= limit)
    if present is not None:
        outside, coordinate = np.broadcast_arrays(outside & present, coordinate)
    if not outside.any():
        return
    text, reached = format_expression(access.indices[axis]), int(coordinate[outside].flat[0])
    of = format_expression(access)
    if reached < points.state.tensors[access.tensor].shape[axis] and reached >= limit:
        raise EvaluationError(f"Einsum {points.einsum} reads {of} at {text} = {reached}, which is computed later")
    raise EvaluationError(
        f"Einsum {points.einsum}: index {text} of {of} reaches {reached}; valid are 0..{limit - 1}; "
        "add a `where` that excludes it"
    )
