"""Which sizes a cascade wants, and the missing ones from those given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import index as as_integer
from typing import SupportsIndex

from einsight.einsum.expression import Expression, Symbol, walk
from einsight.einsum.ir import Cascade, Einsum, Initial, Iterate


class SizeError(ValueError):
    """The sizes given do not fit the cascade."""


def required_sizes(cascade: Cascade) -> tuple[str, ...]:
    """Names of the sizes that `bind` wants, upper case; outer chunk counts (N1) follow and need not be given."""
    return _needs(cascade).names


def partitions(cascade: Cascade) -> tuple[tuple[str, str, str], ...]:
    """Partitioned ranks as (whole, chunks, chunk size): ('N', 'N1', 'N0')."""
    return _needs(cascade).partitions


def complete(cascade: Cascade, sizes: Mapping[str, SupportsIndex]) -> dict[str, int]:
    """Every size by upper-case name, the sizes of partitions filled in. Raises SizeError; see `resolve.bind`."""
    needs = _needs(cascade)
    bound = _upper_case(cascade, sizes)
    wanted = ", ".join(needs.names)
    alike = {r.name: r.like for r in cascade.ranks if r.like}
    known = {*needs.names, *(outer for _, outer, _ in needs.partitions), *alike}
    if unknown := [n for n in bound if n not in known]:
        raise SizeError(f"cascade {cascade.name} has no size {', '.join(unknown)} (it needs {wanted})")
    for name in bound:
        if name not in needs.parameters and bound[name] < 1:
            raise SizeError(f"cascade {cascade.name}: size {name} is {bound[name]}; expected at least 1")
    for whole, outer, inner in needs.partitions:
        _derive(bound, whole, outer, inner)
    if missing := [n for n in needs.names if n not in bound]:
        noun = "size" if len(missing) == 1 else "sizes"
        raise SizeError(f"cascade {cascade.name}: missing {noun} {', '.join(missing)} (it needs {wanted})")
    for whole, outer, inner in needs.partitions:
        expected = -(-bound[whole] // bound[inner])
        if bound[outer] != expected:
            raise SizeError(
                f"cascade {cascade.name}: {outer}={bound[outer]} does not match {whole}={bound[whole]} in chunks of "
                f"{inner}={bound[inner]}; expected {outer} = ceil({whole}/{inner}) = {expected}"
            )
    for name, other in alike.items():
        if bound.setdefault(name, bound[other]) != bound[other]:
            raise SizeError(f"cascade {cascade.name}: size {name} is {bound[name]}; expected {bound[other]}, as {other}")
    return bound


@dataclass(frozen=True, slots=True)
class _Needs:
    """What a cascade wants to know: ranks given directly, (rank, outer, inner) partitions, further size symbols."""

    ranks: tuple[str, ...]
    partitions: tuple[tuple[str, str, str], ...]
    parameters: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What a user gives: for a partition the whole and its inner size."""
        partitioned = tuple(n for whole, _, inner in self.partitions for n in (whole, inner))
        return tuple(dict.fromkeys((*self.ranks, *partitioned, *self.parameters)))


@lru_cache(maxsize=512)
def _needs(cascade: Cascade) -> _Needs:
    partitions = tuple((r.name, r.parts[0], r.parts[1]) for r in cascade.ranks if len(r.parts) == 2)
    of_partitions = {n for p in partitions for n in p}
    alike = {r.name for r in cascade.ranks if r.like}
    ranks = tuple(r.name for r in cascade.ranks if r.name not in of_partitions | alike)
    lets = {let.name for let in cascade.lets}
    symbols = (n for node in _expressions(cascade) for n in walk(node) if isinstance(n, Symbol))
    used = dict.fromkeys(s.name for s in symbols if not s.is_variable)
    parameters = tuple(n for n in used if n not in {*ranks, *of_partitions, *alike, *lets})
    return _Needs(ranks, partitions, parameters)


def _expressions(cascade: Cascade) -> Iterator[Expression]:
    yield from (let.expression for let in cascade.lets)
    for statement in cascade.statements:
        if isinstance(statement, Iterate):
            yield statement.bound
        einsums: Iterable[Einsum | Initial] = statement.body if isinstance(statement, Iterate) else (statement,)
        for einsum in einsums:
            yield from (einsum.output, einsum.expression)
            if isinstance(einsum, Einsum) and einsum.predicate is not None:
                yield einsum.predicate


def _upper_case(cascade: Cascade, sizes: Mapping[str, SupportsIndex]) -> dict[str, int]:
    bound: dict[str, int] = {}
    for name, value in sizes.items():
        try:
            size = as_integer(value)
        except TypeError:
            raise SizeError(f"cascade {cascade.name}: size {name} is {value!r}; expected a whole number") from None
        if bound.setdefault(name.upper(), size) != size:
            raise SizeError(f"cascade {cascade.name}: size {name.upper()} is given as {bound[name.upper()]} and {size}")
    return bound


def _derive(bound: dict[str, int], whole: str, outer: str, inner: str) -> None:
    """The third of N, N1, N0 from the other two."""
    given = {n: bound[n] for n in (whole, outer, inner) if n in bound}
    if len(given) != 2:
        return
    if outer not in given:
        bound[outer] = -(-given[whole] // given[inner])
    elif inner not in given:
        bound[inner] = -(-given[whole] // given[outer])
    else:
        bound[whole] = given[outer] * given[inner]
