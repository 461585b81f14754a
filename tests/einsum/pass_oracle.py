"""Passes by definition: unroll every point of every Einsum, and look which points must precede which.

It shares only the IR with the analysis under test. Coordinates wrap around, so that a constant shift is a bijection
without a border, as it is on a long rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

from einsight.einsum.expression import Apply, Expression, Number, Symbol
from einsight.einsum.ir import Cascade, Einsum, Initial, Iterate

Element = tuple[str, tuple[int, ...]]


@dataclass
class Unrolled:
    """Points are numbered in an order in which they can run; sets of points are bits of an integer."""

    before: list[int] = field(default_factory=list)  # per point, all points that must precede it
    place: list[int | None] = field(default_factory=list)  # per point, its coordinate on the rank
    # per point and read, the inputs reached at the point's coordinate
    reached: list[tuple[frozenset[str], ...]] = field(default_factory=list)
    loop: list[Iterate | None] = field(default_factory=list)
    writers: dict[Element, list[int]] = field(default_factory=dict)
    fibers: dict[str, dict[tuple[int, ...], dict[int, int]]] = field(default_factory=dict)  # Einsum, others, r -> point


def passes(cascade: Cascade, sizes: Mapping[str, int], rank: str = "N") -> dict[str, int]:
    """Per input, the longest chain of touching Einsums of which each is complete before the next can start."""
    found = _unroll(cascade, sizes, rank)
    extent = sizes[rank]
    complete = {name: _complete(found, fibers) for name, fibers in found.fibers.items()}
    result = {}
    for tensor in cascade.inputs:
        touching = [n for n, fibers in found.fibers.items() if _touches(found, fibers, tensor.name, extent)]
        length: dict[str, int] = {}
        for name in touching:
            earlier = [length[u] for u in length if _precedes(found.fibers[u], complete[name])]
            length[name] = 1 + max(earlier, default=0)
        if length:
            result[tensor.name] = max(length.values())
    return result


def _touches(found: Unrolled, fibers: Mapping[tuple[int, ...], Mapping[int, int]], root: str, extent: int) -> bool:
    """Whether one of the Einsum's reads reaches `root` at every coordinate of some fiber that covers the rank."""
    for fiber in fibers.values():
        reads = zip(*(found.reached[p] for p in fiber.values()), strict=True)
        if len(fiber) == extent and any(all(root in at for at in read) for read in reads):
            return True
    return False


def _complete(found: Unrolled, fibers: Mapping[tuple[int, ...], Mapping[int, int]]) -> list[int]:
    """Per fiber, the points that precede all of its points."""
    result = []
    for fiber in fibers.values():
        common = -1
        for point in fiber.values():
            common &= found.before[point]
        result.append(common)
    return result


def _precedes(fibers: Mapping[tuple[int, ...], Mapping[int, int]], complete: list[int]) -> bool:
    """Whether all points of some fiber precede all points of some fiber of the other Einsum."""
    masks = [sum(1 << p for p in fiber.values()) for fiber in fibers.values()]
    return any(common & mask == mask for mask in masks for common in complete)


def _unroll(cascade: Cascade, sizes: Mapping[str, int], rank: str) -> Unrolled:
    found = Unrolled()
    inputs = {t.name: t.ranks for t in cascade.inputs}
    iterative = {s.output.tensor for s in cascade.statements if isinstance(s, Initial)}
    for einsum, loop, at in _points(cascade, sizes):
        position = cascade.position(rank, frozenset(at))
        place = None if position is None else _value(position, {**sizes, **at})
        before, reached = 0, []
        for access in einsum.reads:
            coordinates = tuple(_value(i, {**sizes, **at}) for i in access.indices)
            if access.tensor in inputs:
                wanted = (c for c, r in zip(coordinates, inputs[access.tensor], strict=True) if r == rank)
                here = place is not None and any(_near(c, place, sizes[rank], 1) for c in wanted)
                reached.append(frozenset({access.tensor} if here else ()))
                continue
            writers = found.writers.get((access.tensor, coordinates))
            if writers is None and access.tensor not in iterative:
                shape = [sizes[next(iter(_names(i))).upper()] if _names(i) else 1 << 30 for i in access.indices]
                wrapped = tuple(c % s for c, s in zip(coordinates, shape, strict=True))
                writers = found.writers[(access.tensor, wrapped)]
            before |= _all_before(found, writers or [])
            reached.append(_inherited(found, writers or [], place, loop, sizes[rank]))
        _record(found, einsum, loop, at, place, before, tuple(reached), cascade.family(rank))
        element = (einsum.name, tuple(_value(i, {**sizes, **at}) for i in einsum.output.indices))
        found.writers.setdefault(element, []).append(len(found.before) - 1)
    return found


def _all_before(found: Unrolled, writers: list[int]) -> int:
    result = 0
    for w in writers:
        result |= found.before[w] | 1 << w
    return result


def _inherited(
    found: Unrolled, writers: list[int], place: int | None, loop: Iterate | None, extent: int
) -> frozenset[str]:
    """What a value carries to a reader at `place`: only a value that itself belongs to one coordinate nearby."""
    places = {found.place[w] for w in writers}
    if place is None or len(places) != 1:
        return frozenset()
    (there,) = places
    # Within one loop, the value of an earlier step is a state, not an element at this coordinate.
    reach = 0 if loop is not None and found.loop[writers[0]] is loop else 1
    if there is None or not _near(there, place, extent, reach):
        return frozenset()
    return frozenset.intersection(*(frozenset().union(*found.reached[w]) for w in writers))


def _record(
    found: Unrolled,
    einsum: Einsum,
    loop: Iterate | None,
    at: Mapping[str, int],
    place: int | None,
    before: int,
    reached: tuple[frozenset[str], ...],
    family: frozenset[str],
) -> None:
    point = len(found.before)
    found.before.append(before)
    found.place.append(place)
    found.loop.append(loop)
    found.reached.append(reached)
    if place is not None:
        others = tuple(v for name, v in sorted(at.items()) if name not in family)
        found.fibers.setdefault(einsum.name, {}).setdefault(others, {})[place] = point


def _points(
    cascade: Cascade, sizes: Mapping[str, int]
) -> Iterator[tuple[Einsum, Iterate | None, dict[str, int]]]:
    for statement in cascade.statements:
        if isinstance(statement, Einsum):
            yield from ((statement, None, at) for at in _box(statement, sizes, {}))
        elif isinstance(statement, Iterate):
            for step in range(_value(statement.bound, sizes)):
                for einsum in statement.body:
                    at = {statement.variable: step}
                    yield from ((einsum, statement, point) for point in _box(einsum, sizes, at))


def _box(einsum: Einsum, sizes: Mapping[str, int], fixed: Mapping[str, int]) -> Iterator[dict[str, int]]:
    free = sorted(einsum.variables - set(fixed))
    for values in product(*(range(sizes[v.upper()]) for v in free)):
        yield {**fixed, **dict(zip(free, values, strict=True))}


def _near(a: int, b: int, extent: int, reach: int) -> bool:
    return min((a - b) % extent, (b - a) % extent) <= reach


def _names(node: Expression) -> set[str]:
    if isinstance(node, Symbol):
        return {node.name} if node.is_variable else set()
    return set().union(*(_names(a) for a in node.args)) if isinstance(node, Apply) else set()


def _value(node: Expression, at: Mapping[str, int]) -> int:
    if isinstance(node, Number):
        return int(node.value)
    if isinstance(node, Symbol):
        return at[node.name]
    assert isinstance(node, Apply)
    left, right = (_value(a, at) for a in node.args)
    if node.op in ("floordiv", "%"):
        return left // right if node.op == "floordiv" else left % right
    return {"+": left + right, "-": left - right, "*": left * right}[node.op]
