"""Coordinates split into mixed-radix digits, so that `floordiv` and `%` by constants become variables of their own.

A mask over tokens of a 2-D or 3-D layout speaks of floordiv(m, X) and m % X. With m = y*X + x both are plain variables,
the dimensions come apart, and a dilation is one more digit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from einsight.einsum.expression import Apply, Expression, Number, Symbol, rewrite, substitute, variables, walk
from einsight.einsum.inequality import Inequality, linear, value

Split = tuple[dict[str, int], tuple[Expression, ...], frozenset[str]]


def split_digits(
    ranges: Mapping[str, int], clauses: Sequence[Expression], sizes: Mapping[str, int], exists: frozenset[str]
) -> Split:
    """The same points in other variables: v = (v/c)*c + v%c for every v of which a clause takes floordiv or % by c.

    Digits walk their whole range; where c does not divide the extent a clause keeps v inside it.
    """
    extents, split = dict(ranges), tuple(clauses)
    if not any(isinstance(n, Apply) and n.op in ("floordiv", "%") for c in split for n in walk(c)):
        return extents, split, exists
    while True:
        split = tuple(rewrite(c, partial(_reduced, ranges=extents, sizes=sizes)) for c in split)
        found = min(_candidates(split, extents, sizes), default=None)
        if found is None:
            return extents, split, exists
        base, name = found
        high, low = f"{name}/{base}", f"{name}%{base}"
        whole = Apply("+", (Apply("*", (Symbol(high), Number(base))), Symbol(low)))
        extent = extents[name]
        extents = {k: v for old, n in extents.items() for k, v in _digits(old, n, name, high, low, base)}
        split = tuple(substitute(c, {name: whole}) for c in split)
        if extent % base:
            split = (*split, Apply("<", (whole, Number(extent))))
        if name in exists:
            exists = (exists - {name}) | {high, low}


def _digits(old: str, extent: int, name: str, high: str, low: str, base: int) -> list[tuple[str, int]]:
    return [(high, -(-extent // base)), (low, base)] if old == name else [(old, extent)]


def _candidates(
    clauses: Sequence[Expression], ranges: Mapping[str, int], sizes: Mapping[str, int]
) -> Iterator[tuple[int, str]]:
    """(base, variable) of every floordiv(v, base) or v % base that is left."""
    for clause in clauses:
        for node in walk(clause):
            if isinstance(node, Apply) and (base := _base(node, sizes)) and isinstance(node.args[0], Symbol):
                name = node.args[0].name
                if name in ranges and base < ranges[name]:
                    yield base, name


def _base(node: Apply, sizes: Mapping[str, int]) -> int | None:
    """The constant by which the node divides; None for anything else."""
    if node.op not in ("floordiv", "%") or variables(node.args[1]):
        return None
    base = value(node.args[1], sizes)
    return int(base) if base >= 1 and base == int(base) else None


def _reduced(node: Expression, ranges: Mapping[str, int], sizes: Mapping[str, int]) -> Expression:
    """floordiv and % simplified: with X*g + rest and 0 <= rest < g for a divisor g of the base c,

    floordiv(X*g + rest, c) = floordiv(X, c/g)    and    (X*g + rest) % c = (X % (c/g))*g + rest.
    """
    if not isinstance(node, Apply) or (base := _base(node, sizes)) is None or not variables(node.args[0]):
        return node
    inside = linear(node.args[0], sizes)
    if inside is None or inside.opaque or not set(inside.coefficients) <= set(ranges):
        return node
    for g in sorted({base, *(math.gcd(base, a) for a in inside.coefficients.values())} - {1}, reverse=True):
        rest = Inequality({v: a for v, a in inside.coefficients.items() if a % g}, inside.constant % g)
        if _within(rest, ranges, g):
            multiple = {v: a // g for v, a in inside.coefficients.items() if a % g == 0}
            return _written(node.op, Inequality(multiple, inside.constant // g), rest, base // g, g)
    return _affine(inside) if base == 1 and node.op == "floordiv" else Number(0) if base == 1 else node


def _within(rest: Inequality, ranges: Mapping[str, int], limit: int) -> bool:
    ends = [(a * (ranges[v] - 1)) for v, a in rest.coefficients.items()]
    low = rest.constant + sum(e for e in ends if e < 0)
    high = rest.constant + sum(e for e in ends if e > 0)
    return low >= 0 and high < limit


def _written(op: str, multiple: Inequality, rest: Inequality, base: int, g: int) -> Expression:
    x = _affine(multiple)
    if op == "floordiv":
        return x if base == 1 else Apply("floordiv", (x, Number(base)))
    if base == 1:
        return _affine(rest)
    return Apply("+", (Apply("*", (Apply("%", (x, Number(base))), Number(g))), _affine(rest)))


def _affine(form: Inequality) -> Expression:
    """The affine form as an expression; a bare variable stays bare."""
    total: Expression | None = Number(form.constant) if form.constant else None
    for v, a in form.coefficients.items():
        term: Expression = Symbol(v) if a == 1 else Apply("*", (Symbol(v), Number(a)))
        total = term if total is None else Apply("+", (total, term))
    return Number(0) if total is None else total
