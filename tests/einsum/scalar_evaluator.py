"""A cascade run point by point in plain Python, counting every operator that it applies.

Written apart from the analyses: it knows nothing of `resolve`, point sets or formulas. Views are copied element by
element, and a predicate is inherited because what it excludes is never there to be read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from einsight.einsum.expression import OPERATORS, REDUCERS, Access, Apply, Expression, Number, Symbol
from einsight.einsum.ir import Cascade, Einsum, Initial, Iterate

Point = tuple[int, ...]
Reasons = frozenset[frozenset[Any]]
"""Why a point is excluded: of each clause that fails, its variables (or, of a stored tensor, their dimensions)."""


def _total(function: Callable[..., float]) -> Callable[..., float]:
    def safe(*args: float) -> float:
        try:
            return function(*args)
        except OverflowError:
            return math.inf
        except (ZeroDivisionError, ValueError):
            return math.nan

    return safe


APPLY: dict[str, Callable[..., Any]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": _total(lambda a, b: a / b),
    "%": lambda a, b: a % b, "floordiv": lambda a, b: a // b, "neg": lambda a: -a, "max": max, "min": min,
    "exp": _total(math.exp), "log": _total(math.log), "sigmoid": _total(lambda x: 1 / (1 + math.exp(-x))),
    "tanh": math.tanh, "softplus": _total(lambda x: math.log1p(math.exp(x))), "rsqrt": _total(lambda x: x**-0.5),
    "relu": lambda x: max(x, 0.0), "abs": abs, "cos": math.cos, "sin": math.sin,
    "select": lambda c, a, b: a if c else b,
    "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b, "!=": lambda a, b: a != b, "&&": lambda a, b: a and b, "||": lambda a, b: a or b,
}  # fmt: skip


@dataclass
class Run:
    """Elements of every tensor, the elements that are absent with their reasons, and what was applied how often."""

    sizes: Mapping[str, int]
    lets: Mapping[str, Expression]
    chunks: Mapping[str, tuple[str, str]]  # N0 -> (n1, n0): their n1*N0+n0 is a coordinate, no arithmetic
    values: dict[str, dict[Point, float]] = field(default_factory=dict)
    absent: dict[str, dict[Point, Reasons]] = field(default_factory=dict)
    applied: Counter[tuple[str, str]] = field(default_factory=Counter)


def run(cascade: Cascade, sizes: Mapping[str, int], inputs: Mapping[str, Mapping[Point, float]]) -> Run:
    """All tensors, and `applied[einsum, operator class]`. Inputs are given element by element; sizes all of them."""
    chunks = {r.parts[1]: (r.parts[0].lower(), r.parts[1].lower()) for r in cascade.ranks if r.parts}
    state = Run(sizes, {let.name: let.expression for let in cascade.lets}, chunks)
    state.values.update({name: dict(tensor) for name, tensor in inputs.items()})
    memories = {id(e): {} for e in cascade.einsums}
    for statement in cascade.statements:
        if isinstance(statement, Initial):
            _einsum(state, Einsum(statement.output, statement.expression), {}, {})
        elif isinstance(statement, Iterate):
            for step in range(int(_plain(state, statement.bound, {}))):
                for einsum in statement.body:
                    _einsum(state, einsum, {statement.variable: step}, memories[id(einsum)])
        else:
            _einsum(state, statement, {}, memories[id(statement)])
    return state


def _names(state: Run, node: Expression) -> set[str]:
    """Rank variables of an expression, those behind `let` names included."""
    if isinstance(node, Symbol):
        if node.name in state.lets:
            return _names(state, state.lets[node.name])
        return {node.name} if node.name[0].islower() else set()
    parts = node.indices if isinstance(node, Access) else node.args if isinstance(node, Apply) else ()
    return {v for part in parts for v in _names(state, part)}


def _reads(node: Expression) -> Iterator[Access]:
    if isinstance(node, Access):
        yield node
    elif isinstance(node, Apply):
        for argument in node.args:
            yield from _reads(argument)


def _clauses(predicate: Expression | None) -> list[Expression]:
    if isinstance(predicate, Apply) and predicate.op == "&&":
        return _clauses(predicate.args[0]) + _clauses(predicate.args[1])
    return [] if predicate is None else [predicate]


def _plain(state: Run, node: Expression, env: Mapping[str, int]) -> Any:
    """Coordinates, bounds and predicates: whole numbers, not counted."""
    if isinstance(node, Number):
        return int(node.value) if float(node.value).is_integer() else node.value
    if isinstance(node, Symbol):
        if node.name in state.lets:
            return _plain(state, state.lets[node.name], env)
        return env[node.name] if node.name in env else state.sizes[node.name]
    assert isinstance(node, Apply)
    return APPLY[node.op](*(_plain(state, a, env) for a in node.args))


def _einsum(state: Run, einsum: Einsum, fixed: Mapping[str, int], memory: dict[Any, Any]) -> None:
    """All points of one Einsum (of one step): those that exist are computed, grouped by output element and folded."""
    out, body = _names(state, einsum.output), _names(state, einsum.expression)
    free = sorted((out | body) - set(fixed))
    folded = body - out
    groups: dict[Point, list[dict[str, int]]] = {}
    missing: dict[Point, Reasons] = {}
    for point in product(*(range(state.sizes[v.upper()]) for v in free)):
        env = {**fixed, **dict(zip(free, point, strict=True))}
        place = tuple(_plain(state, i, env) for i in einsum.output.indices)
        group = groups.setdefault(place, [])
        reasons = _excluded(state, einsum, env)
        if not reasons:
            group.append(env)
        elif of_output := frozenset(r for r in reasons if r <= out):
            missing[place] = _by_dimension(state, einsum.output, of_output)
    for place, points in groups.items():
        if place in missing:
            state.absent.setdefault(einsum.name, {})[place] = missing[place]
        else:
            value = _fold(state, einsum, points, folded, memory)
            state.values.setdefault(einsum.name, {})[place] = value


def _excluded(state: Run, einsum: Einsum, env: Mapping[str, int]) -> Reasons:
    """The variables of every reason for which this point does not exist: own clauses, then absent elements it reads."""
    failed = [c for c in _clauses(einsum.predicate) if not _plain(state, c, env)]
    reasons = {frozenset(_names(state, c)) for c in failed}
    for access in _reads(einsum.expression):
        place = tuple(_plain(state, i, env) for i in access.indices)
        for dimensions in state.absent.get(access.tensor, {}).get(place, ()):
            reasons.add(frozenset(v for d in dimensions for v in _names(state, access.indices[d])))
    return frozenset(reasons)


def _by_dimension(state: Run, output: Access, reasons: Reasons) -> Reasons:
    of = {v: d for d, index in enumerate(output.indices) for v in _names(state, index)}
    return frozenset(frozenset(of[v] for v in reason) for reason in reasons)


def _fold(
    state: Run, einsum: Einsum, points: list[dict[str, int]], folded: set[str], memory: dict[Any, Any]
) -> float:
    """The reduced value of one output element: unnamed variables summed first, then each reduction as written."""
    named = {v: r.op for r in einsum.reductions for v in r.variables if v in folded}
    order = [*(v for v in sorted(folded) if v not in named), *named]
    ops = ["+"] * (len(order) - len(named)) + list(named.values())
    root = einsum.expression
    fused = bool(ops) and ops[0] == "+" and isinstance(root, Apply) and root.op == "*"
    terms = [(p, _apply(state, einsum, root, p, memory, (), fused)) for p in points]
    if not order:
        return terms[0][1]
    first = next((k for k, op in enumerate(ops) if op != ops[0]), len(ops))  # a run of sums belongs to the products
    left = list(order)
    for step, (variable, op) in enumerate(zip(order, ops, strict=True)):
        left.remove(variable)
        results: dict[Point, tuple[dict[str, int], float]] = {}
        for p, value in terms:
            key = tuple(p[v] for v in left)
            if key not in results:
                results[key] = (p, value)
                continue
            results[key] = (p, APPLY[op](results[key][1], value))
            if not (fused and step < first):
                state.applied[einsum.name, OPERATORS[op].klass or op] += 1
        terms = list(results.values())
    return terms[0][1] if terms else REDUCERS[ops[-1]]


def _apply(
    state: Run, einsum: Einsum, node: Expression, env: dict[str, int], memory: dict[Any, Any], path: Point, fused: bool
) -> float:
    """The value of one node, computed and counted once per value of its own variables."""
    if isinstance(node, Access):
        return state.values[node.tensor][tuple(_plain(state, i, env) for i in node.indices)]
    if isinstance(node, Symbol) and node.name in state.lets:
        return _apply(state, einsum, state.lets[node.name], env, memory, (*path, 0), fused)
    if not isinstance(node, Apply) or _is_coordinate(state, node):
        return float(_plain(state, node, env))
    key = (path, tuple(env[v] for v in sorted(_names(state, node))))
    if key not in memory:
        parts = [_apply(state, einsum, a, env, memory, (*path, k), False) for k, a in enumerate(node.args)]
        memory[key] = APPLY[node.op](*parts)
        klass = "macc" if fused else OPERATORS[node.op].klass
        if klass:
            state.applied[einsum.name, klass] += 1
    return memory[key]


def _is_coordinate(state: Run, node: Apply) -> bool:
    """n1*N0 + n0 of a chunked rank."""
    for size, (outer, inner) in state.chunks.items():
        if node == Apply("+", (Apply("*", (Symbol(outer), Symbol(size))), Symbol(inner))):
            return True
    return False
