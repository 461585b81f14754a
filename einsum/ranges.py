"""Which coordinates an index expression can reach, as far as that can be said without sizes."""

from __future__ import annotations

from dataclasses import dataclass

from einsight.einsum.expression import Apply, Expression, Number, Symbol, walk
from einsight.einsum.formula import Formula, polynomial

PRODUCTS, NODES = 3, 60
"""Index expressions beyond these are not judged here: expanding their products could take very long."""


@dataclass(frozen=True, slots=True)
class Escape:
    """An index leaves its rank whatever the sizes: the coordinate reached, and where (`m=M-1`)."""

    coordinate: Formula
    place: str
    above: bool


def escape(index: Expression, extent: Formula) -> Escape | None:
    """How `index` leaves 0 .. extent-1 for all sizes >= 1; None when it stays inside or when that depends on sizes.

    Each variable v walks 0 .. V-1. Only polynomials in which a variable occurs in one term, to the first power, are
    judged; of those the extremes are exact.
    """
    nodes = tuple(walk(index))
    if len(nodes) > NODES or sum(isinstance(n, Apply) and n.op == "*" for n in nodes) > PRODUCTS:
        return None
    form = polynomial(index)
    if form is None:
        return None
    highest, lowest = _extreme(form, high=True), _extreme(form, high=False)
    if highest and _positive(highest[0] - extent + 1):
        return Escape(*highest, above=True)
    if lowest and _positive(-lowest[0]):
        return Escape(*lowest, above=False)
    return None


def size(name: str) -> Formula:
    """The size of a rank, as a formula."""
    return polynomial(Symbol(name)) or Formula()


def _constant(number: int) -> Formula:
    return polynomial(Number(number)) or Formula()


def _extreme(form: Formula, high: bool) -> tuple[Formula, str] | None:
    """The largest or smallest value, and the variables' values there."""
    total, seen, places = _constant(0), set[str](), []
    for monomial, coefficient in form.terms:
        rest, own = _constant(coefficient), ""
        for name, power in monomial:
            if not isinstance(name, str):
                return None
            if name[:1].islower():
                if own or power > 1 or name in seen:
                    return None
                own = name
            else:
                for _ in range(power):
                    rest = rest * size(name)
        if own:
            seen.add(own)
            top = (coefficient > 0) == high
            places.append(f"{own}={own.upper()}-1" if top else f"{own}=0")
            rest = rest * (size(own.upper()) - 1) if top else _constant(0)
        total = total + rest
    return total, ", ".join(places)


def _positive(form: Formula) -> bool:
    """Whether the formula is above 0 for all sizes >= 1 (sufficient: only its constant may be negative)."""
    return all(c > 0 for m, c in form.terms if m) and sum(c for _, c in form.terms) > 0
