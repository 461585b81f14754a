"""Predicates as unions of conjunctions of inequalities `sum a_v v + c >= 0` over the integers."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from einsight.einsum.expression import Apply, Expression, Number, Symbol, variables

MAX_BRANCHES = 6  # counting a union by inclusion-exclusion takes 2^branches terms

_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "%": operator.mod,
    "floordiv": operator.floordiv, "neg": operator.neg, "abs": operator.abs, "max": np.maximum, "min": np.minimum,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
    "&&": np.logical_and, "||": np.logical_or, "select": np.where,
}  # fmt: skip


def value(node: Expression, environment: Mapping[str, Any]) -> Any:
    """An index expression or predicate on ints or integer arrays; whole numbers stay exact.

    Raises KeyError for an unknown symbol and ValueError for a part that coordinates and sizes do not determine.
    """
    if isinstance(node, Number):
        return int(node.value) if float(node.value).is_integer() else node.value
    if isinstance(node, Symbol):
        if node.name not in environment:
            raise KeyError(f"size {node.name} is missing; known: {', '.join(sorted(environment)) or 'none'}")
        return environment[node.name]
    if isinstance(node, Apply) and node.op in _FUNCTIONS:
        return _FUNCTIONS[node.op](*(value(a, environment) for a in node.args))
    what = node.op if isinstance(node, Apply) else f"the values of {node.tensor}"
    raise ValueError(f"points cannot be counted: the predicate uses {what}; expected coordinates and sizes only")


@dataclass(frozen=True, slots=True)
class Inequality:
    """sum of coefficient * variable + sum of factor * expression + constant >= 0, over the integers.

    `opaque` holds the sub-expressions that are not affine (floordiv, min, ...).
    """

    coefficients: Mapping[str, int]
    constant: int
    opaque: tuple[tuple[int, Expression], ...] = ()

    def coefficient(self, variable: str) -> int:
        return self.coefficients.get(variable, 0)

    @property
    def hidden(self) -> frozenset[str]:
        """Variables inside the parts that are not affine."""
        return frozenset().union(*(variables(e) for _, e in self.opaque))

    def scaled(self, by: int) -> Inequality:
        terms = {v: by * a for v, a in self.coefficients.items()}
        return Inequality(terms, by * self.constant, tuple((by * k, e) for k, e in self.opaque))

    def plus(self, other: Inequality) -> Inequality:
        names = dict.fromkeys((*self.coefficients, *other.coefficients))
        terms = {v: self.coefficient(v) + other.coefficient(v) for v in names}
        return Inequality(
            {v: a for v, a in terms.items() if a}, self.constant + other.constant, self.opaque + other.opaque
        )

    def shifted(self, by: int) -> Inequality:
        return Inequality(self.coefficients, self.constant + by, self.opaque)

    def at(self, environment: Mapping[str, Any], without: str = "") -> Any:
        """The left side, the term of variable `without` left out."""
        total: Any = self.constant
        for v, a in self.coefficients.items():
            if v != without:
                total = total + a * environment[v]
        for k, e in self.opaque:
            total = total + k * value(e, environment)
        return total


Branch = tuple[Inequality, ...]


def linear(node: Expression, sizes: Mapping[str, int]) -> Inequality | None:
    """The expression as affine part plus opaque rest; None when it is not whole-numbered for sure."""
    if isinstance(node, Symbol) and node.is_variable:
        return Inequality({node.name: 1}, 0)
    if isinstance(node, Apply) and (node.op in ("+", "-", "*", "neg") or variables(node)):
        return _linear_operation(node, sizes)
    number = value(node, sizes)
    return Inequality({}, int(number)) if float(number).is_integer() else None


def _linear_operation(node: Apply, sizes: Mapping[str, int]) -> Inequality | None:
    if node.op in ("/", "select"):
        return None
    parts = [linear(a, sizes) for a in node.args]
    known = [p for p in parts if p is not None]
    if len(known) < len(parts):
        return None
    if node.op == "neg":
        return known[0].scaled(-1)
    if node.op in ("+", "-"):
        return known[0].plus(known[1] if node.op == "+" else known[1].scaled(-1))
    if node.op == "*":
        for this, other in (known, known[::-1]):
            if not this.coefficients and not this.opaque:
                return other.scaled(this.constant)
    if node.op in ("*", "floordiv", "%", "min", "max", "abs"):
        return Inequality({}, 0, ((1, node),))
    return None


def _comparison(op: str, left: Inequality, right: Inequality) -> list[Branch]:
    below = right.plus(left.scaled(-1))  # right - left >= 0, that is left <= right
    above = below.scaled(-1)
    alternatives: dict[str, list[Branch]] = {
        "<=": [(below,)], "<": [(below.shifted(-1),)], ">=": [(above,)], ">": [(above.shifted(-1),)],
        "==": [(below, above)], "!=": [(below.shifted(-1),), (above.shifted(-1),)],
    }  # fmt: skip
    return alternatives[op]


def branches(node: Expression, sizes: Mapping[str, int]) -> list[Branch] | None:
    """The predicate as a union of conjunctions; None when it is not built from comparisons with `&&` and `||`."""
    if not isinstance(node, Apply):
        return None
    if node.op in ("&&", "||"):
        left, right = branches(node.args[0], sizes), branches(node.args[1], sizes)
        if left is None or right is None:
            return None
        return left + right if node.op == "||" else [a + b for a in left for b in right]
    if node.op in ("<", "<=", ">", ">=", "==", "!="):
        left_side, right_side = (linear(a, sizes) for a in node.args)
        if left_side is None or right_side is None:
            return None
        return _comparison(node.op, left_side, right_side)
    return None


def union(clauses: Sequence[Expression], sizes: Mapping[str, int]) -> list[Branch] | None:
    """The clauses together as a union of conjunctions; None when one is no comparison, or for too many branches."""
    alternatives: list[Branch] = [()]
    for clause in clauses:
        found = branches(clause, sizes)
        if found is None or len(found) * len(alternatives) > MAX_BRANCHES:
            return None
        alternatives = [a + b for a in alternatives for b in found]
    return alternatives
