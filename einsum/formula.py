"""Symbolic counts: sums of integer coefficient * product of size symbols and point sets.

A size symbol (`M`, `N1`) stands for the size of a rank. A `PointSet` stands for the number of integer points that
satisfy clauses which tie variables together (`n <= m`); everything that does not need one is a plain polynomial.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from einsight.einsum.expression import Apply, Expression, Number, Symbol, walk
from einsight.einsum.format import format_expression
from einsight.einsum.inequality import value
from einsight.einsum.points import count as count_points

Value = Any
"""An exact `int`, or a NumPy array with one entry per case."""

INT64_LIMIT = 2**63


@dataclass(frozen=True, slots=True)
class PointSet:
    """The number of points of `kept` variables for which some value of the `exists` variables satisfies all clauses.

    `ranges` gives (variable, extent) for both kinds of variable, each walking 0 .. extent-1.
    """

    ranges: tuple[tuple[str, Expression], ...]
    exists: tuple[str, ...]
    clauses: tuple[Expression, ...]

    @property
    def kept(self) -> tuple[str, ...]:
        return tuple(v for v, _ in self.ranges if v not in self.exists)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Size symbols that the number depends on, sorted."""
        parts = (*self.clauses, *(extent for _, extent in self.ranges))
        found = {n.name for part in parts for n in walk(part) if isinstance(n, Symbol)}
        return tuple(sorted(found - {v for v, _ in self.ranges}))

    def evaluate(self, sizes: Mapping[str, Value]) -> Value:
        """Exact number for int sizes; for arrays, every distinct combination of sizes is counted once."""
        columns = [_size(name, sizes) for name in self.symbols]
        if not any(isinstance(c, np.ndarray) for c in columns):
            return _points_at(self, tuple(int(c) for c in columns))
        table = np.stack([np.ravel(c) for c in np.broadcast_arrays(*columns)], axis=1)
        if not np.array_equal(table, np.rint(table)):
            raise ValueError(f"{self}: sizes must be whole numbers")
        rows, inverse = np.unique(table, axis=0, return_inverse=True)
        found = [_points_at(self, tuple(int(s) for s in row)) for row in rows]
        return np.array(found)[inverse].reshape(np.broadcast_shapes(*(np.shape(c) for c in columns)))

    def __str__(self) -> str:
        where = " && ".join(format_expression(c) for c in self.clauses)
        some = f"some {','.join(self.exists)}" if self.exists else ""
        return "#(" + ": ".join(part for part in (",".join(self.kept), some, where) if part) + ")"


@lru_cache(maxsize=65536)
def _points_at(atom: PointSet, values: tuple[int, ...]) -> int:
    sizes = dict(zip(atom.symbols, values, strict=True))
    ranges = {v: int(value(extent, sizes)) for v, extent in atom.ranges}
    return count_points(ranges, atom.clauses, sizes, atom.exists)


Factor = str | PointSet
Monomial = tuple[tuple[Factor, int], ...]
"""((factor, power), ...) in the order in which people read it: the order of the ranks."""


@dataclass(frozen=True, slots=True, eq=False)
class Formula:
    """A polynomial with integer coefficients over size symbols and point sets. Supports + - *, ==, str, evaluate."""

    terms: tuple[tuple[Monomial, int], ...] = ()

    def _canonical(self) -> frozenset[tuple[frozenset[tuple[Factor, int]], int]]:
        return frozenset((frozenset(m), c) for m, c in self.terms)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int):
            other = constant(other)
        return isinstance(other, Formula) and self._canonical() == other._canonical()

    def __hash__(self) -> int:
        return hash(self._canonical())

    def __add__(self, other: Formula | int) -> Formula:
        return _collect((*self.terms, *_formula(other).terms))

    __radd__ = __add__

    def __neg__(self) -> Formula:
        return Formula(tuple((m, -c) for m, c in self.terms))

    def __sub__(self, other: Formula | int) -> Formula:
        return self + (-_formula(other))

    def __rsub__(self, other: int) -> Formula:
        return constant(other) - self

    def __mul__(self, other: Formula | int) -> Formula:
        right = _formula(other).terms
        return _collect((_times(a, b), c * d) for a, c in self.terms for b, d in right)

    __rmul__ = __mul__

    def __bool__(self) -> bool:
        return bool(self.terms)

    @property
    def symbols(self) -> frozenset[str]:
        """Every size symbol that must be known to evaluate."""
        factors = {f for m, _ in self.terms for f, _ in m}
        return frozenset(s for f in factors for s in ((f,) if isinstance(f, str) else f.symbols))

    @property
    def point_sets(self) -> tuple[PointSet, ...]:
        return tuple(f for f in self._factors() if isinstance(f, PointSet))

    def replace(self, factors: Mapping[PointSet, Formula]) -> Formula:
        """The formula with point sets exchanged for other formulas."""
        total = constant(0)
        for monomial, coefficient in self.terms:
            term = constant(coefficient)
            for factor, power in monomial:
                by = factors.get(factor) if isinstance(factor, PointSet) else None
                for _ in range(power):
                    term = term * (single(factor) if by is None else by)
            total = total + term
        return total

    def evaluate(self, sizes: Mapping[str, Value]) -> Value:
        """An exact int when all sizes are ints. With arrays (they broadcast): int64 as long as that holds every
        partial sum, float64 otherwise and for float sizes. KeyError names a missing size."""
        values = {f: f.evaluate(sizes) if isinstance(f, PointSet) else _size(f, sizes) for f in self._factors()}
        arrays = [v for v in values.values() if isinstance(v, np.ndarray)]
        if arrays and any(v.dtype == np.int64 for v in arrays) and self._bound(values) >= INT64_LIMIT:
            values = {f: np.asarray(v, dtype=np.float64) for f, v in values.items()}
        total: Value = np.zeros(np.broadcast_shapes(*(a.shape for a in arrays)), np.int64) if arrays else 0
        for monomial, coefficient in self.terms:
            term: Value = coefficient
            for factor, power in monomial:
                for _ in range(power):
                    term = term * values[factor]
            total = total + term
        return total

    def _factors(self) -> list[Factor]:
        return list(dict.fromkeys(f for m, _ in self.terms for f, _ in m))

    def _bound(self, values: Mapping[Factor, Value]) -> float:
        top = {f: float(np.max(np.abs(v), initial=0)) for f, v in values.items()}
        return sum(abs(c) * math.prod(top[f] ** p for f, p in m) for m, c in self.terms)

    def text(self, names: Mapping[PointSet, str]) -> str:
        """The formula with common factors in front; point sets in `names` appear by their name."""
        if not self.terms:
            return "0"
        shared, common = _shared(self.terms), math.gcd(*(c for _, c in self.terms))
        if len(self.terms) == 1 or (not shared and common == 1):
            return _sum_text(self.terms, names)
        rest = tuple((_without(m, shared), c // common) for m, c in self.terms)
        return f"{_monomial_text(shared, common, names)}*({_sum_text(rest, names)})"

    def __str__(self) -> str:
        return self.text({})


def constant(number: int) -> Formula:
    return Formula((((), number),)) if number else Formula()


def single(f: Factor) -> Formula:
    """The formula that consists of one size symbol or one point set."""
    return Formula(((((f, 1),), 1),))


def polynomial(expression: Expression) -> Formula | None:
    """The expression over sizes as a formula; None when it is not a polynomial with whole coefficients."""
    if isinstance(expression, Number):
        return constant(int(expression.value)) if float(expression.value).is_integer() else None
    if isinstance(expression, Symbol):
        return single(expression.name)
    if isinstance(expression, Apply) and expression.op in ("+", "-", "*", "neg"):
        args = [polynomial(a) for a in expression.args]
        known = [a for a in args if a is not None]
        if len(known) < len(args):
            return None
        if expression.op == "neg":
            return -known[0]
        left, right = known
        return left + right if expression.op == "+" else left - right if expression.op == "-" else left * right
    return None


def _formula(value: Formula | int) -> Formula:
    return constant(value) if isinstance(value, int) else value


def _size(name: str, sizes: Mapping[str, Value]) -> Value:
    if name not in sizes:
        raise KeyError(f"size {name} is missing; known sizes: {', '.join(sorted(sizes)) or 'none'}")
    size = sizes[name]
    if isinstance(size, np.ndarray):
        return size.astype(np.int64) if np.issubdtype(size.dtype, np.integer) else size
    return size if isinstance(size, float) else int(size)


def _times(a: Monomial, b: Monomial) -> Monomial:
    powers = dict(a)
    for f, p in b:
        powers[f] = powers.get(f, 0) + p
    return tuple(powers.items())


def _collect(terms: Iterable[tuple[Monomial, int]]) -> Formula:
    sums: dict[frozenset[tuple[Factor, int]], tuple[Monomial, int]] = {}
    for monomial, coefficient in terms:
        key = frozenset(monomial)
        first, so_far = sums.get(key, (monomial, 0))
        sums[key] = (first, so_far + coefficient)
    return Formula(tuple(t for t in sums.values() if t[1]))


def _shared(terms: tuple[tuple[Monomial, int], ...]) -> Monomial:
    tables = [dict(m) for m, _ in terms]
    common = ((f, min(t.get(f, 0) for t in tables)) for f, _ in terms[0][0])
    return tuple((f, p) for f, p in common if p)


def _without(monomial: Monomial, divisor: Monomial) -> Monomial:
    less = dict(divisor)
    return tuple((f, p - less.get(f, 0)) for f, p in monomial if p > less.get(f, 0))


def _monomial_text(monomial: Monomial, coefficient: int, names: Mapping[PointSet, str]) -> str:
    known = ((names.get(f, str(f)) if isinstance(f, PointSet) else f, p) for f, p in monomial)
    parts = [f if p == 1 else f"{f}^{p}" for f, p in known]
    if coefficient != 1 or not parts:
        parts.insert(0, str(coefficient))
    return "*".join(parts)


def _sum_text(terms: tuple[tuple[Monomial, int], ...], names: Mapping[PointSet, str]) -> str:
    text = ""
    for monomial, coefficient in sorted(terms, key=lambda t: t[1] < 0):  # a leading minus reads badly
        sign = (" - " if text else "-") if coefficient < 0 else (" + " if text else "")
        text += sign + _monomial_text(monomial, abs(coefficient), names)
    return text
