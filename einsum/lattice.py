"""Closed forms for integer points under lines: the keys of all rows m, live between bounds that are affine in m.

Per row the live keys are [max(lower_i(m)), min(upper_j(m))]. The rows are cut where two bounds cross; in every piece
one lower and one upper bound rule, and the keys sum to differences of sum floor((a m + b) / c).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from einsight.einsum.inequality import Branch, Inequality


@dataclass(frozen=True, slots=True)
class Line:
    """(slope * m + offset) / divisor, divisor > 0."""

    slope: int
    offset: int
    divisor: int = 1

    def minus(self, other: Line) -> Line:
        """The numerator of the difference, over a positive common divisor."""
        return Line(
            self.slope * other.divisor - other.slope * self.divisor,
            self.offset * other.divisor - other.offset * self.divisor,
            self.divisor * other.divisor,
        )


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


def live_rows(rows: int, row: str, keys: int, key: str, subset: Iterable[Branch]) -> int:
    """Rows in which every branch of the subset leaves at least one key; key coefficients are 0 or +-1."""
    conditions: list[tuple[int, int]] = []
    for branch in subset:
        lower, upper, only_row = _bounds(keys, row, key, branch)
        conditions += [(i.coefficient(row), i.constant) for i in only_row]
        conditions += [(d.slope, d.offset) for u in upper for d in [u.minus(w) for w in lower]]
    first, last = _row_interval(rows, conditions)
    return max(0, last - first + 1)


def area(rows: int, row: str, keys: int, key: str, conjunction: Branch, tile: int) -> int:
    """Keys (or key tiles) summed over all rows, under a conjunction."""
    lower, upper, only_row = _bounds(keys, row, key, conjunction)
    first, last = _row_interval(rows, [(i.coefficient(row), i.constant) for i in only_row])
    total = 0
    for a, b in _pieces(first, last, [*lower, *upper]):
        low, high = _extreme(lower, a + b, 1), _extreme(upper, a + b, -1)
        if _above(high, low, a + b) >= 0:
            total += _floors(a, b, high, tile) - _first_floors(a, b, low, tile) + (b - a + 1)
    return total


def _above(one: Line, other: Line, twice: int) -> int:
    """Sign-true difference of two lines at row twice/2."""
    return (one.slope * twice + 2 * one.offset) * other.divisor - (other.slope * twice + 2 * other.offset) * one.divisor


def _extreme(lines: Sequence[Line], twice: int, sign: int) -> Line:
    """The highest (sign 1) or lowest (sign -1) line at row twice/2."""
    best = lines[0]
    for line in lines[1:]:
        if sign * _above(line, best, twice) > 0:
            best = line
    return best


def _pieces(first: int, last: int, lines: Sequence[Line]) -> Iterator[tuple[int, int]]:
    """The rows cut so that inside a piece no two lines cross (a crossing at a whole row is a piece of its own)."""
    if first > last:
        return
    starts = {first}
    for one, other in combinations(lines, 2):
        d = one.minus(other)
        if d.slope:
            crossing = -d.offset // d.slope
            starts |= {crossing, crossing + 1}
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
