"""How many integer points of a box satisfy a predicate: exact, and for interval-shaped masks independent of the sizes.

A predicate is brought into a union of *branches*, each a conjunction of inequalities `sum a_v v + c >= 0`. Chunk
variables that only occur together (`n1*N0 + n0`) become one. Then the first way that fits is taken:

closed form   one or two variables and affine inequalities: per row m the live keys are [max(lower_i), min(upper_j)], each
              bound affine in m; the rows are cut where bounds cross, and every piece is a sum of floor((a m + b) / c)
row by row    each branch gives one key interval per row, whatever functions of the row its ends are (GNA)
enumeration   anything else
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np

from einsight.einsum.expression import Apply, Expression, Number, Symbol, conjuncts, variables

ENUMERATION_LIMIT = 2_000_000_000
CHUNK = 1 << 20
MAX_BRANCHES = 6  # inclusion-exclusion takes 2^branches terms

_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "%": operator.mod,
    "floordiv": operator.floordiv, "neg": operator.neg, "abs": operator.abs, "max": np.maximum, "min": np.minimum,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
    "&&": np.logical_and, "||": np.logical_or, "select": np.where,
}  # fmt: skip


def count(
    ranges: Mapping[str, int],
    predicate: Expression | Sequence[Expression] | None,
    sizes: Mapping[str, int],
    exists: Collection[str] = (),
) -> int:
    """Number of integer points of the variables not in `exists` for which some value of those in `exists` satisfies
    the predicate.

    ranges     extent of every variable (it walks 0 .. extent-1)
    predicate  an expression, or clauses that all must hold
    sizes      values of the other symbols of the predicate

    Raises ValueError when only enumeration is left and it would visit more than `ENUMERATION_LIMIT` points.
    """
    clauses = predicate if isinstance(predicate, Sequence) else conjuncts(predicate)
    unknown = {s for c in clauses for s in variables(c)} - set(ranges)
    if unknown:
        raise ValueError(f"the predicate uses {', '.join(sorted(unknown))}, for which no range is given")
    total = 1
    for names, own in components(tuple(ranges), clauses):
        if not names:
            total *= int(all(bool(value(c, sizes)) for c in own))
        else:
            total *= _component({v: ranges[v] for v in names}, own, sizes, frozenset(exists) & set(names))
    return total


def value(node: Expression, environment: Mapping[str, Any]) -> Any:
    """An index expression or predicate on ints or integer arrays; whole numbers stay exact."""
    if isinstance(node, Number):
        return int(node.value) if float(node.value).is_integer() else node.value
    if isinstance(node, Symbol):
        if node.name not in environment:
            raise KeyError(f"size {node.name} is missing; known: {', '.join(sorted(environment)) or 'none'}")
        return environment[node.name]
    if isinstance(node, Apply) and node.op in _FUNCTIONS:
        return _FUNCTIONS[node.op](*(value(a, environment) for a in node.args))
    what = node.op if isinstance(node, Apply) else f"{node.tensor}[...]"
    raise ValueError(f"a predicate cannot use {what}")


def components(
    names: Sequence[str], clauses: Sequence[Expression]
) -> Iterator[tuple[tuple[str, ...], tuple[Expression, ...]]]:
    """Groups of variables that clauses tie together, with their clauses; clauses without any variable come last."""
    left = list(names)
    while left:
        group = {left[0]}
        while True:
            grown = group.union(*(variables(c) for c in clauses if variables(c) & group))
            if grown == group:
                break
            group = grown
        yield tuple(v for v in names if v in group), tuple(c for c in clauses if variables(c) & group)
        left = [v for v in left if v not in group]
    fixed = tuple(c for c in clauses if not variables(c))
    if fixed:
        yield (), fixed


# --- predicates as unions of conjunctions of inequalities


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


def _linear(node: Expression, sizes: Mapping[str, int]) -> Inequality | None:
    """The expression as affine part plus opaque rest; None when it is not whole-numbered for sure."""
    if not variables(node):
        number = value(node, sizes)
        return Inequality({}, int(number)) if float(number).is_integer() else None
    if isinstance(node, Symbol):
        return Inequality({node.name: 1}, 0)
    if not isinstance(node, Apply) or node.op in ("/", "select"):
        return None
    parts = [_linear(a, sizes) for a in node.args]
    known = [p for p in parts if p is not None]
    if len(known) < len(parts):
        return None
    if node.op == "neg":
        return known[0].scaled(-1)
    if node.op in ("+", "-"):
        return known[0].plus(known[1].scaled(1 if node.op == "+" else -1))
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
        left_side, right_side = (_linear(a, sizes) for a in node.args)
        if left_side is None or right_side is None:
            return None
        return _comparison(node.op, left_side, right_side)
    return None


def _union(clauses: Sequence[Expression], sizes: Mapping[str, int]) -> list[Branch] | None:
    union: list[Branch] = [()]
    for clause in clauses:
        found = branches(clause, sizes)
        if found is None or len(found) * len(union) > MAX_BRANCHES:
            return None
        union = [a + b for a in union for b in found]
    return union


# --- one component: chunk variables joined, then the first method that fits


@dataclass(frozen=True, slots=True)
class Space:
    """Variables with extents, a union of branches, variables that only need to exist, and `tiles`: variables counted
    in whole tiles of so many coordinates (a kept outer chunk whose inner chunk only needs to exist)."""

    ranges: Mapping[str, int]
    union: tuple[Branch, ...]
    exists: frozenset[str]
    tiles: Mapping[str, int]


def _component(
    ranges: Mapping[str, int], clauses: Sequence[Expression], sizes: Mapping[str, int], exists: frozenset[str]
) -> int:
    if min(ranges.values()) <= 0:
        return 0
    if exists == set(ranges):
        return min(1, _component(ranges, clauses, sizes, frozenset()))
    union = _union(clauses, sizes)
    if union is not None:
        space = join_chunks(Space(ranges, tuple(union), exists, {}))
        for method in (closed_form, row_by_row):
            found = method(space, sizes)
            if found is not None:
                return found
    return enumerate_points(ranges, clauses, sizes, exists)


def join_chunks(space: Space) -> Space:
    """Replaces (n1, n0) by the one coordinate n1*N0 + n0 wherever every inequality uses them only so."""
    hidden = frozenset().union(*(i.hidden for b in space.union for i in b))
    for outer in space.ranges:
        for inner in space.ranges:
            if inner == outer or {outer, inner} & (hidden | set(space.tiles)):
                continue
            if outer in space.exists and inner not in space.exists:
                continue
            size = space.ranges[inner]
            if all(i.coefficient(outer) == size * i.coefficient(inner) for b in space.union for i in b):
                return join_chunks(_joined(space, outer, inner, size))
    return space


def _joined(space: Space, outer: str, inner: str, size: int) -> Space:
    name = f"{outer}*{inner}"

    def rename(i: Inequality) -> Inequality:
        rest = {v: a for v, a in i.coefficients.items() if v not in (outer, inner)}
        a = i.coefficient(inner)
        return Inequality({**rest, name: a} if a else rest, i.constant, i.opaque)

    ranges = {v: r for v, r in space.ranges.items() if v not in (outer, inner)}
    ranges[name] = space.ranges[outer] * size
    exists = space.exists - {outer, inner}
    tiles = dict(space.tiles)
    if outer in space.exists:
        exists |= {name}
    elif inner in space.exists:
        tiles[name] = size
    return Space(ranges, tuple(tuple(rename(i) for i in b) for b in space.union), exists, tiles)


def _subsets(union: Sequence[Branch]) -> Iterator[tuple[int, tuple[Branch, ...]]]:
    """Inclusion-exclusion: (sign, branches) for every non-empty subset of the union."""
    for size in range(1, len(union) + 1):
        for subset in combinations(union, size):
            yield (1 if size % 2 else -1), subset


# --- closed form


@dataclass(frozen=True, slots=True)
class Line:
    """(slope * m + offset) / divisor, divisor > 0."""

    slope: int
    offset: int
    divisor: int = 1

    def at(self, m: Fraction) -> Fraction:
        return (self.slope * m + self.offset) / self.divisor

    def minus(self, other: Line) -> Line:
        """The numerator of the difference, over a positive common divisor."""
        return Line(
            self.slope * other.divisor - other.slope * self.divisor,
            self.offset * other.divisor - other.offset * self.divisor,
            self.divisor * other.divisor,
        )


def closed_form(space: Space, sizes: Mapping[str, int]) -> int | None:
    """Time independent of the sizes; None when the space has a third variable or an inequality that is not affine."""
    if len(space.ranges) > 2 or any(i.opaque for b in space.union for i in b):
        return None
    row, key = _row_and_key(space)
    steps = {abs(i.coefficient(key)) for b in space.union for i in b} - {0}
    rows = space.ranges.get(row, 1)
    if key in space.exists:
        if steps - {1}:
            return None
        return sum(sign * _live_rows(rows, row, space.ranges[key], key, s) for sign, s in _subsets(space.union))
    tile = space.tiles.get(key, 1)
    if tile > 1 and (steps - {1} or len(space.union) > 1):
        return None
    if row in space.tiles or row in space.exists:
        return None
    return sum(
        sign * _area(rows, row, space.ranges[key], key, tuple(i for b in subset for i in b), tile)
        for sign, subset in _subsets(space.union)
    )


def _row_and_key(space: Space) -> tuple[str, str]:
    """The key is the variable that is projected, if one is; there is one key interval per row."""
    names = sorted(space.ranges, key=lambda v: (v in space.exists, v in space.tiles))
    return ("", names[0]) if len(names) == 1 else (names[0], names[1])


def _bounds(keys: int, row: str, key: str, conjunction: Iterable[Inequality]) -> tuple[list[Line], list[Line], Branch]:
    """Lower and upper bounds of the key as lines over the row, and the inequalities that concern the row alone."""
    lower, upper, only_row = [Line(0, 0)], [Line(0, keys - 1)], []
    for i in conjunction:
        a, slope = i.coefficient(key), i.coefficient(row)
        if a > 0:  # a key + slope m + c >= 0
            lower.append(Line(-slope, -i.constant, a))
        elif a < 0:
            upper.append(Line(slope, i.constant, -a))
        else:
            only_row.append(i)
    return list(dict.fromkeys(lower)), list(dict.fromkeys(upper)), tuple(only_row)


def _row_interval(rows: int, conditions: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """First and last row m in 0..rows-1 with slope * m + offset >= 0 for every (slope, offset)."""
    first, last = 0, rows - 1
    for slope, offset in conditions:
        if slope > 0:
            first = max(first, -(offset // slope))
        elif slope < 0:
            last = min(last, offset // -slope)
        elif offset < 0:
            last = -1
    return first, last


def _live_rows(rows: int, row: str, keys: int, key: str, subset: Iterable[Branch]) -> int:
    """Rows in which every branch of the subset leaves at least one key; key coefficients are 0 or +-1."""
    conditions: list[tuple[int, int]] = []
    for branch in subset:
        lower, upper, only_row = _bounds(keys, row, key, branch)
        conditions += [(i.coefficient(row), i.constant) for i in only_row]
        conditions += [(d.slope, d.offset) for u in upper for d in [u.minus(w) for w in lower]]
    first, last = _row_interval(rows, conditions)
    return max(0, last - first + 1)


def _area(rows: int, row: str, keys: int, key: str, conjunction: Branch, tile: int) -> int:
    """Keys (or key tiles) summed over all rows, under a conjunction."""
    lower, upper, only_row = _bounds(keys, row, key, conjunction)
    first, last = _row_interval(rows, [(i.coefficient(row), i.constant) for i in only_row])
    total = 0
    for a, b in _pieces(first, last, [*lower, *upper]):
        middle = Fraction(a + b, 2)
        low = max(lower, key=lambda line: line.at(middle))
        high = min(upper, key=lambda line: line.at(middle))
        if high.at(middle) >= low.at(middle):
            total += _floors(a, b, high, tile) - _first_floors(a, b, low, tile) + (b - a + 1)
    return total


def _pieces(first: int, last: int, lines: Sequence[Line]) -> Iterator[tuple[int, int]]:
    """The rows cut so that inside a piece no two lines cross (a crossing at a whole row is a piece of its own)."""
    if first > last:
        return
    starts = {first}
    for one, other in combinations(lines, 2):
        d = one.minus(other)
        if d.slope:
            crossing = Fraction(-d.offset, d.slope)
            starts |= {math.floor(crossing) + 1, math.ceil(crossing)}
    inside = sorted(s for s in starts if first <= s <= last)
    yield from ((a, b - 1) for a, b in zip(inside, [*inside[1:], last + 1], strict=True))


def _floors(a: int, b: int, line: Line, tile: int) -> int:
    """Sum of floor(line(m) / tile) for m = a .. b."""
    return floor_sum(b - a + 1, line.slope, line.slope * a + line.offset, line.divisor * tile)


def _first_floors(a: int, b: int, line: Line, tile: int) -> int:
    """Sum of floor(ceil(line(m)) / tile) for m = a .. b; tiles come with divisor 1 only."""
    if tile > 1:
        return _floors(a, b, line, tile)
    return -floor_sum(b - a + 1, -line.slope, -(line.slope * a + line.offset), line.divisor)


def floor_sum(n: int, a: int, b: int, c: int) -> int:
    """Sum over i = 0 .. n-1 of floor((a*i + b) / c), c > 0, in O(log) steps: take out whole multiples, then count the
    lattice points under the line along the other axis, as Euclid's algorithm swaps its operands (Graham, Knuth,
    Patashnik, Concrete Mathematics, section 3.5)."""
    total = 0
    while n > 0:
        total += (a // c) * (n * (n - 1) // 2) + (b // c) * n
        a, b = a % c, b % c
        n, b = divmod(a * n + b, c)
        a, c = c, a
    return total


# --- row by row, and by enumeration


def row_by_row(space: Space, sizes: Mapping[str, int]) -> int | None:
    """One key interval per row and branch, vectorised over the rows; None when no variable can be the key."""
    key = _interval_key(space)
    if key is None:
        return None
    rows = {v: n for v, n in space.ranges.items() if v != key}
    _refuse_above(math.prod(rows.values()), space.ranges)
    tile = space.tiles.get(key, 1)
    total = 0
    for grid, size in _grids(rows, CHUNK):
        intervals = [_interval(b, key, space.ranges[key], {**sizes, **grid}, tile) for b in space.union]
        for sign, chosen in _interval_subsets(intervals):
            total += sign * _overlap(chosen, key in space.exists, size)
    return total


def _interval_key(space: Space) -> str | None:
    hidden = frozenset().union(*(i.hidden for b in space.union for i in b))
    projected = space.exists | set(space.tiles)
    if len(projected) > 1:
        return None
    usable = [v for v in (projected or space.ranges) if v not in hidden]
    return max(usable, key=lambda v: space.ranges[v]) if usable else None


Interval = tuple[Any, Any, Any]
"""First and last coordinate per row, and whether there is any."""


def _interval(branch: Branch, key: str, keys: int, environment: Mapping[str, Any], tile: int) -> Interval:
    low: Any = 0
    high: Any = keys - 1
    live: Any = True
    for i in branch:
        a, rest = i.coefficient(key), i.at(environment, without=key)
        if a > 0:
            low = np.maximum(low, -(rest // a))
        elif a < 0:
            high = np.minimum(high, rest // -a)
        else:
            live = np.logical_and(live, rest >= 0)
    live = np.logical_and(live, low <= high)
    return low // tile, high // tile, live


def _interval_subsets(intervals: Sequence[Interval]) -> Iterator[tuple[int, tuple[Interval, ...]]]:
    for size in range(1, len(intervals) + 1):
        for subset in combinations(intervals, size):
            yield (1 if size % 2 else -1), subset


def _overlap(chosen: Sequence[Interval], only_exists: bool, rows: int) -> int:
    """Coordinates common to all intervals, summed over the rows (or the rows in which all are live)."""
    live: Any = True
    low, high = chosen[0][0], chosen[0][1]
    for first, last, alive in chosen:
        low, high, live = np.maximum(low, first), np.minimum(high, last), np.logical_and(live, alive)
    per_row = live if only_exists else np.where(live, np.maximum(high - low + 1, 0), 0)
    return int(np.broadcast_to(per_row, (rows,)).sum(dtype=np.int64))


def enumerate_points(
    ranges: Mapping[str, int], clauses: Sequence[Expression], sizes: Mapping[str, int], exists: frozenset[str]
) -> int:
    """Every point tested, in chunks. The reference for the other two ways, and what is left for any other predicate."""
    _refuse_above(math.prod(ranges.values()), ranges)
    kept = {v: n for v, n in ranges.items() if v not in exists}
    inner = {v: n for v, n in ranges.items() if v in exists}
    total = 0
    width = math.prod(inner.values())
    for grid, size in _grids(kept, max(1, CHUNK // width)):
        outer = {v: column[:, None] for v, column in grid.items()}
        found = np.zeros(size, dtype=bool)
        for part, columns in _grids(inner, CHUNK):
            here = {**sizes, **outer, **{v: line[None, :] for v, line in part.items()}}
            mask: Any = True
            for clause in clauses:
                mask = np.logical_and(mask, value(clause, here))
            found |= np.broadcast_to(mask, (size, columns)).any(axis=1)
        total += int(found.sum())
    return total


def _grids(ranges: Mapping[str, int], chunk: int) -> Iterator[tuple[dict[str, np.ndarray[Any, Any]], int]]:
    """All points of a box as int64 columns, `chunk` points at a time; one empty point for an empty box of names."""
    shape = tuple(ranges.values())
    points = math.prod(shape)
    for start in range(0, points, chunk):
        index = np.arange(start, min(start + chunk, points), dtype=np.int64)
        columns = np.unravel_index(index, shape) if shape else ()
        yield dict(zip(ranges, columns, strict=True)), len(index)


def _refuse_above(points: int, ranges: Mapping[str, int]) -> None:
    if points > ENUMERATION_LIMIT:
        box = " x ".join(f"{v}:{n}" for v, n in ranges.items())
        raise ValueError(
            f"the predicate is not a union of key intervals, so its points must be enumerated, and {points:.2g} points "
            f"({box}) are above the limit of {ENUMERATION_LIMIT:.0e}; use smaller sizes or affine comparisons"
        )
