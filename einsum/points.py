"""How many integer points of a box satisfy a predicate: exact, and in no time for interval-shaped masks.

`floordiv` and `%` are split into digits, and variables that no clause ties together are counted apart. Chunk variables
that only occur together (`n1*N0 + n0`) become one. Then the first way that fits is taken:

closed form   one or two variables and affine inequalities (causal, banded, windowed, unions of them)
row by row    each branch gives one key interval per row, whatever functions of the row its ends are (GNA)
enumeration   anything else
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeVar

import numpy as np

from einsight.einsum.digits import split_digits
from einsight.einsum.expression import Expression, conjuncts, variables
from einsight.einsum.inequality import Branch, Inequality, union, value
from einsight.einsum.lattice import area, live_rows

ENUMERATION_LIMIT = 2_000_000_000
CHUNK = 1 << 20


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
    extents, clauses, hidden = split_digits(ranges, clauses, sizes, frozenset(exists))
    total = 1
    for names, own in components(tuple(extents), clauses):
        if not names:
            total *= int(all(bool(value(c, sizes)) for c in own))
        else:
            total *= _component({v: extents[v] for v in names}, own, sizes, hidden & set(names))
    return total


def components(
    names: Sequence[str], clauses: Sequence[Expression]
) -> Iterator[tuple[tuple[str, ...], tuple[Expression, ...]]]:
    """Groups of variables that clauses tie together, with their clauses; clauses without any variable come last."""
    uses = [(c, variables(c)) for c in clauses]
    left = list(names)
    while left:
        group = {left[0]}
        while True:
            grown = group.union(*(used for _, used in uses if used & group))
            if grown == group:
                break
            group = grown
        yield tuple(v for v in names if v in group), tuple(c for c, used in uses if used & group)
        left = [v for v in left if v not in group]
    fixed = tuple(c for c, used in uses if not used)
    if fixed:
        yield (), fixed


# --- one component: chunk variables joined, then the first method that fits


@dataclass(frozen=True, slots=True)
class Space:
    """Variables with extents, a union of branches, variables that only need to exist, and `tiles`: variables counted
    in whole tiles of so many coordinates (a kept outer chunk whose inner chunk only needs to exist)."""

    ranges: Mapping[str, int]
    branches: tuple[Branch, ...]
    exists: frozenset[str]
    tiles: Mapping[str, int]


def _component(
    ranges: Mapping[str, int], clauses: Sequence[Expression], sizes: Mapping[str, int], exists: frozenset[str]
) -> int:
    if min(ranges.values()) <= 0:
        return 0
    if exists == set(ranges):
        return min(1, _component(ranges, clauses, sizes, frozenset()))
    alternatives = union(clauses, sizes)
    if alternatives is not None:
        space = join_chunks(Space(ranges, tuple(alternatives), exists, {}))
        for method in (closed_form, row_by_row):
            found = method(space, sizes)
            if found is not None:
                return found
    return enumerate_points(ranges, clauses, sizes, exists)


def join_chunks(space: Space) -> Space:
    """Replaces (n1, n0) by the one coordinate n1*N0 + n0 wherever every inequality uses them only so."""
    hidden = frozenset().union(*(i.hidden for b in space.branches for i in b))
    for outer in space.ranges:
        for inner in space.ranges:
            if inner == outer or {outer, inner} & (hidden | set(space.tiles)):
                continue
            if outer in space.exists and inner not in space.exists:
                continue
            size = space.ranges[inner]
            if all(i.coefficient(outer) == size * i.coefficient(inner) for b in space.branches for i in b):
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
    return Space(ranges, tuple(tuple(rename(i) for i in b) for b in space.branches), exists, tiles)


T = TypeVar("T")


def _subsets(union: Sequence[T]) -> Iterator[tuple[int, tuple[T, ...]]]:
    """Inclusion-exclusion: (sign, members) for every non-empty subset of the members of a union."""
    for size in range(1, len(union) + 1):
        for subset in combinations(union, size):
            yield (1 if size % 2 else -1), subset


def closed_form(space: Space, sizes: Mapping[str, int]) -> int | None:
    """Time independent of the sizes; None when the space has a third variable or an inequality that is not affine."""
    if len(space.ranges) > 2 or any(i.opaque for b in space.branches for i in b):
        return None
    row, key = _row_and_key(space)
    if row in space.tiles or row in space.exists:
        return None
    steps = {abs(i.coefficient(key)) for b in space.branches for i in b} - {0}
    rows = space.ranges.get(row, 1)
    if key in space.exists:
        if steps - {1}:
            return None
        return sum(sign * live_rows(rows, row, space.ranges[key], key, s) for sign, s in _subsets(space.branches))
    tile = space.tiles.get(key, 1)
    if tile > 1 and (steps - {1} or len(space.branches) > 1):
        return None
    return sum(
        sign * area(rows, row, space.ranges[key], key, tuple(i for b in subset for i in b), tile)
        for sign, subset in _subsets(space.branches)
    )


def _row_and_key(space: Space) -> tuple[str, str]:
    """The key is the variable that is projected, if one is; there is one key interval per row."""
    names = sorted(space.ranges, key=lambda v: (v in space.exists, v in space.tiles))
    return ("", names[0]) if len(names) == 1 else (names[0], names[1])


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
        intervals = [_interval(b, key, space.ranges[key], {**sizes, **grid}, tile) for b in space.branches]
        for sign, chosen in _subsets(intervals):
            total += sign * _overlap(chosen, key in space.exists, size)
    return total


def _interval_key(space: Space) -> str | None:
    hidden = frozenset().union(*(i.hidden for b in space.branches for i in b))
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
